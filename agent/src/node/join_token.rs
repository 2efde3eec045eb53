//! `join_token`: the agent sends a token that an operator made at the server and that can be used once.

use async_trait::async_trait;
use zeroize::Zeroizing;

use super::{AttestorError, NodeAttestor};

/// Attests with a join token.
pub struct JoinTokenAttestor {
    token: Zeroizing<String>,
}

impl JoinTokenAttestor {
    /// Attests with `token`, less the white space around it.
    pub fn new(token: &str) -> Self {
        Self {
            token: Zeroizing::new(token.trim().to_owned()),
        }
    }
}

#[async_trait]
impl NodeAttestor for JoinTokenAttestor {
    fn name(&self) -> &'static str {
        "join_token"
    }

    async fn payload(&self) -> Result<Vec<u8>, AttestorError> {
        if self.token.is_empty() {
            return Err(AttestorError("join_token: token is empty".to_owned()));
        }
        Ok(self.token.as_bytes().to_vec())
    }

    async fn respond(&self, _challenge: &[u8]) -> Result<Vec<u8>, AttestorError> {
        Err(AttestorError("join_token: server sent a challenge".to_owned()))
    }

    fn works_once(&self) -> bool {
        true
    }
}

impl std::fmt::Debug for JoinTokenAttestor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JoinTokenAttestor")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sends_the_bare_token_and_answers_no_challenge() {
        let attestor = JoinTokenAttestor::new(" 4a1f\n");
        assert_eq!(attestor.payload().await.unwrap(), b"4a1f");
        assert!(attestor.respond(b"x").await.is_err());
        assert!(!format!("{attestor:?}").contains("4a1f"));
        assert!(JoinTokenAttestor::new(" ").payload().await.is_err());
    }
}
