//! The lifecycle of the agent's SVID: keeps it valid, and handles refusals.
//!
//! Failures never end [`Node::run`]; a ban does, and at the first start a refusal that no retry can change.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use finial_identity::bundle::Bundle;
use finial_identity::key::{PrivateKey, PrivateKeyManager};
use finial_identity::process::{Clock, Stop};
use finial_identity::x509::{Certificate, X509Svid};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::attest::AttestError;
use super::bootstrapping::Bootstrapping;
use super::disk::Disk;
use super::obtain::saved_svid;
use super::rebootstrap::ReturnPolicy;
use super::renewal_time::{Moment, RenewalTime};
use super::saving::Unsaved;
use super::storage::{AgentStorage, SetAside};
use super::{
    Backoff, Denial, HeldBundle, Jitter, News, NodeAttestors, NodeError, NodeHandle, NodeSettings, Reminder,
    Shared, StateFacts, bundle_of, renew,
};
use crate::config::BootstrapSource;
use crate::upstream::{DenialReason, Upstream, UpstreamError, UpstreamSettings};

/// The owner of the agent's identity.
#[derive(Debug)]
pub struct Node {
    pub(super) settings: NodeSettings,
    pub(super) storage: Arc<AgentStorage>,
    pub(super) disk: Disk,
    set_aside: Option<SetAside>,
    pub(super) keys: Arc<dyn PrivateKeyManager>,
    pub(super) attestors: NodeAttestors,
    pub(super) clock: Clock,
    pub(super) jitter: Jitter,
    pub(super) handle: NodeHandle,
    pub(super) news: mpsc::Receiver<News>,
    pub(super) bundle: watch::Receiver<Arc<Bundle>>,
    /// A key without a certificate, and where it is kept: for the next attempt.
    pub(super) unused_key: Option<(&'static str, Arc<PrivateKey>)>,
    /// The newest SVID while the disk does not have it.
    pub(super) unsaved: Option<Unsaved>,
    pub(super) reattestable: bool,
    // When each is tried again after a failure. When the SVID is due is `renewal_time`.
    pub(super) renewal: Schedule,
    pub(super) reattestation: Schedule,
    pub(super) saving: Schedule,
    /// When the newest SVID is due.
    pub(super) renewal_time: Option<RenewalTime>,
    pub(super) bootstrapping: Bootstrapping,
    /// The agent asks its bootstrap source again.
    pub(super) is_returning: bool,
    /// It was said that nothing verifies the server.
    pub(super) warned_insecure: bool,
    /// Renew at the next look, whatever the SVID's age.
    pub(super) forced: bool,
    pub(super) status_posted: bool,
    /// Of an SVID that is due and cannot be renewed.
    pub(super) reminder: Reminder,
}

/// When to try something again after failures.
#[derive(Debug)]
pub(super) struct Schedule {
    backoff: Backoff,
    next: Option<Instant>,
}

/// What the node wakes up for.
enum Wake {
    Look,
    News(News),
    BundleChanged,
    DiskAnswered,
}

impl Node {
    /// Reads what an earlier run saved in the data directory and takes up its SVID if it is still good; the
    /// network is not touched. A corrupted file is set aside if an attestor can be used again and again.
    ///
    /// # Errors
    /// [`NodeError::Storage`], [`NodeError::OtherTrustDomain`], [`NodeError::CannotRebootstrap`].
    pub fn open(
        settings: NodeSettings,
        keys: Arc<dyn PrivateKeyManager>,
        mut attestors: NodeAttestors,
        clock: Clock,
        jitter: Jitter,
    ) -> Result<Self, NodeError> {
        // Without a source that vouches for a server the saved bundle is all that does.
        let can_lose_bundle = settings.bootstrap != BootstrapSource::Insecure;
        let (storage, set_aside) = if attestors.are_repeatable() && can_lose_bundle {
            AgentStorage::open_or_set_aside(&settings.data_dir, clock.now())?
        } else {
            (AgentStorage::open(&settings.data_dir)?, None)
        };
        if let Some(file) = &set_aside {
            tracing::error!(file = %file, "what an earlier run saved is lost, the agent attests anew");
        }
        let data = storage.data();
        if !data.svid.is_empty() || set_aside.is_some() {
            attestors.have_attested();
        }
        let returning = ReturnPolicy::new(&settings, attestors.configured(), storage.path())?;
        let saved = saved_svid(&data, &settings, storage.path().to_owned(), &*keys, &clock)?;
        if let Err(why) = &saved {
            tracing::info!(why = %why, "no saved SVID is taken up");
        }
        let svid = saved.ok().map(Arc::new);
        let taken_up =
            |svid: &Arc<X509Svid>| RenewalTime::of_saved(settings.rotation, svid.leaf(), jitter.draw());
        let renewal_time = svid.as_ref().map(taken_up);

        let (svid_sender, svid_receiver) = watch::channel(svid.clone());
        let own_bundle = bundle_of(&settings.trust_domain, data.bundle.clone());
        let (bundle_sender, mut bundle) = watch::channel(Arc::new(own_bundle));
        bundle.mark_unchanged();
        let upstream = Upstream::new(
            UpstreamSettings {
                trust_domain: settings.trust_domain.clone(),
                server_address: settings.server_address.clone(),
                server_port: settings.server_port,
            },
            svid_receiver,
            Arc::new(HeldBundle(bundle_sender.subscribe())),
            clock.clone(),
            jitter.clone(),
        );
        let (news_sender, news) = mpsc::channel(NEWS);
        let facts = StateFacts {
            has_svid: svid.is_some(),
            ..StateFacts::default()
        };
        let (state, _first) = watch::channel(facts.state());
        let shared = Shared {
            trust_domain: settings.trust_domain.clone(),
            upstream,
            facts: Mutex::new(facts),
            state,
            svid: svid_sender,
            bundle: bundle_sender,
            news: news_sender,
            returning,
        };
        Ok(Self {
            storage: Arc::new(storage),
            disk: Disk::new(settings.data_dir.clone()),
            set_aside,
            keys,
            attestors,
            clock,
            handle: NodeHandle {
                shared: Arc::new(shared),
            },
            news,
            bundle,
            unused_key: None,
            unsaved: None,
            reattestable: data.reattestable,
            renewal: Schedule::new(&jitter),
            reattestation: Schedule::new(&jitter),
            saving: Schedule::new(&jitter),
            renewal_time,
            bootstrapping: Bootstrapping::default(),
            is_returning: false,
            warned_insecure: false,
            forced: false,
            status_posted: false,
            reminder: Reminder::default(),
            jitter,
            settings,
        })
    }

