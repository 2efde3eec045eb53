//! Digests of entries, by which a server and an agent compare their sets.
//!
//! The digest of a set is the sum modulo 2^128 of the digests of its entries, so that it can be updated
//! for each change without the other entries.

use std::fmt;

use finial_proto::spire::api::types;
use ring::digest::{SHA256, digest};

/// The digest of one entry: the first 16 bytes of SHA-256 over its id, a NUL and its content.
///
/// The content is what agents get ([`super::agent_entry_mask`]) and nothing else, so an entry gives the
/// same digest before and after the mask. The order of selectors and of trust domains does not count.
#[must_use]
pub fn entry_digest(entry: &types::Entry) -> u128 {
    let mut text = Vec::with_capacity(512);
    text.extend_from_slice(entry.id.as_bytes());
    text.push(0);

    let empty = types::Spiffeid::default();
    let spiffe_id = entry.spiffe_id.as_ref().unwrap_or(&empty);
    put(&mut text, &spiffe_id.trust_domain);
    put(&mut text, &spiffe_id.path);

    let mut selectors: Vec<(&str, &str)> = entry
        .selectors
        .iter()
        .map(|selector| (selector.r#type.as_str(), selector.value.as_str()))
        .collect();
    selectors.sort_unstable();
    put_number(&mut text, selectors.len() as u64);
    for (kind, value) in selectors {
        put(&mut text, kind);
        put(&mut text, value);
    }

    let mut names: Vec<&str> = entry.federates_with.iter().map(String::as_str).collect();
    names.sort_unstable();
    put_number(&mut text, names.len() as u64);
    for name in names {
        put(&mut text, name);
    }

    let attributes = entry.additional_attributes.unwrap_or_default();
    let bits = [
        entry.admin,
        entry.downstream,
        entry.store_svid,
        attributes.disable_x509_svid_prefetch,
        attributes.jwt_svid_include_jti,
    ];
    text.extend(bits.map(u8::from));
    text.extend_from_slice(&entry.revision_number.to_be_bytes());
    text.extend_from_slice(&entry.created_at.to_be_bytes());
    put(&mut text, &entry.hint);

    let hash = digest(&SHA256, &text);
    let first: [u8; 16] = *hash
        .as_ref()
        .first_chunk()
        .expect("SHA-256 gives 32 bytes, of which the first 16 are taken");
    u128::from_be_bytes(first)
}

/// The digest of a set of entries; that of the empty set is 0.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct DigestSum(u128);

impl DigestSum {
    /// The sum over the digests of a set's entries.
    #[must_use]
    pub fn of(digests: impl IntoIterator<Item = u128>) -> Self {
        let mut sum = Self::default();
        digests.into_iter().for_each(|digest| sum.add(digest));
        sum
    }

    /// Takes in the digest of an entry that joined the set.
    pub fn add(&mut self, entry_digest: u128) {
        self.0 = self.0.wrapping_add(entry_digest);
    }

    /// Takes out the digest of an entry that left the set.
    pub fn sub(&mut self, entry_digest: u128) {
        self.0 = self.0.wrapping_sub(entry_digest);
    }

    /// The sum as a number.
    #[must_use]
    pub fn value(self) -> u128 {
        self.0
    }

    /// The form on the wire: 16 bytes, most significant first.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// Reads the form on the wire; `None` when it is not 16 bytes long.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes
            .try_into()
            .ok()
            .map(|bytes| Self(u128::from_be_bytes(bytes)))
    }
}

impl fmt::Debug for DigestSum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DigestSum({:032x})", self.0)
    }
}

fn put(text: &mut Vec<u8>, part: &str) {
    put_number(text, part.len() as u64);
    text.extend_from_slice(part.as_bytes());
}

