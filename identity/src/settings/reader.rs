//! From a file's text to a document.

use std::path::Path;

use super::position::Position;
use super::problems::Problems;
use super::section::Section;
use super::tree::{Node, ParseError, Value};
use super::{MAX_TEXT, hcl1, json, yaml};

/// How a configuration file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// HCL 1, or JSON when it begins with `{`, as in SPIRE.
    Hcl,
    /// JSON.
    Json,
    /// YAML 1.2.
    Yaml,
}

/// A configuration file that was read but not yet checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    root: Node,
}

impl Format {
    /// `.json` is JSON, `.yaml` and `.yml` are YAML, everything else is HCL.
    pub fn from_path(path: &Path) -> Self {
        let extension = path
            .extension()
            .and_then(|extension| extension.to_str())
            .unwrap_or_default();
        match extension.to_ascii_lowercase().as_str() {
            "json" => Self::Json,
            "yaml" | "yml" => Self::Yaml,
            _ => Self::Hcl,
        }
    }
}

impl Document {
    /// Reads a text of at most [`MAX_TEXT`] bytes.
    ///
    /// # Errors
    /// [`ParseError`] with the place, when it is not of that format or its root is not a map.
    pub fn parse(text: &str, format: Format) -> Result<Self, ParseError> {
        let start = Position { line: 1, column: 1 };
        if text.len() > MAX_TEXT {
            return Err(ParseError::new(
                start,
                format!("file is larger than {MAX_TEXT} bytes"),
            ));
        }
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let root = match format {
            Format::Hcl if text.trim_start().starts_with('{') => json::parse(text),
            Format::Hcl => hcl1::parse(text),
            Format::Json => json::parse(text),
            Format::Yaml => yaml::parse(text),
        }?;
        match root.value {
            Value::Map(_) => Ok(Self { root }),
            other => Err(ParseError::new(
                root.at,
                format!("file must be a map of keys, is {}", other.kind()),
            )),
        }
    }

    /// The whole tree.
    pub fn root(&self) -> &Node {
        &self.root
    }

    /// The top level, to be read key by key.
    pub fn section<'a>(&'a self, problems: &'a Problems) -> Section<'a> {
        Section::root(&self.root, problems)
    }
}

/// Replaces `$NAME` and `${NAME}` by what `lookup` says, by nothing where it says nothing, and `$$`
/// by `$`, as SPIRE's `-expandEnv` does with the raw text.
///
/// A `$` that is followed by none of these stays; malformed braces are dropped; `$1` and the other
/// special names of a shell are looked up as names of one character.
pub fn expand_env(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        let (name, used) = variable(after);
        rest = after.get(used..).unwrap_or_default();
        match name {
            Some("$") => expanded.push('$'),
            Some(name) => expanded.push_str(&lookup(name).unwrap_or_default()),
            None if used == 0 => expanded.push('$'),
            None => {}
        }
    }
    expanded.push_str(rest);
    expanded
}

