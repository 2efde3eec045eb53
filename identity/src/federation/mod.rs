//! Federation relationships: where the bundle of a foreign trust domain is fetched, and how its endpoint is
//! authenticated (SPIFFE Federation §5). Also who declares them, and the state of their refresh.
//!
//! Trust domain, URL and profile are always given explicitly: none is ever inferred from another (§5.1, §7.2).

mod url;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use thiserror::Error;
use time::OffsetDateTime;

use crate::bundle::Bundle;
use crate::spiffe_id::{SpiffeId, SpiffeIdError, TrustDomain};

pub use url::{EndpointUrl, EndpointUrlError, MAX_URL_BYTES};

/// How the bundle of a foreign trust domain is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relationship {
    /// The foreign trust domain.
    pub trust_domain: TrustDomain,
    /// Where its bundle is.
    pub endpoint_url: EndpointUrl,
    /// How the endpoint is authenticated.
    pub profile: EndpointProfile,
}

/// How a bundle endpoint is authenticated. One profile is never used instead of the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointProfile {
    /// `https_web`: by an authority that the web trusts, for the host of the URL (§5.2.1).
    HttpsWeb,
    /// `https_spiffe`: by an X509-SVID with exactly this SPIFFE ID, which the bundle of the ID's own trust domain
    /// verifies (§5.2.2).
    HttpsSpiffe(SpiffeId),
}

/// Why a profile is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProfileError {
    /// There is no such profile.
    #[error("unknown bundle endpoint profile: {0:?}: https_web or https_spiffe")]
    Unknown(String),
    /// `https_web` has no SPIFFE ID.
    #[error("https_web has no endpoint SPIFFE ID")]
    NeedlessId,
    /// `https_spiffe` needs one.
    #[error("https_spiffe needs the endpoint's SPIFFE ID")]
    MissingId,
    /// It is none.
    #[error("endpoint SPIFFE ID: {0}")]
    Id(#[from] SpiffeIdError),
}

impl EndpointProfile {
    /// Reads a profile by its name, with the endpoint's SPIFFE ID, which may be empty for none.
    ///
    /// # Errors
    /// [`ProfileError`].
    pub fn parse(name: &str, endpoint_id: &str) -> Result<Self, ProfileError> {
        match (name, endpoint_id) {
            (HTTPS_WEB, "") => Ok(Self::HttpsWeb),
            (HTTPS_WEB, _) => Err(ProfileError::NeedlessId),
            (HTTPS_SPIFFE, "") => Err(ProfileError::MissingId),
            (HTTPS_SPIFFE, id) => Ok(Self::HttpsSpiffe(SpiffeId::parse(id)?)),
            (other, _) => Err(ProfileError::Unknown(other.chars().take(64).collect())),
        }
    }

    /// `https_web` or `https_spiffe`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::HttpsWeb => HTTPS_WEB,
            Self::HttpsSpiffe(_) => HTTPS_SPIFFE,
        }
    }

    /// The endpoint's SPIFFE ID, with `https_spiffe` only.
    #[must_use]
    pub fn endpoint_id(&self) -> Option<&SpiffeId> {
        match self {
            Self::HttpsWeb => None,
            Self::HttpsSpiffe(id) => Some(id),
        }
    }
}

/// Name of the profile with a certificate of a public web authority.
pub const HTTPS_WEB: &str = "https_web";
/// Name of the profile with an X509-SVID.
pub const HTTPS_SPIFFE: &str = "https_spiffe";

/// Who declares a relationship. Of several for one trust domain the first in this order counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// The server's configuration.
    Configuration,
    /// An operator, through the API.
    Api,
    /// An object, named for people.
    Object(Arc<str>),
}

impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configuration => out.write_str("the server's configuration"),
            Self::Api => out.write_str("an operator"),
            Self::Object(name) => out.write_str(name),
        }
    }
}

/// A relationship that an object declares; it is not stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Declared {
    /// The relationship.
    pub relationship: Relationship,
    /// The bundle to start from.
    pub bundle: Option<Arc<Bundle>>,
    /// The object, for people.
    pub origin: Arc<str>,
    /// When the object was created, in Unix seconds; 0 where objects have no age.
    pub created_at: i64,
}

/// What objects declare, by the source of the objects; in each source a trust domain occurs once.
pub type DeclaredSets = BTreeMap<Arc<str>, Vec<Declared>>;

/// How the refresh of one bundle stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefreshState {
    /// Who declares the relationship that counts.
    pub origin: Origin,
    /// When the bundle was fetched last and found good.
    pub refreshed_at: Option<OffsetDateTime>,
    /// The sequence number of the bundle held; 0 is not known.
    pub sequence_number: u64,
    /// What went wrong last time.
    pub trouble: Option<Arc<str>>,
}

/// How the refresh of each bundle stands.
pub type RefreshStates = BTreeMap<TrustDomain, RefreshState>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_has_an_id_exactly_if_it_is_https_spiffe() {
        assert_eq!(
            EndpointProfile::parse("https_web", ""),
            Ok(EndpointProfile::HttpsWeb)
        );
        let spiffe = EndpointProfile::parse("https_spiffe", "spiffe://a.test/spire/server").unwrap();
        assert_eq!(
            (spiffe.name(), spiffe.endpoint_id().map(SpiffeId::as_str)),
            ("https_spiffe", Some("spiffe://a.test/spire/server"))
        );
        for (name, id, expected) in [
            (
                "https_web",
                "spiffe://a.test/x",
                "https_web has no endpoint SPIFFE ID",
            ),
            ("https_spiffe", "", "https_spiffe needs the endpoint's SPIFFE ID"),
            ("https_spiffe", "x", "endpoint SPIFFE ID: "),
            ("HTTPS_WEB", "", "unknown bundle endpoint profile"),
            ("", "", "unknown bundle endpoint profile"),
        ] {
            let error = EndpointProfile::parse(name, id).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{name} {id}: {error}");
        }
    }

    #[test]
    fn the_configuration_counts_before_operators_and_they_before_objects() {
        let mut origins = [
            Origin::Object("a".into()),
            Origin::Api,
            Origin::Configuration,
            Origin::Object("A".into()),
        ];
        origins.sort();
        assert_eq!(origins[..2], [Origin::Configuration, Origin::Api]);
    }
}
