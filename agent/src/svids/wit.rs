//! WIT-SVIDs: the workload's key is made here, the server signs a token that names it, and both are kept and renewed
//! together, like JWT-SVIDs (Workload API §7, Incubating).

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use finial_identity::key::{JwsAlgorithm, KeyType, PrivateKey, PublicKey, Signer};
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::wit::parse_unverified;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::counters::{CacheCounters, TokenCounters};
use super::tokens::{Signed, SignedJwt, TokenCache};
use crate::upstream::{Upstream, UpstreamError};

/// The cache of WIT-SVIDs.
pub type WitCache = TokenCache<SignedWit>;

/// Signs WIT-SVIDs: the server, or a fake in tests.
#[async_trait]
pub trait WitSource: Send + Sync + fmt::Debug {
    /// One WIT-SVID for an entry, for a key that proves possession with this algorithm.
    async fn sign_wit(
        &self,
        entry_id: &str,
        public_key: &PublicKey,
        algorithm: JwsAlgorithm,
    ) -> Result<SignedJwt, UpstreamError>;
}

#[async_trait]
impl WitSource for Upstream {
    async fn sign_wit(
        &self,
        entry_id: &str,
        public_key: &PublicKey,
        algorithm: JwsAlgorithm,
    ) -> Result<SignedJwt, UpstreamError> {
        Self::sign_wit(self, entry_id, public_key, algorithm).await
    }
}

/// Makes the keys and has the tokens signed.
#[derive(Debug)]
pub struct WitSigner {
    source: Arc<dyn WitSource>,
    key_type: KeyType,
}

/// A WIT-SVID with the key that it is worth something with. Its `Debug` shows neither.
#[derive(Clone)]
pub struct SignedWit {
    signed: SignedJwt,
    authority_id: String,
    key_jwk: Arc<Zeroizing<String>>,
}

impl WitSigner {
    /// Workloads get keys of this type.
    pub fn new(source: Arc<dyn WitSource>, key_type: KeyType) -> Self {
        Self { source, key_type }
    }

    async fn sign(&self, entry_id: &str) -> Result<SignedWit, UpstreamError> {
        let malformed = |why: String| UpstreamError::Malformed(format!("WIT-SVID: {why}"));
        let key = self.make_key().await.map_err(malformed)?;
        let (public_key, algorithm) = (key.public_key(), key.jws_algorithm());
        let signed = self.source.sign_wit(entry_id, public_key, algorithm).await?;
        // A token for another key would be useless to the workload, and of use to somebody else.
        let read = parse_unverified(&signed.token).map_err(|error| malformed(error.to_string()))?;
        if read.confirmation.public_key != *public_key || read.confirmation.algorithm != algorithm {
            return Err(malformed("it is for another key".to_owned()));
        }
        if read.claims.get("sub").and_then(|sub| sub.as_str()) != Some(signed.spiffe_id.as_str()) {
            return Err(malformed(
                "it is for another identity than the answer says".to_owned(),
            ));
        }
        let key_jwk = key.to_jwk_json().map_err(|error| malformed(error.to_string()))?;
        Ok(SignedWit {
            signed,
            authority_id: read.kid,
            key_jwk: Arc::new(key_jwk),
        })
    }

    /// RSA keys take long and are made where nobody waits.
    async fn make_key(&self) -> Result<PrivateKey, String> {
        let key_type = self.key_type;
        let made = match key_type {
            KeyType::EcP256 | KeyType::EcP384 => PrivateKey::generate(key_type),
            KeyType::Rsa2048 | KeyType::Rsa4096 => {
                tokio::task::spawn_blocking(move || PrivateKey::generate(key_type))
                    .await
                    .map_err(|error| error.to_string())?
            }
        };
        made.map_err(|error| error.to_string())
    }
}

impl SignedWit {
    /// The private key as the JSON text of a JWK: a secret.
    pub fn key_jwk(&self) -> &str {
        &self.key_jwk
    }
}

