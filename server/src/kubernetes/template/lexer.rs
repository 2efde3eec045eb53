//! From the source to text and tokens.

use super::TemplateError;

/// A piece of a template.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Piece {
    /// What stands outside of `{{ }}`, trimmed as the markers want it.
    Text(String),
    /// What stands inside.
    Action(Vec<Token>),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    /// Whether white space stands before it.
    pub(super) is_spaced: bool,
    pub(super) line: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    /// A keyword or the name of a function.
    Word(String),
    /// `.Name`
    Field(String),
    /// `$` or `$name`, without the sign.
    Variable(String),
    Dot,
    Text(String),
    Number(i64),
    Pipe,
    Open,
    Close,
    Declare,
    Assign,
    Comma,
}

/// Splits the source at its actions.
pub(super) fn split(source: &str) -> Result<Vec<Piece>, TemplateError> {
    let mut pieces = Vec::new();
    let mut rest = source;
    let mut line = 1;
    let mut trims_next = false;
    loop {
        let open = rest.find("{{");
        let mut text = &rest[..open.unwrap_or(rest.len())];
        let lines = count_lines(text);
        if trims_next {
            text = text.trim_start_matches(is_space);
        }
        let Some(open) = open else {
            push_text(&mut pieces, text);
            return Ok(pieces);
        };
        line += lines;
        let mut inner = &rest[open + 2..];
        if let Some(after) = inner.strip_prefix('-')
            && after.starts_with(is_space)
        {
            text = text.trim_end_matches(is_space);
            inner = after;
        }
        push_text(&mut pieces, text);
        let (tokens, after, trims) = action(inner, &mut line)?;
        if let Some(tokens) = tokens {
            pieces.push(Piece::Action(tokens));
        }
        trims_next = trims;
        rest = after;
    }
}

fn push_text(pieces: &mut Vec<Piece>, text: &str) {
    if !text.is_empty() {
        pieces.push(Piece::Text(text.to_owned()));
    }
}

fn count_lines(text: &str) -> usize {
    text.bytes().filter(|byte| *byte == b'\n').count()
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

/// The tokens up to `}}` (none for a comment), what follows, and whether it is trimmed.
type Action<'a> = (Option<Vec<Token>>, &'a str, bool);

fn action<'a>(source: &'a str, line: &mut usize) -> Result<Action<'a>, TemplateError> {
    let start = *line;
    let fail = |line: usize, text: &str| TemplateError::Syntax {
        line,
        text: text.to_owned(),
    };
    if let Some(comment) = source.trim_start_matches(is_space).strip_prefix("/*") {
        let skipped = &source[..source.len() - comment.len()];
        // White space is allowed before a comment only behind a trim marker, which is spaced itself.
        let end = comment
            .find("*/")
            .ok_or_else(|| fail(start, "unclosed comment"))?;
        *line += count_lines(skipped) + count_lines(&comment[..end]);
        let after = &comment[end + 2..];
        let trimmed = after.trim_start_matches(is_space);
        if let Some(rest) = trimmed.strip_prefix("-}}")
            && trimmed.len() < after.len()
        {
            return Ok((None, rest, true));
        }
        return match after.strip_prefix("}}") {
            Some(rest) => Ok((None, rest, false)),
            None => Err(fail(*line, "comment ends before closing delimiter")),
        };
    }
    let mut tokens = Vec::new();
    let mut rest = source;
    loop {
        let trimmed = rest.trim_start_matches(is_space);
        let is_spaced = trimmed.len() < rest.len();
        *line += count_lines(&rest[..rest.len() - trimmed.len()]);
        rest = trimmed;
        if is_spaced && let Some(after) = rest.strip_prefix("-}}") {
            return Ok((Some(tokens), after, true));
        }
        if let Some(after) = rest.strip_prefix("}}") {
            return Ok((Some(tokens), after, false));
        }
        let here = *line;
        let (kind, after) =
            token(rest).map_err(|text| fail(if rest.is_empty() { start } else { here }, &text))?;
        *line += count_lines(&rest[..rest.len() - after.len()]);
        tokens.push(Token {
            kind,
            is_spaced,
            line: here,
        });
        rest = after;
    }
}

