//! Selectors: the facts about a workload or a node by which entries are matched.

use std::borrow::Borrow;
use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::hash::BuildHasher;
use std::sync::Arc;

use thiserror::Error;

/// Longest selector in bytes, type and value together.
pub const MAX_SELECTOR_BYTES: usize = 16 * 1024;

/// A selector such as `k8s:ns:prod`: the type stands before the first colon, the value after it.
///
/// Cloning is cheap: the text is shared. The order is that of the text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    /// `type:value`; the first colon ends the type, so the text alone decides equality.
    text: Arc<str>,
    kind_bytes: u16,
}

/// Why a selector is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SelectorError {
    /// The type has no characters.
    #[error("selector type is empty")]
    EmptyType,
    /// The type has a colon, which would shift the border to the value.
    #[error("selector type contains a colon: {0:?}")]
    ColonInType(String),
    /// The value has no characters.
    #[error("selector value is empty: type {0:?}")]
    EmptyValue(String),
    /// A text has no colon to split at.
    #[error("selector is not of the form type:value: {0:?}")]
    NoColon(String),
    /// Type and value exceed [`MAX_SELECTOR_BYTES`].
    #[error("selector is longer than {MAX_SELECTOR_BYTES} bytes: {0}")]
    TooLong(usize),
}

impl Selector {
    /// Makes a selector from its type and its value.
    ///
    /// # Errors
    /// An empty part, a colon in the type, or too long a text.
    pub fn new(kind: &str, value: &str) -> Result<Self, SelectorError> {
        let bytes = kind.len() + 1 + value.len();
        if bytes > MAX_SELECTOR_BYTES {
            return Err(SelectorError::TooLong(bytes));
        }
        if kind.is_empty() {
            return Err(SelectorError::EmptyType);
        }
        if kind.contains(':') {
            return Err(SelectorError::ColonInType(kind.to_owned()));
        }
        if value.is_empty() {
            return Err(SelectorError::EmptyValue(kind.to_owned()));
        }
        let kind_bytes = u16::try_from(kind.len()).map_err(|_| SelectorError::TooLong(bytes))?;
        Ok(Self {
            text: [kind, ":", value].concat().into(),
            kind_bytes,
        })
    }

    /// Parses `type:value`, split at the first colon.
    ///
    /// # Errors
    /// No colon, an empty part, or too long a text.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.len() > MAX_SELECTOR_BYTES {
            return Err(SelectorError::TooLong(text.len()));
        }
        match text.split_once(':') {
            Some((kind, value)) => Self::new(kind, value),
            None => Err(SelectorError::NoColon(text.to_owned())),
        }
    }

    /// The type, such as `k8s`.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.text[..usize::from(self.kind_bytes)]
    }

    /// The value, such as `ns:prod`.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.text[usize::from(self.kind_bytes) + 1..]
    }

    /// The whole text, `type:value`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Whether an entry with these selectors matches something that has all of `of`: every selector of
/// the entry is among them. An entry without selectors matches nothing.
#[must_use]
pub fn is_subset(entry: &[Selector], of: &(impl SelectorSet + ?Sized)) -> bool {
    !entry.is_empty() && entry.iter().all(|selector| of.has(selector))
}

/// A set of selectors that can be asked for one of them.
pub trait SelectorSet {
    /// Whether the selector is in the set.
    fn has(&self, selector: &Selector) -> bool;
}

impl SelectorSet for BTreeSet<Selector> {
    fn has(&self, selector: &Selector) -> bool {
        self.contains(selector)
    }
}

impl<S: BuildHasher> SelectorSet for HashSet<Selector, S> {
    fn has(&self, selector: &Selector) -> bool {
        self.contains(selector)
    }
}

/// How the set in a record is compared with the set in a request: `MatchBehavior` of SPIRE's
/// `SelectorMatch` and `FederatesWithMatch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatchBehavior {
    /// Both sets are equal.
    Exact,
    /// The record's set is not empty and lies within the given one.
    Subset,
    /// The record's set contains the given one.
    Superset,
    /// The sets have at least one member in common.
    Any,
}

