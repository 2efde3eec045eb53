use std::sync::Arc;

use finial_identity::key::KeyType;
use time::Duration;

use super::super::config::X509Output;
use super::super::testing::{config, message, token as signed};
use super::*;
use crate::test_pki::Authority;

fn output(change: impl FnOnce(&mut X509Output)) -> X509Output {
    let mut output = config("/c", "").x509.unwrap();
    change(&mut output);
    output
}

fn now() -> OffsetDateTime {
    finial_identity::process::Clock::system().now()
}

fn files(
    response: &X509svidResponse,
    change: impl FnOnce(&mut X509Output),
) -> Result<X509Files, ContentError> {
    x509_files(response, &output(change), None, now())
}

fn pems(text: &str) -> Vec<String> {
    let certificates = Certificate::from_pem(text).unwrap();
    certificates.iter().map(Certificate::to_pem).collect()
}

struct World {
    authority: Authority,
    foreign: Authority,
    svid: X509Svid,
    intermediate: Certificate,
    expired: Certificate,
    response: X509svidResponse,
}

impl World {
    fn new() -> Self {
        let (authority, foreign) = (Authority::new("example.org"), Authority::new("peer.test"));
        let svid = authority.svid("/a");
        let (intermediate, other) = (Authority::new("example.org"), authority.svid("/b"));
        let expired = authority.leaf("/old", now() - Duration::days(2), now() - Duration::days(1));
        let intermediate = intermediate.certificate();
        let mut first = message(&svid, &authority, "internal");
        first.x509_svid = [svid.leaf(), &intermediate, &expired]
            .into_iter()
            .flat_map(|certificate| certificate.der().to_vec())
            .collect::<Vec<u8>>()
            .into();
        first.bundle = [expired.der().to_vec(), first.bundle.to_vec()].concat().into();
        let federated = foreign.bundle().x509_der_concat().into();
        let response = X509svidResponse {
            svids: vec![first, message(&other, &authority, "external")],
            federated_bundles: [("spiffe://peer.test".to_owned(), federated)].into(),
            ..X509svidResponse::default()
        };
        Self {
            authority,
            foreign,
            svid,
            intermediate,
            expired,
            response,
        }
    }
}

#[test]
fn by_default_intermediates_follow_the_leaf_and_only_the_own_bundle_is_written() {
    let world = World::new();
    let files = files(&world.response, |_| {}).unwrap();
    let chain = [world.svid.leaf(), &world.intermediate, &world.expired].map(Certificate::to_pem);
    assert_eq!(pems(&files.svid_pem), chain);
    assert_eq!(
        pems(&files.bundle_pem),
        [&world.expired, &world.authority.certificate()].map(Certificate::to_pem)
    );
    assert_eq!(*files.key_pem, *world.svid.key().to_pem());
    assert!(files.key_pem.starts_with("-----BEGIN PRIVATE KEY-----\n"));
    assert!(!format!("{files:?}").contains("PRIVATE"));
}

#[test]
fn intermediates_and_federated_domains_go_into_the_bundle_on_request() {
    let world = World::new();
    let files = files(&world.response, |output| {
        output.add_intermediates_to_bundle = true;
        output.include_federated_domains = true;
        output.omit_expired = true;
    })
    .unwrap();
    assert_eq!(pems(&files.svid_pem), [world.svid.leaf().to_pem()]);
    let expected = [
        world.authority.certificate(),
        world.intermediate.clone(),
        world.foreign.certificate(),
    ];
    assert_eq!(
        pems(&files.bundle_pem),
        expected.map(|certificate| certificate.to_pem())
    );
}

#[test]
fn expired_certificates_are_left_out_on_request() {
    let world = World::new();
    let files = files(&world.response, |output| output.omit_expired = true).unwrap();
    assert_eq!(
        pems(&files.svid_pem),
        [world.svid.leaf(), &world.intermediate].map(Certificate::to_pem)
    );
    assert_eq!(pems(&files.bundle_pem), [world.authority.certificate().to_pem()]);
}

#[test]
fn a_bundle_of_nothing_but_expired_authorities_is_never_written() {
    let mut world = World::new();
    world.response.svids[0].bundle = world.expired.der().to_vec().into();
    assert!(files(&world.response, |_| {}).is_ok());
    let error = files(&world.response, |output| output.omit_expired = true).unwrap_err();
    assert!(matches!(error, ContentError::EmptyBundle), "{error}");
    world.response.svids[0].bundle = Bytes::new();
    assert!(matches!(
        files(&world.response, |_| {}).unwrap_err(),
        ContentError::EmptyBundle
    ));
}

