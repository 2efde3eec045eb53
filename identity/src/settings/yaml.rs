//! YAML 1.2, core schema, one document, without anchors, aliases and repeated keys.

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span, StrInput, Tag};

use super::MAX_DEPTH;
use super::position::Position;
use super::tree::{Node, ParseError, Value};

/// Reads a YAML text. An empty one is an empty map.
pub(super) fn parse(text: &str) -> Result<Node, ParseError> {
    let mut reader = Reader {
        events: Parser::new_from_str(text),
    };
    let mut root = None;
    loop {
        let (event, at) = reader.next()?;
        match event {
            Event::StreamStart | Event::DocumentEnd | Event::Nothing => {}
            Event::DocumentStart(_) if root.is_some() => {
                return Err(ParseError::new(at, "must be a single document"));
            }
            Event::DocumentStart(_) => {
                let (first, at) = reader.next()?;
                root = Some(reader.node(first, at, 0)?);
            }
            Event::StreamEnd => break,
            _ => return Err(ParseError::new(at, "must be a single document")),
        }
    }
    Ok(match root {
        None => Node {
            value: Value::Map(Vec::new()),
            at: Position { line: 1, column: 1 },
        },
        Some(Node {
            value: Value::Null,
            at,
        }) => Node {
            value: Value::Map(Vec::new()),
            at,
        },
        Some(node) => node,
    })
}

struct Reader<'a> {
    events: Parser<'a, StrInput<'a>>,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Position), ParseError> {
        match self.events.next() {
            Some(Ok((event, Span { start, .. }))) => Ok((event, place(&start))),
            Some(Err(error)) => Err(ParseError::new(place(error.marker()), error.info())),
            None => Err(ParseError::new(
                Position { line: 1, column: 1 },
                "ends unexpectedly",
            )),
        }
    }

    fn node(&mut self, event: Event<'a>, at: Position, depth: usize) -> Result<Node, ParseError> {
        if depth >= MAX_DEPTH {
            return Err(ParseError::new(at, format!("is nested deeper than {MAX_DEPTH}")));
        }
        let value = match event {
            Event::Scalar(text, style, anchor, tag) => {
                refuse_anchor(anchor, at)?;
                scalar(&text, style, tag.as_deref(), at)?
            }
            Event::SequenceStart(anchor, tag) => {
                refuse_anchor(anchor, at)?;
                refuse_tag(tag.as_deref(), "seq", at)?;
                self.list(depth)?
            }
            Event::MappingStart(anchor, tag) => {
                refuse_anchor(anchor, at)?;
                refuse_tag(tag.as_deref(), "map", at)?;
                self.map(depth)?
            }
            Event::Alias(_) => return Err(ParseError::new(at, "aliases are not supported")),
            _ => return Err(ParseError::new(at, "value expected")),
        };
        Ok(Node { value, at })
    }

    fn list(&mut self, depth: usize) -> Result<Value, ParseError> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Value::List(items)),
                (event, at) => items.push(self.node(event, at, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Value, ParseError> {
        let mut entries: Vec<(String, Node)> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        loop {
            let (event, at) = self.next()?;
            let key = match event {
                Event::MappingEnd => return Ok(Value::Map(entries)),
                Event::Scalar(text, _, anchor, _) => {
                    refuse_anchor(anchor, at)?;
                    text.into_owned()
                }
                Event::Alias(_) => return Err(ParseError::new(at, "aliases are not supported")),
                _ => return Err(ParseError::new(at, "key must be a text")),
            };
            if !seen.insert(key.clone()) {
                return Err(ParseError::new(at, format!("key is repeated: {key}")));
            }
            let (event, value_at) = self.next()?;
            let value = self.node(event, value_at, depth + 1)?.value;
            entries.push((key, Node { value, at }));
        }
    }
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>, at: Position) -> Result<Value, ParseError> {
    match tag {
        Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => Ok(Value::String(text.to_owned())),
        // The non-specific tag `!` means a text, too.
        Some(tag) if tag.handle.is_empty() && tag.suffix == "!" => Ok(Value::String(text.to_owned())),
        Some(tag) => Err(ParseError::new(at, format!("tag is not supported: {tag}"))),
        None if style == ScalarStyle::Plain => Ok(plain(text)),
        None => Ok(Value::String(text.to_owned())),
    }
}

/// YAML 1.2.2 §10.3.2.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ if is_number(text) => Value::Number(text.to_owned()),
        _ => Value::String(text.to_owned()),
    }
}

