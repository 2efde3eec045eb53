//! `experimental.broker`: the SPIFFE Broker API, and who may use it.

use std::path::{Path, PathBuf};

use finial_identity::settings::Section;
use finial_identity::spiffe_id::SpiffeId;

use super::admin::is_beside;

/// The `type_url` of a process on this machine.
pub const PID_REFERENCE: &str = "type.googleapis.com/spiffe.broker.WorkloadPIDReference";
/// The `type_url` of an object of Kubernetes.
pub const OBJECT_REFERENCE: &str = "type.googleapis.com/spiffe.broker.KubernetesObjectReference";

/// Means every type of reference.
const EVERY_TYPE: &str = "*";

/// The Broker API, when it is on. At least one of the two addresses is set, and there is a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerSettings {
    /// `socket_path`: a Unix socket for brokers on this machine.
    pub socket_path: Option<PathBuf>,
    /// `bind_address`: a TCP address.
    pub bind_address: Option<BindAddress>,
    /// `brokers`: the only programs that may call.
    pub brokers: Vec<AllowedBroker>,
}

/// `host:port`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindAddress {
    /// A name or an address, without brackets; `None` is every address of this machine.
    pub host: Option<String>,
    /// The port; 0 is any that is free.
    pub port: u16,
}

/// Who may call, and what about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedBroker {
    /// `id`: the SPIFFE ID of its X509-SVID, of any trust domain.
    pub id: SpiffeId,
    /// `allowed_reference_types`
    pub references: Vec<AllowedReference>,
}

/// A type of references that a broker may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedReference {
    /// `type_url`; `None` is every type (`*`), and then the only one.
    pub type_url: Option<String>,
    /// `allow_over_tcp`: also by calls that come over TCP.
    pub allow_over_tcp: bool,
}

/// What the `experimental` block says. `None` when the API is off, or something was reported.
pub(super) fn read(
    experimental: &Section<'_>,
    public_socket: &Path,
    warnings: &mut Vec<String>,
) -> Option<BrokerSettings> {
    let block = experimental.section("broker")?;
    let socket_path = block.string("socket_path").map(PathBuf::from);
    let bind_address = block.parse("bind_address", BindAddress::parse);
    if !block.has("socket_path") && !block.has("bind_address") {
        experimental.problem("broker", "requires socket_path, bind_address, or both");
    }
    if let Some(path) = &socket_path {
        match is_beside(path, public_socket) {
            Ok(false) => {}
            Ok(true) => block.problem(
                "socket_path",
                "must not be in the directory of the Workload API's socket or below it, which is shared with workloads",
            ),
            Err(error) => block.problem("socket_path", format!("cannot be made absolute: {error}")),
        }
    }
    let brokers = read_brokers(&block, warnings);
    block.finish();
    Some(BrokerSettings {
        socket_path,
        bind_address,
        brokers,
    })
}

fn read_brokers(block: &Section<'_>, warnings: &mut Vec<String>) -> Vec<AllowedBroker> {
    let mut brokers: Vec<AllowedBroker> = Vec::new();
    let listed = block.sections("brokers");
    if listed.is_empty() {
        block.problem("brokers", "at least one broker is required");
    }
    for broker in listed {
        let id = broker.required_parse("id", SpiffeId::parse);
        let references = read_references(&broker, warnings);
        match id {
            None => {}
            Some(id) if !id.has_path() => {
                broker.problem("id", format!("is a trust domain, which is nobody: {id}"));
            }
            Some(id) if brokers.iter().any(|other| other.id == id) => {
                broker.problem("id", format!("stands twice: {id}"));
            }
            Some(id) => brokers.push(AllowedBroker { id, references }),
        }
        broker.finish();
    }
    brokers
}

fn read_references(broker: &Section<'_>, warnings: &mut Vec<String>) -> Vec<AllowedReference> {
    let mut references: Vec<AllowedReference> = Vec::new();
    let listed = broker.sections("allowed_reference_types");
    if listed.is_empty() {
        broker.problem(
            "allowed_reference_types",
            "at least one type of references is required",
        );
    }
    let is_alone = listed.len() == 1;
    for reference in listed {
        let type_url = reference.required_string("type_url");
        let allow_over_tcp = reference.bool("allow_over_tcp").unwrap_or_default();
        if let Some(type_url) = type_url {
            let every = type_url == EVERY_TYPE;
            if !every && type_url != PID_REFERENCE {
                warnings.push(format!(
                    "{}.type_url: no attestor of this version knows such workloads: {type_url}",
                    reference.path()
                ));
            }
            if every && !is_alone {
                reference.problem("type_url", "`*` must be the only type of references");
            }
            let type_url = (!every).then_some(type_url);
            if references.iter().any(|other| other.type_url == type_url) {
                reference.problem("type_url", "stands twice");
            }
            references.push(AllowedReference {
                type_url,
                allow_over_tcp,
            });
        }
        reference.finish();
    }
    references
}

impl BindAddress {
    /// Reads `host:port`; an IPv6 address is in brackets.
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("must be an address and a port, like 127.0.0.1:8443: {text:?}");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_error| wrong())?;
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = match inner {
            Some(address) => Some(address),
            None if host.contains([':', '[', ']', '/']) => return Err(wrong()),
            None if host.is_empty() => None,
            None => Some(host),
        };
        Ok(Self {
            host: host.map(str::to_owned),
            port,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_port_and_perhaps_a_host() {
        for (text, host, port) in [
            ("127.0.0.1:8443", Some("127.0.0.1"), 8443),
            ("0.0.0.0:0", Some("0.0.0.0"), 0),
            ("localhost:1", Some("localhost"), 1),
            ("[::1]:8443", Some("::1"), 8443),
            (":8443", None, 8443),
        ] {
            let expected = BindAddress {
                host: host.map(str::to_owned),
                port,
            };
            assert_eq!(BindAddress::parse(text), Ok(expected));
        }
        for text in [
            "127.0.0.1",
            "127.0.0.1:",
            "a:65536",
            "::1:8443",
            "[::1",
            "tcp://a:1",
        ] {
            assert!(BindAddress::parse(text).is_err(), "{text}");
        }
    }
}
