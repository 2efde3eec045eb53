//! ConfigMaps of API servers that answer as they like.
#![allow(clippy::disallowed_methods, reason = "tests own their tasks and files")]

use finial_identity::x509::Certificate;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::tests::{first, td};
use super::url_tests::{ok, serve_web};
use super::{BootstrapSource, BundleFormat, bundle_of};
use crate::config::{ApiServer, ConfigMapKey};
use crate::test_pki::Authority;

/// A ConfigMap that says so, as the API has it.
fn object(name: &str, data: &Value) -> String {
    json!({
        "kind": "ConfigMap", "apiVersion": "v1",
        "metadata": {"name": name, "namespace": "spire-system", "resourceVersion": "7"},
        "data": data,
    })
    .to_string()
}

/// What an agent knows of the API server at this port, with files in this folder.
fn source(dir: &TempDir, port: u16, ca: &[u8]) -> BootstrapSource {
    let server = ApiServer {
        host: Some("localhost".to_owned()),
        port,
        ca_path: dir.path().join("ca.crt"),
        token_path: dir.path().join("token"),
    };
    std::fs::write(&server.ca_path, Certificate::parse(ca).unwrap().to_pem()).unwrap();
    std::fs::write(&server.token_path, "good\n").unwrap();
    BootstrapSource::ConfigMap {
        map: ConfigMapKey {
            namespace: "spire-system".to_owned(),
            name: "spire-bundle".to_owned(),
            key: "bundle.spiffe".to_owned(),
        },
        server,
        format: BundleFormat::Spiffe,
    }
}

async fn refusal(source: &BootstrapSource) -> String {
    source.load(&first(&td())).await.unwrap_err().to_string()
}

#[tokio::test]
async fn the_bundle_is_the_key_of_the_object_that_the_account_of_the_pod_may_read() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new("example.org").certificate();
    let document = bundle_of(&td(), vec![authority.clone()]).to_spiffe_json();
    let map = object("spire-bundle", &json!({"bundle.spiffe": document}));
    let (port, ca, mut heads) = serve_web(ok(&map)).await;
    let source = source(&dir, port, &ca);
    let loaded = source.load(&first(&td())).await.unwrap().unwrap();
    assert_eq!(loaded.x509_certificates(), [authority]);
    let head = heads.recv().await.unwrap();
    assert!(
        head.starts_with("GET /api/v1/namespaces/spire-system/configmaps/spire-bundle HTTP/1.1\r\n")
            && head.contains("authorization: Bearer good\r\n"),
        "{head}"
    );
    assert_eq!(
        source.describe(),
        "trust_bundle_config_map spire-system/spire-bundle"
    );
}

#[tokio::test]
async fn whoever_the_cluster_does_not_vouch_for_is_shown_no_token() {
    let dir = tempfile::tempdir().unwrap();
    let (_port, stranger, _heads) = serve_web(Vec::new()).await;
    let (port, _ca, mut heads) = serve_web(ok("{}")).await;
    let error = refusal(&source(&dir, port, &stranger)).await;
    assert!(error.contains("connect: "), "{error}");
    assert!(heads.try_recv().is_err());
}

#[tokio::test]
async fn an_object_that_is_not_there_or_not_the_one_is_told() {
    for (answer, part) in [
        (
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}".to_vec(),
            "the server has not written it yet",
        ),
        (
            b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\n{}".to_vec(),
            "answered 403",
        ),
        (ok("not JSON"), "something else"),
        (
            ok(&object("other", &json!({"bundle.spiffe": "{}"}))),
            "something else",
        ),
        (
            ok(&object("spire-bundle", &json!({"bundle.crt": "x"}))),
            "has no key bundle.spiffe",
        ),
        (
            ok(&object("spire-bundle", &Value::Null)),
            "has no key bundle.spiffe",
        ),
        (
            ok(&object("spire-bundle", &json!({"bundle.spiffe": "{}"}))),
            "trust_bundle_config_map spire-system/spire-bundle",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (port, ca, _heads) = serve_web(answer).await;
        let error = refusal(&source(&dir, port, &ca)).await;
        assert!(error.contains(part), "{part}: {error}");
        assert!(
            error.starts_with("trust bundle: ") && !error.contains("good"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn files_that_are_missing_or_empty_and_an_unknown_address_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let (port, ca, _heads) = serve_web(Vec::new()).await;
    let whole = source(&dir, port, &ca);
    let BootstrapSource::ConfigMap { map, server, format } = whole.clone() else {
        panic!("{whole:?}");
    };
    let nowhere = BootstrapSource::ConfigMap {
        map,
        server: ApiServer { host: None, ..server },
        format,
    };
    let error = refusal(&nowhere).await;
    assert!(error.contains("KUBERNETES_SERVICE_HOST"), "{error}");
    std::fs::write(dir.path().join("token"), " \n").unwrap();
    assert!(refusal(&whole).await.contains("holds no token"));
    std::fs::write(dir.path().join("ca.crt"), "").unwrap();
    let error = refusal(&whole).await;
    assert!(error.contains("holds no certificate"), "{error}");
    std::fs::remove_file(dir.path().join("ca.crt")).unwrap();
    let error = refusal(&whole).await;
    assert!(error.contains("ca.crt"), "{error}");
}
