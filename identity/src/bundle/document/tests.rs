use serde_json::json;

use super::super::testing::{bundle, ca, jwt, td, wit};
use super::*;

fn read(value: &Value) -> (Bundle, Vec<Skipped>) {
    let text = value.to_string();
    Bundle::parse_spiffe_json_with_skipped(td("example.org"), text.as_bytes()).unwrap()
}

fn read_text(text: &str) -> Result<Bundle, BundleError> {
    Bundle::parse_spiffe_json(td("example.org"), text.as_bytes())
}

fn written(bundle: &Bundle) -> Value {
    serde_json::from_str(&bundle.to_spiffe_json()).unwrap()
}

/// The entries of a document for one X.509 and one JWT authority (`kid` `a`).
fn entries() -> (Value, Value) {
    let mut one = Bundle::new(td("example.org"));
    one.append(vec![ca()], vec![jwt("a")]);
    let keys = written(&one)["keys"].take();
    (keys[0].clone(), keys[1].clone())
}

fn with(entry: &Value, member: &str, value: Value) -> Value {
    let mut entry = entry.clone();
    entry[member] = value;
    entry
}

fn without(entry: &Value, member: &str) -> Value {
    let mut entry = entry.clone();
    entry.as_object_mut().unwrap().remove(member).unwrap();
    entry
}

fn counts(bundle: &Bundle) -> (usize, usize) {
    (bundle.x509_authorities.len(), bundle.jwt_authorities.len())
}

#[test]
fn what_is_written_is_read_back() {
    let bundle = Bundle {
        sequence_number: 7,
        refresh_hint: 300,
        ..bundle()
    };
    assert_eq!(read(&written(&bundle)), (bundle, vec![]));
}

/// Covers BND-03, BND-10.
#[test]
fn bnd03_is_pretty_printed_with_members_in_order() {
    let bundle = Bundle {
        sequence_number: 3,
        refresh_hint: 60,
        ..Bundle::new(td("example.org"))
    };
    let text = "{\n    \"keys\": [],\n    \"spiffe_sequence\": 3,\n    \"spiffe_refresh_hint\": 60\n}";
    assert_eq!(bundle.to_spiffe_json(), text);
}

/// Covers BND-12.
#[test]
fn bnd05_bnd09_zero_sequence_and_hint_are_left_out() {
    let text = Bundle {
        refresh_hint: -1,
        ..Bundle::new(td("example.org"))
    }
    .to_spiffe_json();
    assert_eq!(text, "{\n    \"keys\": []\n}");
}

/// Covers X509-27, X509-28, X509-29, X509-30, X509-31.
#[test]
fn x509_27_to_31_each_ca_is_one_jwk_with_one_certificate_and_no_kid() {
    let bundle = bundle();
    let keys = written(&bundle)["keys"].take();
    assert_eq!(keys.as_array().unwrap().len(), 4);
    for (index, authority) in bundle.x509_authorities.iter().enumerate() {
        assert_eq!(keys[index]["use"], "x509-svid");
        assert_eq!(keys[index].get("kid"), None);
        assert_eq!(
            keys[index]["x5c"],
            json!([BASE64.encode(authority.certificate.der())])
        );
    }
}

/// Covers JWT-22, JWT-23, JWT-24.
#[test]
fn jwt_22_to_24_each_jwt_key_is_one_jwk_with_use_and_kid() {
    let keys = written(&bundle())["keys"].take();
    for (index, kid) in [(2, "a"), (3, "b")] {
        assert_eq!(
            (&keys[index]["use"], &keys[index]["kid"]),
            (&json!("jwt-svid"), &json!(kid))
        );
        assert_eq!(keys[index].get("x5c"), None);
    }
}

/// Covers BND-16, BND-17, BND-19.
#[test]
fn bnd16_bnd17_bnd19_entries_have_kty_and_use_and_no_further_members() {
    for entry in written(&bundle())["keys"].as_array().unwrap() {
        assert_eq!((&entry["kty"], &entry["crv"]), (&json!("EC"), &json!("P-256")));
        let names: Vec<&str> = entry.as_object().unwrap().keys().map(String::as_str).collect();
        let expected: &[&str] = match entry["use"].as_str() {
            Some("x509-svid") => &["crv", "kty", "use", "x", "x5c", "y"],
            _ => &["crv", "kid", "kty", "use", "x", "y"],
        };
        assert_eq!(names, expected);
    }
    let text = bundle().to_spiffe_json();
    let (use_at, kty_at) = (text.find("\"use\"").unwrap(), text.find("\"kty\"").unwrap());
    assert!(use_at < kty_at);
}