fn token(source: &str) -> Result<(Kind, &str), String> {
    let Some(first) = source.chars().next() else {
        return Err("unclosed action".to_owned());
    };
    let after = &source[first.len_utf8()..];
    match first {
        '|' => Ok((Kind::Pipe, after)),
        '(' => Ok((Kind::Open, after)),
        ')' => Ok((Kind::Close, after)),
        ',' => Ok((Kind::Comma, after)),
        '=' => Ok((Kind::Assign, after)),
        ':' => match after.strip_prefix('=') {
            Some(after) => Ok((Kind::Declare, after)),
            None => Err("expected :=".to_owned()),
        },
        '.' => {
            let (name, rest) = word(after);
            if name.is_empty() {
                if after.starts_with(|c: char| c.is_ascii_digit()) {
                    return Err("numbers with a fraction are not known".to_owned());
                }
                return Ok((Kind::Dot, after));
            }
            Ok((Kind::Field(name.to_owned()), rest))
        }
        '$' => {
            let (name, rest) = word(after);
            Ok((Kind::Variable(name.to_owned()), rest))
        }
        '"' => quoted(after, '"').map(|(text, rest)| (Kind::Text(text), rest)),
        '`' => match after.find('`') {
            Some(end) => Ok((Kind::Text(after[..end].replace('\r', "")), &after[end + 1..])),
            None => Err("unterminated raw quoted string".to_owned()),
        },
        '\'' => {
            let (text, rest) = quoted(after, '\'')?;
            let mut characters = text.chars();
            match (characters.next(), characters.next()) {
                (Some(one), None) => Ok((Kind::Number(i64::from(u32::from(one))), rest)),
                _ => Err("malformed character constant".to_owned()),
            }
        }
        '+' | '-' | '0'..='9' => number(source),
        c if is_letter(c) => {
            let (name, rest) = word(source);
            Ok((Kind::Word(name.to_owned()), rest))
        }
        other => Err(format!("unexpected character {other:?} in action")),
    }
}

fn is_letter(c: char) -> bool {
    c == '_' || c.is_alphabetic()
}

fn word(source: &str) -> (&str, &str) {
    let end = source
        .find(|c: char| !(is_letter(c) || c.is_numeric()))
        .unwrap_or(source.len());
    source.split_at(end)
}

fn number(source: &str) -> Result<(Kind, &str), String> {
    let digits = source.strip_prefix(['+', '-']).unwrap_or(source);
    let end = digits
        .find(|c: char| !(c.is_ascii_alphanumeric() || c == '.' || c == '_'))
        .unwrap_or(digits.len());
    let (text, rest) = digits.split_at(end);
    let lower = text.to_ascii_lowercase();
    let value = match lower.strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(hex, 16).ok(),
        // A leading zero means octal in Go; nobody means that.
        None if text.len() > 1 && text.starts_with('0') => None,
        None => text.parse().ok(),
    };
    let value: i64 = value.ok_or_else(|| format!("bad number syntax: {text:?}"))?;
    let signed = if source.starts_with('-') { -value } else { value };
    Ok((Kind::Number(signed), rest))
}

/// The text up to the closing quote, with Go's escapes.
fn quoted(source: &str, quote: char) -> Result<(String, &str), String> {
    let unterminated = || "unterminated quoted string".to_owned();
    let mut text = String::new();
    let mut characters = source.char_indices();
    while let Some((at, c)) = characters.next() {
        if c == quote {
            return Ok((text, &source[at + quote.len_utf8()..]));
        }
        if c == '\n' {
            break;
        }
        if c != '\\' {
            text.push(c);
            continue;
        }
        let (_, escape) = characters.next().ok_or_else(unterminated)?;
        let mut code = |digits: usize, radix: u32, first: &str| {
            let mut all = first.to_owned();
            for _ in all.len()..digits {
                all.extend(characters.next().map(|(_, digit)| digit));
            }
            u32::from_str_radix(&all, radix)
                .ok()
                .filter(|code| digits > 3 || *code < 128)
                .and_then(char::from_u32)
                .ok_or_else(|| format!("invalid escape in quoted string: \\{escape}"))
        };
        text.push(match escape {
            'a' => '\u{7}',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\u{b}',
            '\\' => '\\',
            'x' => code(2, 16, "")?,
            'u' => code(4, 16, "")?,
            'U' => code(8, 16, "")?,
            '0'..='7' => code(3, 8, &escape.to_string())?,
            other if other == quote => quote,
            other => return Err(format!("invalid escape in quoted string: \\{other}")),
        });
    }
    Err(unterminated())
}
