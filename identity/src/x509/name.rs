//! Distinguished names as text, in the form that Go's `pkix.Name` prints, so that logs and
//! selectors read as SPIRE's.

use data_encoding::HEXLOWER;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

use crate::key::tlv;

/// Attribute types with a name, in the order in which Go collects them: several values of one type
/// form one relative name. The last two hold one value, the last in the certificate.
const KNOWN: [(&[u8], &str, Values); 9] = [
    (&[0x55, 4, 6], "C", Values::All),
    (&[0x55, 4, 10], "O", Values::All),
    (&[0x55, 4, 11], "OU", Values::All),
    (&[0x55, 4, 7], "L", Values::All),
    (&[0x55, 4, 8], "ST", Values::All),
    (&[0x55, 4, 9], "STREET", Values::All),
    (&[0x55, 4, 17], "POSTALCODE", Values::All),
    (&[0x55, 4, 3], "CN", Values::Last),
    (&[0x55, 4, 5], "SERIALNUMBER", Values::Last),
];
const COMMON_NAME: &[u8] = &[0x55, 4, 3];

#[derive(Clone, Copy, PartialEq)]
enum Values {
    All,
    Last,
}

/// The name in the manner of RFC 2253, most specific part first.
pub(super) fn to_text(name: &X509Name<'_>) -> String {
    let mut parts: Vec<String> = name
        .iter_attributes()
        .filter(|attribute| !KNOWN.iter().any(|known| is_of_type(attribute, known.0)))
        .map(unknown_to_text)
        .collect();
    for (oid, label, values) in KNOWN {
        let found: Vec<String> = name
            .iter_attributes()
            .filter(|attribute| is_of_type(attribute, oid))
            .map(|attribute| format!("{label}={}", escape(&value_text(attribute))))
            .collect();
        match (values, found.last()) {
            (_, None) => {}
            (Values::All, Some(_)) => parts.push(found.join("+")),
            (Values::Last, Some(last)) => parts.push(last.clone()),
        }
    }
    parts.reverse();
    parts.join(",")
}

/// The last common name, unescaped.
pub(super) fn common_name(name: &X509Name<'_>) -> Option<String> {
    name.iter_attributes()
        .filter(|attribute| is_of_type(attribute, COMMON_NAME))
        .last()
        .map(value_text)
}

fn is_of_type(attribute: &AttributeTypeAndValue<'_>, oid: &[u8]) -> bool {
    attribute.attr_type().as_bytes() == oid
}

fn unknown_to_text(attribute: &AttributeTypeAndValue<'_>) -> String {
    let value = attribute.attr_value();
    // Only universal string types occur here, whose tags fit in one byte.
    let tag = u8::try_from(value.tag().0 & 0x1f).unwrap_or_default();
    let der = tlv(tag, value.data);
    format!(
        "{}=#{}",
        attribute.attr_type().to_id_string(),
        HEXLOWER.encode(&der)
    )
}

fn value_text(attribute: &AttributeTypeAndValue<'_>) -> String {
    match attribute.as_str() {
        Ok(text) => text.to_owned(),
        Err(_) => String::from_utf8_lossy(attribute.attr_value().data).into_owned(),
    }
}

/// Escapes as RFC 2253 §2.4 says.
fn escape(value: &str) -> String {
    let last = value.chars().count().saturating_sub(1);
    let mut text = String::with_capacity(value.len());
    for (at, c) in value.chars().enumerate() {
        let escaped = match c {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => true,
            ' ' => at == 0 || at == last,
            '#' => at == 0,
            _ => false,
        };
        if escaped {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::prelude::FromDer;

    #[test]
    fn several_values_of_a_type_stand_together_and_single_ones_are_the_last() {
        let one = |oid: &[u8], value: &str| {
            let attribute = [tlv(6, oid), tlv(12, value.as_bytes())].concat();
            tlv(0x31, &tlv(0x30, &attribute))
        };
        let (ou, cn) = ([0x55, 4, 11], [0x55, 4, 3]);
        let rdns = [
            one(&ou, "One"),
            one(&cn, "first"),
            one(&ou, "Two"),
            one(&cn, "second"),
        ];
        let der = tlv(0x30, &rdns.concat());
        let (_, name) = X509Name::from_der(&der).unwrap();
        assert_eq!(to_text(&name), "CN=second,OU=One+OU=Two");
        assert_eq!(common_name(&name).as_deref(), Some("second"));
    }

    #[test]
    fn escapes_what_rfc_2253_says() {
        assert_eq!(escape("a,b+c"), "a\\,b\\+c");
        assert_eq!(escape(" #a "), "\\ #a\\ ");
        assert_eq!(escape("#a"), "\\#a");
        assert_eq!(escape(""), "");
    }
}
