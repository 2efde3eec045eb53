//! Streams that send the whole state whenever what the delegate gets has changed.

use std::future::Future;
use std::sync::Arc;

use finial_proto::spire::api::agent::delegatedidentity::v1 as pb;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Response, Status};

use super::answer::{self, Identities};
use super::delegate::Delegate;
use super::target::Target;
use super::{Shared, not_synced};
use crate::endpoints::session::{ISSUE_WAIT, stopping};
use crate::svids::{Snapshot, Subscription};

/// What a stream sends.
pub(super) trait Content: Send + 'static {
    type Message: Clone + PartialEq + Send + 'static;

    /// What there is to send of a snapshot. `is_first` before anything was sent.
    fn look(&mut self, snapshot: &Snapshot, is_first: bool) -> Look<Self::Message>;

    /// Whether what is sent is still for the same workload; asked before something new is sent.
    fn confirm(&mut self) -> impl Future<Output = Result<bool, Status>> + Send {
        std::future::ready(Ok(true))
    }

    /// Marks everything published so far as seen; called before a snapshot is read.
    fn mark_seen(&mut self);

    /// Completes when a snapshot was published in which there may be something else to send.
    ///
    /// # Errors
    /// When the workload for which the delegate asked has ended.
    fn news(&mut self) -> impl Future<Output = Result<(), Status>> + Send;
}

/// What a snapshot holds for a stream.
#[derive(Debug)]
pub(super) enum Look<M> {
    Ready(M),
    /// The server has not sent it yet.
    NotSynced,
    /// Look again when something changes, or at this time.
    Wait(Option<Instant>),
    End(Status),
}

/// A stream that is open.
#[derive(Debug)]
pub(super) struct Updates<C: Content> {
    delegate: Delegate,
    content: C,
    sent: Option<C::Message>,
}

impl<C: Content> Updates<C> {
    /// Waits for the first message, so that a refusal is the answer to the call.
    ///
    /// # Errors
    /// As [`Delegate::open`], and what the content says.
    pub(super) async fn begin(
        delegate: Delegate,
        content: C,
    ) -> Result<Response<BoxStream<'static, Result<C::Message, Status>>>, Status> {
        let mut updates = Self {
            delegate,
            content,
            sent: None,
        };
        let first = updates.next().await?;
        let rest = stream::unfold(Some(updates), |updates| async move {
            let mut updates = updates?;
            match updates.next().await {
                Ok(message) => Some((Ok(message), Some(updates))),
                Err(status) => Some((Err(status), None)),
            }
        });
        let first = stream::once(std::future::ready(Ok(first)));
        Ok(Response::new(first.chain(rest).boxed()))
    }

    /// The next message: when it is another than what was sent. Whoever asks, and for whom, is attested again
    /// before that, and what there is then is sent. A stream never ends without an error.
    async fn next(&mut self) -> Result<C::Message, Status> {
        // The first time both were attested just now.
        let mut confirmed = self.sent.is_none();
        loop {
            self.content.mark_seen();
            let snapshot = self.delegate.snapshot().await?;
            let look = self.content.look(&snapshot, self.sent.is_none());
            drop(snapshot);
            let until = match look {
                Look::Ready(message) if self.sent.as_ref() == Some(&message) => None,
                Look::Ready(message) if confirmed => {
                    self.sent = Some(message.clone());
                    return Ok(message);
                }
                Look::Ready(_not_confirmed) => {
                    // Looked at again afterwards: much may change while somebody is attested.
                    confirmed = self.confirm().await?;
                    continue;
                }
                Look::NotSynced => Some(self.delegate.sync_deadline().ok_or_else(not_synced)?),
                Look::Wait(until) => until,
                Look::End(status) => return Err(status),
            };
            self.delegate.changed(until, self.content.news()).await?;
            confirmed = false;
        }
    }

    async fn confirm(&mut self) -> Result<bool, Status> {
        let same_delegate = self.delegate.attest_again().await?;
        Ok(self.content.confirm().await? && same_delegate)
    }
}

/// `SubscribeToX509SVIDs`
#[derive(Debug)]
pub(super) struct X509Svids {
    shared: Arc<Shared>,
    target: Target,
    /// Tells of what concerns the target, and marks its identities as wanted, so that they are issued and renewed.
    subscription: Subscription,
    /// Since when an identity has been waiting for its SVID.
    incomplete_since: Option<Instant>,
    /// Whether it waits in vain.
    signing_trouble: watch::Receiver<bool>,
}

