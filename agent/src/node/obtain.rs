//! How the agent gets an SVID: from an earlier run, by attestation, by renewal.

use std::path::PathBuf;
use std::sync::Arc;

use finial_identity::key::{KeyType, PrivateKey, PrivateKeyManager};
use finial_identity::process::Clock;
use finial_identity::x509::{X509Error, X509Svid};
use time::OffsetDateTime;
use tokio::time::Instant;

use super::attest::{self, AttestError};
use super::lifecycle::{FIRST_RETRY, LONGEST_RETRY};
use super::rebootstrap::Trusted;
use super::renewal_time::{Moment, RenewalTime};
use super::saving::Use;
use super::storage::AgentData;
use super::{Backoff, Node, NodeError, NodeSettings, Reminder, renew, valid_for};
use crate::telemetry::metrics;
use crate::upstream::{ServerTrust, UpstreamError};

impl Node {
    /// A new SVID while the old one still works.
    pub(super) async fn renew(&mut self) -> Result<(), AttestError> {
        let timer = metrics().start("agent_svid_rotate");
        timer.around(self.obtain_next(), AttestError::code).await
    }

    async fn obtain_next(&mut self) -> Result<(), AttestError> {
        if self.reattestable && self.may_attest() {
            return self.attest().await;
        }
        let (slot, key) = self.next_key().await?;
        let csr_der = attest::request(&key)?;
        let answer = self.upstream().renew(csr_der).await;
        let chain = answer.map_err(|cause| AttestError::Upstream {
            attestor: "RenewAgent",
            cause,
        })?;
        let svid = attest::usable_svid(chain, key, &self.settings.trust_domain)?;
        if renew::is_expired(svid.leaf(), self.clock.now()) {
            return Err(attest::expired(&svid));
        }
        self.take_up(slot, svid, self.reattestable, Use::OnceSaved).await;
        Ok(())
    }

    /// Tells of an SVID that is due and cannot be renewed, as long as that goes on.
    pub(super) fn remind(&mut self) {
        let now = Moment::now(&self.clock);
        let is_due = self.renewal_time.is_some_and(|time| time.is_due(now));
        let Some(svid) = self.svid().filter(|_| is_due) else {
            self.reminder.end();
            return;
        };
        if self.reminder.is_due(now.passed) {
            let expires_at = svid.leaf().not_after();
            let state = self.handle.state().borrow().clone();
            tracing::warn!(
                %state, %expires_at,
                valid_for = ?valid_for(expires_at, now.clock),
                "the agent's SVID could not be renewed; it is tried again"
            );
        }
    }

