//! Limits on connections, calls and signatures of one caller.
//!
//! All limits are applied before a caller's process is inspected: for the uid that the kernel recorded for the socket
//! and, for a process in another pid namespace than the agent's, for that namespace; with `WorkloadAttestor "k8s"`, for
//! the pod alone (`who`). `layer` checks each call and ends one whose client no longer waits, `quiet` closes idle
//! connections, `body` counts the bytes of requests and ends those that stay incomplete, `pace` reads from a connection no
//! faster than its calls can be checked, `signing` limits how much is signed for one caller. `connection` beside this module
//! drives `pace` and `quiet`, and `serving` hands the limits of HTTP/2 to hyper.
//!
//! No caller is refused for calling often, unless the operator configures that: cached answers cost little. From a
//! caller that calls faster than this agent can answer, requests are read later.

mod body;
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
pub(in crate::endpoints) use self::who::Holder;
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
/// Requests of one connection that may be reset for errors of the client before it is closed (a client that has the
/// server reset its requests).
pub const MAX_OWN_RESETS: usize = 1024;

/// Most calls of one user at a time, on all of its connections; root, whom many containers share, is exempt.
pub const MAX_CALLS_PER_USER: usize = 8192;
/// Most calls of one container at a time, root's included.
pub const MAX_CALLS_PER_CONTAINER: usize = 4096;

/// Most bytes of the open requests of one user, container, pod or broker, those aside that are short and were there in
/// whole when they were looked at first; root is exempt as above.
pub const MAX_BYTES_PER_HOLDER: usize = 8 * 1024 * 1024;

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
    /// Bytes of its request that count for its caller.
    bytes: AtomicUsize,
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
    bytes: HashMap<Holder, usize>,
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
        if !has_room(&open.connections, who, 1, share) {
            return None;
        }
        open.total += 1;
        take(&mut open.connections, who, 1);
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
        if !has_room(&open.calls, self.who, 1, most) {
            return Err(TooMany::Open);
        }
        take(&mut open.calls, self.who, 1);
        drop(open);
        Ok(self.counted())
    }

    /// A call of the agent itself, which looks after its health and is let in always.
    fn own_call(&self) -> AdmittedCall {
        take(&mut self.shared.lock().calls, self.who, 1);
        self.counted()
    }

    fn counted(&self) -> AdmittedCall {
        self.calls.fetch_add(1, Ordering::Relaxed);
        AdmittedCall {
            who: self.who,
            shared: Arc::clone(&self.shared),
            calls: Arc::clone(&self.calls),
            bytes: AtomicUsize::new(0),
        }
    }

    /// On whose account it goes what becomes of this caller's calls.
    pub(in crate::endpoints) fn accountable(&self) -> Holder {
        self.who.accountable()
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

impl AdmittedCall {
    /// So many bytes of the request count for its caller from now on, in the place of those that did; or nothing
    /// changes, if those are too many.
    fn hold(&self, bytes: usize) -> bool {
        // Only the request's body asks, so nothing changes it meanwhile.
        let before = self.bytes.load(Ordering::Relaxed);
        if bytes == before {
            return true;
        }
        let mut open = self.shared.lock();
        let more = bytes.saturating_sub(before);
        if more > 0 && !has_room(&open.bytes, self.who, more, |_holder| MAX_BYTES_PER_HOLDER) {
            return false;
        }
        take(&mut open.bytes, self.who, more);
        give_back(&mut open.bytes, self.who, before.saturating_sub(bytes));
        self.bytes.store(bytes, Ordering::Relaxed);
        true
    }
}

impl Drop for AdmittedCall {
    fn drop(&mut self) {
        self.calls.fetch_sub(1, Ordering::Relaxed);
        let mut open = self.shared.lock();
        give_back(&mut open.calls, self.who, 1);
        let bytes = *self.bytes.get_mut();
        if bytes > 0 {
            give_back(&mut open.bytes, self.who, bytes);
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut open = self.shared.lock();
        open.total = open.total.saturating_sub(1);
        give_back(&mut open.connections, self.who, 1);
    }
}

fn connections_for(files: u64) -> usize {
    let left = files.saturating_sub(OWN_FILES) / FILES_PER_CONNECTION;
    let connections = usize::try_from(left).unwrap_or(usize::MAX);
    connections.clamp(16, MAX_CONNECTIONS)
}

fn has_room(counts: &HashMap<Holder, usize>, who: Who, more: usize, most: impl Fn(Holder) -> usize) -> bool {
    let mut holders = who.holders();
    holders.all(|holder| {
        let count = counts.get(&holder).copied().unwrap_or_default();
        count.saturating_add(more) <= most(holder)
    })
}

fn take(counts: &mut HashMap<Holder, usize>, who: Who, more: usize) {
    for holder in who.holders() {
        let count = counts.entry(holder).or_default();
        *count = count.saturating_add(more);
    }
}

fn give_back(counts: &mut HashMap<Holder, usize>, who: Who, fewer: usize) {
    for holder in who.holders() {
        if let Some(count) = counts.get_mut(&holder) {
            *count = count.saturating_sub(fewer);
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
mod tests;
