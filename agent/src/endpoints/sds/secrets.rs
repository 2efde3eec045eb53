//! What the names mean that an Envoy asks for, and the secrets they stand for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use finial_identity::bundle::Bundle;
use finial_identity::key::pem_block;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use finial_proto::envoy::config::core::v3::data_source::Specifier;
use finial_proto::envoy::config::core::v3::{DataSource, TypedExtensionConfig};
use finial_proto::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use finial_proto::envoy::extensions::transport_sockets::tls::v3::spiffe_cert_validator_config as spiffe;
use finial_proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret as SecretMessage, SpiffeCertValidatorConfig, TlsCertificate,
};
use prost::Message as _;
use prost_types::Any;
use ring::digest::{Context, SHA256};
use tonic::Status;
use zeroize::Zeroizing;

use super::node::Validator;
use crate::config::SdsSettings;
use crate::endpoints::session::{View, svid_of};
use crate::svids::IssuedSvid;

/// The type of every resource that is asked for and given.
pub(super) const SECRET_TYPE: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const SPIFFE_VALIDATOR: &str = "envoy.tls.cert_validator.spiffe";
const SPIFFE_VALIDATOR_TYPE: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";
/// Bytes of a digest that make a version; as text twice as many.
const VERSION_BYTES: usize = 8;

/// What a client asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Every identity and every bundle, each under its SPIFFE ID.
    pub everything: bool,
    /// Besides, what has these names.
    pub names: BTreeSet<String>,
}

/// What there is of what a client asks for, by the name it was asked under.
pub type Found = BTreeMap<String, Secret>;

/// One secret under one name.
#[derive(Clone, Debug)]
pub struct Secret {
    /// Equal for equal content, also after a restart.
    pub version: String,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Svid(Arc<IssuedSvid>),
    /// Of one trust domain or, for the SPIFFE validator alone, of several; ordered by name.
    Bundles(Validator, Vec<Arc<Bundle>>),
}

#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    FirstSvid,
    Svid(SpiffeId),
    OwnBundle,
    Bundle(TrustDomain),
    AllBundles,
}

/// Finds what is asked for and there. Names that mean nothing to this caller are left out.
///
/// # Errors
/// When bundles of several trust domains are asked for without the SPIFFE validator: a plain list of
/// authorities would let each of them sign for all trust domains.
pub(super) fn find(
    asked: &Asked,
    view: &View,
    settings: &SdsSettings,
    validator: Validator,
) -> Result<Found, Status> {
    let mut found = Found::new();
    if asked.everything {
        for entry in view.entries_of_any_hint() {
            add_svid(&mut found, entry.spiffe_id.as_str(), view, &entry.spiffe_id);
        }
        for bundle in all_bundles(view) {
            let name = bundle.trust_domain.id().to_string();
            add_bundles(&mut found, &name, validator, vec![bundle]);
        }
    }
    for name in &asked.names {
        match Meaning::of(name, settings) {
            Some(Meaning::FirstSvid) => {
                // The first one and no other, also while it has no SVID: which identity Envoy shows must not
                // depend on what was signed first.
                let first = view.entries_of_any_hint().first();
                if let Some(svid) = first.and_then(|entry| svid_of(entry)) {
                    found.insert(name.clone(), Secret::svid(svid));
                }
            }
            Some(Meaning::Svid(id)) => add_svid(&mut found, name, view, &id),
            Some(Meaning::OwnBundle) => {
                add_bundles(&mut found, name, validator, vec![Arc::clone(view.own_bundle())]);
            }
            Some(Meaning::Bundle(trust_domain)) => {
                let bundle = all_bundles(view).find(|bundle| bundle.trust_domain == trust_domain);
                add_bundles(&mut found, name, validator, bundle.into_iter().collect());
            }
            Some(Meaning::AllBundles) if validator == Validator::TrustedCa => {
                return Err(Status::failed_precondition(format!(
                    "{name:?} needs Envoy's SPIFFE certificate validator, which is switched off for this node"
                )));
            }
            Some(Meaning::AllBundles) => {
                add_bundles(&mut found, name, validator, all_bundles(view).collect());
            }
            None => {}
        }
    }
    Ok(found)
}

/// Whether no secret with this name exists for this caller. What is about to be signed, has run out or was
/// not fetched yet is not gone.
pub(super) fn is_gone(name: &str, view: &View, settings: &SdsSettings) -> bool {
    let entries = view.entries_of_any_hint();
    view.is_synced()
        && match Meaning::of(name, settings) {
            None => true,
            Some(Meaning::FirstSvid) => entries.is_empty(),
            Some(Meaning::Svid(id)) => entries.iter().all(|entry| entry.spiffe_id != id),
            Some(Meaning::OwnBundle | Meaning::AllBundles) => false,
            Some(Meaning::Bundle(name)) => {
                !view.is_own(&name) && entries.iter().all(|entry| !entry.federates_with.contains(&name))
            }
        }
}

/// Whether the answer may hold certificates, which are then issued and renewed.
pub(super) fn wants_svids(asked: &Asked, settings: &SdsSettings) -> bool {
    let is_svid = |name: &String| {
        matches!(
            Meaning::of(name, settings),
            Some(Meaning::FirstSvid | Meaning::Svid(_))
        )
    };
    asked.everything || asked.names.iter().any(is_svid)
}

/// A version for several secrets together.
pub(super) fn version_of(found: &Found) -> String {
    let mut digest = Context::new(&SHA256);
    for (name, secret) in found {
        for text in [name, &secret.version] {
            update(&mut digest, text.as_bytes());
        }
    }
    version(digest)
}

