//! The trust domain's own authorities: the X.509 CA, the JWT key and, where it is switched on, the WIT key, each in two
//! slots that are used alternately.
//!
//! [`recovery`] finds them when the server starts; [`lifecycle`] says when an authority is prepared and when it is
//! activated; [`rotator`] does so; [`journal`] remembers it across restarts; [`sign`] signs with the active one;
//! [`operate`] has the manual operations. The order of each change is fixed: key, bundle, journal, use. An interruption
//! at any point leaves either the former authority or the new one in use, and never a signature that cannot be
//! verified.

mod journal;
mod lifecycle;
mod operate;
mod records;
mod recovery;
mod rotator;
mod server_svid;
mod sign;
mod sign_wit;
mod slots;
#[cfg(test)]
mod tests;

use std::error::Error as StdError;
use std::sync::{Arc, PoisonError, RwLock};

use finial_identity::key::KeyManager;
use finial_identity::process::clock::Clock;
use finial_identity::spiffe_id::TrustDomain;
use finial_identity::x509::X509Svid;
use ring::rand::SystemRandom;
use thiserror::Error;
use tokio::sync::{Mutex, Semaphore, watch};

use crate::credential::X509Issuer;
use crate::store::{BundleStore, Store};

pub use crate::config::{AuthorityConfig, CaSubject, WitConfig};
pub use journal::AuthorityKind;
pub use operate::{AuthorityState, AuthorityStates};
pub use sign::{JwtRequest, SignedJwt, X509Request, X509Subject};
pub use sign_wit::WitRequest;

use journal::Journal;
use records::Records;
use rotator::Rotation;
use slots::{SlotPair, TokenIssuer};

/// One variant for each answer that a caller can get.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// There is no active authority (gRPC UNAVAILABLE).
    #[error("server is initializing")]
    NotReady,
    /// JWT-SVIDs are switched off (UNIMPLEMENTED).
    #[error("JWT functionality is disabled")]
    JwtDisabled,
    /// WIT-SVIDs are not switched on (UNIMPLEMENTED).
    #[error("WIT functionality is disabled")]
    WitDisabled,
    /// What was asked for cannot be had (INVALID_ARGUMENT).
    #[error("{0}")]
    InvalidArgument(String),
    /// It cannot be had in this deployment (FAILED_PRECONDITION).
    #[error("{0}")]
    FailedPrecondition(&'static str),
    /// A fault of this server, its key manager or its store (INTERNAL).
    #[error("{what}")]
    Internal {
        what: &'static str,
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
}

impl AuthorityError {
    fn internal(what: &'static str, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Internal {
            what,
            source: source.into(),
        }
    }
}

/// The authorities of this server. One writer changes them; signing reads a snapshot.
#[derive(Debug)]
pub struct AuthorityManager {
    config: AuthorityConfig,
    key_manager: Arc<dyn KeyManager>,
    records: Records,
    clock: Clock,
    random: SystemRandom,
    working: Mutex<Working>,
    published: RwLock<Arc<Published>>,
    /// Bounds how many slow signatures and key generations run at once.
    off_thread: Semaphore,
    server_svid: watch::Sender<Option<Arc<X509Svid>>>,
}

/// What only the holder of the lock changes.
#[derive(Debug)]
struct Working {
    journal: Journal,
    x509: SlotPair,
    jwt: SlotPair,
    wit: SlotPair,
    rotation: Rotation,
}

impl Working {
    fn slots(&self, kind: AuthorityKind) -> &SlotPair {
        match kind {
            AuthorityKind::X509 => &self.x509,
            AuthorityKind::Jwt => &self.jwt,
            AuthorityKind::Wit => &self.wit,
        }
    }

    fn slots_mut(&mut self, kind: AuthorityKind) -> &mut SlotPair {
        match kind {
            AuthorityKind::X509 => &mut self.x509,
            AuthorityKind::Jwt => &mut self.jwt,
            AuthorityKind::Wit => &mut self.wit,
        }
    }
}

/// What signing and reading see.
#[derive(Debug, Default)]
struct Published {
    x509: Option<Arc<X509Issuer>>,
    jwt: Option<Arc<TokenIssuer>>,
    wit: Option<Arc<TokenIssuer>>,
    x509_states: Option<AuthorityStates>,
    jwt_states: Option<AuthorityStates>,
    wit_states: Option<AuthorityStates>,
}

impl AuthorityManager {
    /// Finds this server's authorities again, or makes the first ones, and issues the server's own SVID.
    ///
    /// # Errors
    /// When the store or the key manager fails and there is no authority to continue with.
    pub async fn start(
        config: AuthorityConfig,
        key_manager: Arc<dyn KeyManager>,
        store: Arc<dyn Store>,
        clock: Clock,
    ) -> Result<Arc<Self>, AuthorityError> {
        let bundles: Arc<dyn BundleStore> = Arc::clone(&store) as _;
        let records = Records::new(config.trust_domain.clone(), bundles, store);
        Self::start_with(config, key_manager, records, clock).await
    }

    async fn start_with(
        config: AuthorityConfig,
        key_manager: Arc<dyn KeyManager>,
        records: Records,
        clock: Clock,
    ) -> Result<Arc<Self>, AuthorityError> {
        let parallel = std::thread::available_parallelism().map_or(1, usize::from);
        let manager = Arc::new(Self {
            config,
            key_manager,
            records,
            clock,
            random: SystemRandom::new(),
            working: Mutex::new(Working {
                journal: Journal::new(),
                x509: SlotPair::default(),
                jwt: SlotPair::default(),
                wit: SlotPair::default(),
                rotation: Rotation::default(),
            }),
            published: RwLock::default(),
            off_thread: Semaphore::new(parallel),
            server_svid: watch::Sender::new(None),
        });
        manager.recover().await?;
        manager.initialize().await?;
        Ok(manager)
    }

    /// The trust domain that the authorities are of.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.config.trust_domain
    }

    /// How the authorities were set up.
    pub fn config(&self) -> &AuthorityConfig {
        &self.config
    }

    /// The server's own X.509-SVID, renewed at half its life.
    pub fn server_svid(&self) -> watch::Receiver<Option<Arc<X509Svid>>> {
        self.server_svid.subscribe()
    }

    fn published(&self) -> Arc<Published> {
        // A snapshot is replaced whole, so it is right even if a writer panicked.
        Arc::clone(&self.published.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn publish(&self, working: &Working) {
        let next = Published {
            x509: working.x509.x509_issuer(),
            jwt: working.jwt.token_issuer(),
            wit: working.wit.token_issuer(),
            x509_states: working.x509.states(),
            jwt_states: working.jwt.states(),
            wit_states: working.wit.states(),
        };
        *self.published.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
    }

    /// Runs work that takes milliseconds outside of the async threads, a bounded number at a time.
    async fn off_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, AuthorityError> {
        let _permit = self
            .off_thread
            .acquire()
            .await
            .map_err(|error| AuthorityError::internal("wait for a signing thread", error))?;
        let span = tracing::Span::current();
        tokio::task::spawn_blocking(move || span.in_scope(work))
            .await
            .map_err(|error| AuthorityError::internal("run on a signing thread", error))
    }
}
