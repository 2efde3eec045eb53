//! How much a cache of tokens keeps, and for how long who asks it waits.

use std::time::Duration;

/// How much is cached, and how long a caller waits.
#[derive(Clone, Copy, Debug)]
pub struct JwtCacheSettings {
    /// How many tokens are kept; the least recently used goes first (`jwt_svid_cache_max_size`).
    pub max_size: usize,
    /// How long to wait for a new token while the cached one is still valid and about to end
    /// (`jwt_svid_cache_hit_timeout`).
    pub hit_timeout: Duration,
}

impl Default for JwtCacheSettings {
    fn default() -> Self {
        Self {
            max_size: 1000,
            hit_timeout: DEFAULT_HIT_TIMEOUT,
        }
    }
}

/// Shorter than the patience of most clients.
const DEFAULT_HIT_TIMEOUT: Duration = Duration::from_secs(5);
