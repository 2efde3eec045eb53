//! Conversion between the messages of SPIRE's API and the types of this crate, in both directions. All
//! conversions are here.
//!
//! Input is checked only by the types of its parts; the rules of an entry are in
//! [`Entry::check`]. Errors name the field.

mod bundle;
mod digest;
mod log_level;
mod mask;
mod relationship;

use std::borrow::Borrow;

use finial_proto::spire::api::types;
use thiserror::Error;

use crate::entry::{Entry, EntryParts};
use crate::federation::{EndpointUrlError, ProfileError};
use crate::key::KeyError;
use crate::selector::{Selector, SelectorError};
use crate::spiffe_id::{SpiffeId, SpiffeIdError, TrustDomain};
use crate::x509::X509Error;

pub use bundle::{
    bundle_from_wire, bundle_from_wire_with_skipped, bundle_to_wire, jwt_authority_from_wire,
    jwt_authority_to_wire, wit_authority_from_wire, wit_authority_to_wire, x509_authorities_from_wire,
    x509_authority_to_wire,
};
pub use digest::{DigestSum, entry_digest};
pub use log_level::{LogLevelError, log_level_from_wire, log_level_to_wire, logger_to_wire};
pub use mask::{
    agent_entry_mask, apply_agent_mask, apply_bundle_mask, apply_entry_mask, apply_relationship_mask,
};
pub use relationship::{relationship_from_wire, relationship_to_wire};

/// A field that does not hold what it should.
#[derive(Debug, Error)]
#[error("invalid {field}: {cause}")]
pub struct WireError {
    /// The field's name in the message.
    pub field: &'static str,
    /// What is wrong with it.
    pub cause: WireCause,
}

