//! How many may come, how often, and how much each may send.
//!
//! Everything here is decided before a caller's process is looked at: by the uid that the kernel froze in the socket
//! and, for a process in a pid namespace of its own, by that namespace; where pods are told apart (`who`), by the pod
//! alone. `layer` asks for each call, `quiet` ends
//! connections on which nothing happens, `pace` reads no faster than calls can be decided on, `signing` lets one caller
//! have no more signed than the others can spare.
//!
//! Nobody is refused for calling often, unless the operator says so: what is cached costs little. Whoever calls faster
//! than this agent can answer is read from later.

mod layer;
mod memory;
mod pace;
mod quiet;
mod rates;
mod signing;
mod who;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

pub use self::layer::LimitLayer;
pub use self::memory::trim_after_crowds;
pub use self::pace::Pace;
pub use self::quiet::Quiet;
use self::rates::{Rate, Rates};
use self::signing::Signing;
use self::who::Holder;
pub use self::who::Who;
use crate::config::RateLimits;
use crate::telemetry::metrics;
use crate::workload::permits::Permits;

/// Most connections, however many files may be open.
const MAX_CONNECTIONS: usize = 32_768;
/// Files that the agent needs for itself.
const OWN_FILES: u64 = 128;
/// Files that one connection needs: the socket and the descriptor of its process.
const FILES_PER_CONNECTION: u64 = 2;

/// Most requests at a time on one connection; further ones wait at the client (RFC 9113 §5.1.2).
pub const MAX_STREAMS_PER_CONNECTION: u32 = 1024;
/// Most bytes of all headers of a request.
pub const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// Most bytes of a request's message. The largest is a token to validate with its audience.
pub const MAX_REQUEST_BYTES: usize = 256 * 1024;
/// Bytes that a client may send before we read them, for a request and for a connection.
pub const WINDOW_BYTES: u32 = 64 * 1024;
/// Bytes of one HTTP/2 frame.
pub const FRAME_BYTES: u32 = 16 * 1024;
/// Requests that a client may open and reset at once before its connection is closed (rapid reset).
pub const MAX_PENDING_RESETS: usize = 32;

/// Most calls of one user at a time, on all of its connections; root, whom many containers share, is exempt.
pub const MAX_CALLS_PER_USER: usize = 8192;
/// Most calls of one container at a time, root's included.
pub const MAX_CALLS_PER_CONTAINER: usize = 4096;

/// Most calls of one broker at a time: a stream of each kind for each of some hundred workloads.
pub const MAX_CALLS_PER_BROKER: usize = 2048;

/// Most callers of one user or container whose facts are found out at a time; further ones wait for these, and for
/// nobody else's.
const TURNS: usize = 16;
/// Likewise for all containers of one user together, unless that is root, whom many containers have.
const TURNS_OF_ALL_CONTAINERS: usize = 4 * TURNS;

/// How often one user, and one container, is served before others come first: about what one processor answers, so that
/// a gateway may ask for a token with each request of its own.
const CALL_RATE: Rate = Rate {
    per_second: 8192.0,
    burst: 8192.0,
};
/// How many served calls a refused one counts for: who is refused is to wait before asking again.
const REFUSED: f64 = 16.0;

/// How often one broker is served before others come first: for each workload of a node, again and again.
const BROKER_RATE: Rate = Rate {
    per_second: 256.0,
    burst: 2048.0,
};

/// What the admin socket, or brokers, may take of the files that can be open, so that none can shut out the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketShare {
    /// Most connections.
    pub connections: usize,
    /// Most processes that are held on behalf of delegates, or of brokers.
    pub processes: usize,
}

/// Counts connections and calls. One user, root excepted, gets at most half of the connections and one container at
/// most a quarter, so that neither can shut out the others. Root outside of containers could end the agent anyway.
#[derive(Clone, Debug)]
pub struct Admission {
    shared: Arc<Shared>,
}

/// The right to one connection, given back when dropped.
#[derive(Debug)]
pub struct Admitted {
    who: Who,
    shared: Arc<Shared>,
    /// Calls that are open on this connection.
    calls: Arc<AtomicUsize>,
}

