//! Refreshes the bundle of one trust domain.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use finial_identity::bundle::{Bundle, KeyUse, Skipped};
use finial_identity::federation::{EndpointProfile, RefreshState, RefreshStates};
use finial_identity::metrics::interned;
use finial_identity::spiffe_id::TrustDomain;
use thiserror::Error;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;
use tonic::Code;

use super::fetch::{self, FetchError, Trust};
use super::judge::{self, Document, Unfit};
use super::sources::Managed;
use super::{FederationParts, schedule};
use crate::store::{StoreError, update_bundle};
use crate::telemetry::metrics;

/// A bundle that changes more often than this is stored no more often: each change goes to every workload that follows
/// the trust domain. A refresh on request is not delayed by it.
const CHANGES_EVERY: Duration = Duration::from_secs(60);
/// Tells foreign trust domains apart in metrics.
const TRUST_DOMAIN: &str = "trust_domain_id";

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
    /// The relationship is another one now, or none, or the bundle was deleted.
    #[error("relationship with {0}, or its bundle, was changed or deleted during the refresh")]
    Ended(TrustDomain),
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
            Self::Ended(_) => Code::Aborted,
            Self::Store(_) => Code::Internal,
        }
    }
}

/// The bundle that is now stored.
struct Fetched {
    bundle: Arc<Bundle>,
    change: Change,
}

/// What came of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// It is what was stored before.
    None,
    /// It was stored.
    Stored,
    /// It is another one, which is stored only after this time.
    Postponed(Duration),
}

/// When the next fetch is due.
#[derive(Clone, Copy, Debug)]
struct Due {
    at: Instant,
    /// One was requested since the last one began.
    is_wish: bool,
}

