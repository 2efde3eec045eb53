//! Whole handshakes in memory: two rustls connections that exchange their bytes.

use super::config::{HTTP2, VERSIONS, ring_provider};
use super::*;
use crate::key::{KeyType, PrivateKey};
use crate::process::Clock;
use crate::x509::X509Svid;
use crate::x509::testing::{Ca, NOW, SERVER_AUTH, Spec};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, Error, ServerConfig, ServerConnection};
use rustls_pki_types::PrivatePkcs8KeyDer;
use time::Duration;

const SERVER: &str = "spiffe://example.org/spire/server";
const AGENT: &str = "spiffe://example.org/spire/agent/x";

fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

fn bundles(of: &[(&str, &Ca)]) -> Arc<dyn BundleSource> {
    let bundles: X509Bundles = of
        .iter()
        .map(|(name, ca)| (domain(name), Arc::from([ca.certificate.clone()])))
        .collect();
    Arc::new(SharedBundles::fixed(bundles))
}

/// A publisher that has stopped; what it published last stays.
fn published(ca: &Ca, spec: &Spec) -> watch::Receiver<Option<Arc<X509Svid>>> {
    watch::channel(Some(Arc::new(issued(ca, spec)))).1
}

fn issued(ca: &Ca, spec: &Spec) -> X509Svid {
    let key = PrivateKey::generate(KeyType::EcP256).unwrap();
    let leaf = ca.issue(spec, key.public_key());
    X509Svid::new(vec![leaf], Arc::new(key)).unwrap()
}

/// A server that shows a certificate which no SVID may be.
fn server_showing(certificate: &Certificate, key: &PrivateKey) -> ServerConfig {
    let key = PrivatePkcs8KeyDer::from(key.pkcs8_der().to_vec());
    let key = rustls::crypto::ring::sign::any_supported_type(&key.into()).unwrap();
    let certified = CertifiedKey::new(vec![certificate.der().clone()], key);
    ServerConfig::builder_with_provider(ring_provider())
        .with_protocol_versions(&VERSIONS)
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
}

/// Runs the handshake. Each end's outcome: its connection, or its own error.
fn handshake(
    client: ClientConfig,
    server: ServerConfig,
) -> (Result<ClientConnection, Error>, Result<ServerConnection, Error>) {
    let name = "localhost".try_into().unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    let (mut client_error, mut server_error) = (None, None);
    for _ in 0..10 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut input = &bytes[..];
        while !input.is_empty() && server_error.is_none() {
            server.read_tls(&mut input).unwrap();
            server_error = server.process_new_packets().err();
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut input = &bytes[..];
        while !input.is_empty() && client_error.is_none() {
            client.read_tls(&mut input).unwrap();
            client_error = client.process_new_packets().err();
        }
    }
    let client = match client_error {
        None => Ok(client),
        Some(error) => Err(error),
    };
    let server = match server_error {
        None => Ok(server),
        Some(error) => Err(error),
    };
    (client, server)
}

fn clock() -> Clock {
    Clock::paused_at(NOW)
}

/// A client of `example.org` that wants its server.
fn client_of(ca: &Ca) -> ClientConfig {
    let policy = PeerPolicy::ServerOf(domain("example.org"));
    let verifier = server_verifier(bundles(&[("example.org", ca)]), policy, clock());
    client_config(verifier, None, clock())
}

fn server_of(ca: &Ca, spec: &Spec) -> ServerConfig {
    server_config(published(ca, spec), None, clock())
}