impl MatchBehavior {
    /// Compares the set of a record (`entry`) with the `given` one. Order and repeats do not count.
    #[must_use]
    pub fn matches<T: PartialEq>(self, entry: &[T], given: &[T]) -> bool {
        let within = |part: &[T], whole: &[T]| part.iter().all(|item| whole.contains(item));
        match self {
            Self::Exact => within(entry, given) && within(given, entry),
            Self::Subset => !entry.is_empty() && within(entry, given),
            Self::Superset => within(given, entry),
            Self::Any => entry.iter().any(|item| given.contains(item)),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Borrow<str> for Selector {
    fn borrow(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(texts: &[&str]) -> Vec<Selector> {
        texts.iter().map(|text| Selector::parse(text).unwrap()).collect()
    }

    #[test]
    fn splits_at_the_first_colon() {
        let selector = Selector::parse("unix:uid:1000").unwrap();
        assert_eq!(selector.kind(), "unix");
        assert_eq!(selector.value(), "uid:1000");
        assert_eq!(selector.to_string(), "unix:uid:1000");
        assert_eq!(selector, Selector::new("unix", "uid:1000").unwrap());
    }

    #[test]
    fn refuses_empty_parts_and_a_colon_in_the_type() {
        assert_eq!(Selector::new("", "x"), Err(SelectorError::EmptyType));
        assert_eq!(Selector::new("a", ""), Err(SelectorError::EmptyValue("a".into())));
        assert_eq!(
            Selector::new("a:b", "c"),
            Err(SelectorError::ColonInType("a:b".into()))
        );
        assert_eq!(
            Selector::parse("unix"),
            Err(SelectorError::NoColon("unix".into()))
        );
        assert_eq!(Selector::parse(":x"), Err(SelectorError::EmptyType));
        assert_eq!(Selector::parse("x:"), Err(SelectorError::EmptyValue("x".into())));
    }

    #[test]
    fn refuses_a_selector_longer_than_the_limit() {
        let longest = "v".repeat(MAX_SELECTOR_BYTES - 2);
        assert!(Selector::new("k", &longest).is_ok());
        let over = MAX_SELECTOR_BYTES + 1;
        assert_eq!(
            Selector::new("k", &format!("{longest}v")),
            Err(SelectorError::TooLong(over))
        );
        assert_eq!(
            Selector::parse(&"k".repeat(over)),
            Err(SelectorError::TooLong(over))
        );
    }

    #[test]
    fn an_entry_matches_when_all_its_selectors_are_present() {
        let facts: HashSet<Selector> = set(&["unix:uid:1", "unix:gid:1", "k8s:ns:a"])
            .into_iter()
            .collect();
        let sorted: BTreeSet<Selector> = facts.iter().cloned().collect();
        for (entry, expected) in [
            (set(&["unix:uid:1"]), true),
            (set(&["k8s:ns:a", "unix:uid:1"]), true),
            (set(&["unix:uid:2"]), false),
            (set(&["unix:uid:1", "unix:uid:2"]), false),
        ] {
            assert_eq!(is_subset(&entry, &facts), expected, "{entry:?}");
            assert_eq!(is_subset(&entry, &sorted), expected, "{entry:?}");
        }
    }

    #[test]
    fn an_entry_without_selectors_matches_nothing() {
        assert!(!is_subset(&[], &BTreeSet::from_iter(set(&["unix:uid:1"]))));
    }

    #[test]
    fn match_behaviours_compare_sets() {
        use MatchBehavior::{Any, Exact, Subset, Superset};
        let cases = [
            // entry, given, exact, subset, superset, any
            (vec!["a:1"], vec!["a:1"], [true, true, true, true]),
            (
                vec!["a:1", "a:2"],
                vec!["a:2", "a:1", "a:1"],
                [true, true, true, true],
            ),
            (vec!["a:1"], vec!["a:1", "a:2"], [false, true, false, true]),
            (vec!["a:1", "a:2"], vec!["a:1"], [false, false, true, true]),
            (
                vec!["a:1", "a:2"],
                vec!["a:2", "a:3"],
                [false, false, false, true],
            ),
            (vec!["a:1"], vec!["a:2"], [false, false, false, false]),
            (vec![], vec!["a:1"], [false, false, false, false]),
        ];
        for (entry, given, expected) in cases {
            let (entry, given) = (set(&entry), set(&given));
            let got = [Exact, Subset, Superset, Any].map(|how| how.matches(&entry, &given));
            assert_eq!(got, expected, "{entry:?} {given:?}");
        }
    }

    #[test]
    fn is_ordered_and_searched_by_text() {
        let sorted: BTreeSet<Selector> = set(&["k8s:b", "k8s-x:a", "k8s:a"]).into_iter().collect();
        let texts: Vec<&str> = sorted.iter().map(Selector::as_str).collect();
        assert_eq!(texts, ["k8s-x:a", "k8s:a", "k8s:b"]);
        assert!(sorted.contains("k8s-x:a"));
        assert!(HashSet::from([Selector::parse("a:b").unwrap()]).contains(&Selector::parse("a:b").unwrap()));
    }
}
