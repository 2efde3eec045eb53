//! The few DER forms that a certificate needs.
//!
//! Written here because the certificate builder that is used for requests keeps one value per attribute type and encodes
//! names again: an issuer has to be repeated byte for byte (RFC 5280 §4.1.2.4), a configured subject may hold several
//! organizations, and the subject's key is copied as it was received. A test compares the output with that builder's.

use time::OffsetDateTime;

pub(super) const INTEGER: u8 = 0x02;
pub(super) const BIT_STRING: u8 = 0x03;
pub(super) const OCTET_STRING: u8 = 0x04;
pub(super) const OBJECT_IDENTIFIER: u8 = 0x06;
pub(super) const UTF8_STRING: u8 = 0x0c;
pub(super) const PRINTABLE_STRING: u8 = 0x13;
pub(super) const UTC_TIME: u8 = 0x17;
pub(super) const GENERALIZED_TIME: u8 = 0x18;
pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;
/// `[0]` constructed: the version of a certificate.
pub(super) const CONTEXT_0: u8 = 0xa0;
/// `[3]` constructed: the extensions of a certificate.
pub(super) const CONTEXT_3: u8 = 0xa3;
/// `[0]` primitive: the key identifier in an authority key identifier.
pub(super) const KEY_IDENTIFIER: u8 = 0x80;
/// `[2]` primitive: a DNS name in a subject alternative name.
pub(super) const DNS_NAME: u8 = 0x82;
/// `[6]` primitive: a URI in a subject alternative name.
pub(super) const URI: u8 = 0x86;

/// Appends one element whose content is the concatenation of `parts`.
pub(super) fn push(out: &mut Vec<u8>, tag: u8, parts: &[&[u8]]) {
    let length = parts.iter().map(|part| part.len()).sum();
    out.reserve(length + 6);
    out.push(tag);
    push_length(out, length);
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// One element whose content is the concatenation of `parts`.
pub(super) fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    push(&mut out, tag, parts);
    out
}

/// An extension: `oid` is the encoded content of the object identifier, `value` the DER of the extension's type.
pub(super) fn extension(oid: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let oid = element(OBJECT_IDENTIFIER, &[oid]);
    let flag: &[u8] = if critical { &[0x01, 0x01, 0xff] } else { &[] };
    let value = element(OCTET_STRING, &[value]);
    element(SEQUENCE, &[&oid, flag, &value])
}

/// A moment as RFC 5280 §4.1.2.5 wants it: UTCTime through 2049, GeneralizedTime from 2050; whole seconds, UTC.
///
/// Returns `None` for years that neither form can hold.
pub(super) fn time(at: OffsetDateTime) -> Option<Vec<u8>> {
    let at = at.to_offset(time::UtcOffset::UTC);
    let (year, month, day) = at.to_calendar_date();
    let (hour, minute, second) = at.to_hms();
    let rest = format!("{:02}{day:02}{hour:02}{minute:02}{second:02}Z", u8::from(month));
    match year {
        1950..=2049 => {
            let text = format!("{:02}{rest}", year % 100);
            Some(element(UTC_TIME, &[text.as_bytes()]))
        }
        0..=9999 => {
            let text = format!("{year:04}{rest}");
            Some(element(GENERALIZED_TIME, &[text.as_bytes()]))
        }
        _ => None,
    }
}

/// A non-negative integer from its big-endian bytes, in the shortest form.
pub(super) fn unsigned_integer(big_endian: &[u8]) -> Vec<u8> {
    let start = big_endian
        .iter()
        .position(|byte| *byte != 0)
        .unwrap_or(big_endian.len());
    let digits = &big_endian[start..];
    match digits.first() {
        None => element(INTEGER, &[&[0]]),
        Some(first) if first & 0x80 != 0 => element(INTEGER, &[&[0], digits]),
        Some(_) => element(INTEGER, &[digits]),
    }
}

fn push_length(out: &mut Vec<u8>, length: usize) {
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => out.push(short),
        _ => {
            let bytes = length.to_be_bytes();
            let start = bytes
                .iter()
                .position(|byte| *byte != 0)
                .unwrap_or(bytes.len() - 1);
            let digits = &bytes[start..];
            // A usize has at most eight bytes, so the count fits the low bits.
            out.push(0x80 | digits.len() as u8);
            out.extend_from_slice(digits);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn lengths_take_the_shortest_form() {
        assert_eq!(element(OCTET_STRING, &[&[7; 127]])[..2], [4, 127]);
        assert_eq!(element(OCTET_STRING, &[&[7; 128]])[..3], [4, 0x81, 128]);
        assert_eq!(element(OCTET_STRING, &[&[7; 255]])[..3], [4, 0x81, 255]);
        assert_eq!(
            element(OCTET_STRING, &[&[7; 200], &[8; 56]])[..4],
            [4, 0x82, 1, 0]
        );
        assert_eq!(element(OCTET_STRING, &[]), [4, 0]);
    }

    #[test]
    fn integers_are_positive_and_minimal() {
        assert_eq!(unsigned_integer(&[0, 0, 0x7f]), [2, 1, 0x7f]);
        assert_eq!(unsigned_integer(&[0, 0x80]), [2, 2, 0, 0x80]);
        assert_eq!(unsigned_integer(&[0, 0]), [2, 1, 0]);
    }

    #[test]
    fn time_changes_its_form_in_2050() {
        assert_eq!(
            time(datetime!(2049-12-31 23:59:59 UTC)).unwrap(),
            b"\x17\x0d491231235959Z"
        );
        assert_eq!(
            time(datetime!(2050-01-01 00:00:00 UTC)).unwrap(),
            b"\x18\x0f20500101000000Z"
        );
        assert_eq!(
            time(datetime!(2026-03-04 05:06:07.9 UTC)).unwrap(),
            b"\x17\x0d260304050607Z"
        );
        assert_eq!(
            time(datetime!(2026-03-04 05:06:07 +2)).unwrap(),
            b"\x17\x0d260304030607Z"
        );
    }
}
