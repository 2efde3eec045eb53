//! HCL version 1, the language of SPIRE's configuration files.
//!
//! Readers of HCL 2 refuse what is common in these files: nested blocks on one line, commas in
//! objects, quoted keys, numbers like `0600`. This reads the language of hashicorp/hcl 1.0.

use super::MAX_DEPTH;
use super::position::{Lines, Position};
use super::tree::{Node, ParseError, Value};

/// Reads an HCL text into a map; a block with labels becomes maps of one key in each other.
pub(super) fn parse(text: &str) -> Result<Node, ParseError> {
    let mut reader = Reader {
        text,
        at: 0,
        lines: Lines::of(text),
    };
    let entries = reader.body(None, 0)?;
    Ok(Node {
        value: Value::Map(entries),
        at: Position { line: 1, column: 1 },
    })
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    lines: Lines<'a>,
}

impl<'a> Reader<'a> {
    /// Items up to the end of the text, or up to `}` when it was opened at `opened`.
    fn body(&mut self, opened: Option<usize>, depth: usize) -> Result<Vec<(String, Node)>, ParseError> {
        if depth >= MAX_DEPTH {
            return Err(self.error(self.at, format!("is nested deeper than {MAX_DEPTH}")));
        }
        let mut entries = Vec::new();
        let mut comma_allowed = false;
        loop {
            self.skip_blank()?;
            match (self.peek(), opened) {
                (None, None) => return Ok(entries),
                (None, Some(opened)) => return Err(self.error(opened, "block is not closed")),
                (Some('}'), Some(_)) => {
                    self.bump();
                    return Ok(entries);
                }
                (Some(','), _) if comma_allowed => {
                    self.bump();
                    comma_allowed = false;
                }
                _ => {
                    entries.push(self.item(depth)?);
                    comma_allowed = true;
                }
            }
        }
    }

    /// `key = value` or `key "label"… { … }`.
    fn item(&mut self, depth: usize) -> Result<(String, Node), ParseError> {
        let start = self.at;
        let mut keys = vec![(self.key()?, start)];
        loop {
            self.skip_blank()?;
            let here = self.at;
            match self.peek() {
                Some('=') if keys.len() == 1 => {
                    self.bump();
                    self.skip_blank()?;
                    let value = self.value(depth)?;
                    return Ok(self.nested(keys, value));
                }
                Some('{') => {
                    self.bump();
                    // Labels count as levels, for each becomes a map.
                    let value = Value::Map(self.body(Some(here), depth + keys.len())?);
                    return Ok(self.nested(keys, value));
                }
                Some(c) if c == '"' || is_key_start(c) => {
                    if keys.len() >= MAX_DEPTH {
                        return Err(self.error(here, "has too many labels"));
                    }
                    let label = self.key()?;
                    keys.push((label, here));
                }
                _ => {
                    let name = keys.first().map(|(key, _)| key.as_str()).unwrap_or_default();
                    return Err(self.error(
                        start,
                        format!("neither `=` with a value nor a block follows: {name}"),
                    ));
                }
            }
        }
    }

    fn nested(&self, keys: Vec<(String, usize)>, value: Value) -> (String, Node) {
        let mut keys = keys.into_iter().rev();
        let (key, start) = keys.next().expect("an item has a key");
        keys.fold(
            (
                key,
                Node {
                    value,
                    at: self.lines.at(start),
                },
            ),
            |inner, (key, start)| {
                (
                    key,
                    Node {
                        value: Value::Map(vec![inner]),
                        at: self.lines.at(start),
                    },
                )
            },
        )
    }

