//! Repairs an authority in the Huffman code of RFC 7541 appendix B, as Go's clients write it, the kubelet before
//! Kubernetes 1.26 among them.
//!
//! A symbol is replaced by one whose code has as many bits, so nothing moves. Symbols with codes of more than eight
//! bits are not replaced: they are in no path that our clients use, and few have such a substitute.

use tonic::codegen::http::uri::Authority;

use super::is_unreserved;

/// Symbols by the lengths of their codes, in the order of the codes; with the first code of each length, and with what
/// takes the place of a symbol that may not stand.
const CODES: [(u32, u32, &[u8], u8); 4] = [
    (5, 0x00, b"012aceiost", b'0'),
    (6, 0x14, b" %-./3456789=A_bdfghlmnpru", b'-'),
    (7, 0x5c, b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz", b'x'),
    (8, 0xf8, b"&*,;XZ", b'X'),
];

/// Makes a coded authority parse. What has other symbols, or is not well coded, stays as it is.
pub(super) fn repair(value: &mut [u8]) {
    let Some(symbols) = decode(value) else { return };
    let text: Vec<u8> = symbols.iter().map(|symbol| symbol.byte).collect();
    if text.is_empty() || Authority::try_from(text.as_slice()).is_ok() {
        return;
    }
    for symbol in symbols.iter().filter(|symbol| !is_unreserved(symbol.byte)) {
        put(value, symbol.at, symbol.length, symbol.substitute);
    }
}

/// A symbol and where its code stands, in bits.
struct Symbol {
    byte: u8,
    at: usize,
    length: u32,
    /// The code to put in its place.
    substitute: u32,
}

/// The symbols; `None` if any has a longer code, or the padding is none.
fn decode(value: &[u8]) -> Option<Vec<Symbol>> {
    let end = value.len() * 8;
    let (mut symbols, mut at) = (Vec::new(), 0);
    while at < end {
        let Some(symbol) = CODES.iter().find_map(|row| read(value, at, row)) else {
            // RFC 7541 §5.2: less than a byte of ones fills the last byte.
            let rest = u32::try_from(end - at).ok().filter(|rest| *rest < 8)?;
            return (get(value, at, rest)? == (1 << rest) - 1).then_some(symbols);
        };
        at += usize::try_from(symbol.length).ok()?;
        symbols.push(symbol);
    }
    Some(symbols)
}

fn read(
    value: &[u8],
    at: usize,
    &(length, first, symbols, substitute): &(u32, u32, &[u8], u8),
) -> Option<Symbol> {
    let code = get(value, at, length)?;
    let place = |byte: u8| symbols.iter().position(|symbol| *symbol == byte);
    let byte = *symbols.get(usize::try_from(code.checked_sub(first)?).ok()?)?;
    let substitute = first + u32::try_from(place(substitute)?).ok()?;
    Some(Symbol {
        byte,
        at,
        length,
        substitute,
    })
}

/// The bits at a place, if there are so many.
fn get(value: &[u8], at: usize, length: u32) -> Option<u32> {
    (0..length).try_fold(0, |code, n| {
        let bit = at + usize::try_from(n).ok()?;
        let byte = *value.get(bit / 8)?;
        Some(code << 1 | u32::from(byte >> (7 - bit % 8) & 1))
    })
}

fn put(value: &mut [u8], at: usize, length: u32, code: u32) {
    for (n, shift) in (0..length).rev().enumerate() {
        let bit = at + n;
        let mask = 1 << (7 - bit % 8);
        if let Some(byte) = value.get_mut(bit / 8) {
            *byte = if code >> shift & 1 == 1 {
                *byte | mask
            } else {
                *byte & !mask
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(text: &str) -> Vec<u8> {
        let mut bits = Vec::new();
        for byte in text.bytes() {
            let (length, first, symbols, _) = CODES.iter().find(|row| row.2.contains(&byte)).unwrap();
            let code = first + u32::try_from(symbols.iter().position(|one| *one == byte).unwrap()).unwrap();
            bits.extend((0..*length).rev().map(|shift| code >> shift & 1 == 1));
        }
        while bits.len() % 8 != 0 {
            bits.push(true);
        }
        let byte = |bits: &[bool]| bits.iter().fold(0, |byte, bit| byte << 1 | u8::from(*bit));
        bits.chunks(8).map(byte).collect()
    }

    fn text(value: &[u8]) -> String {
        decode(value)
            .unwrap()
            .iter()
            .map(|symbol| char::from(symbol.byte))
            .collect()
    }

    #[test]
    fn codes_are_those_of_the_standard() {
        // RFC 7541 appendices C.4.1 and C.6.1.
        let known: [(&str, &[u8]); 2] = [
            (
                "www.example.com",
                &[
                    0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff,
                ],
            ),
            (
                "https://www.example.com",
                &[
                    0x9d, 0x29, 0xad, 0x17, 0x18, 0x63, 0xc7, 0x8f, 0x0b, 0x97, 0xc8, 0xe9, 0xae, 0x82, 0xae,
                    0x43, 0xd3,
                ],
            ),
        ];
        for (expected, coded) in known {
            assert_eq!(text(coded), expected);
            assert_eq!(encode(expected), coded);
        }
        assert_eq!(encode(":authority"), super::super::HUFFMAN_AUTHORITY);
    }

    #[test]
    fn a_path_becomes_an_authority_of_the_same_length() {
        let path = "/var/lib/kubelet/plugins_registry/csi.spiffe.io-reg.sock";
        let mut value = encode(path);
        let before = value.len();
        repair(&mut value);
        assert_eq!(text(&value), path.replace('/', "-"));
        assert_eq!(value.len(), before);
        let mut every = encode("a/b:c%d e&f");
        repair(&mut every);
        assert_eq!(text(&every), "a-bxc-d-eXf");
    }

    #[test]
    fn what_parses_and_what_is_not_understood_stay() {
        for value in [
            encode("localhost:8080"),
            encode(""),
            vec![0xff],
            vec![0xff, 0xff, 0xff, 0xfc],
            vec![0x63, 0xc0],
        ] {
            let mut repaired = value.clone();
            repair(&mut repaired);
            assert_eq!(repaired, value);
        }
    }
}
