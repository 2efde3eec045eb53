//! Distinguished names, encoded as SPIRE encodes them.

use x509_parser::der_parser::asn1_rs::{Any, Tag};
use x509_parser::prelude::{FromDer, X509Name};

use super::der;

/// A subject. Attributes are written in one fixed order, whatever order they came in; several values of one attribute
/// share one relative distinguished name; values are PrintableString where they can be, else UTF8String. SPIRE's
/// certificates look exactly so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DistinguishedName {
    pub country: Vec<String>,
    pub organization: Vec<String>,
    pub organizational_unit: Vec<String>,
    pub locality: Vec<String>,
    pub province: Vec<String>,
    pub street_address: Vec<String>,
    pub postal_code: Vec<String>,
    pub common_name: String,
    /// The `serialNumber` attribute of the name, not the certificate's serial number.
    pub serial_number: String,
    /// `x500UniqueIdentifier` (2.5.4.45), which the `uniqueid` composer sets.
    pub unique_identifier: String,
}

impl DistinguishedName {
    /// `C=US, O=<organization>`.
    pub fn us(organization: &str) -> Self {
        Self {
            country: vec!["US".to_owned()],
            organization: vec![organization.to_owned()],
            ..Self::default()
        }
    }

    /// Reads the attributes that this type knows and leaves out the others. Of a repeated common name or serial number
    /// the last one counts. `None` when the bytes are not one DER name.
    pub fn from_der(name_der: &[u8]) -> Option<Self> {
        let (rest, name) = X509Name::from_der(name_der).ok()?;
        if !rest.is_empty() {
            return None;
        }
        let mut read = Self::default();
        for attribute in name.iter_attributes() {
            let Some(value) = text(attribute.attr_value()) else {
                continue;
            };
            match attribute.attr_type().as_bytes() {
                COUNTRY => read.country.push(value),
                ORGANIZATION => read.organization.push(value),
                ORGANIZATIONAL_UNIT => read.organizational_unit.push(value),
                LOCALITY => read.locality.push(value),
                PROVINCE => read.province.push(value),
                STREET_ADDRESS => read.street_address.push(value),
                POSTAL_CODE => read.postal_code.push(value),
                COMMON_NAME => read.common_name = value,
                SERIAL_NUMBER => read.serial_number = value,
                _ => {}
            }
        }
        Some(read)
    }

    /// Whether no attribute is set.
    pub fn is_empty(&self) -> bool {
        let Self {
            country,
            organization,
            organizational_unit,
            locality,
            province,
            street_address,
            postal_code,
            common_name,
            serial_number,
            unique_identifier,
        } = self;
        [
            country,
            organization,
            organizational_unit,
            locality,
            province,
            street_address,
            postal_code,
        ]
        .iter()
        .all(|values| values.is_empty())
            && [common_name, serial_number, unique_identifier]
                .iter()
                .all(|value| value.is_empty())
    }

    /// The DER of the name.
    pub fn to_der(&self) -> Vec<u8> {
        let mut content = Vec::with_capacity(64);
        for (oid, values) in self.relative_names() {
            let mut attributes: Vec<Vec<u8>> = values.iter().map(|value| attribute(oid, value)).collect();
            // DER orders the members of a set by their encoding.
            attributes.sort();
            der::push(&mut content, der::SET, &[&attributes.concat()]);
        }
        der::element(der::SEQUENCE, &[&content])
    }

    /// Whether `name` holds exactly these attributes in exactly this order.
    pub(super) fn is_same_as(&self, name: &X509Name<'_>) -> bool {
        let expected = self.relative_names();
        let mut relative_names = name.iter_rdn();
        let all_equal = expected.iter().all(|(oid, values)| {
            let Some(found) = relative_names.next() else {
                return false;
            };
            let mut missing: Vec<&str> = values.iter().map(String::as_str).collect();
            for attribute in found.iter() {
                if attribute.attr_type().as_bytes() != *oid {
                    return false;
                }
                let Ok(value) = attribute.as_str() else {
                    return false;
                };
                let Some(index) = missing.iter().position(|expected| *expected == value) else {
                    return false;
                };
                missing.swap_remove(index);
            }
            missing.is_empty()
        });
        all_equal && relative_names.next().is_none()
    }

    fn relative_names(&self) -> Vec<(&'static [u8], &[String])> {
        let mut names: Vec<(&'static [u8], &[String])> = vec![
            (COUNTRY, &self.country),
            (PROVINCE, &self.province),
            (LOCALITY, &self.locality),
            (STREET_ADDRESS, &self.street_address),
            (POSTAL_CODE, &self.postal_code),
            (ORGANIZATION, &self.organization),
            (ORGANIZATIONAL_UNIT, &self.organizational_unit),
        ];
        for (oid, value) in [
            (COMMON_NAME, &self.common_name),
            (SERIAL_NUMBER, &self.serial_number),
            (UNIQUE_IDENTIFIER, &self.unique_identifier),
        ] {
            if !value.is_empty() {
                names.push((oid, std::slice::from_ref(value)));
            }
        }
        names.retain(|(_, values)| !values.is_empty());
        names
    }
}

