//! A new SVID is saved before the agent uses it at the server, as far as possible.
//!
//! A server accepts the former SVID after `RenewAgent` until the new one is first used. So while the data directory
//! cannot be written, a renewed SVID is not used yet: after a restart the agent presents the SVID on disk and is
//! accepted. In the last eighth of the former one's lifetime the new one is used from memory. An SVID from
//! `AttestAgent` is used at once, because the server has deleted the former one already. Either way saving is tried
//! again until it works. A disk that does not answer is one that fails ([`Disk`](super::disk::Disk)).

use std::sync::Arc;

use finial_identity::key::PrivateKey;
use finial_identity::x509::X509Svid;

use super::attest::Attested;
use super::lifecycle::is_tainted;
use super::storage::{AgentData, StorageError};
use super::{Node, renew};

/// The newest SVID while the disk does not have it.
#[derive(Clone, Debug)]
pub(super) struct Unsaved {
    /// Where its key belongs.
    pub(super) slot: &'static str,
    pub(super) svid: Arc<X509Svid>,
    pub(super) when: Use,
}

/// When a new SVID is put to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// The server has dropped the former one.
    AtOnce,
    /// The server accepts the former one until it has seen the new one.
    OnceSaved,
}

impl Node {
    /// Saves a new SVID and puts it to use, in this order when there is time for it.
    pub(super) async fn save_and_use(&mut self, slot: &'static str, svid: Arc<X509Svid>, when: Use) {
        self.unsaved = Some(Unsaved { slot, svid, when });
        self.persist().await;
        if !self.can_wait() {
            self.use_held("the former one will not do");
        }
    }

    /// Saves what an attestation brought before anything else is asked of the server. What fails is tried again when the
    /// SVID is put to use.
    pub(super) async fn save_early(&mut self, slot: &'static str, attested: &Attested) {
        let (chain, reattestable) = (attested.svid.chain().to_vec(), attested.reattestable);
        let saved = match self.keep_key(slot, attested.svid.key()).await {
            Err(error) => Err(error),
            Ok(()) => {
                self.write(move |data| {
                    data.svid = chain;
                    data.reattestable = reattestable;
                })
                .await
            }
        };
        if let Err(error) = saved {
            tracing::debug!(error, "agent SVID is in memory only");
        }
    }

    /// Brings the disk up to what is held in memory: the newest SVID with its key, and the bundle. An SVID that
    /// waited for this is put to use. Does nothing when the disk has it all.
    pub(super) async fn persist(&mut self) {
        let unsaved = self.unsaved.clone();
        if let Err(why) = self.write_all(unsaved.as_ref()).await {
            self.saving.failed();
            self.unsaved_for(&why);
            return;
        }
        self.unsaved = None;
        self.saving.succeeded();
        if self.shared().facts().disk_trouble.is_some() {
            tracing::info!(path = %self.storage.path().display(), "agent data is saved again");
            self.shared().note(|facts| facts.disk_trouble = None);
        }
        if let Some(Unsaved { svid, .. }) = unsaved
            && !self.is_in_use(&svid)
        {
            self.put_to_use(svid);
        }
    }

    /// Tries again to save what could not be saved, when it is time, and sees whether an SVID that is held back
    /// must be used nevertheless.
    pub(super) async fn catch_up(&mut self) {
        if self.shared().facts().disk_trouble.is_some() && self.saving.is_due() {
            self.persist().await;
        }
        if !self.can_wait() {
            self.use_held("the former one will not do any longer");
        }
    }

    /// Puts an SVID to use that is held back, if there is one. Returns whether there was.
    pub(super) fn use_held(&mut self, reason: &'static str) -> bool {
        let now = self.clock.now();
        let Some(svid) = self.held().filter(|svid| !renew::is_expired(svid.leaf(), now)) else {
            return false;
        };
        tracing::warn!(
            serial = svid.leaf().serial_hex(),
            reason,
            "agent SVID is used before it could be saved"
        );
        self.put_to_use(svid);
        let why = self.shared().facts().disk_trouble.clone();
        if let Some(trouble) = why {
            self.unsaved_for(&trouble.why);
        }
        true
    }

    /// An SVID that is held back.
    pub(super) fn held(&self) -> Option<Arc<X509Svid>> {
        let unsaved = self.unsaved.as_ref()?;
        (!self.is_in_use(&unsaved.svid)).then(|| Arc::clone(&unsaved.svid))
    }

