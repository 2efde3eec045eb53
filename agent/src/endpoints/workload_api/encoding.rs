//! Messages of the API, encoded once for all streams that send the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use finial_identity::bundle::Bundle;
use finial_identity::spiffe_id::TrustDomain;
use finial_proto::workload::{
    JwtBundlesResponse, WitBundlesResponse, X509BundlesResponse, X509svid, X509svidResponse,
};
use prost::Message;

use crate::endpoints::codec::Framed;
use crate::endpoints::session::View;

/// Clients refuse larger messages by default.
const CLIENT_LIMIT: usize = 4 * 1024 * 1024;

/// `X509SVIDResponse`, of the identities that have an SVID.
pub(super) fn x509_svids(view: &View) -> Framed {
    struct Encoded(Framed);
    let encode = |view: &View| {
        let bundle = Bytes::from(view.own_bundle().x509_der_concat());
        let svids = view.issued().map(|(entry, issued)| X509svid {
            spiffe_id: entry.spiffe_id.to_string(),
            x509_svid: issued.chain_der.clone(),
            x509_svid_key: issued.key_pkcs8.clone(),
            bundle: bundle.clone(),
            hint: entry.hint.clone(),
        });
        Encoded(secret(&X509svidResponse {
            svids: svids.collect(),
            crl: Vec::new(),
            federated_bundles: x509(view.federated()),
        }))
    };
    view.derived(encode).0.clone()
}

/// `X509BundlesResponse`. A caller without identity gets the own bundle alone.
pub(super) fn x509_bundles(view: &View) -> Framed {
    struct Encoded(Framed);
    let encode = |view: &View| {
        let answer = X509BundlesResponse {
            crl: Vec::new(),
            bundles: x509(view.all_bundles()),
        };
        Encoded(Framed::new(&answer))
    };
    view.derived(encode).0.clone()
}

/// `JWTBundlesResponse`. A caller without identity gets the own bundle alone.
pub(super) fn jwt_bundles(view: &View) -> Framed {
    struct Encoded(Framed);
    let encode = |view: &View| {
        let documents = view
            .all_bundles()
            .map(|(name, bundle)| (name.id().to_string(), Bytes::from(bundle.to_jwks())));
        let answer = JwtBundlesResponse {
            bundles: documents.collect(),
        };
        Encoded(Framed::new(&answer))
    };
    view.derived(encode).0.clone()
}

/// `WITBundlesResponse`, whose documents are text. A caller without identity gets the own bundle alone.
pub(super) fn wit_bundles(view: &View) -> Framed {
    struct Encoded(Framed);
    let encode = |view: &View| {
        let documents = view
            .all_bundles()
            .map(|(name, bundle)| (name.id().to_string(), bundle.to_wit_jwks()));
        let answer = WitBundlesResponse {
            bundles: documents.collect(),
        };
        Encoded(Framed::new(&answer))
    };
    view.derived(encode).0.clone()
}

/// X.509 authorities by trust domain ID. A trust domain without any is left out: clients fail on an empty value.
fn x509<'a>(bundles: impl Iterator<Item = (&'a TrustDomain, &'a Arc<Bundle>)>) -> BTreeMap<String, Bytes> {
    bundles
        .map(|(name, bundle)| (name.id().to_string(), Bytes::from(bundle.x509_der_concat())))
        .filter(|(_id, authorities)| !authorities.is_empty())
        .collect()
}

/// Encodes an answer with private keys or tokens.
pub(super) fn secret(answer: &impl Message) -> Framed {
    let encoded = Framed::secret(answer);
    if encoded.message_len() > CLIENT_LIMIT {
        tracing::warn!(
            bytes = encoded.message_len(),
            "answer to a workload exceeds what most clients accept; give it fewer identities or bundles"
        );
    }
    encoded
}
