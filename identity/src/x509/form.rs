//! Whether a certificate has the form that its other readers insist on.
//!
//! BoringSSL, which is in Envoy, and Go refuse a whole list of authorities for one that they cannot read. A foreign
//! authority that is taken here and refused there would cost workloads the bundles of everybody. So what is taken here
//! is what those read: DER with shortest lengths (X.690 §10.1), the fields of RFC 5280 §4.1 and no others, and text that
//! is what its type says (X.680 §41). What values mean is decided elsewhere.

use super::{X509Error, malformed};

/// Looks through one whole certificate.
///
/// # Errors
/// [`X509Error::Malformed`] names the first part that is not as it should be.
pub(super) fn check(der: &[u8]) -> Result<(), X509Error> {
    certificate(der).map_err(|flaw| malformed("certificate", flaw))
}

/// The part that is wrong.
type Flaw = &'static str;

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

/// Whether a type that X.680 defines is constructed if, and only if, it always is.
fn is_of_its_kind(tag: u8) -> bool {
    let is_universal = tag & CLASS == 0;
    let always_constructed = matches!(tag & NUMBER, 8 | 11 | 16 | 17 | 29);
    // 15 is not given to any type; those from 31 on have a tag of several bytes and are not told apart here.
    let is_defined = !matches!(tag & NUMBER, 15 | LONG);
    !is_universal || !is_defined || (tag & CONSTRUCTED != 0) == always_constructed
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

/// The content of the one value that `der` is.
fn whole<'a>(der: &'a [u8], tag: u8, flaw: Flaw) -> Result<Reader<'a>, Flaw> {
    let mut reader = Reader(der);
    let content = reader.take(tag, flaw)?;
    reader.end(flaw)?;
    Ok(content)
}

/// What is still to be read.
#[derive(Clone, Copy, Debug)]
struct Reader<'a>(&'a [u8]);

/// One value. The tag is its first byte alone.
#[derive(Clone, Copy, Debug)]
struct Value<'a> {
    tag: u8,
    content: &'a [u8],
}

impl<'a> Reader<'a> {
    /// The content of the next value, which must have this tag.
    fn take(&mut self, tag: u8, flaw: Flaw) -> Result<Self, Flaw> {
        match self.any(flaw)? {
            value if value.tag == tag => Ok(Self(value.content)),
            _ => Err(flaw),
        }
    }

    /// The same, if there is one with this tag.
    fn optional(&mut self, tag: u8) -> Result<Option<Self>, Flaw> {
        match self.0.first() {
            Some(first) if *first == tag => self.take(tag, "optional field").map(Some),
            _ => Ok(None),
        }
    }

    fn any(&mut self, flaw: Flaw) -> Result<Value<'a>, Flaw> {
        let (tag, rest) = self.0.split_first().ok_or(flaw)?;
        let rest = after_tag(*tag, rest).ok_or(flaw)?;
        let (length, rest) = length(rest).ok_or(flaw)?;
        let (content, rest) = rest.split_at_checked(length).ok_or(flaw)?;
        self.0 = rest;
        Ok(Value { tag: *tag, content })
    }

    /// Nothing may be left.
    fn end(self, flaw: Flaw) -> Result<(), Flaw> {
        if self.0.is_empty() { Ok(()) } else { Err(flaw) }
    }
}

/// What follows a tag, which has further bytes when its number is large (X.690 §8.1.2.4).
fn after_tag(tag: u8, mut rest: &[u8]) -> Option<&[u8]> {
    if tag & !CONSTRUCTED == 0 {
        return None; // Reserved (X.690 §8.1.2.2).
    }
    if tag & NUMBER != LONG {
        return Some(rest);
    }
    let mut number = 0_u32;
    loop {
        let (byte, following) = rest.split_first()?;
        rest = following;
        if number == 0 && *byte == 0x80 {
            return None;
        }
        number = number << 7 | u32::from(byte & 0x7f);
        if number > MOST_TAG {
            return None;
        }
        if *byte < 0x80 {
            break;
        }
    }
    let most = if tag & CLASS == 0 {
        MOST_UNIVERSAL_TAG
    } else {
        MOST_TAG
    };
    (u32::from(LONG)..=most).contains(&number).then_some(rest)
}

