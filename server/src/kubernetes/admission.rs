//! Validation of an object before it is used: the rules of the schema in CEL once more, because old
//! API servers do not run them, and rules that a schema cannot express. A webhook is not needed: the result is in
//! the object's status.

use finial_identity::bundle::{Bundle, BundleError, MAX_FOREIGN_DOCUMENT_BYTES};
use finial_identity::entry::{check_dns_name, check_hint};
use finial_identity::federation::{EndpointProfile, EndpointUrl, HTTPS_SPIFFE, HTTPS_WEB, Relationship};
use finial_identity::selector::Selector;
use finial_identity::settings::parse_duration;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use thiserror::Error;

use super::label_filter::LabelFilter;
use super::resources::{
    ClusterFederatedTrustDomainSpec, ClusterSPIFFEIDSpec, ClusterStaticEntrySpec, ProfileType,
};
use super::template::{Scope, Template};

/// Longest list in a spec.
const MAX_ITEMS: usize = 256;

/// Why an object is not applied.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("spec.{field}: {text}")]
pub struct Refused {
    /// The field of the spec.
    pub field: &'static str,
    /// What is wrong with it.
    pub text: String,
}

/// A `ClusterSPIFFEID` that can be applied to pods.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Which namespaces.
    pub namespaces: LabelFilter,
    /// Which pods in them.
    pub pods: LabelFilter,
    /// The SPIFFE ID.
    pub spiffe_id: Template,
    /// DNS names, in this order.
    pub dns_names: Vec<Template>,
    /// Selectors in addition to the pod's uid.
    pub selectors: Vec<Template>,
    /// Whether the names of the pod's services are added.
    pub adds_services: bool,
    /// Whether only pods count that no rule without this mark gives an entry to.
    pub is_fallback: bool,
    /// What is copied into entries.
    pub copied: Copied,
}

/// What goes from a spec into its entries as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Lifetime of X.509-SVIDs in seconds, 0 for the server's default.
    pub x509_svid_ttl: i32,
    /// Lifetime of JWT-SVIDs in seconds, 0 for the server's default.
    pub jwt_svid_ttl: i32,
    /// Foreign trust domains.
    pub federates_with: Vec<TrustDomain>,
    /// Administrative rights.
    pub admin: bool,
    /// A downstream server.
    pub downstream: bool,
    /// The hint.
    pub hint: String,
}

/// A `ClusterStaticEntry` whose fields are what they should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticEntry {
    /// The SPIFFE ID.
    pub spiffe_id: SpiffeId,
    /// The parent ID.
    pub parent_id: SpiffeId,
    /// The selectors.
    pub selectors: Vec<Selector>,
    /// The DNS names.
    pub dns_names: Vec<String>,
    /// Whether it goes to an SVID store.
    pub store_svid: bool,
    /// The rest.
    pub copied: Copied,
}

/// A `ClusterFederatedTrustDomain` whose fields are what they should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Federation {
    /// How the bundle is fetched.
    pub relationship: Relationship,
    /// The bundle to start from.
    pub bundle: Option<Bundle>,
}