fn put_number(text: &mut Vec<u8>, number: u64) {
    text.extend_from_slice(&number.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::super::testing::{full_entry, wire_id, wire_selector};
    use super::super::{agent_entry_mask, apply_entry_mask};
    use super::*;

    fn changed(change: impl FnOnce(&mut types::Entry)) -> bool {
        let mut entry = full_entry();
        change(&mut entry);
        entry_digest(&entry) != entry_digest(&full_entry())
    }

    #[test]
    fn every_field_that_agents_get_counts() {
        assert!(changed(|e| e.id = "e-2".into()));
        assert!(changed(|e| e.spiffe_id = Some(wire_id("example.org", "/web2"))));
        assert!(changed(|e| e.spiffe_id = Some(wire_id("b.test", "/web"))));
        assert!(changed(|e| e.selectors[0] = wire_selector("k8s:ns:b")));
        assert!(changed(|e| e.selectors.truncate(1)));
        assert!(changed(|e| e.federates_with.truncate(1)));
        assert!(changed(|e| e.admin = false));
        assert!(changed(|e| e.downstream = false));
        assert!(changed(|e| e.store_svid = true));
        assert!(changed(|e| e.revision_number += 1));
        assert!(changed(|e| e.created_at += 1));
        assert!(changed(|e| e.hint.push('x')));
        assert!(changed(|e| e
            .additional_attributes
            .as_mut()
            .unwrap()
            .disable_x509_svid_prefetch = false));
        assert!(changed(|e| e
            .additional_attributes
            .as_mut()
            .unwrap()
            .jwt_svid_include_jti = false));
    }

    #[test]
    fn what_agents_do_not_get_does_not_count() {
        let masked = apply_entry_mask(full_entry(), &Some(agent_entry_mask()));
        assert_ne!(masked, full_entry());
        assert_eq!(entry_digest(&masked), entry_digest(&full_entry()));
    }

    #[test]
    fn order_and_absent_defaults_do_not_count() {
        assert!(!changed(|e| e.selectors.reverse()));
        assert!(!changed(|e| e.federates_with.reverse()));
        let absent = types::Entry {
            additional_attributes: None,
            ..full_entry()
        };
        let default = types::Entry {
            additional_attributes: Some(Default::default()),
            ..full_entry()
        };
        assert_eq!(entry_digest(&absent), entry_digest(&default));
    }

    #[test]
    fn text_does_not_move_between_neighbouring_fields() {
        let entry = |kind: &str, value: &str, names: &[&str]| {
            let selector = types::Selector {
                r#type: kind.into(),
                value: value.into(),
            };
            let federates_with = names.iter().map(|name| (*name).to_owned()).collect();
            entry_digest(&types::Entry {
                selectors: vec![selector],
                federates_with,
                ..full_entry()
            })
        };
        assert_ne!(entry("ab", "c", &[]), entry("a", "bc", &[]));
        assert_ne!(entry("a", "b", &["cd", "e"]), entry("a", "b", &["c", "de"]));
    }

    #[test]
    fn the_encoding_is_fixed_between_versions() {
        // Computed by another program from the description of the encoding.
        assert_eq!(entry_digest(&full_entry()), 0xbc8a99e3cf7ecba03f75bc33fdcf48b2);
    }

    #[test]
    fn a_sum_follows_entries_that_come_and_go_in_any_order() {
        let digests = [u128::MAX, 5, entry_digest(&full_entry())];
        let mut sum = DigestSum::of(digests);
        assert_eq!(sum, DigestSum::of(digests.into_iter().rev()));
        sum.sub(5);
        sum.sub(digests[2]);
        assert_eq!(sum.value(), u128::MAX);
        sum.add(1);
        assert_eq!(sum, DigestSum::default());
        sum.sub(1);
        assert_eq!(sum.value(), u128::MAX);
    }

    #[test]
    fn a_sum_has_sixteen_bytes_on_the_wire() {
        let sum = DigestSum::of([0x0102]);
        assert_eq!(sum.to_bytes(), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(DigestSum::from_bytes(&sum.to_bytes()), Some(sum));
        assert_eq!(DigestSum::from_bytes(&[]), None);
        assert_eq!(DigestSum::from_bytes(&[0; 17]), None);
    }
}
