//! Keys that were withdrawn while tokens were being signed.

use std::collections::{HashSet, VecDeque};

/// More often than keys are forgotten while one token is being signed.
const MAX_LATEST: usize = 64;

/// Keys that were forgotten, the latest last.
#[derive(Debug, Default)]
pub(super) struct Withdrawn {
    times: u64,
    latest: VecDeque<HashSet<String>>,
}

impl Withdrawn {
    /// How often keys were forgotten.
    pub(super) fn times(&self) -> u64 {
        self.times
    }

    pub(super) fn add(&mut self, key_ids: HashSet<String>) {
        self.times += 1;
        self.latest.push_back(key_ids);
        if self.latest.len() > MAX_LATEST {
            self.latest.pop_front();
        }
    }

    /// Whether a key was forgotten since keys had been `before` times. When that is too long ago to tell, it was.
    pub(super) fn has(&self, key_id: Option<&str>, before: u64) -> bool {
        let since = usize::try_from(self.times.saturating_sub(before)).unwrap_or(usize::MAX);
        let mut latest = self.latest.iter().rev().take(since);
        since > self.latest.len() || key_id.is_some_and(|id| latest.any(|key_ids| key_ids.contains(id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_forgotten_concerns_what_was_asked_for_before() {
        let mut withdrawn = Withdrawn::default();
        let ids = |id: &str| HashSet::from([id.to_owned()]);
        withdrawn.add(ids("a"));
        withdrawn.add(ids("b"));
        assert!(withdrawn.has(Some("a"), 0) && withdrawn.has(Some("b"), 1));
        assert!(!withdrawn.has(Some("a"), 1) && !withdrawn.has(Some("b"), 2) && !withdrawn.has(None, 0));
        (0..MAX_LATEST).for_each(|_| withdrawn.add(ids("c")));
        assert!(!withdrawn.has(Some("a"), 2));
        assert!(withdrawn.has(Some("a"), 1), "too long ago to tell");
    }
}
