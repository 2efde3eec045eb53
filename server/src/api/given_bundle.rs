//! Bundles in requests.

use finial_identity::bundle::{Bundle, MAX_FOREIGN_DOCUMENT_BYTES, WitAuthority};
use finial_identity::wire;
use finial_proto::spire::api::types;

use super::Services;
use super::status::{OrRefuse, Refusal};

/// A bundle of another trust domain as an operator gave it.
pub(super) fn foreign_bundle(services: &Services, bundle: types::Bundle) -> Result<Bundle, Refusal> {
    let mut bundle = bundle;
    if !services.settings.wit_svids {
        bundle.wit_authorities.clear();
    }
    let bundle = wire::bundle_from_wire(bundle)
        .map(untainted)
        .or_refuse("failed to convert bundle")?;
    let bytes = bundle.to_spiffe_json().len();
    if bytes > MAX_FOREIGN_DOCUMENT_BYTES {
        return Err(Refusal::invalid(format!(
            "bundle is larger than {MAX_FOREIGN_DOCUMENT_BYTES} bytes as a bundle document: {bytes}"
        )));
    }
    Ok(bundle)
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
