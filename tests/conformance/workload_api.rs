//! SPIFFE_Workload_API.md, and the comments of workloadapi.proto.

use std::collections::BTreeSet;
use std::time::Duration;

use finial_identity::key::PrivateKey;
use finial_identity::x509::{Certificate, X509Svid};
use finial_proto::workload::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, WitBundlesRequest, WitsvidRequest,
    X509BundlesRequest, X509svidRequest, X509svidResponse,
};
use finial_tests::{Entry, Stack, StackOptions};
use serde_json::{Value, json};
use tonic::{Code, Status, Streaming};

use crate::fixture::{
    FOREIGN, Foreign, TWINS, WEB, WEB_HINT, audience, first, secured, shared, token_part, workload_api,
};

const LIMIT: Duration = Duration::from_secs(20);

/// §5.2.1 and the proto.
/// Covers WL-01, WL-18, WL-19, WL-25, WL-26, WL-27, WL-28, WL-29, WL-70.
#[tokio::test]
async fn x509_svids_come_complete_for_every_identity() {
    let fixture = shared();
    let response = fixture.x509_svids().await;
    let ids: BTreeSet<&str> = response
        .svids
        .iter()
        .map(|svid| svid.spiffe_id.as_str())
        .collect();
    assert_eq!(ids.len(), response.svids.len(), "one entry for each identity");
    let web = fixture.stack.id(WEB);
    assert!(
        ids.contains(web.as_str()) && ids.contains(fixture.longest_id.as_str()),
        "{ids:?}"
    );
    for svid in &response.svids {
        let chain = Certificate::parse_many(&svid.x509_svid).expect("DER certificates back to back");
        let key = PrivateKey::from_pkcs8_der(&svid.x509_svid_key).expect("PKCS#8 in DER, not encrypted");
        let whole = X509Svid::new(chain, key.into()).expect("leaf first, and the key is the leaf's");
        assert_eq!(whole.spiffe_id().as_str(), svid.spiffe_id);
        let bundle = Certificate::parse_many(&svid.bundle).expect("DER certificates back to back");
        assert!(!bundle.is_empty() && bundle.iter().all(Certificate::is_ca));
    }
    let hint = response
        .svids
        .iter()
        .find(|svid| svid.spiffe_id == web)
        .map(|svid| svid.hint.as_str());
    assert_eq!(hint, Some(WEB_HINT));

    let foreign: Vec<&String> = response.federated_bundles.keys().collect();
    assert_eq!(
        foreign,
        [&format!("spiffe://{FOREIGN}")],
        "foreign trust domains only, by their IDs"
    );
    let authorities =
        Certificate::parse_many(&response.federated_bundles[foreign[0]]).expect("DER certificates");
    assert_eq!(
        authorities.iter().map(Certificate::der).collect::<Vec<_>>(),
        [fixture.foreign.authority().der()]
    );
}

/// §5.2.1, §6.2.1, §8: of two identities with one hint only one is served, the same in every profile and call.
/// Covers WL-20, WL-38, WL-67.
#[tokio::test]
async fn hints_are_unique_in_an_answer_and_the_order_does_not_drift() {
    let fixture = shared();
    let x509: Vec<(String, String)> = fixture
        .x509_svids()
        .await
        .svids
        .into_iter()
        .map(|svid| (svid.spiffe_id, svid.hint))
        .collect();
    let jwt = fixture.jwt_svids(&["db"], "").await.expect("tokens");
    let jwt: Vec<(String, String)> = jwt.into_iter().map(|svid| (svid.spiffe_id, svid.hint)).collect();
    let again: Vec<(String, String)> = fixture
        .x509_svids()
        .await
        .svids
        .into_iter()
        .map(|svid| (svid.spiffe_id, svid.hint))
        .collect();
    assert_eq!(x509, jwt);
    assert_eq!(x509, again);
    let hints: Vec<&str> = x509
        .iter()
        .map(|(_, hint)| hint.as_str())
        .filter(|hint| !hint.is_empty())
        .collect();
    assert_eq!(
        hints.iter().collect::<BTreeSet<_>>().len(),
        hints.len(),
        "{hints:?}"
    );
    let twins = TWINS.map(|path| fixture.stack.id(path));
    assert_eq!(
        x509.iter().filter(|(id, _)| twins.contains(id)).count(),
        1,
        "one of the twins is there"
    );
}