/// The right to one call, given back when dropped.
#[derive(Debug)]
pub struct AdmittedCall {
    who: Who,
    shared: Arc<Shared>,
    calls: Arc<AtomicUsize>,
}

/// Why a call is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooMany {
    /// Too many are open.
    #[error("too many open calls of this user or container")]
    Open,
    /// Those of this method come faster than the operator allows (`experimental.ratelimit`).
    #[error("rate limit exceeded")]
    OfMethod,
}

#[derive(Debug)]
struct Shared {
    limit: usize,
    brokers: usize,
    tells_pods: bool,
    of_methods: RateLimits,
    open: Mutex<Open>,
    rates: Mutex<Rates>,
    turns: Permits<Turns>,
    signing: Signing,
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    connections: HashMap<Holder, usize>,
    calls: HashMap<Holder, usize>,
}

impl SocketShare {
    /// The share that suits a process that may open so many files.
    pub fn of_open_files(files: u64) -> Self {
        let files = usize::try_from(files).unwrap_or(usize::MAX);
        Self {
            connections: (files / 32).clamp(16, 256),
            processes: (files / 8).clamp(16, 4096),
        }
    }

    /// How many files that takes.
    pub fn files(self) -> u64 {
        let connections =
            FILES_PER_CONNECTION.saturating_mul(self.connections.try_into().unwrap_or(u64::MAX));
        connections.saturating_add(self.processes.try_into().unwrap_or(u64::MAX))
    }
}

impl Admission {
    /// Lets in at most `limit` connections at a time.
    pub fn new(limit: usize) -> Self {
        Self::of(limit, 1, false, RateLimits::default())
    }

    /// The limit that suits a process that may open so many files.
    pub fn for_open_files(files: u64) -> Self {
        Self::new(connections_for(files))
    }

    /// As many connections as this admission has, and calls of a method as often as the operator allows.
    #[must_use]
    pub fn limited_to(self, of_methods: RateLimits) -> Self {
        Self::of(self.shared.limit, 1, self.shared.tells_pods, of_methods)
    }

    /// Processes of pods count for their pods and not for their users, if so. Worth it where pods are attested: their
    /// control groups are looked at for each connection.
    #[must_use]
    pub fn telling_pods(self, tells_pods: bool) -> Self {
        let Shared {
            limit, of_methods, ..
        } = *self.shared;
        Self::of(limit, 1, tells_pods, of_methods)
    }

    /// Whether processes of pods count for their pods.
    pub fn tells_pods(&self) -> bool {
        self.shared.tells_pods
    }

    /// At most `limit` connections of so many brokers, each of which has an equal share.
    pub fn for_brokers(limit: usize, brokers: usize) -> Self {
        Self::of(limit, brokers, false, RateLimits::default())
    }

    fn of(limit: usize, brokers: usize, tells_pods: bool, of_methods: RateLimits) -> Self {
        Self {
            shared: Arc::new(Shared {
                limit,
                brokers,
                tells_pods,
                of_methods,
                open: Mutex::default(),
                rates: Mutex::default(),
                turns: Permits::default(),
                signing: Signing::default(),
            }),
        }
    }

    /// How many connections are open.
    pub fn open(&self) -> usize {
        self.shared.lock().total
    }

    /// Lets one connection in, or not.
    pub fn admit(&self, who: impl Into<Who>) -> Option<Admitted> {
        let (who, limit) = (who.into(), self.shared.limit);
        let mut open = self.shared.lock();
        if open.total >= limit {
            return None;
        }
        let share = |holder| match holder {
            Holder::User(_) => limit / 2,
            Holder::Broker(_) => limit / self.shared.brokers.max(1),
            Holder::Container(_) | Holder::Pod(_) => limit / 4,
        };
        if !has_room(&open.connections, who, share) {
            return None;
        }
        open.total += 1;
        take(&mut open.connections, who);
        Some(Admitted {
            who,
            shared: Arc::clone(&self.shared),
            calls: Arc::default(),
        })
    }
}

