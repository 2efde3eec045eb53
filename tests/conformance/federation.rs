//! SPIFFE Federation: what the bundle endpoint answers. What the client of other endpoints believes is in
//! `tests/e2e/federation.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use finial_identity::bundle::Bundle;
use finial_identity::peer::{self, PeerPolicy, SharedBundles, X509Bundles};
use finial_identity::process::Clock;
use finial_identity::spiffe_id::TrustDomain;
use finial_tests::{Entry, Stack, StackOptions, WebAuthority, free_port, https_get};
use rustls::client::ResolvesClientCert;
use rustls::{CipherSuite, ClientConfig, RootCertStore, SignatureScheme};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// The suites of Mozilla's intermediate profile that are not of the DHE family.
const INTERMEDIATE: [CipherSuite; 9] = [
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS13_AES_256_GCM_SHA384,
    CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
];

/// Notices when it is asked for a certificate.
#[derive(Debug, Default)]
struct Asked(AtomicBool);

impl ResolvesClientCert for Asked {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        self.0.store(true, Ordering::SeqCst);
        None
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn server(port: u16, profile: &str) -> Stack {
    let block = format!(
        r#"federation {{ bundle_endpoint {{ address = "127.0.0.1" port = {port} refresh_hint = "2m" profile {profile} }} }}"#
    );
    Stack::server_only(StackOptions {
        server: block,
        ..StackOptions::default()
    })
}

fn own_bundle(stack: &Stack) -> Bundle {
    let text = stack
        .server_cli_ok(&["bundle", "show", "-format", "spiffe"])
        .stdout;
    let name = TrustDomain::parse(stack.trust_domain()).expect("a name");
    Bundle::parse_spiffe_json(name, text.as_bytes()).expect("a bundle document")
}

/// Asks for the bundle and checks everything that both profiles promise.
fn check(stack: &Stack, port: u16, config: impl Fn() -> ClientConfig) {
    let asked = Arc::new(Asked::default());
    let watchful = || {
        let mut config = config();
        config.client_auth_cert_resolver = Arc::clone(&asked) as Arc<dyn ResolvesClientCert>;
        config.alpn_protocols = Vec::new();
        config
    };
    let fetch = || {
        let (head, body, suite) = https_get(port, watchful(), "GET", "/").expect("an answer");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let head = head.to_lowercase();
        assert!(head.contains("content-type: application/json"), "{head}");
        assert!(!head.contains("www-authenticate"), "{head}");
        assert!(INTERMEDIATE.contains(&suite), "{suite:?}");
        let text = String::from_utf8(body).expect("UTF-8");
        let name = TrustDomain::parse(stack.trust_domain()).expect("a name");
        Bundle::parse_spiffe_json(name, text.as_bytes()).expect("a bundle document")
    };
    let expected = Bundle {
        refresh_hint: 120,
        ..own_bundle(stack)
    };
    assert_eq!(fetch(), expected);
    // The newest one, and a new authority before anything is signed with it.
    stack.server_cli_ok(&["localauthority", "x509", "prepare"]);
    stack.server_cli_ok(&["localauthority", "jwt", "prepare"]);
    let fetched = fetch();
    let counts = (fetched.x509_authorities.len(), fetched.jwt_authorities.len());
    assert_eq!(counts, (2, 2));
    assert!(fetched.sequence_number > expected.sequence_number);
    assert!(!asked.0.load(Ordering::SeqCst), "no client is to authenticate");
    let (head, ..) = https_get(port, watchful(), "GET", "/other").expect("an answer");
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");
    let (head, ..) = https_get(port, watchful(), "POST", "/").expect("an answer");
    assert!(head.starts_with("HTTP/1.1 405"), "{head}");
}

/// Covers FED-03, FED-12, FED-13, FED-38, FED-39, FED-40, FED-41.
#[test]
fn the_endpoint_serves_the_newest_bundle_with_the_servers_svid() {
    let port = free_port();
    let stack = server(port, "\"https_spiffe\" {}");
    let trusted = own_bundle(&stack);
    check(&stack, port, || {
        let id = trusted.trust_domain.server_id();
        let bundles: X509Bundles =
            [(trusted.trust_domain.clone(), trusted.x509_certificates().into())].into();
        let verifier = peer::server_verifier(
            Arc::new(SharedBundles::fixed(bundles)),
            PeerPolicy::OneOf(vec![id]),
            Clock::system(),
        );
        peer::client_config(verifier, None, Clock::system())
    });
}

/// Covers FED-12, FED-13, FED-20, FED-21, FED-22, FED-23.
#[test]
fn the_endpoint_serves_the_newest_bundle_with_a_certificate_of_the_web() {
    let pki = tempfile::TempDir::with_prefix("finial-").expect("a temporary directory");
    let web = WebAuthority::new("web");
    web.write_server(&["127.0.0.1"], pki.path());
    let profile = format!(
        r#""https_web" {{ serving_cert_file {{ cert_file_path = "{0}/cert.pem" key_file_path = "{0}/key.pem" }} }}"#,
        pki.path().display()
    );
    let port = free_port();
    let stack = server(port, &profile);
    check(&stack, port, || {
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(web.pem().as_bytes()).expect("PEM");
        roots.add(root).expect("a root");
        ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth()
    });
}

/// Covers FED-10, FED-15, FED-37.
#[test]
fn bundles_of_different_trust_domains_stay_apart_with_their_names() {
    let stack = Stack::start(StackOptions::default());
    let own = own_bundle(&stack).to_spiffe_json();
    let mut names = Vec::new();
    for name in ["b.test", "c.test"] {
        let path = stack.dir().join(name);
        std::fs::write(&path, &own).expect("a file");
        let path = path.display().to_string();
        stack.server_cli_ok(&["bundle", "set", "-id", name, "-format", "spiffe", "-path", &path]);
        names.extend(["-federatesWith", name]);
    }
    stack.create_entry(&Entry::for_me("/web").with(&names));
    stack.wait_identity("/web");
    let fetched = stack
        .agent_cli_ok(&["api", "fetch", "x509", "-output", "json"])
        .json();
    let bundles = &fetched["federated_bundles"];
    let text = bundles.to_string();
    assert!(text.contains("b.test") && text.contains("c.test"), "{fetched}");
    // An endpoint of another trust domain is authenticated by that trust domain's own bundle, which is configured apart.
    stack.server_cli_ok(&[
        "federation",
        "create",
        "-trustDomain",
        "d.test",
        "-bundleEndpointURL",
        "https://127.0.0.1:9/",
        "-bundleEndpointProfile",
        "https_spiffe",
        "-endpointSpiffeID",
        "spiffe://e.test/endpoint",
    ]);
    let refused = stack
        .server_cli(&["federation", "refresh", "-id", "d.test"])
        .stderr;
    assert!(refused.contains("no X.509 authority of e.test"), "{refused}");
}
