//! Whether a caller gets its answer now, waits for something, or is refused.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tonic::Status;

use super::Session;
use crate::endpoints::session::statuses::{denied, ending};
use crate::endpoints::session::{Access, ISSUE_WAIT, View};
use crate::svids::Snapshot;

/// How long a change takes at most from the server to here, when it is pushed.
const PUSH_LAG: Duration = Duration::from_millis(500);
/// How often a caller looks whether an expired SVID has left the cache.
const EXPIRY_LOOK: Duration = Duration::from_secs(1);
/// How long the agent itself waits for an SVID: its health check has the patience of a kubelet.
const OWN_WAIT: Duration = Duration::from_secs(1);

/// What to do about the present snapshot.
pub(super) enum Verdict {
    Ready(Arc<View>),
    /// Look again when something changes, or at this time.
    Wait(Option<Instant>),
    End(Status),
}

impl Session {
    pub(super) fn judge(&mut self, snapshot: &Arc<Snapshot>) -> Verdict {
        if self.shared.parts.stop.is_stopped() || !self.node.borrow().may_serve() {
            return Verdict::End(ending(&self.node));
        }
        let now = Instant::now();
        let synced = snapshot.synced_at.is_some();
        let in_time_for_sync = now < self.opened + self.shared.parts.policy.sync_interval;
        let unsynced = || {
            if in_time_for_sync && !self.is_own_process() {
                Verdict::Wait(Some(self.opened + self.shared.parts.policy.sync_interval))
            } else {
                Verdict::End(Status::unavailable(
                    "agent has not been told its entries by the server yet",
                ))
            }
        };
        let mut view = self.shared.views.view(snapshot, &self.selectors);
        if self.is_on_behalf {
            view = view.handed_out();
        }
        if matches!(self.access, Access::X509Svids | Access::Secrets)
            && view.holds_expired(self.shared.parts.clock.now())
        {
            // The machine slept, or its clock was set: the cache is about to notice.
            self.subscription.hurry();
            return if self.is_own_process() {
                Verdict::End(Status::unavailable("an SVID has expired"))
            } else {
                Verdict::Wait(Some(now + EXPIRY_LOOK))
            };
        }
        if self.access == Access::Secrets {
            // What a caller has is not known before the entries are synced, and without it the bundle may be an old one.
            return if synced || !view.is_empty() {
                Verdict::Ready(view)
            } else {
                Verdict::Wait(None)
            };
        }
        if view.is_empty() {
            let free = self.access == Access::Validation
                || (matches!(
                    self.access,
                    Access::X509Bundles | Access::JwtBundles | Access::WitBundles
                ) && self.shared.parts.policy.allow_unauthenticated_verifiers
                    && !self.is_on_behalf);
            return match self.grace(snapshot) {
                _ if !synced => unsynced(),
                _ if free => Verdict::Ready(self.shared.views.nobody(snapshot)),
                Some(until) if !self.answered && now < until => Verdict::Wait(Some(until)),
                _ => Verdict::End(denied()),
            };
        }
        // Before the first sync the own bundle has no keys for tokens.
        if !synced
            && matches!(
                self.access,
                Access::JwtBundles | Access::WitBundles | Access::Validation
            )
        {
            return unsynced();
        }
        if self.access == Access::X509Svids {
            return self.judge_issued(view, now);
        }
        Verdict::Ready(view)
    }

    /// An identity that is being signed for the first time is waited for rather than left out, for a while. What there
    /// is waits neither for one that could not be signed nor for a server that does not answer.
    fn judge_issued(&mut self, view: Arc<View>, now: Instant) -> Verdict {
        let (issued, missing) = view.issued_and_missing();
        if missing == 0 {
            (self.incomplete_since, self.signing_trouble) = (None, None);
            return Verdict::Ready(view);
        }
        self.subscription.hurry();
        if self.is_own_process() {
            // What is not held until somebody wants it is signed meanwhile.
            let until = self.opened + OWN_WAIT;
            return match issued {
                0 if now < until => Verdict::Wait(Some(until)),
                0 => Verdict::End(not_issued()),
                _ => Verdict::Ready(view),
            };
        }
        if !self.is_worth_waiting(&view) && issued > 0 {
            return Verdict::Ready(view);
        }
        let until = *self.incomplete_since.get_or_insert(now) + ISSUE_WAIT;
        if now < until {
            Verdict::Wait(Some(until))
        } else if issued > 0 {
            Verdict::Ready(view)
        } else if self.answered {
            // The caller's SVIDs run out while the server cannot be reached; the next ones will come on this stream.
            Verdict::Wait(None)
        } else {
            Verdict::End(not_issued())
        }
    }

    /// Whether an SVID that is not there may come at any moment. When it no longer may, [`Session::changed`] completes.
    pub fn is_worth_waiting(&mut self, view: &View) -> bool {
        let svids = &self.shared.parts.svids;
        let trouble = self
            .signing_trouble
            .get_or_insert_with(|| svids.signing_trouble());
        let in_trouble = *trouble.borrow_and_update();
        !in_trouble && view.awaits_svid()
    }

    /// Until when a caller without identity may yet get one: it may have been registered after the last sync,
    /// if it is younger than that. Short, so that programs that were never registered hear so soon, and in any
    /// case before they stop listening.
    fn grace(&self, snapshot: &Snapshot) -> Option<Instant> {
        let started_at = self.workload.started_at()?;
        let synced_at = snapshot.synced_at.max(self.shared.parts.svids.synced_at());
        if self.is_own_process() || synced_at.is_none_or(|synced_at| synced_at > started_at) {
            return None;
        }
        let lag = if self.shared.parts.sync.is_pushed() {
            PUSH_LAG.min(self.shared.parts.policy.sync_interval)
        } else {
            self.shared.parts.policy.sync_interval
        };
        let age = Duration::try_from(self.shared.parts.clock.now() - started_at).unwrap_or_default();
        let left = (2 * lag).checked_sub(age)?;
        let patience = self.patience.map_or(lag, |patience| patience * 3 / 4);
        // Counted from the call's begin, not again with each look.
        Some((Instant::now() + left).min(self.opened + lag.min(patience)))
    }
}

fn not_issued() -> Status {
    Status::unavailable("no X509-SVID has been issued yet")
}
