//! `Debug` of the messages that carry a secret: every field but the secret.

use std::fmt;

use crate::envoy::extensions::transport_sockets::tls::v3 as tls;
use crate::envoy::service::discovery::v3 as discovery;
use crate::spiffe::broker;
use crate::spire::api::agent::delegatedidentity::v1 as delegated;
use crate::spire::api::types;
use crate::workload;

/// Writes `Debug` from the shown and the hidden fields. The pattern names them all, so that a new field has to
/// be put on one side.
macro_rules! redact {
    ($($message:path { $($shown:ident),* } hides $($hidden:ident),+;)*) => {$(
        impl fmt::Debug for $message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let Self { $($shown,)* $($hidden: _,)+ } = self;
                let name = std::any::type_name::<Self>();
                f.debug_struct(name.rsplit_once("::").map_or(name, |(_, last)| last))
                    $(.field(stringify!($shown), $shown))*
                    $(.field(stringify!($hidden), &format_args!("[redacted]")))+
                    .finish()
            }
        }
    )*};
}

redact! {
    workload::X509svid { spiffe_id, x509_svid, bundle, hint } hides x509_svid_key;
    workload::Jwtsvid { spiffe_id, hint } hides svid;
    workload::Witsvid { spiffe_id, wit_svid, hint } hides wit_svid_key;
    workload::ValidateJwtsvidRequest { audience } hides svid;
    broker::X509svid { spiffe_id, x509_svid, bundle, hint } hides x509_svid_key;
    broker::Jwtsvid { spiffe_id, hint } hides svid;
    delegated::X509svidWithKey { x509_svid } hides x509_svid_key;
    types::AttestationData { r#type } hides payload;
    types::Jwtsvid { id, expires_at, issued_at, hint } hides token;
    discovery::DiscoveryResponse { version_info, canary, type_url, nonce, control_plane } hides resources;
    discovery::Resource { version, name, aliases, ttl } hides resource;
    tls::TlsCertificate { certificate_chain } hides private_key;
    tls::TlsSessionTicketKeys {} hides keys;
    tls::GenericSecret {} hides secret;
}

#[cfg(test)]
mod tests {
    use prost::bytes::Bytes;

    use super::*;
    use crate::envoy::config::core::v3::{DataSource, data_source::Specifier};

    const SECRET: &str = "hush";
    /// How `Vec<u8>` shows the secret.
    const SECRET_LIST: &str = "104, 117, 115, 104";

    #[test]
    fn debug_shows_the_fields_and_hides_the_key() {
        let svid = workload::X509svid {
            spiffe_id: "spiffe://example.org/web".to_owned(),
            x509_svid_key: Bytes::from_static(SECRET.as_bytes()),
            hint: "internal".to_owned(),
            ..Default::default()
        };
        let response = workload::X509svidResponse {
            svids: vec![svid],
            ..Default::default()
        };
        let text = format!("{response:?}");
        assert!(
            text.contains("X509svid { spiffe_id: \"spiffe://example.org/web\""),
            "{text}"
        );
        assert!(
            text.contains("hint: \"internal\", x509_svid_key: [redacted] }"),
            "{text}"
        );
        assert!(!text.contains(SECRET), "{text}");
    }

    #[test]
    fn no_message_shows_its_secret() {
        let text = || SECRET.to_owned();
        let shared = || Bytes::from_static(SECRET.as_bytes());
        let source = || DataSource {
            specifier: Some(Specifier::InlineBytes(shared())),
        };
        let any = || prost_types::Any {
            type_url: String::new(),
            value: SECRET.into(),
        };
        let shown = [
            format!(
                "{:?}",
                workload::Jwtsvid {
                    svid: text(),
                    ..Default::default()
                }
            ),
            format!(
                "{:?}",
                workload::Witsvid {
                    wit_svid_key: text(),
                    ..Default::default()
                }
            ),
            format!(
                "{:?}",
                workload::ValidateJwtsvidRequest {
                    svid: text(),
                    ..Default::default()
                }
            ),
            format!(
                "{:?}",
                broker::X509svid {
                    x509_svid_key: SECRET.into(),
                    ..Default::default()
                }
            ),
            format!(
                "{:?}",
                broker::Jwtsvid {
                    svid: text(),
                    ..Default::default()
                }
            ),
            format!(
                "{:?}",
                delegated::X509svidWithKey {
                    x509_svid_key: shared(),
                    ..Default::default()
                }
            ),
            format!(
                "{:?}",
                types::AttestationData {
                    payload: SECRET.into(),
                    ..Default::default()
                }
            ),
            format!(
                "{:?}",
                types::Jwtsvid {
                    token: text(),
                    ..Default::default()
                }
            ),
            format!(
                "{:?}",
                discovery::DiscoveryResponse {
                    resources: vec![any()],
                    ..Default::default()
                }
            ),
            format!(
                "{:?}",
                discovery::Resource {
                    resource: Some(any()),
                    ..Default::default()
                }
            ),
            format!(
                "{:?}",
                tls::TlsCertificate {
                    private_key: Some(source()),
                    ..Default::default()
                }
            ),
            format!("{:?}", tls::TlsSessionTicketKeys { keys: vec![source()] }),
            format!(
                "{:?}",
                tls::GenericSecret {
                    secret: Some(source())
                }
            ),
        ];
        for text in shown {
            assert!(text.contains("[redacted]"), "{text}");
            assert!(!text.contains(SECRET) && !text.contains(SECRET_LIST), "{text}");
        }
    }
}
