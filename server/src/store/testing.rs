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
    let selectors = selectors.iter().map(|text| Selector::parse(text).unwrap());
    let parts = EntryParts {
        id: entry_id.to_owned(),
        ..EntryParts::new(id(spiffe), id(parent), selectors.collect())
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
