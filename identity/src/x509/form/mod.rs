//! Whether a certificate has the form that Envoy and Go require.
//!
//! BoringSSL, which is in Envoy, and Go refuse a whole list of authorities because of one that they cannot read. If a
//! foreign authority were accepted here and refused there, workloads would lose the bundles of all trust domains. So
//! only certificates that those can read are accepted here: DER with shortest lengths (X.690 §10.1), the fields of RFC
//! 5280 §4.1 and no others, and text that its type allows (X.680 §41). The meaning of values is checked in other
//! modules.

mod der;

use self::der::{
    BIT_STRING, BMP_STRING, BOOLEAN, ENUMERATED, Flaw, GENERALIZED_TIME, IA5_STRING, INTEGER, NULL,
    NUMERIC_STRING, OCTET_STRING, OID, PRINTABLE_STRING, Reader, SEQUENCE, SET, UNIVERSAL_STRING, UTC_TIME,
    UTF8_STRING, VISIBLE_STRING, Value, is_of_its_kind, whole,
};
use super::{X509Error, malformed};

/// Looks through one whole certificate.
///
/// # Errors
/// [`X509Error::Malformed`] names the first part that is not as it should be.
pub(super) fn check(der: &[u8]) -> Result<(), X509Error> {
    certificate(der).map_err(|flaw| malformed("certificate", flaw))
}

/// RFC 5280 §4.1.1.
fn certificate(der: &[u8]) -> Result<(), Flaw> {
    let mut certificate = whole(der, SEQUENCE, "certificate")?;
    let to_be_signed = certificate.take(SEQUENCE, "tbsCertificate")?;
    algorithm(&mut certificate)?;
    bit_string(certificate.take(BIT_STRING, "signature")?)?;
    certificate.end("certificate")?;
    fields(to_be_signed)
}

/// RFC 5280 §4.1.2.
fn fields(mut tbs: Reader<'_>) -> Result<(), Flaw> {
    let version = match tbs.optional(VERSION)? {
        None => V1,
        Some(explicit) => match whole(explicit.0, INTEGER, "version")?.0 {
            [version @ V1..=V3] => *version,
            _ => return Err("version"),
        },
    };
    integer(tbs.take(INTEGER, "serial number")?)?;
    algorithm(&mut tbs)?;
    name(&mut tbs)?;
    let mut validity = tbs.take(SEQUENCE, "validity")?;
    time(&mut validity)?;
    time(&mut validity)?;
    validity.end("validity")?;
    name(&mut tbs)?;
    let mut key = tbs.take(SEQUENCE, "public key")?;
    algorithm(&mut key)?;
    bit_string(key.take(BIT_STRING, "public key")?)?;
    key.end("public key")?;
    if version > V1 {
        for tag in [ISSUER_UNIQUE_ID, SUBJECT_UNIQUE_ID] {
            tbs.optional(tag)?.map_or(Ok(()), bit_string)?;
        }
    }
    if version == V3
        && let Some(explicit) = tbs.optional(EXTENSIONS)?
    {
        let mut list = whole(explicit.0, SEQUENCE, "extensions")?;
        while !list.0.is_empty() {
            extension(list.take(SEQUENCE, "extension")?)?;
        }
    }
    tbs.end("fields that the version does not have")
}

/// RFC 5280 §4.2.
fn extension(mut extension: Reader<'_>) -> Result<(), Flaw> {
    let id = extension.take(OID, "extension")?;
    oid(id)?;
    if let Some(critical) = extension.optional(BOOLEAN)?
        && critical.0.len() != 1
    {
        return Err("criticality of an extension");
    }
    let value = extension.take(OCTET_STRING, "extension")?;
    extension.end("extension")?;
    if id.0 == SUBJECT_ALTERNATIVE_NAME {
        alternative_names(value.0)?;
    }
    Ok(())
}

/// RFC 5280 §4.2.1.6.
fn alternative_names(value: &[u8]) -> Result<(), Flaw> {
    const FLAW: Flaw = "subject alternative name";
    let mut names = whole(value, SEQUENCE, FLAW)?;
    while !names.0.is_empty() {
        let one = names.any(FLAW)?;
        let is_right = match one.tag {
            // rfc822Name, dNSName, uniformResourceIdentifier
            0x81 | 0x82 | 0x86 => one.content.is_ascii(),
            // directoryName
            0xa4 => {
                let mut directory = Reader(one.content);
                name(&mut directory)?;
                directory.0.is_empty()
            }
            // iPAddress
            0x87 => matches!(one.content.len(), 4 | 16),
            _ => true,
        };
        if !is_right {
            return Err(FLAW);
        }
    }
    Ok(())
}

/// RFC 5280 §4.1.1.2.
fn algorithm(reader: &mut Reader<'_>) -> Result<(), Flaw> {
    const FLAW: Flaw = "algorithm";
    let mut algorithm = reader.take(SEQUENCE, FLAW)?;
    oid(algorithm.take(OID, FLAW)?)?;
    if !algorithm.0.is_empty() {
        value(algorithm.any(FLAW)?)?;
    }
    algorithm.end(FLAW)
}

