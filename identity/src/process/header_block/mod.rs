//! Finds and repairs `:authority` in a complete HPACK header block (RFC 7541).

use std::ops::Range;

use tonic::codegen::http::uri::Authority;

mod huffman;

const AUTHORITY: &[u8] = b":authority";
/// `:authority` in the Huffman code of RFC 7541 appendix B.
pub(super) const HUFFMAN_AUTHORITY: [u8; 8] = [0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f];
/// `:authority` in the static table.
const STATIC_AUTHORITY: usize = 1;
/// The most `:authority` fields that are repaired; a request has one.
const MAX_FIELDS: usize = 8;

/// Makes the values of literal `:authority` fields parse as an authority, in place. Values that are empty stay, and a
/// malformed block stays as it is altogether.
pub(super) fn repair_authorities(block: &mut [u8]) {
    for (value, huffman) in authority_values(block).unwrap_or_default() {
        let value = block.get_mut(value).unwrap_or_default();
        if huffman {
            huffman::repair(value);
        } else {
            repair(value);
        }
    }
}

/// Where the values stand, and whether they are Huffman-coded; none if the block is malformed.
fn authority_values(block: &[u8]) -> Option<Vec<(Range<usize>, bool)>> {
    let mut values = Vec::new();
    let mut at = 0;
    while let Some(first) = block.get(at).copied() {
        // RFC 7541 §6: the kind of field tells how many bits begin the index.
        let (bits, literal) = match first {
            0x80.. => (7, false),
            0x40.. => (6, true),
            0x20.. => (5, false),
            _ => (4, true),
        };
        let index = integer(block, &mut at, bits)?;
        if !literal {
            continue;
        }
        let is_authority = if index == 0 {
            let (name, huffman) = string(block, &mut at)?;
            let name = block.get(name)?;
            if huffman {
                name == HUFFMAN_AUTHORITY
            } else {
                name == AUTHORITY
            }
        } else {
            index == STATIC_AUTHORITY
        };
        let (value, huffman) = string(block, &mut at)?;
        if is_authority && values.len() < MAX_FIELDS {
            values.push((value, huffman));
        }
    }
    Some(values)
}

/// RFC 7541 §5.1, limited to what a block can hold.
fn integer(block: &[u8], at: &mut usize, bits: u32) -> Option<usize> {
    let mask = (1_usize << bits) - 1;
    let mut value = usize::from(*block.get(*at)?) & mask;
    *at += 1;
    if value < mask {
        return Some(value);
    }
    for shift in [0, 7, 14, 21] {
        let byte = usize::from(*block.get(*at)?);
        *at += 1;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// RFC 7541 §5.2: where the string's bytes stand, and whether they are Huffman-coded.
fn string(block: &[u8], at: &mut usize) -> Option<(Range<usize>, bool)> {
    let huffman = *block.get(*at)? & 0x80 != 0;
    let length = integer(block, at, 7)?;
    let range = *at..at.checked_add(length)?;
    *at = range.end;
    (range.end <= block.len()).then_some((range, huffman))
}

fn repair(value: &mut [u8]) {
    if value.is_empty() || Authority::try_from(&*value).is_ok() {
        return;
    }
    for byte in value {
        if !is_unreserved(*byte) {
            *byte = b'-';
        }
    }
}

/// RFC 3986 §2.3: what may stand anywhere in an authority.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'~')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn repaired(block: &[u8]) -> Vec<u8> {
        let mut block = block.to_vec();
        repair_authorities(&mut block);
        block
    }

    #[test]
    fn repairs_every_kind_of_literal_and_nothing_else() {
        // :method GET, table size 31+1, :path "/x" (indexed name), authority thrice, :authority indexed.
        let block = b"\x82\x3f\x01\x04\x02/x\x41\x02/a\x01\x02/b\x1f\x00\x02/c\x11\x02/d\x81";
        let expected = b"\x82\x3f\x01\x04\x02/x\x41\x02-a\x01\x02-b\x1f\x00\x02/c\x11\x02-d\x81";
        assert_eq!(repaired(block), expected);
        let other_name = b"\x40\x0a:Authority\x02/a\x00\x04path\x02/b";
        assert_eq!(repaired(other_name), other_name);
    }

    #[test]
    fn leaves_empty_values_and_broken_huffman_codes_alone() {
        for block in [&b"\x41\x82\xff\xff"[..], b"\x41\x00", b"\x01\x80"] {
            assert_eq!(repaired(block), block);
        }
    }

    #[test]
    fn one_malformed_field_leaves_the_whole_block_alone() {
        for tail in [
            &b"\x41"[..],
            b"\x41\x05/a",
            b"\x7f\xff\xff\xff\xff\xff\x01",
            b"\x40\x7f\xff\xff\xff\x7f",
        ] {
            let block = [b"\x41\x02/a", tail].concat();
            assert_eq!(repaired(&block), block);
        }
    }

    #[test]
    fn reads_lengths_of_more_than_one_byte() {
        let path = [b'/'; 300];
        let block = [&b"\x41\x7f\xad\x01"[..], &path].concat();
        assert_eq!(
            repaired(&block),
            [&b"\x41\x7f\xad\x01"[..], &[b'-'; 300]].concat()
        );
    }

    proptest! {
        #[test]
        fn a_repaired_value_always_parses(mut value in proptest::collection::vec(any::<u8>(), 1..200)) {
            let length = value.len();
            repair(&mut value);
            prop_assert_eq!(value.len(), length);
            prop_assert!(Authority::try_from(value.as_slice()).is_ok());
        }

        #[test]
        fn arbitrary_blocks_keep_their_length_and_never_panic(block in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(repaired(&block).len(), block.len());
        }
    }
}
