//! From the configuration to the metrics that are exposed, and how.

use std::sync::Arc;

use tokio::sync::watch;

use super::{CertificateFiles, Exposition, TlsError, tls_of_svid};
use crate::peer::BundleSource;
use crate::process::Clock;
use crate::process::http_listener::TlsSource;
use crate::settings::Telemetry;
use crate::settings::telemetry::{Prometheus, PrometheusTls};
use crate::spiffe_id::TrustDomain;
use crate::x509::X509Svid;

/// The process's own SVID, and what its peers are verified against.
#[derive(Clone, Debug)]
pub struct OwnIdentity {
    /// The present SVID.
    pub svid: watch::Receiver<Option<Arc<X509Svid>>>,
    /// The bundles.
    pub bundles: Arc<dyn BundleSource>,
}

impl Exposition {
    /// As the operator wants it: names begin with `prefix` unless the configuration has another, and series have
    /// the labels `host` and `trust_domain` if wanted.
    pub fn of(
        telemetry: &Telemetry,
        prefix: &str,
        trust_domain: &TrustDomain,
        help: &'static [(&'static str, &'static str)],
    ) -> Self {
        let host = (!telemetry.without_hostname_label).then(host_name).flatten();
        let domain = telemetry.trust_domain_label.then(|| trust_domain.to_string());
        let host = host.map(|name| ("host", name));
        let labels = host.into_iter().chain(domain.map(|name| ("trust_domain", name)));
        Self {
            prefix: telemetry
                .metric_prefix
                .clone()
                .unwrap_or_else(|| prefix.to_owned()),
            labels: labels.collect(),
            filter: telemetry.filter.clone(),
            help,
        }
    }
}

/// The TLS of the listener, when it has any.
///
/// # Errors
/// When configured files cannot be used.
pub fn tls_source(
    prometheus: &Prometheus,
    own: OwnIdentity,
    clock: &Clock,
) -> Result<Option<TlsSource>, TlsError> {
    Ok(match &prometheus.tls {
        None => None,
        Some(PrometheusTls::Files {
            cert_file,
            key_file,
            client_ca_file,
        }) => {
            let files = CertificateFiles::read(
                cert_file.clone(),
                key_file.clone(),
                client_ca_file.clone(),
                clock.clone(),
            )?;
            Some(TlsSource::new(move || files.config()))
        }
        Some(PrometheusTls::OwnSvid { authorized }) => {
            let config = tls_of_svid(own.svid, own.bundles, authorized.clone(), clock.clone());
            Some(TlsSource::new(move || Arc::clone(&config)))
        }
    })
}

fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}