fn is_number(text: &str) -> bool {
    let all =
        |digits: &str, allowed: fn(&char) -> bool| !digits.is_empty() && digits.chars().all(|c| allowed(&c));
    if let Some(digits) = text.strip_prefix("0x") {
        return all(digits, char::is_ascii_hexdigit);
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return all(digits, |c| ('0'..='7').contains(c));
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = unsigned
        .split_once(['e', 'E'])
        .map_or((unsigned, None), |(m, e)| (m, Some(e)));
    let exponent_fits =
        exponent.is_none_or(|e| all(e.strip_prefix(['-', '+']).unwrap_or(e), char::is_ascii_digit));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = |text: &str| text.chars().all(|c| c.is_ascii_digit());
    exponent_fits && digits(whole) && digits(fraction) && !(whole.is_empty() && fraction.is_empty())
}

fn refuse_anchor(anchor: usize, at: Position) -> Result<(), ParseError> {
    if anchor == 0 {
        Ok(())
    } else {
        Err(ParseError::new(at, "anchors are not supported"))
    }
}

fn refuse_tag(tag: Option<&Tag>, allowed: &str, at: Position) -> Result<(), ParseError> {
    match tag {
        Some(tag) if !(tag.is_yaml_core_schema() && tag.suffix == allowed) => {
            Err(ParseError::new(at, format!("tag is not supported: {tag}")))
        }
        _ => Ok(()),
    }
}

fn place(marker: &Marker) -> Position {
    Position {
        line: marker.line().max(1),
        column: marker.col() + 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    fn value(text: &str) -> Value {
        let Value::List(mut items) = parse(&format!("- {text}\n")).unwrap().value else {
            panic!("a list is expected")
        };
        items.remove(0).value
    }

    #[test]
    fn resolves_plain_scalars_by_the_core_schema_only() {
        for text in ["1", "-12", "0600", "0o600", "0x1F", "1.5", "1e3", ".5", "2."] {
            assert_eq!(value(text), Value::Number(text.to_owned()));
        }
        for text in [
            "yes", "off", "1h30m", "1.2.3", "0o9", "e5", ".", "-", "10.0.0.1", "::1",
        ] {
            assert_eq!(value(&format!("!!str '{text}'")), Value::String(text.to_owned()));
            if text != "-" {
                assert_eq!(value(text), Value::String(text.to_owned()), "{text}");
            }
        }
        assert_eq!(value("true"), Value::Bool(true));
        assert_eq!(value("'true'"), Value::String("true".to_owned()));
        assert_eq!(value("~"), Value::Null);
        assert_eq!(value("|\n  a\n  b"), Value::String("a\nb\n".to_owned()));
    }

    #[test]
    fn refuses_anchors_aliases_tags_and_several_documents() {
        assert_eq!(
            error("a: &x 1\nb: 2"),
            "line 1, column 4: anchors are not supported"
        );
        assert!(error("a: &x [1]\nb: *x").contains("anchors are not supported"));
        assert!(error("b: *x").contains("unknown anchor") || error("b: *x").contains("aliases"));
        assert_eq!(
            error("a: !env HOME"),
            "line 1, column 4: tag is not supported: !env"
        );
        assert!(error("a: 1\n---\nb: 2").contains("single document"));
    }

    #[test]
    fn refuses_repeated_and_structured_keys_with_their_place() {
        assert_eq!(
            error("a:\n  b: 1\n  b: 2"),
            "line 3, column 3: key is repeated: b"
        );
        assert!(error("? [a]\n: 1").contains("key must be a text"));
    }

    #[test]
    fn says_where_the_syntax_breaks() {
        assert!(error("a: [1, 2").starts_with("line "));
        assert!(
            error("a: 1\n b: 2\n").starts_with("line 2, column 3"),
            "{}",
            error("a: 1\n b: 2\n")
        );
        assert!(error("a: \"open").starts_with("line "));
    }

    #[test]
    fn limits_depth_and_reads_nothing_as_an_empty_map() {
        let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(&nested(MAX_DEPTH - 1)).is_ok());
        assert!(error(&nested(MAX_DEPTH)).contains("nested deeper"));
        assert!(parse(&nested(100_000)).is_err());
        assert!(parse(&"- ".repeat(50_000)).is_err());
        for text in ["", "# only a comment\n", "---\n", "~"] {
            assert_eq!(parse(text).unwrap().value, Value::Map(Vec::new()), "{text:?}");
        }
    }
}
