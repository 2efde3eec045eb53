//! The caches of what workloads are given.

use std::sync::Arc;

use finial_identity::process::Clock;

use crate::config::Config;
use crate::node::{Jitter, NodeHandle};
use crate::svids::tokens::JwtCacheSettings;
use crate::svids::{JwtCache, SvidCache, WitCache, WitSigner};

/// Empty caches, of the kinds of SVIDs that the configuration has; tokens are signed by way of `node`.
pub(super) fn open(config: &Config, node: &NodeHandle, clock: &Clock, jitter: &Jitter) -> SvidCache {
    let defaults = JwtCacheSettings::default();
    let settings = JwtCacheSettings {
        max_size: config.jwt_svid_cache_max_size(),
        hit_timeout: config
            .jwt_svid_cache_hit_timeout()
            .unwrap_or(defaults.hit_timeout),
    };
    let jwt = JwtCache::new(
        Arc::new(node.upstream().clone()),
        settings,
        clock.clone(),
        jitter.clone(),
    );
    let wit = config.features().wit_svids.then(|| {
        let signer = WitSigner::new(Arc::new(node.upstream().clone()), config.workload_key_type());
        let settings = JwtCacheSettings {
            // As many as X.509-SVIDs: both are one for each entry.
            max_size: config.x509_svid_cache_max_size(),
            hit_timeout: settings.hit_timeout,
        };
        let counters = Arc::clone(jwt.counters());
        WitCache::counting(
            counters,
            Arc::new(signer),
            settings,
            clock.clone(),
            jitter.clone(),
        )
    });
    SvidCache::with_wit(node.own_bundle(), jwt, wit)
}