/// What is wrong with a field.
#[derive(Debug, Error)]
pub enum WireCause {
    /// It must be set and is not.
    #[error("it is missing")]
    Missing,
    /// It is not a SPIFFE ID or the name of a trust domain.
    #[error(transparent)]
    SpiffeId(#[from] SpiffeIdError),
    /// It is not a selector.
    #[error(transparent)]
    Selector(#[from] SelectorError),
    /// It is not a certificate.
    #[error(transparent)]
    Certificate(#[from] X509Error),
    /// It is not a public key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// It is not the URL of a bundle endpoint.
    #[error(transparent)]
    Url(#[from] EndpointUrlError),
    /// It is not the profile of a bundle endpoint.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// It is a key of a kind that signs no JWT-SVIDs (JWT-SVID §2.1).
    #[error("a key of this kind signs no JWT-SVIDs")]
    NotForJwt,
}

impl WireError {
    /// The same error for a field with another name, where the caller knows a better one.
    #[must_use]
    pub fn in_field(self, field: &'static str) -> Self {
        Self { field, ..self }
    }

    fn missing(field: &'static str) -> Self {
        Self {
            field,
            cause: WireCause::Missing,
        }
    }
}

/// Turns the cause of a failure into an error of a field.
fn of<E: Into<WireCause>>(field: &'static str) -> impl Fn(E) -> WireError {
    move |cause| WireError {
        field,
        cause: cause.into(),
    }
}

/// Reads a SPIFFE ID, which must be set. In errors the field is `spiffe_id`.
///
/// # Errors
/// It is missing or breaks a rule of SPIFFE-ID §2.
pub fn spiffe_id_from_wire<I: Borrow<types::Spiffeid>>(id: Option<I>) -> Result<SpiffeId, WireError> {
    let id = id.ok_or(WireError::missing(SPIFFE_ID))?;
    read_spiffe_id(id.borrow(), None, SPIFFE_ID)
}

/// Writes a SPIFFE ID.
#[must_use]
pub fn spiffe_id_to_wire(id: &SpiffeId) -> types::Spiffeid {
    types::Spiffeid {
        trust_domain: id.trust_domain().as_str().to_owned(),
        path: id.path().to_owned(),
    }
}

/// Reads a selector. In errors the field is `selectors`.
///
/// # Errors
/// The type or the value is empty or too long, or the type has a colon.
pub fn selector_from_wire(selector: &types::Selector) -> Result<Selector, WireError> {
    Selector::new(&selector.r#type, &selector.value).map_err(of(SELECTORS))
}

/// Writes a selector.
#[must_use]
pub fn selector_to_wire(selector: &Selector) -> types::Selector {
    types::Selector {
        r#type: selector.kind().to_owned(),
        value: selector.value().to_owned(),
    }
}

/// Reads selectors and keeps their order. In errors the field is `selectors`.
///
/// # Errors
/// One of them is no selector.
pub fn selectors_from_wire(selectors: &[types::Selector]) -> Result<Vec<Selector>, WireError> {
    selectors.iter().map(selector_from_wire).collect()
}

/// Writes selectors.
#[must_use]
pub fn selectors_to_wire(selectors: &[Selector]) -> Vec<types::Selector> {
    selectors.iter().map(selector_to_wire).collect()
}

/// Reads the names of trust domains (bare, or as SPIFFE IDs). In errors the field is `federates_with`.
///
/// # Errors
/// One of them is no trust domain.
pub fn trust_domains_from_wire(names: &[String]) -> Result<Vec<TrustDomain>, WireError> {
    names
        .iter()
        .map(|name| TrustDomain::parse_name_or_id(name).map_err(of("federates_with")))
        .collect()
}

/// Reads an entry as it was asked for; [`Entry::check`] decides whether it is one. IDs in
/// `trust_domain` share its text.
///
/// # Errors
/// An ID is missing, or an ID, a selector or the name of a trust domain is malformed.
pub fn entry_parts_from_wire(
    entry: types::Entry,
    trust_domain: &TrustDomain,
) -> Result<EntryParts, WireError> {
    let read = |id: &Option<types::Spiffeid>, field| {
        let id = id.as_ref().ok_or(WireError::missing(field))?;
        read_spiffe_id(id, Some(trust_domain), field)
    };
    let attributes = entry.additional_attributes.unwrap_or_default();
    Ok(EntryParts {
        parent_id: read(&entry.parent_id, "parent_id")?,
        spiffe_id: read(&entry.spiffe_id, SPIFFE_ID)?,
        selectors: selectors_from_wire(&entry.selectors)?,
        federates_with: trust_domains_from_wire(&entry.federates_with)?,
        id: entry.id,
        x509_svid_ttl: entry.x509_svid_ttl,
        jwt_svid_ttl: entry.jwt_svid_ttl,
        admin: entry.admin,
        downstream: entry.downstream,
        expires_at: entry.expires_at,
        dns_names: entry.dns_names,
        revision_number: entry.revision_number,
        store_svid: entry.store_svid,
        hint: entry.hint,
        created_at: entry.created_at,
        disable_x509_svid_prefetch: attributes.disable_x509_svid_prefetch,
        jwt_svid_include_jti: attributes.jwt_svid_include_jti,
    })
}

/// Writes an entry whole. `additional_attributes` is set only when one of them is.
#[must_use]
pub fn entry_to_wire(entry: &Entry) -> types::Entry {
    let attributes = types::entry::AdditionalAttributes {
        disable_x509_svid_prefetch: entry.disable_x509_svid_prefetch,
        jwt_svid_include_jti: entry.jwt_svid_include_jti,
    };
    types::Entry {
        id: entry.id.clone(),
        spiffe_id: Some(spiffe_id_to_wire(&entry.spiffe_id)),
        parent_id: Some(spiffe_id_to_wire(&entry.parent_id)),
        selectors: selectors_to_wire(&entry.selectors),
        x509_svid_ttl: entry.x509_svid_ttl,
        federates_with: entry
            .federates_with
            .iter()
            .map(|name| name.as_str().to_owned())
            .collect(),
        admin: entry.admin,
        downstream: entry.downstream,
        expires_at: entry.expires_at,
        dns_names: entry.dns_names.clone(),
        revision_number: entry.revision_number,
        store_svid: entry.store_svid,
        jwt_svid_ttl: entry.jwt_svid_ttl,
        hint: entry.hint.clone(),
        created_at: entry.created_at,
        additional_attributes: (attributes != types::entry::AdditionalAttributes::default())
            .then_some(attributes),
    }
}

const SPIFFE_ID: &str = "spiffe_id";
const SELECTORS: &str = "selectors";

fn read_spiffe_id(
    id: &types::Spiffeid,
    own: Option<&TrustDomain>,
    field: &'static str,
) -> Result<SpiffeId, WireError> {
    let trust_domain = match own {
        Some(own) if own.as_str() == id.trust_domain => own.clone(),
        _ => TrustDomain::parse_name_or_id(&id.trust_domain).map_err(of(field))?,
    };
    SpiffeId::new(&trust_domain, &id.path).map_err(of(field))
}

#[cfg(test)]
mod testing {
    //! An entry with a value in every field, for the tests of this module.

    use super::*;

    pub(super) fn wire_id(trust_domain: &str, path: &str) -> types::Spiffeid {
        types::Spiffeid {
            trust_domain: trust_domain.into(),
            path: path.into(),
        }
    }

    pub(super) fn wire_selector(text: &str) -> types::Selector {
        selector_to_wire(&Selector::parse(text).unwrap())
    }

    pub(super) fn full_entry() -> types::Entry {
        types::Entry {
            id: "e-1".into(),
            spiffe_id: Some(wire_id("example.org", "/web")),
            parent_id: Some(wire_id("example.org", "/spire/agent/x509pop/1")),
            selectors: vec![wire_selector("k8s:ns:a"), wire_selector("unix:uid:1")],
            x509_svid_ttl: 60,
            federates_with: vec!["b.test".into(), "a.test".into()],
            admin: true,
            downstream: true,
            expires_at: 5,
            dns_names: vec!["b.example".into(), "a.example".into()],
            revision_number: 6,
            store_svid: false,
            jwt_svid_ttl: 70,
            hint: "internal".into(),
            created_at: 8,
            additional_attributes: Some(types::entry::AdditionalAttributes {
                disable_x509_svid_prefetch: true,
                jwt_svid_include_jti: true,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{full_entry, wire_id, wire_selector};
    use super::*;

    fn td() -> TrustDomain {
        TrustDomain::parse("example.org").unwrap()
    }

    fn refused(change: impl FnOnce(&mut types::Entry)) -> String {
        let mut entry = full_entry();
        change(&mut entry);
        entry_parts_from_wire(entry, &td()).unwrap_err().to_string()
    }

    #[test]
    fn an_entry_keeps_every_field_in_both_directions() {
        let parts = entry_parts_from_wire(full_entry(), &td()).unwrap();
        let entry = Entry::check(parts, &td()).unwrap();
        assert_eq!(entry_to_wire(&entry), full_entry());
        let plain = types::Entry {
            additional_attributes: None,
            store_svid: true,
            ..full_entry()
        };
        let plain = types::Entry {
            selectors: vec![wire_selector("aws:a")],
            ..plain
        };
        let entry = Entry::check(entry_parts_from_wire(plain.clone(), &td()).unwrap(), &td()).unwrap();
        assert_eq!(entry_to_wire(&entry), plain);
    }

    #[test]
    fn errors_name_the_field_of_an_entry() {
        assert_eq!(
            refused(|e| e.spiffe_id = None),
            "invalid spiffe_id: it is missing"
        );
        assert_eq!(
            refused(|e| e.parent_id = None),
            "invalid parent_id: it is missing"
        );
        let error = refused(|e| e.spiffe_id = Some(wire_id("example.org", "web")));
        assert_eq!(
            error,
            "invalid spiffe_id: path does not begin with a slash: \"web\""
        );
        let error = refused(|e| e.parent_id = Some(wire_id("", "/a")));
        assert_eq!(error, "invalid parent_id: trust domain name is empty");
        let error = refused(|e| e.selectors[1].value.clear());
        assert_eq!(error, "invalid selectors: selector value is empty: type \"unix\"");
        let error = refused(|e| e.federates_with[0] = "B.test".into());
        assert_eq!(
            error,
            "invalid federates_with: trust domain name has an upper-case letter: 'B'"
        );
    }

    #[test]
    fn spiffe_ids_are_checked_in_their_parts() {
        let read =
            |td: &str, path: &str| spiffe_id_from_wire(Some(wire_id(td, path))).map(|id| id.to_string());
        assert_eq!(read("example.org", "/a/b").unwrap(), "spiffe://example.org/a/b");
        assert_eq!(read("example.org", "").unwrap(), "spiffe://example.org");
        assert_eq!(
            read("spiffe://example.org", "/a").unwrap(),
            "spiffe://example.org/a"
        );
        for (td, path) in [
            ("example.org", "/"),
            ("example.org", "/a/../b"),
            ("example.org/a", "/b"),
            ("", ""),
        ] {
            assert!(read(td, path).is_err(), "{td} {path}");
        }
        let error = spiffe_id_from_wire(None::<types::Spiffeid>)
            .unwrap_err()
            .in_field("id");
        assert_eq!(error.to_string(), "invalid id: it is missing");
        let id = SpiffeId::parse("spiffe://example.org/a/b").unwrap();
        assert_eq!(spiffe_id_from_wire(Some(&spiffe_id_to_wire(&id))).unwrap(), id);
    }

    #[test]
    fn selectors_keep_their_order_and_their_colons() {
        let selectors = ["unix:uid:1", "k8s:pod-label:a:b"].map(|text| Selector::parse(text).unwrap());
        let wire = selectors_to_wire(&selectors);
        assert_eq!(
            (wire[1].r#type.as_str(), wire[1].value.as_str()),
            ("k8s", "pod-label:a:b")
        );
        assert_eq!(selectors_from_wire(&wire).unwrap(), selectors);
        let colon = types::Selector {
            r#type: "a:b".into(),
            value: "c".into(),
        };
        assert!(selectors_from_wire(&[colon]).is_err());
    }

    #[test]
    fn trust_domains_may_come_as_ids_and_leave_as_names() {
        let names = trust_domains_from_wire(&["a.test".into(), "spiffe://b.test".into()]).unwrap();
        assert_eq!(
            names.iter().map(TrustDomain::as_str).collect::<Vec<_>>(),
            ["a.test", "b.test"]
        );
        assert!(trust_domains_from_wire(&["spiffe://b.test/x".into()]).is_err());
    }
}
