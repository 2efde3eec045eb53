//! When the present server is left because of its answers, or for want of them: its connection and its streams work, but
//! it signs or renews nothing, or an RPC gets no answer. (Streams that fail: `svids/feed.rs`.) What is noted here comes
//! from `duties.rs` and from `Upstream::timed`.
//!
//! A single failure tells nothing: there must be some in a row, at one connection, for longer than the agent's
//! patience. A single call without an answer has taken so long that it tells enough. Each time that a server is left the
//! agent becomes more patient, so that it does not go back and forth between servers that have the same trouble, nor
//! because of one entry that no server signs. It stays less patient with silence: behind the same address another server
//! may be there by now, or the way to it be lost. The patience is drawn anew for each row of failures, so that agents
//! which have the same trouble do not move together.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use finial_identity::process::Jitter;
use tokio::time::Instant;

use super::dial::Contact;
use super::{Line, RPC_TIMEOUT, SignOutcome, Upstream, UpstreamError};

/// What a server may fail at on its own. Signing WIT-SVIDs is none: see `Upstream::sign_wit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Duty {
    SignX509,
    SignJwt,
    RenewAgent,
}

/// What an answer tells about a duty of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    Done,
    Failed,
    Nothing,
}

/// How the present server did its duties lately.
#[derive(Debug)]
pub(super) struct Conduct {
    records: Mutex<Records>,
    jitter: Jitter,
}

#[derive(Debug, Default)]
struct Records {
    sign_x509: Record,
    sign_jwt: Record,
    renew_agent: Record,
    /// Calls without an answer since the last one of the kind that got one.
    unanswered: HashMap<&'static str, Streak>,
    /// How often a server was left because of them.
    left_unanswered: Left,
}

#[derive(Debug, Default)]
struct Record {
    /// The failures in a row, if the last one was a failure.
    failing: Option<Streak>,
    /// How often a server was left because of them.
    left: Left,
}

/// How often a server was left lately, and when that was the last time.
#[derive(Clone, Copy, Debug, Default)]
struct Left(Option<(u32, Instant)>);

/// Failures in a row.
#[derive(Clone, Debug)]
struct Streak {
    /// The connection: behind the address of another one may be another server.
    contact: Contact,
    since: Instant,
    last: Instant,
    times: u32,
    /// For how long they are borne.
    patience: Duration,
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
    pub(super) fn note_conduct(&self, line: &Line, duty: Duty, finding: Finding) {
        let conduct = &self.shared.conduct;
        // What came of a connection that was given up says nothing about the present one, nor does one that could not be
        // made about a server.
        let Some(server) = line.contact.address().filter(|_| self.is_held(line)) else {
            return;
        };
        let longest = self.longest_patience(line, duty.name());
        let is_due = match finding {
            Finding::Nothing => return,
            Finding::Done => return conduct.done(duty),
            Finding::Failed => conduct.failed(duty, &line.contact, longest, Instant::now()),
        };
        if is_due && self.give_up(line) {
            conduct.note_left(duty, Instant::now());
            tracing::warn!(
                %server,
                what = duty.name(),
                "server is left for another, if there is one: this fails there although it can be reached"
            );
        }
    }

    /// Notes that a call got no answer, and leaves the server like one that fails for too long. A connection that is not
    /// made yet is begun anew at once.
    pub(super) fn note_silence(&self, line: &Line, what: &'static str) {
        let conduct = &self.shared.conduct;
        let Some(server) = line.contact.address() else {
            self.give_up(line);
            return;
        };
        let longest = self.longest_patience(line, what);
        let is_due = || conduct.unanswered(what, &line.contact, longest, Instant::now());
        if self.is_held(line) && is_due() && self.give_up(line) {
            conduct.note_left_unanswered(Instant::now());
            tracing::warn!(%server, what, "server is left for another, if there is one: it does not answer");
        }
    }

    /// However often servers were left: an agent whose SVID is not renewed must have come to all of them while it lives.
    fn longest_patience(&self, line: &Line, what: &str) -> Duration {
        if what != Duty::RenewAgent.name() {
            return Duration::MAX;
        }
        let left = line.svid.leaf().not_after() - self.shared.clock.now();
        Duration::try_from(left).unwrap_or_default() / PART_OF_LIFE
    }
}

