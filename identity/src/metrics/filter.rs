//! Which metrics and labels are exposed (`AllowedPrefixes`, `BlockedPrefixes`, `AllowedLabels`, `BlockedLabels`).

/// The operator's choice. Nothing set shows everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// `AllowedPrefixes`: shown although a shorter prefix is blocked.
    pub allowed_prefixes: Vec<String>,
    /// `BlockedPrefixes`
    pub blocked_prefixes: Vec<String>,
    /// `AllowedLabels`: when there are any, no others are shown.
    pub allowed_labels: Vec<String>,
    /// `BlockedLabels`
    pub blocked_labels: Vec<String>,
}

impl Filter {
    /// Whether a metric with this full name is shown: the longest prefix that fits decides, and without one it
    /// is. In prefixes `.` is the same as `_`, as SPIRE separates the parts of a name with it.
    pub fn shows(&self, name: &str) -> bool {
        let longest = |prefixes: &[String]| {
            let fitting = prefixes
                .iter()
                .filter(|prefix| name.starts_with(&prefix.replace('.', "_")));
            fitting.map(String::len).max()
        };
        match (longest(&self.allowed_prefixes), longest(&self.blocked_prefixes)) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(allowed), Some(blocked)) => allowed > blocked,
        }
    }

    /// Whether a label with this name is shown.
    pub fn shows_label(&self, name: &str) -> bool {
        let among = |names: &[String]| names.iter().any(|other| other == name);
        (self.allowed_labels.is_empty() || among(&self.allowed_labels)) && !among(&self.blocked_labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_longest_prefix_decides() {
        let filter = Filter {
            blocked_prefixes: names(&["spire_server.rpc", "spire_server.rpc.svid.v1.svid.mint"]),
            allowed_prefixes: names(&["spire_server.rpc.svid"]),
            ..Filter::default()
        };
        assert!(filter.shows("spire_server_started"));
        assert!(!filter.shows("spire_server_rpc_entry_v1_entry_get_entry"));
        assert!(filter.shows("spire_server_rpc_svid_v1_svid_new_jwtsvid"));
        assert!(!filter.shows("spire_server_rpc_svid_v1_svid_mint_x509svid"));
        assert!(Filter::default().shows("a"));
    }

    #[test]
    fn allowed_labels_exclude_all_others() {
        let filter = Filter {
            allowed_labels: names(&["status", "host"]),
            blocked_labels: names(&["host"]),
            ..Filter::default()
        };
        assert!(filter.shows_label("status"));
        assert!(!filter.shows_label("host") && !filter.shows_label("attestor"));
        assert!(Filter::default().shows_label("host"));
    }
}
