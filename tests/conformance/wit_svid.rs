//! WIT-SVID.md and the WIT profile of the Workload API (both Incubating): what server and agent do where both are
//! switched on.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use finial_identity::bundle::Bundle;
use finial_identity::jwt;
use finial_identity::key::{KeyType, PrivateKey, PublicKey};
use finial_identity::spiffe_id::TrustDomain;
use finial_identity::wit::{self, DEFAULT_SKEW, WitError};
use finial_proto::spire::api::server::svid::v1::MintWitsvidRequest;
use finial_proto::spire::api::server::svid::v1::svid_client::SvidClient;
use finial_proto::spire::api::types;
use finial_proto::workload::{
    JwtsvidRequest, ValidateJwtsvidRequest, WitBundlesRequest, Witsvid, WitsvidRequest,
};
use finial_tests::{Entry, Stack, StackOptions};
use serde_json::Value;
use tonic::{Code, Status};

use crate::fixture::{first, now, secured, token_part, workload_api};
use crate::wire::unix;

const FLAG: &str = "experimental { feature_flags = [\"wit-svid\"] }";
const ALGORITHMS: [&str; 9] = [
    "RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512",
];

/// A stack of its own: the profile is off in the others' one.
fn shared() -> Arc<Stack> {
    static SHARED: Mutex<Weak<Stack>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let stack = Stack::start(StackOptions {
            server: FLAG.to_owned(),
            agent: FLAG.to_owned(),
            ..StackOptions::default()
        });
        stack.create_entry(&Entry::for_me("/a"));
        stack.create_entry(&Entry::for_me("/twin/a").with(&["-hint", "twin"]));
        stack.create_entry(&Entry::for_me("/twin/b").with(&["-hint", "twin"]));
        stack.wait_identity("/a");
        let stack = Arc::new(stack);
        *shared = Arc::downgrade(&stack);
        stack
    })
}

async fn svids(stack: &Stack, spiffe_id: &str) -> Result<Vec<Witsvid>, Status> {
    let request = WitsvidRequest {
        spiffe_id: spiffe_id.to_owned(),
    };
    let mut client = workload_api(stack).await;
    Ok(first(client.fetch_witsvid(secured(request)).await).await?.svids)
}

async fn one(stack: &Stack, path: &str) -> Witsvid {
    svids(stack, &stack.id(path)).await.expect("a token").remove(0)
}

/// What the server publishes.
fn document(stack: &Stack) -> Value {
    stack
        .server_cli_ok(&["bundle", "show", "-format", "spiffe"])
        .json()
}

fn bundle(stack: &Stack) -> Bundle {
    let name = TrustDomain::parse(stack.trust_domain()).expect("a name");
    Bundle::parse_spiffe_json(name, document(stack).to_string().as_bytes()).expect("a bundle")
}

/// WIT-SVID §2, §3, §4.
/// Covers WIT-02, WIT-05, WIT-06, WIT-10, WIT-11, WIT-13, WIT-14, WIT-15, WIT-22, WIT-24, WIT-25, E-49.
#[tokio::test]
async fn issued_tokens_say_what_the_standard_wants_and_no_more() {
    let stack = shared();
    let fetched = one(&stack, "/a").await.wit_svid;
    let key = PrivateKey::generate(KeyType::EcP256).expect("a key");
    let request = MintWitsvidRequest {
        id: Some(types::Spiffeid {
            trust_domain: stack.trust_domain().to_owned(),
            path: "/a".to_owned(),
        }),
        public_key: key.public_key().spki_der().to_vec(),
        ttl: 60,
        signing_algorithm: "ES256".to_owned(),
    };
    let mut client = SvidClient::new(unix(stack.server_socket()).await.expect("the server's socket"));
    let minted = client.mint_witsvid(request).await.expect("a token").into_inner();
    let minted = minted.svid.expect("a token").token;
    let mut ids = BTreeSet::new();
    for token in [fetched, minted] {
        assert_eq!(token.split('.').count(), 3);
        let header = token_part(&token, 0);
        let members: Vec<&String> = header.as_object().expect("an object").keys().collect();
        assert_eq!(members, ["alg", "kid", "typ"], "{header}");
        assert_eq!(header["typ"], "wit+jwt");
        assert!(ALGORITHMS.contains(&header["alg"].as_str().expect("alg")));
        assert!(header["kid"].as_str().is_some_and(|kid| !kid.is_empty()));
        let claims = token_part(&token, 1);
        assert_eq!(claims["sub"], stack.id("/a"));
        assert!(claims["exp"].is_i64() && claims.get("aud").is_none(), "{claims}");
        assert!(claims["nbf"].as_i64() < claims["iat"].as_i64());
        let jwk = claims["cnf"]["jwk"].as_object().expect("a key");
        PublicKey::from_jwk(jwk).expect("a public key");
        assert!(!jwk.contains_key("d"));
        assert!(ALGORITHMS.contains(&jwk["alg"].as_str().expect("alg")));
        ids.insert(claims["jti"].as_str().expect("jti").to_owned());
    }
    assert_eq!(ids.len(), 2);
}

