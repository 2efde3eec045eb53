use finial_proto::workload::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, ValidateJwtsvidResponse,
};
use prost_types::value::Kind;
use serde_json::{Value, json};

use super::*;
use crate::svids::CachedEntry;

async fn tokens(
    served: &Served,
    audience: &[&str],
    spiffe_id: &str,
) -> Result<Vec<(String, String)>, Status> {
    let request = JwtsvidRequest {
        audience: audience.iter().map(ToString::to_string).collect(),
        spiffe_id: spiffe_id.to_owned(),
    };
    let response = in_time(served.client().await.fetch_jwtsvid(request))
        .await?
        .into_inner();
    let svids = response.svids.into_iter();
    Ok(svids.map(|svid| (svid.spiffe_id, svid.svid)).collect())
}

async fn validate(served: &Served, audience: &str, svid: &str) -> Result<ValidateJwtsvidResponse, Status> {
    let request = ValidateJwtsvidRequest {
        audience: audience.to_owned(),
        svid: svid.to_owned(),
    };
    let answer = in_time(served.client().await.validate_jwtsvid(request)).await?;
    Ok(answer.into_inner())
}

fn part(token: &str, index: usize) -> Value {
    let encoded = token.split('.').nth(index).unwrap();
    let bytes = data_encoding::BASE64URL_NOPAD.decode(encoded.as_bytes()).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

#[tokio::test]
async fn rule_3_requests_that_can_never_succeed_are_invalid_arguments() {
    let served = World::new().serve();
    served.world.publish_entries(vec![served.world.entry("a")]);
    let id = "spiffe://example.org/a";
    for (audience, spiffe_id) in [
        (&[][..], id),
        (&[""], id),
        (&["x", ""], id),
        (&["x"], "http://a"),
        (&["x"], "a"),
    ] {
        let status = tokens(&served, audience, spiffe_id).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{audience:?} {spiffe_id}");
    }
    for (audience, svid) in [("", "token"), ("x", ""), ("x", "no.such.token")] {
        let status = validate(&served, audience, svid).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{audience:?} {svid}");
    }
}

#[tokio::test]
async fn rule_4_holds_for_tokens_and_jwt_bundles() {
    let served = World::new().serve();
    let denied = (Code::PermissionDenied, "no identity issued".to_owned());
    let status = tokens(&served, &["x"], "").await.unwrap_err();
    assert_eq!((status.code(), status.message().to_owned()), denied);
    let bundles = served
        .client()
        .await
        .fetch_jwt_bundles(JwtBundlesRequest {})
        .await;
    let status = bundles.unwrap_err();
    assert_eq!((status.code(), status.message().to_owned()), denied);
    served.world.publish_entries(vec![served.world.entry("a")]);
    let status = tokens(&served, &["x"], "spiffe://example.org/other")
        .await
        .unwrap_err();
    assert_eq!((status.code(), status.message().to_owned()), denied);
}

#[tokio::test]
async fn rule_6_a_token_that_cannot_be_signed_is_unavailable() {
    let served = World::new().serve();
    served.world.publish_entries(vec![
        served.world.unissued("a"),
        served.world.unissued("unsignable"),
    ]);
    let status = tokens(&served, &["x"], "").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(
        !status.message().contains("no such entry"),
        "causes stay inside: {status}"
    );
}

#[tokio::test]
async fn one_token_comes_for_each_identity_or_for_the_one_asked_for() {
    let served = World::new().serve();
    let hinted = |id: &str| CachedEntry {
        hint: "same".to_owned(),
        ..served.world.unissued(id)
    };
    served
        .world
        .publish_entries(vec![served.world.unissued("a"), hinted("b"), hinted("c")]);
    let all = tokens(&served, &["x"], "").await.unwrap();
    let ids: Vec<&str> = all.iter().map(|(id, _token)| id.as_str()).collect();
    assert_eq!(
        ids,
        ["spiffe://example.org/a", "spiffe://example.org/b"],
        "rule 16 holds here too"
    );
    let one = tokens(&served, &["x"], "spiffe://example.org/b").await.unwrap();
    assert_eq!(one.len(), 1);
    assert_eq!(part(&one.first().unwrap().1, 1)["sub"], "spiffe://example.org/b");
}

#[tokio::test]
async fn rule_15_tokens_name_all_audiences_as_a_list_and_their_key() {
    let served = World::new().serve();
    served.world.publish_entries(vec![served.world.unissued("a")]);
    let (_id, token) = tokens(&served, &["x", "y"], "").await.unwrap().remove(0);
    let (header, claims) = (part(&token, 0), part(&token, 1));
    assert_eq!(header, json!({"alg": "ES256", "kid": "key-1", "typ": "JWT"}));
    assert_eq!(claims["aud"], json!(["x", "y"]));
    assert!(claims["exp"].is_i64() && claims["iat"].is_i64());
}

#[tokio::test]
async fn rule_14_jwt_bundles_hold_only_jwt_keys_with_their_ids() {
    let served = World::new().serve();
    let (foreign, mut empty) = (Foreign::new("full.test"), Foreign::new("empty.test"));
    empty.bundle.jwt_authorities.clear();
    let mut entry = served.world.unissued("a");
    entry.federates_with = vec![empty.name.clone(), foreign.name.clone()];
    served.world.publish(|snapshot| {
        snapshot.federated = foreign.federated();
        snapshot.federated.extend(empty.federated());
        snapshot.entries = std::iter::once(Arc::new(entry)).collect();
    });
    let mut client = served.client().await;
    let mut stream = client
        .fetch_jwt_bundles(JwtBundlesRequest {})
        .await
        .unwrap()
        .into_inner();
    let response = next(&mut stream).await.unwrap();
    let names: Vec<_> = response.bundles.keys().collect();
    assert_eq!(
        names,
        [
            "spiffe://empty.test",
            "spiffe://example.org",
            "spiffe://full.test"
        ]
    );
    for (name, document) in &response.bundles {
        let document: Value = serde_json::from_slice(document).unwrap();
        let keys = document["keys"].as_array().unwrap();
        assert_eq!(keys.len(), usize::from(name != "spiffe://empty.test"), "{name}");
        for key in keys {
            assert_eq!(key["kid"], "key-1");
            assert_eq!((key.get("use"), key.get("x5c")), (None, None));
        }
    }
    // Rule 18: an X.509 change is no news on this stream, a JWT change is.
    let (mut bundle, other) = (
        served.world.own_bundle(),
        crate::test_pki::Authority::new(TRUST_DOMAIN),
    );
    bundle.x509_authorities.extend(other.bundle().x509_authorities);
    served
        .world
        .publish(|snapshot| snapshot.own_bundle = Arc::new(bundle.clone()));
    bundle.jwt_authorities.clear();
    served
        .world
        .publish(|snapshot| snapshot.own_bundle = Arc::new(bundle));
    let response = next(&mut stream).await.unwrap();
    let own: Value = serde_json::from_slice(response.bundles.get("spiffe://example.org").unwrap()).unwrap();
    assert_eq!(own, json!({"keys": []}));
}

#[tokio::test]
async fn the_wit_profile_is_unimplemented() {
    use finial_proto::workload::{WitBundlesRequest, WitsvidRequest};
    let served = World::new().serve();
    let mut client = served.client().await;
    let svid = client.fetch_witsvid(WitsvidRequest::default()).await.unwrap_err();
    let bundles = client.fetch_wit_bundles(WitBundlesRequest {}).await.unwrap_err();
    for status in [svid, bundles] {
        assert_eq!(status.code(), Code::Unimplemented);
        assert!(status.message().contains("switched off"), "{status}");
    }
}

fn claim<'a>(response: &'a ValidateJwtsvidResponse, name: &str) -> Option<&'a Kind> {
    response.claims.as_ref().unwrap().fields.get(name)?.kind.as_ref()
}