// Contents of the object identifiers 2.5.4.x.
const COMMON_NAME: &[u8] = &[0x55, 4, 3];
const SERIAL_NUMBER: &[u8] = &[0x55, 4, 5];
const COUNTRY: &[u8] = &[0x55, 4, 6];
const LOCALITY: &[u8] = &[0x55, 4, 7];
const PROVINCE: &[u8] = &[0x55, 4, 8];
const STREET_ADDRESS: &[u8] = &[0x55, 4, 9];
const ORGANIZATION: &[u8] = &[0x55, 4, 10];
const ORGANIZATIONAL_UNIT: &[u8] = &[0x55, 4, 11];
const POSTAL_CODE: &[u8] = &[0x55, 4, 17];
const UNIQUE_IDENTIFIER: &[u8] = &[0x55, 4, 45];

fn attribute(oid: &[u8], value: &str) -> Vec<u8> {
    let tag = if value.bytes().all(is_printable) {
        der::PRINTABLE_STRING
    } else {
        der::UTF8_STRING
    };
    let oid = der::element(der::OBJECT_IDENTIFIER, &[oid]);
    let value = der::element(tag, &[value.as_bytes()]);
    der::element(der::SEQUENCE, &[&oid, &value])
}

/// The characters of PrintableString (X.680 §41.4); neither `*` nor `&`.
fn is_printable(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b" '()+,-./:=?".contains(&byte)
}

/// The text of any of the string types that names are made of.
fn text(value: &Any<'_>) -> Option<String> {
    match value.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::NumericString => {
            std::str::from_utf8(value.data).ok().map(str::to_owned)
        }
        // T.61 is read as Latin-1, as everybody does.
        Tag::T61String => Some(value.data.iter().map(|byte| char::from(*byte)).collect()),
        Tag::BmpString => {
            let units = value.data.chunks(2).map(|pair| match pair {
                [high, low] => Some(u16::from_be_bytes([*high, *low])),
                _ => None,
            });
            String::from_utf16(&units.collect::<Option<Vec<u16>>>()?).ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(der: &[u8]) -> X509Name<'_> {
        X509Name::from_der(der).unwrap().1
    }

    #[test]
    fn default_subject_is_us_and_spire_in_printable_strings() {
        let expected = b"\x30\x1d\x31\x0b\x30\x09\x06\x03\x55\x04\x06\x13\x02US\x31\x0e\x30\x0c\x06\x03\x55\x04\x0a\x13\x05SPIRE";
        assert_eq!(DistinguishedName::us("SPIRE").to_der(), expected);
    }

    #[test]
    fn characters_beyond_printable_string_become_utf8_string() {
        for (value, tag) in [
            ("a-b.c", 0x13),
            ("*.example.org", 0x0c),
            ("a&b", 0x0c),
            ("a_b", 0x0c),
            ("é", 0x0c),
        ] {
            let name = DistinguishedName {
                common_name: value.to_owned(),
                ..Default::default()
            };
            assert_eq!(name.to_der()[11], tag, "{value}");
        }
    }

    #[test]
    fn several_values_share_one_sorted_set() {
        let name = DistinguishedName {
            organization: vec!["bb".to_owned(), "a".to_owned()],
            ..Default::default()
        };
        let der = name.to_der();
        let parsed = parse(&der);
        assert_eq!(parsed.iter_rdn().count(), 1);
        let values: Vec<_> = parsed
            .iter_attributes()
            .map(|value| value.as_str().unwrap().to_owned())
            .collect();
        assert_eq!(values, ["a", "bb"]);
        assert!(name.is_same_as(&parsed));
    }

    #[test]
    fn attributes_keep_their_order_through_a_round_trip() {
        let name = DistinguishedName {
            organizational_unit: vec!["DOWNSTREAM-1".to_owned()],
            locality: vec!["Köln".to_owned()],
            province: vec!["NW".to_owned()],
            street_address: vec!["1 Main".to_owned()],
            postal_code: vec!["50667".to_owned()],
            common_name: "ca".to_owned(),
            serial_number: "12345".to_owned(),
            ..DistinguishedName::us("SPIFFE")
        };
        let der = name.to_der();
        assert_eq!(DistinguishedName::from_der(&der), Some(name.clone()));
        assert!(name.is_same_as(&parse(&der)));
    }

    #[test]
    fn a_missing_an_extra_and_a_changed_attribute_are_noticed() {
        let name = DistinguishedName::us("SPIRE");
        let more = DistinguishedName {
            common_name: "x".to_owned(),
            ..name.clone()
        };
        let other = DistinguishedName::us("SPIFFE");
        assert!(!name.is_same_as(&parse(&more.to_der())));
        assert!(!more.is_same_as(&parse(&name.to_der())));
        assert!(!name.is_same_as(&parse(&other.to_der())));
    }

    #[test]
    fn bytes_that_are_not_one_name_are_refused() {
        let mut der = DistinguishedName::us("SPIRE").to_der();
        der.push(0);
        assert_eq!(DistinguishedName::from_der(&der), None);
        assert_eq!(DistinguishedName::from_der(b""), None);
    }
}
