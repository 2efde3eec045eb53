//! The workloads' identities: what the agent may issue, the SVIDs it holds, and their renewal.
//!
//! `feed` gets the authorized entries and bundles from the server, `sync` is the single writer that has SVIDs
//! signed and publishes snapshots of its `model`, `renewal` (pure) decides what is due and `trust` what is no longer
//! trusted, `cache` is what sockets read, and `subscriptions` notifies them when to read it again.

mod batch;
pub mod cache;
mod counters;
mod entries;
mod failing;
mod federating;
mod feed;
mod index;
mod keys;
mod model;
mod record;
mod renewal;
mod subscriptions;
pub mod sync;
pub mod tokens;
mod trust;
pub mod wit;

#[cfg(test)]
mod failing_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod scale_tests;
#[cfg(test)]
mod sync_tests;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
mod visits;

pub use cache::{CachedEntry, IssuedSvid, Snapshot, SvidCache};
pub use counters::{CacheCounters, Count, TokenCounters};
pub use entries::Entries;
pub use feed::SyncCounters;
pub use subscriptions::Subscription;
pub use sync::{SyncSettings, Synchronizer};
pub use tokens::{JwtCache, JwtCacheSettings, JwtError, JwtSource, SignedJwt};
pub use wit::{SignedWit, WitCache, WitSigner, WitSource};
