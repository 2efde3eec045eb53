//! Which facts about callers may be logged (`log_selectors`).

use std::collections::HashSet;

use finial_identity::selector::Selector;

/// Beginnings of selectors that an operator wants to see in the log, as `k8s:ns` or `unix`. Without any, no fact about a
/// caller is logged: some of them hold secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoggedSelectors(Vec<String>);

impl LoggedSelectors {
    /// Allows selectors that are equal to one of these prefixes, or begin with one and a colon, in the log.
    pub fn new(prefixes: Vec<String>) -> Self {
        Self(prefixes)
    }

    /// Those that may be logged, sorted and with commas between, as SPIRE writes them; `None` when there is none.
    pub fn among(&self, selectors: &HashSet<Selector>) -> Option<String> {
        if self.0.is_empty() {
            return None;
        }
        let mut shown: Vec<&str> = selectors
            .iter()
            .map(Selector::as_str)
            .filter(|text| self.0.iter().any(|prefix| begins_with(text, prefix)))
            .collect();
        shown.sort_unstable();
        (!shown.is_empty()).then(|| shown.join(","))
    }
}

fn begins_with(selector: &str, prefix: &str) -> bool {
    let rest = selector.strip_prefix(prefix);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoints::testing::selectors;

    fn shown(prefixes: &[&str]) -> Option<String> {
        let facts = selectors(&[
            "unix:uid:1000",
            "k8s:ns:prod",
            "k8s:nsx:a",
            "docker:env:TOKEN=secret",
        ]);
        let prefixes = prefixes.iter().map(ToString::to_string).collect();
        LoggedSelectors::new(prefixes).among(&facts)
    }

    #[test]
    fn only_what_begins_with_a_configured_part_is_shown() {
        assert_eq!(
            shown(&["unix", "k8s:ns"]).as_deref(),
            Some("k8s:ns:prod,unix:uid:1000")
        );
        assert_eq!(shown(&["unix:uid:1000"]).as_deref(), Some("unix:uid:1000"));
        for nothing in [&[][..], &["k8s:n"], &[""], &["unix:"], &["uid"]] {
            assert_eq!(shown(nothing), None, "{nothing:?}");
        }
    }
}