    /// The file of an earlier run that could not be read, if there was one.
    pub fn set_aside(&self) -> Option<&SetAside> {
        self.set_aside.as_ref()
    }

    /// How others see this node.
    pub fn handle(&self) -> NodeHandle {
        self.handle.clone()
    }

    /// Keeps the agent's SVID valid until stopped.
    ///
    /// # Errors
    /// [`NodeError::Banned`]; [`NodeError::Refused`] when the first attestation can never succeed.
    pub async fn run(mut self, stop: Stop) -> Result<(), NodeError> {
        tokio::select! {
            () = stop.stopped() => Ok(()),
            ended = self.live() => ended,
        }
    }

    async fn live(&mut self) -> Result<(), NodeError> {
        self.establish(true).await?;
        self.post_status().await?;
        loop {
            match self.wake().await {
                Wake::Look => {
                    self.look().await?;
                    self.remind();
                }
                Wake::News(News::Denied(denial)) if self.is_present(&denial) => {
                    self.denied(denial.reason).await?;
                }
                Wake::News(News::Refused { why, serial }) if self.uses(serial.as_deref()) => {
                    self.refused(why).await?;
                }
                Wake::News(News::Denied(_) | News::Refused { .. }) => {}
                Wake::News(News::Distrusted) => self.distrusted().await?,
                Wake::BundleChanged => self.bundle_changed().await,
                Wake::DiskAnswered => self.persist().await,
            }
        }
    }

    /// Tells the server the version, once in the life of the process. Failure is no trouble.
    async fn post_status(&mut self) -> Result<(), NodeError> {
        let call = self.upstream().post_status(&self.settings.agent_version);
        match tokio::time::timeout(STATUS_TIMEOUT, call).await {
            Ok(Ok(())) => self.status_posted = true,
            Ok(Err(error)) => {
                tracing::debug!(%error, "agent version could not be told to the server");
                if let Some(reason) = error.denial() {
                    return self.denied(reason).await;
                }
            }
            Err(_elapsed) => {}
        }
        Ok(())
    }

    async fn wake(&mut self) -> Wake {
        let wait = self.until_look();
        tokio::select! {
            Some(news) = self.news.recv() => Wake::News(news),
            Ok(()) = self.bundle.changed() => Wake::BundleChanged,
            () = self.disk.answered() => Wake::DiskAnswered,
            () = tokio::time::sleep(wait) => Wake::Look,
        }
    }

