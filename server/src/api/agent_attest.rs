//! `AttestAgent`: from the attestation data to an SVID.

use std::net::IpAddr;

use async_trait::async_trait;
use finial_identity::selector::Selector;
use finial_identity::x509::Csr;
use finial_proto::spire::api::server::agent::v1 as pb;
use finial_proto::spire::api::server::agent::v1::attest_agent_request::Step as RequestStep;
use finial_proto::spire::api::server::agent::v1::attest_agent_response::Step as ResponseStep;
use finial_proto::spire::api::types;
use finial_proto::spire::api::types::permission_denied_details::Reason;
use tonic::{Code, Status, Streaming};
use tracing::Instrument;

use super::Services;
use super::call::{Call, Peer, field};
use super::csr;
use super::status::{OrRefuse, Refusal};
use super::streaming::Sender;
use super::svid::svid_to_wire;
use crate::attestation::{AttestError, Attested, Challenge};
use crate::store::{AgentPut, AgentRecord};
use crate::telemetry::{TRACE_TARGET, metrics};

/// The stream between a node that attests and us.
#[derive(Debug)]
pub struct Conversation {
    requests: Streaming<pb::AttestAgentRequest>,
    sender: Sender<pb::AttestAgentResponse>,
    peer_ip: Option<IpAddr>,
}

impl Conversation {
    /// Over the two halves of a call.
    pub fn new(
        call: &Call,
        requests: Streaming<pb::AttestAgentRequest>,
        sender: Sender<pb::AttestAgentResponse>,
    ) -> Self {
        let peer_ip = match &*call.caller.peer {
            Peer::Remote { addr, .. } => Some(addr.ip().to_canonical()),
            Peer::Local { .. } => None,
        };
        Self {
            requests,
            sender,
            peer_ip,
        }
    }

    async fn send(&self, step: ResponseStep) -> Result<(), AttestError> {
        let response = pb::AttestAgentResponse { step: Some(step) };
        self.sender
            .send(response)
            .await
            .map_err(|_closed| AttestError::Invalid("agent closed the stream".to_owned()))
    }
}

#[async_trait]
impl Challenge for Conversation {
    async fn challenge(&mut self, challenge: Vec<u8>) -> Result<Vec<u8>, AttestError> {
        self.send(ResponseStep::Challenge(challenge)).await?;
        let answer = self
            .requests
            .message()
            .await
            .map_err(|status| AttestError::Failed {
                what: "failed to receive challenge response",
                source: Box::new(status),
            })?;
        match answer.and_then(|answer| answer.step) {
            Some(RequestStep::ChallengeResponse(response)) => Ok(response),
            _ => Err(AttestError::Invalid("challenge response expected".to_owned())),
        }
    }

    fn peer_ip(&self) -> Option<IpAddr> {
        self.peer_ip
    }
}

