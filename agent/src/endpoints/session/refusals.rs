//! Callers that were refused, by a short code that they got and that an operator can look up.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use data_encoding::BASE32_NOPAD;
use ring::rand::{SecureRandom as _, SystemRandom};
use time::OffsetDateTime;
use tonic::Status;

use super::view::Selectors;
use super::{attestation_failed, denied};
use crate::endpoints::peer::{StrangerError, UnknownCaller};
use crate::telemetry::metrics;

/// The trailer that carries the code.
const TRAILER: &str = "finial-reference";
/// How many are remembered; the oldest are forgotten.
const REMEMBERED: usize = 4096;
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
    last: Arc<Mutex<VecDeque<(String, Refused)>>>,
}

impl Refusals {
    /// Remembers a refusal and gives the status its code. The text of the status stays as it is: clients look for it.
    pub fn note(&self, refused: Refused, mut status: Status) -> Status {
        let mut random = [0; CODE_BYTES];
        if SystemRandom::new().fill(&mut random).is_err() {
            return status; // Without a code, which is a convenience.
        }
        let code = BASE32_NOPAD.encode(&random).to_ascii_lowercase();
        if let Ok(value) = code.parse() {
            status.metadata_mut().insert(TRAILER, value);
        }
        tracing::debug!(
            reference = code,
            pid = refused.pid,
            reason = refused.reason,
            "caller was refused"
        );
        let mut last = self.locked();
        while last.len() >= REMEMBERED {
            last.pop_front();
        }
        last.push_back((code, refused));
        status
    }

    /// The refusal with this code, while it is remembered. Capitals do not matter.
    pub fn find(&self, code: &str) -> Option<Refused> {
        let code = code.trim().to_ascii_lowercase();
        let last = self.locked();
        let found = last.iter().rev().find(|(held, _refused)| *held == code);
        found.map(|(_code, refused)| refused.clone())
    }

    /// Whether the same process was refused the same for the same facts before. Then it is not logged again.
    pub fn is_repeated(&self, refused: &Refused) -> bool {
        let key = |refused: &Refused| (refused.pid, refused.started_at, refused.access);
        let last = self.locked();
        let mut earlier = last.iter().rev().map(|(_code, held)| held);
        earlier.any(|held| key(held) == key(refused) && held.selectors == refused.selectors)
    }

    fn locked(&self) -> MutexGuard<'_, VecDeque<(String, Refused)>> {
        // Each refusal is whole when it is in the list.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The answer to a caller that is not known. One of another pod's has found a way to a socket that is not its own.
pub(super) fn refuse_unknown(error: &UnknownCaller) -> Status {
    if let UnknownCaller::Stranger(stranger) = error
        && matches!(**stranger, StrangerError::Mismatch(_))
    {
        tracing::warn!(%error, "caller on the socket of a pod is refused");
        metrics().count("workload_api_pod_mismatch", &[], 1);
        return denied();
    }
    tracing::warn!(%error, "caller of the workload API cannot be identified");
    attestation_failed()
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;
    use tonic::Code;

    use super::*;
    use crate::endpoints::session::Access;

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
            refusals.note(refused(1), denied()),
            refusals.note(refused(2), denied()),
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
        let refusals = Refusals::default();
        assert!(!refusals.is_repeated(&refused(1)));
        refusals.note(refused(1), denied());
        assert!(refusals.is_repeated(&refused(1)));
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
                .all(|other| !refusals.is_repeated(other))
        );
    }

    #[test]
    fn only_the_last_are_remembered() {
        let refusals = Refusals::default();
        let first = code(&refusals.note(refused(0), denied()));
        for pid in 1..=u32::try_from(REMEMBERED).unwrap() {
            refusals.note(refused(pid), denied());
        }
        assert!(refusals.find(&first).is_none());
        assert_eq!(refusals.locked().len(), REMEMBERED);
    }
}