/// §8: hints over 1024 bytes are refused when they are registered.
/// Covers WL-71.
#[test]
fn a_hint_that_clients_need_not_support_is_refused_at_registration() {
    let fixture = shared();
    let create = |length: usize, path: &str| {
        let (id, hint) = (fixture.stack.id(path), "h".repeat(length));
        let args = [
            "entry",
            "create",
            "-parentID",
            "spiffe://example.org/p",
            "-selector",
            "unix:uid:1",
        ];
        fixture
            .stack
            .server_cli(&[&args[..], &["-spiffeID", &id, "-hint", &hint]].concat())
    };
    assert!(create(1024, "/hint/longest").status.success());
    assert!(!create(1025, "/hint/longer").status.success());
}

/// §5.2.2.
/// Covers WL-30, WL-27, WL-28, WL-29.
#[tokio::test]
async fn x509_bundles_hold_the_own_and_the_foreign_trust_domains() {
    let fixture = shared();
    let stream = fixture
        .workload_api()
        .await
        .fetch_x509_bundles(secured(X509BundlesRequest {}))
        .await;
    let bundles = first(stream).await.expect("this user has identities").bundles;
    let names: Vec<&str> = bundles.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [format!("spiffe://{FOREIGN}").as_str(), "spiffe://example.org"]
    );
    for der in bundles.values() {
        assert!(
            !Certificate::parse_many(der)
                .expect("DER certificates back to back")
                .is_empty()
        );
    }
}

/// §6.2.1.
/// Covers WL-01, WL-33, WL-34, WL-35, WL-36, WL-37.
#[tokio::test]
async fn tokens_come_for_every_identity_or_the_one_asked_for() {
    let fixture = shared();
    let held: Vec<String> = fixture
        .x509_svids()
        .await
        .svids
        .into_iter()
        .map(|svid| svid.spiffe_id)
        .collect();
    let tokens = fixture.jwt_svids(&["db", "cache"], "").await.expect("tokens");
    assert_eq!(
        tokens
            .iter()
            .map(|token| token.spiffe_id.clone())
            .collect::<Vec<_>>(),
        held
    );
    for token in &tokens {
        assert_eq!(token_part(&token.svid, 1)["sub"], token.spiffe_id.as_str());
        assert_eq!(audience(&token.svid), ["cache", "db"].map(str::to_owned).into());
    }
    let one = fixture.jwt_svids(&["db"], &held[0]).await.expect("a token");
    assert_eq!(
        one.iter().map(|token| &token.spiffe_id).collect::<Vec<_>>(),
        [&held[0]]
    );
}

/// §4.5, §6.2.1, §6.2.3.
/// Covers WL-15, WL-33, WL-40, WL-48.
#[tokio::test]
async fn requests_without_what_is_mandatory_are_invalid() {
    let fixture = shared();
    let code = |outcome: Result<_, Status>| outcome.map(|_| ()).map_err(|status| status.code());
    assert_eq!(code(fixture.jwt_svids(&[], "").await), Err(Code::InvalidArgument));
    assert_eq!(
        code(fixture.jwt_svids(&["db"], "no id").await),
        Err(Code::InvalidArgument)
    );
    assert_eq!(
        code(fixture.jwt_svids(&["db"], "spiffe://example.org/not/held").await),
        Err(Code::PermissionDenied)
    );
    let code = |outcome: Result<_, Status>| outcome.map(|_| ()).map_err(|status| status.code());
    let token = fixture.foreign.token(&Foreign::header(), &Foreign::claims());
    assert_eq!(
        code(fixture.validate("", &token).await),
        Err(Code::InvalidArgument)
    );
    assert_eq!(code(fixture.validate("db", "").await), Err(Code::InvalidArgument));
}

