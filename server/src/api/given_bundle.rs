//! Bundles in requests.

use finial_identity::bundle::{Bundle, MAX_FOREIGN_DOCUMENT_BYTES, WitAuthority};
use finial_identity::spiffe_id::TrustDomain;
use finial_identity::wire;
use finial_proto::spire::api::types;

use super::Services;
use super::status::{OrRefuse, Refusal};
use crate::store::BundleDeleteMode;

/// A bundle of another trust domain as an operator gave it.
pub(super) fn foreign_bundle(services: &Services, bundle: types::Bundle) -> Result<Bundle, Refusal> {
    let mut bundle = bundle;
    if !services.settings.wit_svids {
        bundle.wit_authorities.clear();
    }
    let bundle = wire::bundle_from_wire(bundle)
        .map(untainted)
        .or_refuse("failed to convert bundle")?;
    check_size(&bundle)?;
    Ok(bundle)
}

/// The stored bundle of another trust domain with the parts of a given one that the mask names.
///
/// Parts that were small enough one by one may be too large together. A bundle that is too large as it is stored (a
/// fetched document may be shorter than the one that is made of it) may shrink, and its numbers may change.
pub(super) fn joined(stored: &Bundle, given: Bundle, mask: types::BundleMask) -> Result<Bundle, Refusal> {
    let mut joined = stored.clone();
    if mask.refresh_hint {
        joined.refresh_hint = given.refresh_hint;
    }
    if mask.sequence_number {
        joined.sequence_number = given.sequence_number;
    }
    let before = joined.clone();
    if mask.x509_authorities {
        joined.x509_authorities = given.x509_authorities;
    }
    if mask.jwt_authorities {
        joined.jwt_authorities = given.jwt_authorities;
    }
    if mask.wit_authorities {
        joined.wit_authorities = given.wit_authorities;
    }
    // A key ID stands for one key in the whole bundle, and whoever reads it keeps one of them only.
    let wit = std::mem::take(&mut joined.wit_authorities);
    joined.append_wit(wit);
    match check_size(&joined) {
        Err(refusal) if joined.to_spiffe_json().len() > before.to_spiffe_json().len() => Err(refusal),
        _ => Ok(joined),
    }
}

/// Refuses a bundle of another trust domain that is larger than a fetched one may be.
fn check_size(bundle: &Bundle) -> Result<(), Refusal> {
    let bytes = bundle.to_spiffe_json().len();
    if bytes > MAX_FOREIGN_DOCUMENT_BYTES {
        return Err(Refusal::invalid(format!(
            "bundle is larger than {MAX_FOREIGN_DOCUMENT_BYTES} bytes as a bundle document: {bytes}"
        )));
    }
    Ok(())
}

/// Only this server's own operations taint.
pub(super) fn untainted(bundle: Bundle) -> Bundle {
    let mut bundle = bundle;
    for authority in &mut bundle.x509_authorities {
        authority.tainted = false;
    }
    for authority in &mut bundle.jwt_authorities {
        authority.tainted = false;
    }
    for WitAuthority(authority) in &mut bundle.wit_authorities {
        authority.tainted = false;
    }
    bundle
}

/// Refuses to delete a bundle while entries that objects declare federate with the trust domain: the store knows nothing of
/// those, and only a change of the objects dissociates them.
pub(super) async fn check_unused(
    services: &Services,
    trust_domain: &TrustDomain,
    mode: BundleDeleteMode,
) -> Result<(), Refusal> {
    let failed = "failed to delete federated bundle";
    let stored = services.store.bundle(trust_domain).await.or_refuse(failed)?;
    if stored.is_none() {
        return Err(Refusal::not_found("bundle not found"));
    }
    let Some((count, origin)) = services.registry.derived_with(trust_domain).or_refuse(failed)? else {
        return Ok(());
    };
    let why = match mode {
        BundleDeleteMode::Dissociate => {
            "cannot dissociate registration entries that objects declare: change the objects"
        }
        _ => "cannot delete bundle; federated with registration entries that objects declare",
    };
    Err(Refusal::precondition(format!(
        "{failed}: {why}: {count}, the first by {origin}"
    )))
}
