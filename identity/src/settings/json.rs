//! JSON (RFC 8259), with positions and without repeated keys.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::MAX_DEPTH;
use super::position::{Lines, Position};
use super::tree::{Node, ParseError, Value};

/// Reads a JSON text.
pub(super) fn parse(text: &str) -> Result<Node, ParseError> {
    let lines = Lines::of(text);
    // Checks the syntax of all of it; what follows cannot fail for that reason.
    let root: &RawValue = serde_json::from_str(text).map_err(|error| {
        let at = Position {
            line: error.line().max(1),
            column: error.column().max(1),
        };
        let message = error.to_string();
        let end = message.rfind(" at line ").unwrap_or(message.len());
        ParseError::new(at, message.get(..end).unwrap_or_default())
    })?;
    Reader { text, lines }.node(root, 0)
}

struct Reader<'a> {
    text: &'a str,
    lines: Lines<'a>,
}

impl<'a> Reader<'a> {
    fn node(&self, raw: &'a RawValue, depth: usize) -> Result<Node, ParseError> {
        let (text, at) = (raw.get(), self.place(raw));
        if depth >= MAX_DEPTH {
            return Err(ParseError::new(at, format!("is nested deeper than {MAX_DEPTH}")));
        }
        let unreadable = |error: serde_json::Error| ParseError::new(at, error.to_string());
        let value = match text.as_bytes().first() {
            Some(b'{') => {
                let Entries(entries) = serde_json::from_str(text).map_err(unreadable)?;
                let mut seen = HashSet::new();
                let mut map = Vec::with_capacity(entries.len());
                for (key, raw) in entries {
                    if !seen.insert(key.clone()) {
                        return Err(ParseError::new(
                            self.place(raw),
                            format!("key is repeated: {key}"),
                        ));
                    }
                    map.push((key, self.node(raw, depth + 1)?));
                }
                Value::Map(map)
            }
            Some(b'[') => {
                let items: Vec<&RawValue> = serde_json::from_str(text).map_err(unreadable)?;
                let list: Result<_, _> = items.into_iter().map(|raw| self.node(raw, depth + 1)).collect();
                Value::List(list?)
            }
            Some(b'"') => Value::String(serde_json::from_str(text).map_err(unreadable)?),
            Some(b't') => Value::Bool(true),
            Some(b'f') => Value::Bool(false),
            Some(b'n') => Value::Null,
            _ => Value::Number(text.to_owned()),
        };
        Ok(Node { value, at })
    }

    fn place(&self, raw: &RawValue) -> Position {
        // Raw values are slices of the text.
        self.lines.at(raw
            .get()
            .as_ptr()
            .addr()
            .saturating_sub(self.text.as_ptr().addr()))
    }
}

/// A map's entries in order, repeated ones too.
struct Entries<'a>(Vec<(String, &'a RawValue)>);

impl<'de> serde::Deserialize<'de> for Entries<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn keeps_order_number_text_and_places() {
        let node = parse(" {\n \"b\": 1.50e1, \"a\":\n [true, null, \"x\\u00e9\"]}").unwrap();
        let Value::Map(entries) = node.value else {
            panic!("a map is expected")
        };
        assert_eq!(entries[0].0, "b");
        assert_eq!(entries[0].1.value, Value::Number("1.50e1".to_owned()));
        assert_eq!(entries[1].1.at, Position { line: 3, column: 2 });
        let Value::List(items) = &entries[1].1.value else {
            panic!("a list is expected")
        };
        assert_eq!(items[2].value, Value::String("xé".to_owned()));
        assert_eq!(items[1].at, Position { line: 3, column: 9 });
    }

    #[test]
    fn refuses_repeated_keys_at_any_depth_also_when_escaped() {
        assert_eq!(
            error("{\"a\": 1,\n \"a\": 2}"),
            "line 2, column 7: key is repeated: a"
        );
        assert_eq!(
            error("[{\"x\": {\"a\": 1, \"\\u0061\": 2}}]"),
            "line 1, column 27: key is repeated: a"
        );
    }

    #[test]
    fn says_where_the_syntax_breaks() {
        assert_eq!(error("{\"a\": 1,\n}"), "line 2, column 1: key must be a string");
        assert!(error("{\"a\" 1}").starts_with("line 1, column 6: expected `:`"));
        assert!(error("").starts_with("line 1, column 1: EOF"));
        assert!(error("{} {}").starts_with("line 1, column 4: trailing characters"));
    }

    #[test]
    fn limits_depth() {
        let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(&nested(MAX_DEPTH - 1)).is_ok());
        assert_eq!(
            error(&nested(MAX_DEPTH)),
            "line 1, column 65: is nested deeper than 64"
        );
        assert!(parse(&nested(100_000)).is_err());
    }
}