/// RFC 5280 §4.1.2.4.
fn name(reader: &mut Reader<'_>) -> Result<(), Flaw> {
    const FLAW: Flaw = "name";
    let mut name = reader.take(SEQUENCE, FLAW)?;
    while !name.0.is_empty() {
        let mut relative = name.take(SET, FLAW)?;
        if relative.0.is_empty() {
            return Err(FLAW);
        }
        while !relative.0.is_empty() {
            let mut attribute = relative.take(SEQUENCE, FLAW)?;
            oid(attribute.take(OID, FLAW)?)?;
            value(attribute.any(FLAW)?)?;
            attribute.end(FLAW)?;
        }
    }
    Ok(())
}

/// A value of any type: right, as far as its type is known.
fn value(value: Value<'_>) -> Result<(), Flaw> {
    let content = value.content;
    let is_right = match value.tag {
        BOOLEAN => matches!(content, [0x00 | 0xff]),
        INTEGER | ENUMERATED => return integer(Reader(content)),
        BIT_STRING => return bit_string(Reader(content)),
        NULL => content.is_empty(),
        OID => return oid(Reader(content)),
        UTC_TIME | GENERALIZED_TIME => return moment(value.tag, content),
        UTF8_STRING => str::from_utf8(content).is_ok_and(|text| text.chars().all(is_character)),
        NUMERIC_STRING => content.iter().all(|c| matches!(c, b'0'..=b'9' | b' ')),
        PRINTABLE_STRING => content.iter().copied().all(is_printable),
        IA5_STRING => content.is_ascii(),
        VISIBLE_STRING => content.iter().all(|c| matches!(c, 0x20..=0x7e)),
        UNIVERSAL_STRING => code_points::<4>(content),
        BMP_STRING => code_points::<2>(content),
        // Every byte is a character of T61String.
        tag => is_of_its_kind(tag),
    };
    if is_right {
        Ok(())
    } else {
        Err("text or value of a name")
    }
}

/// Text of code points of so many bytes each.
fn code_points<const BYTES: usize>(content: &[u8]) -> bool {
    let (characters, rest) = content.as_chunks::<BYTES>();
    let number = |bytes: &[u8; BYTES]| {
        bytes
            .iter()
            .fold(0, |number: u32, byte| number << 8 | u32::from(*byte))
    };
    rest.is_empty()
        && characters
            .iter()
            .all(|bytes| char::from_u32(number(bytes)).is_some_and(is_character))
}

/// Unicode sets some code points apart that are never characters (Unicode §23.7). BoringSSL takes them for errors.
fn is_character(c: char) -> bool {
    let number = u32::from(c);
    number & 0xfffe != 0xfffe && !(0xfdd0..=0xfdef).contains(&number)
}

/// The characters of a PrintableString and two more, `*` and `&`, that many authorities use and all readers take.
fn is_printable(c: u8) -> bool {
    c.is_ascii_alphanumeric() || b" '()+,-./:=?*&".contains(&c)
}

/// X.690 §8.3.2.
fn integer(content: Reader<'_>) -> Result<(), Flaw> {
    match content.0 {
        [] | [0x00, 0x00..=0x7f, ..] | [0xff, 0x80..=0xff, ..] => Err("number"),
        _ => Ok(()),
    }
}

/// X.690 §8.6.2, §11.2.1.
fn bit_string(content: Reader<'_>) -> Result<(), Flaw> {
    let is_right = match content.0 {
        [] => false,
        [unused] => *unused == 0,
        [unused, .., last] => *unused < 8 && last.trailing_zeros() >= u32::from(*unused),
    };
    if is_right { Ok(()) } else { Err("bit string") }
}

/// X.690 §8.19.2.
fn oid(content: Reader<'_>) -> Result<(), Flaw> {
    let mut begins = true;
    for byte in content.0 {
        if begins && *byte == 0x80 {
            return Err("object identifier");
        }
        begins = *byte < 0x80;
    }
    if begins && !content.0.is_empty() {
        Ok(())
    } else {
        Err("object identifier")
    }
}

/// RFC 5280 §4.1.2.5.
fn time(reader: &mut Reader<'_>) -> Result<(), Flaw> {
    let time = reader.any("time")?;
    moment(time.tag, time.content)
}

/// To the second. Old authorities have UTCTime with an offset, which RFC 5280 does not allow and all readers take.
fn moment(tag: u8, content: &[u8]) -> Result<(), Flaw> {
    let digits = match tag {
        UTC_TIME => 12,
        GENERALIZED_TIME => 14,
        _ => return Err("time"),
    };
    let Some((moment, zone)) = content.split_at_checked(digits) else {
        return Err("time");
    };
    let is_right = moment.iter().all(u8::is_ascii_digit)
        && match zone {
            [b'Z'] => true,
            [b'+' | b'-', offset @ ..] if tag == UTC_TIME => {
                offset.len() == 4 && offset.iter().all(u8::is_ascii_digit)
            }
            _ => false,
        };
    if is_right { Ok(()) } else { Err("time") }
}

const V1: u8 = 0;
const V3: u8 = 2;

const VERSION: u8 = 0xa0;
const ISSUER_UNIQUE_ID: u8 = 0x81;
const SUBJECT_UNIQUE_ID: u8 = 0x82;
const EXTENSIONS: u8 = 0xa3;
const SUBJECT_ALTERNATIVE_NAME: &[u8] = &[0x55, 0x1d, 17];

#[cfg(test)]
mod tests;
