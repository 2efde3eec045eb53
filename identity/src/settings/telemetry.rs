//! The `telemetry` block, which is the same for server and agent.

use std::path::PathBuf;

use super::Section;
use crate::metrics::Filter;
use crate::spiffe_id::SpiffeId;

/// Where a collector listens unless the configuration says otherwise.
pub const DEFAULT_COLLECTOR: &str = "http://127.0.0.1:4317";
/// The variable that is used when there is no `OpenTelemetry.endpoint`.
pub const COLLECTOR_VARIABLE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// What operators watch the process by.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Telemetry {
    /// `Prometheus`, when it is there.
    pub prometheus: Option<Prometheus>,
    /// `OpenTelemetry`, when it is there.
    pub open_telemetry: Option<OpenTelemetry>,
    /// `MetricPrefix`
    pub metric_prefix: Option<String>,
    /// `EnableTrustDomainLabel`
    pub trust_domain_label: bool,
    /// `EnableHostnameLabel` switched off.
    pub without_hostname_label: bool,
    /// `AllowedPrefixes` and its companions.
    pub filter: Filter,
}

/// The listener that Prometheus scrapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prometheus {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// TLS, when it is on.
    pub tls: Option<PrometheusTls>,
}

/// How the listener proves itself, and who may scrape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrometheusTls {
    /// With a certificate of the operator's.
    Files {
        /// `cert_file`
        cert_file: PathBuf,
        /// `key_file`
        key_file: PathBuf,
        /// `client_ca_file`: who signs the certificates of those who may scrape.
        client_ca_file: Option<PathBuf>,
    },
    /// With the process's own SVID (`use_spire_svid`).
    OwnSvid {
        /// `authorized_spiffe_ids`: who may scrape; anybody when empty.
        authorized: Vec<SpiffeId>,
    },
}

/// Traces, sent over OTLP. A block of our own.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenTelemetry {
    /// `endpoint`
    pub endpoint: Option<String>,
    /// `service_name`
    pub service_name: Option<String>,
    /// `sample_ratio`
    pub sample_ratio: f64,
}

impl Telemetry {
    /// Reads the block.
    pub fn read(section: Section<'_>, warnings: &mut Vec<String>) -> Self {
        refuse_unserved(&section);
        if section.ignore("InMem") {
            warnings.push(
                "telemetry.InMem: metrics are kept in memory in any case and shown by Prometheus alone; the block has no effect"
                    .to_owned(),
            );
        }
        let read = Self {
            prometheus: section.section("Prometheus").and_then(Prometheus::read),
            open_telemetry: section.section("OpenTelemetry").map(OpenTelemetry::read),
            metric_prefix: section.string("MetricPrefix"),
            trust_domain_label: section.bool("EnableTrustDomainLabel").unwrap_or_default(),
            without_hostname_label: section.bool("EnableHostnameLabel") == Some(false),
            filter: Filter {
                allowed_prefixes: section.strings("AllowedPrefixes"),
                blocked_prefixes: section.strings("BlockedPrefixes"),
                allowed_labels: section.strings("AllowedLabels"),
                blocked_labels: section.strings("BlockedLabels"),
            },
        };
        section.finish();
        read
    }

    /// Takes the collector's endpoint from a variable when the block is there and does not name one.
    #[must_use]
    pub fn with_variables(mut self, variable: &dyn Fn(&str) -> Option<String>) -> Self {
        if let Some(traces) = &mut self.open_telemetry
            && traces.endpoint.is_none()
        {
            traces.endpoint = variable(COLLECTOR_VARIABLE).filter(|value| !value.is_empty());
        }
        self
    }
}

impl OpenTelemetry {
    /// Where spans are sent.
    ///
    /// # Errors
    /// What is wrong with an endpoint that a variable supplied.
    pub fn collector(&self) -> Result<String, String> {
        match &self.endpoint {
            None => Ok(DEFAULT_COLLECTOR.to_owned()),
            Some(endpoint) => collector(endpoint),
        }
    }

