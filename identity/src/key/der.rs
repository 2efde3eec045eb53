//! Writes the few DER structures that keys need.

pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;

/// One tag-length-value with the definite, shortest length.
pub(crate) fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + 6);
    out.push(tag);
    match content.len() {
        len @ 0..=0x7f => out.push(len as u8),
        len => {
            let bytes = len.to_be_bytes();
            let skip = bytes.iter().take_while(|b| **b == 0).count();
            out.push(0x80 | (bytes.len() - skip) as u8);
            out.extend_from_slice(&bytes[skip..]);
        }
    }
    out.extend_from_slice(content);
    out
}

/// An unsigned big-endian number as a DER INTEGER.
pub(super) fn unsigned_integer(big_endian: &[u8]) -> Vec<u8> {
    let number = trim_leading_zeros(big_endian);
    match number.first() {
        None => tlv(INTEGER, &[0]),
        Some(first) if *first >= 0x80 => {
            let mut content = Vec::with_capacity(number.len() + 1);
            content.push(0);
            content.extend_from_slice(number);
            tlv(INTEGER, &content)
        }
        Some(_) => tlv(INTEGER, number),
    }
}

/// A SubjectPublicKeyInfo (RFC 5280 §4.1) from the content of its AlgorithmIdentifier and the key.
pub(super) fn spki(algorithm_content: &[u8], key: &[u8]) -> Vec<u8> {
    let mut bits = Vec::with_capacity(key.len() + 1);
    bits.push(0);
    bits.extend_from_slice(key);
    let mut content = tlv(SEQUENCE, algorithm_content);
    content.extend_from_slice(&tlv(BIT_STRING, &bits));
    tlv(SEQUENCE, &content)
}

/// A PKCS#8 version 0 PrivateKeyInfo (RFC 5208 §5).
pub(super) fn pkcs8(algorithm_content: &[u8], key: &[u8]) -> zeroize::Zeroizing<Vec<u8>> {
    let mut content = zeroize::Zeroizing::new(tlv(INTEGER, &[0]));
    content.extend_from_slice(&tlv(SEQUENCE, algorithm_content));
    content.extend_from_slice(&zeroize::Zeroizing::new(tlv(OCTET_STRING, key)));
    zeroize::Zeroizing::new(tlv(SEQUENCE, &content))
}

pub(super) fn trim_leading_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|b| **b == 0).count();
    &number[zeros..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_short_and_long_lengths() {
        assert_eq!(tlv(4, &[7]), [4, 1, 7]);
        assert_eq!(tlv(4, &[0; 0x80])[..3], [4, 0x81, 0x80]);
        assert_eq!(tlv(4, &[0; 0x1234])[..4], [4, 0x82, 0x12, 0x34]);
    }

    #[test]
    fn integers_are_unsigned_and_minimal() {
        assert_eq!(unsigned_integer(&[0, 0, 1]), [2, 1, 1]);
        assert_eq!(unsigned_integer(&[0x80]), [2, 2, 0, 0x80]);
        assert_eq!(unsigned_integer(&[]), [2, 1, 0]);
    }
}
