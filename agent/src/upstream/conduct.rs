//! Whether the server at the other end does what only its answers tell. One that signs nothing, while its connection and
//! its streams work, is left for another.
//!
//! A single failure tells nothing: there must be some in a row, for some time. Each time that a server is left the agent
//! becomes more patient, so that it does not go back and forth between servers that have the same
//! trouble, nor because of one entry that no server signs.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{Line, SignOutcome, Upstream, UpstreamError};

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
}

#[derive(Debug, Default)]
struct Record {
    /// The failures in a row, if the last one was a failure.
    failing: Option<Failing>,
    /// How often a server was left because of them, and when that was the last time.
    left: Option<(u32, Instant)>,
}

#[derive(Debug)]
struct Failing {
    server: Option<SocketAddr>,
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
        let shared = &self.shared;
        let server = line.contact.address();
        // What came of a connection that was given up says nothing about the present one, nor does one that was never made
        // about a server.
        let Some(is_done) = is_done.filter(|_| server.is_some() && self.is_held(line)) else {
            return;
        };
        if is_done {
            return shared.conduct.done(duty);
        }
        if shared.conduct.failed(duty, server, Instant::now()) && self.give_up(line) {
            shared.conduct.note_left(duty, Instant::now());
            tracing::warn!(
                server = server.map(tracing::field::display),
                what = duty.name(),
                "server is left for another, if there is one: this fails there although it can be reached"
            );
        }
    }
}

/// What the answer to a batch tells about the server: an entry that it does not know, or refuses, tells nothing.
pub(super) fn is_signing(answer: &Result<Vec<SignOutcome>, UpstreamError>) -> Option<bool> {
    let outcomes = match answer {
        Ok(outcomes) => outcomes,
        Err(error) => return error.may_be_of_one_server().then_some(false),
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
        Err(error) => error.may_be_of_one_server().then_some(false),
    }
}

impl Conduct {
    fn done(&self, duty: Duty) {
        self.locked().of(duty).failing = None;
    }

    /// Notes a failure; tells whether the server has failed for too long. Then the failures are counted anew.
    fn failed(&self, duty: Duty, server: Option<SocketAddr>, now: Instant) -> bool {
        let mut records = self.locked();
        let record = records.of(duty);
        let patience = record.patience(duty, now);
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

    fn note_left(&self, duty: Duty, now: Instant) {
        let mut records = self.locked();
        let record = records.of(duty);
        let times = record.left.map_or(0, |(times, _at)| times);
        record.left = Some((times.saturating_add(1), now));
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

impl Record {
    /// Doubled each time that a server is left, and as at first when none was left for long.
    fn patience(&mut self, duty: Duty, now: Instant) -> Duration {
        self.left = self.left.filter(|(_, at)| now.duration_since(*at) < FORGOTTEN);
        let times = self.left.map_or(0, |(times, _at)| times);
        let doubled = duty.patience().saturating_mul(2_u32.saturating_pow(times));
        doubled.min(MOST_PATIENT)
    }
}

/// So many failures in a row, at least.
const FEWEST: u32 = 3;
const MOST_PATIENT: Duration = Duration::from_secs(10 * 60);
/// After so long without leaving a server the agent is as impatient as at first.
const FORGOTTEN: Duration = Duration::from_secs(30 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn server(port: u16) -> Option<SocketAddr> {
        Some(([127, 0, 0, 1], port).into())
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
        assert_eq!(is_signing(&Err(UpstreamError::timed_out("x"))), Some(false));
        assert_eq!(is_done::<()>(&Err(UpstreamError::Superseded)), None);
    }
}