/// What the answer to a batch tells about the server: an entry that it does not know, or refuses, tells nothing. What
/// silence tells is noted elsewhere.
pub(super) fn of_batch(answer: &Result<Vec<SignOutcome>, UpstreamError>) -> Finding {
    let outcomes = match answer {
        Ok(outcomes) => outcomes,
        Err(error) => return of_error(error),
    };
    let is_done = |outcome: &SignOutcome| matches!(outcome, SignOutcome::Signed(_));
    let has_failed = |outcome: &SignOutcome| matches!(outcome, SignOutcome::Failed(failure) if failure.may_be_of_one_server);
    if outcomes.iter().any(is_done) {
        Finding::Done
    } else if outcomes.iter().any(has_failed) {
        Finding::Failed
    } else {
        Finding::Nothing
    }
}

/// The same of an answer to one request.
pub(super) fn of_answer<T>(answer: &Result<T, UpstreamError>) -> Finding {
    answer.as_ref().map_or_else(of_error, |_| Finding::Done)
}

fn of_error(error: &UpstreamError) -> Finding {
    if error.may_be_of_one_server() && !matches!(error, UpstreamError::Unanswered(_)) {
        Finding::Failed
    } else {
        Finding::Nothing
    }
}

impl Conduct {
    pub(super) fn new(jitter: Jitter) -> Self {
        Self {
            records: Mutex::default(),
            jitter,
        }
    }

    fn done(&self, duty: Duty) {
        self.locked().of(duty).failing = None;
    }

