//! When this server saw each step of a pod, for operators. About 80 bytes for each pod.

use std::collections::HashMap;

use time::OffsetDateTime;

use super::derive::NamespacedName;
use crate::kubernetes::objects::Pod;

/// Of how many pods times are known; of further ones they are not.
const MAX_PODS: usize = 131_072;

/// What was seen of each pod.
#[derive(Debug, Default)]
pub(super) struct Times(HashMap<NamespacedName, Seen>);

/// What was seen of one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// When it was first seen.
    pub(super) at: OffsetDateTime,
    /// When it was first seen on a node.
    pub(super) bound_at: Option<OffsetDateTime>,
    /// When it was last seen.
    pub(super) changed_at: OffsetDateTime,
}

impl Times {
    /// Takes in a pod as it is now; `before` is what was known of that name.
    pub(super) fn saw(
        &mut self,
        name: &NamespacedName,
        before: Option<&Pod>,
        pod: Option<&Pod>,
        now: OffsetDateTime,
    ) {
        let Some(pod) = pod else {
            self.0.remove(name);
            return;
        };
        // Another pod may have the name of one whose end was not told.
        if before.is_some_and(|before| before.metadata.uid != pod.metadata.uid) {
            self.0.remove(name);
        }
        if self.0.len() >= MAX_PODS && !self.0.contains_key(name) {
            return;
        }
        let is_bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        let seen = self.0.entry(name.clone()).or_insert(Seen {
            at: now,
            bound_at: None,
            changed_at: now,
        });
        seen.changed_at = now;
        if is_bound && seen.bound_at.is_none() {
            seen.bound_at = Some(now);
        }
    }

    pub(super) fn of(&self, name: &NamespacedName) -> Option<Seen> {
        self.0.get(name).copied()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, node: Option<&str>) -> Pod {
        let object = json!({"metadata": {"uid": uid}, "spec": {"nodeName": node, "containers": []}});
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn the_first_sight_stays_and_ends_with_the_pod() {
        let at = |second| OffsetDateTime::from_unix_timestamp(second).unwrap();
        let mut times = Times::default();
        let name = NamespacedName::new("shop", "a");
        let (pending, bound) = (pod("1", None), pod("1", Some("n1")));
        times.saw(&name, None, Some(&pending), at(1));
        times.saw(&name, Some(&pending), Some(&bound), at(2));
        times.saw(&name, Some(&bound), Some(&bound), at(3));
        let seen = times.of(&name).unwrap();
        assert_eq!(
            (seen.at, seen.bound_at, seen.changed_at),
            (at(1), Some(at(2)), at(3))
        );
        times.saw(&name, Some(&bound), Some(&pod("2", None)), at(4));
        let seen = times.of(&name).unwrap();
        assert_eq!(
            (seen.at, seen.bound_at),
            (at(4), None),
            "another pod of that name"
        );
        times.saw(&name, None, None, at(5));
        assert_eq!(times.of(&name), None);
    }
}
