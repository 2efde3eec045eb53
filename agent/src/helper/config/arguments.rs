//! `cmd_args`: one text that holds many arguments.

/// A text that cannot be split.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ArgumentsError {
    /// A quotation mark inside of an argument that does not begin with one.
    #[error("an argument with a double quote must begin with one, and have it doubled inside")]
    BareQuote,
    /// Something other than a space behind the closing quotation mark.
    #[error("a closing double quote must be followed by a space")]
    AfterQuote,
    /// No closing quotation mark.
    #[error("a double quote is not closed")]
    Unclosed,
}

/// The arguments, and whether the text has more than one line, of which the others count for nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Arguments {
    pub(super) list: Vec<String>,
    pub(super) has_more_lines: bool,
}

/// Splits as spiffe-helper does, by the rules of RFC 4180 with a space for the comma: each space ends an argument
/// (two in a row hold an empty one), double quotes hold spaces together, and doubled inside of those they stand for
/// themselves. Single quotes, backslashes and dollar signs mean nothing.
pub(super) fn split(text: &str) -> Result<Arguments, ArgumentsError> {
    let mut rest = text.trim_start_matches(['\r', '\n']);
    let mut list = Vec::new();
    if rest.is_empty() {
        return Ok(Arguments {
            list,
            has_more_lines: false,
        });
    }
    loop {
        let (argument, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_argument(quoted)?,
            None => plain_argument(rest)?,
        };
        list.push(argument);
        match after.strip_prefix(' ') {
            Some(next) => rest = next,
            None => {
                let has_more_lines = !after.trim_matches(['\r', '\n']).is_empty();
                return Ok(Arguments { list, has_more_lines });
            }
        }
    }
}

fn plain_argument(text: &str) -> Result<(String, &str), ArgumentsError> {
    let (argument, after) = text.split_at(end_of_plain(text));
    if argument.contains('"') {
        return Err(ArgumentsError::BareQuote);
    }
    Ok((argument.to_owned(), after))
}

/// At the space or the end of the line.
fn end_of_plain(text: &str) -> usize {
    let end = text.find([' ', '\n']).unwrap_or(text.len());
    match text.get(..end).and_then(|argument| argument.strip_suffix('\r')) {
        Some(argument) if !text[end..].starts_with(' ') => argument.len(),
        _ => end,
    }
}

fn quoted_argument(text: &str) -> Result<(String, &str), ArgumentsError> {
    let mut argument = String::new();
    let mut rest = text;
    loop {
        let (part, after) = rest.split_once('"').ok_or(ArgumentsError::Unclosed)?;
        argument.push_str(&part.replace("\r\n", "\n"));
        match after.strip_prefix('"') {
            Some(next) => {
                argument.push('"');
                rest = next;
            }
            None if after.is_empty() || after.starts_with([' ', '\n']) || after.starts_with("\r\n") => {
                return Ok((argument, after));
            }
            None => return Err(ArgumentsError::AfterQuote),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Vec<String> {
        split(text).unwrap().list
    }

    #[test]
    fn spaces_split_and_quotes_hold_together() {
        assert_eq!(
            list("server --listen localhost:8002"),
            ["server", "--listen", "localhost:8002"]
        );
        assert_eq!(
            list(r#"-p 5432 -c "SELECT pg_reload_conf();""#),
            ["-p", "5432", "-c", "SELECT pg_reload_conf();"]
        );
        assert_eq!(
            list(r#""one ""quoted"" argument" b"#),
            [r#"one "quoted" argument"#, "b"]
        );
        assert_eq!(list(r#""""#), [""]);
    }

    #[test]
    fn nothing_of_a_shell_is_understood() {
        assert_eq!(list("-c 'echo $HOME'"), ["-c", "'echo", "$HOME'"]);
        assert_eq!(list(r"a\ b"), [r"a\", "b"]);
    }

    #[test]
    fn two_spaces_hold_an_empty_argument() {
        assert_eq!(list("a  b "), ["a", "", "b", ""]);
        assert_eq!(list(" a"), ["", "a"]);
        assert_eq!(list(""), Vec::<String>::new());
    }

    #[test]
    fn only_the_first_line_counts_and_quotes_may_span_lines() {
        assert_eq!(
            split("a b\n").unwrap(),
            Arguments {
                list: vec!["a".into(), "b".into()],
                has_more_lines: false
            }
        );
        assert_eq!(
            split("\na\r\nb").unwrap(),
            Arguments {
                list: vec!["a".into()],
                has_more_lines: true
            }
        );
        assert_eq!(list("\"a\r\nb\" c"), ["a\nb", "c"]);
        assert!(!split("\"a\"\r\n").unwrap().has_more_lines);
        assert_eq!(list("\n"), Vec::<String>::new());
    }

    #[test]
    fn wrong_quotes_are_told() {
        assert_eq!(split(r#"a"b"#), Err(ArgumentsError::BareQuote));
        assert_eq!(split(r#""a"b"#), Err(ArgumentsError::AfterQuote));
        assert_eq!(split(r#"a "b"#), Err(ArgumentsError::Unclosed));
    }
}