/// Who shares turns with whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Turns {
    Of(Holder),
    /// Of a user.
    OfAllContainers(u32),
}

/// A caller's turn, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    _permits: Vec<OwnedSemaphorePermit>,
}

impl Admitted {
    /// Lets one call on the connection in, or not. `path` is that of the HTTP request.
    ///
    /// # Errors
    /// [`TooMany`].
    pub fn call(&self, path: &str) -> Result<AdmittedCall, TooMany> {
        let call = self.check_rate(path).and_then(|()| self.check_open());
        let cost = if call.is_ok() { 1.0 } else { REFUSED };
        let now = Instant::now();
        let mut rates = self.rates();
        for holder in self.who.holders() {
            let rate = match holder {
                Holder::User(_) | Holder::Container(_) | Holder::Pod(_) => CALL_RATE,
                Holder::Broker(_) => BROKER_RATE,
            };
            rates.spend(holder, cost, rate, now);
        }
        call
    }

    fn check_open(&self) -> Result<AdmittedCall, TooMany> {
        let most = |holder| match holder {
            Holder::User(_) => MAX_CALLS_PER_USER,
            Holder::Container(_) | Holder::Pod(_) => MAX_CALLS_PER_CONTAINER,
            Holder::Broker(_) => MAX_CALLS_PER_BROKER,
        };
        let mut open = self.shared.lock();
        if !has_room(&open.calls, self.who, most) {
            return Err(TooMany::Open);
        }
        take(&mut open.calls, self.who);
        drop(open);
        Ok(self.counted())
    }

    /// A call of the agent itself, which looks after its health and is let in always.
    fn own_call(&self) -> AdmittedCall {
        take(&mut self.shared.lock().calls, self.who);
        self.counted()
    }

    fn counted(&self) -> AdmittedCall {
        self.calls.fetch_add(1, Ordering::Relaxed);
        AdmittedCall {
            who: self.who,
            shared: Arc::clone(&self.shared),
            calls: Arc::clone(&self.calls),
        }
    }

    /// Whether no call is open on the connection.
    pub fn is_idle(&self) -> bool {
        self.calls.load(Ordering::Relaxed) == 0
    }

    /// Waits for this caller's turn to be attested, which lasts until the answer is dropped. A container waits for
    /// its own turn and then for its user's, who may make namespaces at will.
    pub async fn turn(&self) -> Turn {
        let own = Turns::Of(self.who.narrowest());
        let users = self.who.user_of_container().map(Turns::OfAllContainers);
        let mut permits = Vec::with_capacity(2);
        for turns in std::iter::once(own).chain(users) {
            permits.push(self.shared.turns.acquire(turns, turns.at_a_time()).await);
        }
        Turn { _permits: permits }
    }

    /// Waits for this caller's turn to have something signed that is not cached.
    pub async fn signature(&self) {
        self.shared.signing.turn(self.who).await;
    }

    /// Until when this caller has used up its calls, if it has.
    fn used_up_until(&self, now: Instant) -> Option<Instant> {
        let rates = self.rates();
        let mut holders = self.who.holders();
        holders.find_map(|holder| rates.used_up_until(holder, now))
    }

    /// The limit that the operator set for the method, if any.
    fn check_rate(&self, path: &str) -> Result<(), TooMany> {
        let Some((method, limit)) = self.shared.of_methods.of(path) else {
            return Ok(());
        };
        let key = (self.who.narrowest(), method);
        if self.rates().take(key, Rate::of(limit), Instant::now()) {
            return Ok(());
        }
        metrics().count("workload_api_rate_limit_exceeded", &[("method", method)], 1);
        Err(TooMany::OfMethod)
    }

