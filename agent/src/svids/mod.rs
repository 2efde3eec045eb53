//! The workloads' identities: what the agent may issue, the SVIDs it holds, and their renewal.
//!
//! `feed` learns the authorized entries and bundles from the server, `sync` is the single writer that has SVIDs
//! signed and publishes snapshots of its `model`, `renewal` decides purely what is due, `cache` is what sockets read.

pub mod cache;
mod feed;
mod index;
pub mod jwt;
mod keys;
mod model;
pub mod renewal;
pub mod sync;
#[cfg(test)]
mod sync_tests;

pub use cache::{CachedEntry, IssuedSvid, Snapshot, Subscription, SvidCache};
pub use feed::SyncCounters;
pub use jwt::{JwtCache, JwtCacheSettings, JwtError, JwtSource, SignedJwt};
pub use sync::{SyncSettings, Synchronizer};