impl Signed for SignedWit {
    type Source = WitSigner;
    const NAME: &'static str = "WIT-SVID";
    const TAINTED: Option<&'static str> = None;

    fn sign(
        source: &WitSigner,
        entry_id: &str,
        _audiences: &[String],
    ) -> impl Future<Output = Result<Self, UpstreamError>> + Send {
        source.sign(entry_id)
    }

    fn token(&self) -> &str {
        &self.signed.token
    }

    fn spiffe_id(&self) -> &SpiffeId {
        &self.signed.spiffe_id
    }

    fn life(&self) -> (OffsetDateTime, OffsetDateTime) {
        (self.signed.issued_at, self.signed.expires_at)
    }

    fn key_id(&self) -> Option<String> {
        Some(self.authority_id.clone())
    }

    fn counters(counters: &CacheCounters) -> &TokenCounters {
        &counters.wit
    }
}

impl fmt::Debug for SignedWit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedWit")
            .field("spiffe_id", &self.signed.spiffe_id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use finial_identity::wit::{confirmation, sign};
    use serde_json::json;

    use super::*;

    /// Signs for a key of its own, or for another identity, if told to.
    #[derive(Debug, Default)]
    struct Server {
        other_key: bool,
        other_subject: bool,
    }

    #[async_trait]
    impl WitSource for Server {
        async fn sign_wit(
            &self,
            entry_id: &str,
            public_key: &PublicKey,
            algorithm: JwsAlgorithm,
        ) -> Result<SignedJwt, UpstreamError> {
            let own = PrivateKey::generate(KeyType::EcP256).unwrap();
            let key = if self.other_key {
                own.public_key()
            } else {
                public_key
            };
            let sub = if self.other_subject { "other" } else { entry_id };
            let claims = json!({
                "sub": format!("spiffe://example.org/{sub}"), "exp": 4_000_000_000_i64,
                "cnf": confirmation(key, algorithm).unwrap(),
            });
            let token = sign(&own, "k", claims.as_object().unwrap()).unwrap();
            Ok(SignedJwt {
                token: token.into(),
                spiffe_id: SpiffeId::parse(&format!("spiffe://example.org/{entry_id}")).unwrap(),
                issued_at: OffsetDateTime::UNIX_EPOCH,
                expires_at: OffsetDateTime::UNIX_EPOCH + time::Duration::HOUR,
            })
        }
    }

    async fn signed(server: Server, key_type: KeyType) -> Result<SignedWit, UpstreamError> {
        WitSigner::new(Arc::new(server), key_type).sign("web").await
    }

    #[tokio::test]
    async fn token_and_key_belong_together() {
        for (key_type, alg) in [
            (KeyType::EcP256, "ES256"),
            (KeyType::EcP384, "ES384"),
            (KeyType::Rsa2048, "RS256"),
        ] {
            let wit = signed(Server::default(), key_type).await.unwrap();
            let read = parse_unverified(wit.token()).unwrap();
            let jwk: serde_json::Map<_, _> = serde_json::from_str(wit.key_jwk()).unwrap();
            assert_eq!(PublicKey::from_jwk(&jwk).unwrap(), read.confirmation.public_key);
            assert_eq!((&jwk["alg"], jwk.contains_key("d")), (&json!(alg), true));
            assert_eq!(wit.key_id().as_deref(), Some("k"));
        }
    }

    #[tokio::test]
    async fn a_token_for_another_key_or_identity_is_refused() {
        let other_key = Server {
            other_key: true,
            ..Server::default()
        };
        let other_subject = Server {
            other_subject: true,
            ..Server::default()
        };
        for (server, why) in [(other_key, "another key"), (other_subject, "another identity")] {
            let error = signed(server, KeyType::EcP256).await.unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[tokio::test]
    async fn debug_shows_neither_token_nor_key() {
        let wit = signed(Server::default(), KeyType::EcP256).await.unwrap();
        let text = format!("{wit:?}");
        assert!(text.contains("/web") && !text.contains(wit.token()) && !text.contains("\"d\""));
    }
}
