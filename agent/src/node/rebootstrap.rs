//! A server whose authorities the agent does not know: a new server of the same trust domain, one whose authorities
//! were all replaced while the agent could not reach it, or an attacker.
//!
//! SPIRE's agents delete their identity and exit, to start from the bootstrap source. Here the agent reads the source
//! again while it continues to serve valid SVIDs, and attests to a server that is trusted by its present bundle or by
//! the one from the source. Nothing else makes it trust a server, and a server that is not trusted gets only the
//! beginning of a TLS handshake.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use finial_identity::bundle::Bundle;
use tokio::sync::watch;

use super::attest::AttestError;
use super::bootstrap::{self, BundleRequest};
use super::facts::Distrust;
use super::{BootstrapSource, HeldBundle, Node, NodeAttestor, NodeError, NodeSettings};
use crate::config::{Rebootstrap, RebootstrapMode};
use crate::upstream::ServerTrust;

/// What is done about a server of unknown authority.
#[derive(Clone, Debug)]
pub(super) struct ReturnPolicy {
    /// How long it is waited for a known one; `None` keeps the bundle for good.
    after: Option<Duration>,
    /// For the operator, while nothing was tried.
    pub(super) advice: String,
}

/// Whom to trust while attesting.
#[derive(Debug)]
pub(super) struct Trusted {
    pub(super) how: ServerTrust,
    /// What it rests on, in a few words.
    pub(super) name: String,
    /// Used if the server authenticates and then does not send its bundle.
    pub(super) bundle: Option<Bundle>,
    /// It is the bundle held, perhaps with another.
    pub(super) is_held: bool,
}

impl ReturnPolicy {
    /// Finds out whether the agent can return to its source.
    ///
    /// # Errors
    /// [`NodeError::CannotRebootstrap`] when it is told to and cannot.
    pub(super) fn new(
        settings: &NodeSettings,
        attestor: Option<&dyn NodeAttestor>,
        saved: &Path,
    ) -> Result<Self, NodeError> {
        let Rebootstrap { mode, delay } = settings.rebootstrap;
        let obstacle = match attestor {
            _ if settings.bootstrap == BootstrapSource::Insecure => {
                Some("nothing vouches for a server with insecure_bootstrap".to_owned())
            }
            None => Some("there is no node attestor".to_owned()),
            Some(attestor) if attestor.works_once() => {
                Some(format!("node attestor {} works only once", attestor.name()))
            }
            Some(_) => None,
        };
        let kept = match (mode, obstacle) {
            (RebootstrapMode::Auto | RebootstrapMode::Always, None) => {
                let source = settings.bootstrap.describe();
                return Ok(Self {
                    after: Some(delay),
                    advice: format!("if this lasts for {delay:?}, the agent returns to {source}"),
                });
            }
            (RebootstrapMode::Always, Some(why)) => return Err(NodeError::CannotRebootstrap(why)),
            (RebootstrapMode::Auto, Some(why)) => {
                tracing::warn!(
                    why,
                    "rebootstrap_mode auto has no effect: the agent cannot attest a second time"
                );
                format!("rebootstrap_mode auto, but {why}")
            }
            (RebootstrapMode::Never, _) => "rebootstrap_mode never".to_owned(),
        };
        Ok(Self {
            after: None,
            advice: format!(
                "the saved bundle is kept ({kept}): if the trust domain has new authorities, move {} away and start \
                 the agent with their bundle and what it needs to attest anew",
                saved.display()
            ),
        })
    }

    fn is_due(&self, distrust: Option<&Distrust>) -> bool {
        let lasted = distrust.map(|distrust| distrust.since.elapsed());
        self.after
            .zip(lasted)
            .is_some_and(|(delay, lasted)| lasted >= delay)
    }
}

impl Node {
    /// The server has been of unknown authority once more: attests with the source's help if that has lasted.
    pub(super) async fn distrusted(&mut self) -> Result<(), NodeError> {
        if !self.is_return_due() {
            self.is_returning = false;
            return Ok(());
        }
        if !self.reattestation.is_due() {
            return Ok(());
        }
        let source = self.settings.bootstrap.describe();
        if !std::mem::replace(&mut self.is_returning, true) {
            tracing::warn!(
                source,
                "server stays untrusted, the agent returns to its bootstrap source"
            );
        }
        let Err(error) = self.attest().await else {
            tracing::info!(
                source,
                "agent trusts the server according to its bootstrap source"
            );
            self.forced = false;
            self.renewal.succeeded();
            return Ok(());
        };
        if error.is_ban() {
            return Err(self.banned().await);
        }
        self.reattestation.failed();
        let text = format!("returning to {source} failed: {error}");
        self.shared().note(|facts| facts.note_failed_return(text));
        Ok(())
    }

    /// Whom to trust while there is no SVID that the server accepts: the bundle held; without one, or when the
    /// server has been unknown to it for long, the configured source.
    pub(super) async fn trust(&mut self) -> Result<Trusted, AttestError> {
        let held = self.handle.own_bundle();
        let saved = bootstrap::describe_saved(self.storage.path());
        if held.x509_authorities.is_empty() {
            return self.trust_source(None).await;
        }
        let handle = self.handle.clone();
        let as_held = |name: String| Trusted {
            how: ServerTrust::Bundle(Arc::new(HeldBundle(handle.bundle()))),
            name,
            bundle: None,
            is_held: true,
        };
        if !self.is_return_due() {
            return Ok(as_held(saved));
        }
        match self.trust_source(Some((&held, &saved))).await {
            Ok(trusted) => Ok(trusted),
            // The server that is known may be back meanwhile.
            Err(error) => Ok(as_held(format!("{saved} ({error})"))),
        }
    }

    /// The configured source, and the bundle held as well if there is one.
    async fn trust_source(&mut self, held: Option<(&Bundle, &str)>) -> Result<Trusted, AttestError> {
        self.bootstrapping.attempt(held.is_some());
        let source = &self.settings.bootstrap;
        let distrust = self.shared().facts().distrust.clone();
        let now = self.clock.now();
        let lasted = distrust
            .as_ref()
            .map_or(Duration::ZERO, |distrust| distrust.since.elapsed());
        let request = BundleRequest {
            trust_domain: &self.settings.trust_domain,
            server_address: &self.settings.server_address,
            server_port: self.settings.server_port,
            is_again: held.is_some(),
            since: now - time::Duration::try_from(lasted).unwrap_or(time::Duration::ZERO),
            attempts: distrust.map_or(1, |distrust| distrust.attempts),
        };
        let Some(mut bundle) = source.load(&request).await? else {
            return Ok(Trusted {
                how: ServerTrust::Insecure,
                name: source.describe(),
                bundle: None,
                is_held: false,
            });
        };
        let mut name = source.describe();
        if let Some((held, saved)) = held {
            for authority in &held.x509_authorities {
                let mut known = bundle.x509_authorities.iter();
                if !known.any(|other| other.certificate == authority.certificate) {
                    bundle.x509_authorities.push(authority.clone());
                }
            }
            name = format!("{saved} and {name}");
        }
        let (_sender, receiver) = watch::channel(Arc::new(bundle.clone()));
        Ok(Trusted {
            how: ServerTrust::Bundle(Arc::new(HeldBundle(receiver))),
            name,
            bundle: Some(bundle),
            is_held: held.is_some(),
        })
    }

    fn is_return_due(&self) -> bool {
        let facts = self.shared().facts();
        self.shared().returning.is_due(facts.distrust.as_ref())
    }
}