impl X509Svids {
    pub(super) fn new(shared: &Arc<Shared>, target: Target) -> Self {
        Self {
            subscription: shared.svids.subscribe(Arc::clone(target.selectors())),
            shared: Arc::clone(shared),
            target,
            incomplete_since: None,
            signing_trouble: shared.svids.signing_trouble(),
        }
    }
}

impl Content for X509Svids {
    type Message = pb::SubscribeToX509sviDsResponse;

    fn look(&mut self, snapshot: &Snapshot, is_first: bool) -> Look<Self::Message> {
        let identities = Identities::of(snapshot, self.target.selectors());
        let clock = self.shared.clock.now();
        if identities.is_empty() && snapshot.synced_at.is_none() {
            return Look::NotSynced;
        }
        let (issued, missing) = identities.issued_and_missing(clock);
        if missing == 0 {
            self.incomplete_since = None;
            return Look::Ready(identities.x509_svids(clock));
        }
        // One that is being signed for the first time is waited for rather than left out, for a while.
        let in_trouble = *self.signing_trouble.borrow_and_update();
        if issued > 0 && (in_trouble || !identities.awaits_svid(clock)) {
            return Look::Ready(identities.x509_svids(clock));
        }
        let now = Instant::now();
        let until = *self.incomplete_since.get_or_insert(now) + ISSUE_WAIT;
        if now < until {
            Look::Wait(Some(until))
        } else if issued > 0 {
            Look::Ready(identities.x509_svids(clock))
        } else if is_first {
            Look::End(Status::unavailable("no X509-SVID has been issued yet"))
        } else {
            // They ran out while the server cannot be reached; the next ones will come on this stream.
            Look::Wait(None)
        }
    }

    async fn confirm(&mut self) -> Result<bool, Status> {
        let same = self.target.attest_again(&self.shared).await?;
        if !same {
            // The new subscription comes before the old one goes: what both want is kept.
            self.subscription = self.shared.svids.subscribe(Arc::clone(self.target.selectors()));
            self.incomplete_since = None;
        }
        Ok(same)
    }

    fn mark_seen(&mut self) {
        self.subscription.mark_seen();
    }

    async fn news(&mut self) -> Result<(), Status> {
        tokio::select! {
            biased;
            status = self.target.gone() => Err(status),
            () = self.subscription.changed() => Ok(()),
            Ok(()) = self.signing_trouble.changed(), if self.incomplete_since.is_some() => Ok(()),
        }
    }
}

/// Every snapshot, for contents that concern no workload in particular.
#[derive(Debug)]
struct Snapshots(watch::Receiver<Arc<Snapshot>>);

impl Snapshots {
    fn of(shared: &Shared) -> Self {
        Self(shared.svids.snapshots())
    }

    async fn news(&mut self) -> Result<(), Status> {
        self.0.changed().await.map_err(|_gone| stopping())
    }
}

/// `SubscribeToX509Bundles`
#[derive(Debug)]
pub(super) struct X509Bundles(Snapshots);

impl X509Bundles {
    pub(super) fn new(shared: &Shared) -> Self {
        Self(Snapshots::of(shared))
    }
}

impl Content for X509Bundles {
    type Message = pb::SubscribeToX509BundlesResponse;

    fn look(&mut self, snapshot: &Snapshot, _is_first: bool) -> Look<Self::Message> {
        Look::Ready(answer::x509_bundles(snapshot))
    }

    fn mark_seen(&mut self) {
        self.0.0.mark_unchanged();
    }

    async fn news(&mut self) -> Result<(), Status> {
        self.0.news().await
    }
}

/// `SubscribeToJWTBundles`
#[derive(Debug)]
pub(super) struct JwtBundles(Snapshots);

impl JwtBundles {
    pub(super) fn new(shared: &Shared) -> Self {
        Self(Snapshots::of(shared))
    }
}

impl Content for JwtBundles {
    type Message = pb::SubscribeToJwtBundlesResponse;

    fn look(&mut self, snapshot: &Snapshot, _is_first: bool) -> Look<Self::Message> {
        // Before the first sync the own bundle has no keys for JWT-SVIDs.
        if snapshot.synced_at.is_none() {
            return Look::NotSynced;
        }
        Look::Ready(answer::jwt_bundles(snapshot))
    }

    fn mark_seen(&mut self) {
        self.0.0.mark_unchanged();
    }

    async fn news(&mut self) -> Result<(), Status> {
        self.0.news().await
    }
}