impl Meaning {
    fn of(name: &str, settings: &SdsSettings) -> Option<Self> {
        if name == settings.default_svid_name {
            return Some(Self::FirstSvid);
        }
        if name == settings.default_bundle_name {
            return Some(Self::OwnBundle);
        }
        if name == settings.default_all_bundles_name {
            return Some(Self::AllBundles);
        }
        let id = SpiffeId::parse(name).ok()?;
        Some(if id.has_path() {
            Self::Svid(id)
        } else {
            Self::Bundle(id.trust_domain().clone())
        })
    }
}

impl Secret {
    fn svid(issued: &Arc<IssuedSvid>) -> Self {
        let mut digest = Context::new(&SHA256);
        update(&mut digest, b"svid");
        update(&mut digest, &issued.chain_der); // Another key has another certificate.
        Self {
            version: version(digest),
            content: Content::Svid(Arc::clone(issued)),
        }
    }

    /// Of one trust domain or, for the SPIFFE validator alone, of several; ordered by name.
    pub fn bundles(validator: Validator, bundles: Vec<Arc<Bundle>>) -> Self {
        let mut digest = Context::new(&SHA256);
        update(&mut digest, format!("{validator:?}").as_bytes());
        for bundle in &bundles {
            update(&mut digest, bundle.trust_domain.as_str().as_bytes());
            for authority in &bundle.x509_authorities {
                update(&mut digest, authority.certificate.der());
            }
        }
        Self {
            version: version(digest),
            content: Content::Bundles(validator, bundles),
        }
    }

    /// The resource, under the name that was asked. Its value may hold a private key: whoever sends it zeroises it.
    pub(super) fn resource(&self, name: &str) -> Any {
        let content = match &self.content {
            Content::Svid(issued) => Type::TlsCertificate(tls_certificate(issued)),
            Content::Bundles(validator, bundles) => Type::ValidationContext(match validator {
                Validator::Spiffe => spiffe_validator(bundles),
                Validator::TrustedCa => trusted_ca(bundles),
            }),
        };
        let message = SecretMessage {
            name: name.to_owned(),
            r#type: Some(content),
        };
        Any {
            type_url: SECRET_TYPE.to_owned(),
            value: message.encode_to_vec(),
        }
    }
}

fn add_svid(found: &mut Found, name: &str, view: &View, id: &SpiffeId) {
    let entries = view.entries_of_any_hint().iter();
    let issued = entries
        .filter(|entry| entry.spiffe_id == *id)
        .find_map(|entry| svid_of(entry));
    if let Some(issued) = issued {
        found.insert(name.to_owned(), Secret::svid(issued));
    }
}

/// Envoy takes an empty list of trust domains for a valid one and then refuses all peers, and takes a trust
/// domain without authorities for an error; so neither is sent.
fn add_bundles(found: &mut Found, name: &str, validator: Validator, mut bundles: Vec<Arc<Bundle>>) {
    bundles.retain(|bundle| !bundle.x509_authorities.is_empty());
    if !bundles.is_empty() {
        bundles.sort_by(|one, other| one.trust_domain.cmp(&other.trust_domain));
        found.insert(name.to_owned(), Secret::bundles(validator, bundles));
    }
}

fn all_bundles(view: &View) -> impl Iterator<Item = Arc<Bundle>> {
    let federated = view.federated_with_any_hint().map(|(_name, bundle)| bundle);
    std::iter::once(view.own_bundle()).chain(federated).cloned()
}

fn tls_certificate(issued: &IssuedSvid) -> TlsCertificate {
    let key = Zeroizing::new(pem_block("PRIVATE KEY", &issued.key_pkcs8).into_bytes());
    TlsCertificate {
        certificate_chain: inline(Bytes::from(issued.svid.chain_pem())),
        private_key: inline(Bytes::from_owner(key)),
    }
}

fn spiffe_validator(bundles: &[Arc<Bundle>]) -> CertificateValidationContext {
    let trust_domains = bundles.iter().map(|bundle| spiffe::TrustDomain {
        name: bundle.trust_domain.as_str().to_owned(),
        trust_bundle: inline(Bytes::from(bundle.to_pem())),
    });
    let config = SpiffeCertValidatorConfig {
        trust_domains: trust_domains.collect(),
    };
    CertificateValidationContext {
        custom_validator_config: Some(TypedExtensionConfig {
            name: SPIFFE_VALIDATOR.to_owned(),
            typed_config: Some(Any {
                type_url: SPIFFE_VALIDATOR_TYPE.to_owned(),
                value: config.encode_to_vec(),
            }),
        }),
        ..Default::default()
    }
}

fn trusted_ca(bundles: &[Arc<Bundle>]) -> CertificateValidationContext {
    let authorities: String = bundles.iter().map(|bundle| bundle.to_pem()).collect();
    CertificateValidationContext {
        trusted_ca: inline(Bytes::from(authorities)),
        ..Default::default()
    }
}

fn inline(bytes: Bytes) -> Option<DataSource> {
    Some(DataSource {
        specifier: Some(Specifier::InlineBytes(bytes)),
    })
}

/// Parts with their lengths, so that no two lists of parts are the same bytes.
fn update(digest: &mut Context, part: &[u8]) {
    digest.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
    digest.update(part);
}

fn version(digest: Context) -> String {
    data_encoding::HEXLOWER.encode(&digest.finish().as_ref()[..VERSION_BYTES])
}
