use super::der::CONSTRUCTED;
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
fn a_certificate_with_a_longer_length_than_needed_is_refused() {
    let (leaf, _) = Ca::new("example.org").leaf("spiffe://example.org/a");
    let content = &leaf.der()[4..];
    let [high, low] = u16::try_from(content.len()).unwrap().to_be_bytes();
    let longer = [&[SEQUENCE, 0x83, 0, high, low], content].concat();
    assert!(refused(&longer).contains("malformed certificate"));
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
