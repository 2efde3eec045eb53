//! SPIFFE_Trust_Domain_and_Bundle.md: the document that the server publishes, and how it reads those of others.

use finial_identity::bundle::{Bundle, BundleMap};
use finial_identity::jwt;
use finial_identity::spiffe_id::TrustDomain;
use finial_identity::x509::{PeerUsage, verify_chain};
use finial_tests::Stack;
use serde_json::{Value, json};
use time::Duration;

use crate::fixture::{FOREIGN, Foreign, WEB, now, set_bundle, shared, try_set_bundle};

/// §4, and §6.1 of X509-SVID.md and JWT-SVID.md.
/// Covers BND-03, BND-06, BND-12, BND-17, BND-19, X509-27, X509-28, X509-29, X509-30, X509-31, JWT-22, JWT-23, JWT-24.
#[test]
fn e_55_the_published_document_is_one_of_the_standard() {
    let fixture = shared();
    let document = published(&fixture.stack);
    for name in document.as_object().expect("an object").keys() {
        assert!(
            ["keys", "spiffe_sequence", "spiffe_refresh_hint"].contains(&name.as_str()),
            "{name}"
        );
    }
    assert!(document["spiffe_sequence"].is_u64(), "{document}");
    let keys = document["keys"].as_array().expect("keys is an array");
    let of_use = |wanted: &str| keys.iter().filter(|key| key["use"] == wanted).collect::<Vec<_>>();
    let (x509, jwt) = (of_use("x509-svid"), of_use("jwt-svid"));
    assert!(!x509.is_empty() && !jwt.is_empty(), "{document}");
    assert_eq!(
        x509.len() + jwt.len(),
        keys.len(),
        "every entry has one of the two uses"
    );
    assert!(
        keys.iter()
            .all(|key| ["EC", "RSA"].contains(&key["kty"].as_str().expect("kty is set")))
    );
    for key in x509 {
        assert_eq!(key.get("kid"), None);
        let chain = key["x5c"].as_array().expect("x5c is an array");
        assert_eq!(chain.len(), 1);
        let der = data_encoding::BASE64
            .decode(chain[0].as_str().expect("text").as_bytes())
            .expect("standard base64");
        finial_identity::x509::Certificate::parse(&der).expect("a certificate in DER");
    }
    for key in jwt {
        assert!(key["kid"].as_str().is_some_and(|kid| !kid.is_empty()));
        assert_eq!(key.get("x5c"), None);
    }
}

/// §4.1.1: with each change of the content another number, and a greater one.
/// Covers BND-06, BND-07.
#[test]
fn the_sequence_number_grows_with_each_change() {
    let fixture = shared();
    let (stack, mut before) = (&fixture.stack, published(&fixture.stack));
    for what in ["x509", "jwt", "x509"] {
        stack.server_cli_ok(&["localauthority", what, "prepare"]);
        let after = published(stack);
        assert_ne!(
            before["keys"], after["keys"],
            "preparing an {what} authority publishes it"
        );
        assert!(
            after["spiffe_sequence"].as_u64() > before["spiffe_sequence"].as_u64(),
            "{before} {after}"
        );
        before = after;
    }
    assert_eq!(published(stack), before, "nothing changed, so the number stays");
}

/// §4: a foreign document with entries of the future is kept for what is understood of it, with its exact number.
/// Covers BND-04, BND-08, BND-13, BND-18, BND-20, BND-21, X509-33, X509-34.
#[test]
fn e_53_e_54_e_57_the_server_keeps_what_it_understands_of_a_foreign_document() {
    let fixture = shared();
    let good: Value = serde_json::from_str(&fixture.foreign.bundle().to_spiffe_json()).expect("JSON");
    let mut document = good.clone();
    let changed = |index: usize, member: &str, value: Value| {
        let mut key = good["keys"][index].clone();
        key[member] = value;
        key
    };
    let certificate = good["keys"][0]["x5c"][0].clone();
    let odd = [
        changed(0, "kty", json!("XYZ")),
        changed(0, "use", Value::Null),
        changed(0, "use", json!("X509-SVID")),
        changed(1, "use", json!("sig")),
        changed(1, "use", json!("wit-svid")),
        changed(0, "x5c", json!([])),
        changed(0, "x5c", json!([certificate, "MAA="])),
        json!({"use": "x509-svid", "kty": "EC"}),
    ];
    document["keys"].as_array_mut().expect("an array").extend(odd);
    document["x"] = json!({"y": 1});
    set_bundle(&fixture.stack, "odd.test", &document.to_string());
    let kept = fixture
        .stack
        .server_cli_ok(&["bundle", "list", "-id", "spiffe://odd.test", "-format", "spiffe"])
        .stdout;
    let kept: Value = serde_json::from_str(&kept).unwrap_or_else(|error| panic!("{error}: {kept}"));
    assert_eq!(kept["keys"], good["keys"]);
    assert_eq!(kept["spiffe_sequence"].as_u64(), Some(9_007_199_254_740_993));
}

