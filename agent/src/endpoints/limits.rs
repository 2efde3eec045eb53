//! How many may come, and how much each may send.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

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
pub const MAX_CALLS_PER_USER: usize = 4096;

/// What the admin socket may take of the files that can be open, so that neither socket can shut out the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdminShare {
    /// Most connections.
    pub connections: usize,
    /// Most processes that are held on behalf of delegates.
    pub processes: usize,
}

/// Counts connections and calls. One user, root excepted, gets at most half of them, so that it cannot shut out the others.
#[derive(Clone, Debug)]
pub struct Admission {
    shared: Arc<Shared>,
}

/// The right to one connection, given back when dropped.
#[derive(Debug)]
pub struct Admitted {
    uid: u32,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limit: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    by_user: HashMap<u32, usize>,
    calls: HashMap<u32, usize>,
}

/// The right to one call, given back when dropped.
#[derive(Debug)]
pub struct AdmittedCall {
    uid: u32,
    shared: Arc<Shared>,
}

impl AdminShare {
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
        Self {
            shared: Arc::new(Shared {
                limit,
                open: Mutex::default(),
            }),
        }
    }

    /// The limit that suits a process that may open so many files.
    pub fn for_open_files(files: u64) -> Self {
        let left = files.saturating_sub(OWN_FILES) / FILES_PER_CONNECTION;
        let connections = usize::try_from(left).unwrap_or(usize::MAX);
        Self::new(connections.clamp(16, MAX_CONNECTIONS))
    }

    /// Lets one connection of a user in, or not.
    pub fn admit(&self, uid: u32) -> Option<Admitted> {
        let limit = self.shared.limit;
        let mut open = self.shared.lock();
        let of_user = open.by_user.get(&uid).copied().unwrap_or_default();
        if open.total >= limit || (uid != 0 && of_user >= limit / 2) {
            return None;
        }
        open.total += 1;
        open.by_user.insert(uid, of_user + 1);
        Some(Admitted {
            uid,
            shared: Arc::clone(&self.shared),
        })
    }
}

impl Admitted {
    /// Lets one call of the connection's user in, or not.
    pub fn call(&self) -> Option<AdmittedCall> {
        let mut open = self.shared.lock();
        let calls = open.calls.entry(self.uid).or_default();
        if self.uid != 0 && *calls >= MAX_CALLS_PER_USER {
            return None;
        }
        *calls += 1;
        Some(AdmittedCall {
            uid: self.uid,
            shared: Arc::clone(&self.shared),
        })
    }
}

impl Drop for AdmittedCall {
    fn drop(&mut self) {
        give_back(&mut self.shared.lock().calls, self.uid);
    }
}

fn give_back(counts: &mut HashMap<u32, usize>, uid: u32) {
    if let Some(count) = counts.get_mut(&uid) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(&uid);
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut open = self.shared.lock();
        open.total = open.total.saturating_sub(1);
        give_back(&mut open.by_user, self.uid);
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        // Counts that a panic left half-changed only make the limit a little wrong.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(admission.shared.lock().by_user.is_empty());
    }

    #[test]
    fn calls_are_counted_for_all_connections_of_a_user() {
        let admission = Admission::new(8);
        let (one, two) = (admission.admit(1000).unwrap(), admission.admit(1000).unwrap());
        let mut calls: Vec<_> = (0..MAX_CALLS_PER_USER).map(|_| one.call().unwrap()).collect();
        assert!(two.call().is_none());
        assert!(admission.admit(1001).unwrap().call().is_some());
        calls.pop();
        assert!(two.call().is_some());
        let root = admission.admit(0).unwrap();
        let all: Option<Vec<_>> = (0..=MAX_CALLS_PER_USER).map(|_| root.call()).collect();
        assert!(all.is_some());
        drop((calls, all));
        assert!(admission.shared.lock().calls.is_empty());
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
            let share = AdminShare::of_open_files(files);
            assert!(share.files() * 4 < files, "{share:?} of {files}");
        }
        let share = AdminShare::of_open_files(1024);
        assert_eq!(
            (share.connections, share.processes, share.files()),
            (32, 128, 192)
        );
        let most = AdminShare::of_open_files(u64::MAX);
        assert_eq!((most.connections, most.processes), (256, 4096));
    }
}
