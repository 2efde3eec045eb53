//! The way from what was written to what was checked.

use std::cell::RefCell;
use std::fmt::Display;
use std::time::Duration;

use super::duration::parse_duration;
use super::position::Position;
use super::problems::Problems;
use super::tree::{Node, Value};

/// A block of the configuration, read key by key. Mistakes go to [`Problems`] and read as "not set".
///
/// As in SPIRE, keys differ in more than case, an empty string or list and `null` count as not set,
/// numbers may be written as strings (`bind_port = "8081"`), and a block, a map and a list of maps
/// mean the same; a block that is repeated adds to the first. [`Section::finish`] reports what was
/// not read.
#[derive(Debug)]
#[must_use = "call finish, so that unknown keys are reported"]
pub struct Section<'a> {
    path: String,
    at: Position,
    entries: Vec<&'a (String, Node)>,
    problems: &'a Problems,
    asked: RefCell<Vec<String>>,
}

impl<'a> Section<'a> {
    pub(super) fn root(root: &'a Node, problems: &'a Problems) -> Self {
        Self::over([root], String::new(), root.at, problems)
    }

    /// The name of this section in problems, like `agent.sds`; empty at the top.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Where the section begins.
    pub fn position(&self) -> Position {
        self.at
    }

    /// Whether the key is set; does not count as reading it.
    pub fn has(&self, key: &str) -> bool {
        self.entries
            .iter()
            .any(|(name, node)| name.eq_ignore_ascii_case(key) && node.value != Value::Null)
    }

    /// Accepts the key with any value, for one that SPIRE knows and that has no meaning here.
    /// Returns whether it is set, for a warning.
    pub fn ignore(&self, key: &str) -> bool {
        self.found(key).any(|node| node.value != Value::Null)
    }