    fn rates(&self) -> MutexGuard<'_, Rates> {
        // Counts that a panic left half-changed only make the limit a little wrong.
        self.shared.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turns {
    fn at_a_time(self) -> usize {
        match self {
            Self::Of(_) => TURNS,
            Self::OfAllContainers(_) => TURNS_OF_ALL_CONTAINERS,
        }
    }
}

impl Drop for AdmittedCall {
    fn drop(&mut self) {
        self.calls.fetch_sub(1, Ordering::Relaxed);
        give_back(&mut self.shared.lock().calls, self.who);
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut open = self.shared.lock();
        open.total = open.total.saturating_sub(1);
        give_back(&mut open.connections, self.who);
    }
}

fn connections_for(files: u64) -> usize {
    let left = files.saturating_sub(OWN_FILES) / FILES_PER_CONNECTION;
    let connections = usize::try_from(left).unwrap_or(usize::MAX);
    connections.clamp(16, MAX_CONNECTIONS)
}

fn has_room(counts: &HashMap<Holder, usize>, who: Who, most: impl Fn(Holder) -> usize) -> bool {
    let mut holders = who.holders();
    holders.all(|holder| counts.get(&holder).copied().unwrap_or_default() < most(holder))
}

fn take(counts: &mut HashMap<Holder, usize>, who: Who) {
    for holder in who.holders() {
        *counts.entry(holder).or_default() += 1;
    }
}

fn give_back(counts: &mut HashMap<Holder, usize>, who: Who) {
    for holder in who.holders() {
        if let Some(count) = counts.get_mut(&holder) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&holder);
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Open> {
        // Counts that a panic left half-changed only make the limit a little wrong.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::workload::PodNumber;

    const FETCH: &str = "/SpiffeWorkloadAPI/FetchX509SVID";

    #[test]
    fn one_user_gets_half_and_root_gets_all() {
        let admission = Admission::new(4);
        let mut admitted: Vec<_> = (0..2).map(|_| admission.admit(1000).unwrap()).collect();
        assert!(admission.admit(1000).is_none());
        admitted.push(admission.admit(1001).unwrap());
        admitted.push(admission.admit(0).unwrap());
        assert!(admission.admit(0).is_none(), "the limit holds for all");
        drop(admitted);
        let root: Vec<_> = (0..4).map(|_| admission.admit(0).unwrap()).collect();
        assert!(admission.admit(1002).is_none());
        drop(root);
        assert!(admission.shared.lock().connections.is_empty());
    }

    #[test]
    fn one_container_gets_a_quarter_even_of_root() {
        let admission = Admission::new(8);
        for uid in [0, 1000] {
            let one: Vec<_> = (0..2)
                .map(|_| admission.admit(Who::within(uid, 7)).unwrap())
                .collect();
            assert!(admission.admit(Who::within(uid, 7)).is_none());
            assert!(admission.admit(Who::within(uid, 8)).is_some());
            drop(one);
        }
        let within: Vec<_> = (1..=4)
            .map(|ns| admission.admit(Who::within(1000, ns)).unwrap())
            .collect();
        assert!(
            admission.admit(Who::within(1000, 5)).is_none(),
            "namespaces that a user makes are still that user's"
        );
        drop(within);
        assert!(admission.shared.lock().connections.is_empty());
    }

    /// Pods of several tenants run as one user: none of them can use up what is another's.
    #[tokio::test(start_paused = true)]
    async fn each_pod_has_its_own_share_of_everything() {
        use futures_util::FutureExt as _;
        let limits = RateLimits {
            fetch_x509_svid: 4,
            ..RateLimits::default()
        };
        let admission = Admission::new(8).limited_to(limits);
        let pods = ["0", "1", "2", "3"].map(|digit| Who::Pod(PodNumber::parse(&digit.repeat(32)).unwrap()));
        let admitted = pods.map(|pod| {
            let two = [admission.admit(pod).unwrap(), admission.admit(pod).unwrap()];
            assert!(admission.admit(pod).is_none(), "a quarter");
            two
        });
        let mut held: Vec<(Vec<Turn>, Vec<AdmittedCall>)> = Vec::new();
        for [one, same] in &admitted {
            assert!((0..4).all(|_| one.call(FETCH).is_ok()));
            assert_eq!(same.call(FETCH).unwrap_err(), TooMany::OfMethod);
            let turn = |of: &Admitted| tokio::task::unconstrained(of.turn()).now_or_never();
            let turns = (0..TURNS).map(|_| turn(one).unwrap()).collect();
            assert!(turn(same).is_none());
            let signature = |of: &Admitted| tokio::task::unconstrained(of.signature()).now_or_never();
            assert!((0..500).all(|_| signature(one).is_some()));
            assert!(signature(same).is_none());
            let calls = (0..MAX_CALLS_PER_CONTAINER).map(|_| one.own_call()).collect();
            let open = same.call("/SpiffeWorkloadAPI/FetchJWTSVID");
            assert_eq!(open.unwrap_err(), TooMany::Open);
            held.push((turns, calls));
        }
    }

    #[test]
    fn calls_are_counted_for_all_connections_of_a_user() {
        let admission = Admission::new(16);
        let (one, two) = (admission.admit(1000).unwrap(), admission.admit(1000).unwrap());
        let mut calls: Vec<_> = (0..MAX_CALLS_PER_USER).map(|_| one.own_call()).collect();
        assert_eq!(two.call(FETCH).unwrap_err(), TooMany::Open);
        assert!(two.is_idle() && !one.is_idle());
        assert!(admission.admit(1001).unwrap().call(FETCH).is_ok());
        calls.pop();
        assert!(two.call(FETCH).is_ok());
        let root = admission.admit(0).unwrap();
        let all: Result<Vec<_>, _> = (0..=MAX_CALLS_PER_USER).map(|_| root.call(FETCH)).collect();
        assert!(all.is_ok());
        let pod = admission.admit(Who::within(0, 7)).unwrap();
        let of_pod: Vec<_> = (0..MAX_CALLS_PER_CONTAINER).map(|_| pod.own_call()).collect();
        assert_eq!(pod.call(FETCH).unwrap_err(), TooMany::Open);
        assert!(admission.admit(Who::within(0, 8)).unwrap().call(FETCH).is_ok());
        drop((calls, all, of_pod));
        assert!(admission.shared.lock().calls.is_empty());
        assert!(one.is_idle());
    }

    #[tokio::test(start_paused = true)]
    async fn a_user_that_calls_fast_is_not_refused_but_read_from_later_and_others_at_once() {
        let admission = Admission::new(16);
        let (one, other) = (admission.admit(1000).unwrap(), admission.admit(1001).unwrap());
        let root = admission.admit(0).unwrap();
        // A gateway that asks for a token with each of five thousand requests a second.
        for _second in 0..10 {
            for _call in 0..5000 {
                assert!(one.call(FETCH).is_ok());
                assert_eq!(one.used_up_until(Instant::now()), None);
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        for caller in [&one, &root] {
            assert!((0..20_000).all(|_| caller.call(FETCH).is_ok()));
        }
        let wait = one.used_up_until(Instant::now()).unwrap() - Instant::now();
        assert!(
            wait > Duration::from_millis(900) && wait < Duration::from_millis(1100),
            "{wait:?}"
        );
        assert!(
            [&other, &root]
                .iter()
                .all(|caller| caller.used_up_until(Instant::now()).is_none())
        );
        tokio::time::advance(wait).await;
        assert_eq!(one.used_up_until(Instant::now()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_does_not_take_no_for_an_answer_is_read_from_later() {
        let limits = RateLimits {
            fetch_x509_svid: 1,
            ..RateLimits::default()
        };
        let admission = Admission::new(64).limited_to(limits);
        let one = admission.admit(1000).unwrap();
        assert!(one.call(FETCH).is_ok());
        let refused = std::iter::repeat_with(|| one.call(FETCH).unwrap_err());
        let until_used_up = refused.take_while(|_| one.used_up_until(Instant::now()).is_none());
        assert_eq!(until_used_up.count(), 511);
    }

    #[tokio::test(start_paused = true)]
    async fn each_broker_has_its_own_calls_and_connections() {
        let admission = Admission::for_brokers(4, 2);
        let (one, other) = (Who::Broker(0), Who::Broker(1));
        let held = [admission.admit(one).unwrap(), admission.admit(one).unwrap()];
        assert!(admission.admit(one).is_none());
        let other = admission.admit(other).unwrap();
        let calls: Vec<_> = (0..MAX_CALLS_PER_BROKER).map(|_| held[0].own_call()).collect();
        assert_eq!(held[1].call(FETCH).unwrap_err(), TooMany::Open);
        assert!(other.call(FETCH).is_ok());
        drop(calls);
        assert!((0..2048).all(|_| held[1].call(FETCH).is_ok()));
        assert!(held[1].used_up_until(Instant::now()).is_some());
        assert_eq!(other.used_up_until(Instant::now()), None);
        assert!(other.call(FETCH).is_ok());
    }

    #[tokio::test]
    async fn a_user_gets_no_more_turns_by_making_namespaces() {
        use futures_util::FutureExt as _;
        let admission = Admission::new(4096);
        let turns_of = |uid| {
            let callers = (0..64).map(move |namespace| Who::within(uid, namespace));
            let callers: Vec<_> = callers.map(|who| admission.admit(who).unwrap()).collect();
            let turns = callers.iter().flat_map(|caller| (0..TURNS).map(move |_| caller));
            turns
                .filter_map(|caller| tokio::task::unconstrained(caller.turn()).now_or_never())
                .collect::<Vec<_>>()
                .len()
        };
        assert_eq!(turns_of(1000), TURNS_OF_ALL_CONTAINERS);
        assert_eq!(turns_of(0), 64 * TURNS);
    }

    #[tokio::test]
    async fn a_caller_waits_for_its_own_turns_and_for_nobody_elses() {
        use futures_util::FutureExt as _;
        let admission = Admission::new(16);
        let (one, other) = (admission.admit(1000).unwrap(), admission.admit(1001).unwrap());
        let turns: Vec<_> = (0..TURNS).map(|_| one.turn().now_or_never().unwrap()).collect();
        assert!(one.turn().now_or_never().is_none());
        assert!(other.turn().now_or_never().is_some());
        drop(turns);
        assert!(one.turn().now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_configured_limit_holds_for_its_method_and_for_each_caller_root_included() {
        let limits = RateLimits {
            fetch_x509_svid: 2,
            ..RateLimits::default()
        };
        let admission = Admission::new(64).limited_to(limits);
        for who in [
            Who::from(0),
            Who::from(1000),
            Who::within(0, 7),
            Who::within(0, 8),
        ] {
            let admitted = admission.admit(who).unwrap();
            assert!(admitted.call(FETCH).is_ok() && admitted.call(FETCH).is_ok());
            assert_eq!(admitted.call(FETCH).unwrap_err(), TooMany::OfMethod, "{who:?}");
            assert!(admitted.call("/SpiffeWorkloadAPI/FetchJWTSVID").is_ok());
            tokio::time::advance(Duration::from_millis(500)).await;
            assert!(admitted.call(FETCH).is_ok());
        }
        use finial_identity::metrics::{Exposition, Polled};
        let shown = Exposition::default().render(metrics(), Polled::default());
        assert!(
            shown.contains("workload_api_rate_limit_exceeded{method=\"_SpiffeWorkloadAPI_FetchX509SVID\"} "),
            "{shown}"
        );
    }

    #[test]
    fn the_limit_follows_the_number_of_files() {
        assert_eq!(Admission::for_open_files(1024).shared.limit, 448);
        assert_eq!(Admission::for_open_files(10).shared.limit, 16);
        assert_eq!(Admission::for_open_files(u64::MAX).shared.limit, MAX_CONNECTIONS);
    }

    #[test]
    fn the_admin_socket_leaves_most_files_to_workloads() {
        for files in [1024, 4096, 1 << 20] {
            let share = SocketShare::of_open_files(files);
            assert!(share.files() * 4 < files, "{share:?} of {files}");
        }
        let share = SocketShare::of_open_files(1024);
        assert_eq!(
            (share.connections, share.processes, share.files()),
            (32, 128, 192)
        );
        let most = SocketShare::of_open_files(u64::MAX);
        assert_eq!((most.connections, most.processes), (256, 4096));
    }
}
