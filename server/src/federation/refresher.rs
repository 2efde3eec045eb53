//! Keeps the bundle of one trust domain fresh.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use finial_identity::bundle::Bundle;
use finial_identity::federation::{EndpointProfile, RefreshState, RefreshStates};
use finial_identity::spiffe_id::TrustDomain;
use thiserror::Error;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;
use tonic::Code;

use super::fetch::{self, FetchError, Trust};
use super::judge::{self, Unfit};
use super::sources::Managed;
use super::{FederationParts, schedule};
use crate::store::StoreError;
use crate::telemetry::metrics;

/// Why a bundle was not refreshed. The stored one stays as it was.
#[derive(Debug, Error)]
pub enum RefreshError {
    /// Nothing authenticates the endpoint.
    #[error("no X.509 authority of {0} is stored that could authenticate the endpoint: set its bundle first")]
    NoEndpointBundle(TrustDomain),
    /// The document cannot be had.
    #[error("{0}")]
    Fetch(#[from] FetchError),
    /// The document is not good enough.
    #[error("{0}")]
    Unfit(#[from] Unfit),
    /// The store failed.
    #[error("{0}")]
    Store(#[from] StoreError),
}

impl RefreshError {
    fn code(&self) -> Code {
        match self {
            Self::NoEndpointBundle(_) => Code::FailedPrecondition,
            Self::Fetch(_) => Code::Unavailable,
            Self::Unfit(_) => Code::InvalidArgument,
            Self::Store(_) => Code::Internal,
        }
    }
}

/// The bundle that is now stored, and whether it was not before.
struct Fetched {
    bundle: Arc<Bundle>,
    is_new: bool,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Refresher {
    managed: Managed,
    parts: Arc<FederationParts>,
    states: watch::Sender<RefreshStates>,
    /// One fetch at a time; how many in a row failed.
    failures: Mutex<u32>,
    due: watch::Sender<Instant>,
    has_ended: AtomicBool,
}

impl Refresher {
    /// Due at once.
    pub(super) fn new(
        managed: Managed,
        parts: Arc<FederationParts>,
        states: watch::Sender<RefreshStates>,
    ) -> Self {
        let refresher = Self {
            managed,
            parts,
            states,
            failures: Mutex::new(0),
            due: watch::Sender::new(Instant::now()),
            has_ended: AtomicBool::new(false),
        };
        refresher.tell(|_| {});
        refresher
    }

    /// Refreshes whenever it is time, until the task is aborted.
    pub(super) async fn run(self: Arc<Self>) {
        let mut due = self.due.subscribe();
        loop {
            let at = *due.borrow_and_update();
            tokio::select! {
                () = tokio::time::sleep_until(at) => {
                    // Told in the log and in the state.
                    let _outcome = self.refresh().await;
                }
                Ok(()) = due.changed() => {}
            }
        }
    }

    /// Makes it due now.
    pub(super) fn soon(&self) {
        self.due.send_replace(Instant::now());
    }

    /// Says nothing any more: another one has taken over.
    pub(super) fn end(&self) {
        self.has_ended.store(true, Ordering::SeqCst);
    }

    /// Refreshes now, and settles when it is due next.
    pub(super) async fn refresh(&self) -> Result<(), RefreshError> {
        let mut failures = self.failures.lock().await;
        let timer = metrics().start("bundle_manager_fetch_federated_bundle");
        let outcome = timer.around(self.fetch(), RefreshError::code).await;
        *failures = match &outcome {
            // Nobody was asked.
            Ok(_) | Err(RefreshError::NoEndpointBundle(_)) => 0,
            Err(_) => failures.saturating_add(1),
        };
        let held = match &outcome {
            Ok(fetched) => Some(Arc::clone(&fetched.bundle)),
            Err(_) => self.held().await,
        };
        let delay = schedule::delay(held.as_deref(), *failures, rand::random());
        self.due.send_replace(Instant::now() + delay);
        self.report(&outcome, held.as_deref());
        outcome.map(|_| ())
    }

    async fn fetch(&self) -> Result<Fetched, RefreshError> {
        let relationship = &self.managed.relationship;
        let store = &self.parts.store;
        let trust = match &relationship.profile {
            EndpointProfile::HttpsWeb => Trust::Web,
            EndpointProfile::HttpsSpiffe(id) => {
                let stored = store.bundle(id.trust_domain()).await?;
                let authorities = stored.map(|stored| stored.bundle.x509_certificates());
                Trust::Spiffe {
                    id: id.clone(),
                    authorities: authorities
                        .filter(|authorities| !authorities.is_empty())
                        .ok_or_else(|| RefreshError::NoEndpointBundle(id.trust_domain().clone()))?,
                }
            }
        };
        let document = fetch::fetch(&relationship.endpoint_url, trust, &self.parts.clock).await?;
        let fetched = judge::read(&relationship.trust_domain, &document, self.parts.wit_svids)?;
        self.keep(fetched).await
    }

    /// Stores a bundle unless the one that is stored then is better.
    async fn keep(&self, fetched: Bundle) -> Result<Fetched, RefreshError> {
        let store = &self.parts.store;
        let trust_domain = &self.managed.relationship.trust_domain;
        let before = store.bundle(trust_domain).await?.map(|stored| stored.bundle);
        judge::compare(&fetched, before.as_deref())?;
        if let Some(before) = before.filter(|before| **before == fetched) {
            return Ok(Fetched {
                bundle: before,
                is_new: false,
            });
        }
        let new = fetched.clone();
        // Judged once more inside of the transaction: another writer may have been faster.
        let edit = Box::new(move |stored: &mut Bundle| {
            if judge::compare(&new, Some(stored)).is_ok() {
                *stored = new;
            }
        });
        let stored = match store.edit_bundle(trust_domain, edit).await? {
            Some(stored) => Some(stored),
            None => store.create_bundle(fetched.clone()).await?,
        };
        let bundle = stored.map_or_else(|| Arc::new(fetched), |stored| stored.bundle);
        Ok(Fetched { bundle, is_new: true })
    }

    async fn held(&self) -> Option<Arc<Bundle>> {
        let stored = self
            .parts
            .store
            .bundle(&self.managed.relationship.trust_domain)
            .await;
        stored.ok().flatten().map(|stored| stored.bundle)
    }

    /// Says it in the log the first time, when it changes and when it is over, and in the state always.
    fn report(&self, outcome: &Result<Fetched, RefreshError>, held: Option<&Bundle>) {
        let relationship = &self.managed.relationship;
        let trust_domain = relationship.trust_domain.as_str();
        let url = &relationship.endpoint_url;
        let trouble: Option<Arc<str>> = outcome.as_ref().err().map(|error| error.to_string().into());
        let mut known = None;
        self.tell(|state| {
            known = state.trouble.take();
            state.trouble.clone_from(&trouble);
            if trouble.is_none() {
                state.refreshed_at = Some(self.parts.clock.now());
            }
            state.sequence_number = held.map_or(0, |held| held.sequence_number);
        });
        match outcome {
            Ok(fetched) => {
                if fetched.is_new {
                    metrics().count("bundle_manager_update_federated_bundle", &[], 1);
                    let sequence_number = fetched.bundle.sequence_number;
                    tracing::info!(trust_domain, bundle_endpoint_url = %url, sequence_number, "bundle refreshed");
                } else if known.is_some() {
                    tracing::info!(trust_domain, bundle_endpoint_url = %url, "bundle endpoint answers again");
                } else {
                    tracing::debug!(trust_domain, bundle_endpoint_url = %url, "bundle has not changed");
                }
            }
            Err(error) if known == trouble => {
                tracing::debug!(trust_domain, bundle_endpoint_url = %url, %error, "bundle still not refreshed");
            }
            Err(error) => {
                tracing::warn!(trust_domain, bundle_endpoint_url = %url, %error, "bundle not refreshed, keeping the stored one");
            }
        }
    }

    fn tell(&self, change: impl FnOnce(&mut RefreshState)) {
        if self.has_ended.load(Ordering::SeqCst) {
            return;
        }
        self.states.send_modify(|states| {
            let state = states
                .entry(self.managed.relationship.trust_domain.clone())
                .or_insert_with(|| RefreshState {
                    origin: self.managed.origin.clone(),
                    refreshed_at: None,
                    sequence_number: 0,
                    trouble: None,
                });
            state.origin.clone_from(&self.managed.origin);
            change(state);
        });
    }
}
