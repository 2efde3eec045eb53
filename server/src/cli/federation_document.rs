//! What the flags of `federation create` and `federation update`, and the document that their `-data` names, say.

use anyhow::Context;
use finial_identity::bundle::Bundle;
use finial_identity::federation::{EndpointProfile, EndpointUrl, Relationship};
use finial_identity::spiffe_id::TrustDomain;
use finial_identity::wire;
use finial_proto::spire::api::types;
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(rename = "federationRelationships")]
    federation_relationships: Vec<DocumentRelationship>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
struct DocumentRelationship {
    trust_domain: String,
    #[serde(rename = "bundleEndpointURL")]
    bundle_endpoint_url: String,
    bundle_endpoint_profile: String,
    #[serde(rename = "endpointSPIFFEID")]
    endpoint_spiffe_id: String,
    /// A SPIFFE bundle document, or a text of PEM.
    trust_domain_bundle: Option<Value>,
    trust_domain_bundle_format: String,
}

/// A relationship as an operator describes it; what is not said is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Described {
    /// Name of the foreign trust domain.
    pub trust_domain: String,
    /// Where its bundle is.
    pub bundle_endpoint_url: String,
    /// `https_web` or `https_spiffe`.
    pub bundle_endpoint_profile: String,
    /// The endpoint's SPIFFE ID, with `https_spiffe`.
    pub endpoint_spiffe_id: String,
    /// The bundle to start from.
    pub bundle: Option<String>,
    /// `pem` or `spiffe`.
    pub bundle_format: String,
}

impl Described {
    /// The message for the server.
    ///
    /// # Errors
    /// What is missing or malformed.
    pub fn convert(self) -> anyhow::Result<types::FederationRelationship> {
        anyhow::ensure!(!self.trust_domain.is_empty(), "trust domain is required");
        anyhow::ensure!(
            !self.bundle_endpoint_url.is_empty(),
            "bundle endpoint URL is required"
        );
        let relationship = Relationship {
            trust_domain: TrustDomain::parse_name_or_id(&self.trust_domain).context("trust domain")?,
            endpoint_url: EndpointUrl::parse(&self.bundle_endpoint_url)?,
            profile: EndpointProfile::parse(&self.bundle_endpoint_profile, &self.endpoint_spiffe_id)?,
        };
        let trust_domain = relationship.trust_domain.clone();
        let bundle = self
            .bundle
            .map(|text| match self.bundle_format.as_str() {
                "spiffe" => Ok(Bundle::parse_spiffe_json(trust_domain, text.as_bytes())?),
                "pem" => Ok(Bundle::parse_pem(trust_domain, &text)?),
                other => Err(anyhow::anyhow!("bundle format {other:?} is unsupported")),
            })
            .transpose()
            .context("cannot parse the bundle")?;
        Ok(types::FederationRelationship {
            trust_domain_bundle: bundle.as_ref().map(wire::bundle_to_wire),
            ..wire::relationship_to_wire(&relationship)
        })
    }
}

/// Parses the document.
///
/// # Errors
/// Names the relationship by its position and what is wrong with it.
pub fn parse(text: &str) -> anyhow::Result<Vec<types::FederationRelationship>> {
    let document: Document = serde_json::from_str(text).context("failed to parse JSON")?;
    document
        .federation_relationships
        .into_iter()
        .enumerate()
        .map(|(index, relationship)| {
            describe(relationship)
                .and_then(Described::convert)
                .with_context(|| format!("could not parse item {index}"))
        })
        .collect()
}

fn describe(relationship: DocumentRelationship) -> anyhow::Result<Described> {
    let format = match relationship.trust_domain_bundle_format.as_str() {
        // Nothing else is needed where there is no bundle.
        "" if relationship.trust_domain_bundle.is_none() => "pem",
        other => other,
    };
    let bundle = match relationship.trust_domain_bundle {
        None => None,
        Some(Value::String(text)) if format != "spiffe" => Some(text),
        Some(document) if format == "spiffe" => Some(document.to_string()),
        Some(_) => anyhow::bail!("a bundle in format {format:?} must be a text"),
    };
    Ok(Described {
        trust_domain: relationship.trust_domain,
        bundle_endpoint_url: relationship.bundle_endpoint_url,
        bundle_endpoint_profile: relationship.bundle_endpoint_profile,
        endpoint_spiffe_id: relationship.endpoint_spiffe_id,
        bundle,
        bundle_format: format.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_spires_members_and_a_bundle_in_either_format() {
        let read = parse(
            r#"{"federationRelationships":[
                {"trustDomain":"a.test","bundleEndpointURL":"https://a.test","bundleEndpointProfile":"https_web"},
                {"trustDomain":"b.test","bundleEndpointURL":"https://b.test","bundleEndpointProfile":"https_spiffe",
                 "endpointSPIFFEID":"spiffe://c.test/be","trustDomainBundleFormat":"spiffe",
                 "trustDomainBundle":{"keys":[],"spiffe_sequence":18446744073709551615}}]}"#,
        )
        .unwrap();
        assert_eq!(read[0].trust_domain_bundle, None);
        let bundle = read[1].trust_domain_bundle.as_ref().unwrap();
        assert_eq!(
            (bundle.trust_domain.as_str(), bundle.sequence_number),
            ("b.test", u64::MAX)
        );
    }

    #[test]
    fn names_the_relationship_that_is_wrong_and_why() {
        let with = |more: &str| {
            let text = format!(
                r#"{{"federationRelationships":[{{"trustDomain":"a.test","bundleEndpointURL":"https://a.test",{more}}}]}}"#
            );
            format!("{:#}", parse(&text).unwrap_err())
        };
        for (more, part) in [
            (
                r#""bundleEndpointProfile":"http""#,
                "unknown bundle endpoint profile",
            ),
            (
                r#""bundleEndpointProfile":"https_spiffe""#,
                "needs the endpoint's SPIFFE ID",
            ),
            (
                r#""bundleEndpointProfile":"https_web","trustDomainBundle":{}"#,
                "must be a text",
            ),
            (
                r#""bundleEndpointProfile":"https_web","trustDomainBundleFormat":"pem","trustDomainBundle":"x""#,
                "cannot parse the bundle",
            ),
        ] {
            let error = with(more);
            assert!(
                error.starts_with("could not parse item 0") && error.contains(part),
                "{error}"
            );
        }
        assert!(with(r#""trustdomain":"x""#).contains("unknown field"));
    }
}