/// The name that follows a `$`, and how many bytes it takes.
fn variable(text: &str) -> (Option<&str>, usize) {
    if let Some(braced) = text.strip_prefix('{') {
        return match braced.split_once('}') {
            Some(("", _)) => (None, 2),
            Some((name, _)) => (Some(name), name.len() + 2),
            None => (None, 1),
        };
    }
    let special = |c: char| matches!(c, '*' | '#' | '$' | '@' | '!' | '?' | '-') || c.is_ascii_digit();
    if text.starts_with(special) {
        return (text.get(..1), 1);
    }
    let end = text
        .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .unwrap_or(text.len());
    (text.get(..end).filter(|name| !name.is_empty()), end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HCL: &str = include_str!("samples/agent.conf");
    const JSON: &str = include_str!("samples/agent.json");
    const YAML: &str = include_str!("samples/agent.yaml");

    #[test]
    fn the_same_agent_in_three_formats_is_the_same_tree() {
        let hcl = Document::parse(HCL, Format::Hcl).unwrap();
        assert_eq!(hcl, Document::parse(JSON, Format::Json).unwrap());
        assert_eq!(hcl, Document::parse(YAML, Format::Yaml).unwrap());
        assert_eq!(hcl, Document::parse(JSON, Format::Hcl).unwrap());
        assert_eq!(
            hcl,
            Document::parse(&format!("\u{feff}{HCL}"), Format::Hcl).unwrap()
        );
        // A heredoc keeps its carriage returns, everything else ignores them.
        let carriage_returns = HCL.replace("<<EOF\nabc\nEOF", r#""abc\n""#).replace('\n', "\r\n");
        assert_eq!(hcl, Document::parse(&carriage_returns, Format::Hcl).unwrap());
    }

    #[test]
    fn the_extension_tells_the_format() {
        let formats = [
            "a.json",
            "a.YAML",
            "a.yml",
            "agent.conf",
            "a.hcl",
            "agent",
            "/a.json/b",
        ]
        .map(|path| Format::from_path(Path::new(path)));
        use Format::{Hcl, Json, Yaml};
        assert_eq!(formats, [Json, Yaml, Yaml, Hcl, Hcl, Hcl, Hcl]);
    }

    #[test]
    fn what_is_not_a_map_or_too_large_is_an_error() {
        for (text, format) in [
            ("[1]", Format::Json),
            ("- 1", Format::Yaml),
            ("text", Format::Yaml),
        ] {
            let error = Document::parse(text, format).unwrap_err().to_string();
            assert!(
                error.starts_with("line 1, column 1: file must be a map of keys, is a"),
                "{error}"
            );
        }
        let large = "#".repeat(MAX_TEXT + 1);
        assert!(Document::parse(&large, Format::Hcl).is_err());
        assert!(Document::parse(&large[1..], Format::Hcl).is_ok());
    }

    #[test]
    fn expands_as_go_does() {
        let lookup = |name: &str| match name {
            "A" => Some("1".to_owned()),
            "A_b2" => Some("two".to_owned()),
            "odd name" => Some("odd".to_owned()),
            "LOOP" => Some("$A".to_owned()),
            _ => None,
        };
        let cases = [
            ("x = \"$A\"", "x = \"1\""),
            ("${A}$A_b2/$A-$A", "1two/1-1"),
            ("[$UNSET][${UNSET}]", "[][]"),
            ("$$A $$$A $", "$A $1 $"),
            ("$ 5, $é, a$", "$ 5, $é, a$"),
            ("${} ${odd name} ${open", " odd open"),
            ("$1x$?y", "xy"),
            ("$LOOP", "$A"),
            ("é${A}é", "é1é"),
        ];
        for (text, expected) in cases {
            assert_eq!(expand_env(text, &lookup), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "\\PC*") {
            for format in [Format::Hcl, Format::Json, Format::Yaml] {
                let _outcome = Document::parse(&text, format);
            }
            let _expanded = expand_env(&text, &|name| Some(name.to_owned()));
        }

        #[test]
        fn text_that_looks_like_configuration_never_panics(
            text in "([a-c]|[{}\\[\\]()<>=,:#/*\"'$|&!%@?`~_.\\\\ \\n\r\t0-9x-]|<<EOF\n|EOF|<<-|true|- |\\$\\{|é|\\u{1F600}){0,60}"
        ) {
            for format in [Format::Hcl, Format::Json, Format::Yaml] {
                let _outcome = Document::parse(&text, format);
            }
        }

        #[test]
        fn damaged_samples_never_panic(at in 0_usize..1500, cut in 0_usize..40, put in "[{}\\[\\]\"<=\\\\\\n:, -]{0,3}") {
            for (sample, format) in [(HCL, Format::Hcl), (JSON, Format::Json), (YAML, Format::Yaml)] {
                let before: String = sample.chars().take(at).collect();
                let after: String = sample.chars().skip(at + cut).collect();
                let _outcome = Document::parse(&format!("{before}{put}{after}"), format);
            }
        }

        #[test]
        fn json_text_of_any_string_comes_back(text in "\\PC*") {
            let quoted = serde_json::to_string(&text).unwrap();
            let document = Document::parse(&format!("{{\"k\": {quoted}}}"), Format::Json).unwrap();
            let problems = Problems::new();
            let expected = Some(text).filter(|text| !text.is_empty());
            prop_assert_eq!(document.section(&problems).string("k"), expected);
        }
    }
}
