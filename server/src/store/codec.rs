//! How records are written into rows.

use finial_identity::bundle::Bundle;
use finial_identity::entry::Entry;
use finial_identity::selector::Selector;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use finial_identity::wire::{self, WireError};
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

/// A bundle, and what is wrong with its authorities that cannot be read: an earlier build may have taken what is refused
/// now, and one odd authority must not cost the bundles of everybody. The own bundle is never read without all of its
/// X.509 authorities.
pub(super) fn decode_bundle(
    trust_domain: &str,
    own: &TrustDomain,
    content: &[u8],
) -> Result<(Bundle, Vec<WireError>), StoreError> {
    let unreadable = |error| StoreError::unreadable("bundle", trust_domain, error);
    let message = types::Bundle::decode(content)
        .map_err(|error| StoreError::unreadable("bundle", trust_domain, error))?;
    let had_x509 = !message.x509_authorities.is_empty();
    let (bundle, mut skipped) = wire::bundle_from_wire_with_skipped(message).map_err(unreadable)?;
    let is_all_gone = had_x509 && bundle.x509_authorities.is_empty();
    if is_all_gone && bundle.trust_domain == *own {
        return Err(unreadable(skipped.swap_remove(0)));
    }
    Ok((bundle, skipped))
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

#[cfg(test)]
mod tests {
    use finial_identity::bundle::JwtAuthority;
    use finial_identity::key::{KeyType, PrivateKey};

    use super::*;
    use crate::federation::testing::{bundle, domain};

    /// Of a bundle with such X.509 authorities and one JWT authority.
    fn stored(bundle: &Bundle, odd: &[&[u8]]) -> Vec<u8> {
        let mut message = wire::bundle_to_wire(bundle);
        message
            .x509_authorities
            .extend(odd.iter().map(|asn1| types::X509Certificate {
                asn1: asn1.to_vec(),
                tainted: false,
            }));
        message.encode_to_vec()
    }

    fn with_jwt_key(mut bundle: Bundle) -> Bundle {
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        bundle.jwt_authorities.push(JwtAuthority {
            key_id: "k".into(),
            public_key: key.public_key().clone(),
            expires_at: 0,
            tainted: false,
        });
        bundle
    }

    #[test]
    fn a_stored_bundle_is_read_without_an_authority_that_is_refused_now() {
        let kept = with_jwt_key(bundle("a.test", 1));
        let content = stored(&kept, &[b"odd"]);
        for own in ["own.test", "a.test"] {
            let (read, skipped) = decode_bundle("a.test", &domain(own), &content).unwrap();
            assert_eq!((&read, skipped.len()), (&kept, 1), "{own}");
        }
    }

    #[test]
    fn the_own_bundle_is_never_read_without_all_of_its_authorities() {
        let bare = with_jwt_key(Bundle::new(domain("a.test")));
        let content = stored(&bare, &[b"odd"]);
        assert!(decode_bundle("a.test", &domain("a.test"), &content).is_err());
        let (read, skipped) = decode_bundle("a.test", &domain("own.test"), &content).unwrap();
        assert_eq!((&read, skipped.len()), (&bare, 1), "nobody else's bundles suffer");
        let content = stored(&bare, &[]);
        assert!(decode_bundle("a.test", &domain("a.test"), &content).is_ok());
    }
}