    fn read(section: Section<'_>) -> Self {
        let ratio = section.parse("sample_ratio", |text| {
            let ratio: Option<f64> = text.parse().ok();
            ratio
                .filter(|ratio| (0.0..=1.0).contains(ratio))
                .ok_or_else(|| format!("must be a number from 0 to 1: {text}"))
        });
        let read = Self {
            endpoint: section.parse("endpoint", collector),
            service_name: section.string("service_name"),
            sample_ratio: ratio.unwrap_or(1.0),
        };
        section.finish();
        read
    }
}

impl Prometheus {
    fn read(section: Section<'_>) -> Option<Self> {
        let host = section.string("host");
        let port = section.u16("port").filter(|port| *port != 0);
        if port.is_none() {
            section.problem("port", "is required: where Prometheus scrapes");
        }
        let tls = section.section("tls").and_then(PrometheusTls::read);
        section.finish();
        Some(Self {
            host: host.unwrap_or_else(|| "localhost".to_owned()),
            port: port?,
            tls,
        })
    }
}

impl PrometheusTls {
    fn read(section: Section<'_>) -> Option<Self> {
        let file = |key: &str| section.string(key).map(PathBuf::from);
        let (cert_file, key_file, client_ca_file) =
            (file("cert_file"), file("key_file"), file("client_ca_file"));
        let own_svid = section.bool("use_spire_svid").unwrap_or_default();
        let authorized = section.parse_each("authorized_spiffe_ids", SpiffeId::parse);
        let refuse = |key: &str, text: &str| section.problem(key, text.to_owned());
        let read = if own_svid {
            for (key, is_set) in [
                ("cert_file", cert_file.is_some()),
                ("key_file", key_file.is_some()),
                ("client_ca_file", client_ca_file.is_some()),
            ] {
                if is_set {
                    refuse(key, "cannot be used together with use_spire_svid");
                }
            }
            Some(Self::OwnSvid { authorized })
        } else {
            if !authorized.is_empty() {
                refuse("authorized_spiffe_ids", "can only be used with use_spire_svid");
            }
            match (cert_file, key_file) {
                (Some(cert_file), Some(key_file)) => Some(Self::Files {
                    cert_file,
                    key_file,
                    client_ca_file,
                }),
                _ => {
                    refuse(
                        "cert_file",
                        "is required, with key_file, unless use_spire_svid is set",
                    );
                    None
                }
            }
        };
        section.finish();
        read
    }
}

/// A start that fails is better than metrics that are never sent.
fn refuse_unserved(section: &Section<'_>) {
    for key in ["DogStatsd", "Statsd", "M3"] {
        if section.ignore(key) {
            section.problem(
                key,
                format!("metrics are not sent to {key}: use Prometheus, or a collector that scrapes it and sends on"),
            );
        }
    }
}

