//! What is done every few minutes although nothing was told: everything is derived again and compared, and written again.

use std::collections::BTreeMap;
use std::sync::Arc;

use finial_identity::entry::Entry;

use super::{Cluster, rule_before, static_before};
use crate::kubernetes::derive::{Derivation, DerivedEntry, Deriver, Pass};
use crate::kubernetes::outbox::Outbox;
use crate::telemetry::metrics;

impl Cluster {
    /// Derives everything again. A difference is a bug: it is logged, and the new result is used.
    pub(super) fn compare(&mut self) {
        if !self.source.is_settled {
            return;
        }
        self.look_for_orphans();
        self.deriver.others_changed();
        let registry = Arc::clone(&self.registry);
        let is_taken = |entry: &Entry| registry.gives_way(entry);
        let late = self.deriver.pass(&is_taken);
        self.apply(&late);
        let mut anew = Deriver::new(self.deriver.settings().clone());
        self.deriver.objects().facts().for_each(|fact| anew.apply(fact));
        anew.pass(&is_taken);
        let (held, right): (Derivation, Derivation) = (self.deriver.derivation(), anew.derivation());
        if held.entries == right.entries && held.masked == right.masked {
            return;
        }
        metrics().count("kubernetes_drift", &[], 1);
        tracing::error!(
            cluster = self.name(),
            "derived entries were not what the objects say"
        );
        self.apply(&Pass {
            upserts: news(&held.entries, &right.entries),
            removals: gone(&held.entries, &right.entries),
            masked: news(&held.masked, &right.masked),
            unmasked: gone(&held.masked, &right.masked)
                .into_iter()
                .filter(|id| !right.entries.contains_key(id))
                .collect(),
            ..Pass::default()
        });
        self.deriver = anew;
    }

    /// Writes everything again: others may have overwritten a status, and there may have been too many Events.
    pub(super) fn repeat(&self, outbox: &Outbox) {
        if !self.source.is_settled {
            return;
        }
        let objects = self.deriver.objects();
        let Derivation {
            rules,
            statics,
            problems,
            ..
        } = self.deriver.derivation();
        let rules = rules.into_iter().map(|(name, status)| {
            let before = rule_before(objects, &name);
            (name, status, before)
        });
        let statics = statics.into_iter().map(|(name, status)| {
            let before = static_before(objects, &name);
            (name, status, before)
        });
        outbox.put_all(rules.collect(), statics.collect(), self.federations.statuses());
        outbox.offer_problems(problems.into_values().collect(), self.clock.now());
    }
}

fn news(held: &BTreeMap<String, DerivedEntry>, right: &BTreeMap<String, DerivedEntry>) -> Vec<DerivedEntry> {
    let news = right.iter().filter(|(id, entry)| held.get(*id) != Some(*entry));
    news.map(|(_, entry)| entry.clone()).collect()
}

fn gone(held: &BTreeMap<String, DerivedEntry>, right: &BTreeMap<String, DerivedEntry>) -> Vec<String> {
    let gone = held.keys().filter(|id| !right.contains_key(*id));
    gone.cloned().collect()
}
