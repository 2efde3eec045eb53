//! The block `server { federation { … } }`: the own bundle endpoint, and trust domains to federate with.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use finial_identity::federation::{EndpointProfile, EndpointUrl, HTTPS_SPIFFE, HTTPS_WEB, Relationship};
use finial_identity::settings::Section;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};

/// How often others should ask unless the configuration says otherwise.
const REFRESH_HINT: Duration = Duration::from_secs(5 * 60);
/// A hint that is worth a warning, as in SPIRE.
const LONG_HINT: Duration = Duration::from_secs(24 * 60 * 60);
/// How often the files of a certificate are read again.
const FILE_SYNC: Duration = Duration::from_secs(60 * 60);

/// What the configuration says of federation.
#[derive(Clone, Debug, Default)]
pub struct FederationConfig {
    /// Where the own bundle is served, if it is.
    pub bundle_endpoint: Option<BundleEndpoint>,
    /// Relationships that operators cannot change through the API.
    pub federates_with: Vec<Relationship>,
}

/// Where the own bundle is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleEndpoint {
    /// The address to listen on.
    pub bind: SocketAddr,
    /// How often others should ask.
    pub refresh_hint: Duration,
    /// How the endpoint proves itself.
    pub certificate: EndpointCertificate,
}

/// How the bundle endpoint proves itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointCertificate {
    /// `https_spiffe`: by the server's own SVID.
    Svid,
    /// `https_web`: by a certificate in files.
    Files {
        /// The certificate and what leads to its authority, in PEM.
        cert_file: PathBuf,
        /// Its key, in PEM.
        key_file: PathBuf,
        /// How old what was read may be.
        sync_interval: Duration,
    },
}

/// Reads the block of a server of this trust domain.
pub fn read(
    section: Section<'_>,
    trust_domain: Option<&TrustDomain>,
    warnings: &mut Vec<String>,
) -> FederationConfig {
    let bundle_endpoint = section
        .section("bundle_endpoint")
        .and_then(|endpoint| read_endpoint(endpoint, warnings));
    let mut federates_with = Vec::new();
    let mut names = BTreeSet::new();
    for (name, partner) in section.labelled("federates_with") {
        let partner_domain = TrustDomain::parse_name_or_id(&name)
            .map_err(|error| section.problem("federates_with", error.to_string()))
            .ok();
        let Some(relationship) = read_partner(partner_domain, partner) else {
            continue;
        };
        if Some(&relationship.trust_domain) == trust_domain {
            section.problem("federates_with", format!("{name:?} is the own trust domain"));
        }
        if !names.insert(relationship.trust_domain.clone()) {
            section.problem("federates_with", format!("trust domain {name:?} is given twice"));
        }
        federates_with.push(relationship);
    }
    section.finish();
    FederationConfig {
        bundle_endpoint,
        federates_with,
    }
}

fn read_endpoint(endpoint: Section<'_>, warnings: &mut Vec<String>) -> Option<BundleEndpoint> {
    let address = match endpoint.has("address") {
        true => endpoint.parse("address", str::parse::<IpAddr>),
        false => {
            endpoint.ignore("address");
            Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
        }
    };
    let port = endpoint.u16("port");
    if port.is_none() && !endpoint.has("port") {
        endpoint.problem("port", "is required");
    }
    let refresh_hint = endpoint.duration("refresh_hint").unwrap_or(REFRESH_HINT);
    if refresh_hint >= LONG_HINT {
        warnings.push(
            "server.federation.bundle_endpoint.refresh_hint: others learn of a revoked authority a day later or more"
                .to_owned(),
        );
    }
    if refresh_hint.as_secs() == 0 {
        endpoint.problem("refresh_hint", "must be at least 1s");
    }
    if endpoint.ignore("acme") {
        endpoint.problem("acme", NO_ACME);
    }
    let certificate = read_profile(&endpoint, warnings);
    endpoint.finish();
    Some(BundleEndpoint {
        bind: SocketAddr::new(address?, port?),
        refresh_hint,
        certificate: certificate?,
    })
}

const NO_ACME: &str = "certificates are not fetched by ACME: use serving_cert_file in profile \"https_web\" with a certificate \
     that another program renews";

