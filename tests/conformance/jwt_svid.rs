//! JWT-SVID.md: what the server issues, and what the agent refuses of tokens that are signed by a key it trusts.

use data_encoding::BASE64URL_NOPAD;
use finial_proto::spire::api::server::svid::v1::MintJwtsvidRequest;
use finial_proto::spire::api::server::svid::v1::svid_client::SvidClient;
use finial_proto::spire::api::types;
use serde_json::{Value, json};
use tonic::Code;

use crate::fixture::{FOREIGN, Foreign, WEB, audience, now, shared, token_part};
use crate::wire::unix;

const ALGORITHMS: [&str; 9] = [
    "RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512",
];

/// §2, §3 and the schema.
/// Covers JWT-01, JWT-03, JWT-05, JWT-07, JWT-08, JWT-09, JWT-10, JWT-15, JWT-30.
#[tokio::test]
async fn issued_tokens_say_what_the_standard_wants_and_no_more() {
    let fixture = shared();
    let id = fixture.stack.id(WEB);
    let fetched = fixture
        .jwt_svids(&["db", "cache"], &id)
        .await
        .expect("a token")
        .remove(0)
        .svid;
    let args = [
        "jwt",
        "mint",
        "-spiffeID",
        &id,
        "-audience",
        "db",
        "-audience",
        "cache",
    ];
    let minted = fixture.stack.server_cli_ok(&args).stdout.trim().to_owned();
    for token in [fetched, minted] {
        let parts: Vec<&str> = token.split('.').collect();
        assert_eq!(parts.len(), 3);
        assert!(parts.iter().all(|part| {
            BASE64URL_NOPAD
                .decode(part.as_bytes())
                .is_ok_and(|bytes| !bytes.is_empty())
        }));

        let header = token_part(&token, 0);
        let members: Vec<&String> = header.as_object().expect("an object").keys().collect();
        assert!(
            members
                .iter()
                .all(|name| ["alg", "kid", "typ"].contains(&name.as_str())),
            "{header}"
        );
        assert!(
            ALGORITHMS.contains(&header["alg"].as_str().expect("alg is there")),
            "{header}"
        );
        assert!(
            header["kid"].as_str().is_some_and(|kid| !kid.is_empty()),
            "{header}"
        );
        assert!(
            header
                .get("typ")
                .is_none_or(|kind| kind == "JWT" || kind == "JOSE"),
            "{header}"
        );

        let claims = token_part(&token, 1);
        assert_eq!(claims["sub"], id.as_str());
        assert_eq!(audience(&token), ["cache", "db"].map(str::to_owned).into());
        assert!(claims["exp"].is_i64(), "an integer: {claims}");
        assert!(claims["exp"].as_i64() > Some(now().unix_timestamp()), "{claims}");
        assert_eq!(
            fixture.validate("cache", &token).await.expect("our own token").0,
            id
        );
    }
}

/// §3.1, §3.2: no token without a workload's ID of our own trust domain, none without an audience.
/// Covers JWT-09, JWT-10.
#[tokio::test]
async fn the_server_signs_no_token_without_subject_or_audience() {
    let fixture = shared();
    let mut server = SvidClient::new(
        unix(fixture.stack.server_socket())
            .await
            .expect("the private socket"),
    );
    let request = |trust_domain: &str, path: &str, audience: &[&str]| MintJwtsvidRequest {
        id: Some(types::Spiffeid {
            trust_domain: trust_domain.into(),
            path: path.into(),
        }),
        audience: audience.iter().map(|name| (*name).to_owned()).collect(),
        ttl: 0,
    };
    server
        .mint_jwtsvid(request("example.org", "/a", &["db"]))
        .await
        .expect("a right request");
    let without_id = MintJwtsvidRequest {
        id: None,
        ..request("", "", &["db"])
    };
    for wrong in [
        request("example.org", "/a", &[]),
        request("example.org", "/a", &[""]),
        request("example.org", "", &["db"]),
        request("example.org", "/a/", &["db"]),
        request(FOREIGN, "/a", &["db"]),
        without_id,
    ] {
        let status = server
            .mint_jwtsvid(wrong.clone())
            .await
            .expect_err("a wrong request");
        assert_eq!(status.code(), Code::InvalidArgument, "{wrong:?}: {status:?}");
    }
}

