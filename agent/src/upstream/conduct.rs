//! Whether the server at the other end does what only its answers tell. One that signs nothing, while its connection and
//! its streams work, is left for another; and so is one that does not answer.
//!
//! A single failure tells nothing: there must be some in a row, for some time. A single call without an answer has taken
//! so long that it tells enough. Each time that a server is left the agent becomes more patient, so that it does not go
//! back and forth between servers that have the same trouble, nor because of one entry that no server signs. It stays
//! less patient with silence: behind the same address another server may be there by now, or the way to it be lost.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{Line, RPC_TIMEOUT, SignOutcome, Upstream, UpstreamError};

/// What a server may fail at on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Duty {
    SignX509,
    SignJwt,
    RenewAgent,
}

/// How the present server did its duties lately.
#[derive(Debug, Default)]
pub(super) struct Conduct {
    records: Mutex<Records>,
}

#[derive(Debug, Default)]
struct Records {
    sign_x509: Record,
    sign_jwt: Record,
    renew_agent: Record,
    /// Calls without an answer since the last one of the kind that got one.
    unanswered: HashMap<&'static str, Failing>,
    /// How often a server was left because of them.
    left_unanswered: Left,
}

#[derive(Debug, Default)]
struct Record {
    /// The failures in a row, if the last one was a failure.
    failing: Option<Failing>,
    /// How often a server was left because of them.
    left: Left,
}

/// How often a server was left lately, and when that was the last time.
#[derive(Clone, Copy, Debug, Default)]
struct Left(Option<(u32, Instant)>);

#[derive(Clone, Copy, Debug)]
struct Failing {
    server: SocketAddr,
    since: Instant,
    times: u32,
}

impl Duty {
    /// For how long failures are borne at first. An SVID of the agent that is due may not have long to live.
    fn patience(self) -> Duration {
        match self {
            Self::SignX509 | Self::SignJwt => Duration::from_secs(30),
            Self::RenewAgent => Duration::from_secs(10),
        }
    }

    /// For traces and logs.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::SignX509 => "sign X509-SVIDs",
            Self::SignJwt => "sign JWT-SVID",
            Self::RenewAgent => "renew agent",
        }
    }
}

impl Upstream {
    /// Notes whether the server did its duty, unless that is not known, and leaves it when it has failed for too long:
    /// for another address, or, where there is one address, for whatever server a new connection to it reaches (the
    /// Service of several replicas).
    pub(super) fn note_conduct(&self, line: &Line, duty: Duty, is_done: Option<bool>) {
        let conduct = &self.shared.conduct;
        // What came of a connection that was given up says nothing about the present one, nor does one that was never made
        // about a server.
        let server = line.contact.address().filter(|_| self.is_held(line));
        let (Some(is_done), Some(server)) = (is_done, server) else {
            return;
        };
        if is_done {
            return conduct.done(duty);
        }
        if conduct.failed(duty, server, Instant::now()) && self.give_up(line) {
            conduct.note_left(duty, Instant::now());
            tracing::warn!(
                %server,
                what = duty.name(),
                "server is left for another, if there is one: this fails there although it can be reached"
            );
        }
    }

    /// Notes that a call got no answer, and leaves the server like one that fails for too long. A connection that was
    /// never made is begun anew at once.
    pub(super) fn note_silence(&self, line: &Line, what: &'static str) {
        let conduct = &self.shared.conduct;
        let Some(server) = line.contact.address() else {
            self.give_up(line);
            return;
        };
        if self.is_held(line) && conduct.unanswered(what, server, Instant::now()) && self.give_up(line) {
            conduct.note_left_unanswered(Instant::now());
            tracing::warn!(%server, what, "server is left for another, if there is one: it does not answer");
        }
    }
}

/// What the answer to a batch tells about the server: an entry that it does not know, or refuses, tells nothing. What
/// silence tells is noted elsewhere.
pub(super) fn is_signing(answer: &Result<Vec<SignOutcome>, UpstreamError>) -> Option<bool> {
    let outcomes = match answer {
        Ok(outcomes) => outcomes,
        Err(error) => return is_failure(error).then_some(false),
    };
    let is_done = outcomes
        .iter()
        .any(|outcome| matches!(outcome, SignOutcome::Signed(_)));
    let has_failed = outcomes.iter().any(|outcome| {
        matches!(
            outcome,
            SignOutcome::Failed {
                may_be_of_one_server: true,
                ..
            }
        )
    });
    (is_done || has_failed).then_some(is_done)
}

