//! rustls configurations for both ends.

use std::sync::{Arc, OnceLock};

use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ConfigBuilder, ServerConfig, SupportedProtocolVersion, WantsVerifier};
use tokio::sync::watch;

use super::SvidResolver;
use super::resolver::OneSvid;
use crate::process::Clock;
use crate::x509::X509Svid;

pub(super) static VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
pub(super) const HTTP2: &[u8] = b"h2";
const WITH_RING: &str = "ring has cipher suites for TLS 1.2 and 1.3";

/// The client's end: TLS 1.3 or 1.2, ALPN `h2`, no resumption. `svid` is shown to a server that
/// asks.
pub fn client_config(
    verifier: Arc<dyn ServerCertVerifier>,
    svid: Option<&X509Svid>,
    clock: Clock,
) -> ClientConfig {
    let builder = ClientConfig::builder_with_details(ring_provider(), Arc::new(clock))
        .with_protocol_versions(&VERSIONS)
        .expect(WITH_RING)
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match svid {
        Some(svid) => builder.with_client_cert_resolver(Arc::new(OneSvid::new(svid))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![HTTP2.to_vec()];
    config.resumption = Resumption::disabled();
    config
}

/// The server's end: TLS 1.3 or 1.2, ALPN `h2`, no tickets. The SVID at the time of each handshake
/// is shown; handshakes fail while there is none. Without a verifier no client certificate is
/// asked for.
pub fn server_config(
    svid: watch::Receiver<Option<Arc<X509Svid>>>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    clock: Clock,
) -> ServerConfig {
    let mut config = server_builder(clock)
        .with_client_cert_verifier(verifier.unwrap_or_else(WebPkiClientVerifier::no_client_auth))
        .with_cert_resolver(Arc::new(SvidResolver::new(svid)));
    config.alpn_protocols = vec![HTTP2.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config
}

/// The beginning of every configuration of a server's end.
pub(crate) fn server_builder(clock: Clock) -> ConfigBuilder<ServerConfig, WantsVerifier> {
    ServerConfig::builder_with_details(ring_provider(), Arc::new(clock))
        .with_protocol_versions(&VERSIONS)
        .expect(WITH_RING)
}

/// The one provider, shared by all configurations.
pub(crate) fn ring_provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER
        .get_or_init(|| Arc::new(rustls::crypto::ring::default_provider()))
        .clone()
}
