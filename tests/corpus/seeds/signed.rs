//! Keys and what they sign.

use std::fs;
use std::path::Path;

use data_encoding::BASE64;
use finial_identity::key::{JwsAlgorithm, KeyType, PrivateKey, SignerForRcgen, SubjectKeyForRcgen};
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::x509::{Certificate, Csr, CsrSubject};
use finial_identity::{jwt, wit};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, SanType,
};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::macros::datetime;

use super::put;

pub struct Keys {
    pub p256: PrivateKey,
    pub p384: PrivateKey,
    pub rsa: PrivateKey,
}

pub fn keys() -> Keys {
    let new = |key_type| PrivateKey::generate(key_type).unwrap();
    let keys = Keys {
        p256: new(KeyType::EcP256),
        p384: new(KeyType::EcP384),
        rsa: new(KeyType::Rsa2048),
    };
    let named = [("p256", &keys.p256), ("p384", &keys.p384), ("rsa", &keys.rsa)];
    let mut file = Map::new();
    for (name, key) in named {
        put("private_key", &format!("{name}.der"), key.pkcs8_der());
        put("private_key", &format!("{name}.pem"), key.to_pem().as_bytes());
        put(
            "private_key",
            &format!("{name}_public.der"),
            key.public_key().spki_der(),
        );
        put("jwk", name, Value::Object(key.public_key().to_jwk()).to_string());
        if name != "rsa" {
            file.insert(format!("x509-CA-{name}"), BASE64.encode(key.pkcs8_der()).into());
        }
    }
    put(
        "jwk",
        "p521",
        json!({"kty":"EC","crv":"P-521","x":"A".repeat(88),"y":"A".repeat(88)}).to_string(),
    );
    put("jwk", "odd", json!({"kty":"RSA","n":"AAAB","e":"AA"}).to_string());
    put(
        "jwk",
        "symmetric",
        json!({"kty":"oct","k":"c2VjcmV0"}).to_string(),
    );
    put("keys_json", "plain", json!({"keys": file}).to_string());
    put("keys_json", "empty", "{\"keys\":{}}");
    put(
        "keys_json",
        "odd",
        json!({"keys": {"": "AA==", "b": "!"}, "more": 1}).to_string(),
    );
    keys
}

fn params(uri: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CountryName, "US");
    params
        .distinguished_name
        .push(DnType::OrganizationName, "SPIRE, \"x\" + y");
    params.not_before = datetime!(2026-01-01 00:00 UTC);
    params.not_after = datetime!(2036-01-01 00:00 UTC);
    params
}

fn ca_params(uri: &str) -> CertificateParams {
    let mut params = params(uri);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

pub fn self_signed(key: &PrivateKey) -> Certificate {
    let signed = ca_params("spiffe://example.org")
        .self_signed(&SignerForRcgen::new(key).unwrap())
        .unwrap();
    Certificate::parse(signed.der()).unwrap()
}

fn subject_key(key: &PrivateKey) -> SubjectKeyForRcgen<'_> {
    SubjectKeyForRcgen::new(key.public_key()).unwrap()
}

pub fn certificates(keys: &Keys) {
    let root = self_signed(&keys.p384);
    let root_issuer = Issuer::new(
        ca_params("spiffe://example.org"),
        SignerForRcgen::new(&keys.p384).unwrap(),
    );
    let mut leaf = params("spiffe://example.org/db");
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyAgreement];
    leaf.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    leaf.subject_alt_names
        .push(SanType::DnsName("db.example.org".try_into().unwrap()));
    let signed = leaf.signed_by(&subject_key(&keys.p256), &root_issuer).unwrap();
    put(
        "x509",
        "leaf_and_root",
        [signed.der().as_ref(), root.der()].concat(),
    );
    put("x509", "root", root.der());
    put("x509", "rsa_root", self_signed(&keys.rsa).der());

    let intermediate = ca_params("spiffe://example.org");
    let between = intermediate
        .clone()
        .signed_by(&subject_key(&keys.p256), &root_issuer)
        .unwrap();
    let issuer = Issuer::new(intermediate, SignerForRcgen::new(&keys.p256).unwrap());
    let signed = leaf.signed_by(&subject_key(&keys.p256), &issuer).unwrap();
    put(
        "x509",
        "leaf_intermediate_root",
        [signed.der().as_ref(), between.der(), root.der()].concat(),
    );

    let mut two = leaf.clone();
    two.subject_alt_names
        .push(SanType::URI("spiffe://example.org/other".try_into().unwrap()));
    put(
        "x509",
        "two_uris",
        two.signed_by(&subject_key(&keys.p256), &root_issuer)
            .unwrap()
            .der(),
    );
    let mut signing = leaf.clone();
    signing.key_usages.push(KeyUsagePurpose::KeyCertSign);
    put(
        "x509",
        "leaf_that_signs",
        signing
            .signed_by(&subject_key(&keys.p256), &root_issuer)
            .unwrap()
            .der(),
    );
    put("x509", "trailing", [root.der().as_ref(), b"\x30\x00"].concat());
    put("bundle_pem", "root", root.to_pem());
    put(
        "bundle_pem",
        "two",
        [
            "comment\n",
            &root.to_pem(),
            "\n",
            &self_signed(&keys.p256).to_pem(),
        ]
        .concat(),
    );
    put(
        "bundle_pem",
        "none",
        "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
    );
}