/// Attests the node at the other end and answers with its SVID.
///
/// # Errors
/// The error for the node.
pub async fn attest(services: &Services, call: &Call, mut conversation: Conversation) -> Result<(), Refusal> {
    let first = conversation.requests.message().await.map_err(unreceived)?;
    let params = match first.and_then(|first| first.step) {
        Some(RequestStep::Params(params)) => params,
        _ => return Err(Refusal::invalid("malformed param: missing params")),
    };
    let data = params
        .data
        .ok_or_else(|| Refusal::invalid("malformed param: missing attestation data"))?;
    let csr_der = params
        .params
        .ok_or_else(|| Refusal::invalid("malformed param: missing X509-SVID parameters"))?
        .csr;
    if data.r#type.is_empty() {
        return Err(Refusal::invalid("malformed param: missing attestation data type"));
    }
    if data.payload.is_empty() {
        return Err(Refusal::invalid(
            "malformed param: missing attestation data payload",
        ));
    }
    if csr_der.is_empty() {
        return Err(Refusal::invalid("malformed param: missing CSR"));
    }
    call.note(field::ATTESTATION_TYPE, &data.r#type);
    call.note(field::CSR, csr::fingerprint(&csr_der));
    // Before a single-use proof is spent.
    let csr = csr::checked(&csr_der)?;
    let attestor = services.attestors.by_name(&data.r#type).ok_or_else(|| {
        Refusal::precondition(format!(
            "error getting node attestor: could not find node attestor type \"{}\"",
            data.r#type
        ))
    })?;
    let name = attestor.name();
    let timer = metrics().start("node_attestation").labelled("attestor", name);
    let judged = attestor
        .attest(&data.payload, &mut conversation)
        .instrument(tracing::info_span!(target: TRACE_TARGET, "attest_node", attestor = name));
    let attested = timer
        .around(judged, status_of)
        .await
        .or_refuse("failed to attest")?;
    call.note(field::AGENT_ID, &attested.agent_id);
    let svid = admit(services, &data.r#type, &attested, &csr).await?;
    let result = pb::attest_agent_response::Result {
        svid: Some(svid),
        reattestable: attested.can_reattest,
    };
    conversation
        .send(ResponseStep::Result(result))
        .await
        .or_refuse("failed to send response")
}

fn status_of(error: &AttestError) -> Code {
    match error {
        AttestError::Invalid(_) => Code::InvalidArgument,
        AttestError::Denied(_) => Code::PermissionDenied,
        AttestError::Unavailable { .. } => Code::Unavailable,
        AttestError::Failed { .. } => Code::Internal,
    }
}

/// A request that is too large is the caller's error, and the caller is told.
fn unreceived(status: Status) -> Refusal {
    let what = "failed to receive request from stream";
    match status.code() {
        Code::ResourceExhausted => Refusal::exhausted(format!("{what}: {}", status.message())),
        _ => Refusal::failed(what, status),
    }
}

/// Signs the SVID of an attested node and remembers it.
async fn admit(
    services: &Services,
    attestation_type: &str,
    attested: &Attested,
    csr: &Csr,
) -> Result<types::X509svid, Refusal> {
    let id = &attested.agent_id;
    if *id == services.trust_domain.server_id() || !id.is_member_of(&services.trust_domain) || !id.is_agent()
    {
        return Err(Refusal::internal(format!(
            "agent ID is malformed: \"{id}\" is not an agent's"
        )));
    }
    if !id
        .path()
        .starts_with(&format!("/spire/agent/{attestation_type}/"))
    {
        tracing::warn!(spiffe_id = %id, attestation_type, "agent ID does not fit its attestor");
    }
    let known = services
        .store
        .agent(id)
        .await
        .or_refuse("failed to fetch agent")?;
    if known.is_some_and(|known| known.agent.is_banned()) {
        return Err(banned());
    }
    let mut selectors = attested.selectors.clone();
    if services.settings.agent_spiffe_id_as_selector {
        selectors.push(Selector::new("spiffe_id", id.as_str()).or_refuse("failed to update selectors")?);
    }
    selectors.sort_unstable();
    selectors.dedup();
    let svid = services.sign_agent(id, csr.public_key()).await?;
    let leaf = svid
        .first()
        .ok_or_else(|| Refusal::internal("failed to sign SVID"))?;
    let put = services
        .store
        .put_agent(AgentRecord {
            id: id.clone(),
            attestation_type: attestation_type.to_owned(),
            serial: leaf.serial_decimal(),
            expires_at: leaf.not_after().unix_timestamp(),
            new_serial: String::new(),
            new_expires_at: 0,
            can_reattest: attested.can_reattest,
            selectors,
            agent_version: String::new(),
        })
        .await
        .or_refuse("failed to create attested agent")?;
    match put {
        AgentPut::Stored(_) => Ok(svid_to_wire(id, &svid)),
        AgentPut::Banned => Err(banned()),
    }
}

fn banned() -> Refusal {
    Refusal::denied_agent("failed to attest: agent is banned", Reason::AgentBanned)
}