    /// The newest SVID, in use or not: the next renewal counts from it.
    pub(super) fn newest_svid(&self) -> Option<Arc<X509Svid>> {
        self.held().or_else(|| self.svid())
    }

    /// Whether what a single-use attestor brings could be saved: its key, and a file of the size that is needed.
    pub(super) async fn check_room(
        &mut self,
        slot: &'static str,
        key: &Arc<PrivateKey>,
    ) -> Result<(), String> {
        self.keep_key(slot, key).await?;
        let storage = Arc::clone(&self.storage);
        let check = in_blocking_thread(move || storage.check_room());
        self.disk.work("write a file for trial", check).await
    }

    /// Writes a key to its slot, unless it is there.
    pub(super) async fn keep_key(&mut self, slot: &'static str, key: &Arc<PrivateKey>) -> Result<(), String> {
        let kept = self.keys.private_key(slot);
        if kept.is_some_and(|kept| kept.public_key() == key.public_key()) {
            return Ok(());
        }
        let (keys, key) = (Arc::clone(&self.keys), Arc::clone(key));
        let set = async move {
            let set = keys.set_private_key(slot, key).await;
            set.map_err(|error| error.to_string())
        };
        self.disk.work("write keys", set).await
    }

    /// Forgets the SVID, on disk too.
    pub(super) async fn forget_svid(&mut self) {
        self.unsaved = None;
        self.withdraw_svid();
        if let Err(error) = self.write(|data| data.svid.clear()).await {
            tracing::error!(error, "agent SVID could not be removed from the disk");
        }
    }

    /// The key first: an SVID without its key is of no use to the next start.
    async fn write_all(&mut self, unsaved: Option<&Unsaved>) -> Result<(), String> {
        if let Some(Unsaved { slot, svid, .. }) = unsaved {
            self.keep_key(slot, svid.key()).await?;
        }
        let chain = unsaved.map(|unsaved| unsaved.svid.chain().to_vec());
        let reattestable = self.reattestable;
        let authorities = self.handle.own_bundle().x509_certificates();
        self.write(move |data| {
            if let Some(chain) = chain {
                data.svid = chain;
                data.reattestable = reattestable;
            }
            if !authorities.is_empty() {
                data.bundle = authorities;
            }
        })
        .await
    }

    async fn write(&mut self, change: impl FnOnce(&mut AgentData) + Send + 'static) -> Result<(), String> {
        let storage = Arc::clone(&self.storage);
        let update = in_blocking_thread(move || storage.update(change));
        self.disk.work("write agent data", update).await
    }

    /// Whether an SVID that is held back may stay so: the server accepts the one in use, which has more than an
    /// eighth of its lifetime before it and an authority that stays.
    fn can_wait(&self) -> bool {
        let now = self.clock.now();
        let dropped = |unsaved: &Unsaved| unsaved.when == Use::AtOnce;
        !self.unsaved.as_ref().is_some_and(dropped)
            && self.svid().is_some_and(|svid| {
                !renew::is_in_last_eighth(svid.leaf(), now) && !is_tainted(&svid, &self.handle.own_bundle())
            })
    }

    fn is_in_use(&self, svid: &Arc<X509Svid>) -> bool {
        self.svid().is_some_and(|used| Arc::ptr_eq(&used, svid))
    }

    /// Says what is not on disk and why; logged the first time and when it changes.
    pub(super) fn unsaved_for(&self, why: &str) {
        let what = match &self.unsaved {
            None => "agent data cannot be saved",
            Some(_) if self.held().is_some() && self.can_wait() => {
                "the agent's new SVID is held back until it can be saved"
            }
            Some(_) => "the agent's SVID cannot be saved, after a restart it must attest anew",
        };
        let trouble = DiskTrouble {
            what,
            why: why.to_owned(),
        };
        if self.shared().facts().disk_trouble.as_ref() != Some(&trouble) {
            tracing::error!(error = why, what, "agent data could not be saved");
            self.shared().note(|facts| facts.disk_trouble = Some(trouble));
        }
    }
}

async fn in_blocking_thread(
    work: impl FnOnce() -> Result<(), StorageError> + Send + 'static,
) -> Result<(), String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// What the disk does not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DiskTrouble {
    what: &'static str,
    why: String,
}

impl std::fmt::Display for DiskTrouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}
