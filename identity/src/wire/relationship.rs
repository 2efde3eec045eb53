//! Federation relationships on the wire.

use finial_proto::spire::api::types;
use finial_proto::spire::api::types::federation_relationship::BundleEndpointProfile as WireProfile;

use super::{WireCause, WireError, of};
use crate::federation::{EndpointProfile, EndpointUrl, ProfileError, Relationship};
use crate::spiffe_id::{SpiffeId, TrustDomain};

/// Reads a relationship. Its bundle is read with [`super::bundle_from_wire`].
///
/// # Errors
/// The trust domain, the URL or the endpoint's SPIFFE ID is malformed, or no profile is set.
pub fn relationship_from_wire(
    relationship: &types::FederationRelationship,
) -> Result<Relationship, WireError> {
    Ok(Relationship {
        trust_domain: TrustDomain::parse_name_or_id(&relationship.trust_domain)
            .map_err(of("trust_domain"))?,
        endpoint_url: EndpointUrl::parse(&relationship.bundle_endpoint_url)
            .map_err(of("bundle_endpoint_url"))?,
        profile: match &relationship.bundle_endpoint_profile {
            None => return Err(WireError::missing("bundle_endpoint_profile")),
            Some(WireProfile::HttpsWeb(_)) => EndpointProfile::HttpsWeb,
            Some(WireProfile::HttpsSpiffe(profile)) => {
                let id = SpiffeId::parse(&profile.endpoint_spiffe_id).map_err(|error| WireError {
                    field: "endpoint_spiffe_id",
                    cause: WireCause::Profile(ProfileError::Id(error)),
                })?;
                EndpointProfile::HttpsSpiffe(id)
            }
        },
    })
}

/// Writes a relationship without its bundle.
#[must_use]
pub fn relationship_to_wire(relationship: &Relationship) -> types::FederationRelationship {
    let profile = match &relationship.profile {
        EndpointProfile::HttpsWeb => WireProfile::HttpsWeb(types::HttpsWebProfile {}),
        EndpointProfile::HttpsSpiffe(id) => WireProfile::HttpsSpiffe(types::HttpsspiffeProfile {
            endpoint_spiffe_id: id.to_string(),
        }),
    };
    types::FederationRelationship {
        trust_domain: relationship.trust_domain.to_string(),
        bundle_endpoint_url: relationship.endpoint_url.as_str().to_owned(),
        trust_domain_bundle: None,
        bundle_endpoint_profile: Some(profile),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spiffe() -> types::FederationRelationship {
        types::FederationRelationship {
            trust_domain: "a.test".to_owned(),
            bundle_endpoint_url: "https://a.test/b?x=1".to_owned(),
            trust_domain_bundle: None,
            bundle_endpoint_profile: Some(WireProfile::HttpsSpiffe(types::HttpsspiffeProfile {
                endpoint_spiffe_id: "spiffe://b.test/spire/server".to_owned(),
            })),
        }
    }

    #[test]
    fn a_relationship_keeps_every_field_in_both_directions() {
        let web = types::FederationRelationship {
            bundle_endpoint_profile: Some(WireProfile::HttpsWeb(types::HttpsWebProfile {})),
            ..spiffe()
        };
        for wire in [spiffe(), web] {
            let read = relationship_from_wire(&wire).unwrap();
            assert_eq!(relationship_to_wire(&read), wire);
        }
    }

    #[test]
    fn errors_name_the_field_of_a_relationship() {
        let refused = |change: fn(&mut types::FederationRelationship)| {
            let mut wire = spiffe();
            change(&mut wire);
            relationship_from_wire(&wire).unwrap_err().field
        };
        assert_eq!(refused(|r| r.trust_domain.clear()), "trust_domain");
        assert_eq!(
            refused(|r| r.bundle_endpoint_url = "http://a.test".to_owned()),
            "bundle_endpoint_url"
        );
        assert_eq!(
            refused(|r| r.bundle_endpoint_profile = None),
            "bundle_endpoint_profile"
        );
        let no_id = types::HttpsspiffeProfile::default();
        let mut wire = spiffe();
        wire.bundle_endpoint_profile = Some(WireProfile::HttpsSpiffe(no_id));
        assert_eq!(
            relationship_from_wire(&wire).unwrap_err().field,
            "endpoint_spiffe_id"
        );
    }
}