/// What the client of `trusted` says to a server with that SVID of `ca`.
fn client_error(trusted: &Ca, ca: &Ca, spec: &Spec) -> Error {
    handshake(client_of(trusted), server_of(ca, spec))
        .0
        .err()
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_right_server_is_accepted_with_either_version() {
    let ca = Ca::new("example.org");
    for (versions, expected) in [
        (&[&TLS13][..], rustls::ProtocolVersion::TLSv1_3),
        (&[&TLS12][..], rustls::ProtocolVersion::TLSv1_2),
    ] {
        let policy = PeerPolicy::ServerOf(domain("example.org"));
        let verifier = server_verifier(bundles(&[("example.org", &ca)]), policy, clock());
        let mut client = ClientConfig::builder_with_details(ring_provider(), Arc::new(clock()))
            .with_protocol_versions(versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        client.alpn_protocols = vec![HTTP2.to_vec()];
        let (client, server) = handshake(client, server_of(&ca, &Spec::leaf(SERVER)));
        let (client, server) = (client.unwrap(), server.unwrap());
        assert!(!client.is_handshaking() && !server.is_handshaking());
        assert_eq!(client.protocol_version(), Some(expected));
        assert_eq!(client.alpn_protocol(), Some(HTTP2));
        assert!(server.peer_certificates().is_none());
        let peer = Peer::from_tls(client.peer_certificates()).unwrap().unwrap();
        assert_eq!(peer.spiffe_id.as_str(), SERVER);
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_that_is_not_the_server_is_refused() {
    let ca = Ca::new("example.org");
    let error = client_error(&ca, &ca, &Spec::leaf("spiffe://example.org/web"));
    assert!(matches!(
        PeerError::within(&error),
        Some(PeerError::Unexpected { id, .. }) if id.as_str() == "spiffe://example.org/web"
    ));
    assert!(
        error
            .to_string()
            .contains("want spiffe://example.org/spire/server"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_server_signed_by_another_trust_domains_ca_is_refused() {
    let (ours, theirs) = (Ca::new("example.org"), Ca::new("other.org"));
    let error = client_error(&ours, &theirs, &Spec::leaf(SERVER));
    assert_eq!(error, Error::InvalidCertificate(CertificateError::UnknownIssuer));
    // Also when the bundle of the signer's trust domain is held.
    let both = bundles(&[("example.org", &ours), ("other.org", &theirs)]);
    let policy = PeerPolicy::ServerOf(domain("example.org"));
    let client = client_config(server_verifier(both, policy, clock()), None, clock());
    let error = handshake(client, server_of(&theirs, &Spec::leaf(SERVER))).0.err();
    assert_eq!(
        error,
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer))
    );
    let unknown = client_error(&ours, &theirs, &Spec::leaf("spiffe://other.org/spire/server"));
    assert!(matches!(
        PeerError::within(&unknown),
        Some(PeerError::Certificate(X509Error::NoBundle(_)))
    ));
}

#[tokio::test(start_paused = true)]
async fn an_expired_server_is_refused_by_the_clock_handed_in() {
    let ca = Ca::new("example.org");
    let mut spec = Spec::leaf(SERVER);
    spec.not_after = NOW + Duration::minutes(10);
    let shared = clock();
    let client = || {
        let policy = PeerPolicy::ServerOf(domain("example.org"));
        let verifier = server_verifier(bundles(&[("example.org", &ca)]), policy, shared.clone());
        client_config(verifier, None, shared.clone())
    };
    assert!(handshake(client(), server_of(&ca, &spec)).0.is_ok());
    shared.shift(Duration::minutes(11));
    let (client_end, server_end) = handshake(client(), server_of(&ca, &spec));
    assert_eq!(
        client_end.err(),
        Some(Error::InvalidCertificate(CertificateError::Expired))
    );
    assert!(matches!(
        server_end.err(),
        Some(Error::AlertReceived(rustls::AlertDescription::CertificateExpired))
    ));
}

#[tokio::test(start_paused = true)]
async fn a_ca_certificate_in_the_place_of_a_leaf_is_refused() {
    let ca = Ca::new("example.org");
    let (client, _) = handshake(client_of(&ca), server_showing(&ca.certificate, &ca.key));
    let error = client.err().unwrap();
    assert!(matches!(
        PeerError::within(&error),
        Some(PeerError::Certificate(X509Error::LeafWithoutPath(_)))
    ));
    let mut spec = Spec::leaf(SERVER);
    spec.basic_constraints = Some((true, None));
    let signing = ca.intermediate(&spec);
    let (client, _) = handshake(client_of(&ca), server_showing(&signing.certificate, &signing.key));
    let error = client.err().unwrap();
    assert!(matches!(
        PeerError::within(&error),
        Some(PeerError::Certificate(X509Error::LeafIsCa))
    ));
}

#[tokio::test(start_paused = true)]
async fn two_uri_sans_are_refused_also_by_the_insecure_verifier() {
    let ca = Ca::new("example.org");
    let mut spec = Spec::leaf(SERVER);
    spec.uris.push("https://example.org".to_owned());
    let key = PrivateKey::generate(KeyType::EcP256).unwrap();
    let leaf = ca.issue(&spec, key.public_key());
    let insecure = insecure_server_verifier(SpiffeId::parse(SERVER).unwrap());
    for client in [client_of(&ca), client_config(insecure, None, clock())] {
        let (client, _) = handshake(client, server_showing(&leaf, &key));
        let error = client.err().unwrap();
        assert!(matches!(
            PeerError::within(&error),
            Some(PeerError::Certificate(X509Error::UriSanCount(2)))
        ));
    }
}

#[tokio::test(start_paused = true)]
async fn the_insecure_verifier_looks_at_the_id_and_the_key_only() {
    let stranger = Ca::new("example.org");
    let mut spec = Spec::leaf(SERVER);
    spec.not_after = NOW - Duration::minutes(1);
    let client = || {
        let insecure = insecure_server_verifier(SpiffeId::parse(SERVER).unwrap());
        client_config(insecure, None, clock())
    };
    let (end, _) = handshake(client(), server_of(&stranger, &spec));
    assert!(!end.unwrap().is_handshaking());

    let web = Spec::leaf("spiffe://example.org/web");
    let error = handshake(client(), server_of(&stranger, &web)).0.err();
    assert!(matches!(
        PeerError::within(&error.unwrap()),
        Some(PeerError::Unexpected { .. })
    ));

    // The certificate of another: the key that signs the handshake is not its key.
    let (leaf, _) = stranger.leaf(SERVER);
    let other_key = PrivateKey::generate(KeyType::EcP256).unwrap();
    let error = handshake(client(), server_showing(&leaf, &other_key)).0.err();
    assert_eq!(
        error,
        Some(Error::InvalidCertificate(CertificateError::BadSignature))
    );
}

/// A server that looks at clients by `policy`, and a client with that SVID.
fn mutual(
    ca: &Ca,
    policy: PeerPolicy,
    mandatory: bool,
    svid: Option<&Spec>,
) -> Result<ServerConnection, Error> {
    let bundles = bundles(&[("example.org", ca)]);
    let verifier = client_verifier(bundles.clone(), policy, clock(), mandatory);
    let svid_of_server = published(ca, &Spec::leaf(SERVER));
    let server = server_config(svid_of_server, Some(verifier), clock());
    let policy = PeerPolicy::ServerOf(domain("example.org"));
    let svid = svid.map(|spec| issued(ca, spec));
    let client = client_config(server_verifier(bundles, policy, clock()), svid.as_ref(), clock());
    handshake(client, server).1
}

#[tokio::test(start_paused = true)]
async fn clients_show_their_svid_or_nothing() {
    let ca = Ca::new("example.org");
    let members = || PeerPolicy::AnyMemberOf(domain("example.org"));
    let server = mutual(&ca, members(), false, Some(&Spec::leaf(AGENT))).unwrap();
    let peer = Peer::from_tls(server.peer_certificates()).unwrap().unwrap();
    assert_eq!(peer.spiffe_id.as_str(), AGENT);
    assert_eq!(peer.chain.len(), 1);
    let server = mutual(&ca, members(), false, None).unwrap();
    assert!(!server.is_handshaking());
    assert!(Peer::from_tls(server.peer_certificates()).unwrap().is_none());
    assert_eq!(
        mutual(&ca, members(), true, None).err(),
        Some(Error::NoCertificatesPresented)
    );
}

#[tokio::test(start_paused = true)]
async fn clients_are_judged_by_the_policy() {
    let ca = Ca::new("example.org");
    let agent = Spec::leaf(AGENT);
    let ask = |policy| mutual(&ca, policy, false, Some(&agent));
    let id = SpiffeId::parse(AGENT).unwrap();
    assert!(ask(PeerPolicy::OneOf(vec![id])).is_ok());
    assert!(ask(PeerPolicy::Anyone).is_ok());
    assert!(ask(PeerPolicy::AnyMemberOf(domain("other.org"))).is_err());
    assert!(ask(PeerPolicy::ServerOf(domain("example.org"))).is_err());
    let error = ask(PeerPolicy::Custom(Arc::new(|_| Err("not today".to_owned())))).unwrap_err();
    assert!(matches!(
        PeerError::within(&error),
        Some(PeerError::Refused { why, .. }) if why == "not today"
    ));
}

#[tokio::test(start_paused = true)]
async fn e_28_x509_20_a_leaf_for_servers_only_is_a_client_too() {
    // SPIRE's server accepts any extended key usage of the clients of its port.
    let ca = Ca::new("example.org");
    let mut spec = Spec::leaf(AGENT);
    spec.extended_key_usage = Some(vec![SERVER_AUTH]);
    let server = mutual(&ca, PeerPolicy::Anyone, false, Some(&spec)).unwrap();
    assert!(Peer::from_tls(server.peer_certificates()).unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_server_without_an_svid_refuses_handshakes() {
    let ca = Ca::new("example.org");
    let (publisher, svid) = watch::channel(None);
    let server = server_config(svid, None, clock());
    let (client, server) = handshake(client_of(&ca), server);
    assert!(client.is_err() && server.is_err());
    drop(publisher);
}

#[tokio::test(start_paused = true)]
async fn sessions_are_never_resumed() {
    let ca = Ca::new("example.org");
    let (client, server) = (client_of(&ca), server_of(&ca, &Spec::leaf(SERVER)));
    for _ in 0..2 {
        let (end, _) = handshake(client.clone(), server.clone());
        let kind = end.unwrap().handshake_kind();
        assert_eq!(kind, Some(rustls::HandshakeKind::Full));
    }
}