fn collector(endpoint: &str) -> Result<String, String> {
    if endpoint.starts_with("https://") {
        return Err(format!(
            "TLS to the collector is not served, use one on this machine: {endpoint}"
        ));
    }
    let uri: Option<http::Uri> = endpoint.parse().ok();
    let is_plain = uri.is_some_and(|uri| {
        uri.scheme_str() == Some("http") && uri.host().is_some_and(|host| !host.is_empty())
    });
    if is_plain {
        Ok(endpoint.to_owned())
    } else {
        Err(format!("must be a URL like {DEFAULT_COLLECTOR}: {endpoint}"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Document, Format, Problems};
    use super::*;

    fn read(text: &str) -> Result<(Telemetry, Vec<String>), String> {
        let document = Document::parse(&format!("telemetry {{ {text} }}"), Format::Hcl).unwrap();
        let problems = Problems::new();
        let root = document.section(&problems);
        let mut warnings = Vec::new();
        let read = Telemetry::read(root.section("telemetry").unwrap(), &mut warnings);
        root.finish();
        problems.into_result().map_err(|error| error.to_string())?;
        Ok((read, warnings))
    }

    #[test]
    fn everything_of_spires_that_is_served_is_read() {
        let (telemetry, warnings) = read(
            r#"Prometheus { port = 9988 }
               MetricPrefix = "corp" EnableTrustDomainLabel = true EnableHostnameLabel = false
               AllowedPrefixes = ["a"] BlockedPrefixes = ["b"] AllowedLabels = ["c"] BlockedLabels = ["d"]"#,
        )
        .unwrap();
        let prometheus = telemetry.prometheus.unwrap();
        assert_eq!((prometheus.host.as_str(), prometheus.port), ("localhost", 9988));
        assert_eq!(prometheus.tls, None);
        assert_eq!(telemetry.metric_prefix.as_deref(), Some("corp"));
        assert!(telemetry.trust_domain_label && telemetry.without_hostname_label);
        assert_eq!(telemetry.filter.blocked_labels, ["d"]);
        assert_eq!(warnings, [""; 0]);
        assert_eq!(read("InMem {}").unwrap().1.len(), 1);
    }

    #[test]
    fn sinks_that_are_not_served_are_refused_by_name() {
        for sink in ["DogStatsd", "Statsd", "M3"] {
            let error = read(&format!(r#"{sink} = [ {{ address = "localhost:1" }} ]"#)).unwrap_err();
            assert!(error.contains(&format!("telemetry.{sink}")), "{error}");
            assert!(error.contains("use Prometheus"), "{error}");
        }
    }

    #[test]
    fn tls_is_with_files_or_with_the_own_svid_and_never_both() {
        let tls = |text: &str| {
            let read = read(&format!("Prometheus {{ port = 1 tls {{ {text} }} }}"));
            read.map(|(telemetry, _)| telemetry.prometheus.unwrap().tls.unwrap())
        };
        assert!(matches!(
            tls(r#"cert_file = "/c" key_file = "/k" client_ca_file = "/a""#).unwrap(),
            PrometheusTls::Files {
                client_ca_file: Some(_),
                ..
            }
        ));
        let own = tls(r#"use_spire_svid = true authorized_spiffe_ids = ["spiffe://a/prometheus"]"#).unwrap();
        assert!(matches!(own, PrometheusTls::OwnSvid { authorized } if authorized.len() == 1));
        for wrong in [
            "",
            r#"cert_file = "/c""#,
            r#"use_spire_svid = true key_file = "/k""#,
            r#"cert_file = "/c" key_file = "/k" authorized_spiffe_ids = ["spiffe://a/b"]"#,
            r#"use_spire_svid = true authorized_spiffe_ids = ["x"]"#,
        ] {
            assert!(tls(wrong).is_err(), "{wrong}");
        }
        assert!(read("Prometheus {}").unwrap_err().contains("Prometheus.port"));
    }

    #[test]
    fn the_collectors_endpoint_comes_from_the_block_then_the_variable_then_the_default() {
        let of = |text: &str| {
            let telemetry = read(text).unwrap().0;
            let telemetry = telemetry.with_variables(&|name| {
                (name == COLLECTOR_VARIABLE).then(|| "http://collector:4317".to_owned())
            });
            telemetry.open_telemetry.map(|traces| traces.collector().unwrap())
        };
        assert_eq!(of(""), None, "a variable alone switches nothing on");
        assert_eq!(of("OpenTelemetry {}").unwrap(), "http://collector:4317");
        let own = of(r#"OpenTelemetry { endpoint = "http://10.0.0.1:4317" }"#);
        assert_eq!(own.unwrap(), "http://10.0.0.1:4317");
        let none = read("OpenTelemetry {}").unwrap().0.open_telemetry.unwrap();
        assert_eq!(none.collector().unwrap(), DEFAULT_COLLECTOR);
        for wrong in ["https://a:1", "a:4317", "http://", "ftp://a"] {
            let error = read(&format!(r#"OpenTelemetry {{ endpoint = "{wrong}" }}"#)).unwrap_err();
            assert!(error.contains(wrong), "{error}");
        }
        assert!(read("OpenTelemetry { sample_ratio = 1.5 }").is_err());
        let ratio = read("OpenTelemetry { sample_ratio = 0.1 }").unwrap().0;
        assert!((ratio.open_telemetry.unwrap().sample_ratio - 0.1).abs() < 1e-9);
    }
}
