//! The agent's own identity: which server it trusts, how it attests, and how it renews its SVID.
//!
//! [`Node::run`] owns the lifecycle of the agent's SVID; all others hold a [`NodeHandle`]. A node attestor has
//! the same name here, at the server and in the configuration.

mod attest;
mod attestors;
mod backoff;
mod bootstrap;
mod bootstrapping;
mod disk;
mod facts;
#[cfg(test)]
mod failover_tests;
mod join_token;
mod k8s_psat;
#[cfg(test)]
mod life_tests;
mod lifecycle;
#[cfg(test)]
mod lifecycle_tests;
mod obtain;
mod rebootstrap;
#[cfg(test)]
mod rebootstrap_tests;
mod reminder;
mod renew;
mod renewal_time;
mod rotation;
mod saving;
#[cfg(test)]
mod saving_tests;
mod state;
mod storage;
mod x509pop;

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use finial_identity::bundle::Bundle;
use finial_identity::peer::BundleSource;
use finial_identity::spiffe_id::TrustDomain;
use finial_identity::x509::{Certificate, X509Svid};
use tokio::sync::{mpsc, watch};

use self::facts::StateFacts;
use self::rebootstrap::ReturnPolicy;
use crate::config::Rebootstrap;
use crate::upstream::{DenialReason, Upstream, UpstreamError};

pub use finial_identity::process::Jitter;

pub use self::attest::AttestError;
pub use self::attestors::NodeAttestors;
pub use self::backoff::Backoff;
pub use self::bootstrap::{BootstrapError, BootstrapSource, BundleFormat, BundleRequest, bundle_of};
pub use self::join_token::JoinTokenAttestor;
pub use self::k8s_psat::K8sPsatAttestor;
pub use self::lifecycle::Node;
pub use self::reminder::{Reminder, valid_for};
pub use self::renewal_time::{Moment, RenewalTime};
pub use self::rotation::{RotationStrategy, remaining_at_renewal};
pub use self::state::NodeState;
pub use self::storage::{AgentData, AgentStorage, SetAside, StorageError};
pub use self::x509pop::X509PopAttestor;

/// Proves to the server which node this is.
#[async_trait]
pub trait NodeAttestor: Send + Sync + std::fmt::Debug {
    /// The name, as in the configuration and at the server.
    fn name(&self) -> &'static str;

    /// What is sent first.
    async fn payload(&self) -> Result<Vec<u8>, AttestorError>;

    /// The answer to a challenge of the server.
    async fn respond(&self, challenge: &[u8]) -> Result<Vec<u8>, AttestorError>;

    /// Whether what it shows can be used a single time, so that an agent whose server forgot it cannot
    /// help itself.
    fn works_once(&self) -> bool {
        false
    }
}

/// An attestor could not do its part.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct AttestorError(pub String);

/// What the agent's identity rests on, checked.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// The agent's trust domain.
    pub trust_domain: TrustDomain,
    /// Host name or address of the server.
    pub server_address: String,
    /// Its TCP port.
    pub server_port: u16,
    /// The bundle to trust before the server has sent one.
    pub bootstrap: BootstrapSource,
    /// Whether to ask that again when the server is no longer trusted.
    pub rebootstrap: Rebootstrap,
    /// Where `agent-data.json` is kept.
    pub data_dir: PathBuf,
    /// When the agent's SVID is renewed (`availability_target`).
    pub rotation: RotationStrategy,
    /// Told to the server at start.
    pub agent_version: String,
}

/// Why the agent cannot continue.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// What an earlier run saved cannot be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The data directory belongs to an agent of another trust domain.
    #[error("{} holds the SVID of {saved}, not of trust domain {configured}", path.display())]
    OtherTrustDomain {
        /// The file.
        path: PathBuf,
        /// Whose SVID it is.
        saved: String,
        /// What the configuration says.
        configured: TrustDomain,
    },
    /// It was told to return to its bootstrap source if need be, and cannot.
    #[error("rebootstrap_mode always: {0}")]
    CannotRebootstrap(String),
    /// The first attestation was refused for good.
    #[error("agent cannot attest: {0}")]
    Refused(AttestError),
    /// The server banned this agent.
    #[error("the server banned this agent")]
    Banned,
}

/// What the rest of the agent learned about the server.
#[derive(Clone, Debug)]
pub enum Report {
    /// The server accepted a call made with the agent's SVID.
    Reachable,
    /// The server cannot be used.
    Unreachable(UpstreamError),
    /// The server denied this agent.
    Denied(Denial),
}

/// What a server said against this agent.
#[derive(Clone, Debug)]
pub struct Denial {
    /// Why.
    pub reason: DenialReason,
    /// The serial number, in hexadecimal, of the agent's SVID that the call was made with.
    pub serial: Option<String>,
}

/// The agent's identity as others see it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct NodeHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    trust_domain: TrustDomain,
    upstream: Upstream,
    facts: Mutex<StateFacts>,
    state: watch::Sender<NodeState>,
    svid: watch::Sender<Option<Arc<X509Svid>>>,
    bundle: watch::Sender<Arc<Bundle>>,
    news: mpsc::Sender<News>,
    returning: ReturnPolicy,
}

/// What the owner of the identity must act on.
#[derive(Debug)]
enum News {
    /// The server denied this agent.
    Denied(Denial),
    /// The server refused an SVID of this agent while connecting.
    Refused {
        why: String,
        /// The serial number of that SVID.
        serial: Option<String>,
    },
    /// The server's authority is unknown.
    Distrusted,
}

