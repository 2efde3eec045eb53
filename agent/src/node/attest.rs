//! One attestation, from the key to the SVID.

use std::sync::Arc;

use finial_identity::bundle::Bundle;
use finial_identity::key::PrivateKey;
use finial_identity::spiffe_id::TrustDomain;
use finial_identity::x509::{Csr, CsrSubject, X509Svid};

use tonic::Code;
use tracing::Instrument;

use super::{AttestorError, BootstrapError, NodeAttestor};
use crate::telemetry::{TRACE_TARGET, metrics};
use crate::upstream::{AttestStep, DenialReason, ServerTrust, Session, Upstream, UpstreamError};

/// What an attestation brought.
#[derive(Debug)]
pub(super) struct Attested {
    pub(super) svid: X509Svid,
    pub(super) reattestable: bool,
    /// Where the server's bundle can be had as well.
    session: Session,
}

/// Why the agent has no SVID.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// There is neither a usable SVID from an earlier run nor a node attestor.
    #[error(
        "no usable SVID was saved and no node attestor is configured (join_token, join_token_file or a NodeAttestor)"
    )]
    NoAttestor,
    /// There is no usable SVID, and what the node attestor shows works only once.
    #[error(
        "attest with {0}: it works once and was used or refused; no SVID that was saved is valid at this time: start the agent with a new one"
    )]
    Spent(&'static str),
    /// What the node attestor shows works only once, and what it would bring could not be saved: a restart
    /// would have neither.
    #[error("attest with {attestor}: it works once and is not used before the SVID can be saved: {why}")]
    NoRoom {
        /// The attestor's name.
        attestor: &'static str,
        /// What cannot be written, and why.
        why: String,
    },
    /// The trust bundle cannot be had.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// The attestor could not do its part.
    #[error(transparent)]
    Attestor(#[from] AttestorError),
    /// The server's certificate does not verify.
    #[error("server at {server} is not trusted according to {source_name}: {why}")]
    Distrusted {
        /// Address and port.
        server: String,
        /// Where the bundle came from.
        source_name: String,
        /// What the verifier said.
        why: String,
    },
    /// The server refused, or could not be reached.
    #[error("attest with {attestor}: {cause}")]
    Upstream {
        /// The attestor's name.
        attestor: &'static str,
        /// What happened.
        cause: UpstreamError,
    },
    /// The agent's key could not be made.
    #[error("agent key: {0}")]
    Key(String),
    /// What the server signed is not a usable SVID of this agent.
    #[error("attest: unusable SVID: {0}")]
    UnusableSvid(String),
}

impl AttestError {
    /// Whether trying again is useless until something is changed.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::NoAttestor | Self::Spent(_) => true,
            Self::Upstream { cause, .. } => cause.is_refusal(),
            _ => false,
        }
    }

    /// The gRPC code that says most about it.
    pub(super) fn code(&self) -> Code {
        match self {
            Self::Upstream { cause, .. } => cause.code(),
            _ => Code::Internal,
        }
    }

    /// Whether the server banned this agent.
    pub(super) fn is_ban(&self) -> bool {
        matches!(self, Self::Upstream { cause, .. } if cause.denial() == Some(DenialReason::AgentBanned))
    }
}

/// Attests over a connection of its own.
pub(super) async fn attest(
    upstream: &Upstream,
    trust: ServerTrust,
    attestor: &dyn NodeAttestor,
    key: Arc<PrivateKey>,
) -> Result<Attested, AttestError> {
    let name = attestor.name();
    let timer = metrics()
        .start("node_attestor_new_svid")
        .labelled("attestor", name);
    let span = tracing::info_span!(target: TRACE_TARGET, "attest_agent", attestor = name);
    let exchanged = exchange(upstream, trust, attestor, key).instrument(span);
    timer.around(exchanged, AttestError::code).await
}

async fn exchange(
    upstream: &Upstream,
    trust: ServerTrust,
    attestor: &dyn NodeAttestor,
    key: Arc<PrivateKey>,
) -> Result<Attested, AttestError> {
    let failed = |cause| AttestError::Upstream {
        attestor: attestor.name(),
        cause,
    };
    let csr_der = request(&key)?;
    let payload = attestor.payload().await?;
    let mut session = upstream.session(trust).map_err(failed)?;
    let mut step = session
        .attest(attestor.name(), payload, csr_der)
        .await
        .map_err(failed)?;
    let (chain, reattestable) = loop {
        match step {
            AttestStep::Challenge(challenge) => {
                let response = attestor.respond(&challenge).await?;
                step = session.answer(response).await.map_err(failed)?;
            }
            AttestStep::Done { chain, reattestable } => break (chain, reattestable),
        }
    };
    let svid = usable_svid(chain, key, upstream.trust_domain())?;
    Ok(Attested {
        svid,
        reattestable,
        session,
    })
}

impl Attested {
    /// The server's bundle, over the same connection, if it can be had. This may take long.
    pub(super) async fn bundle(&self) -> Option<Bundle> {
        let fetched = self.session.bundle().await;
        fetched
            .inspect_err(|error| {
                // The SVID counts: a join token that brought it would not work a second time.
                tracing::warn!(%error, "bundle could not be fetched after attestation");
            })
            .ok()
    }
}

/// The request that a server signs an agent's SVID for; it contains only the key.
pub(super) fn request(key: &PrivateKey) -> Result<Vec<u8>, AttestError> {
    Csr::build(key, CsrSubject::spire(), None, &[]).map_err(|error| AttestError::Key(error.to_string()))
}

/// A new SVID that is none by this machine's clock.
pub(super) fn expired(svid: &X509Svid) -> AttestError {
    AttestError::UnusableSvid(format!(
        "it expired at {} by the clock of this machine, which may be wrong",
        svid.leaf().not_after()
    ))
}

/// Checks an SVID that the server signed for this agent.
pub(super) fn usable_svid(
    chain: Vec<finial_identity::x509::Certificate>,
    key: Arc<PrivateKey>,
    trust_domain: &TrustDomain,
) -> Result<X509Svid, AttestError> {
    let svid = X509Svid::new(chain, key).map_err(|error| AttestError::UnusableSvid(error.to_string()))?;
    if !svid.spiffe_id().is_member_of(trust_domain) {
        return Err(AttestError::UnusableSvid(format!(
            "{} is not of trust domain {trust_domain}",
            svid.spiffe_id()
        )));
    }
    Ok(svid)
}