    /// The key's values as they were written, for a plug-in's own data.
    pub fn nodes(&self, key: &str) -> Vec<&'a Node> {
        self.found(key).collect()
    }

    /// A text. A number counts as its text.
    pub fn string(&self, key: &str) -> Option<String> {
        let node = self.single(key)?;
        let text = self.text(key, node)?;
        Some(text.to_owned()).filter(|text| !text.is_empty())
    }

    /// A text that must be set.
    pub fn required_string(&self, key: &str) -> Option<String> {
        self.required(key, Self::string)
    }

    /// `true` or `false`, also as the texts and numbers that Go's `ParseBool` takes.
    pub fn bool(&self, key: &str) -> Option<bool> {
        let node = self.single(key)?;
        let text = match &node.value {
            Value::Bool(value) => return Some(*value),
            Value::Number(text) | Value::String(text) => text.as_str(),
            _ => "",
        };
        match text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
            _ => {
                self.mistyped(key, node, "true or false");
                None
            }
        }
    }

    /// A port or another small number. `0` is given as it is; SPIRE takes it as "not set".
    pub fn u16(&self, key: &str) -> Option<u16> {
        self.integer(key)
    }

    /// A number that is not negative.
    pub fn u32(&self, key: &str) -> Option<u32> {
        self.integer(key)
    }

    /// A number.
    pub fn i64(&self, key: &str) -> Option<i64> {
        self.integer(key)
    }

    /// A count.
    pub fn usize(&self, key: &str) -> Option<usize> {
        self.integer(key)
    }

    /// A duration as Go writes it, like `1h30m`; not negative. `0s` is given as it is.
    pub fn duration(&self, key: &str) -> Option<Duration> {
        self.parse(key, parse_duration)
    }

    /// A list of texts; empty when not set.
    pub fn strings(&self, key: &str) -> Vec<String> {
        self.parse_each(key, |text| Ok::<_, std::convert::Infallible>(text.to_owned()))
    }

    /// A text that `read` understands; its error is the problem's text.
    pub fn parse<T, E: Display>(&self, key: &str, read: impl FnOnce(&str) -> Result<T, E>) -> Option<T> {
        let node = self.single(key)?;
        let text = self.text(key, node).filter(|text| !text.is_empty())?;
        read(text)
            .map_err(|error| {
                self.problems
                    .add(self.path_of(key), Some(node.at), error.to_string())
            })
            .ok()
    }

    /// Like [`Section::parse`], and must be set.
    pub fn required_parse<T, E: Display>(
        &self,
        key: &str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        self.required(key, |section, key| section.parse(key, read))
    }

    /// A list of texts that `read` understands; each failure is a problem of its own.
    pub fn parse_each<T, E: Display>(&self, key: &str, read: impl Fn(&str) -> Result<T, E>) -> Vec<T> {
        let Some(node) = self.single(key) else {
            return Vec::new();
        };
        let Value::List(items) = &node.value else {
            self.mistyped(key, node, "a list of strings");
            return Vec::new();
        };
        let mut values = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let name = format!("{key}[{index}]");
            let Some(text) = self.text(&name, item) else {
                continue;
            };
            match read(text) {
                Ok(value) => values.push(value),
                Err(error) => self
                    .problems
                    .add(self.path_of(&name), Some(item.at), error.to_string()),
            }
        }
        values
    }

    /// A block.
    pub fn section(&self, key: &str) -> Option<Section<'a>> {
        let nodes: Vec<&'a Node> = self.found(key).filter(|node| node.value != Value::Null).collect();
        let at = nodes.first()?.at;
        Some(Self::over(
            self.maps(key, nodes),
            self.path_of(key),
            at,
            self.problems,
        ))
    }

    /// A block that must be there.
    pub fn required_section(&self, key: &str) -> Option<Section<'a>> {
        self.required(key, Self::section)
    }

    /// Blocks that may be repeated, or a list of maps.
    pub fn sections(&self, key: &str) -> Vec<Section<'a>> {
        let maps = self.maps(key, self.found(key).filter(|node| node.value != Value::Null));
        let path = self.path_of(key);
        let named = |(index, node): (usize, &'a Node)| {
            Self::over([node], format!("{path}[{index}]"), node.at, self.problems)
        };
        maps.into_iter().enumerate().map(named).collect()
    }

    /// Blocks with a label, like `KeyManager "disk" { … }`, in their order.
    pub fn labelled(&self, key: &str) -> Vec<(String, Section<'a>)> {
        let mut found = Vec::new();
        for map in self.maps(key, self.found(key).filter(|node| node.value != Value::Null)) {
            let Value::Map(entries) = &map.value else { continue };
            for (label, node) in entries {
                let path = format!("{} {label:?}", self.path_of(key));
                // `unix:` with nothing behind it, in YAML, is an empty block.
                let maps = if node.value == Value::Null {
                    Vec::new()
                } else {
                    self.maps(&format!("{key} {label:?}"), [node])
                };
                found.push((label.clone(), Self::over(maps, path, node.at, self.problems)));
            }
        }
        found
    }

    /// Reports a mistake about a key of this section that its reader found.
    pub fn problem(&self, key: &str, text: impl Into<String>) {
        let at = self
            .entries
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(key))
            .map_or(self.at, |(_, n)| n.at);
        self.problems.add(self.path_of(key), Some(at), text);
    }

    /// Reports every key that was not read.
    pub fn finish(self) {
        let asked = self.asked.borrow();
        for (name, node) in &self.entries {
            if asked.iter().any(|key| key.eq_ignore_ascii_case(name)) {
                continue;
            }
            let text = match nearest(name, &asked) {
                Some(key) => format!("unknown key, did you mean `{key}`?"),
                None => "unknown key".to_owned(),
            };
            self.problems.add_unknown_key(self.path_of(name), node.at, text);
        }
    }

    fn over(
        maps: impl IntoIterator<Item = &'a Node>,
        path: String,
        at: Position,
        problems: &'a Problems,
    ) -> Self {
        let mut entries = Vec::new();
        for map in maps {
            if let Value::Map(inner) = &map.value {
                entries.extend(inner);
            }
        }
        Self {
            path,
            at,
            entries,
            problems,
            asked: RefCell::default(),
        }
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// All values of the key, which counts as read.
    fn found(&self, key: &str) -> impl Iterator<Item = &'a Node> {
        let mut asked = self.asked.borrow_mut();
        if !asked.iter().any(|name| name == key) {
            asked.push(key.to_owned());
        }
        let nodes: Vec<&'a Node> = self
            .entries
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case(key))
            .map(|(_, node)| node)
            .collect();
        nodes.into_iter()
    }

    /// The one value of the key, if it is set.
    fn single(&self, key: &str) -> Option<&'a Node> {
        let mut found = self.found(key);
        let node = found.next()?;
        if let Some(again) = found.next() {
            self.problems.add(
                self.path_of(key),
                Some(again.at),
                format!("is set before, in line {}", node.at.line),
            );
            return None;
        }
        Some(node).filter(|node| node.value != Value::Null)
    }

    fn required<T>(&self, key: &str, read: impl FnOnce(&Self, &str) -> Option<T>) -> Option<T> {
        let known = self.problems.count();
        let value = read(self, key);
        // One problem a key: what is set wrongly has been reported.
        if value.is_none() && self.problems.count() == known {
            self.problem(key, "is required");
        }
        value
    }

    fn text(&self, name: &str, node: &'a Node) -> Option<&'a str> {
        match &node.value {
            Value::String(text) | Value::Number(text) => Some(text),
            _ => {
                self.mistyped(name, node, "a string");
                None
            }
        }
    }

    fn integer<T: TryFrom<i128>>(&self, key: &str) -> Option<T> {
        let node = self.single(key)?;
        let text = match &node.value {
            Value::String(text) | Value::Number(text) => text,
            _ => {
                self.mistyped(key, node, "a number");
                return None;
            }
        };
        if text.is_empty() {
            return None;
        }
        let Some(number) = parse_integer(text) else {
            self.problems.add(
                self.path_of(key),
                Some(node.at),
                format!("must be a whole number: {text}"),
            );
            return None;
        };
        let fitting = T::try_from(number).ok();
        if fitting.is_none() {
            self.problems.add(
                self.path_of(key),
                Some(node.at),
                format!("is out of range: {text}"),
            );
        }
        fitting
    }

    /// The maps that nodes are or list; anything else is a problem.
    fn maps(&self, name: &str, nodes: impl IntoIterator<Item = &'a Node>) -> Vec<&'a Node> {
        let mut maps = Vec::new();
        for node in nodes {
            let listed = match &node.value {
                Value::List(items) => items.as_slice(),
                _ => std::slice::from_ref(node),
            };
            for item in listed {
                if matches!(item.value, Value::Map(_)) {
                    maps.push(item);
                } else {
                    self.mistyped(name, item, "a block");
                }
            }
        }
        maps
    }

    fn mistyped(&self, name: &str, node: &Node, expected: &str) {
        let found = node.value.kind();
        self.problems.add(
            self.path_of(name),
            Some(node.at),
            format!("must be {expected}, is {found}"),
        );
    }
}

/// As Go's `ParseInt` with base 0 reads it: `0x`, `0o`, `0b` and a leading `0` tell the base.
fn parse_integer(text: &str) -> Option<i128> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = if let Some(hex) = lower.strip_prefix("0x") {
        (16, hex)
    } else if let Some(octal) = lower.strip_prefix("0o") {
        (8, octal)
    } else if let Some(binary) = lower.strip_prefix("0b") {
        (2, binary)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (8, lower.get(1..).unwrap_or_default())
    } else {
        (10, lower.as_str())
    };
    // from_str_radix would take another sign.
    if !digits.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return None;
    }
    i128::from_str_radix(digits, radix)
        .ok()
        .map(|number| number * sign)
}