    fn key(&mut self) -> Result<String, ParseError> {
        match self.peek() {
            Some('"') => {
                let start = self.at;
                let key = self.quoted()?;
                if key.is_empty() {
                    Err(self.error(start, "key is empty"))
                } else {
                    Ok(key)
                }
            }
            Some(c) if is_key_start(c) => Ok(self.take_while(is_key_part).to_owned()),
            Some(c) => Err(self.error(self.at, format!("key expected, found {c:?}"))),
            None => Err(self.error(self.at, "key expected, found the end")),
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, ParseError> {
        let start = self.at;
        match self.peek() {
            Some('"') => Ok(Value::String(self.quoted()?)),
            Some('<') => self.heredoc().map(Value::String),
            Some('[') => self.list(depth + 1),
            Some('{') => {
                self.bump();
                Ok(Value::Map(self.body(Some(start), depth + 1)?))
            }
            Some(c) if c == '-' || c.is_ascii_digit() => self.number(),
            Some(c) if is_key_start(c) => match self.take_while(is_key_part) {
                "true" => Ok(Value::Bool(true)),
                "false" => Ok(Value::Bool(false)),
                word => Err(self.error(start, format!("value expected, strings need quotes: {word}"))),
            },
            Some(c) => Err(self.error(start, format!("value expected, found {c:?}"))),
            None => Err(self.error(start, "value expected, found the end")),
        }
    }

    fn list(&mut self, depth: usize) -> Result<Value, ParseError> {
        let opened = self.at;
        if depth >= MAX_DEPTH {
            return Err(self.error(opened, format!("is nested deeper than {MAX_DEPTH}")));
        }
        self.bump();
        let mut items = Vec::new();
        let mut comma_needed = false;
        loop {
            self.skip_blank()?;
            let here = self.at;
            match self.peek() {
                None => return Err(self.error(opened, "list is not closed")),
                Some(']') => {
                    self.bump();
                    return Ok(Value::List(items));
                }
                Some(',') if comma_needed => {
                    self.bump();
                    comma_needed = false;
                }
                Some(_) if comma_needed => {
                    return Err(self.error(here, "comma or the end of the list expected"));
                }
                Some(_) => {
                    let value = self.value(depth)?;
                    items.push(Node {
                        value,
                        at: self.lines.at(here),
                    });
                    comma_needed = true;
                }
            }
        }
    }

    /// Keeps the text; what it means depends on who reads it.
    fn number(&mut self) -> Result<Value, ParseError> {
        let start = self.at;
        self.eat('-');
        let mut before = '0';
        let end = self.rest().find(|c: char| {
            let sign_of_exponent = matches!(c, '+' | '-') && matches!(before, 'e' | 'E');
            before = c;
            !(c.is_ascii_alphanumeric() || c == '.' || c == '_' || sign_of_exponent)
        });
        self.at += end.unwrap_or(self.rest().len());
        let text = self.text.get(start..self.at).unwrap_or_default();
        let digits = text.trim_start_matches('-');
        let is_hex = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
        let is_number = match digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
            Some(hex) => is_hex(hex),
            None => digits.starts_with(|c: char| c.is_ascii_digit()) && digits.parse::<f64>().is_ok(),
        };
        if is_number {
            Ok(Value::Number(text.to_owned()))
        } else {
            Err(self.error(
                start,
                format!("is not a number, other values need quotes: {text}"),
            ))
        }
    }

    fn quoted(&mut self) -> Result<String, ParseError> {
        let start = self.at;
        self.bump();
        let mut bytes = Vec::new();
        // Within `${…}` quotes and line breaks stand for themselves.
        let mut braces = 0_usize;
        loop {
            let here = self.at;
            let unclosed = || self.error(start, "string is not closed");
            let c = self.peek().ok_or_else(unclosed)?;
            if braces == 0 && c == '\n' {
                return Err(unclosed());
            }
            self.bump();
            match c {
                '"' if braces == 0 => break,
                '\\' if braces == 0 => self.escape(here, &mut bytes)?,
                '$' if braces == 0 && self.eat('{') => {
                    braces = 1;
                    bytes.extend_from_slice(b"${");
                }
                _ => {
                    match c {
                        '{' if braces > 0 => braces += 1,
                        '}' if braces > 0 => braces -= 1,
                        _ => {}
                    }
                    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                }
            }
        }
        String::from_utf8(bytes).map_err(|_| self.error(start, "string is not UTF-8"))
    }

    /// What follows a backslash, as in Go's strings.
    fn escape(&mut self, start: usize, bytes: &mut Vec<u8>) -> Result<(), ParseError> {
        let unknown = |reader: &Self| reader.error(start, "unknown escape in string");
        let c = self.peek().ok_or_else(|| unknown(self))?;
        self.bump();
        let simple = match c {
            'a' => 0x07,
            'b' => 0x08,
            'f' => 0x0c,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 0x0b,
            '\\' => b'\\',
            '"' => b'"',
            'x' | 'u' | 'U' | '0'..='7' => {
                let (length, radix) = match c {
                    'x' => (2, 16),
                    'u' => (4, 16),
                    'U' => (8, 16),
                    _ => (3, 8),
                };
                if radix == 8 {
                    self.at -= 1; // The digit is one of the three.
                }
                let digits = self.rest().get(..length).ok_or_else(|| unknown(self))?;
                if !digits.chars().all(|c| c.is_digit(radix)) {
                    return Err(unknown(self));
                }
                let code = u32::from_str_radix(digits, radix).map_err(|_| unknown(self))?;
                self.at += length;
                if matches!(c, 'u' | 'U') {
                    let c = char::from_u32(code).ok_or_else(|| unknown(self))?;
                    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                    return Ok(());
                }
                u8::try_from(code).map_err(|_| unknown(self))?
            }
            _ => return Err(unknown(self)),
        };
        bytes.push(simple);
        Ok(())
    }

    /// `<<EOF`: the lines up to `EOF`. `<<-EOF`: `EOF` may be indented, and its indentation is taken
    /// from all lines if all have it.
    fn heredoc(&mut self) -> Result<String, ParseError> {
        let start = self.at;
        if !self.rest().starts_with("<<") {
            return Err(self.error(start, "value expected, found '<'"));
        }
        self.at += 2;
        let indented = self.eat('-');
        let marker = self.take_while(|c| c.is_alphanumeric() || c == '_');
        self.eat('\r');
        if marker.is_empty() || !self.eat('\n') {
            return Err(self.error(start, "a word and the end of the line expected after <<"));
        }
        let body = self.at;
        loop {
            let line_start = self.at;
            let line = self.rest().split('\n').next().unwrap_or_default();
            let ends_text = line_start + line.len() >= self.text.len();
            let bare = line.trim_end_matches('\r');
            let word = if indented { bare.trim_start() } else { bare };
            if word == marker {
                self.at += line.len();
                let text = self.text.get(body..line_start).unwrap_or_default();
                let indent = bare.strip_suffix(marker).unwrap_or_default();
                return Ok(unindent(text, indent));
            }
            if ends_text {
                return Err(self.error(start, format!("text up to {marker} is not closed")));
            }
            self.at += line.len() + 1;
        }
    }

    fn skip_blank(&mut self) -> Result<(), ParseError> {
        loop {
            self.take_while(char::is_whitespace);
            if self.rest().starts_with('#') || self.rest().starts_with("//") {
                self.take_while(|c| c != '\n');
            } else if self.rest().starts_with("/*") {
                let length = self
                    .rest()
                    .find("*/")
                    .ok_or_else(|| self.error(self.at, "comment is not closed"))?;
                self.at += length + 2;
            } else {
                return Ok(());
            }
        }
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn bump(&mut self) {
        self.at += self.peek().map_or(0, char::len_utf8);
    }

    fn eat(&mut self, expected: char) -> bool {
        let found = self.peek() == Some(expected);
        if found {
            self.bump();
        }
        found
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let (taken, _) = rest.split_at(rest.find(|c| !wanted(c)).unwrap_or(rest.len()));
        self.at += taken.len();
        taken
    }

    fn error(&self, at: usize, message: impl Into<String>) -> ParseError {
        ParseError::new(self.lines.at(at), message)
    }
}

fn is_key_start(c: char) -> bool {
    c.is_alphabetic() || c == '_'
}

fn is_key_part(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.')
}

fn unindent(text: &str, indent: &str) -> String {
    if indent.is_empty() || !text.split_inclusive('\n').all(|line| line.starts_with(indent)) {
        return text.to_owned();
    }
    text.split_inclusive('\n')
        .map(|line| line.strip_prefix(indent).unwrap_or(line))
        .collect()
}

#[cfg(test)]
mod tests;
