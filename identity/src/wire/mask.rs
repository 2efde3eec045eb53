//! Output masks. An absent mask keeps every field; an id or a trust domain is always kept.

use finial_proto::spire::api::types;

/// The entry fields that agents ask for and that [`super::entry_digest`] covers.
#[must_use]
pub fn agent_entry_mask() -> types::EntryMask {
    types::EntryMask {
        spiffe_id: true,
        selectors: true,
        federates_with: true,
        admin: true,
        downstream: true,
        revision_number: true,
        store_svid: true,
        hint: true,
        created_at: true,
        additional_attributes: true,
        ..types::EntryMask::default()
    }
}

/// Keeps the fields of an entry that the mask names.
#[must_use]
pub fn apply_entry_mask(entry: types::Entry, mask: &Option<types::EntryMask>) -> types::Entry {
    let Some(mask) = mask else { return entry };
    types::Entry {
        id: entry.id,
        spiffe_id: keep(mask.spiffe_id, entry.spiffe_id),
        parent_id: keep(mask.parent_id, entry.parent_id),
        selectors: keep(mask.selectors, entry.selectors),
        x509_svid_ttl: keep(mask.x509_svid_ttl, entry.x509_svid_ttl),
        federates_with: keep(mask.federates_with, entry.federates_with),
        admin: keep(mask.admin, entry.admin),
        downstream: keep(mask.downstream, entry.downstream),
        expires_at: keep(mask.expires_at, entry.expires_at),
        dns_names: keep(mask.dns_names, entry.dns_names),
        revision_number: keep(mask.revision_number, entry.revision_number),
        store_svid: keep(mask.store_svid, entry.store_svid),
        jwt_svid_ttl: keep(mask.jwt_svid_ttl, entry.jwt_svid_ttl),
        hint: keep(mask.hint, entry.hint),
        created_at: keep(mask.created_at, entry.created_at),
        additional_attributes: keep(mask.additional_attributes, entry.additional_attributes),
    }
}

/// Keeps the fields of an agent that the mask names.
#[must_use]
pub fn apply_agent_mask(agent: types::Agent, mask: &Option<types::AgentMask>) -> types::Agent {
    let Some(mask) = mask else { return agent };
    types::Agent {
        id: agent.id,
        attestation_type: keep(mask.attestation_type, agent.attestation_type),
        x509svid_serial_number: keep(mask.x509svid_serial_number, agent.x509svid_serial_number),
        x509svid_expires_at: keep(mask.x509svid_expires_at, agent.x509svid_expires_at),
        selectors: keep(mask.selectors, agent.selectors),
        banned: keep(mask.banned, agent.banned),
        can_reattest: keep(mask.can_reattest, agent.can_reattest),
        agent_version: keep(mask.agent_version, agent.agent_version),
    }
}

/// Keeps the fields of a bundle that the mask names.
#[must_use]
pub fn apply_bundle_mask(bundle: types::Bundle, mask: &Option<types::BundleMask>) -> types::Bundle {
    let Some(mask) = mask else { return bundle };
    types::Bundle {
        trust_domain: bundle.trust_domain,
        x509_authorities: keep(mask.x509_authorities, bundle.x509_authorities),
        jwt_authorities: keep(mask.jwt_authorities, bundle.jwt_authorities),
        refresh_hint: keep(mask.refresh_hint, bundle.refresh_hint),
        sequence_number: keep(mask.sequence_number, bundle.sequence_number),
        wit_authorities: keep(mask.wit_authorities, bundle.wit_authorities),
    }
}

/// Keeps the fields of a federation relationship that the mask names.
#[must_use]
pub fn apply_relationship_mask(
    relationship: types::FederationRelationship,
    mask: &Option<types::FederationRelationshipMask>,
) -> types::FederationRelationship {
    let Some(mask) = mask else { return relationship };
    types::FederationRelationship {
        trust_domain: relationship.trust_domain,
        bundle_endpoint_url: keep(mask.bundle_endpoint_url, relationship.bundle_endpoint_url),
        bundle_endpoint_profile: keep(mask.bundle_endpoint_profile, relationship.bundle_endpoint_profile),
        trust_domain_bundle: keep(mask.trust_domain_bundle, relationship.trust_domain_bundle),
    }
}