/// The known key that was probably meant.
fn nearest<'k>(name: &str, known: &'k [String]) -> Option<&'k str> {
    let name = name.to_ascii_lowercase();
    let limit = (name.chars().count() / 3).min(3);
    known
        .iter()
        .map(|key| (distance(&name, &key.to_ascii_lowercase(), limit), key.as_str()))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, key)| key)
}

/// How many characters must be added, removed or replaced; anything above `limit` is "far".
fn distance(a: &str, b: &str, limit: usize) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) > limit {
        return limit + 1;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut next = vec![i + 1];
        for ((to, diagonal), above) in b.iter().zip(&row).zip(row.iter().skip(1)) {
            let left = next.last().copied().unwrap_or_default();
            next.push((diagonal + usize::from(from != to)).min(above + 1).min(left + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Document, Format};

    /// What `read` returns, and all problems, one a line.
    fn read<T>(text: &str, read: impl FnOnce(&Section<'_>) -> T) -> (T, String) {
        let format = if text.starts_with("---") {
            Format::Yaml
        } else {
            Format::Hcl
        };
        let document = Document::parse(text, format).unwrap();
        let problems = Problems::new();
        let section = document.section(&problems);
        let value = read(&section);
        section.finish();
        (
            value,
            problems
                .into_result()
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default(),
        )
    }

    fn none() -> String {
        String::new()
    }

    #[test]
    fn reads_scalars_also_as_strings() {
        let text = r#"
            bind_port = "8081"  other_port = 8082  mode = 0600  count = -5  on = true  off = "false"
            ttl = "1h30m"  name = "x"  code = 42  hex = "0xff"
        "#;
        let (_, problems) = read(text, |s| {
            assert_eq!(
                (s.u16("bind_port"), s.u16("other_port")),
                (Some(8081), Some(8082))
            );
            assert_eq!(
                (s.u32("mode"), s.i64("count"), s.usize("hex")),
                (Some(0o600), Some(-5), Some(255))
            );
            assert_eq!((s.bool("on"), s.bool("off")), (Some(true), Some(false)));
            assert_eq!(s.duration("ttl"), Some(Duration::from_secs(5400)));
            assert_eq!(s.string("name").as_deref(), Some("x"));
            assert_eq!(s.string("CODE").as_deref(), Some("42"));
        });
        assert_eq!(problems, none());
    }

    #[test]
    fn empty_and_null_count_as_not_set() {
        let ((), problems) = read("---\na: ''\nb: null\nc: []\nd: ~\ne: ''\nf:\ng: ''", |s| {
            assert_eq!(
                (s.string("a"), s.string("b"), s.string("absent")),
                (None, None, None)
            );
            assert_eq!((s.strings("c"), s.strings("d")), (vec![], vec![]));
            assert_eq!(
                (s.duration("e"), s.u16("g"), s.bool("absent")),
                (None, None, None)
            );
            assert!(s.section("f").is_none());
            assert!(s.sections("f").is_empty());
        });
        assert_eq!(problems, none());
    }

    #[test]
    fn every_mistake_is_reported_with_path_and_line() {
        let text = "agent {\n trust_domain = []\n port = 70000\n n = \"ten\"\n on = \"yes\"\n ttl = \"-1s\"\n\
                    list = \"a\"\n items = [\"ok\", true]\n sub = 3\n}";
        let (_, problems) = read(text, |s| {
            let agent = s.required_section("agent").unwrap();
            assert!(agent.required_string("trust_domain").is_none());
            assert!(agent.u16("port").is_none() && agent.i64("n").is_none() && agent.bool("on").is_none());
            assert!(agent.duration("ttl").is_none() && agent.strings("list").is_empty());
            assert_eq!(agent.strings("items"), ["ok"]);
            assert!(agent.section("sub").is_some());
            assert!(agent.required_string("data_dir").is_none());
            assert!(agent.required_section("experimental").is_none());
            agent.problem("ttl", "is shorter than the heartbeat");
            agent.finish();
        });
        assert_eq!(
            problems,
            "agent.data_dir (line 1): is required\n\
             agent.experimental (line 1): is required\n\
             agent.trust_domain (line 2): must be a string, is a list\n\
             agent.port (line 3): is out of range: 70000\n\
             agent.n (line 4): must be a whole number: ten\n\
             agent.on (line 5): must be true or false, is a string\n\
             agent.ttl (line 6): must not be negative: -1s\n\
             agent.ttl (line 6): is shorter than the heartbeat\n\
             agent.list (line 7): must be a list of strings, is a string\n\
             agent.items[1] (line 8): must be a string, is a boolean\n\
             agent.sub (line 9): must be a block, is a number"
        );
    }

    #[test]
    fn unknown_keys_are_reported_with_what_was_probably_meant() {
        let text = "server {\n trust_domian = \"x\"\n colour = 1\n}\nplugin {}";
        let (_, problems) = read(text, |s| {
            let server = s.section("server").unwrap();
            server.string("trust_domain");
            server.ignore("profiling_names");
            server.finish();
            s.section("plugins");
        });
        assert_eq!(
            problems,
            "unknown configuration detected\n\
             server.trust_domian (line 2): unknown key, did you mean `trust_domain`?\n\
             server.colour (line 3): unknown key\n\
             plugin (line 5): unknown key, did you mean `plugins`?"
        );
    }

    #[test]
    fn labelled_blocks_are_the_same_in_every_form() {
        let forms = [
            "WA \"k8s\" { plugin_data { a = 1 } }\nWA \"unix\" {}",
            "WA { k8s { plugin_data = { a = 1 } } unix {} }",
            "WA = [{ k8s = { plugin_data = { a = 1 } } }, { unix = {} }]",
            r#"{"WA": [{"k8s": [{"plugin_data": [{"a": 1}]}]}, {"unix": {}}]}"#,
            "---\nWA:\n- k8s:\n    plugin_data: {a: 1}\n- unix:\n",
            "---\nWA:\n  k8s:\n    plugin_data: {a: 1}\n  unix: {}\n",
        ];
        for form in forms {
            let ((), problems) = read(form, |s| {
                let mut found = s.labelled("WA");
                let labels: Vec<_> = found.iter().map(|(label, _)| label.as_str()).collect();
                assert_eq!(labels, ["k8s", "unix"], "{form}");
                let (_, k8s) = found.remove(0);
                let data = k8s.section("plugin_data").unwrap();
                assert_eq!(data.path(), "WA \"k8s\".plugin_data");
                assert_eq!(data.u16("a"), Some(1), "{form}");
                data.finish();
                k8s.finish();
            });
            assert_eq!(problems, none(), "{form}");
        }
    }

    #[test]
    fn a_label_without_a_block_is_a_problem() {
        let (labels, problems) = read("WA = \"unix\"\nKM { disk = 1 }", |s| {
            (s.labelled("WA").len(), s.labelled("KM").len())
        });
        assert_eq!(labels, (0, 1));
        assert_eq!(
            problems,
            "WA (line 1): must be a block, is a string\nKM \"disk\" (line 2): must be a block, is a number"
        );
    }

    #[test]
    fn repeated_blocks_add_up_and_repeated_keys_are_a_problem() {
        let text = "server { a = 1 }\nserver { b = 2\n b = 3 }";
        let ((), problems) = read(text, |s| {
            let server = s.section("server").unwrap();
            assert_eq!(server.u16("a"), Some(1));
            assert_eq!(server.u16("b"), None);
            server.finish();
        });
        assert_eq!(problems, "server.b (line 3): is set before, in line 2");
        let (addresses, problems) = read(
            "Statsd { address = \"a\" }\nStatsd = [{ address = \"b\" }]",
            |s| {
                let sections = s.sections("Statsd");
                assert_eq!(sections[1].path(), "Statsd[1]");
                sections
                    .iter()
                    .filter_map(|section| section.string("address"))
                    .collect::<Vec<_>>()
            },
        );
        assert_eq!(
            (addresses, problems),
            (vec!["a".to_owned(), "b".to_owned()], none())
        );
    }

    #[test]
    fn parse_tells_the_error_of_the_reader() {
        let text = "level = \"loud\"\nids = [\"1\", \"x\", \"3\"]";
        let (ids, problems) = read(text, |s| {
            let level = s.required_parse("level", |text| Err::<(), _>(format!("is not a level: {text}")));
            assert!(level.is_none());
            assert!(s.required_parse("format", str::parse::<u8>).is_none());
            s.parse_each("ids", str::parse::<u8>)
        });
        assert_eq!(ids, [1, 3]);
        assert_eq!(
            problems,
            "level (line 1): is not a level: loud\nformat (line 1): is required\n\
             ids[1] (line 2): invalid digit found in string"
        );
    }

    #[test]
    fn integers_have_the_bases_of_go() {
        let cases = [
            ("0", 0),
            ("00", 0),
            ("0600", 384),
            ("-0x10", -16),
            ("0b11", 3),
            ("0O17", 15),
            ("+7", 7),
        ];
        for (text, number) in cases {
            assert_eq!(parse_integer(text), Some(number), "{text}");
        }
        for text in [
            "", "-", "0x", "08", "--1", "0x-1", "1.5", "1e3", "ten", "1_000", " 1",
        ] {
            assert_eq!(parse_integer(text), None, "{text}");
        }
        assert_eq!(parse_integer(&"9".repeat(60)), None);
    }

    #[test]
    fn has_tells_without_reading_and_nodes_gives_what_was_written() {
        let ((), problems) = read("a = 1\nb { c = 2 }", |s| {
            assert!(s.has("A") && !s.has("z"));
            assert_eq!(s.nodes("b").len(), 1);
        });
        assert_eq!(
            problems,
            "unknown configuration detected\na (line 1): unknown key"
        );
    }
}
