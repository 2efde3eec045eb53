//! The HTTP listeners of the server, bound and not yet served.

use std::sync::Arc;

use finial_identity::metrics::{Exposition, OwnIdentity, tls_source};
use finial_identity::process::http_listener::HttpListener;
use tokio::net::TcpListener;

use super::BuildError;
use crate::api::Services;
use crate::config::Config;
use crate::endpoints::http::{health_routes, scrape};
use crate::telemetry::{HELP, PREFIX};

/// The health checks, when they are on.
pub(super) async fn health(
    config: &Config,
    services: &Arc<Services>,
) -> Result<Option<HttpListener<TcpListener>>, BuildError> {
    let Some(checks) = config.health_checks() else {
        return Ok(None);
    };
    let listener = listen(&checks.address, checks.port).await?;
    let routes = health_routes(&checks.live_path, &checks.ready_path, Arc::clone(services));
    Ok(Some(HttpListener::new(listener, routes)))
}

/// The metrics, when Prometheus is to scrape them.
pub(super) async fn metrics(
    config: &Config,
    services: &Arc<Services>,
    own: OwnIdentity,
) -> Result<Option<HttpListener<TcpListener>>, BuildError> {
    let telemetry = config.telemetry();
    let Some(prometheus) = &telemetry.prometheus else {
        return Ok(None);
    };
    let tls = tls_source(prometheus, own, &services.clock)?;
    let exposition = Exposition::of(telemetry, PREFIX, config.trust_domain(), HELP);
    let routes = scrape(exposition, Arc::clone(services)).routes();
    let listener = listen(&prometheus.host, prometheus.port).await?;
    Ok(Some(HttpListener::new(listener, routes).with_tls(tls)))
}

async fn listen(host: &str, port: u16) -> Result<TcpListener, BuildError> {
    TcpListener::bind((host, port))
        .await
        .map_err(|source| BuildError::Listen {
            address: format!("{host}:{port}"),
            source,
        })
}
