//! Small inputs for tests of the store and the registry.

use finial_identity::entry::{Entry, EntryParts};
use finial_identity::selector::Selector;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};

use super::AgentRecord;

pub(crate) fn domain() -> TrustDomain {
    TrustDomain::parse("example.test").unwrap()
}

pub(crate) fn id(path: &str) -> SpiffeId {
    SpiffeId::new(&domain(), path).unwrap()
}

pub(crate) fn entry(entry_id: &str, spiffe: &str, parent: &str, selectors: &[&str]) -> Entry {
    let parts = EntryParts {
        id: entry_id.to_owned(),
        spiffe_id: id(spiffe),
        parent_id: id(parent),
        selectors: selectors
            .iter()
            .map(|text| Selector::parse(text).unwrap())
            .collect(),
        x509_svid_ttl: 0,
        jwt_svid_ttl: 0,
        federates_with: Vec::new(),
        admin: false,
        downstream: false,
        expires_at: 0,
        dns_names: Vec::new(),
        revision_number: 0,
        store_svid: false,
        hint: String::new(),
        created_at: 0,
        disable_x509_svid_prefetch: false,
        jwt_svid_include_jti: false,
    };
    Entry::check(parts, &domain()).unwrap()
}

pub(crate) fn agent(path: &str, serial: &str, selectors: &[&str]) -> AgentRecord {
    AgentRecord {
        id: id(path),
        attestation_type: "x509pop".to_owned(),
        serial: serial.to_owned(),
        expires_at: 2_000_000_000,
        new_serial: String::new(),
        new_expires_at: 0,
        can_reattest: true,
        selectors: selectors
            .iter()
            .map(|text| Selector::parse(text).unwrap())
            .collect(),
        agent_version: String::new(),
    }
}
