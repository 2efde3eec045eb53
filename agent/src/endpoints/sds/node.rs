//! The `node` message of an Envoy.

use finial_proto::envoy::config::core::v3::Node;
use finial_proto::envoy::config::core::v3::node::UserAgentVersionType;
use prost_types::value::Kind;

use crate::config::SdsSettings;

/// Key of a node's metadata that decides like the setting of the same name, for this node alone.
const DISABLE_SPIFFE_VALIDATION: &str = "disable_spiffe_cert_validation";
/// The first Envoy that has the SPIFFE certificate validator.
const FIRST_WITH_SPIFFE_VALIDATOR: (u32, u32) = (1, 18);
/// Characters of a node's id that are logged.
const LOGGED_ID: usize = 128;

/// How a bundle is wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validator {
    /// For the extension `envoy.tls.cert_validator.spiffe`: authorities by trust domain.
    Spiffe,
    /// Plain `trusted_ca`: authorities of one trust domain.
    TrustedCa,
}

/// The client of a stream. A request may leave it out when an earlier one said it.
#[derive(Clone, Debug)]
pub struct Requester {
    /// For the log: what it calls itself.
    pub id: String,
    /// How bundles are wrapped for it.
    pub validator: Validator,
}

impl Requester {
    /// One that has said nothing about itself.
    pub(super) fn unknown(settings: &SdsSettings) -> Self {
        Self {
            id: String::new(),
            validator: Validator::unless(settings.disable_spiffe_cert_validation),
        }
    }

    /// One that has sent `node`.
    pub(super) fn of(node: &Node, settings: &SdsSettings) -> Self {
        let disabled = metadata_bool(node).unwrap_or(settings.disable_spiffe_cert_validation);
        Self {
            id: node.id.chars().take(LOGGED_ID).collect(),
            validator: Validator::unless(disabled || lacks_spiffe_validator(node)),
        }
    }
}

impl Validator {
    fn unless(disabled: bool) -> Self {
        if disabled { Self::TrustedCa } else { Self::Spiffe }
    }
}

/// A boolean, or a text that Go's `strconv.ParseBool` takes for one, as SPIRE reads it.
fn metadata_bool(node: &Node) -> Option<bool> {
    let value = node.metadata.as_ref()?.fields.get(DISABLE_SPIFFE_VALIDATION)?;
    match value.kind.as_ref()? {
        Kind::BoolValue(value) => Some(*value),
        Kind::StringValue(text) => match text.as_str() {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// Whether it says that it is too old. One that says nothing is taken for a new one.
fn lacks_spiffe_validator(node: &Node) -> bool {
    let Some(UserAgentVersionType::UserAgentBuildVersion(build)) = &node.user_agent_version_type else {
        return false;
    };
    let version = build.version.as_ref();
    version.is_some_and(|version| (version.major_number, version.minor_number) < FIRST_WITH_SPIFFE_VALIDATOR)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use finial_proto::envoy::config::core::v3::BuildVersion;
    use finial_proto::envoy::r#type::v3::SemanticVersion;

    use super::*;

    fn node(value: Option<Kind>, version: Option<(u32, u32)>) -> Node {
        let field = |kind| {
            (
                DISABLE_SPIFFE_VALIDATION.to_owned(),
                prost_types::Value { kind: Some(kind) },
            )
        };
        Node {
            id: "sidecar".to_owned(),
            metadata: value.map(|kind| prost_types::Struct {
                fields: BTreeMap::from([field(kind)]),
            }),
            user_agent_version_type: version.map(|(major_number, minor_number)| {
                UserAgentVersionType::UserAgentBuildVersion(BuildVersion {
                    version: Some(SemanticVersion {
                        major_number,
                        minor_number,
                        patch: 9,
                    }),
                    metadata: None,
                })
            }),
            ..Default::default()
        }
    }

    fn validator(value: Option<Kind>, version: Option<(u32, u32)>, disabled: bool) -> Validator {
        let settings = SdsSettings {
            disable_spiffe_cert_validation: disabled,
            ..SdsSettings::default()
        };
        Requester::of(&node(value, version), &settings).validator
    }

    #[test]
    fn the_setting_decides_for_nodes_that_say_nothing() {
        assert_eq!(validator(None, None, false), Validator::Spiffe);
        assert_eq!(validator(None, None, true), Validator::TrustedCa);
        assert_eq!(
            validator(Some(Kind::StringValue("maybe".into())), None, true),
            Validator::TrustedCa
        );
        assert_eq!(
            validator(Some(Kind::NumberValue(1.0)), None, false),
            Validator::Spiffe
        );
    }

    #[test]
    fn metadata_switches_either_way_as_boolean_or_text() {
        for (kind, want) in [
            (Kind::BoolValue(true), Validator::TrustedCa),
            (Kind::BoolValue(false), Validator::Spiffe),
            (Kind::StringValue("true".into()), Validator::TrustedCa),
            (Kind::StringValue("F".into()), Validator::Spiffe),
        ] {
            for setting in [false, true] {
                assert_eq!(
                    validator(Some(kind.clone()), None, setting),
                    want,
                    "{kind:?} {setting}"
                );
            }
        }
    }

    #[test]
    fn an_envoy_before_1_18_gets_plain_authorities_whatever_it_says() {
        assert_eq!(validator(None, Some((1, 17)), false), Validator::TrustedCa);
        assert_eq!(
            validator(Some(Kind::BoolValue(false)), Some((1, 17)), false),
            Validator::TrustedCa
        );
        assert_eq!(validator(None, Some((1, 18)), false), Validator::Spiffe);
        assert_eq!(validator(None, Some((2, 0)), false), Validator::Spiffe);
    }

    #[test]
    fn a_long_id_is_cut_for_the_log() {
        let node = Node {
            id: "x".repeat(100_000),
            ..Default::default()
        };
        assert_eq!(Requester::of(&node, &SdsSettings::default()).id.len(), LOGGED_ID);
    }
}