/// §4.1.3: what is no bundle leaves the last good one in its place.
/// Covers BND-12.
#[test]
fn e_52_a_document_without_keys_does_not_replace_a_good_one() {
    let fixture = shared();
    set_bundle(
        &fixture.stack,
        "kept.test",
        &fixture.foreign.bundle().to_spiffe_json(),
    );
    let stored = || {
        fixture
            .stack
            .server_cli_ok(&["bundle", "list", "-id", "spiffe://kept.test", "-format", "spiffe"])
            .stdout
    };
    let before = stored();
    for document in [
        "{}",
        r#"{"keys":null}"#,
        r#"{"keys":{}}"#,
        r#"{"keys":[],"keys":[]}"#,
        "",
        "null",
    ] {
        assert!(
            !try_set_bundle(&fixture.stack, "kept.test", document)
                .status
                .success(),
            "{document}"
        );
        assert_eq!(stored(), before, "{document}");
    }
}

/// §4.1.3: empty, or nothing usable in it, means that nothing of that trust domain is trusted.
/// Covers BND-14, BND-15.
#[tokio::test]
async fn e_51_a_bundle_without_usable_keys_refuses_every_svid() {
    let fixture = shared();
    let svid = fixture.x509_svid(WEB).await;
    let token = fixture.foreign.token(&Foreign::header(), &Foreign::claims());
    let good = fixture.foreign.bundle();
    let mut unusable: Value = serde_json::from_str(&good.to_spiffe_json()).expect("JSON");
    for key in unusable["keys"].as_array_mut().expect("an array") {
        key["use"] = json!("sig");
    }
    let parse =
        |text: &str| Bundle::parse_spiffe_json(trust_domain(FOREIGN), text.as_bytes()).expect("a document");
    let verdicts = |bundle: &Bundle| {
        let jwt_keys = |_: &TrustDomain| Some(bundle.jwt_authorities.clone());
        let authorities = |_: &TrustDomain| Some(bundle.x509_certificates());
        let chain: Vec<_> = svid.chain.clone();
        (
            verify_chain(&chain, &authorities, now(), PeerUsage::Any).is_ok(),
            jwt::validate(&token, &jwt_keys, &["db"], now(), Duration::ZERO).is_ok(),
        )
    };
    let mut holding_all = good.clone();
    holding_all.append(
        svid.bundle
            .iter()
            .cloned()
            .map(finial_identity::bundle::X509Authority::new)
            .collect(),
        vec![],
    );
    assert_eq!(verdicts(&holding_all), (true, true), "the SVIDs are good ones");
    for document in [r#"{"keys":[]}"#, &unusable.to_string()] {
        assert_eq!(verdicts(&parse(document)), (false, false), "{document}");
    }
}

/// §5.1.1.
/// Covers BND-22, BND-24.
#[test]
fn a_bundle_map_names_each_trust_domain_once() {
    let one = || Bundle::new(trust_domain("a.test"));
    let text = BundleMap::from_iter([one(), Bundle::new(trust_domain(FOREIGN)), one()]).to_json();
    assert_eq!(text.matches("\"a.test\"").count(), 1, "{text}");
    assert_eq!(
        BundleMap::parse(text.as_bytes())
            .expect("what was written")
            .bundles
            .len(),
        2
    );
    assert!(BundleMap::default().to_json().contains("\"trust_domains\""));
}

fn published(stack: &Stack) -> Value {
    let text = stack
        .server_cli_ok(&["bundle", "show", "-format", "spiffe"])
        .stdout;
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn trust_domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).expect("a trust domain's name")
}