fn keep<T: Default>(bit: bool, value: T) -> T {
    if bit { value } else { T::default() }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::super::testing::{full_entry, wire_id, wire_selector};
    use super::*;

    /// The numbers of the fields that are set in an encoded message.
    fn field_numbers(message: &impl Message) -> Vec<u32> {
        let bytes = message.encode_to_vec();
        let mut rest = bytes.as_slice();
        let mut numbers = Vec::new();
        while !rest.is_empty() {
            let (tag, wire_type) = prost::encoding::decode_key(&mut rest).unwrap();
            prost::encoding::skip_field(wire_type, tag, &mut rest, Default::default()).unwrap();
            numbers.push(tag);
        }
        numbers.dedup();
        numbers
    }

    /// A mask with one bit, by number: a varint field with the value 1.
    fn one_bit<M: Message + Default>(number: u8) -> Option<M> {
        let key = u64::from(number) << 3;
        let mut bytes = Vec::new();
        prost::encoding::encode_varint(key, &mut bytes);
        bytes.push(1);
        Some(M::decode(bytes.as_slice()).unwrap())
    }

    #[test]
    fn an_absent_mask_keeps_everything_and_an_empty_one_the_id() {
        let entry = full_entry();
        assert_eq!(apply_entry_mask(entry.clone(), &None), entry);
        assert_eq!(
            field_numbers(&apply_entry_mask(entry, &Some(types::EntryMask::default()))),
            [1]
        );
    }

    #[test]
    fn each_bit_of_the_entry_mask_keeps_the_field_of_its_number() {
        let entry = types::Entry {
            store_svid: true,
            ..full_entry()
        };
        assert_eq!(field_numbers(&entry), (1..=16).collect::<Vec<u32>>());
        for number in 2..=16 {
            let masked = apply_entry_mask(entry.clone(), &one_bit(number));
            assert_eq!(field_numbers(&masked), [1, u32::from(number)]);
        }
    }

    #[test]
    fn each_bit_of_the_agent_mask_keeps_the_field_of_its_number() {
        let agent = types::Agent {
            id: Some(wire_id("example.org", "/spire/agent/x/1")),
            attestation_type: "x".into(),
            x509svid_serial_number: "7".into(),
            x509svid_expires_at: 9,
            selectors: vec![wire_selector("a:b")],
            banned: true,
            can_reattest: true,
            agent_version: "1".into(),
        };
        assert_eq!(apply_agent_mask(agent.clone(), &None), agent);
        for number in 2..=8 {
            let masked = apply_agent_mask(agent.clone(), &one_bit(number));
            assert_eq!(field_numbers(&masked), [1, u32::from(number)]);
        }
    }

    #[test]
    fn each_bit_of_the_bundle_mask_keeps_the_field_of_its_number() {
        let bundle = types::Bundle {
            trust_domain: "example.org".into(),
            x509_authorities: vec![types::X509Certificate::default()],
            jwt_authorities: vec![types::JwtKey::default()],
            refresh_hint: 1,
            sequence_number: 2,
            wit_authorities: vec![types::WitKey::default()],
        };
        assert_eq!(apply_bundle_mask(bundle.clone(), &None), bundle);
        for number in 2..=6 {
            let masked = apply_bundle_mask(bundle.clone(), &one_bit(number));
            assert_eq!(field_numbers(&masked), [1, u32::from(number)]);
        }
    }

    #[test]
    fn each_bit_of_the_relationship_mask_keeps_its_field() {
        use types::federation_relationship::BundleEndpointProfile;
        let relationship = types::FederationRelationship {
            trust_domain: "a.test".into(),
            bundle_endpoint_url: "https://a.test".into(),
            trust_domain_bundle: Some(types::Bundle::default()),
            bundle_endpoint_profile: Some(BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {})),
        };
        assert_eq!(apply_relationship_mask(relationship.clone(), &None), relationship);
        // The numbers of the mask are not those of the message.
        for (bit, number) in [(1, 2), (2, 3), (3, 5)] {
            let masked = apply_relationship_mask(relationship.clone(), &one_bit(bit));
            assert_eq!(field_numbers(&masked), [1, number]);
        }
    }

    #[test]
    fn agents_get_neither_parent_nor_lifetimes_nor_names() {
        let entry = types::Entry {
            store_svid: true,
            ..full_entry()
        };
        let masked = apply_entry_mask(entry, &Some(agent_entry_mask()));
        assert_eq!(field_numbers(&masked), [1, 2, 4, 6, 7, 8, 11, 12, 14, 15, 16]);
    }
}