/// Checks a `ClusterSPIFFEID`.
///
/// # Errors
/// The first field that is wrong.
pub fn rule(spec: &ClusterSPIFFEIDSpec) -> Result<Rule, Refused> {
    if spec.spiffe_id_template.is_empty() {
        return Err(refused("spiffeIDTemplate", "is empty"));
    }
    let parse = |field: &'static str, source: &str| {
        Template::parse(source, Scope::Pod).map_err(|error| refused(field, error))
    };
    let parse_all = |field: &'static str, sources: &Option<Vec<String>>| {
        let sources = bounded(field, sources)?;
        sources
            .iter()
            .map(|source| parse(field, source))
            .collect::<Result<Vec<_>, _>>()
    };
    let selectors = parse_all("workloadSelectorTemplates", &spec.workload_selector_templates)?;
    for source in bounded("workloadSelectorTemplates", &spec.workload_selector_templates)? {
        // The colon may come with what a template renders, such as an annotation that is a whole selector.
        if !source.contains(':') && !source.contains("{{") {
            let text = format!("a selector is of the form type:value: {source:?}");
            return Err(refused("workloadSelectorTemplates", text));
        }
    }
    Ok(Rule {
        namespaces: LabelFilter::of(spec.namespace_selector.as_ref())
            .map_err(|text| refused("namespaceSelector", text))?,
        pods: LabelFilter::of(spec.pod_selector.as_ref()).map_err(|text| refused("podSelector", text))?,
        spiffe_id: parse("spiffeIDTemplate", &spec.spiffe_id_template)?,
        dns_names: parse_all("dnsNameTemplates", &spec.dns_name_templates)?,
        selectors,
        adds_services: spec.auto_populate_dns_names.unwrap_or_default(),
        is_fallback: spec.fallback.unwrap_or_default(),
        copied: Copied {
            x509_svid_ttl: ttl("ttl", &spec.ttl)?,
            jwt_svid_ttl: ttl("jwtTtl", &spec.jwt_ttl)?,
            federates_with: federates_with(&spec.federates_with)?,
            admin: spec.admin.unwrap_or_default(),
            downstream: spec.downstream.unwrap_or_default(),
            hint: hint(&spec.hint)?,
        },
    })
}

/// Checks a `ClusterStaticEntry`. Whether its IDs belong to the trust domain is the registry's to say.
///
/// # Errors
/// The first field that is wrong.
pub fn static_entry(spec: &ClusterStaticEntrySpec) -> Result<StaticEntry, Refused> {
    if spec.selectors.is_empty() {
        return Err(refused("selectors", "are empty"));
    }
    if spec.selectors.len() > MAX_ITEMS {
        return Err(too_many("selectors", spec.selectors.len()));
    }
    let selectors = spec.selectors.iter().map(|text| Selector::parse(text));
    let dns_names = bounded("dnsNames", &spec.dns_names)?.to_vec();
    for name in &dns_names {
        check_dns_name(name).map_err(|error| refused("dnsNames", error))?;
    }
    Ok(StaticEntry {
        spiffe_id: SpiffeId::parse(&spec.spiffe_id).map_err(|error| refused("spiffeID", error))?,
        parent_id: SpiffeId::parse(&spec.parent_id).map_err(|error| refused("parentID", error))?,
        selectors: selectors
            .collect::<Result<_, _>>()
            .map_err(|error| refused("selectors", error))?,
        dns_names,
        store_svid: spec.store_svid.unwrap_or_default(),
        copied: Copied {
            x509_svid_ttl: ttl("x509SVIDTTL", &spec.x509_svid_ttl)?,
            jwt_svid_ttl: ttl("jwtSVIDTTL", &spec.jwt_svid_ttl)?,
            federates_with: federates_with(&spec.federates_with)?,
            admin: spec.admin.unwrap_or_default(),
            downstream: spec.downstream.unwrap_or_default(),
            hint: hint(&spec.hint)?,
        },
    })
}

/// Checks a `ClusterFederatedTrustDomain`.
///
/// # Errors
/// The first field that is wrong.
pub fn federation(spec: &ClusterFederatedTrustDomainSpec) -> Result<Federation, Refused> {
    let trust_domain =
        TrustDomain::parse(&spec.trust_domain).map_err(|error| refused("trustDomain", error))?;
    let endpoint_url =
        EndpointUrl::parse(&spec.bundle_endpoint_url).map_err(|error| refused("bundleEndpointURL", error))?;
    let name = match spec.bundle_endpoint_profile.kind {
        ProfileType::HttpsWeb => HTTPS_WEB,
        ProfileType::HttpsSpiffe => HTTPS_SPIFFE,
    };
    let id = spec.bundle_endpoint_profile.endpoint_spiffe_id.as_deref();
    let profile = EndpointProfile::parse(name, id.unwrap_or_default())
        .map_err(|error| refused("bundleEndpointProfile.endpointSPIFFEID", error))?;
    let document = spec
        .trust_domain_bundle
        .as_deref()
        .filter(|text| !text.is_empty());
    let too_large = document.filter(|text| text.len() > MAX_FOREIGN_DOCUMENT_BYTES);
    if let Some(text) = too_large {
        return Err(refused(
            "trustDomainBundle",
            BundleError::TooLarge {
                what: "bundle document",
                limit: MAX_FOREIGN_DOCUMENT_BYTES,
                bytes: text.len(),
            },
        ));
    }
    let bundle = document
        .map(|text| Bundle::parse_spiffe_json(trust_domain.clone(), text.as_bytes()))
        .transpose()
        .map_err(|error| refused("trustDomainBundle", error))?;
    Ok(Federation {
        relationship: Relationship {
            trust_domain,
            endpoint_url,
            profile,
        },
        bundle,
    })
}

