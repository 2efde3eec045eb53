//! Bundles from servers that answer as they like.
#![allow(clippy::disallowed_methods, reason = "tests own their tasks and files")]

use std::path::{Path, PathBuf};

use finial_identity::spiffe_id::TrustDomain;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use super::tests::{first, td};
use super::url::{self, FetchError};
use super::{BootstrapSource, BundleFormat, BundleRequest, MAX_BUNDLE, workload_api};
use crate::endpoints::testing::World;
use crate::test_pki::{Authority, NamedServer};

/// Reads the head of a request, passes it on, and answers.
async fn answer(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    with: &[u8],
    heads: &mpsc::UnboundedSender<String>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else {
            return;
        };
        head.push(byte);
    }
    heads.send(String::from_utf8(head).unwrap()).unwrap();
    // A client that has read enough closes.
    let _closed = stream.write_all(with).await;
    let _closed = stream.shutdown().await;
}

pub(super) fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// Serves one answer to all on a Unix socket.
fn serve_socket(dir: &Path, with: Vec<u8>) -> (PathBuf, mpsc::UnboundedReceiver<String>) {
    let path = dir.join("bundle.sock");
    let _absent = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let (sender, heads) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _from)) = listener.accept().await {
            answer(stream, &with, &sender).await;
        }
    });
    (path, heads)
}

fn over(socket: PathBuf) -> BootstrapSource {
    BootstrapSource::Url {
        url: "http://bundles.example.org/b?x=1".parse().unwrap(),
        unix_socket: Some(socket),
        format: BundleFormat::Pem,
    }
}

#[tokio::test]
async fn a_server_on_a_socket_is_told_who_asks_and_why() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new("example.org");
    let (socket, mut heads) = serve_socket(dir.path(), ok(&authority.certificate().to_pem()));
    let td = td();
    let loaded = over(socket.clone()).load(&first(&td)).await.unwrap().unwrap();
    assert_eq!(loaded.x509_certificates(), [authority.certificate()]);
    let head = heads.recv().await.unwrap();
    assert!(
        head.starts_with(
            "GET /b?x=1&spiffe-trust-domain=example.org&spire-attest-mode=bootstrap\
             &spire-attest-start-time=2030-01-02T03%3A04%3A05Z&spire-connection-attempts=1\
             &spire-server-address=spire-server&spire-server-port=8081 HTTP/1.1\r\n"
        ) && head.contains("host: bundles.example.org\r\n"),
        "{head}"
    );
    let again = BundleRequest {
        is_again: true,
        attempts: 7,
        ..first(&td)
    };
    over(socket).load(&again).await.unwrap();
    let head = heads.recv().await.unwrap();
    assert!(
        head.contains("spire-attest-mode=rebootstrap&") && head.contains("attempts=7&"),
        "{head}"
    );
}

#[tokio::test]
async fn an_answer_that_is_no_bundle_is_refused_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(MAX_BUNDLE + 1)).into_bytes();
    let head = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(128 << 10)).into_bytes();
    for (with, why) in [
        (b"HTTP/1.1 404 Not Found\r\n\r\n".to_vec(), "answered 404"),
        (
            b"HTTP/1.1 302 Found\r\nlocation: http://evil.example/\r\n\r\n".to_vec(),
            "redirects are not followed",
        ),
        (long, "more than 4194304 bytes"),
        (head, "trust bundle"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx".to_vec(),
            "trust bundle",
        ),
        (ok(""), "no certificate in it"),
        (ok("not a bundle"), "trust bundle"),
        (b"SSH-2.0".to_vec(), "trust bundle"),
        (Vec::new(), "trust bundle"),
    ] {
        let (socket, _heads) = serve_socket(dir.path(), with);
        let error = over(socket).load(&first(&td())).await.unwrap_err().to_string();
        assert!(error.contains(why), "{why}: {error}");
        assert!(
            error.contains("trust_bundle_url http://bundles.example.org/b"),
            "{error}"
        );
    }
    let error = over(dir.path().join("absent"))
        .load(&first(&td()))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("connect: "), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_answer_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("silent.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let error = over(path).load(&first(&td())).await.unwrap_err().to_string();
    assert!(error.contains("no answer within 30 s"), "{error}");
}

/// A web server for `localhost` and the authority that vouches for it.
pub(super) async fn serve_web(
    with: Vec<u8>,
) -> (u16, CertificateDer<'static>, mpsc::UnboundedReceiver<String>) {
    let server = NamedServer::new(&["localhost"]);
    let tls = TlsAcceptor::from(server.tls);
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, heads) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _from)) = listener.accept().await {
            if let Ok(stream) = tls.accept(stream).await {
                answer(stream, &with, &sender).await;
            }
        }
    });
    (port, server.authority, heads)
}

fn roots(ca: CertificateDer<'static>) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(ca).unwrap();
    roots
}

#[tokio::test]
async fn a_web_server_is_asked_when_a_root_vouches_for_its_name() {
    let (port, ca, mut heads) = serve_web(ok("the bundle")).await;
    let roots = roots(ca);
    let uri = |host: &str| format!("https://{host}:{port}/b?x=1").parse().unwrap();
    let found = url::fetch(&uri("localhost"), roots.clone(), None).await.unwrap();
    assert_eq!(found, b"the bundle");
    let head = heads.recv().await.unwrap();
    assert!(
        head.starts_with("GET /b?x=1 HTTP/1.1\r\n") && head.contains(&format!("host: localhost:{port}\r\n")),
        "{head}"
    );
    // Another name, and another root.
    let error = url::fetch(&uri("127.0.0.1"), roots, None).await.unwrap_err();
    assert!(matches!(error, FetchError::Connect(_)), "{error}");
    let (_port, other, _heads) = serve_web(Vec::new()).await;
    let error = url::fetch(&uri("localhost"), super::url_tests::roots(other), None)
        .await
        .unwrap_err();
    assert!(matches!(error, FetchError::Connect(_)), "{error}");
    assert!(
        heads.try_recv().is_err(),
        "nothing was asked of a server that is not trusted"
    );
}

#[tokio::test]
async fn another_workload_api_gives_the_bundle_of_the_trust_domain() {
    let served = World::new().serve();
    served.world.publish_entries(vec![served.world.entry("a")]);
    let source = BootstrapSource::WorkloadApi {
        socket: served.path.clone(),
    };
    let loaded = source.load(&first(&td())).await.unwrap().unwrap();
    let expected = served.world.own_bundle().x509_certificates();
    assert_eq!(loaded.x509_certificates(), expected);
    let other = TrustDomain::parse("other.org").unwrap();
    let error = workload_api::fetch(&served.path, &other).await.unwrap_err();
    assert_eq!(error, "has no bundle of spiffe://other.org");
    let absent = BootstrapSource::WorkloadApi {
        socket: served.path.with_file_name("absent.sock"),
    };
    let error = absent.load(&first(&td())).await.unwrap_err().to_string();
    assert!(
        error.contains("trust_bundle_spiffe_workload_api") && error.contains("connect"),
        "{error}"
    );
    served.stop().await;
}