/// The same of an answer to one request.
pub(super) fn is_done<T>(answer: &Result<T, UpstreamError>) -> Option<bool> {
    match answer {
        Ok(_) => Some(true),
        Err(error) => is_failure(error).then_some(false),
    }
}

fn is_failure(error: &UpstreamError) -> bool {
    error.may_be_of_one_server() && !matches!(error, UpstreamError::Unanswered(_))
}

impl Conduct {
    fn done(&self, duty: Duty) {
        self.locked().of(duty).failing = None;
    }

    /// Notes a failure; tells whether the server has failed for too long. Then the failures are counted anew.
    fn failed(&self, duty: Duty, server: SocketAddr, now: Instant) -> bool {
        let mut records = self.locked();
        let record = records.of(duty);
        let patience = record.left.patience(duty.patience(), MOST_PATIENT, now);
        let first = Failing {
            server,
            since: now,
            times: 0,
        };
        let mut failing = record
            .failing
            .take()
            .filter(|failing| failing.server == server)
            .unwrap_or(first);
        failing.times = failing.times.saturating_add(1);
        let is_too_long = failing.times >= FEWEST && now.duration_since(failing.since) >= patience;
        record.failing = (!is_too_long).then_some(failing);
        is_too_long
    }

    /// What is asked of the next server is counted anew.
    fn note_left(&self, duty: Duty, now: Instant) {
        let mut records = self.locked();
        records.unanswered.clear();
        records.of(duty).left.note(now);
    }

    /// A call of this kind got an answer.
    pub(super) fn answered(&self, what: &'static str) {
        self.locked().unanswered.remove(what);
    }

    /// Notes a call without an answer, which began as long ago as calls are waited for; tells whether the server has been
    /// silent for too long.
    fn unanswered(&self, what: &'static str, server: SocketAddr, now: Instant) -> bool {
        let mut records = self.locked();
        let patience = records
            .left_unanswered
            .patience(RPC_TIMEOUT, LONGEST_SILENCE, now);
        let first = Failing {
            server,
            since: now.checked_sub(RPC_TIMEOUT).unwrap_or(now),
            times: 0,
        };
        let failing = records.unanswered.entry(what).or_insert(first);
        if failing.server != server {
            *failing = first;
        }
        now.duration_since(failing.since) >= patience
    }

    /// The same because of silence.
    fn note_left_unanswered(&self, now: Instant) {
        let mut records = self.locked();
        records.unanswered.clear();
        records.left_unanswered.note(now);
    }

    fn locked(&self) -> MutexGuard<'_, Records> {
        // Each field is replaced whole, so a panic cannot leave one half-changed.
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Records {
    fn of(&mut self, duty: Duty) -> &mut Record {
        match duty {
            Duty::SignX509 => &mut self.sign_x509,
            Duty::SignJwt => &mut self.sign_jwt,
            Duty::RenewAgent => &mut self.renew_agent,
        }
    }
}

impl Left {
    /// Doubled each time that a server is left, and as at first when none was left for long.
    fn patience(&mut self, first: Duration, longest: Duration, now: Instant) -> Duration {
        self.0 = self.0.filter(|(_, at)| now.duration_since(*at) < FORGOTTEN);
        let times = self.0.map_or(0, |(times, _at)| times);
        first.saturating_mul(2_u32.saturating_pow(times)).min(longest)
    }