impl Denial {
    /// What an error says against this agent, if it does.
    pub fn of(error: &UpstreamError) -> Option<Self> {
        let reason = error.denial()?;
        let UpstreamError::PermissionDenied { serial, .. } = error else {
            return None;
        };
        let serial = serial.clone();
        Some(Self { reason, serial })
    }
}

impl NodeHandle {
    /// Follows the agent's state.
    pub fn state(&self) -> watch::Receiver<NodeState> {
        self.shared.state.subscribe()
    }

    /// Follows the agent's SVID.
    pub fn svid(&self) -> watch::Receiver<Option<Arc<X509Svid>>> {
        self.shared.svid.subscribe()
    }

    /// Follows the bundle of the own trust domain; empty until there is one.
    pub fn bundle(&self) -> watch::Receiver<Arc<Bundle>> {
        self.shared.bundle.subscribe()
    }

    /// The bundle of the own trust domain, as it is now.
    pub fn own_bundle(&self) -> Arc<Bundle> {
        Arc::clone(&self.shared.bundle.borrow())
    }

    /// The own trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.shared.trust_domain
    }

    /// What peers are verified against: the bundle that is held at the moment.
    pub fn bundle_source(&self) -> Arc<dyn BundleSource> {
        Arc::new(HeldBundle(self.bundle()))
    }

    /// Every kind of trouble that degrades an agent, and whether it is there.
    pub fn troubles(&self) -> [(&'static str, bool); 7] {
        let facts = self.shared.facts();
        [
            ("attestation", facts.attest_trouble.is_some()),
            ("trust", facts.distrust.is_some()),
            ("evicted", facts.evicted.is_some()),
            ("renewal", facts.renewal_trouble.is_some()),
            ("server", facts.link_trouble.is_some()),
            ("disk", facts.disk_trouble.is_some()),
            ("pods", facts.pod_trouble.is_some()),
        ]
    }

    /// Whether nothing can be had from the server, as far as is known.
    pub fn is_cut_off(&self) -> bool {
        let facts = self.shared.facts();
        !facts.has_svid || facts.link_trouble.is_some() || facts.distrust.is_some() || facts.evicted.is_some()
    }

    /// The connection to the server.
    pub fn upstream(&self) -> &Upstream {
        &self.shared.upstream
    }

    /// Tells how the server answered.
    pub fn report(&self, report: Report) {
        match report {
            Report::Reachable => self.shared.note(|facts| {
                facts.link_trouble = None;
                facts.distrust = None;
                facts.evicted = None;
            }),
            Report::Unreachable(error) => self.shared.note_unreachable(&error),
            Report::Denied(denial) => self.shared.tell(News::Denied(denial)),
        }
    }

    /// Has the state show why pods have no socket, until nobody tells any more.
    ///
    /// # Errors
    /// None; the type is what task sets expect.
    pub async fn follow_pods(self, mut trouble: watch::Receiver<Option<String>>) -> Result<(), Infallible> {
        while trouble.changed().await.is_ok() {
            let pod_trouble = trouble.borrow_and_update().clone();
            self.shared.note(|facts| facts.pod_trouble = pod_trouble);
        }
        Ok(())
    }

    /// Takes a bundle that the server sent: from now on the server and others are verified against it. Saved
    /// by [`Node::run`]. Returns whether it differs from the one held.
    pub fn adopt_bundle(&self, bundle: Bundle) -> bool {
        let gone = {
            let held = self.shared.bundle.borrow();
            **held != bundle && removes_authority(&held, &bundle)
        };
        let changed = self.shared.bundle.send_if_modified(|held| {
            let differs = **held != bundle;
            if differs {
                *held = Arc::new(bundle);
            }
            differs
        });
        if gone {
            // The server may have proved itself with what no longer counts.
            self.shared.upstream.reconnect();
        }
        changed
    }
}

impl Shared {
    fn facts(&self) -> MutexGuard<'_, StateFacts> {
        // A panic under the lock leaves facts that are each true on their own.
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_unreachable(&self, error: &UpstreamError) {
        let text = error.to_string();
        match error {
            UpstreamError::UnknownAuthority(why) => {
                self.note_distrust(why);
                self.tell(News::Distrusted);
            }
            UpstreamError::SvidRefused { why, serial } => self.tell(News::Refused {
                why: why.clone(),
                serial: serial.clone(),
            }),
            _ => {}
        }
        self.note(|facts| facts.link_trouble = Some(text));
    }

    /// Notes that the server's authority is unknown. What came of an attempt to overcome that stays in sight.
    fn note_distrust(&self, why: &str) {
        let advice = self.returning.advice.clone();
        self.note(|facts| facts.note_distrust(why.to_owned(), advice));
    }

    /// News that find the queue full are some of many; the next attempt brings them again.
    fn tell(&self, news: News) {
        drop(self.news.try_send(news));
    }
}

/// Verifies peers against the bundle that is held at the moment.
#[derive(Debug)]
struct HeldBundle(watch::Receiver<Arc<Bundle>>);

impl BundleSource for HeldBundle {
    fn x509_authorities(&self, trust_domain: &TrustDomain) -> Option<Arc<[Certificate]>> {
        let bundle = self.0.borrow();
        (bundle.trust_domain == *trust_domain).then(|| bundle.x509_certificates().into())
    }
}

fn removes_authority(held: &Bundle, next: &Bundle) -> bool {
    let kept = |certificate: &Certificate| {
        let mut others = next.x509_authorities.iter();
        others.any(|other| other.certificate == *certificate)
    };
    held.x509_authorities
        .iter()
        .any(|authority| !kept(&authority.certificate))
}