/// Whole seconds; a fraction is cut off.
fn ttl(field: &'static str, text: &Option<String>) -> Result<i32, Refused> {
    let Some(text) = text.as_deref().filter(|text| !text.is_empty()) else {
        return Ok(0);
    };
    let duration = parse_duration(text).map_err(|error| refused(field, error))?;
    i32::try_from(duration.as_secs()).map_err(|_| refused(field, format!("is too long: {text}")))
}

fn federates_with(names: &Option<Vec<String>>) -> Result<Vec<TrustDomain>, Refused> {
    let names = bounded("federatesWith", names)?;
    let parsed = names.iter().map(|name| TrustDomain::parse_name_or_id(name));
    parsed
        .collect::<Result<_, _>>()
        .map_err(|error| refused("federatesWith", error))
}

fn hint(hint: &Option<String>) -> Result<String, Refused> {
    let hint = hint.clone().unwrap_or_default();
    check_hint(&hint).map_err(|error| refused("hint", error))?;
    Ok(hint)
}

fn bounded<'a>(field: &'static str, items: &'a Option<Vec<String>>) -> Result<&'a [String], Refused> {
    let items = items.as_deref().unwrap_or_default();
    if items.len() > MAX_ITEMS {
        return Err(too_many(field, items.len()));
    }
    Ok(items)
}

fn too_many(field: &'static str, count: usize) -> Refused {
    refused(field, format!("at most {MAX_ITEMS} are allowed: {count}"))
}