/// Covers WL-43, WL-44.
#[test]
fn wl43_wl44_i03_the_workload_api_gets_jwt_keys_only_and_without_use() {
    let bundle = Bundle {
        sequence_number: 7,
        refresh_hint: 300,
        ..bundle()
    };
    let jwks: Value = serde_json::from_str(&bundle.to_jwks()).unwrap();
    assert_eq!(jwks.as_object().unwrap().len(), 1);
    let keys = jwks["keys"].as_array().unwrap();
    assert_eq!(
        keys.iter().map(|key| key["kid"].as_str()).collect::<Vec<_>>(),
        [Some("a"), Some("b")]
    );
    assert!(
        keys.iter()
            .all(|key| key.get("use").is_none() && key.get("x5c").is_none())
    );
}

#[test]
fn i03_a_standard_jwk_set_is_read_without_use() {
    let bundle = bundle();
    let read = Bundle::parse_jwks(td("example.org"), bundle.to_jwks().as_bytes()).unwrap();
    assert_eq!(read.jwt_authorities, bundle.jwt_authorities);
    let (x509, jwt) = entries();
    let keys = json!({"keys": [x509, jwt, with(&jwt, "use", json!("wit-svid"))]}).to_string();
    assert_eq!(
        counts(&Bundle::parse_jwks(td("example.org"), keys.as_bytes()).unwrap()),
        (0, 1)
    );
}

