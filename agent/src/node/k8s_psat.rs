//! `k8s_psat`: the agent sends the service account token that the kubelet projected into its pod for the server.
//!
//! The kubelet replaces the token long before it expires, so it is read at each use.

use async_trait::async_trait;
use finial_identity::process::private_file;
use serde::Serialize;

use super::{AttestorError, NodeAttestor};
use crate::config::K8sPsatSettings;

/// Most bytes of a token, as the server has it.
const MAX_TOKEN: usize = 16 * 1024;

/// Attests with a projected service account token.
#[derive(Debug)]
pub struct K8sPsatAttestor {
    settings: K8sPsatSettings,
}

#[derive(Serialize)]
struct Payload<'a> {
    cluster: &'a str,
    token: &'a str,
}

impl K8sPsatAttestor {
    /// Attests with the file that `settings` name.
    pub fn new(settings: K8sPsatSettings) -> Self {
        Self { settings }
    }
}

#[async_trait]
impl NodeAttestor for K8sPsatAttestor {
    fn name(&self) -> &'static str {
        "k8s_psat"
    }

    async fn payload(&self) -> Result<Vec<u8>, AttestorError> {
        let path = &self.settings.token_path;
        let secret = private_file::read_secret(path, MAX_TOKEN).map_err(failed)?;
        let token = std::str::from_utf8(secret.as_bytes().trim_ascii())
            .map_err(|_| failed(format!("token is not text: {}", path.display())))?;
        if token.is_empty() {
            return Err(failed(format!("token is empty: {}", path.display())));
        }
        let cluster = self.settings.cluster.as_str();
        serde_json::to_vec(&Payload { cluster, token }).map_err(failed)
    }

    async fn respond(&self, _challenge: &[u8]) -> Result<Vec<u8>, AttestorError> {
        Err(failed("server sent a challenge"))
    }
}

fn failed(why: impl std::fmt::Display) -> AttestorError {
    AttestorError(format!("k8s_psat: {why}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)] // Tests lay out files by hand.
    use serde_json::{Value, json};

    use super::*;

    #[tokio::test]
    async fn the_token_of_the_moment_is_sent_with_the_clusters_name() {
        let dir = tempfile::tempdir().unwrap();
        let token_path = dir.path().join("token");
        let attestor = K8sPsatAttestor::new(K8sPsatSettings {
            cluster: "demo".to_owned(),
            token_path: token_path.clone(),
        });
        let error = attestor.payload().await.unwrap_err().to_string();
        assert!(error.contains(token_path.to_str().unwrap()), "{error}");
        for token in ["a.b.c", "d.e.f"] {
            std::fs::write(&token_path, format!("{token}\n")).unwrap();
            let payload: Value = serde_json::from_slice(&attestor.payload().await.unwrap()).unwrap();
            assert_eq!(payload, json!({"cluster": "demo", "token": token}));
        }
        assert!(attestor.respond(b"x").await.is_err());
        assert!(!attestor.works_once(), "the next token is as good");
    }

    #[tokio::test]
    async fn a_file_that_holds_no_token_is_not_sent() {
        let dir = tempfile::tempdir().unwrap();
        let token_path = dir.path().join("token");
        for content in [
            b"".to_vec(),
            b" \n".to_vec(),
            vec![0xff],
            vec![b'a'; MAX_TOKEN + 1],
        ] {
            std::fs::write(&token_path, &content).unwrap();
            let attestor = K8sPsatAttestor::new(K8sPsatSettings {
                cluster: "demo".to_owned(),
                token_path: token_path.clone(),
            });
            assert!(attestor.payload().await.is_err(), "{content:?}");
        }
    }
}
