//! The HTTP listeners of the server, bound and not yet served.

use std::sync::Arc;

use finial_identity::metrics::{CertificateFiles, Exposition, OwnIdentity, tls_of_svid, tls_source};
use finial_identity::process::http_listener::{HttpListener, TlsSource};
use tokio::net::TcpListener;

use super::{BuildError, RegisteredBundles};
use crate::api::Services;
use crate::config::{Config, EndpointCertificate};
use crate::endpoints::http::{health_routes, scrape};
use crate::federation::endpoint;
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

/// The own bundle for other trust domains, when it is to be served.
pub(super) async fn bundle_endpoint(
    config: &Config,
    services: &Arc<Services>,
) -> Result<Option<HttpListener<TcpListener>>, BuildError> {
    let Some(settings) = &config.federation().bundle_endpoint else {
        return Ok(None);
    };
    let clock = services.clock.clone();
    let tls = match &settings.certificate {
        EndpointCertificate::Svid => {
            let bundles = Arc::new(RegisteredBundles(Arc::clone(&services.registry)));
            let tls = tls_of_svid(services.authority.server_svid(), bundles, Vec::new(), clock);
            TlsSource::new(move || Arc::clone(&tls))
        }
        EndpointCertificate::Files {
            cert_file,
            key_file,
            sync_interval,
        } => {
            let files = CertificateFiles::read(cert_file.clone(), key_file.clone(), None, clock)
                .map_err(BuildError::EndpointTls)?
                .fresh_for(*sync_interval);
            TlsSource::new(move || files.config())
        }
    };
    let registry = Arc::clone(&services.registry);
    let own_bundle = Box::new(move || registry.own_bundle());
    let routes = endpoint::routes(own_bundle, settings.refresh_hint, services.settings.wit_svids);
    let listener = super::listen(settings.bind).await?;
    tracing::info!(address = %settings.bind, "serving the bundle endpoint");
    Ok(Some(HttpListener::new(listener, routes).with_tls(Some(tls))))
}

async fn listen(host: &str, port: u16) -> Result<TcpListener, BuildError> {
    TcpListener::bind((host, port))
        .await
        .map_err(|source| BuildError::Listen {
            address: format!("{host}:{port}"),
            source,
        })
}