/// §4: each token is signed by a key of the bundle and wrong in one part.
/// Covers JWT-06, JWT-07, JWT-11, JWT-12, JWT-16, JWT-17, JWT-18, JWT-19, WL-47.
#[tokio::test]
async fn the_agent_refuses_signed_tokens_that_are_wrong_in_one_part() {
    let fixture = shared();
    let foreign = &fixture.foreign;
    let header = |changes: Value| foreign.token(&merged(Foreign::header(), changes), &Foreign::claims());
    let claims = |changes: Value| foreign.token(&Foreign::header(), &merged(Foreign::claims(), changes));
    let time = now().unix_timestamp();

    for right in [
        claims(json!({})),
        header(json!({"typ": null})),
        header(json!({"typ": "JOSE"})),
        header(json!({"jwk": {"kty": "EC"}, "jku": "https://example.org"})),
        claims(json!({"aud": "db"})),
        claims(json!({"aud": ["x", "db"], "jti": "1"})),
        claims(json!({"exp": time as f64 + 600.5})),
    ] {
        fixture
            .validate("db", &right)
            .await
            .unwrap_or_else(|status| panic!("{right}: {status:?}"));
    }

    let wrong = [
        ("no alg", header(json!({"alg": null}))),
        ("alg none", header(json!({"alg": "none"}))),
        ("alg HS256", header(json!({"alg": "HS256"}))),
        ("alg EdDSA", header(json!({"alg": "EdDSA"}))),
        ("alg in lower case", header(json!({"alg": "es256"}))),
        ("alg of another key", header(json!({"alg": "RS256"}))),
        ("typ at+jwt", header(json!({"typ": "at+jwt"}))),
        ("typ empty", header(json!({"typ": ""}))),
        ("crit", header(json!({"crit": ["x"]}))),
        ("unknown kid", header(json!({"kid": "other"}))),
        ("no aud", claims(json!({"aud": null}))),
        ("aud empty", claims(json!({"aud": []}))),
        ("aud in upper case", claims(json!({"aud": "DB"}))),
        ("aud of another", claims(json!({"aud": ["dbx", "x"]}))),
        ("aud an object", claims(json!({"aud": {"db": 1}}))),
        ("no exp", claims(json!({"exp": null}))),
        ("exp a string", claims(json!({"exp": "1999999999"}))),
        ("exp past", claims(json!({"exp": time - 120}))),
        (
            "nbf ahead",
            claims(json!({"nbf": time + 3600, "exp": time + 7200})),
        ),
        ("no sub", claims(json!({"sub": null}))),
        ("sub no ID", claims(json!({"sub": "b.test/x"}))),
        (
            "sub with a slash at its end",
            claims(json!({"sub": "spiffe://b.test/x/"})),
        ),
        (
            "sub of the agent's own trust domain",
            claims(json!({"sub": "spiffe://example.org/x"})),
        ),
        (
            "sub of a trust domain without bundle",
            claims(json!({"sub": "spiffe://c.test/x"})),
        ),
    ];
    for (what, token) in wrong {
        let status = fixture.validate("db", &token).await.expect_err(what);
        assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status:?}");
    }
}

/// §5.1: only the compact form, byte for byte.
/// Covers JWT-02, JWT-04, WL-47.
#[tokio::test]
async fn e_44_the_agent_refuses_every_other_form_of_a_good_token() {
    let fixture = shared();
    let token = fixture.foreign.token(&Foreign::header(), &Foreign::claims());
    fixture.validate("db", &token).await.expect("the compact form");
    let parts: Vec<&str> = token.split('.').collect();
    let (protected, payload, signature) = (parts[0], parts[1], parts[2]);
    let flattened = json!({"protected": protected, "payload": payload, "signature": signature}).to_string();
    let general =
        json!({"payload": payload, "signatures": [{"protected": protected, "signature": signature}]})
            .to_string();
    for form in [
        flattened,
        general,
        format!("{protected}.{payload}"),
        format!("{protected}.{payload}."),
        format!("{token}.x"),
        format!("{token}.x.y"),
        format!("{token}="),
        format!("{token}\n"),
        format!(" {token}"),
        format!("Bearer {token}"),
    ] {
        let status = fixture.validate("db", &form).await.expect_err("another form");
        assert_eq!(status.code(), Code::InvalidArgument, "{form}: {status:?}");
    }
}

/// `object` with the members of `changes`; null removes.
fn merged(mut object: Value, changes: Value) -> Value {
    let members = object.as_object_mut().expect("an object");
    members.extend(changes.as_object().expect("an object").clone());
    members.retain(|_, value| !value.is_null());
    object
}