fn read_profile(endpoint: &Section<'_>, warnings: &mut Vec<String>) -> Option<EndpointCertificate> {
    let mut profiles = endpoint.labelled("profile").into_iter();
    let Some((name, profile)) = profiles.next() else {
        warnings.push(
            "server.federation.bundle_endpoint.profile: is not set, so it is \"https_spiffe\"; set it"
                .to_owned(),
        );
        return Some(EndpointCertificate::Svid);
    };
    if profiles.next().is_some() {
        endpoint.problem("profile", "only one profile can be set");
    }
    match name.as_str() {
        HTTPS_SPIFFE => {
            profile.finish();
            Some(EndpointCertificate::Svid)
        }
        HTTPS_WEB => {
            if profile.ignore("acme") {
                profile.problem("acme", NO_ACME);
                profile.ignore("serving_cert_file");
                profile.finish();
                return None;
            }
            let files = profile.required_section("serving_cert_file").and_then(read_files);
            profile.finish();
            files
        }
        other => {
            endpoint.problem(
                "profile",
                format!("unknown profile {other:?}: {HTTPS_WEB} or {HTTPS_SPIFFE}"),
            );
            None
        }
    }
}

fn read_files(files: Section<'_>) -> Option<EndpointCertificate> {
    let cert_file = files.required_string("cert_file_path").map(PathBuf::from);
    let key_file = files.required_string("key_file_path").map(PathBuf::from);
    let sync_interval = files.duration("file_sync_interval");
    files.finish();
    Some(EndpointCertificate::Files {
        cert_file: cert_file?,
        key_file: key_file?,
        sync_interval: sync_interval
            .filter(|interval| !interval.is_zero())
            .unwrap_or(FILE_SYNC),
    })
}

fn read_partner(trust_domain: Option<TrustDomain>, partner: Section<'_>) -> Option<Relationship> {
    let endpoint_url = partner.required_parse("bundle_endpoint_url", EndpointUrl::parse);
    let profile = read_partner_profile(&partner);
    partner.finish();
    Some(Relationship {
        trust_domain: trust_domain?,
        endpoint_url: endpoint_url?,
        profile: profile?,
    })
}

fn read_partner_profile(partner: &Section<'_>) -> Option<EndpointProfile> {
    let mut profiles = partner.labelled("bundle_endpoint_profile").into_iter();
    let Some((name, profile)) = profiles.next() else {
        partner.problem("bundle_endpoint_profile", "is required");
        return None;
    };
    if profiles.next().is_some() {
        partner.problem("bundle_endpoint_profile", "only one profile can be set");
    }
    let read = match name.as_str() {
        HTTPS_WEB => Some(EndpointProfile::HttpsWeb),
        HTTPS_SPIFFE => profile
            .required_parse("endpoint_spiffe_id", SpiffeId::parse)
            .map(EndpointProfile::HttpsSpiffe),
        other => {
            let text = format!("unknown profile {other:?}: {HTTPS_WEB} or {HTTPS_SPIFFE}");
            partner.problem("bundle_endpoint_profile", text);
            return None;
        }
    };
    profile.finish();
    read
}

#[cfg(test)]
mod tests {
    use finial_identity::settings::{Document, Format, Problems};

    use super::*;

    fn parse(text: &str) -> (Result<FederationConfig, String>, Vec<String>) {
        let document = Document::parse(text, Format::Hcl).unwrap();
        let problems = Problems::new();
        let mut warnings = Vec::new();
        let own = TrustDomain::parse("example.org").unwrap();
        let read = read(document.section(&problems), Some(&own), &mut warnings);
        let read = problems.into_result().map(|()| read);
        (read.map_err(|error| error.to_string()), warnings)
    }