pub fn requests(keys: &Keys) {
    let id = SpiffeId::parse("spiffe://example.org/db").unwrap();
    let build = |key, uri, names: &[String]| Csr::build(key, CsrSubject::spire(), uri, names).unwrap();
    put("csr", "p256", build(&keys.p256, Some(&id), &[]));
    put(
        "csr",
        "p384_names",
        build(
            &keys.p384,
            Some(&id),
            &["db.example.org".to_owned(), "b".to_owned()],
        ),
    );
    put("csr", "rsa", build(&keys.rsa, None, &[]));
    let mut wrong = build(&keys.p256, Some(&id), &[]);
    *wrong.last_mut().unwrap() ^= 1;
    put("csr", "wrong_signature", wrong);
}

pub fn tokens(keys: &Keys) {
    let mut authority = keys.p256.public_key().to_jwk();
    authority.insert("kid".to_owned(), "seed".into());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/targets");
    fs::write(
        folder.join("jwt_authority.json"),
        format!("{}\n", Value::Object(authority)),
    )
    .unwrap();
    let sign = |claims: Value| match claims {
        Value::Object(claims) => jwt::sign(&keys.p256, "seed", &claims).unwrap(),
        _ => unreachable!("claims are an object"),
    };
    let audience = "spiffe://example.org/db";
    for (name, claims) in [
        (
            "plain",
            json!({"sub":"spiffe://example.org/web","aud":[audience],"exp":1_800_000_000,"iat":1_799_999_000}),
        ),
        (
            "one_audience",
            json!({"sub":"spiffe://example.org/web","aud":audience,"exp":1_800_000_000.5,"jti":"x"}),
        ),
        (
            "not_before",
            json!({"sub":"spiffe://example.org/web","aud":["a",audience],"exp":1_800_000_000,"nbf":1.9e9}),
        ),
        (
            "foreign",
            json!({"sub":"spiffe://other.org/web","aud":[audience],"exp":1_800_000_000}),
        ),
        (
            "huge_time",
            json!({"sub":"spiffe://example.org/web","aud":[audience],"exp":1e300,"iat":-1e300}),
        ),
        (
            "no_expiry",
            json!({"sub":"spiffe://example.org/web","aud":[audience]}),
        ),
        (
            "nested",
            json!({"sub":"spiffe://example.org/web","aud":[audience],"exp":1_800_000_000,"x":{"y":[[{}]]}}),
        ),
    ] {
        put("jwt", name, sign(claims));
    }
    let encode = |text: &str| data_encoding::BASE64URL_NOPAD.encode(text.as_bytes());
    let claims =
        encode(&json!({"sub":"spiffe://example.org/web","aud":[audience],"exp":1_800_000_000}).to_string());
    put(
        "jwt",
        "alg_none",
        format!("{}.{claims}.", encode(r#"{"alg":"none","kid":"seed"}"#)),
    );
    put(
        "jwt",
        "symmetric",
        format!(
            "{}.{claims}.AAAA",
            encode(r#"{"alg":"HS256","kid":"seed","typ":"JWT"}"#)
        ),
    );
    put(
        "jwt",
        "critical",
        format!(
            "{}.{claims}.AAAA",
            encode(r#"{"alg":"ES256","kid":"seed","crit":["b64"]}"#)
        ),
    );
}

/// Tokens with their proofs after a space; the authority and the workload have keys of their own.
pub fn wit_tokens() {
    let key = || PrivateKey::generate(KeyType::EcP256).unwrap();
    let (authority, workload) = (key(), key());
    let mut jwk = authority.public_key().to_jwk();
    jwk.insert("kid".to_owned(), "seed".into());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/targets");
    fs::write(
        folder.join("wit_authority.json"),
        format!("{}\n", Value::Object(jwk)),
    )
    .unwrap();
    let cnf = wit::confirmation(workload.public_key(), JwsAlgorithm::ES256).unwrap();
    let sign = |claims: &Value| wit::sign(&authority, "seed", claims.as_object().unwrap()).unwrap();
    let plain =
        json!({"sub":"spiffe://example.org/web","exp":1_800_000_000,"nbf":1_799_990_000,"jti":"a","cnf":cnf});
    let with = |name: &str, value: Value| {
        let mut claims = plain.clone();
        claims[name] = value;
        sign(&claims)
    };
    let token = sign(&plain);
    let until = |seconds| OffsetDateTime::from_unix_timestamp(seconds).unwrap();
    let proof = |seconds| {
        wit::sign_proof(
            &workload,
            &token,
            "https://db.example.org/orders",
            "p",
            until(seconds),
        )
        .unwrap()
    };
    put("wit", "plain", token.clone());
    put("wit", "proven", format!("{token} {}", proof(1_800_000_010)));
    put("wit", "late_proof", format!("{token} {}", proof(1_799_990_000)));
    put("wit", "long_proof", format!("{token} {}", proof(1_900_000_000)));
    put("wit", "audience", with("aud", json!("db")));
    put("wit", "thumbprint", with("cnf", json!({"jkt": "AAAA"})));
    put(
        "wit",
        "private",
        with("cnf", json!({"jwk": {"kty": "EC", "alg": "ES256", "d": "AA"}})),
    );
    put("wit", "foreign", with("sub", json!("spiffe://other.org/web")));
    put("wit", "huge_time", with("exp", json!(1e300)));
}
