//! Reads the keys of a block with their types.

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

/// As Go's `ParseInt` with base 0 reads it: `0x`, `0o`, `0b` and a leading `0` give the base.
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
mod tests;