    /// Notes a failure; tells whether the server has failed for too long. Then the failures are counted anew.
    fn failed(&self, duty: Duty, contact: &Contact, longest: Duration, now: Instant) -> bool {
        let mut records = self.locked();
        let record = records.of(duty);
        let begin = || {
            let patience = record.left.patience(duty.patience(), MOST_PATIENT, now);
            Streak::new(contact, now, self.jitter.wide_around(patience))
        };
        let held = record.failing.take();
        let mut streak = held
            .filter(|streak| streak.goes_on(contact, now))
            .unwrap_or_else(begin);
        let is_too_long = streak.grow(now) >= longest.min(streak.patience) && streak.times >= FEWEST;
        record.failing = (!is_too_long).then_some(streak);
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
    fn unanswered(&self, what: &'static str, contact: &Contact, longest: Duration, now: Instant) -> bool {
        let mut records = self.locked();
        let begun = now.checked_sub(RPC_TIMEOUT).unwrap_or(now);
        let held = records.unanswered.remove(what);
        let mut streak = held
            .filter(|streak| streak.goes_on(contact, begun))
            .unwrap_or_else(|| {
                let left = &mut records.left_unanswered;
                let patience = match left.patience(RPC_TIMEOUT, LONGEST_SILENCE, now) {
                    // The first call is enough, whatever is drawn.
                    RPC_TIMEOUT => RPC_TIMEOUT,
                    longer => self.jitter.wide_around(longer),
                };
                Streak::new(contact, begun, patience)
            });
        let is_too_long = streak.grow(now) >= longest.min(streak.patience);
        records.unanswered.insert(what, streak);
        is_too_long
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

impl Streak {
    fn new(contact: &Contact, since: Instant, patience: Duration) -> Self {
        Self {
            contact: contact.clone(),
            since,
            last: since,
            times: 0,
            patience,
        }
    }

    /// Whether what began then is part of it: failures long apart are no row.
    fn goes_on(&self, contact: &Contact, begun: Instant) -> bool {
        self.contact.is(contact) && begun.duration_since(self.last) < self.patience.max(LONGEST_GAP)
    }

    /// One more; for how long there have been failures.
    fn grow(&mut self, now: Instant) -> Duration {
        self.times = self.times.saturating_add(1);
        self.last = now;
        now.duration_since(self.since)
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
/// Longer than the agent waits before it tries again.
const LONGEST_GAP: Duration = Duration::from_secs(60);
/// How many servers that do not renew an SVID may be left in what it has to live, at least.
const PART_OF_LIFE: u32 = 8;
/// After so long without leaving a server the agent is as impatient as at first.
const FORGOTTEN: Duration = Duration::from_secs(30 * 60);

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use finial_identity::peer::SharedBundles;
    use finial_identity::process::Clock;
    use finial_identity::spiffe_id::TrustDomain;
    use finial_identity::x509::{Certificate, X509Svid};
    use tokio::sync::watch;

    use super::super::{SignFailure, UpstreamSettings};
    use super::*;
    use crate::test_pki::Authority;
    use crate::test_server::TestServer;

    const SECOND: Duration = Duration::from_secs(1);
    const AGENT: &str = "/spire/agent/x/1";

    fn even() -> Jitter {
        Jitter::new(|| 0.5)
    }

    /// A failure each second, for so long; the seconds after which it was too long.
    fn fail(conduct: &Conduct, start: Instant, seconds: u32) -> Vec<u32> {
        let contact = Contact::default();
        let is_due = |second: &u32| {
            let now = start + SECOND * *second;
            let is_due = conduct.failed(Duty::SignX509, &contact, Duration::MAX, now);
            if is_due {
                conduct.note_left(Duty::SignX509, now);
            }
            is_due
        };
        (0..seconds).filter(is_due).collect()
    }

    #[test]
    fn a_server_that_fails_is_left_after_a_while_and_each_time_later() {
        let conduct = Conduct::new(even());
        let start = Instant::now();
        // A second passes between the last failure that was counted and the next.
        let expected = [30, 91, 212, 453, 934, 1535, 2136];
        assert_eq!(fail(&conduct, start, 2200), expected);
        conduct.done(Duty::SignX509);
        let later = start + SECOND * 2136 + FORGOTTEN;
        assert_eq!(fail(&conduct, later, 31), [30]);
    }

    #[test]
    fn agents_that_begin_to_fail_together_do_not_leave_together_and_each_draws_once() {
        let left = |drawn: f64| {
            let draws = Arc::new(AtomicU32::new(0));
            let counted = Arc::clone(&draws);
            let conduct = Conduct::new(Jitter::new(move || {
                counted.fetch_add(1, Ordering::Relaxed);
                drawn
            }));
            let left = fail(&conduct, Instant::now(), 40);
            (left, draws.load(Ordering::Relaxed))
        };
        // The failures after the server was left are another row.
        assert_eq!(left(0.0), (vec![24], 2));
        assert_eq!(left(0.5), (vec![30], 2));
        assert_eq!(left(1.0), (vec![36], 2));
    }

    #[test]
    fn rare_failures_and_those_of_other_connections_or_before_a_success_do_not_count() {
        let conduct = Conduct::new(even());
        let start = Instant::now();
        let (one, two) = (Contact::default(), Contact::default());
        let failed = |contact, seconds| {
            conduct.failed(Duty::SignX509, contact, Duration::MAX, start + SECOND * seconds)
        };
        assert!(!failed(&one, 0) && !failed(&one, 60) && !failed(&one, 120));
        assert!(!failed(&one, 140) && !failed(&two, 149) && !failed(&two, 150));
        conduct.done(Duty::SignX509);
        assert!(!failed(&two, 200) && !failed(&two, 220));
        assert!(failed(&two, 230));
        // Another duty is another matter.
        let other = conduct.failed(Duty::RenewAgent, &two, Duration::MAX, start + SECOND * 231);
        assert!(!other);
    }

    #[test]
    fn a_server_that_is_silent_is_left_at_once_and_each_time_later_up_to_two_minutes() {
        let conduct = Conduct::new(even());
        let start = Instant::now();
        let (one, two) = (Contact::default(), Contact::default());
        let unanswered = |contact, what, second: u32| {
            conduct.unanswered(what, contact, Duration::MAX, start + SECOND * second)
        };
        let silent = |what, second: u32| {
            let is_due = unanswered(&one, what, second);
            if is_due {
                conduct.note_left_unanswered(start + SECOND * second);
            }
            is_due
        };
        // A call after the other, each of which is waited for.
        let left = (1..40).filter(|call| silent("sign", call * 30));
        assert_eq!(
            left.collect::<Vec<_>>(),
            [1, 3, 7, 11, 15, 19, 23, 27, 31, 35, 39]
        );
        // Another kind of call begins anew, and so does one that was answered meanwhile, that another server got, or that is
        // far from the one before.
        assert!(!silent("watch", 1200) && !silent("watch", 1259));
        conduct.answered("watch");
        assert!(!silent("watch", 1290));
        assert!(!unanswered(&two, "watch", 1379) && !unanswered(&two, "watch", 1468));
        assert!(unanswered(&two, "watch", 1470));
        assert!(!unanswered(&two, "poll", 1500) && !unanswered(&two, "poll", 1650));
        // Long after the last time one call is enough again.
        let later = start + SECOND * 1170 + FORGOTTEN;
        assert!(conduct.unanswered("bundle", &one, Duration::MAX, later));
    }

    #[test]
    fn one_call_without_an_answer_is_enough_whatever_is_drawn() {
        let conduct = Conduct::new(Jitter::new(|| 1.0));
        let (start, contact) = (Instant::now(), Contact::default());
        let silent = |second| conduct.unanswered("sign", &contact, Duration::MAX, start + SECOND * second);
        assert!(silent(30));
        conduct.note_left_unanswered(start + SECOND * 30);
        assert!(!silent(60) && !silent(90) && silent(120), "72 seconds");
    }

    fn upstream(address: SocketAddr, svid: X509Svid, known: &[Certificate], clock: Clock) -> Upstream {
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        let known = BTreeMap::from([(trust_domain.clone(), known.into())]);
        let settings = UpstreamSettings {
            trust_domain,
            server_address: address.ip().to_string(),
            server_port: address.port(),
        };
        // Nobody publishes another.
        let (_publisher, svid) = watch::channel(Some(Arc::new(svid)));
        let bundles = Arc::new(SharedBundles::fixed(known));
        Upstream::new(settings, svid, bundles, clock, even())
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_is_not_renewed_is_less_patient_the_less_it_has_to_live() {
        let clock = Clock::paused_at(Clock::system().now());
        let authority = Authority::new_at("example.org", clock.clone());
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let upstream = upstream(address, authority.svid(AGENT), &[], clock);
        let conduct = &upstream.shared.conduct;
        // Servers were left so often that each is borne for ten minutes.
        for _ in 0..10 {
            conduct.note_left(Duty::RenewAgent, Instant::now());
            conduct.note_left_unanswered(Instant::now());
        }
        let line = upstream.line().unwrap();
        line.contact.reached(address);
        let fail_until_left = async |duty: Duty, line: &Line| {
            let start = Instant::now();
            while upstream.is_held(line) {
                upstream.note_conduct(line, duty, Finding::Failed);
                tokio::time::advance(10 * SECOND).await;
            }
            start.elapsed().as_secs() - 10
        };
        // An eighth of the hour that is left then.
        assert_eq!(fail_until_left(Duty::RenewAgent, &line).await, 400);
        tokio::time::advance(SECOND * 3000).await;
        let line = upstream.line().unwrap();
        line.contact.reached(address);
        upstream.note_silence(&line, Duty::RenewAgent.name());
        assert!(!upstream.is_held(&line), "three minutes to live");
    }

    #[tokio::test]
    async fn a_server_that_cannot_be_reached_any_more_does_not_count_as_one_that_fails_though_it_is_there() {
        let mut server = TestServer::start();
        let (svid, known) = {
            let state = server.state();
            (state.authority.svid(AGENT), state.bundle.x509_certificates())
        };
        let upstream = upstream(server.address, svid, &known, Clock::system());
        upstream.post_status("1").await.unwrap();
        let line = upstream.line().unwrap();
        server.stop();
        let refused = loop {
            let error = upstream.sign_jwt("a", &[]).await.unwrap_err();
            if error.to_string().contains("connect to") {
                break Err::<(), _>(error);
            }
        };
        tokio::time::pause();
        for _ in 0..5 {
            upstream.note_conduct(&line, Duty::SignJwt, of_answer(&refused));
            tokio::time::advance(20 * SECOND).await;
        }
        assert!(upstream.is_held(&line));
    }

    #[test]
    fn what_the_server_refuses_tells_nothing_about_it_and_one_signature_tells_enough() {
        let failed = |may_be_of_one_server| {
            SignOutcome::Failed(SignFailure {
                why: "x".to_owned(),
                may_be_of_one_server,
            })
        };
        let signed = || SignOutcome::Signed(Vec::new());
        let unknown = || SignOutcome::NotFound("x".to_owned());
        for (outcomes, expected) in [
            (vec![failed(true), unknown(), failed(false)], Finding::Failed),
            (vec![failed(true), signed()], Finding::Done),
            (vec![unknown(), failed(false)], Finding::Nothing),
            (vec![], Finding::Nothing),
        ] {
            assert_eq!(of_batch(&Ok(outcomes)), expected);
        }
        let away = || UpstreamError::Unavailable("x".to_owned());
        assert_eq!(of_batch(&Err(away())), Finding::Failed);
        assert_eq!(of_answer(&Ok(())), Finding::Done);
        assert_eq!(of_answer::<()>(&Err(away())), Finding::Failed);
        assert_eq!(of_batch(&Err(UpstreamError::Unanswered("x"))), Finding::Nothing);
        assert_eq!(of_answer::<()>(&Err(UpstreamError::Superseded)), Finding::Nothing);
    }
}