    pub(super) fn until_look(&self) -> Duration {
        let (now, evicted) = (Instant::now(), self.is_evicted());
        // A moment that a look would not act upon must not wake it again and again.
        let attempt = match evicted {
            true if self.may_attest() => self.reattestation.next,
            true => None,
            false => self.renewal.next,
        };
        let retries = [attempt, self.saving.next].into_iter().flatten();
        let retry = retries
            .map(|at| at.saturating_duration_since(now).max(renew::SHORTEST_WAIT))
            .min();
        let look = match self.renewal_time {
            _ if evicted => renew::CHECK_INTERVAL,
            _ if self.forced && self.renewal.next.is_none() => Duration::ZERO,
            Some(due) if self.renewal.next.is_none() => renew::until_check(due, Moment::now(&self.clock)),
            _ => renew::CHECK_INTERVAL,
        };
        let former = self.held().and_then(|_held| self.svid());
        let use_held = former.map(|svid| renew::until_last_eighth(svid.leaf(), self.clock.now()));
        [retry, use_held].into_iter().flatten().fold(look, Duration::min)
    }

    /// Attests again, renews, or does nothing, as the age of the SVID and earlier failures say.
    pub(super) async fn look(&mut self) -> Result<(), NodeError> {
        self.catch_up().await;
        let now = self.clock.now();
        let usable = self.svid().filter(|svid| !renew::is_expired(svid.leaf(), now));
        let Some(svid) = usable else {
            self.withdraw_svid();
            return self.establish(false).await;
        };
        if self.is_evicted() {
            if self.reattestation.is_due() && self.may_attest() {
                return self.attest_after_denial("evicted".to_owned()).await;
            }
            return Ok(());
        }
        if !self.status_posted && self.is_linked() {
            self.post_status().await?;
        }
        let now = Moment::now(&self.clock);
        let due = self.forced || self.renewal_time.is_some_and(|time| time.is_due(now));
        if !due || !self.renewal.is_due() {
            return Ok(());
        }
        match self.renew().await {
            Ok(()) => {
                self.forced = false;
                self.renewal.succeeded();
                self.reattestation.succeeded();
                self.shared().note(|facts| facts.renewal_trouble = None);
                Ok(())
            }
            Err(error) => self.renewal_failed(&error, svid.leaf()).await,
        }
    }

    async fn renewal_failed(&mut self, error: &AttestError, leaf: &Certificate) -> Result<(), NodeError> {
        if let AttestError::Upstream { cause, .. } = error {
            if let Some(reason) = cause.denial() {
                return self.denied(reason).await;
            }
            match cause {
                UpstreamError::SvidRefused { .. } if self.may_attest() => {
                    return self.attest_after_denial(cause.to_string()).await;
                }
                UpstreamError::UnknownAuthority(why) => self.shared().note_distrust(why),
                _ => {}
            }
        }
        let wait = self.renewal.backoff.failed();
        let wait = renew::until_retry(wait, leaf, self.clock.now());
        self.renewal.next = Instant::now().checked_add(wait);
        self.shared().note(|facts| {
            facts.renewal_trouble = Some(format!("renewal of the agent's SVID failed: {error}"))
        });
        Ok(())
    }

    /// Whether it is about the SVID in use. A server that has issued another no longer accepts the former one, and ends
    /// its streams with a denial before the other is here. A ban is about the agent.
    pub(super) fn is_present(&self, denial: &Denial) -> bool {
        denial.reason == DenialReason::AgentBanned || self.uses(denial.serial.as_deref())
    }

    /// Whether an SVID with this serial number is in use, as far as it is known.
    fn uses(&self, serial: Option<&str>) -> bool {
        let used = self.svid().map(|svid| svid.leaf().serial_hex());
        serial.is_none() || serial == used.as_deref()
    }

    pub(super) async fn denied(&mut self, reason: DenialReason) -> Result<(), NodeError> {
        match reason {
            DenialReason::AgentBanned => return Err(self.banned().await),
            DenialReason::Unknown => return Ok(()),
            _ => {}
        }
        if self.use_held("the server denied the former one") {
            return Ok(());
        }
        if self.may_attest() {
            if self.reattestation.is_due() {
                return self.attest_after_denial(reason.to_string()).await;
            }
        } else if !self.is_evicted() {
            let text =
                format!("server denied this agent: {reason}; it cannot attest again by itself: {ANEW}");
            self.shared().note(|facts| facts.evicted = Some(text));
        }
        Ok(())
    }