/// Covers BND-14.
#[test]
fn e51_bnd14_an_empty_key_set_is_valid() {
    assert_eq!(
        read_text(r#"{"keys":[]}"#).unwrap(),
        Bundle::new(td("example.org"))
    );
}

#[test]
fn e52_bnd12_a_document_without_a_key_array_is_refused() {
    for text in [
        "{}",
        r#"{"keys":null}"#,
        r#"{"keys":{}}"#,
        "[]",
        "null",
        "\"keys\"",
        r#"{"Keys":[]}"#,
    ] {
        assert!(
            matches!(read_text(text), Err(BundleError::Member { member: "keys", .. })),
            "{text}"
        );
    }
}

/// Covers BND-13, BND-18, BND-20, BND-21.
#[test]
fn e53_bnd13_bnd18_bnd20_bnd21_unknown_entries_are_skipped_and_the_rest_loads() {
    let (x509, jwt) = entries();
    let keys = json!([
        x509,
        with(&x509, "kty", json!("XYZ")),
        without(&x509, "kty"),
        without(&x509, "use"),
        with(&x509, "use", json!("X509-SVID")),
        with(&jwt, "use", json!("sig")),
        with(&jwt, "use", json!("WIT-SVID")),
        with(&jwt, "use", json!(1)),
        "no object",
        jwt,
    ]);
    let (bundle, skipped) = read(&json!({ "keys": keys }));
    assert_eq!(counts(&bundle), (1, 1));
    let reasons: Vec<SkipReason> = skipped.iter().map(|entry| entry.reason).collect();
    use SkipReason::{NotAnObject, UnknownKeyType, UnknownUse};
    assert_eq!(reasons[..2], [UnknownKeyType; 2]);
    assert_eq!(reasons[2..7], [UnknownUse; 5]);
    assert_eq!(
        skipped[7],
        Skipped {
            index: 8,
            reason: NotAnObject,
            key_use: None,
        }
    );
    use KeyUse::{JwtSvid, X509Svid};
    let uses: Vec<_> = skipped.iter().filter_map(|entry| entry.key_use).collect();
    assert_eq!(uses, [X509Svid; 2]);
    let (_, skipped) = read(&json!({"keys": [without(&jwt, "kid")]}));
    assert_eq!(skipped[0].key_use, Some(JwtSvid));
}

/// Covers X509-33, X509-34.
#[test]
fn e54_x509_33_x509_34_only_the_first_certificate_of_an_entry_counts() {
    let (a, _) = entries();
    let (b, _) = entries();
    let both = json!([a["x5c"][0], b["x5c"][0]]);
    let keys = json!([
        without(&b, "x5c"),
        with(&b, "x5c", json!([])),
        with(&a, "x5c", both)
    ]);
    let (bundle, skipped) = read(&json!({ "keys": keys }));
    assert_eq!(
        skipped.iter().map(|s| s.reason).collect::<Vec<_>>(),
        [SkipReason::NoCertificate; 2]
    );
    assert_eq!(written(&bundle)["keys"], json!([a]));
}

#[test]
fn e55_x509_29_jwt_24_a_ca_with_kid_is_used_and_a_jwt_key_without_is_skipped() {
    let (x509, jwt) = entries();
    let keys = json!([
        with(&x509, "kid", json!("k")),
        without(&jwt, "kid"),
        with(&jwt, "kid", json!(""))
    ]);
    let (bundle, skipped) = read(&json!({ "keys": keys }));
    assert_eq!(counts(&bundle), (1, 0));
    assert_eq!(
        skipped.iter().map(|s| s.reason).collect::<Vec<_>>(),
        [SkipReason::NoKeyId; 2]
    );
}

#[test]
fn e56_wit36_no_kid_is_written_twice() {
    let (_, a) = entries();
    let (_, other) = entries();
    let keys = json!([a, other, with(&other, "use", json!("wit-svid"))]);
    let (bundle, skipped) = read(&json!({ "keys": keys }));
    for (place, index) in [1, 2].into_iter().enumerate() {
        assert_eq!(skipped[place].index, index);
        assert_eq!(skipped[place].reason, SkipReason::RepeatedKeyId);
    }
    assert_eq!(written(&bundle)["keys"], json!([a]));
    let mut one = Bundle::new(td("example.org"));
    one.append(vec![], vec![jwt("a")]);
    assert!(!one.append_wit(vec![wit("a")]) && one.append_wit(vec![wit("b")]));
    assert!(!one.append(vec![], vec![jwt("b")]));
    let kids: Vec<_> = written(&one)["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|k| k["kid"].clone())
        .collect();
    assert_eq!(kids, ["a", "b"]);
}

/// Covers WIT-34, WIT-36, WIT-37.
#[test]
fn wit_34_to_37_each_wit_key_is_one_jwk_with_its_use_and_verifies_nothing_else() {
    let mut one = bundle();
    one.append_wit(vec![wit("w")]);
    let keys = written(&one)["keys"].take();
    assert_eq!(keys[4]["use"], "wit-svid");
    assert_eq!(keys[4]["kid"], "w");
    assert_eq!(keys[4].as_object().unwrap().len(), 6);
    assert_eq!(read(&json!({ "keys": keys })), (one.clone(), vec![]));
    let jwks: Value = serde_json::from_str(&one.to_wit_jwks()).unwrap();
    assert_eq!(jwks["keys"].as_array().unwrap().len(), 1);
    assert_eq!(jwks["keys"][0]["kid"], "w");
    assert_eq!(jwks["keys"][0].get("use"), None);
    assert!(!one.to_jwks().contains("\"w\""));
}

/// Covers BND-08.
#[test]
fn e57_bnd08_the_sequence_number_is_exact() {
    for number in [9_007_199_254_740_993_u64, u64::MAX] {
        let text = format!(r#"{{"keys":[],"spiffe_sequence":{number}}}"#);
        let bundle = read_text(&text).unwrap();
        assert_eq!(bundle.sequence_number, number);
        assert!(bundle.to_spiffe_json().contains(&format!(": {number}\n")));
    }
}

#[test]
fn bnd06_bnd10_a_sequence_or_hint_that_is_no_integer_is_refused() {
    for member in [
        r#""spiffe_sequence":1.5"#,
        r#""spiffe_sequence":-1"#,
        r#""spiffe_sequence":18446744073709551616"#,
        r#""spiffe_sequence":"1""#,
        r#""spiffe_refresh_hint":1.5"#,
        r#""spiffe_refresh_hint":"300""#,
    ] {
        let text = format!(r#"{{"keys":[],{member}}}"#);
        assert!(
            matches!(read_text(&text), Err(BundleError::Member { .. })),
            "{member}"
        );
    }
}

/// Covers BND-04.
#[test]
fn e59_bnd04_hints_are_clamped_and_unknown_members_tolerated() {
    for (member, hint) in [
        (r#""x":{"y":[1]}"#, 0),
        (r#""spiffe_refresh_hint":0"#, 0),
        (r#""spiffe_refresh_hint":-5"#, 0),
        (r#""spiffe_refresh_hint":null"#, 0),
        (r#""refresh_hint":7"#, 0),
        (r#""spiffe_refresh_hint":60"#, 60),
    ] {
        let text = format!(r#"{{"keys":[],{member}}}"#);
        assert_eq!(read_text(&text).unwrap().refresh_hint, hint, "{member}");
    }
}

#[test]
fn x509_30_certificates_are_in_standard_base64() {
    let (entry, _) = entries();
    let standard = entry["x5c"][0].as_str().unwrap().to_owned();
    for odd in [
        json!(format!("-{}", &standard[1..])),
        json!(format!("{standard}\n")),
        json!("MII="),
        json!(7),
        json!(super::super::testing::ca().certificate.to_pem()),
    ] {
        let (bundle, skipped) = read(&json!({"keys": [with(&entry, "x5c", json!([odd]))]}));
        assert_eq!(counts(&bundle), (0, 0));
        assert_eq!(skipped[0].reason, SkipReason::MalformedCertificate);
    }
}

#[test]
fn a_certificate_of_another_key_is_skipped_but_the_key_may_be_left_out() {
    let (a, _) = entries();
    let (b, _) = entries();
    let (_, skipped) = read(&json!({"keys": [with(&a, "x5c", b["x5c"].clone())]}));
    assert_eq!(skipped[0].reason, SkipReason::CertificateOfAnotherKey);
    let (bundle, _) = read(&json!({"keys": [without(&without(&a, "x"), "y")]}));
    assert_eq!(counts(&bundle), (1, 0));
}

/// Covers X509-35, JWT-26.
#[test]
fn x509_35_jwt_26_the_authorities_are_the_union_of_their_entries() {
    let (x509, jwt) = entries();
    let (other, _) = entries();
    let (bundle, _) = read(&json!({"keys": [x509, other, x509]}));
    assert_eq!(counts(&bundle), (2, 0));
    assert_eq!(counts(&read(&json!({"keys": [jwt]})).0), (0, 1));
}

/// Covers JWT-25.
#[test]
fn jwt25_a_key_of_another_use_never_becomes_a_jwt_authority() {
    let (x509, jwt) = entries();
    for entry in [
        with(&x509, "kid", json!("a")),
        with(&jwt, "use", json!("wit-svid")),
    ] {
        assert!(read(&json!({"keys": [entry]})).0.jwt_authorities.is_empty());
    }
    let (bundle, _) = read(&json!({"keys": [with(&jwt, "use", json!("wit-svid"))]}));
    assert_eq!(bundle.wit_authorities.len(), 1);
}

#[test]
fn a_malformed_jwt_key_is_skipped() {
    let (_, jwt) = entries();
    let keys = json!([
        with(&jwt, "x", json!("AAAA")),
        without(&jwt, "crv"),
        with(&jwt, "kty", json!("RSA"))
    ]);
    let (bundle, skipped) = read(&json!({ "keys": keys }));
    assert_eq!(counts(&bundle), (0, 0));
    assert_eq!(
        skipped.iter().map(|s| s.reason).collect::<Vec<_>>(),
        [SkipReason::MalformedKey; 3]
    );
}

#[test]
fn a_repeated_member_is_refused() {
    for text in [r#"{"keys":[],"keys":[]}"#, r#"{"keys":[{"use":"a","use":"b"}]}"#] {
        assert!(matches!(read_text(text), Err(BundleError::Json { .. })), "{text}");
    }
}

#[test]
fn a_document_over_four_mebibytes_is_refused() {
    let text = format!("{}{}", r#"{"keys":[]}"#, " ".repeat(MAX_DOCUMENT_BYTES - 11));
    assert!(read_text(&text).is_ok());
    assert!(matches!(
        read_text(&(text + " ")),
        Err(BundleError::TooLarge { .. })
    ));
}
