//! How records are written into rows.

use finial_identity::bundle::Bundle;
use finial_identity::entry::Entry;
use finial_identity::selector::Selector;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use finial_identity::wire;
use finial_proto::spire::api::types;
use prost::Message;
use ring::digest;

use super::{AgentRecord, StoreError};

/// Bytes of a parent's hash, the first part of a similarity key.
pub(super) const PARENT_KEY_BYTES: usize = 8;
const IDENTITY_KEY_BYTES: usize = 16;

pub(super) fn encode_entry(entry: &Entry) -> Vec<u8> {
    wire::entry_to_wire(entry).encode_to_vec()
}

pub(super) fn decode_entry(
    id: &str,
    content: &[u8],
    trust_domain: &TrustDomain,
) -> Result<Entry, StoreError> {
    let message = types::Entry::decode(content)
        .map_err(|error| StoreError::unreadable("registration entry", id, error))?;
    let parts = wire::entry_parts_from_wire(message, trust_domain)
        .map_err(|error| StoreError::unreadable("registration entry", id, error))?;
    Entry::check(parts, trust_domain).map_err(|error| StoreError::unreadable("registration entry", id, error))
}

pub(super) fn encode_bundle(bundle: &Bundle) -> Vec<u8> {
    wire::bundle_to_wire(bundle).encode_to_vec()
}

pub(super) fn decode_bundle(trust_domain: &str, content: &[u8]) -> Result<Bundle, StoreError> {
    let message = types::Bundle::decode(content)
        .map_err(|error| StoreError::unreadable("bundle", trust_domain, error))?;
    wire::bundle_from_wire(message).map_err(|error| StoreError::unreadable("bundle", trust_domain, error))
}

/// A node as stored. The API's message lacks the pending SVID.
#[derive(Clone, PartialEq, Message)]
struct AgentContent {
    #[prost(string, tag = "1")]
    attestation_type: String,
    #[prost(string, tag = "2")]
    serial: String,
    #[prost(int64, tag = "3")]
    expires_at: i64,
    #[prost(string, tag = "4")]
    new_serial: String,
    #[prost(int64, tag = "5")]
    new_expires_at: i64,
    #[prost(bool, tag = "6")]
    can_reattest: bool,
    #[prost(string, repeated, tag = "7")]
    selectors: Vec<String>,
    #[prost(string, tag = "8")]
    agent_version: String,
}

pub(super) fn encode_agent(agent: &AgentRecord) -> Vec<u8> {
    AgentContent {
        attestation_type: agent.attestation_type.clone(),
        serial: agent.serial.clone(),
        expires_at: agent.expires_at,
        new_serial: agent.new_serial.clone(),
        new_expires_at: agent.new_expires_at,
        can_reattest: agent.can_reattest,
        selectors: agent.selectors.iter().map(Selector::to_string).collect(),
        agent_version: agent.agent_version.clone(),
    }
    .encode_to_vec()
}

pub(super) fn decode_agent(id: &str, content: &[u8]) -> Result<AgentRecord, StoreError> {
    let content =
        AgentContent::decode(content).map_err(|error| StoreError::unreadable("agent", id, error))?;
    let selectors: Result<Vec<Selector>, _> = content
        .selectors
        .iter()
        .map(|text| Selector::parse(text))
        .collect();
    Ok(AgentRecord {
        id: SpiffeId::parse(id).map_err(|error| StoreError::unreadable("agent", id, error))?,
        attestation_type: content.attestation_type,
        serial: content.serial,
        expires_at: content.expires_at,
        new_serial: content.new_serial,
        new_expires_at: content.new_expires_at,
        can_reattest: content.can_reattest,
        selectors: selectors.map_err(|error| StoreError::unreadable("agent", id, error))?,
        agent_version: content.agent_version,
    })
}

/// The key under which entries with the same SPIFFE ID, parent and selectors meet. Its beginning is
/// [`parent_key`], so that one index also finds the children of a parent.
pub(super) fn similarity_key(entry: &Entry) -> Vec<u8> {
    let mut identity = digest::Context::new(&digest::SHA256);
    identity.update(entry.spiffe_id.as_str().as_bytes());
    for selector in &entry.selectors {
        let text = selector.as_str().as_bytes();
        identity.update(&(text.len() as u64).to_be_bytes());
        identity.update(text);
    }
    let mut key = parent_key(&entry.parent_id).to_vec();
    key.extend_from_slice(&identity.finish().as_ref()[..IDENTITY_KEY_BYTES]);
    key
}

pub(super) fn parent_key(parent: &SpiffeId) -> [u8; PARENT_KEY_BYTES] {
    let hash = digest::digest(&digest::SHA256, parent.as_str().as_bytes());
    let mut key = [0; PARENT_KEY_BYTES];
    key.copy_from_slice(&hash.as_ref()[..PARENT_KEY_BYTES]);
    key
}
