//! JSON text of protobuf messages, as the commands of SPIRE print it with `-output json`.
//!
//! Field names are those of the `.proto` files (`snake_case`), unset fields are written with their zero value,
//! 64-bit integers are text, `bytes` are base64, enum values are names. A `null` never appears: message fields
//! that are not set are left out. Keys are sorted.

use std::sync::LazyLock;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::Value;

/// Renders one message. `full_name` is the protobuf name with its package, such as
/// `spire.api.server.entry.v1.CountEntriesResponse`, or `X509SVIDResponse` where there is no package.
///
/// # Errors
/// When the name is not in the schema or the bytes are not such a message.
pub fn render(full_name: &str, encoded: &[u8]) -> Result<Value, JsonError> {
    let descriptor = POOL
        .get_message_by_name(full_name)
        .ok_or_else(|| JsonError::UnknownMessage(full_name.to_owned()))?;
    let message = DynamicMessage::decode(descriptor, encoded)?;
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .stringify_64_bit_integers(true)
        .skip_default_fields(false);
    let mut value = message.serialize_with_options(serde_json::value::Serializer, &options)?;
    remove_nulls(&mut value);
    Ok(value)
}

/// Renders a message that is at hand as a Rust value; [`render`] says how.
///
/// # Errors
/// When `full_name` is not the name of this message.
pub fn render_message<M: Message>(full_name: &str, message: &M) -> Result<Value, JsonError> {
    render(full_name, &message.encode_to_vec())
}

/// Why a message could not be rendered.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// No message of this name in the schema.
    #[error("no such message in the schema: {0}")]
    UnknownMessage(String),
    /// The bytes are not a message of this type.
    #[error("decode message")]
    Decode(#[from] prost::DecodeError),
    /// The message has no form in JSON, such as a `Struct` with an infinite number.
    #[error("write message as JSON")]
    Json(#[from] serde_json::Error),
}

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(finial_proto::FILE_DESCRIPTOR_SET)
        .expect("the build wrote the descriptor set from files that it compiled")
});

fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(remove_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use finial_proto::spire::api::types;
    use serde_json::json;

    use super::*;

    #[test]
    fn writes_unset_fields_and_leaves_out_unset_messages() {
        let entry = types::Entry {
            id: "a".to_owned(),
            expires_at: 7,
            spiffe_id: Some(types::Spiffeid {
                trust_domain: "td".to_owned(),
                path: "/p".to_owned(),
            }),
            ..Default::default()
        };
        let value = render_message("spire.api.types.Entry", &entry).unwrap();
        assert_eq!(value["id"], "a");
        assert_eq!(value["expires_at"], "7", "64-bit integers are text");
        assert_eq!(value["x509_svid_ttl"], 0);
        assert_eq!(value["spiffe_id"], json!({"trust_domain": "td", "path": "/p"}));
        assert_eq!(value["selectors"], json!([]));
        assert_eq!(value.get("parent_id"), None);
    }

    #[test]
    fn writes_bytes_as_base64_and_enums_as_names() {
        let authority = types::X509Certificate {
            asn1: vec![0xfb, 0xff],
            tainted: true,
        };
        let value = render_message("spire.api.types.X509Certificate", &authority).unwrap();
        assert_eq!(value, json!({"asn1": "+/8=", "tainted": true}));

        let status = finial_proto::grpc::health::v1::HealthCheckResponse { status: 1 };
        let value = render_message("grpc.health.v1.HealthCheckResponse", &status).unwrap();
        assert_eq!(value, json!({"status": "SERVING"}));
    }

    #[test]
    fn renders_messages_that_have_no_package() {
        let response = finial_proto::workload::JwtsvidResponse {
            svids: vec![Default::default()],
        };
        let value = render_message("JWTSVIDResponse", &response).unwrap();
        assert_eq!(
            value,
            json!({"svids": [{"spiffe_id": "", "svid": "", "hint": ""}]})
        );
    }

    #[test]
    fn refuses_a_name_that_is_not_in_the_schema() {
        assert!(matches!(
            render("spire.api.types.Nothing", &[]),
            Err(JsonError::UnknownMessage(_))
        ));
    }
}