fn list(texts: &[&str]) -> Kind {
    let values = texts.iter().map(|text| prost_types::Value {
        kind: Some(Kind::StringValue((*text).to_owned())),
    });
    Kind::ListValue(prost_types::ListValue {
        values: values.collect(),
    })
}

#[tokio::test]
async fn own_tokens_validate_with_all_their_claims() {
    let served = World::new().serve();
    served.world.publish_entries(vec![served.world.unissued("a")]);
    let (_id, token) = tokens(&served, &["x", "y"], "").await.unwrap().remove(0);
    let response = validate(&served, "y", &token).await.unwrap();
    assert_eq!(response.spiffe_id, "spiffe://example.org/a");
    assert_eq!(claim(&response, "aud"), Some(&list(&["x", "y"])));
    assert_eq!(
        claim(&response, "role"),
        Some(&Kind::StringValue("db".to_owned()))
    );
    assert!(matches!(claim(&response, "exp"), Some(Kind::NumberValue(_))));
    let status = validate(&served, "z", &token).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    // A caller without identity is not refused: it has the own bundle.
    served.world.publish_entries(Vec::new());
    assert!(validate(&served, "y", &token).await.is_ok());
}

#[tokio::test]
async fn foreign_tokens_validate_for_those_who_federate_and_lose_claims_that_are_not_allowed() {
    let served = World::new().serve();
    let foreign = Foreign::new("full.test");
    let token = foreign.token(&json!("x"), served.world.clock.now());
    served
        .world
        .publish(|snapshot| snapshot.federated = foreign.federated());
    served.world.publish_entries(vec![served.world.unissued("a")]);
    let status = validate(&served, "x", &token).await.unwrap_err();
    assert_eq!(
        status.code(),
        Code::InvalidArgument,
        "no identity of this caller federates with it"
    );
    let federating = CachedEntry {
        federates_with: vec![foreign.name.clone()],
        ..served.world.unissued("a")
    };
    served.world.publish_entries(vec![federating]);
    let response = validate(&served, "x", &token).await.unwrap();
    assert_eq!(response.spiffe_id, "spiffe://full.test/peer");
    let names: Vec<_> = response.claims.as_ref().unwrap().fields.keys().collect();
    assert_eq!(names, ["aud", "exp", "sub", "team"]);
    assert_eq!(claim(&response, "aud"), Some(&list(&["x"])), "always a list");
}

#[tokio::test]
async fn too_much_audience_is_refused() {
    let served = World::new().serve();
    served.world.publish_entries(vec![served.world.entry("a")]);
    let mut client = served.client().await;
    let many = (0..65).map(|number| number.to_string()).collect::<Vec<_>>();
    for (audience, code) in [
        (many.clone(), Code::InvalidArgument),
        (vec!["a".repeat(8193)], Code::InvalidArgument),
        (many.into_iter().skip(1).collect(), Code::Ok),
    ] {
        let request = finial_proto::workload::JwtsvidRequest {
            audience,
            spiffe_id: String::new(),
        };
        let answer = in_time(client.fetch_jwtsvid(request)).await;
        assert_eq!(answer.err().map_or(Code::Ok, |status| status.code()), code);
    }
}
