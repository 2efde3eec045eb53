//! Callers that were refused, by a short code that they got and that an operator can look up.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use data_encoding::BASE32_NOPAD;
use ring::rand::{SecureRandom as _, SystemRandom};
use time::OffsetDateTime;
use tonic::Status;

use super::view::Selectors;
use super::{attestation_failed, denied};
use crate::endpoints::limits::Holder;
use crate::endpoints::peer::{StrangerError, UnknownCaller};
use crate::telemetry::metrics;

/// The trailer that carries the code.
const TRAILER: &str = "finial-reference";
/// How many are remembered; the oldest of whoever has most are forgotten.
const REMEMBERED: usize = 4096;
/// How many of one user, container or pod.
const REMEMBERED_EACH: usize = 256;
/// Random bytes of a code: eight characters.
const CODE_BYTES: usize = 5;

/// A call that was refused.
#[derive(Clone, Debug)]
pub struct Refused {
    /// When.
    pub at: OffsetDateTime,
    /// What was asked for.
    pub access: super::Access,
    /// Who asked.
    pub pid: u32,
    /// When that process started.
    pub started_at: Option<OffsetDateTime>,
    /// The facts that were found; `None` when an attestor failed.
    pub selectors: Option<Arc<Selectors>>,
    /// Why an attestor failed, or what the caller was told.
    pub reason: String,
}

/// The last calls that were refused. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Refusals {
    kept: Arc<Mutex<Kept>>,
}

/// Refusals by who was refused, each with its code, the latest last. Nobody's make those of others go, unless that one
/// has more of them.
#[derive(Debug, Default)]
struct Kept {
    by_holder: HashMap<Holder, VecDeque<(String, Refused)>>,
    count: usize,
}

impl Refusals {
    /// Remembers a refusal and gives the status its code, the same code while the same process is refused the same. The
    /// text of the status stays as it is: clients look for it.
    pub(in crate::endpoints) fn note(&self, holder: Holder, refused: Refused, mut status: Status) -> Status {
        let code = self.kept().take(holder, &refused).or_else(new_code);
        let Some(code) = code else {
            return status; // Without a code, which is a convenience.
        };
        if let Ok(value) = code.parse() {
            status.metadata_mut().insert(TRAILER, value);
        }
        tracing::debug!(
            reference = code,
            pid = refused.pid,
            reason = refused.reason,
            "caller was refused"
        );
        self.kept().keep(holder, code, refused);
        status
    }

    /// The refusal with this code, while it is remembered. Capitals do not matter.
    pub fn find(&self, code: &str) -> Option<Refused> {
        let code = code.trim().to_ascii_lowercase();
        let kept = self.kept();
        let mut all = kept.by_holder.values().flatten();
        let found = all.find(|(held, _refused)| *held == code);
        found.map(|(_code, refused)| refused.clone())
    }

