//! Reads JSON in which no object has a member twice.
//!
//! `serde_json::Value` keeps the last of two members of one name, so that two readers can see two
//! bundles in one document; a bundle map with a repeated name must be refused whole (SPIFFE Trust
//! Domain and Bundle §5.1.1).

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::BundleError;

/// Reads one JSON text with at most `limit` bytes, named `what` in errors.
pub(super) fn parse(text: &[u8], limit: usize, what: &'static str) -> Result<Value, BundleError> {
    if text.len() > limit {
        return Err(BundleError::TooLarge {
            what,
            limit,
            bytes: text.len(),
        });
    }
    let Unique(value) = serde_json::from_slice(text).map_err(|cause| BundleError::Json { what, cause })?;
    Ok(value)
}

/// A value that was read with the check on members.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Self)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON without repeated members")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Unique(value)) = items.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            if values.contains_key(&name) {
                let shown: String = name.chars().take(255).collect();
                return Err(A::Error::custom(format_args!("member appears twice: {shown:?}")));
            }
            let Unique(value) = members.next_value()?;
            values.insert(name, value);
        }
        Ok(Value::Object(values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Value, String> {
        parse(text.as_bytes(), 1000, "text").map_err(|e| e.to_string())
    }

    #[test]
    fn reads_every_kind_of_value() {
        let text = r#"{"a":[null,true,-1,18446744073709551615,1.5,"x\n"],"b":{}}"#;
        assert_eq!(read(text).unwrap(), serde_json::from_str::<Value>(text).unwrap());
    }

    #[test]
    fn refuses_a_repeated_member_at_any_depth() {
        for text in [
            r#"{"a":1,"a":1}"#,
            r#"[{"b":{"a":1,"c":2,"a":3}}]"#,
            r#"{"a":1,"\u0061":2}"#,
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains("member appears twice: \"a\""), "{error}");
        }
        assert!(read(r#"{"a":{"a":{"a":1}}}"#).is_ok());
    }

    #[test]
    fn refuses_what_is_not_one_json_text() {
        for text in [
            "",
            "{",
            "{}{}",
            "{\"a\":1,}",
            "nul",
            "\u{feff}{}",
            &"[".repeat(500),
        ] {
            assert!(read(text).is_err(), "{text:?}");
        }
        assert!(parse(b"\"\xff\"", 1000, "text").is_err());
    }

    #[test]
    fn refuses_a_text_over_the_limit_before_it_is_read() {
        let error = parse(b"{{{{", 3, "text").unwrap_err();
        assert_eq!(error.to_string(), "text is larger than 3 bytes: 4");
    }

    proptest! {
        #[test]
        fn agrees_with_serde_json_where_both_read(text in "[\\[\\]{}:,\"ab10 .e-]{0,24}") {
            if let Ok(value) = read(&text) {
                prop_assert_eq!(Ok(value), serde_json::from_str::<Value>(&text).map_err(|e| e.to_string()));
            }
        }
    }
}