fn refused(field: &'static str, text: impl ToString) -> Refused {
    Refused {
        field,
        text: text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn merged(base: Value, change: &Value) -> Value {
        let mut base = base;
        for (key, value) in change.as_object().unwrap() {
            base[key] = value.clone();
        }
        base
    }

    fn check_rule(change: Value) -> Result<Rule, Refused> {
        let base = json!({"spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/x"});
        rule(&serde_json::from_value(merged(base, &change)).unwrap())
    }

    fn check_static(change: Value) -> Result<StaticEntry, Refused> {
        let base = json!({
            "spiffeID": "spiffe://example.org/db", "parentID": "spiffe://example.org/spire/agent/a",
            "selectors": ["unix:uid:70"]
        });
        static_entry(&serde_json::from_value(merged(base, &change)).unwrap())
    }

    fn check_federation(change: Value) -> Result<Federation, Refused> {
        let base = json!({
            "trustDomain": "partner.example", "bundleEndpointURL": "https://partner.example/bundle",
            "bundleEndpointProfile": {"type": "https_web"}
        });
        federation(&serde_json::from_value(merged(base, &change)).unwrap())
    }

    #[test]
    fn a_rule_that_says_everything_is_taken() {
        let rule = check_rule(json!({
            "ttl": "1h30m", "jwtTtl": "90.7s", "dnsNameTemplates": ["{{ .PodMeta.Name }}"],
            "workloadSelectorTemplates": ["k8s:ns:{{ .PodMeta.Namespace }}", "{{ .PodMeta.Annotations.selector }}"],
            "federatesWith": ["a.example", "spiffe://b.example"], "admin": true, "hint": "h",
            "podSelector": {"matchLabels": {"a": "b"}}, "fallback": true
        }))
        .unwrap();
        assert_eq!((rule.copied.x509_svid_ttl, rule.copied.jwt_svid_ttl), (5400, 90));
        assert_eq!(rule.copied.federates_with[1].as_str(), "b.example");
        assert!(rule.is_fallback && rule.copied.admin && !rule.copied.downstream);
        assert_eq!(check_rule(json!({"ttl": "0"})).unwrap().copied.x509_svid_ttl, 0);
    }

    #[test]
    fn rules_that_admission_refuses_name_the_field() {
        for (change, field) in [
            (json!({"spiffeIDTemplate": ""}), "spiffeIDTemplate"),
            (json!({"spiffeIDTemplate": "{{ .Foo }}"}), "spiffeIDTemplate"),
            (json!({"dnsNameTemplates": ["{{"]}), "dnsNameTemplates"),
            (
                json!({"workloadSelectorTemplates": ["{{ if }}"]}),
                "workloadSelectorTemplates",
            ),
            (
                json!({"workloadSelectorTemplates": ["nocolon"]}),
                "workloadSelectorTemplates",
            ),
            (json!({"federatesWith": ["UPPER"]}), "federatesWith"),
            (
                json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "?"}]}}),
                "podSelector",
            ),
            (
                json!({"namespaceSelector": {"matchLabels": {"-": "b"}}}),
                "namespaceSelector",
            ),
            (json!({"ttl": "1 hour"}), "ttl"),
            (json!({"ttl": "-1h"}), "ttl"),
            (json!({"jwtTtl": "999999h"}), "jwtTtl"),
            (json!({"hint": "h".repeat(1025)}), "hint"),
            (json!({"dnsNameTemplates": vec!["a"; 257]}), "dnsNameTemplates"),
        ] {
            let error = check_rule(change.clone()).unwrap_err();
            assert_eq!(error.field, field, "{change}: {error}");
        }
    }

    #[test]
    fn static_entries_that_admission_refuses_name_the_field() {
        assert!(check_static(json!({})).is_ok());
        for (change, field) in [
            (json!({"spiffeID": "http://example.org/db"}), "spiffeID"),
            (json!({"parentID": "x"}), "parentID"),
            (json!({"selectors": []}), "selectors"),
            (json!({"selectors": ["unix"]}), "selectors"),
            (json!({"selectors": [":70"]}), "selectors"),
            (json!({"selectors": ["unix:"]}), "selectors"),
            (json!({"dnsNames": ["-bad-.example"]}), "dnsNames"),
            (json!({"x509SVIDTTL": "x"}), "x509SVIDTTL"),
            (json!({"jwtSVIDTTL": "x"}), "jwtSVIDTTL"),
        ] {
            let error = check_static(change.clone()).unwrap_err();
            assert_eq!(error.field, field, "{change}: {error}");
        }
    }

    #[test]
    fn federations_that_admission_refuses_name_the_field() {
        assert!(check_federation(json!({})).is_ok());
        let id = "bundleEndpointProfile.endpointSPIFFEID";
        for (change, field) in [
            (json!({"trustDomain": "no/slash"}), "trustDomain"),
            (
                json!({"bundleEndpointURL": "http://partner.example"}),
                "bundleEndpointURL",
            ),
            (json!({"bundleEndpointURL": "https://"}), "bundleEndpointURL"),
            (
                json!({"bundleEndpointURL": "https://u:p@partner.example"}),
                "bundleEndpointURL",
            ),
            (json!({"bundleEndpointProfile": {"type": "https_spiffe"}}), id),
            (
                json!({"bundleEndpointProfile": {"type": "https_spiffe", "endpointSPIFFEID": "x"}}),
                id,
            ),
            (
                json!({"bundleEndpointProfile": {"type": "https_web", "endpointSPIFFEID": "spiffe://a/b"}}),
                id,
            ),
            (json!({"trustDomainBundle": "{"}), "trustDomainBundle"),
        ] {
            let error = check_federation(change.clone()).unwrap_err();
            assert_eq!(error.field, field, "{change}: {error}");
        }
        let large = format!(r#"{{"keys":[]}}{}"#, " ".repeat(MAX_FOREIGN_DOCUMENT_BYTES));
        let error = check_federation(json!({ "trustDomainBundle": large })).unwrap_err();
        assert!(error.to_string().contains("larger than 524288 bytes"));
        let error = check_federation(json!({"bundleEndpointURL": "https://u:secret@partner.example"}));
        assert!(!error.unwrap_err().to_string().contains("secret"));
    }
}