/// A length in its shortest form, and what follows it.
fn length(der: &[u8]) -> Option<(usize, &[u8])> {
    let (first, rest) = der.split_first()?;
    if *first < 0x80 {
        return Some((usize::from(*first), rest));
    }
    let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
    let length = match bytes {
        [0, ..] | [] => return None,
        bytes if bytes.len() > 4 => return None,
        bytes => bytes
            .iter()
            .fold(0, |length: u32, byte| length << 8 | u32::from(*byte)),
    };
    (length >= 0x80).then_some((usize::try_from(length).ok()?, rest))
}

const V1: u8 = 0;
const V3: u8 = 2;

const CLASS: u8 = 0xc0;
const CONSTRUCTED: u8 = 0x20;
const NUMBER: u8 = 0x1f;
/// In the place of the number: it follows.
const LONG: u8 = 0x1f;
/// The largest numbers of tags that BoringSSL reads.
const MOST_TAG: u32 = 0x1fff_ffff;
const MOST_UNIVERSAL_TAG: u32 = 0xff;

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const NULL: u8 = 0x05;
const OID: u8 = 0x06;
const ENUMERATED: u8 = 0x0a;
const UTF8_STRING: u8 = 0x0c;
const NUMERIC_STRING: u8 = 0x12;
const PRINTABLE_STRING: u8 = 0x13;
const IA5_STRING: u8 = 0x16;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const VISIBLE_STRING: u8 = 0x1a;
const UNIVERSAL_STRING: u8 = 0x1c;
const BMP_STRING: u8 = 0x1e;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION: u8 = 0xa0;
const ISSUER_UNIQUE_ID: u8 = 0x81;
const SUBJECT_UNIQUE_ID: u8 = 0x82;
const EXTENSIONS: u8 = 0xa3;
const SUBJECT_ALTERNATIVE_NAME: &[u8] = &[0x55, 0x1d, 17];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::tlv;
    use crate::x509::Certificate;
    use crate::x509::testing::{Ca, Spec, names};

    /// Text that is replaced, in a name whose parts stand there in UTF-8.
    const PLACE: &str = "12345678";

    /// A certificate with a name in which this stands.
    fn named(tag: u8, content: &[u8]) -> Vec<u8> {
        assert_eq!(content.len(), PLACE.len(), "all lengths stay the same");
        let mut spec = Spec::leaf("spiffe://example.org/a");
        spec.subject = names(&[(&[2, 5, 4, 3], PLACE)]);
        let der = Ca::new("example.org").issue_der(&spec);
        replace(&der, &tlv(UTF8_STRING, PLACE.as_bytes()), &tlv(tag, content))
    }

    /// The same bytes with one part in the place of another, which is there once.
    fn replace(der: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
        let places: Vec<usize> = (0..der.len()).filter(|at| der[*at..].starts_with(old)).collect();
        let [at] = places[..] else {
            panic!("found {} times", places.len());
        };
        [&der[..at], new, &der[at + old.len()..]].concat()
    }

    fn refused(der: &[u8]) -> String {
        Certificate::parse(der).map(drop).unwrap_err().to_string()
    }

    #[test]
    fn text_that_is_not_what_its_type_says_is_refused() {
        let wrong: [(u8, &[u8; 8]); 13] = [
            (UTF8_STRING, b"\xff\xff\xff\xff\xff\xff\xff\xff"),
            (UTF8_STRING, b"abcdefg\xc3"),
            (UTF8_STRING, b"abcd\xed\xa0\x80e"),
            (UTF8_STRING, b"abcd\xef\xbf\xbfe"),
            (UTF8_STRING, b"abcd\xef\xb7\x90e"),
            (PRINTABLE_STRING, b"someone@"),
            (PRINTABLE_STRING, b"abcdef\xc3\xbc"),
            (IA5_STRING, b"abcdefg\x80"),
            (NUMERIC_STRING, b"1234567a"),
            (VISIBLE_STRING, b"abcdefg\n"),
            (BMP_STRING, b"\0a\xd8\0\xdc\0\0b"),
            (UNIVERSAL_STRING, b"\0\0\0a\0\x11\0\0"),
            (UNIVERSAL_STRING, b"\0\0\0a\0\0\xff\xfe"),
        ];
        for (tag, content) in wrong {
            let error = refused(&named(tag, content));
            assert!(
                error.contains("text or value of a name"),
                "{tag} {content:?}: {error}"
            );
        }
    }

    #[test]
    fn text_of_every_type_is_taken() {
        let right: [(u8, &[u8; 8]); 10] = [
            (UTF8_STRING, "ü\u{20ac}abc".as_bytes().first_chunk().unwrap()),
            (PRINTABLE_STRING, b"A *&'?=z"),
            (IA5_STRING, b"a@b.test"),
            (NUMERIC_STRING, b"1234 567"),
            (VISIBLE_STRING, b"abc{}~ @"),
            (BMP_STRING, b"\0a\x20\xac\0c\0d"),
            (UNIVERSAL_STRING, b"\0\0\0a\0\x01\xf6\0"),
            // Latin-1, or whatever else was meant.
            (0x14, b"\xfc\xff\0 abcd"),
            // GeneralString and an unknown type.
            (0x1b, b"\xff\xff\xff\xff\xff\xff\xff\xff"),
            (0x0f, b"\xff\xff\xff\xff\xff\xff\xff\xff"),
        ];
        for (tag, content) in right {
            let read = Certificate::parse(&named(tag, content));
            assert!(read.is_ok(), "{tag} {content:?}: {read:?}");
        }
    }

    #[test]
    fn the_issuers_name_is_looked_at_too() {
        let ca = Ca::self_signed(&Spec::authority("example.org", PLACE), Default::default());
        let der = ca.issue_der(&Spec::leaf("spiffe://example.org/a"));
        Certificate::parse(&der).unwrap();
        let der = replace(&der, PLACE.as_bytes(), b"1234567\xff");
        assert!(refused(&der).contains("text or value of a name"));
    }

    #[test]
    fn values_of_names_that_are_no_text_have_their_form_too() {
        let wrong: [(u8, &[u8; 8]); 6] = [
            (BOOLEAN, &[0; 8]),
            (INTEGER, &[0; 8]),
            (BIT_STRING, &[1, 0, 0, 0, 0, 0, 0, 1]),
            (NULL, &[0; 8]),
            (OID, &[0x80, 1, 1, 1, 1, 1, 1, 1]),
            // A SEQUENCE that is not constructed, and text that is.
            (0x10, &[0; 8]),
        ];
        for (tag, content) in wrong {
            assert!(Certificate::parse(&named(tag, content)).is_err(), "{tag}");
        }
        let constructed = tlv(UTF8_STRING, b"abcdef");
        assert!(Certificate::parse(&named(UTF8_STRING | CONSTRUCTED, &constructed)).is_err());
        Certificate::parse(&named(BIT_STRING, &[1, 0, 0, 0, 0, 0, 0, 2])).unwrap();
    }

    #[test]
    fn names_of_hosts_and_of_people_are_ascii_and_addresses_are_whole() {
        let with = |tag: u8, content: &[u8]| {
            let mut spec = Spec::leaf("spiffe://example.org/a");
            spec.raw_sans = vec![(tag, content.to_vec())];
            Certificate::parse(&Ca::new("example.org").issue_der(&spec))
        };
        let directory = |text: &[u8]| {
            let attribute = [tlv(OID, &[0x55, 4, 3]), tlv(UTF8_STRING, text)].concat();
            tlv(SEQUENCE, &tlv(SET, &tlv(SEQUENCE, &attribute)))
        };
        for (tag, content) in [
            (0x81, b"a@b.test".to_vec()),
            (0x87, vec![127, 0, 0, 1]),
            (0xa4, directory(b"a")),
        ] {
            assert!(with(tag, &content).is_ok(), "{tag}");
        }
        for (tag, content) in [
            (0x81, "ü@b.test".as_bytes().to_vec()),
            (0x82, "ü.test".as_bytes().to_vec()),
            (0x86, "https://ü.test".as_bytes().to_vec()),
            (0x87, vec![127, 0, 0, 0, 1]),
            (0xa4, directory(b"\xff")),
        ] {
            assert!(with(tag, &content).is_err(), "{tag}");
        }
    }

    #[test]
    fn lengths_are_as_short_as_they_can_be() {
        let (leaf, _) = Ca::new("example.org").leaf("spiffe://example.org/a");
        let content = &leaf.der()[4..];
        let [high, low] = u16::try_from(content.len()).unwrap().to_be_bytes();
        let longer = [&[SEQUENCE, 0x83, 0, high, low], content].concat();
        assert!(refused(&longer).contains("malformed certificate"));
        assert_eq!(length(&[0x81, 0x80, 1]), Some((0x80, &[1][..])));
        for wrong in [
            &[0x80][..],
            &[0x81, 0x7f],
            &[0x82, 0, 0xff],
            &[0x85, 1, 0, 0, 0, 0],
            &[0x82, 1],
        ] {
            assert_eq!(length(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_version_has_its_fields_and_no_others() {
        let (leaf, _) = Ca::new("example.org").leaf("spiffe://example.org/a");
        let version = |number| {
            replace(
                leaf.der(),
                &[VERSION, 3, INTEGER, 1, 2],
                &[VERSION, 3, INTEGER, 1, number],
            )
        };
        check(&version(V3)).unwrap();
        for number in [V1, 1, 3, 0xff] {
            assert!(check(&version(number)).is_err(), "{number}");
        }
    }

    #[test]
    fn numbers_bits_identifiers_and_times_have_one_form() {
        for right in [&[0][..], &[0x7f], &[0x80], &[0, 0x80], &[0xff, 0x7f]] {
            integer(Reader(right)).unwrap();
        }
        for wrong in [&[][..], &[0, 0], &[0, 0x7f], &[0xff, 0x80]] {
            assert!(integer(Reader(wrong)).is_err(), "{wrong:?}");
        }
        for right in [&[0][..], &[0, 1], &[7, 0x80]] {
            bit_string(Reader(right)).unwrap();
        }
        for wrong in [&[][..], &[1], &[8, 0], &[1, 1]] {
            assert!(bit_string(Reader(wrong)).is_err(), "{wrong:?}");
        }
        for wrong in [&[][..], &[0x80, 1], &[0x2a, 0x80, 1], &[0x2a, 0x81]] {
            assert!(oid(Reader(wrong)).is_err(), "{wrong:?}");
        }
        oid(Reader(&[0x2a, 0x81, 0x00])).unwrap();
        for (tag, right) in [
            (UTC_TIME, "260102030405Z"),
            (UTC_TIME, "260102030405+0100"),
            (GENERALIZED_TIME, "20260102030405Z"),
        ] {
            moment(tag, right.as_bytes()).unwrap();
        }
        for (tag, wrong) in [
            (UTC_TIME, "2601020304Z"),
            (UTC_TIME, "260102030405"),
            (UTC_TIME, "260102030405.5Z"),
            (GENERALIZED_TIME, "20260102030405+0100"),
            (GENERALIZED_TIME, "20260102030405.5Z"),
            (UTF8_STRING, "260102030405Z"),
        ] {
            assert!(moment(tag, wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn tags_have_one_form() {
        assert_eq!(after_tag(0x0c, &[1]), Some(&[1][..]));
        assert_eq!(after_tag(0x1f, &[0x1f, 1]), Some(&[1][..]));
        assert_eq!(after_tag(0x9f, &[0x82, 0x00, 1]), Some(&[1][..]));
        let wrong = [
            &[0x1e][..],
            &[0x80, 0x1f],
            &[0x82, 0x00],
            &[0x9f],
            &[0xff, 0xff, 0xff, 0xff, 0x7f],
        ];
        for bytes in wrong {
            assert_eq!(after_tag(0x1f, bytes), None, "{bytes:?}");
        }
        assert_eq!(after_tag(0x20, &[1]), None);
    }
}