    /// Works until there is an SVID and a bundle. Only at the first start can it give up.
    pub(super) async fn establish(&mut self, first: bool) -> Result<(), NodeError> {
        let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY, self.jitter.clone());
        // The state has it first.
        let mut reminder = Reminder::told(Instant::now());
        loop {
            let was_joining = self.attestors.are_joining();
            let error = match self.try_establish().await {
                Ok(()) => {
                    self.shared().note(|facts| facts.attest_trouble = None);
                    return Ok(());
                }
                Err(error) => error,
            };
            if error.is_ban() {
                return Err(self.banned().await);
            }
            if was_joining && !self.attestors.are_joining() && error.is_permanent() {
                tracing::warn!(%error, "join token was refused, the configured node attestor is used");
                continue;
            }
            if first && error.is_permanent() {
                return Err(NodeError::Refused(error));
            }
            let wait = backoff.failed();
            self.shared()
                .note(|facts| facts.attest_trouble = Some(error.to_string()));
            if reminder.is_due(Instant::now()) {
                tracing::warn!(%error, "there is no agent SVID yet; attestation is tried again");
            } else {
                tracing::debug!(%error, retry_in = ?wait, "attestation failed");
            }
            tokio::time::sleep(wait).await;
        }
    }

    async fn try_establish(&mut self) -> Result<(), AttestError> {
        let now = self.clock.now();
        if self.svid().is_none_or(|svid| renew::is_expired(svid.leaf(), now)) {
            self.withdraw_svid();
            // The clock may have been wrong when the saved SVID seemed to have expired.
            if !self.restore() {
                self.attest().await?;
            }
        }
        if self.handle.own_bundle().x509_authorities.is_empty() {
            let trusted = self.trust().await?;
            let session = self.upstream().session(trusted.how.clone());
            let fetched = match session {
                Ok(session) => session.bundle().await,
                Err(error) => Err(error),
            };
            let bundle = fetched.map_err(|cause| self.explain(cause, "GetBundle", trusted))?;
            self.bootstrapping.done();
            self.handle.adopt_bundle(bundle);
            self.bundle_changed().await;
        }
        Ok(())
    }

    /// Puts the SVID that is in memory alone, else the saved one, to use if it is valid now.
    fn restore(&mut self) -> bool {
        if self.use_held("there is no other") {
            return true;
        }
        let data = self.storage.data();
        let path = self.storage.path().to_owned();
        let Ok(Ok(svid)) = saved_svid(&data, &self.settings, path, &*self.keys, &self.clock) else {
            return false;
        };
        tracing::info!(
            serial = svid.leaf().serial_hex(),
            "saved agent SVID is in use again"
        );
        let time = RenewalTime::of_saved(self.settings.rotation, svid.leaf(), self.jitter.draw());
        self.renewal_time = Some(time);
        self.put_to_use(Arc::new(svid));
        true
    }

    /// One attestation; the new SVID is in use afterwards, and saved if the disk takes it.
    pub(super) async fn attest(&mut self) -> Result<(), AttestError> {
        let attestor = self.attestors.next()?;
        let trusted = self.trust().await?;
        if matches!(trusted.how, ServerTrust::Insecure) && !std::mem::replace(&mut self.warned_insecure, true)
        {
            tracing::warn!("insecure bootstrap: the server is not verified at this first contact");
        }
        self.shared().note(|facts| facts.attesting = true);
        let (slot, key) = self.next_key().await?;
        if attestor.works_once() {
            let room = self.check_room(slot, &key).await;
            room.map_err(|why| AttestError::NoRoom {
                attestor: attestor.name(),
                why,
            })?;
        }
        let attested = attest::attest(self.upstream(), trusted.how.clone(), &*attestor, key).await;
        if attested.as_ref().map_or_else(AttestError::is_permanent, |_| true) {
            self.attestors.shown();
        }
        let attested = match attested {
            Ok(attested) => attested,
            Err(AttestError::Upstream { cause, .. }) => {
                return Err(self.explain(cause, attestor.name(), trusted));
            }
            Err(error) => return Err(error),
        };
        tracing::info!(spiffe_id = %attested.svid.spiffe_id(), attestor = attestor.name(), "agent attested");
        self.bootstrapping.done();
        // What works once has been used up: whatever comes now must not cost the SVID.
        self.save_early(slot, &attested).await;
        if let Some(bundle) = attested.bundle().await.or(trusted.bundle) {
            self.handle.adopt_bundle(bundle);
        }
        // Kept even if it seems to have expired: a token that brought it works once, and the clock may be wrong.
        let late = renew::is_expired(attested.svid.leaf(), self.clock.now());
        let late = late.then(|| attest::expired(&attested.svid));
        self.take_up(slot, attested.svid, attested.reattestable, Use::AtOnce)
            .await;
        let Some(late) = late else { return Ok(()) };
        // Saved, and not shown to anybody until the clock says otherwise.
        self.withdraw_svid();
        Err(late)
    }

    fn explain(&self, cause: UpstreamError, attestor: &'static str, trusted: Trusted) -> AttestError {
        let (UpstreamError::UnknownAuthority(why) | UpstreamError::Untrusted(why)) = &cause else {
            return AttestError::Upstream { attestor, cause };
        };
        if trusted.is_held && matches!(cause, UpstreamError::UnknownAuthority(_)) {
            self.shared().note_distrust(why);
        }
        AttestError::Distrusted {
            server: format!("{}:{}", self.settings.server_address, self.settings.server_port),
            source_name: trusted.name,
            why: why.clone(),
        }
    }

    /// The next key, saved before anybody is asked to certify it. It never takes the place of the key of the
    /// saved SVID, even if that seems to have expired: the clock may be wrong. A key that the disk does not take
    /// is saved with its SVID.
    pub(super) async fn next_key(&mut self) -> Result<(&'static str, Arc<PrivateKey>), AttestError> {
        let data = self.storage.data();
        let saved = data
            .svid
            .first()
            .and_then(|leaf| renew::key_of(&*self.keys, leaf));
        let slot = renew::next_slot(saved.map(|(slot, _key)| slot));
        let key = match &self.unused_key {
            Some((kept, key)) if *kept == slot => Arc::clone(key),
            _ => {
                let made = PrivateKey::generate(KeyType::EcP256);
                Arc::new(made.map_err(|error| AttestError::Key(error.to_string()))?)
            }
        };
        self.unused_key = Some((slot, Arc::clone(&key)));
        if let Err(error) = self.keep_key(slot, &key).await {
            tracing::debug!(error, "the next key is in memory only");
            if self.disk.is_late() {
                self.unsaved_for(&error);
            }
        }
        Ok((slot, key))
    }

    /// Saves a new SVID and puts it to use. A disk that fails costs nothing that can be kept without it.
    pub(super) async fn take_up(
        &mut self,
        slot: &'static str,
        svid: X509Svid,
        reattestable: bool,
        when: Use,
    ) {
        self.unused_key = None;
        self.reattestable = reattestable;
        let drawn = self.jitter.draw();
        let now = Moment::now(&self.clock);
        let time = RenewalTime::of_new(self.settings.rotation, svid.leaf(), now, drawn);
        self.renewal_time = Some(time);
        self.is_returning = false;
        tracing::info!(
            spiffe_id = %svid.spiffe_id(), serial = svid.leaf().serial_hex(), expires_at = %svid.leaf().not_after(),
            "agent SVID issued"
        );
        self.renewal.succeeded();
        self.save_and_use(slot, Arc::new(svid), when).await;
        self.shared().note(|facts| {
            facts.evicted = None;
            facts.distrust = None;
            facts.renewal_trouble = None;
        });
    }

    pub(super) fn put_to_use(&mut self, svid: Arc<X509Svid>) {
        self.shared().svid.send_replace(Some(svid));
        self.shared().note(|facts| {
            facts.has_svid = true;
            facts.attesting = false;
            facts.attest_trouble = None;
        });
    }
}