    fn note(&mut self, now: Instant) {
        let times = self.0.map_or(0, |(times, _at)| times);
        self.0 = Some((times.saturating_add(1), now));
    }
}

/// So many failures in a row, at least.
const FEWEST: u32 = 3;
const MOST_PATIENT: Duration = Duration::from_secs(10 * 60);
/// The same with a server that does not answer.
const LONGEST_SILENCE: Duration = Duration::from_secs(2 * 60);
/// After so long without leaving a server the agent is as impatient as at first.
const FORGOTTEN: Duration = Duration::from_secs(30 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn server(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    /// A failure each second, for so long; the seconds after which it was too long.
    fn fail(conduct: &Conduct, start: Instant, seconds: u32) -> Vec<u32> {
        let is_due = |second: &u32| {
            let now = start + SECOND * *second;
            let is_due = conduct.failed(Duty::SignX509, server(1), now);
            if is_due {
                conduct.note_left(Duty::SignX509, now);
            }
            is_due
        };
        (0..seconds).filter(is_due).collect()
    }

    #[test]
    fn a_server_that_fails_is_left_after_a_while_and_each_time_later() {
        let conduct = Conduct::default();
        let start = Instant::now();
        // A second passes between the last failure that was counted and the next.
        let expected = [30, 91, 212, 453, 934, 1535, 2136];
        assert_eq!(fail(&conduct, start, 2200), expected);
        conduct.done(Duty::SignX509);
        let later = start + SECOND * 2136 + FORGOTTEN;
        assert_eq!(fail(&conduct, later, 31), [30]);
    }

    #[test]
    fn rare_failures_and_those_of_other_servers_or_before_a_success_do_not_count() {
        let conduct = Conduct::default();
        let start = Instant::now();
        let failed = |server, seconds| conduct.failed(Duty::SignX509, server, start + SECOND * seconds);
        assert!(!failed(server(1), 0) && !failed(server(1), 60));
        assert!(!failed(server(2), 61) && !failed(server(2), 62));
        conduct.done(Duty::SignX509);
        assert!(!failed(server(2), 100) && !failed(server(2), 120));
        assert!(failed(server(2), 130));
        // Another duty is another matter.
        assert!(!conduct.failed(Duty::RenewAgent, server(2), start + SECOND * 131));
    }

    #[test]
    fn a_server_that_is_silent_is_left_at_once_and_each_time_later_up_to_two_minutes() {
        let conduct = Conduct::default();
        let start = Instant::now();
        let one = server(1);
        let silent = |what, second: u32| {
            let now = start + SECOND * second;
            let is_due = conduct.unanswered(what, one, now);
            if is_due {
                conduct.note_left_unanswered(now);
            }
            is_due
        };
        // A call after the other, each of which is waited for.
        let left = (1..40).filter(|call| silent("sign", call * 30));
        assert_eq!(
            left.collect::<Vec<_>>(),
            [1, 3, 7, 11, 15, 19, 23, 27, 31, 35, 39]
        );
        // Another kind of call begins anew, and so does one that was answered meanwhile, or that another server got.
        assert!(!silent("watch", 1200) && !silent("watch", 1259));
        conduct.answered("watch");
        assert!(!silent("watch", 1290));
        let other = |second| conduct.unanswered("watch", server(2), start + SECOND * second);
        assert!(!other(1379) && !other(1468) && other(1470));
        // Long after the last time one call is enough again.
        let later = start + SECOND * 1170 + FORGOTTEN;
        assert!(conduct.unanswered("bundle", one, later));
    }

    #[test]
    fn what_the_server_refuses_tells_nothing_about_it_and_one_signature_tells_enough() {
        let failed = |may_be_of_one_server| SignOutcome::Failed {
            why: "x".to_owned(),
            may_be_of_one_server,
        };
        let signed = || SignOutcome::Signed(Vec::new());
        let unknown = || SignOutcome::NotFound("x".to_owned());
        for (outcomes, expected) in [
            (vec![failed(true), unknown(), failed(false)], Some(false)),
            (vec![failed(true), signed()], Some(true)),
            (vec![unknown(), failed(false)], None),
            (vec![], None),
        ] {
            assert_eq!(is_signing(&Ok(outcomes)), expected);
        }
        let away = || UpstreamError::Unavailable("x".to_owned());
        assert_eq!(is_signing(&Err(away())), Some(false));
        assert_eq!(is_done::<()>(&Err(away())), Some(false));
        assert_eq!(is_signing(&Err(UpstreamError::Unanswered("x"))), None);
        assert_eq!(is_done::<()>(&Err(UpstreamError::Superseded)), None);
    }
}