/// §6.2.2: each set holds the keys that verify the trust domain's tokens, and no others.
/// Covers WL-42, WL-43, WL-44.
#[tokio::test]
async fn jwt_bundles_are_key_sets_of_jwt_keys_only() {
    let fixture = shared();
    let stream = fixture
        .workload_api()
        .await
        .fetch_jwt_bundles(secured(JwtBundlesRequest {}))
        .await;
    let bundles = first(stream).await.expect("this user has identities").bundles;
    let names: Vec<&str> = bundles.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [format!("spiffe://{FOREIGN}").as_str(), "spiffe://example.org"]
    );
    let keys = |name: &str| {
        let set: Value = serde_json::from_slice(&bundles[name]).expect("a JWK Set");
        set["keys"].as_array().expect("keys is an array").clone()
    };
    for key in names.iter().flat_map(|name| keys(name)) {
        assert!(key["kid"].as_str().is_some_and(|kid| !kid.is_empty()), "{key}");
        assert!(key.get("use").is_none_or(|value| value == "jwt-svid"), "{key}");
        assert_eq!(key.get("x5c"), None);
    }
    let token = fixture
        .jwt_svids(&["db"], "")
        .await
        .expect("tokens")
        .remove(0)
        .svid;
    let signer = token_part(&token, 0)["kid"].clone();
    assert_eq!(
        keys("spiffe://example.org")
            .iter()
            .filter(|key| key["kid"] == signer)
            .count(),
        1
    );
    assert_eq!(keys(names[0]).len(), 1);
}

/// §6.2.3, §6.3: by the bundle of the subject's trust domain, with the claims of the token.
/// Covers WL-47, WL-48, WL-49, WL-51.
#[tokio::test]
async fn tokens_are_validated_for_the_audience_given() {
    let fixture = shared();
    let id = fixture.stack.id(WEB);
    let own = fixture
        .jwt_svids(&["db"], &id)
        .await
        .expect("a token")
        .remove(0)
        .svid;
    let (subject, claims) = fixture.validate("db", &own).await.expect("our own token");
    assert_eq!(
        (subject.as_str(), claims["sub"].as_str()),
        (id.as_str(), Some(id.as_str()))
    );
    assert_eq!(claims["aud"], json!(["db"]));
    assert_eq!(claims["exp"].as_f64(), token_part(&own, 1)["exp"].as_f64());
    let status = fixture.validate("DB", &own).await.expect_err("another audience");
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");

    let foreign = fixture.foreign.token(&Foreign::header(), &Foreign::claims());
    let (subject, claims) = fixture
        .validate("db", &foreign)
        .await
        .expect("the foreign bundle is held");
    assert_eq!(subject, format!("spiffe://{FOREIGN}/x"));
    assert!(
        ["sub", "aud", "exp"].iter().all(|name| !claims[*name].is_null()),
        "{claims}"
    );
    let mut stolen = Foreign::claims();
    stolen["sub"] = json!(id);
    fixture
        .validate("db", &fixture.foreign.token(&Foreign::header(), &stolen))
        .await
        .expect_err("not its key");
}

/// §7.
/// Covers WL-52.
#[tokio::test]
async fn the_wit_profile_is_unimplemented_unless_it_is_switched_on() {
    let fixture = shared();
    let mut client = fixture.workload_api().await;
    let svids = client
        .fetch_witsvid(secured(WitsvidRequest::default()))
        .await
        .map(|_| ());
    let bundles = first(client.fetch_wit_bundles(secured(WitBundlesRequest {})).await)
        .await
        .map(|_| ());
    for outcome in [svids, bundles] {
        assert_eq!(
            outcome.expect_err("the profile is not there").code(),
            Code::Unimplemented
        );
    }
}

