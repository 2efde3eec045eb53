//! From the agent's answers to the contents of the files. An incomplete answer is not written at all.

use std::collections::BTreeMap;

use bytes::Bytes;
use data_encoding::BASE64;
use finial_identity::bundle::{Bundle, BundleError};
use finial_identity::jwt::{JwtError, parse_unverified};
use finial_identity::key::{KeyError, PrivateKey};
use finial_identity::spiffe_id::{SpiffeId, SpiffeIdError, TrustDomain};
use finial_identity::x509::{Certificate, X509Error, X509Svid};
use finial_proto::workload::{JwtBundlesResponse, JwtsvidResponse, X509svid, X509svidResponse};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::config::X509Output;

/// Why an answer cannot be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum ContentError {
    /// The answer holds nothing.
    #[error("the agent sent no SVID")]
    NoSvid,
    /// No SVID has the configured hint.
    #[error("no SVID has the hint: {0}")]
    NoSuchHint(String),
    /// A certificate cannot be read, or is no SVID of that key.
    #[error("X.509-SVID: {0}")]
    Svid(#[source] X509Error),
    /// The key cannot be read.
    #[error("key of the X.509-SVID: {0}")]
    Key(#[from] KeyError),
    /// The authorities of a trust domain cannot be read.
    #[error("bundle of {domain}: {source}")]
    Bundle {
        /// Its name.
        domain: String,
        /// Why.
        source: X509Error,
    },
    /// The bundle has no authority.
    #[error("bundle holds no authority that has not expired")]
    EmptyBundle,
    /// The name of a trust domain is none.
    #[error("name of a trust domain: {0}")]
    TrustDomain(#[from] SpiffeIdError),
    /// The JWT keys of a trust domain cannot be read.
    #[error("JWT bundle of {domain}: {source}")]
    JwtBundle {
        /// Its name.
        domain: String,
        /// Why.
        source: BundleError,
    },
    /// A token cannot be read.
    #[error("JWT-SVID: {0}")]
    Token(#[from] JwtError),
    /// A token is for others than those asked for.
    #[error("JWT-SVID is not for the audience: {0}")]
    Audience(String),
    /// A token that is good for nothing.
    #[error("JWT-SVID has expired at {0}")]
    Expired(OffsetDateTime),
}

/// What is in the three files of an X.509-SVID.
#[derive(PartialEq, Eq)]
pub(super) struct X509Files {
    pub(super) spiffe_id: SpiffeId,
    pub(super) expires_at: OffsetDateTime,
    pub(super) svid_pem: String,
    pub(super) key_pem: Zeroizing<String>,
    pub(super) bundle_pem: String,
}

/// A JWT-SVID.
pub(super) struct Token {
    pub(super) spiffe_id: SpiffeId,
    pub(super) expires_at: OffsetDateTime,
    pub(super) text: Zeroizing<String>,
}

/// Chooses the SVID with the hint, or the first, and checks it. Expired certificates are left out when the
/// configuration says so, the leaf excepted.
pub(super) fn x509_files(
    response: &X509svidResponse,
    output: &X509Output,
    hint: Option<&str>,
    now: OffsetDateTime,
) -> Result<X509Files, ContentError> {
    let chosen = choose(&response.svids, hint, |svid| &svid.hint)?;
    let chain = Certificate::parse_many(&chosen.x509_svid).map_err(ContentError::Svid)?;
    let key = PrivateKey::from_pkcs8_der(&chosen.x509_svid_key)?;
    let svid = X509Svid::new(chain, key.into()).map_err(ContentError::Svid)?;
    let domain = svid.spiffe_id().trust_domain();

    let is_wanted = |certificate: &&Certificate| !output.omit_expired || certificate.not_after() >= now;
    let (leaf, intermediates) = svid.chain().split_at(1);
    let mut authorities = authorities(domain.as_str(), &chosen.bundle)?;
    let mut certificates = leaf.to_vec();
    if !authorities.iter().any(|authority| is_wanted(&authority)) {
        return Err(ContentError::EmptyBundle);
    }
    if output.add_intermediates_to_bundle {
        authorities.extend_from_slice(intermediates);
    } else {
        certificates.extend(intermediates.iter().filter(is_wanted).cloned());
    }
    if output.include_federated_domains {
        for (foreign, der) in foreign_bundles(response, domain)? {
            authorities.extend(self::authorities(&foreign, der)?);
        }
    }
    Ok(X509Files {
        spiffe_id: svid.spiffe_id().clone(),
        expires_at: svid.leaf().not_after(),
        svid_pem: certificates.iter().map(Certificate::to_pem).collect(),
        key_pem: svid.key().to_pem(),
        bundle_pem: authorities
            .iter()
            .filter(is_wanted)
            .map(Certificate::to_pem)
            .collect(),
    })
}

/// A JSON object with the JWK Set of each trust domain in base64, under the domain's name, as spiffe-helper writes it.
pub(super) fn jwt_bundle_json(response: &JwtBundlesResponse) -> Result<String, ContentError> {
    if response.bundles.is_empty() {
        return Err(ContentError::EmptyBundle);
    }
    let mut object = serde_json::Map::new();
    for (id, jwks) in &response.bundles {
        let domain = TrustDomain::parse_name_or_id(id)?;
        let name = domain.as_str().to_owned();
        Bundle::parse_jwks(domain, jwks).map_err(|source| ContentError::JwtBundle {
            domain: name.clone(),
            source,
        })?;
        object.insert(name, BASE64.encode(jwks).into());
    }
    Ok(serde_json::Value::Object(object).to_string())
}

/// Chooses the token with the hint, or the first, and checks that it is of use.
pub(super) fn token(
    response: JwtsvidResponse,
    audiences: &[String],
    hint: Option<&str>,
    now: OffsetDateTime,
) -> Result<Token, ContentError> {
    let chosen = choose(&response.svids, hint, |svid| &svid.hint)?;
    let parsed = parse_unverified(&chosen.svid)?;
    if let Some(missing) = audiences
        .iter()
        .find(|audience| !parsed.audience.contains(audience))
    {
        return Err(ContentError::Audience(missing.clone()));
    }
    if parsed.expires_at <= now {
        return Err(ContentError::Expired(parsed.expires_at));
    }
    Ok(Token {
        spiffe_id: parsed.spiffe_id,
        expires_at: parsed.expires_at,
        text: Zeroizing::new(chosen.svid.clone()),
    })
}

fn choose<'a, T>(
    svids: &'a [T],
    hint: Option<&str>,
    hint_of: impl Fn(&T) -> &String,
) -> Result<&'a T, ContentError> {
    match hint {
        None => svids.first().ok_or(ContentError::NoSvid),
        Some(hint) => svids
            .iter()
            .find(|svid| hint_of(svid) == hint)
            .ok_or_else(|| ContentError::NoSuchHint(hint.to_owned())),
    }
}

fn authorities(domain: &str, der: &[u8]) -> Result<Vec<Certificate>, ContentError> {
    Certificate::parse_many(der).map_err(|source| ContentError::Bundle {
        domain: domain.to_owned(),
        source,
    })
}

/// The bundles of all other trust domains, by name: the federated ones, and those of SVIDs that were not chosen.
fn foreign_bundles<'a>(
    response: &'a X509svidResponse,
    own: &TrustDomain,
) -> Result<BTreeMap<String, &'a Bytes>, ContentError> {
    let mut found = BTreeMap::new();
    for (id, der) in &response.federated_bundles {
        found.insert(TrustDomain::parse_name_or_id(id)?.as_str().to_owned(), der);
    }
    for X509svid {
        spiffe_id, bundle, ..
    } in &response.svids
    {
        let id = SpiffeId::parse(spiffe_id)?;
        found.insert(id.trust_domain().as_str().to_owned(), bundle);
    }
    found.remove(own.as_str());
    Ok(found)
}

impl std::fmt::Debug for X509Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("X509Files")
            .field("spiffe_id", &self.spiffe_id)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token")
            .field("spiffe_id", &self.spiffe_id)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