/// WIT-SVID §2.2, §4, §5, §6.2.
/// Covers E-46, E-48, WIT-26, WIT-37.
#[tokio::test]
async fn a_token_is_no_jwt_svid_and_says_nothing_without_its_key() {
    let stack = shared();
    let svid = one(&stack, "/a").await;
    let mut client = workload_api(&stack).await;
    let bearer = ValidateJwtsvidRequest {
        audience: "db".to_owned(),
        svid: svid.wit_svid.clone(),
    };
    let refused = client
        .validate_jwtsvid(secured(bearer))
        .await
        .expect_err("no bearer token");
    assert_eq!(refused.code(), Code::InvalidArgument);
    let request = JwtsvidRequest {
        audience: vec!["db".to_owned()],
        spiffe_id: stack.id("/a"),
    };
    let token = client
        .fetch_jwtsvid(secured(request))
        .await
        .expect("a token")
        .into_inner();
    let bundle = bundle(&stack);
    let keys = |_: &TrustDomain| Some(bundle.wit_authorities.clone());
    let other_kind = wit::validate(&token.svids[0].svid, &keys, now(), DEFAULT_SKEW);
    assert!(matches!(other_kind, Err(WitError::Token(_))), "{other_kind:?}");
    let jwt_keys = |_: &TrustDomain| Some(bundle.jwt_authorities.clone());
    assert!(jwt::validate(&svid.wit_svid, &jwt_keys, &["db"], now(), DEFAULT_SKEW).is_err());
    let unproven = wit::validate(&svid.wit_svid, &keys, now(), DEFAULT_SKEW).expect("issued just now");
    let target = "https://db.example.org/";
    assert!(unproven.prove_token("", target, now(), DEFAULT_SKEW).is_err());
}

/// Workload API §7.2.1.
/// Covers WL-54, WL-55, WL-57.
#[tokio::test]
async fn every_identity_has_one_token_with_its_private_key_and_hints_are_unique() {
    let stack = shared();
    let all = svids(&stack, "").await.expect("tokens");
    let ids: Vec<&str> = all.iter().map(|svid| svid.spiffe_id.as_str()).collect();
    assert_eq!(ids.len(), 2, "of the twins one: {ids:?}");
    assert!(ids.contains(&stack.id("/a").as_str()), "{ids:?}");
    let hints: Vec<&str> = all.iter().map(|svid| svid.hint.as_str()).collect();
    assert_eq!(hints.iter().filter(|hint| **hint == "twin").count(), 1);
    let bundle = bundle(&stack);
    let keys = |_: &TrustDomain| Some(bundle.wit_authorities.clone());
    for svid in &all {
        let unproven = wit::validate(&svid.wit_svid, &keys, now(), DEFAULT_SKEW).expect("a valid token");
        let jwk: Value = serde_json::from_str(&svid.wit_svid_key).expect("JSON text");
        let jwk = jwk.as_object().expect("a JWK");
        assert_eq!(
            &PublicKey::from_jwk(jwk).expect("a key"),
            unproven.confirmation_key()
        );
        assert!(jwk.contains_key("d"));
    }
    let order = svids(&stack, "").await.expect("tokens");
    assert!(
        order
            .iter()
            .map(|svid| &svid.spiffe_id)
            .eq(all.iter().map(|svid| &svid.spiffe_id))
    );
    let refused = svids(&stack, "spiffe://example.org/nobody")
        .await
        .expect_err("not granted");
    assert_eq!(refused.code(), Code::PermissionDenied);
}

/// WIT-SVID §6.1, Workload API §7.2.2.
/// Covers WIT-04, WIT-34, WIT-36, WL-62, WL-63, E-56.
#[tokio::test]
async fn published_keys_have_their_use_and_a_key_id_that_is_unique_in_the_bundle() {
    let stack = shared();
    let document = document(&stack);
    let keys = document["keys"].as_array().expect("a list");
    let wit: Vec<&Value> = keys.iter().filter(|key| key["use"] == "wit-svid").collect();
    assert_eq!(wit.len(), 1);
    let ids: Vec<&str> = keys.iter().filter_map(|key| key["kid"].as_str()).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{ids:?}");
    assert_eq!(ids.len(), 2, "a JWT and a WIT authority");
    let mut client = workload_api(&stack).await;
    let bundles = first(client.fetch_wit_bundles(secured(WitBundlesRequest {})).await)
        .await
        .expect("bundles")
        .bundles;
    let own: Value = serde_json::from_str(&bundles["spiffe://example.org"]).expect("JSON text");
    let served = own["keys"].as_array().expect("a list");
    assert_eq!(served.len(), 1);
    assert_eq!(served[0]["kid"], wit[0]["kid"]);
    assert_eq!(served[0]["x"], wit[0]["x"]);
}
