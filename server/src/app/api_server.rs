//! Clients of Kubernetes API servers.

use std::path::Path;

use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

/// A client of a cluster: by a kubeconfig, or of the cluster that the server runs in.
///
/// # Errors
/// What is wrong with the configuration; nothing is asked of the cluster yet.
pub(super) async fn client(kube_config_file: Option<&Path>) -> Result<Client, String> {
    let config = match kube_config_file {
        Some(path) => {
            let read = Kubeconfig::read_from(path).map_err(|error| match error {
                // The reader's text would show lines, and tokens stand in them.
                KubeconfigError::Parse(_) => format!("kubeconfig is malformed: {}", path.display()),
                other => other.to_string(),
            })?;
            let named = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
            named.map_err(|error| error.to_string())?
        }
        None => Config::incluster().map_err(|error| error.to_string())?,
    };
    check_trust(&config)?;
    Client::try_from(config).map_err(|error| error.to_string())
}

/// An API server decides who gets which identity, so it is verified, and by the cluster's own authority alone.
fn check_trust(config: &Config) -> Result<(), String> {
    if config.accept_invalid_certs {
        return Err("kubeconfig skips the verification of the API server".to_owned());
    }
    if config.cluster_url.scheme_str() == Some("https") {
        if config.root_cert.is_none() && config.root_cert_file.is_none() {
            return Err("kubeconfig names no authority of the API server".to_owned());
        }
        return Ok(());
    }
    match config.cluster_url.host() {
        Some("127.0.0.1" | "localhost" | "[::1]") => Ok(()),
        _ => Err(format!(
            "API server is not reached over TLS: {}",
            config.cluster_url
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)] // Tests lay out files by hand.
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    use axum::routing::get;
    use data_encoding::BASE64;
    use finial_identity::process::TaskSet;
    use finial_identity::process::http_listener::{HttpListener, TlsSource};
    use k8s_openapi::api::core::v1::Node;
    use kube::Api;
    use rustls_pki_types::PrivateKeyDer;

    use super::*;

    fn kubeconfig(cluster: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{{cluster}}}}}]\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\nusers: [{{name: u, user: {{token: secret}}}}]\n"
        )
    }

    async fn of(text: &str) -> Result<Client, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        std::fs::write(&path, text).unwrap();
        client(Some(&path)).await
    }

    fn pem(certificate: &rcgen::Certificate) -> String {
        finial_identity::x509::Certificate::parse(certificate.der())
            .unwrap()
            .to_pem()
    }

    #[tokio::test]
    async fn an_api_server_that_cannot_be_verified_is_refused() {
        let ca = BASE64.encode(b"x");
        for (cluster, why) in [
            ("server: 'https://a'".to_owned(), "names no authority"),
            ("server: 'http://a'".to_owned(), "not reached over TLS"),
            (
                format!(
                    "server: 'https://a', certificate-authority-data: {ca}, insecure-skip-tls-verify: true"
                ),
                "skips the verification",
            ),
        ] {
            let error = of(&kubeconfig(&cluster)).await.err().unwrap();
            assert!(error.contains(why), "{cluster}: {error}");
        }
        let error = of("clusters: secret\n").await.err().unwrap();
        assert!(
            error.contains("malformed") && !error.contains("secret"),
            "{error}"
        );
        assert!(client(Some(Path::new("/nonexistent"))).await.is_err());
    }

    #[tokio::test]
    async fn a_kubeconfig_leads_to_the_api_server_that_its_authority_vouches_for() {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let tls = Arc::new(tls);
        let node =
            serde_json::json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "uid": "u"}});
        let routes =
            axum::Router::new().route("/api/v1/nodes/n", get(move || async move { node.to_string() }));
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .unwrap();
        let listener =
            HttpListener::new(listener, routes).with_tls(Some(TlsSource::new(move || Arc::clone(&tls))));
        let port = listener.local_addr().unwrap().port();
        let mut tasks = TaskSet::new();
        let stop = tasks.stop_signal();
        tasks.spawn("api-server", listener.run(stop));
        let asked = async {
            for (authority, fine) in [
                (pem(&made.cert), true),
                (
                    pem(&rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])
                        .unwrap()
                        .cert),
                    false,
                ),
            ] {
                let ca = BASE64.encode(authority.as_bytes());
                let text = kubeconfig(&format!(
                    "server: 'https://127.0.0.1:{port}', certificate-authority-data: {ca}"
                ));
                let nodes: Api<Node> = Api::all(of(&text).await.unwrap());
                let found = nodes.get("n").await;
                assert_eq!(found.is_ok(), fine, "{found:?}");
            }
        };
        tasks.run_until_first_exit(asked).await.unwrap();
    }
}
