//! The HTTP listeners: health checks (`health_checks`) and metrics (`telemetry.Prometheus`), bound and not yet
//! served.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use finial_identity::metrics::{Exposition, OwnIdentity, Polled, Scrape, TlsError, tls_source};
use finial_identity::process::Clock;
use finial_identity::process::http_listener::HttpListener;
use finial_identity::settings::{HealthChecks, Telemetry};
use time::OffsetDateTime;
use tokio::net::TcpListener;

use super::calls;
use super::health::{Probe, health_routes};
use crate::node::{NodeHandle, NodeState};
use crate::svids::{CacheCounters, Count, SvidCache, SyncCounters};
use crate::telemetry::{HELP, PREFIX, metrics};

/// Why a listener cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address cannot be listened on.
    #[error("listen on {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The metrics cannot be served over TLS.
    #[error("telemetry.Prometheus.tls: {0}")]
    Tls(#[from] TlsError),
}

/// The listeners that are configured, under the names of their tasks.
#[derive(Debug)]
pub struct HttpListeners {
    listeners: Vec<(&'static str, HttpListener<TcpListener>)>,
}

/// What the metrics are about.
#[derive(Clone, Debug)]
pub struct Watched {
    /// The agent's identity.
    pub node: NodeHandle,
    /// What it holds for workloads.
    pub svids: SvidCache,
    /// How it learns of changes.
    pub sync: Arc<SyncCounters>,
    /// The time.
    pub clock: Clock,
}

impl HttpListeners {
    /// Binds what is configured.
    ///
    /// # Errors
    /// [`HttpError`]; then nothing is left bound.
    pub async fn bind(
        checks: Option<&HealthChecks>,
        telemetry: &Telemetry,
        probe: Probe,
        watched: Watched,
    ) -> Result<Self, HttpError> {
        let mut listeners = Vec::new();
        if let Some(checks) = checks {
            let routes = health_routes(&checks.live_path, &checks.ready_path, probe);
            let listener = listen(&checks.address, checks.port).await?;
            listeners.push((HEALTH, HttpListener::new(listener, routes)));
        }
        if let Some(prometheus) = &telemetry.prometheus {
            let own = OwnIdentity {
                svid: watched.node.svid(),
                bundles: watched.node.bundle_source(),
            };
            let tls = tls_source(prometheus, own, &watched.clock)?;
            let exposition = Exposition::of(telemetry, PREFIX, watched.node.trust_domain(), HELP);
            let routes = scrape(exposition, watched).routes();
            let listener = listen(&prometheus.host, prometheus.port).await?;
            listeners.push((METRICS, HttpListener::new(listener, routes).with_tls(tls)));
        }
        Ok(Self { listeners })
    }

    /// Where the health checks are, when they are on.
    pub fn health_addr(&self) -> Option<SocketAddr> {
        self.addr(HEALTH)
    }

    /// Where Prometheus scrapes, when it does.
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.addr(METRICS)
    }

    /// All of them, to be run.
    pub fn into_tasks(self) -> impl Iterator<Item = (&'static str, HttpListener<TcpListener>)> {
        self.listeners.into_iter()
    }

    fn addr(&self, name: &str) -> Option<SocketAddr> {
        let found = self.listeners.iter().find(|(named, _)| *named == name);
        found.and_then(|(_, listener)| listener.local_addr())
    }
}

/// What Prometheus gets: what was counted, and what the agent holds at the moment.
pub fn scrape(exposition: Exposition, watched: Watched) -> Scrape {
    calls::declare();
    let started_at = watched.clock.now();
    Scrape::new(exposition, metrics()).polled(move |polled| poll(polled, &watched, started_at))
}

fn poll(polled: &mut Polled, watched: &Watched, started_at: OffsetDateTime) {
    let Watched {
        node,
        svids,
        sync,
        clock,
    } = watched;
    let now = clock.now();
    let trust_domain = node.trust_domain().as_str();
    let started = [
        ("version", env!("CARGO_PKG_VERSION")),
        ("trust_domain_id", trust_domain),
    ];
    polled.gauge("started", &started, 1.0);
    let uptime = (now - started_at).as_seconds_f64() * 1000.0;
    polled.gauge("uptime_in_ms", &[], uptime.max(0.0).round());

    let has_bundle = !node.own_bundle().x509_authorities.is_empty();
    polled.gauge("bootstrapped", &[], f64::from(u8::from(has_bundle)));
    let state = state_name(&node.state().borrow());
    for name in STATES {
        let is_it = f64::from(u8::from(name == state));
        polled.gauge("node_state", &[("state", name)], is_it);
    }
    for (reason, is_there) in node.troubles() {
        polled.gauge(
            "node_degraded",
            &[("reason", reason)],
            f64::from(u8::from(is_there)),
        );
    }

    for (name, value) in [
        ("sync_snapshots", sync.snapshots()),
        ("sync_deltas", sync.deltas()),
        ("sync_polls", sync.polls()),
        ("sync_digest_mismatches", sync.digest_mismatches()),
        ("upstream_connections", node.upstream().connections()),
    ] {
        polled.counter(name, &[], value);
    }
    let age = svids
        .synced_at()
        .map_or(-1.0, |at| (now - at).as_seconds_f64().max(0.0));
    polled.gauge("sync_age_seconds", &[], age.round());

    poll_cache(polled, svids.counters());
}

fn poll_cache(polled: &mut Polled, cache: &CacheCounters) {
    let x509 = [("svid_type", "x509")];
    let now = |count: &Count| count.value() as f64;
    polled.gauge("lru_cache_record_map_size", &x509, now(&cache.entries));
    polled.gauge("lru_cache_svid_map_size", &x509, now(&cache.x509_svids));
    polled.gauge("jwt_svid_cache_size", &[], now(&cache.jwt.held));
    for (name, count) in [
        ("lru_cache_entry_add", &cache.entries_added),
        ("lru_cache_entry_remove", &cache.entries_removed),
        ("lru_cache_entry_update", &cache.entries_updated),
    ] {
        polled.counter(name, &[], count.value());
    }
    for (event, count) in [
        ("issued", &cache.x509_issued),
        ("rotated", &cache.x509_rotated),
        ("failed", &cache.x509_failed),
        ("expired", &cache.x509_expired),
        ("evicted", &cache.x509_evicted),
        ("tainted", &cache.x509_tainted),
    ] {
        polled.counter("cache_x509_svids", &[("event", event)], count.value());
    }
    for (name, tokens) in [("cache_jwt_svids", &cache.jwt), ("cache_wit_svids", &cache.wit)] {
        for (event, count) in [
            ("hit", &tokens.hits),
            ("stale_hit", &tokens.stale_hits),
            ("miss", &tokens.misses),
            ("failed", &tokens.failed),
            ("tainted", &tokens.tainted),
        ] {
            polled.counter(name, &[("event", event)], count.value());
        }
    }
}

fn state_name(state: &NodeState) -> &'static str {
    match state {
        NodeState::Bootstrapping => "bootstrapping",
        NodeState::Attesting => "attesting",
        NodeState::Serving => "serving",
        NodeState::Degraded(_) => "degraded",
        NodeState::Banned => "banned",
    }
}

async fn listen(host: &str, port: u16) -> Result<TcpListener, HttpError> {
    TcpListener::bind((host, port))
        .await
        .map_err(|source| HttpError::Listen {
            address: format!("{host}:{port}"),
            source,
        })
}

const STATES: [&str; 5] = ["bootstrapping", "attesting", "serving", "degraded", "banned"];
const HEALTH: &str = "health";
const METRICS: &str = "metrics";
