//! The two unary calls of the JWT profile.

use std::collections::BTreeMap;

use bytes::Bytes;
use finial_identity::jwt;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use finial_proto::workload::{
    Jwtsvid, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest, ValidateJwtsvidResponse,
};
use prost::Message as _;
use prost_types::value::Kind;
use serde_json::{Map, Value};
use time::Duration;
use tonic::{Request, Status};
use zeroize::Zeroizing;

use crate::endpoints::jwt_svids::{check_audience, obtain};
use crate::endpoints::session::{Access, Session, Sessions, denied};
use crate::svids::{CachedEntry, SignedJwt};

/// Difference of clocks that is tolerated when a token is validated.
const LEEWAY: Duration = Duration::seconds(60);
/// Claims that a token of another trust domain keeps (Workload API §6.2.3).
const ALWAYS_RETURNED: [&str; 3] = ["sub", "aud", "exp"];

/// `FetchJWTSVID`: one token for each identity of the caller, or for the one it names.
pub(super) async fn fetch(sessions: Sessions, request: Request<JwtsvidRequest>) -> Result<Bytes, Status> {
    let JwtsvidRequest { audience, spiffe_id } = request.get_ref();
    check_audience(audience)?;
    let only = requested_identity(spiffe_id)?;
    let session = Session::open(&sessions, &request, Access::Identities).await?;
    tokens(&sessions, session, audience, only).await
}

/// The identity that a request names, if it names one.
///
/// # Errors
/// `InvalidArgument` for what is no SPIFFE ID.
pub(in crate::endpoints) fn requested_identity(spiffe_id: &str) -> Result<Option<SpiffeId>, Status> {
    if spiffe_id.is_empty() {
        return Ok(None);
    }
    let parsed = SpiffeId::parse(spiffe_id);
    parsed
        .map(Some)
        .map_err(|error| Status::invalid_argument(format!("invalid requested SPIFFE ID: {error}")))
}

/// `JWTSVIDResponse`, with a token for each identity of a session, or for `only` one.
///
/// # Errors
/// `PermissionDenied` without such an identity; `Unavailable` when a token cannot be obtained.
pub(in crate::endpoints) async fn tokens(
    sessions: &Sessions,
    mut session: Session,
    audience: &[String],
    only: Option<SpiffeId>,
) -> Result<Bytes, Status> {
    let view = session.view().await?;
    let entries: Vec<_> = view
        .entries()
        .iter()
        .filter(|entry| only.as_ref().is_none_or(|only| entry.spiffe_id == *only))
        .cloned()
        .collect();
    if entries.is_empty() {
        return Err(session.refused(denied()));
    }
    // Both may take long, and whoever has ended meanwhile gets nothing, though its socket may live on elsewhere.
    let obtained = session.during(async {
        session.signing_turns(&entries, audience).await;
        let make = |entry: &CachedEntry, jwt: SignedJwt| Jwtsvid {
            spiffe_id: entry.spiffe_id.to_string(),
            svid: jwt.token.to_string(),
            hint: entry.hint.clone(),
        };
        obtain(sessions.svids(), entries.clone(), audience, make).await
    });
    let svids = obtained.await??;
    let encoded = Zeroizing::new(JwtsvidResponse { svids }.encode_to_vec());
    Ok(Bytes::from_owner(encoded))
}

/// `ValidateJWTSVID`: against the own bundle and those that the caller's identities federate with.
pub(super) async fn validate(
    sessions: Sessions,
    request: Request<ValidateJwtsvidRequest>,
) -> Result<Bytes, Status> {
    let ValidateJwtsvidRequest { audience, svid } = request.get_ref();
    if audience.is_empty() {
        return Err(Status::invalid_argument("audience must be specified"));
    }
    if svid.is_empty() {
        return Err(Status::invalid_argument("svid must be specified"));
    }
    let mut session = Session::open(&sessions, &request, Access::Validation).await?;
    let view = session.view().await?;
    let keys = |name: &TrustDomain| {
        let bundle = view.bundle(name)?;
        Some(bundle.jwt_authorities.clone())
    };
    let now = sessions.clock().now();
    let validated = jwt::validate(svid, &keys, &[audience], now, LEEWAY)
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    let mut claims = validated.claims;
    if !view.is_own(validated.spiffe_id.trust_domain()) {
        let allowed = &sessions.policy().allowed_foreign_jwt_claims;
        claims.retain(|name, _| ALWAYS_RETURNED.contains(&name.as_str()) || allowed.contains(name));
    }
    if let Some(audience @ Value::String(_)) = claims.get_mut("aud") {
        *audience = Value::Array(vec![audience.take()]);
    }
    let answer = ValidateJwtsvidResponse {
        spiffe_id: validated.spiffe_id.to_string(),
        claims: Some(structure(claims)),
    };
    Ok(Bytes::from(answer.encode_to_vec()))
}

fn structure(claims: Map<String, Value>) -> prost_types::Struct {
    let fields: BTreeMap<String, prost_types::Value> = claims
        .into_iter()
        .map(|(name, value)| (name, to_struct_value(value)))
        .collect();
    prost_types::Struct { fields }
}

/// Nesting is bounded by the parser of the token.
fn to_struct_value(value: Value) -> prost_types::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(value),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(items) => Kind::ListValue(prost_types::ListValue {
            values: items.into_iter().map(to_struct_value).collect(),
        }),
        Value::Object(members) => Kind::StructValue(structure(members)),
    };
    prost_types::Value { kind: Some(kind) }
}
