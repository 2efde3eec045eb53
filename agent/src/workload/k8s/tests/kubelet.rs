//! The connection to the kubelet: how it is verified, and who gets the token.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Mutex;

use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::get;
use finial_identity::key::{KeyType, PrivateKey};
use finial_identity::process::TaskSet;
use finial_identity::process::http_listener::{HttpListener, TlsSource};
use finial_identity::x509::Certificate;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use super::*;
use crate::config::{KubeletLogin, KubeletPort, KubeletVerification};
use crate::test_pki::NamedServer;

/// A kubelet over TLS that lets in who shows this header.
struct Served {
    dir: tempfile::TempDir,
    port: u16,
    certificate: CertificateDer<'static>,
    tokens: Arc<Mutex<Vec<String>>>,
}

impl Served {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn settings(&self) -> K8sSettings {
        K8sSettings {
            port: KubeletPort::Secure(self.port),
            verification: self.trusting("ca", &[]),
            login: KubeletLogin::Token(self.path("token")),
            ..K8sSettings::default()
        }
    }

    fn trusting(&self, authorities: &str, own: &[&str]) -> KubeletVerification {
        KubeletVerification::Certificates {
            authorities: self.path(authorities),
            own: own.iter().map(|name| self.path(name)).collect(),
        }
    }

    async fn facts(&self, settings: K8sSettings) -> Result<BTreeSet<String>, String> {
        let attestor = K8sAttestor::new(settings);
        facts(&attestor, &in_web(A))
            .await
            .map_err(|error| error.to_string())
    }
}

async fn pods(State(tokens): State<Arc<Mutex<Vec<String>>>>, headers: HeaderMap) -> (StatusCode, String) {
    let shown = headers
        .get("authorization")
        .map(|value| value.to_str().unwrap().to_owned());
    tokens.lock().unwrap().push(shown.clone().unwrap_or_default());
    match shown.as_deref() {
        Some("Bearer good") => (StatusCode::OK, list(&[web()]).to_string()),
        _ => (StatusCode::UNAUTHORIZED, "Unauthorized".to_owned()),
    }
}

/// A kubelet whose certificate, of an authority in the file `ca`, names `node-a` and not 127.0.0.1.
async fn with_kubelet(work: impl AsyncFnOnce(&Served)) {
    let NamedServer {
        authority,
        certificate,
        tls,
    } = NamedServer::new(&["node-a", "localhost"]);
    let tokens = Arc::new(Mutex::new(Vec::new()));
    let routes = Router::new()
        .route("/pods", get(pods))
        .with_state(Arc::clone(&tokens));
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .unwrap();
    let listener =
        HttpListener::new(listener, routes).with_tls(Some(TlsSource::new(move || Arc::clone(&tls))));
    let served = Served {
        dir: tempfile::tempdir().unwrap(),
        port: listener.local_addr().unwrap().port(),
        certificate,
        tokens,
    };
    std::fs::write(served.path("ca"), pem(&authority)).unwrap();
    std::fs::write(served.path("token"), "good\n").unwrap();
    let mut tasks = TaskSet::new();
    let stop = tasks.stop_signal();
    tasks.spawn("kubelet", listener.run(stop));
    tasks.run_until_first_exit(work(&served)).await.unwrap();
}

fn pem(der: &[u8]) -> String {
    Certificate::parse(der).unwrap().to_pem()
}

#[tokio::test]
async fn the_kubelet_is_verified_by_its_chain_and_where_it_has_a_name_by_that() {
    with_kubelet(async |served: &Served| {
        let found = served.facts(served.settings()).await.unwrap();
        assert!(found.contains("k8s:container-name:app"), "{found:?}");
        let named = |name: &str| K8sSettings {
            node_name: Some(name.to_owned()),
            ..served.settings()
        };
        served.facts(named("127.0.0.1")).await.unwrap();
        served.facts(named("localhost")).await.unwrap();
        let error = served.facts(named("no name")).await.unwrap_err();
        assert!(error.contains("not a host name"), "{error}");
    })
    .await;
}

#[test]
fn another_nodes_certificate_does_not_do_at_this_nodes_name() {
    let server = NamedServer::new(&["node-a"]);
    let verifier = trust::of_certificates(vec![server.authority], Vec::new());
    for (name, fine) in [("node-a", true), ("node-b", false), ("10.0.0.1", true)] {
        let name = ServerName::try_from(name).unwrap();
        let verified = verifier.verify_server_cert(&server.certificate, &[], &name, &[], UnixTime::now());
        assert_eq!(verified.is_ok(), fine, "{name:?}");
    }
}

