//! What Envoy relies on: the protocols without a socket, and the service over a real one.

mod contents;
mod delta;
mod service;
mod state_of_the_world;

use std::sync::Arc;
use std::time::Duration;

use finial_proto::envoy::config::core::v3::DataSource;
use finial_proto::envoy::config::core::v3::data_source::Specifier;
use finial_proto::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use finial_proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret as SecretMessage, SpiffeCertValidatorConfig,
};
use prost::Message as _;
use prost_types::Any;

use super::exchange::Protocol;
use super::node::Validator;
use super::secrets::{self, Asked, Found, SECRET_TYPE};
use super::*;
use crate::endpoints::session::View;
use crate::endpoints::testing::{Foreign, World, selectors};

const A: &str = "spiffe://example.org/a";
const B: &str = "spiffe://example.org/b";
const OWN: &str = "spiffe://example.org";

/// Far more than any answer of these tests takes.
const PATIENCE: Duration = Duration::from_secs(30);

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work)
        .await
        .expect("an answer in time")
}

/// What `unix:uid:1000` sees now.
fn view(world: &World) -> Arc<View> {
    Sessions::new(world.parts()).view(selectors(&["unix:uid:1000"]))
}

fn asked(names: &[&str]) -> Asked {
    Asked {
        everything: names.is_empty(),
        names: names.iter().map(ToString::to_string).collect(),
    }
}

fn found(world: &World, asked: &Asked) -> Found {
    secrets::find(asked, &view(world), &world.sds, Validator::Spiffe).unwrap()
}

/// Lets a protocol look at the world once, as the loop does after each event; gives the bytes that it sends.
fn step<P: Protocol>(protocol: &mut P, world: &World, nonce: &str) -> Option<Bytes> {
    let view = view(world);
    let validator = protocol.requester().validator;
    let found = secrets::find(protocol.asked()?, &view, &world.sds, validator).unwrap();
    let is_gone = |name: &str| secrets::is_gone(name, &view, &world.sds);
    let reply = protocol.reply(&found, &is_gone, nonce.to_owned())?;
    Some(protocol.sent(reply))
}

fn decode(resource: &Any) -> SecretMessage {
    assert_eq!(resource.type_url, SECRET_TYPE);
    SecretMessage::decode(&*resource.value).unwrap()
}

fn inline(source: Option<&DataSource>) -> String {
    match source.and_then(|source| source.specifier.as_ref()) {
        Some(Specifier::InlineBytes(bytes)) => String::from_utf8(bytes.to_vec()).unwrap(),
        other => panic!("not inline bytes: {other:?}"),
    }
}

/// Chain and key.
fn certificate(secret: &SecretMessage) -> (String, String) {
    let Some(Type::TlsCertificate(certificate)) = &secret.r#type else {
        panic!("not a certificate: {secret:?}");
    };
    (
        inline(certificate.certificate_chain.as_ref()),
        inline(certificate.private_key.as_ref()),
    )
}

fn context(secret: &SecretMessage) -> &CertificateValidationContext {
    let Some(Type::ValidationContext(context)) = &secret.r#type else {
        panic!("not a validation context: {secret:?}");
    };
    context
}

/// Trust domains and their authorities, in the order of the message.
fn trust_domains(secret: &SecretMessage) -> Vec<(String, String)> {
    let context = context(secret);
    assert_eq!(context.trusted_ca, None);
    let extension = context.custom_validator_config.as_ref().unwrap();
    assert_eq!(extension.name, "envoy.tls.cert_validator.spiffe");
    let config = extension.typed_config.as_ref().unwrap();
    assert_eq!(
        config.type_url,
        "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig"
    );
    let config = SpiffeCertValidatorConfig::decode(&*config.value).unwrap();
    let domains = config.trust_domains.into_iter();
    domains
        .map(|domain| (domain.name, inline(domain.trust_bundle.as_ref())))
        .collect()
}