    /// The server refused the SVID in use while connecting: there may be a better one.
    pub(super) async fn refused(&mut self, why: String) -> Result<(), NodeError> {
        if self.use_held("the server refused the former one") {
            return Ok(());
        }
        if self.may_attest() && self.reattestation.is_due() {
            return self.attest_after_denial(why).await;
        }
        Ok(())
    }

    /// Ends what the agent serves before the disk is touched, which may take long.
    pub(super) async fn banned(&mut self) -> NodeError {
        tracing::error!("the server banned this agent");
        self.shared().note(|facts| facts.banned = true);
        self.forget_svid().await;
        NodeError::Banned
    }

    /// One attempt to be known again. What is valid is served on meanwhile.
    async fn attest_after_denial(&mut self, why: String) -> Result<(), NodeError> {
        self.reattestation.forget_long_past();
        let attested = self.attest().await;
        // Whether it helped is yet to be seen: a server may deny what it has just issued.
        self.reattestation.failed();
        let Err(error) = attested else {
            self.forced = false;
            self.renewal.succeeded();
            return Ok(());
        };
        if error.is_ban() {
            return Err(self.banned().await);
        }
        let text = format!("server denied this agent: {why}; attesting again failed: {error}");
        self.shared().note(|facts| facts.evicted = Some(text));
        Ok(())
    }

    pub(super) fn may_attest(&self) -> bool {
        self.attestors.can_reattest()
    }

    fn is_evicted(&self) -> bool {
        self.shared().facts().evicted.is_some()
    }

    fn is_linked(&self) -> bool {
        self.shared().facts().link_trouble.is_none()
    }

    /// Saves the bundle that is held now, and renews an SVID that a newly tainted authority has signed.
    pub(super) async fn bundle_changed(&mut self) {
        let bundle = Arc::clone(&self.bundle.borrow_and_update());
        self.persist().await;
        let newest_is_tainted = self.newest_svid().is_some_and(|svid| is_tainted(&svid, &bundle));
        if newest_is_tainted && !self.forced {
            tracing::warn!("agent SVID is renewed because its authority is tainted");
            self.forced = true;
        }
    }

    pub(super) fn withdraw_svid(&mut self) {
        self.shared().svid.send_replace(None);
        self.shared().note(|facts| {
            facts.has_svid = false;
            // There is no way back to bootstrapping: what follows is an attestation, whatever comes before it.
            facts.attesting = true;
        });
    }

    pub(super) fn svid(&self) -> Option<Arc<X509Svid>> {
        self.shared().svid.borrow().clone()
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.handle.shared
    }

    pub(super) fn upstream(&self) -> &Upstream {
        &self.handle.shared.upstream
    }
}

impl Schedule {
    fn new(jitter: &Jitter) -> Self {
        Self {
            backoff: Backoff::new(FIRST_RETRY, LONGEST_RETRY, jitter.clone()),
            next: None,
        }
    }

    pub(super) fn is_due(&self) -> bool {
        self.next.is_none_or(|at| at <= Instant::now())
    }

    pub(super) fn failed(&mut self) {
        let wait = self.backoff.failed();
        self.next = Instant::now().checked_add(wait);
    }

    /// Starts over if it has not been needed for a while.
    fn forget_long_past(&mut self) {
        if self.next.is_some_and(|at| at.elapsed() > LONG_PAST) {
            self.succeeded();
        }
    }

    pub(super) fn succeeded(&mut self) {
        self.backoff.reset();
        self.next = None;
    }
}

/// Whether the chain was signed by an authority that is marked as tainted.
pub(super) fn is_tainted(svid: &X509Svid, bundle: &Bundle) -> bool {
    let signed_by = |ski: &[u8]| {
        svid.chain()
            .iter()
            .any(|link| link.authority_key_id() == Some(ski))
    };
    bundle
        .x509_authorities
        .iter()
        .any(|authority| authority.tainted && authority.certificate.subject_key_id().is_some_and(signed_by))
}

/// News that may wait; more would say nothing new.
const NEWS: usize = 8;
/// What helps an agent that cannot attest again.
pub(super) const ANEW: &str = "start it with what it needs to join, such as a new join token";
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);
pub(super) const FIRST_RETRY: Duration = Duration::from_millis(500);
pub(super) const LONGEST_RETRY: Duration = Duration::from_secs(30);
const LONG_PAST: Duration = Duration::from_secs(10 * 60);