#[tokio::test]
async fn who_is_not_the_kubelet_is_not_shown_the_token() {
    with_kubelet(async |served: &Served| {
        let stranger = rcgen::generate_simple_self_signed(["node-a".to_owned()]).unwrap();
        std::fs::write(served.path("stranger"), pem(stranger.cert.der())).unwrap();
        let trusting = |file: &str| K8sSettings {
            verification: served.trusting(file, &[]),
            ..served.settings()
        };
        let error = served.facts(trusting("stranger")).await.unwrap_err();
        assert!(error.contains("invalid peer certificate"), "{error}");
        let error = served.facts(trusting("absent")).await.unwrap_err();
        assert!(error.contains("absent"), "{error}");
        std::fs::write(served.path("empty"), "").unwrap();
        assert!(served.facts(trusting("empty")).await.is_err());
        assert!(served.tokens.lock().unwrap().is_empty());
        // Its own certificate in the file is enough, and so is not to care.
        std::fs::write(served.path("own"), pem(&served.certificate)).unwrap();
        served.facts(trusting("own")).await.unwrap();
        let anybody = K8sSettings {
            verification: KubeletVerification::Skip,
            ..served.settings()
        };
        served.facts(anybody).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn the_kubelets_own_certificate_on_the_node_does_beside_the_clusters_authority_or_without_it() {
    with_kubelet(async |served: &Served| {
        let stranger = rcgen::generate_simple_self_signed(["node-a".to_owned()]).unwrap();
        std::fs::write(served.path("stranger"), pem(stranger.cert.der())).unwrap();
        std::fs::write(served.path("broken"), "nothing").unwrap();
        // As kubelets keep it: the certificate, and its key beside it.
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        std::fs::write(served.path("own"), pem(&served.certificate) + &key.to_pem()).unwrap();
        let trusting = |authorities: &str, own: &[&str]| K8sSettings {
            verification: served.trusting(authorities, own),
            ..served.settings()
        };
        for (authorities, own) in [
            ("stranger", &["own"][..]),
            ("stranger", &["absent", "broken", "own"]),
            ("absent", &["own"]),
            ("ca", &["stranger"]),
            ("ca", &["absent", "broken"]),
        ] {
            let facts = served.facts(trusting(authorities, own)).await;
            assert!(facts.is_ok(), "{authorities} {own:?}: {facts:?}");
        }
        let shown = served.tokens.lock().unwrap().len();
        for (authorities, own) in [
            ("stranger", &["stranger"][..]),
            ("stranger", &["absent"]),
            ("absent", &["stranger"]),
            ("absent", &["absent"]),
            ("absent", &["broken"]),
            // The kubelet's own certificate is not trusted as an authority.
            ("stranger", &["ca"]),
        ] {
            let facts = served.facts(trusting(authorities, own)).await;
            assert!(facts.is_err(), "{authorities} {own:?}");
        }
        assert_eq!(
            served.tokens.lock().unwrap().len(),
            shown,
            "nobody else sees the token"
        );
    })
    .await;
}

/// Shows a certificate without having its key.
#[derive(Debug)]
struct Borrowed(Arc<rustls::sign::CertifiedKey>);

impl rustls::server::ResolvesServerCert for Borrowed {
    fn resolve(&self, _hello: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

#[tokio::test]
async fn who_shows_the_kubelets_certificate_without_its_key_is_not_the_kubelet() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let kubelet = rcgen::generate_simple_self_signed(["node-a".to_owned()]).unwrap();
        let own = PrivateKeyDer::try_from(rcgen::KeyPair::generate().unwrap().serialize_der()).unwrap();
        let key = rustls::crypto::ring::sign::any_supported_type(&own).unwrap();
        let shown = rustls::sign::CertifiedKey::new(vec![kubelet.cert.der().clone()], key);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Borrowed(Arc::new(shown))));
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("own"), pem(kubelet.cert.der())).unwrap();
        std::fs::write(dir.path().join("token"), "good").unwrap();
        let kubelet = Kubelet::new(Arc::new(K8sSettings {
            port: KubeletPort::Secure(listener.local_addr().unwrap().port()),
            verification: KubeletVerification::Certificates {
                authorities: dir.path().join("own"),
                own: Vec::new(),
            },
            login: KubeletLogin::Token(dir.path().join("token")),
            ..K8sSettings::default()
        }));
        let accepted = async {
            let (stream, _address) = listener.accept().await.unwrap();
            acceptor.accept(stream).await.is_ok()
        };
        let (asked, accepted) = tokio::join!(kubelet.fetch(), accepted);
        let error = asked.unwrap_err().to_string();
        assert!(error.contains("connect to"), "{error}");
        assert!(!accepted, "no handshake, and so no token");
    }
}

#[test]
fn urls_have_ipv6_addresses_in_brackets() {
    for (host, expected) in [
        ("fd00::1", "[fd00::1]:10250"),
        ("::1", "[::1]:10250"),
        ("FD00:0:0::1", "[fd00::1]:10250"),
        ("::ffff:10.0.0.1", "[::ffff:10.0.0.1]:10250"),
        ("10.0.0.1", "10.0.0.1:10250"),
        ("node-a.example", "node-a.example:10250"),
    ] {
        assert_eq!(ask::authority(host, 10250), expected);
        assert!(ServerName::try_from(host).is_ok(), "{host}");
    }
}

#[tokio::test]
async fn a_renewed_token_is_read_after_a_refusal_at_once() {
    with_kubelet(async |served: &Served| {
        std::fs::write(served.path("token"), "stale").unwrap();
        let kubelet = Kubelet::new(Arc::new(served.settings()));
        let error = kubelet.fetch().await.unwrap_err().to_string();
        assert!(error.contains("401") && !error.contains("stale"), "{error}");
        std::fs::write(served.path("token"), "good").unwrap();
        kubelet.fetch().await.unwrap();
        assert!(!format!("{kubelet:?}").contains("good"));
        // What works is not read again before its time.
        std::fs::remove_file(served.path("token")).unwrap();
        kubelet.fetch().await.unwrap();
        let anonymous = K8sSettings {
            login: KubeletLogin::Anonymous,
            ..served.settings()
        };
        let error = served.facts(anonymous).await.unwrap_err();
        assert!(error.contains("401 Unauthorized: Unauthorized"), "{error}");
    })
    .await;
}