/// What one fetch leaves to the next.
#[derive(Debug, Default)]
struct Course {
    /// How many in a row failed.
    failures: u32,
    /// When a changed bundle was stored last.
    stored_at: Option<Instant>,
    /// The unusable keys that were logged last.
    left_out: Vec<Skipped>,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Refresher {
    managed: Managed,
    parts: Arc<FederationParts>,
    states: watch::Sender<RefreshStates>,
    /// One fetch at a time.
    course: Mutex<Course>,
    due: watch::Sender<Due>,
    has_ended: Arc<AtomicBool>,
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
            course: Mutex::default(),
            due: watch::Sender::new(Due {
                at: Instant::now(),
                is_wish: false,
            }),
            has_ended: Arc::default(),
        };
        refresher.tell(|_| {});
        refresher
    }

    /// Refreshes whenever it is time, until the task is aborted.
    pub(super) async fn run(self: Arc<Self>) {
        let mut due = self.due.subscribe();
        loop {
            let at = due.borrow_and_update().at;
            tokio::select! {
                () = tokio::time::sleep_until(at) => self.refresh_if_due().await,
                Ok(()) = due.changed() => {}
            }
        }
    }

    /// Makes it due now, and once more after a fetch that is under way.
    pub(super) fn soon(&self) {
        self.due.send_replace(Due {
            at: Instant::now(),
            is_wish: true,
        });
    }

    /// Whether the bundle of this trust domain is what is refreshed, or what authenticates the endpoint.
    pub(super) fn concerns(&self, trust_domain: &TrustDomain) -> bool {
        let relationship = &self.managed.relationship;
        relationship.trust_domain == *trust_domain
            || matches!(&relationship.profile, EndpointProfile::HttpsSpiffe(id) if id.trust_domain() == trust_domain)
    }

    /// Says and stores nothing any more: another one has taken over.
    pub(super) fn end(&self) {
        self.has_ended.store(true, Ordering::SeqCst);
    }

    /// Refreshes now, on request.
    pub(super) async fn refresh(&self) -> Result<(), RefreshError> {
        let mut course = self.course.lock().await;
        self.refresh_once(&mut course, true).await
    }

    /// Not if a requested refresh was faster.
    async fn refresh_if_due(&self) {
        let mut course = self.course.lock().await;
        let Due { at, is_wish } = *self.due.borrow();
        if at <= Instant::now() {
            // Told in the log and in the state.
            let _outcome = self.refresh_once(&mut course, is_wish).await;
        }
    }

    /// Computes when it is due next. A bundle from a requested refresh is stored without the limit of once a minute.
    async fn refresh_once(&self, course: &mut Course, is_wish: bool) -> Result<(), RefreshError> {
        self.due.send_if_modified(|due| {
            due.is_wish = false;
            false
        });
        let trust_domain = interned(self.managed.relationship.trust_domain.as_str());
        let timer = metrics()
            .start("bundle_manager_fetch_federated_bundle")
            .labelled(TRUST_DOMAIN, trust_domain);
        let fetch = self.fetch(course, is_wish);
        let outcome = timer.around(fetch, RefreshError::code).await;
        course.failures = match &outcome {
            // Nobody was asked.
            Ok(_) | Err(RefreshError::NoEndpointBundle(_)) => 0,
            Err(_) => course.failures.saturating_add(1),
        };
        let held = match &outcome {
            Ok(fetched) => Some(Arc::clone(&fetched.bundle)),
            Err(_) => self.held().await,
        };
        let mut delay = schedule::delay(held.as_deref(), course.failures, rand::random());
        if let Ok(Fetched {
            change: Change::Postponed(time),
            ..
        }) = &outcome
        {
            delay = delay.min(*time);
        }
        // A request that came meanwhile is for the present state.
        self.due.send_if_modified(|due| {
            if !due.is_wish {
                due.at = Instant::now() + delay;
            }
            !due.is_wish
        });
        self.report(&outcome, held.as_deref());
        outcome.map(|_| ())
    }

    async fn fetch(&self, course: &mut Course, is_wish: bool) -> Result<Fetched, RefreshError> {
        self.check_goes_on()?;
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
        self.tell_left_out(&mut course.left_out, &fetched.left_out);
        self.keep(fetched, course, is_wish).await
    }

    fn check_goes_on(&self) -> Result<(), RefreshError> {
        check_goes_on(&self.has_ended, &self.managed.relationship.trust_domain)
    }

    /// Each key that cannot be used, whenever they are others than before.
    fn tell_left_out(&self, told: &mut Vec<Skipped>, left_out: &[Skipped]) {
        if told == left_out {
            return;
        }
        let trust_domain = self.managed.relationship.trust_domain.as_str();
        for key in left_out {
            let key_use = key.key_use.map_or("unknown", KeyUse::name);
            tracing::warn!(
                trust_domain,
                index = key.index,
                key_use,
                error = %key.reason,
                "a key of a fetched bundle cannot be used and is left out"
            );
        }
        *told = left_out.to_vec();
    }

    /// Stores a bundle unless the one that is stored then is better.
    async fn keep(
        &self,
        fetched: Document,
        course: &mut Course,
        is_wish: bool,
    ) -> Result<Fetched, RefreshError> {
        let store = &*self.parts.store;
        let trust_domain = &self.managed.relationship.trust_domain;
        let before = store.bundle(trust_domain).await?.map(|stored| stored.bundle);
        let new = judge::replacement(&fetched, before.as_deref())?;
        let Some(before) = before else {
            self.check_goes_on()?;
            if let Some(stored) = store.create_bundle(new).await? {
                course.stored_at = Some(Instant::now());
                return Ok(stored_now(stored.bundle));
            }
            return self.replace(fetched).await;
        };
        let change = match course
            .stored_at
            .map(|at| CHANGES_EVERY.saturating_sub(at.elapsed()))
        {
            _ if *before == new => Change::None,
            Some(wait) if !is_wish && !wait.is_zero() => Change::Postponed(wait),
            _ => {
                let replaced = self.replace(fetched).await?;
                course.stored_at = Some(Instant::now());
                return Ok(replaced);
            }
        };
        Ok(Fetched {
            bundle: before,
            change,
        })
    }

    /// Judged once more inside of the transaction: another writer may have been faster, and the relationship another one.
    async fn replace(&self, fetched: Document) -> Result<Fetched, RefreshError> {
        let trust_domain = &self.managed.relationship.trust_domain;
        let (name, has_ended) = (trust_domain.clone(), Arc::clone(&self.has_ended));
        let edit = move |stored: &mut Bundle| {
            check_goes_on(&has_ended, &name)?;
            *stored = judge::replacement(&fetched, Some(stored))?;
            Ok::<(), RefreshError>(())
        };
        let edited = update_bundle(&*self.parts.store, trust_domain, edit).await?;
        // Whoever deletes the bundle in the meantime wants it no more.
        let (stored, outcome) = edited.ok_or_else(|| RefreshError::Ended(trust_domain.clone()))?;
        outcome.map(|()| stored_now(stored.bundle))
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
                if let Change::Postponed(time) = fetched.change {
                    let retry_in = time.as_secs();
                    tracing::debug!(trust_domain, bundle_endpoint_url = %url, retry_in, "bundle changes often, this one is not stored yet");
                } else if fetched.change == Change::Stored {
                    let label = (TRUST_DOMAIN, interned(trust_domain));
                    metrics().count("bundle_manager_update_federated_bundle", &[label], 1);
                    let sequence_number = fetched.bundle.sequence_number;
                    tracing::info!(trust_domain, bundle_endpoint_url = %url, sequence_number, "bundle refreshed");
                } else if known.is_some() {
                    tracing::info!(trust_domain, bundle_endpoint_url = %url, "bundle endpoint answers again");
                } else {
                    tracing::debug!(trust_domain, bundle_endpoint_url = %url, "bundle has not changed");
                }
            }
            Err(RefreshError::Ended(_)) => {
                tracing::debug!(trust_domain, bundle_endpoint_url = %url, "bundle not refreshed, the relationship has ended");
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

fn check_goes_on(has_ended: &AtomicBool, trust_domain: &TrustDomain) -> Result<(), RefreshError> {
    match has_ended.load(Ordering::SeqCst) {
        true => Err(RefreshError::Ended(trust_domain.clone())),
        false => Ok(()),
    }
}

fn stored_now(bundle: Arc<Bundle>) -> Fetched {
    Fetched {
        bundle,
        change: Change::Stored,
    }
}

#[cfg(test)]
mod tests {
    use finial_identity::federation::{DeclaredSets, Origin};
    use finial_identity::process::{Clock, TaskSet};
    use tokio::net::TcpListener;

    use super::super::testing::{bundle, store, web};
    use super::*;

    async fn refresher(url: &str) -> Arc<Refresher> {
        let (_declared, declared) = watch::channel(DeclaredSets::new());
        let parts = FederationParts {
            store: store().await,
            clock: Clock::system(),
            configured: Vec::new(),
            declared,
            wit_svids: false,
        };
        let managed = Managed {
            relationship: web("a.test", url),
            origin: Origin::Api,
        };
        let refresher = Refresher::new(managed, Arc::new(parts), watch::Sender::default());
        Arc::new(refresher)
    }

    fn document(seed: u8, sequence_number: u64) -> Document {
        Document {
            bundle: Bundle {
                sequence_number,
                ..bundle("a.test", seed)
            },
            left_out: Vec::new(),
        }
    }

    async fn held(refresher: &Refresher) -> u64 {
        refresher.held().await.map_or(0, |held| held.sequence_number)
    }

    #[tokio::test]
    async fn whoever_has_ended_stores_nothing() {
        let refresher = refresher("https://a.test/").await;
        let mut course = Course::default();
        refresher.end();
        let refused = refresher.keep(document(1, 1), &mut course, true).await;
        assert!(matches!(refused, Err(RefreshError::Ended(_))));
        assert!(refresher.held().await.is_none());
        refresher
            .parts
            .store
            .put_bundle(document(1, 1).bundle)
            .await
            .unwrap();
        let refused = refresher.keep(document(2, 2), &mut course, true).await;
        assert!(matches!(refused, Err(RefreshError::Ended(_))));
        assert_eq!(held(&refresher).await, 1);
        let refused = refresher.refresh().await;
        assert!(matches!(refused, Err(RefreshError::Ended(_))));
    }

    #[tokio::test]
    async fn a_fetch_is_counted_for_its_trust_domain() {
        use finial_identity::metrics::{Exposition, Polled};
        let refresher = refresher("https://127.0.0.1:1/").await;
        let refused = refresher.refresh_once(&mut Course::default(), true).await;
        assert!(refused.is_err());
        let shown = Exposition::default().render(metrics(), Polled::default());
        let counted =
            "bundle_manager_fetch_federated_bundle{status=\"Unavailable\",trust_domain_id=\"a.test\"}";
        assert!(shown.contains(counted), "{shown}");
    }

    #[tokio::test]
    async fn a_refusal_inside_of_the_transaction_is_told() {
        let refresher = refresher("https://a.test/").await;
        let put = refresher.parts.store.put_bundle(document(1, 5).bundle);
        put.await.unwrap();
        // As when the one with 5 was stored after the first judgement.
        let refused = refresher.replace(document(2, 4)).await;
        assert!(matches!(
            refused,
            Err(RefreshError::Unfit(Unfit::Older {
                fetched: 4,
                stored: 5
            }))
        ));
        assert_eq!(held(&refresher).await, 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_bundle_that_changes_often_is_stored_once_a_minute_unless_somebody_wishes_it() {
        let refresher = refresher("https://a.test/").await;
        let mut course = Course::default();
        let mut keep = async |seed, number, is_wish| {
            let kept = refresher.keep(document(seed, number), &mut course, is_wish).await;
            (kept.unwrap().change, held(&refresher).await)
        };
        assert_eq!(keep(1, 1, false).await, (Change::Stored, 1));
        assert_eq!(keep(1, 1, false).await, (Change::None, 1));
        let (change, number) = keep(2, 2, false).await;
        assert!(matches!(change, Change::Postponed(wait) if wait <= CHANGES_EVERY));
        assert_eq!(number, 1);
        assert_eq!(keep(2, 2, true).await, (Change::Stored, 2));
        tokio::time::advance(CHANGES_EVERY).await;
        assert_eq!(keep(1, 3, false).await, (Change::Stored, 3));
        assert!(matches!(keep(1, 4, false).await.0, Change::Postponed(_)));
    }

    #[tokio::test]
    async fn a_wish_that_comes_during_a_fetch_is_kept() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let refresher = refresher(&format!("https://127.0.0.1:{port}/")).await;
        let mut tasks = TaskSet::new();
        let running = Arc::clone(&refresher);
        tasks.spawn("refresher", async move {
            running.run().await;
            Ok::<(), std::convert::Infallible>(())
        });
        let (connection, _from) = listener.accept().await.unwrap();
        refresher.soon();
        // The first fetch fails, and the next one does not wait.
        drop(connection);
        let again = tokio::time::timeout(Duration::from_secs(8), listener.accept()).await;
        assert!(again.is_ok(), "asked again at once");
        drop(again);
    }
}