    /// Whether the same process was refused the same before, for the same reason and facts. What is logged once tells an
    /// operator all.
    pub(in crate::endpoints) fn is_repeated(&self, holder: Holder, refused: &Refused) -> bool {
        let kept = self.kept();
        let mut earlier = kept.by_holder.get(&holder).into_iter().flatten();
        earlier.any(|(_code, held)| held.is_like(refused))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Each refusal is whole when it is in a list, and a count that is a little wrong does no harm.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Takes out the code of an equal refusal.
    fn take(&mut self, holder: Holder, refused: &Refused) -> Option<String> {
        let own = self.by_holder.get_mut(&holder)?;
        let place = own.iter().rposition(|(_code, held)| held.is_like(refused))?;
        let (code, _earlier) = own.remove(place)?;
        self.count -= 1;
        Some(code)
    }

    fn keep(&mut self, holder: Holder, code: String, refused: Refused) {
        let own = self.by_holder.entry(holder).or_default();
        own.push_back((code, refused));
        self.count += 1;
        let full = if own.len() > REMEMBERED_EACH {
            Some(holder)
        } else if self.count > REMEMBERED {
            let most = self.by_holder.iter().max_by_key(|(_holder, own)| own.len());
            most.map(|(holder, _own)| *holder)
        } else {
            None
        };
        let Some(full) = full else { return };
        if let Some(own) = self.by_holder.get_mut(&full) {
            self.count -= usize::from(own.pop_front().is_some());
            if own.is_empty() {
                self.by_holder.remove(&full);
            }
        }
    }
}

impl Refused {
    /// Whether the same process asked for the same, the same was known about it, and the reason was the same.
    fn is_like(&self, other: &Self) -> bool {
        let key = |refused: &Self| (refused.pid, refused.started_at, refused.access);
        key(self) == key(other) && self.reason == other.reason && self.selectors == other.selectors
    }
}

fn new_code() -> Option<String> {
    let mut random = [0; CODE_BYTES];
    SystemRandom::new().fill(&mut random).ok()?;
    Some(BASE32_NOPAD.encode(&random).to_ascii_lowercase())
}

/// The answer to a caller that is not known. One of another pod's has found a way to a socket that is not its own. What
/// is repeated is not logged again: callers call as fast as they like.
pub(super) fn refuse_unknown(error: &UnknownCaller, is_repeated: bool) -> Status {
    if let UnknownCaller::Stranger(stranger) = error
        && matches!(**stranger, StrangerError::Mismatch(_))
    {
        if !is_repeated {
            tracing::warn!(%error, "caller on the socket of a pod is refused");
        }
        metrics().count("workload_api_pod_mismatch", &[], 1);
        return denied();
    }
    if !is_repeated {
        tracing::warn!(%error, "caller of the workload API cannot be identified");
    }
    attestation_failed()
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;
    use tonic::Code;

    use super::*;
    use crate::endpoints::limits::Admission;
    use crate::endpoints::session::Access;

    /// Whose refusals those of this user are.
    fn of(uid: u32) -> Holder {
        Admission::new(8).admit(uid).unwrap().accountable()
    }

    fn refused(pid: u32) -> Refused {
        Refused {
            at: datetime!(2030-01-01 00:00 UTC),
            access: Access::X509Svids,
            pid,
            started_at: None,
            selectors: None,
            reason: "no identity issued".to_owned(),
        }
    }

    fn code(status: &Status) -> String {
        status
            .metadata()
            .get(TRAILER)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned()
    }

    #[test]
    fn a_code_leads_to_the_refusal_and_the_text_stays() {
        let refusals = Refusals::default();
        let (first, second) = (
            refusals.note(of(1000), refused(1), denied()),
            refusals.note(of(0), refused(2), denied()),
        );
        assert_eq!(
            (first.code(), first.message()),
            (Code::PermissionDenied, "no identity issued")
        );
        assert_eq!(code(&first).len(), 8);
        assert_eq!(refusals.find(&code(&first)).unwrap().pid, 1);
        assert_eq!(refusals.find(&code(&second).to_ascii_uppercase()).unwrap().pid, 2);
        assert!(refusals.find("aaaaaaaa").is_none());
    }

    #[test]
    fn a_process_that_asks_again_and_again_is_told_from_one_that_asks_first() {
        let (refusals, one) = (Refusals::default(), of(1000));
        assert!(!refusals.is_repeated(one, &refused(1)));
        refusals.note(one, refused(1), denied());
        assert!(refusals.is_repeated(one, &refused(1)));
        let successor = Refused {
            started_at: Some(datetime!(2030-01-01 00:00 UTC)),
            ..refused(1)
        };
        let of_other_facts = Refused {
            selectors: Some(Arc::default()),
            ..refused(1)
        };
        assert!(
            [refused(2), successor, of_other_facts]
                .iter()
                .all(|other| !refusals.is_repeated(one, other))
        );
    }

    #[test]
    fn the_same_refusal_of_a_process_has_one_code_and_another_has_another() {
        let (refusals, one) = (Refusals::default(), of(1000));
        let note = |refused: Refused| code(&refusals.note(one, refused, denied()));
        let first = note(refused(1));
        let later = Refused {
            at: datetime!(2030-01-02 00:00 UTC),
            ..refused(1)
        };
        assert_eq!(note(later.clone()), first);
        assert_eq!(refusals.find(&first).unwrap().at, later.at);
        assert_eq!(refusals.kept().count, 1);
        let others = [
            refused(2),
            Refused {
                reason: "docker cannot tell".to_owned(),
                ..refused(1)
            },
            Refused {
                access: Access::JwtBundles,
                ..refused(1)
            },
        ];
        assert!(others.into_iter().all(|other| note(other) != first));
    }

    #[test]
    fn who_is_refused_again_and_again_leaves_those_of_others_in_place() {
        let refusals = Refusals::default();
        let others: Vec<String> = (1..=40)
            .map(|uid| code(&refusals.note(of(uid), refused(uid), denied())))
            .collect();
        let mut own = Vec::new();
        for pid in 0..10_000 {
            own.push(code(&refusals.note(of(1000), refused(pid), denied())));
        }
        assert!(others.iter().all(|code| refusals.find(code).is_some()));
        let kept = own.iter().filter(|code| refusals.find(code).is_some());
        assert_eq!(kept.count(), REMEMBERED_EACH);
        assert!(refusals.find(&own[9_999]).is_some());
        // As many users as there are, the bound on all of them holds.
        for uid in 2000..2100 {
            for pid in 0..100 {
                refusals.note(of(uid), refused(pid), denied());
            }
        }
        assert!(others.iter().all(|code| refusals.find(code).is_some()));
        let kept = refusals.kept();
        let held: usize = kept.by_holder.values().map(VecDeque::len).sum();
        assert_eq!((held, kept.count), (REMEMBERED, REMEMBERED));
    }
}
