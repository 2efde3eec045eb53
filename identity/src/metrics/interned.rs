//! Values of labels that are known only when the program runs.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// Values that are kept for good; what comes after them shows as [`OTHER`].
const MOST_VALUES: usize = 512;
/// Longer values are cut.
const MOST_CHARACTERS: usize = 255;
const OTHER: &str = "other";

/// A value for a [`super::Label`]. Each is kept for as long as the program runs, so it must be one of few, as the names of
/// trust domains that an operator federates with.
pub fn interned(value: &str) -> &'static str {
    static KNOWN: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let value: String = value.chars().take(MOST_CHARACTERS).collect();
    // A set is whole after a panic: values are only ever added.
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(value) = known.get(value.as_str()) {
        return value;
    }
    if known.len() >= MOST_VALUES {
        return OTHER;
    }
    let value: &'static str = Box::leak(value.into_boxed_str());
    known.insert(value);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_kept_once_and_not_more_than_there_is_room_for() {
        let first = interned("example.org");
        assert_eq!(first, "example.org");
        assert!(std::ptr::eq(first, interned("example.org")));
        let shown: BTreeSet<&str> = (0..2 * MOST_VALUES)
            .map(|number| interned(&format!("domain-{number}")))
            .collect();
        assert!(shown.len() <= MOST_VALUES + 1 && shown.contains(OTHER));
        assert!(std::ptr::eq(first, interned("example.org")), "it stays known");
    }
}