/// The SVID of an earlier run, if it is still good and its key is there; else why not.
pub(super) fn saved_svid(
    data: &AgentData,
    settings: &NodeSettings,
    path: PathBuf,
    keys: &dyn PrivateKeyManager,
    clock: &Clock,
) -> Result<Result<X509Svid, NotTakenUp>, NodeError> {
    let Some(leaf) = data.svid.first() else {
        return Ok(Err(NotTakenUp::None));
    };
    let saved = match leaf.spiffe_id() {
        Ok(saved) => saved,
        Err(error) => return Ok(Err(NotTakenUp::Unusable(error))),
    };
    if !saved.is_member_of(&settings.trust_domain) {
        return Err(NodeError::OtherTrustDomain {
            path,
            saved: saved.to_string(),
            configured: settings.trust_domain.clone(),
        });
    }
    if renew::is_expired(leaf, clock.now()) {
        return Ok(Err(NotTakenUp::Expired(leaf.not_after())));
    }
    let Some((_slot, key)) = renew::key_of(keys, leaf) else {
        return Ok(Err(NotTakenUp::NoKey));
    };
    Ok(X509Svid::new(data.svid.clone(), key).map_err(NotTakenUp::Unusable))
}

/// Why a saved SVID is of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotTakenUp {
    #[error("none was saved")]
    None,
    #[error("it has expired: {0}")]
    Expired(OffsetDateTime),
    #[error("its key is gone")]
    NoKey,
    #[error("{0}")]
    Unusable(X509Error),
}
