//! Entries for which the server signs nothing, and when the operator is to hear of it.

use std::collections::HashMap;
use std::sync::Arc;

use time::OffsetDateTime;
use tokio::time::Instant;

use crate::node::Reminder;

/// The entries whose last try failed.
#[derive(Debug, Default)]
pub(super) struct Failing {
    reminders: HashMap<Arc<str>, Reminder>,
}

/// An entry could not be signed.
#[derive(Debug)]
pub(super) struct Failure {
    /// The first time since the entry is as it is, or was signed.
    pub(super) is_first: bool,
    /// The operator is to hear of it now.
    pub(super) is_to_tell: bool,
    /// When the SVID expires that there is.
    pub(super) expires_at: Option<OffsetDateTime>,
}

impl Failing {
    /// An entry failed, which has an SVID until then, if it has one.
    pub(super) fn add(&mut self, id: &Arc<str>, expires_at: Option<OffsetDateTime>, now: Instant) -> Failure {
        let is_first = !self.reminders.contains_key(id);
        let reminder = self.reminders.entry(Arc::clone(id)).or_default();
        Failure {
            is_first,
            is_to_tell: reminder.is_due(now),
            expires_at,
        }
    }

    /// An entry was signed, is another now, or is gone.
    pub(super) fn remove(&mut self, id: &str) {
        self.reminders.remove(id);
    }

    pub(super) fn ids(&self) -> Vec<Arc<str>> {
        self.reminders.keys().map(Arc::clone).collect()
    }
}