/// §4.3, §5.2.1, and §6 of SPIFFE_Workload_Endpoint.md: one stream from the first identity to the last.
/// Covers WL-08, WL-10, WL-18, WL-22, WL-31, WL-40, WL-45, WEP-24.
#[tokio::test]
async fn a_stream_tells_the_whole_state_at_once_and_with_each_change() {
    let stack = Stack::start(StackOptions::default());
    refuses_callers_without_identity(&stack).await;

    let a = stack.create_entry(&Entry::for_me("/a"));
    stack.wait_identity("/a");
    let mut client = workload_api(&stack).await;
    let at_once = async {
        let mut stream = client
            .fetch_x509svid(secured(X509svidRequest {}))
            .await
            .expect("an identity")
            .into_inner();
        let message = next(&mut stream).await.expect("a message");
        (stream, message)
    };
    let (mut stream, message) = tokio::time::timeout(Duration::from_secs(2), at_once)
        .await
        .expect("without delay");
    assert_eq!(paths(&message), ["/a"]);

    let b = stack.create_entry(&Entry::for_me("/b"));
    until(&mut stream, |message| {
        assert!(
            paths(message).contains(&"/a".to_owned()),
            "what did not change is told again"
        );
        paths(message).len() == 2
    })
    .await;

    stack.server_cli_ok(&["localauthority", "x509", "prepare"]);
    until(&mut stream, |message| {
        assert_eq!(
            paths(message).len(),
            2,
            "a change of the bundle brings the SVIDs as well"
        );
        message
            .svids
            .iter()
            .all(|svid| Certificate::parse_many(&svid.bundle).expect("DER").len() == 2)
    })
    .await;

    stack.delete_entry(&a);
    until(&mut stream, |message| paths(message) == ["/b"]).await;
    stack.delete_entry(&b);
    let end = loop {
        if let Err(status) = next(&mut stream).await {
            break status;
        }
    };
    assert_eq!(end.code(), Code::PermissionDenied, "{end:?}");
}

async fn refuses_callers_without_identity(stack: &Stack) {
    let mut client = workload_api(stack).await;
    let audience = vec!["db".to_owned()];
    let refused = [
        first(client.fetch_x509svid(secured(X509svidRequest {})).await)
            .await
            .map(|_| ()),
        first(client.fetch_x509_bundles(secured(X509BundlesRequest {})).await)
            .await
            .map(|_| ()),
        first(client.fetch_jwt_bundles(secured(JwtBundlesRequest {})).await)
            .await
            .map(|_| ()),
        client
            .fetch_jwtsvid(secured(JwtsvidRequest {
                audience,
                spiffe_id: String::new(),
            }))
            .await
            .map(|_| ()),
    ];
    for outcome in refused {
        let status = outcome.expect_err("no identity yet");
        assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    }
    let request = ValidateJwtsvidRequest {
        audience: "db".into(),
        svid: "a.b.c".into(),
    };
    let status = client
        .validate_jwtsvid(secured(request))
        .await
        .expect_err("no token");
    assert_eq!(
        status.code(),
        Code::InvalidArgument,
        "validation needs no identity: {status:?}"
    );
}

/// Reads messages until one passes; each must be complete.
async fn until(stream: &mut Streaming<X509svidResponse>, mut passes: impl FnMut(&X509svidResponse) -> bool) {
    loop {
        let message = next(stream).await.expect("the stream goes on");
        let empty = message.svids.iter().any(|svid| {
            svid.spiffe_id.is_empty()
                || svid.x509_svid.is_empty()
                || svid.x509_svid_key.is_empty()
                || svid.bundle.is_empty()
        });
        assert!(
            !message.svids.is_empty() && !empty,
            "the whole state: {message:?}"
        );
        if passes(&message) {
            return;
        }
    }
}

async fn next(stream: &mut Streaming<X509svidResponse>) -> Result<X509svidResponse, Status> {
    let message = tokio::time::timeout(LIMIT, stream.message())
        .await
        .expect("a change is told soon")?;
    Ok(message.expect("a stream does not end without a status"))
}

fn paths(message: &X509svidResponse) -> Vec<String> {
    message
        .svids
        .iter()
        .map(|svid| {
            svid.spiffe_id
                .trim_start_matches("spiffe://example.org")
                .to_owned()
        })
        .collect()
}
