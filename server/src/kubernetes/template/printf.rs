//! `printf` with the verbs that make sense for names: `%s %d %q %v %t %x %X %%`, with `-`, `0`, `+`, a width,
//! and a precision for texts. What Go would write as `%!verb(…)` is an error here.

use std::iter::Peekable;
use std::str::Chars;

use super::value::Value;

/// Widest field.
const MAX_WIDTH: usize = 1024;

struct Verb {
    letter: char,
    is_left: bool,
    has_zeros: bool,
    has_sign: bool,
    width: usize,
    precision: Option<usize>,
}

/// Refuses a format that cannot be right whatever its arguments are.
pub(super) fn check(format: &str) -> Result<(), String> {
    let mut characters = format.chars().peekable();
    while let Some(c) = characters.next() {
        if c == '%' {
            verb(&mut characters)?;
        }
    }
    Ok(())
}

pub(super) fn printf(format: &str, arguments: &[Value<'_>]) -> Result<String, String> {
    let mut text = String::new();
    let mut arguments = arguments.iter();
    let mut characters = format.chars().peekable();
    while let Some(c) = characters.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let verb = verb(&mut characters)?;
        if verb.letter == '%' {
            text.push('%');
            continue;
        }
        let argument = arguments
            .next()
            .ok_or_else(|| format!("missing argument for %{}", verb.letter))?;
        text.push_str(&verb.write(argument)?);
    }
    match arguments.next() {
        None => Ok(text),
        Some(_) => Err("more arguments than verbs".to_owned()),
    }
}

fn verb(characters: &mut Peekable<Chars<'_>>) -> Result<Verb, String> {
    let mut verb = Verb {
        letter: '%',
        is_left: false,
        has_zeros: false,
        has_sign: false,
        width: 0,
        precision: None,
    };
    while let Some(flag) = characters.next_if(|c| matches!(c, '-' | '0' | '+')) {
        match flag {
            '-' => verb.is_left = true,
            '0' => verb.has_zeros = true,
            _ => verb.has_sign = true,
        }
    }
    verb.width = number(characters)?.unwrap_or(0);
    if characters.next_if_eq(&'.').is_some() {
        verb.precision = Some(number(characters)?.unwrap_or(0));
    }
    match characters.next() {
        Some(letter @ ('s' | 'd' | 'q' | 'v' | 't' | 'x' | 'X' | '%')) => {
            verb.letter = letter;
            Ok(verb)
        }
        Some(other) => Err(format!("verb %{other} is not known")),
        None => Err("format ends with %".to_owned()),
    }
}

fn number(characters: &mut Peekable<Chars<'_>>) -> Result<Option<usize>, String> {
    let mut found = None;
    while let Some(digit) = characters.next_if(char::is_ascii_digit) {
        let digit = digit.to_digit(10).and_then(|digit| usize::try_from(digit).ok());
        let value = found.unwrap_or(0_usize) * 10 + digit.unwrap_or(0);
        if value > MAX_WIDTH {
            return Err(format!("width is more than {MAX_WIDTH}"));
        }
        found = Some(value);
    }
    Ok(found)
}

impl Verb {
    fn write(&self, argument: &Value<'_>) -> Result<String, String> {
        let wrong = || format!("%{} cannot take a {}", self.letter, argument.type_name());
        let mut is_number = false;
        let mut text = match (self.letter, argument) {
            ('s', Value::Number(_) | Value::Bool(_) | Value::Nil | Value::Missing) => return Err(wrong()),
            ('s' | 'v', value) => {
                let mut text = String::new();
                value.print(&mut text)?;
                is_number = matches!(value, Value::Number(_));
                text
            }
            ('q', Value::Text(text)) => quote(self.cut(text)),
            ('t', Value::Bool(value)) => value.to_string(),
            ('d', Value::Number(value)) => {
                is_number = true;
                value.to_string()
            }
            ('x', Value::Number(value)) => {
                is_number = true;
                signed_hex(*value)
            }
            ('X', Value::Number(value)) => {
                is_number = true;
                signed_hex(*value).to_uppercase()
            }
            ('x', Value::Text(text)) => data_encoding::HEXLOWER.encode(self.cut(text).as_bytes()),
            ('X', Value::Text(text)) => data_encoding::HEXUPPER.encode(self.cut(text).as_bytes()),
            _ => return Err(wrong()),
        };
        if self.precision.is_some() {
            match self.letter {
                's' | 'v' if !is_number => text = self.cut(&text).to_owned(),
                'q' | 'x' | 'X' if !is_number => {}
                _ => return Err(format!("%{} with a precision is not known", self.letter)),
            }
        }
        if is_number && self.has_sign && !text.starts_with('-') {
            text.insert(0, '+');
        }
        let missing = self.width.saturating_sub(text.chars().count());
        Ok(if self.is_left {
            text + &" ".repeat(missing)
        } else if self.has_zeros && is_number {
            let sign = usize::from(text.starts_with(['-', '+']));
            format!("{}{}{}", &text[..sign], "0".repeat(missing), &text[sign..])
        } else {
            " ".repeat(missing) + &text
        })
    }

    /// The first characters, as many as the precision says.
    fn cut<'t>(&self, text: &'t str) -> &'t str {
        let Some(most) = self.precision else { return text };
        let end = text.char_indices().nth(most).map_or(text.len(), |(at, _)| at);
        &text[..end]
    }
}

fn signed_hex(value: i64) -> String {
    let sign = if value < 0 { "-" } else { "" };
    format!("{sign}{:x}", value.unsigned_abs())
}

/// As Go quotes a string.
fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\u{b}' => quoted.push_str("\\v"),
            c if u32::from(c) < 0x20 || c == '\u{7f}' => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