#[test]
fn the_hint_chooses_and_without_one_the_first_is_taken() {
    let world = World::new();
    let chosen = |hint| x509_files(&world.response, &output(|_| {}), hint, now());
    assert_eq!(chosen(None).unwrap().spiffe_id.path(), "/a");
    assert_eq!(chosen(Some("external")).unwrap().spiffe_id.path(), "/b");
    let error = chosen(Some("none")).unwrap_err().to_string();
    assert_eq!(error, "no SVID has the hint: none");
    assert!(matches!(
        files(&X509svidResponse::default(), |_| {}).unwrap_err(),
        ContentError::NoSvid
    ));
}

#[test]
fn what_is_not_whole_is_refused() {
    let broken = |change: fn(&mut X509svidResponse)| {
        let mut response = World::new().response;
        change(&mut response);
        files(&response, |output| output.include_federated_domains = true).unwrap_err()
    };
    let key = broken(|response| {
        let other = PrivateKey::generate(KeyType::EcP256).unwrap();
        response.svids[0].x509_svid_key = other.pkcs8_der().to_vec().into();
    });
    assert!(matches!(key, ContentError::Svid(X509Error::KeyMismatch)), "{key}");
    let no_key = broken(|response| response.svids[0].x509_svid_key = Bytes::new());
    assert!(matches!(no_key, ContentError::Key(_)), "{no_key}");
    let cut = broken(|response| {
        let der = &response.svids[0].x509_svid;
        response.svids[0].x509_svid = der.slice(..der.len() - 1);
    });
    assert!(matches!(cut, ContentError::Svid(_)), "{cut}");
    let foreign = broken(|response| {
        let garbage = Bytes::from_static(b"x");
        response
            .federated_bundles
            .insert("spiffe://peer.test".to_owned(), garbage);
    });
    assert!(
        foreign.to_string().starts_with("bundle of peer.test: "),
        "{foreign}"
    );
}

#[test]
fn jwk_sets_are_written_under_the_names_of_their_domains() {
    let jwks = Bytes::from_static(br#"{"keys":[]}"#);
    let response = |id: &str, jwks: &Bytes| JwtBundlesResponse {
        bundles: [(id.to_owned(), jwks.clone())].into(),
    };
    let text = jwt_bundle_json(&response("spiffe://example.org", &jwks)).unwrap();
    assert_eq!(text, format!("{{\"example.org\":\"{}\"}}", BASE64.encode(&jwks)));
    let error = jwt_bundle_json(&response("spiffe://example.org", &Bytes::from_static(b"{}"))).unwrap_err();
    assert!(
        error.to_string().starts_with("JWT bundle of example.org: "),
        "{error}"
    );
    assert!(jwt_bundle_json(&response("a b", &jwks)).is_err());
    assert!(jwt_bundle_json(&JwtBundlesResponse::default()).is_err());
}

#[test]
fn a_token_must_be_for_all_audiences_and_not_expired() {
    let key = Arc::new(PrivateKey::generate(KeyType::EcP256).unwrap());
    let audience = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let answer = |seconds| JwtsvidResponse {
        svids: vec![finial_proto::workload::Jwtsvid {
            spiffe_id: "spiffe://example.org/a".to_owned(),
            svid: signed(&key, &audience(&["a", "b"]), seconds),
            hint: String::new(),
        }],
    };
    let chosen = token(answer(60), &audience(&["a", "b"]), None, now()).unwrap();
    assert_eq!(chosen.spiffe_id.as_str(), "spiffe://example.org/a");
    assert!(!format!("{chosen:?}").contains(chosen.text.as_str()));
    let error = token(answer(60), &audience(&["a", "c"]), None, now()).unwrap_err();
    assert_eq!(error.to_string(), "JWT-SVID is not for the audience: c");
    let error = token(answer(-1), &audience(&["a"]), None, now()).unwrap_err();
    assert!(matches!(error, ContentError::Expired(_)), "{error}");
    assert!(token(answer(60), &audience(&["a"]), Some("x"), now()).is_err());
    assert!(token(JwtsvidResponse::default(), &audience(&["a"]), None, now()).is_err());
}