    #[test]
    fn spires_keys_are_read() {
        let (read, warnings) = parse(
            r#"
            bundle_endpoint {
                address = "127.0.0.1" port = 8443 refresh_hint = "10m"
                profile "https_web" {
                    serving_cert_file { cert_file_path = "/c" key_file_path = "/k" file_sync_interval = "30m" }
                }
            }
            federates_with "a.test" { bundle_endpoint_url = "https://a.test:8443" bundle_endpoint_profile "https_web" {} }
            federates_with "b.test" {
                bundle_endpoint_url = "https://1.2.3.4"
                bundle_endpoint_profile "https_spiffe" { endpoint_spiffe_id = "spiffe://b.test/beserver" }
            }"#,
        );
        let read = read.unwrap();
        let endpoint = read.bundle_endpoint.unwrap();
        assert_eq!(endpoint.bind.to_string(), "127.0.0.1:8443");
        assert_eq!(endpoint.refresh_hint, Duration::from_secs(600));
        let files = EndpointCertificate::Files {
            cert_file: "/c".into(),
            key_file: "/k".into(),
            sync_interval: Duration::from_secs(1800),
        };
        assert_eq!(endpoint.certificate, files);
        let [a, b] = &read.federates_with[..] else {
            panic!("{:?}", read.federates_with)
        };
        assert_eq!(
            (a.trust_domain.as_str(), &a.profile),
            ("a.test", &EndpointProfile::HttpsWeb)
        );
        assert_eq!(
            b.profile.endpoint_id().map(SpiffeId::as_str),
            Some("spiffe://b.test/beserver")
        );
        assert!(warnings.is_empty(), "{warnings:?}");
    }

    #[test]
    fn what_is_left_out_has_spires_defaults() {
        let (read, warnings) = parse("bundle_endpoint { port = 8443 }");
        let endpoint = read.unwrap().bundle_endpoint.unwrap();
        let expected = BundleEndpoint {
            bind: SocketAddr::from(([0, 0, 0, 0], 8443)),
            refresh_hint: Duration::from_secs(300),
            certificate: EndpointCertificate::Svid,
        };
        assert_eq!(endpoint, expected);
        assert!(warnings[0].contains("https_spiffe"), "{warnings:?}");
        let (_, warnings) =
            parse(r#"bundle_endpoint { port = 1 refresh_hint = "24h" profile "https_spiffe" {} }"#);
        assert!(
            warnings.len() == 1 && warnings[0].contains("refresh_hint"),
            "{warnings:?}"
        );
        let (read, _) = parse("");
        assert!(read.unwrap().bundle_endpoint.is_none());
    }

    #[test]
    fn what_cannot_be_served_is_refused_by_name() {
        for (text, part) in [
            ("bundle_endpoint {}", "bundle_endpoint.port"),
            (
                r#"bundle_endpoint { port = 1 address = "host" }"#,
                "bundle_endpoint.address",
            ),
            (
                r#"bundle_endpoint { port = 1 acme { domain_name = "a" } }"#,
                "ACME",
            ),
            (
                r#"bundle_endpoint { port = 1 profile "https_web" { acme { domain_name = "a" } } }"#,
                "ACME",
            ),
            (
                r#"bundle_endpoint { port = 1 profile "https_web" {} }"#,
                "serving_cert_file",
            ),
            (
                r#"bundle_endpoint { port = 1 profile "https_web" { serving_cert_file { cert_file_path = "/c" } } }"#,
                "key_file_path",
            ),
            (
                r#"bundle_endpoint { port = 1 profile "http" {} }"#,
                "unknown profile",
            ),
            (
                r#"bundle_endpoint { port = 1 refresh_hint = "1ms" profile "https_spiffe" {} }"#,
                "refresh_hint",
            ),
            (
                r#"federates_with "example.org" { bundle_endpoint_url = "https://a" bundle_endpoint_profile "https_web" {} }"#,
                "own trust domain",
            ),
            (
                r#"federates_with "A" { bundle_endpoint_url = "https://a" bundle_endpoint_profile "https_web" {} }"#,
                "upper-case",
            ),
            (
                r#"federates_with "a" { bundle_endpoint_url = "http://a" bundle_endpoint_profile "https_web" {} }"#,
                "https scheme",
            ),
            (
                r#"federates_with "a" { bundle_endpoint_url = "https://a" }"#,
                "bundle_endpoint_profile",
            ),
            (
                r#"federates_with "a" { bundle_endpoint_url = "https://a" bundle_endpoint_profile "https_spiffe" {} }"#,
                "endpoint_spiffe_id",
            ),
            (
                r#"federates_with "a" { bundle_endpoint_url = "https://a" bundle_endpoint_profile "https_web" { x = 1 } }"#,
                "unknown key",
            ),
        ] {
            let (read, _) = parse(text);
            let error = read.unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
