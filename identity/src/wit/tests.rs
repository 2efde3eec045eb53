use data_encoding::BASE64URL_NOPAD;
use serde_json::{Map, Value, json};
use time::{Duration, OffsetDateTime};

use super::*;
use crate::jwt;
use crate::key::{JwsAlgorithm, KeyType, PrivateKey, Signer};
use crate::spiffe_id::TrustDomain;
use crate::x509::testing::NOW;

const TARGET: &str = "https://db.example.org/orders";
/// WIT-SVID, Appendix A.
const SAMPLE: &str = "eyJhbGciOiJFUzI1NiIsImtpZCI6ImxRU2kzaFpGbmRhMkQtWEprajF6bDdmb0pvdWl3STRuckF5aHk0alppSmciLCJ0eXAiOiJ3aXQrand0In0.eyJjbmYiOnsiandrIjp7ImFsZyI6IkVTMjU2IiwiY3J2IjoiUC0yNTYiLCJrdHkiOiJFQyIsIngiOiJyelA3bUxDS0FIV21zTTZYMEV3VklTQ19oSTN1amN1OTVmZlVreWVER0dvIiwieSI6InVPcmZEbGp0WDltM2pZLWhzeWhMSllheHRHa3pEdjVlNWttQ2U1OFo5N2cifX0sImV4cCI6MTc2NTQ1NjUwMywiaWF0IjoxNzY1NDUyOTAzLCJqdGkiOiIxeWoxOVY0TWNPQXpNY0ZpN3F2c2dfQWdDeGxyWTVFX3g1MDl3bEtLUXRjIiwic3ViIjoic3BpZmZlOi8vZXhhbXBsZS5jb20vbXktd29ya2xvYWQifQ.sfhEvZNdY_kWrICF08lX0u__rn39YnTavnW-VPBS20zgowDh6-X43v5eOUKZbjZf06yLBQM-Mry5w1g1QFsCkg";

/// `example.org` with one WIT authority, `k`, and a workload with its key.
struct World {
    authority: PrivateKey,
    workload: PrivateKey,
}

impl World {
    fn new() -> Self {
        let key = || PrivateKey::generate(KeyType::EcP256).unwrap();
        Self {
            authority: key(),
            workload: key(),
        }
    }

    fn claims(&self, change: Value) -> Map<String, Value> {
        let now = NOW.unix_timestamp();
        let cnf = confirmation(self.workload.public_key(), JwsAlgorithm::ES256).unwrap();
        let mut claims =
            json!({"sub": "spiffe://example.org/a", "exp": now + 300, "nbf": now - 10, "cnf": cnf})
                .as_object()
                .unwrap()
                .clone();
        for (name, value) in change.as_object().unwrap() {
            match value {
                Value::Null => claims.remove(name),
                value => claims.insert(name.clone(), value.clone()),
            };
        }
        claims
    }

    fn token(&self, change: Value) -> String {
        sign(&self.authority, "k", &self.claims(change)).unwrap()
    }

    fn with_header(&self, header: Value) -> Result<UnprovenWit, WitError> {
        let claims = Value::Object(self.claims(json!({}))).to_string();
        let part = |text: String| BASE64URL_NOPAD.encode(text.as_bytes());
        let input = format!("{}.{}", part(header.to_string()), part(claims));
        let signature = self.authority.sign_jws(input.as_bytes()).unwrap();
        self.validate(&format!("{input}.{}", BASE64URL_NOPAD.encode(&signature)))
    }

    fn authorities(&self) -> Vec<WitAuthority> {
        vec![WitAuthority(JwtAuthority {
            key_id: "k".to_owned(),
            public_key: self.authority.public_key().clone(),
            expires_at: 0,
            tainted: false,
        })]
    }

    fn validate_at(&self, token: &str, at: OffsetDateTime) -> Result<UnprovenWit, WitError> {
        let keys = |name: &TrustDomain| (name.as_str() == "example.org").then(|| self.authorities());
        validate(token, &keys, at, DEFAULT_SKEW)
    }

    fn validate(&self, token: &str) -> Result<UnprovenWit, WitError> {
        self.validate_at(token, NOW)
    }

    fn with_claims(&self, change: Value) -> Result<UnprovenWit, WitError> {
        self.validate(&self.token(change))
    }

    fn proof(&self, token: &str, id: &str) -> String {
        sign_proof(&self.workload, token, TARGET, id, NOW + Duration::seconds(10)).unwrap()
    }

    fn prove(&self, token: &str, proof: &str) -> Result<ValidatedWit, WitError> {
        self.validate(token)?
            .prove_token(proof, TARGET, NOW, Duration::seconds(5))
    }
}

/// Covers WIT-27.
#[test]
fn a_token_with_its_proof_says_whose_it_is() {
    let world = World::new();
    let token = world.token(json!({"iss": "x", "more": [1]}));
    let unproven = world.validate(&token).unwrap();
    assert_eq!(unproven.confirmation_key(), world.workload.public_key());
    assert_eq!(unproven.confirmation_algorithm(), JwsAlgorithm::ES256);
    let valid = world.prove(&token, &world.proof(&token, "p1")).unwrap();
    assert_eq!(valid.spiffe_id.as_str(), "spiffe://example.org/a");
    assert_eq!(valid.kid, "k");
    assert_eq!(valid.expires_at, NOW + Duration::seconds(300));
    assert_eq!(valid.proof_id.as_deref(), Some("p1"));
    assert_eq!(valid.claims["more"], json!([1]));
    let signature = world.workload.sign_jws(b"this request").unwrap();
    let valid = unproven.prove_signature(b"this request", &signature).unwrap();
    assert_eq!(valid.spiffe_id.as_str(), "spiffe://example.org/a");
}

#[test]
fn the_header_has_three_members_and_the_type() {
    let world = World::new();
    let token = world.token(json!({}));
    let header = BASE64URL_NOPAD.decode(token.split('.').next().unwrap().as_bytes());
    let header: Value = serde_json::from_slice(&header.unwrap()).unwrap();
    assert_eq!(header, json!({"alg": "ES256", "kid": "k", "typ": "wit+jwt"}));
}

#[test]
fn debug_of_an_unproven_token_does_not_say_whose_it_is() {
    let world = World::new();
    let unproven = world.with_claims(json!({})).unwrap();
    assert!(!format!("{unproven:?}").contains("spiffe://"));
}

#[test]
fn e46_neither_kind_of_token_passes_for_the_other() {
    let world = World::new();
    let wit = world.token(json!({}));
    let keys = |_: &TrustDomain| Some(vec![world.authorities().remove(0).0]);
    let as_jwt = jwt::validate(&wit, &keys, &["db"], NOW, Duration::ZERO).unwrap_err();
    assert!(matches!(as_jwt, JwtError::Type { found, .. } if found == "wit+jwt"));
    let token = jwt::sign(&world.authority, "k", &world.claims(json!({}))).unwrap();
    assert!(matches!(
        world.validate(&token),
        Err(WitError::Token(JwtError::Type { .. }))
    ));
}

/// Covers WIT-02, WIT-12, WIT-13, WIT-14.
#[test]
fn e47_a_token_without_key_id_or_usable_confirmation_is_refused() {
    let world = World::new();
    let alg = |alg: Value| {
        let mut cnf = confirmation(world.workload.public_key(), JwsAlgorithm::ES256).unwrap();
        cnf["jwk"]["alg"] = alg;
        json!({ "cnf": cnf })
    };
    assert!(matches!(
        world.with_header(json!({"alg": "ES256", "typ": "wit+jwt"})),
        Err(WitError::Token(JwtError::KeyIdMissing))
    ));
    assert!(matches!(
        world.with_claims(json!({"cnf": null})),
        Err(WitError::ConfirmationMissing)
    ));
    let mut private = alg(json!("ES256"));
    private["cnf"]["jwk"]["d"] = json!("AA");
    let mut no_alg = alg(json!("ES256"));
    no_alg["cnf"]["jwk"].as_object_mut().unwrap().remove("alg");
    for (claims, why) in [
        (json!({"cnf": {"jkt": "AAAA"}}), "no jwk"),
        (json!({"cnf": "x"}), "not an object"),
        (json!({"cnf": {"jwk": []}}), "not an object"),
        (private, "not a public key"),
        (no_alg, "no alg"),
        (alg(json!("EdDSA")), "unsupported alg"),
        (alg(json!("es256")), "unsupported alg"),
        (alg(json!(7)), "not a string"),
        (alg(json!("ES384")), "does not fit"),
    ] {
        let error = world.with_claims(claims.clone()).unwrap_err();
        assert!(error.to_string().contains(why), "{claims}: {error}");
    }
    let mut broken = alg(json!("ES256"));
    broken["cnf"]["jwk"]["x"] = json!("AA");
    assert!(matches!(
        world.with_claims(broken),
        Err(WitError::ConfirmationKey(_))
    ));
}

/// Covers WIT-26.
#[test]
fn e48_without_a_proof_by_the_confirmed_key_nothing_is_accepted() {
    let world = World::new();
    let token = world.token(json!({}));
    for no_proof in ["", "a.b.c", token.as_str()] {
        assert!(matches!(world.prove(&token, no_proof), Err(WitError::Proof(_))));
    }
    let thief = World::new();
    let stolen = sign_proof(&thief.workload, &token, TARGET, "p", NOW);
    assert!(stolen.is_err(), "another key makes no proof");
    let other = thief.token(json!({}));
    let error = world.prove(&token, &thief.proof(&other, "p")).unwrap_err();
    assert!(matches!(error, WitError::NotProven(_)), "{error}");
    let signature = thief.workload.sign_jws(b"input").unwrap();
    let unproven = world.validate(&token).unwrap();
    assert!(matches!(
        unproven.prove_signature(b"input", &signature),
        Err(WitError::NotProven(_))
    ));
}

/// Covers WIT-32.
#[test]
fn a_proof_is_for_one_token_one_target_and_a_short_time() {
    let world = World::new();
    let token = world.token(json!({}));
    let other = world.token(json!({"jti": "other"}));
    let refused = |proof: &str, target: &str, at: OffsetDateTime| {
        let unproven = world.validate_at(&token, NOW).unwrap();
        let error = unproven.prove_token(proof, target, at, Duration::seconds(5));
        error.unwrap_err().to_string()
    };
    assert!(refused(&world.proof(&other, "p"), TARGET, NOW).contains("another WIT-SVID"));
    let proof = world.proof(&token, "p");
    assert!(refused(&proof, "https://db.example.org/other", NOW).contains("another target"));
    assert!(refused(&proof, TARGET, NOW + Duration::seconds(15)).contains("expired"));
    let long = NOW + MAX_PROOF_LIFE + Duration::minutes(1);
    let long = sign_proof(&world.workload, &token, TARGET, "p", long).unwrap();
    assert!(refused(&long, TARGET, NOW).contains("lives too long"));
    let nameless = world.proof(&token, "");
    assert!(refused(&nameless, TARGET, NOW).contains("no jti"));
    let mut forged = proof.clone();
    forged.replace_range(proof.len() - 4.., "AAAA");
    assert!(refused(&forged, TARGET, NOW).contains("not by the confirmed key"));
}

#[test]
fn e49_a_token_with_an_audience_is_refused() {
    let world = World::new();
    for audience in [json!("db"), json!(["db"]), json!([])] {
        assert!(matches!(
            world.with_claims(json!({ "aud": audience })),
            Err(WitError::Audience)
        ));
    }
}

/// Covers WIT-16, WIT-20.
#[test]
fn e50_a_token_may_come_twice_and_iat_says_nothing() {
    let world = World::new();
    let token = world.token(json!({"jti": "one", "nbf": null, "iat": NOW.unix_timestamp() + 3600}));
    for id in ["p1", "p2"] {
        let valid = world.prove(&token, &world.proof(&token, id)).unwrap();
        assert_eq!(valid.proof_id.as_deref(), Some(id));
    }
}

/// Covers WIT-17, WIT-18, WIT-19.
#[test]
fn times_have_a_skew_at_the_end_and_none_at_the_start() {
    let world = World::new();
    let seconds = |seconds: i64| NOW.unix_timestamp() + seconds;
    assert!(world.with_claims(json!({"exp": seconds(-59)})).is_ok());
    for (claims, wanted) in [
        (json!({"exp": null}), "no expiry"),
        (json!({"exp": "1999999999"}), "not a number"),
        (json!({"exp": seconds(-60)}), "expired"),
        (json!({"nbf": seconds(1)}), "not valid yet"),
    ] {
        let error = world.with_claims(claims).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    assert!(world.with_claims(json!({"nbf": seconds(0)})).is_ok());
}

/// Covers WIT-03, WIT-05, WIT-07.
#[test]
fn headers_other_than_the_right_one_are_refused() {
    let world = World::new();
    let header = |change: Value| {
        let mut header = json!({"alg": "ES256", "kid": "k", "typ": "wit+jwt"});
        for (name, value) in change.as_object().unwrap() {
            header[name] = value.clone();
        }
        header
    };
    assert!(
        world
            .with_header(header(json!({"x": 1, "jku": "https://x"})))
            .is_ok()
    );
    for typ in ["JWT", "WIT+JWT", "wit", "application/wit+jwt", ""] {
        assert!(world.with_header(header(json!({ "typ": typ }))).is_err(), "{typ}");
    }
    for alg in ["none", "HS256", "EdDSA", "es256", "ES384"] {
        assert!(world.with_header(header(json!({ "alg": alg }))).is_err(), "{alg}");
    }
    assert!(world.with_header(header(json!({"crit": ["x"]}))).is_err());
    assert!(matches!(
        world.with_header(header(json!({"kid": "K"}))),
        Err(WitError::UnknownAuthority { .. })
    ));
}

#[test]
fn only_the_subjects_own_trust_domain_vouches() {
    let world = World::new();
    assert!(matches!(
        world.with_claims(json!({"sub": "spiffe://b.test/a"})),
        Err(WitError::NoBundle(_))
    ));
    for subject in [
        json!(null),
        json!("example.org/a"),
        json!("spiffe://example.org/a/"),
        json!(1),
    ] {
        assert!(world.with_claims(json!({ "sub": subject })).is_err());
    }
}

#[test]
fn the_example_of_the_standard_is_read_and_has_expired() {
    let read = parse_unverified(SAMPLE).unwrap();
    assert_eq!(read.kid, "lQSi3hZFnda2D-XJkj1zl7foJouiwI4nrAyhy4jZiJg");
    assert_eq!(read.claims["sub"], "spiffe://example.com/my-workload");
    assert_eq!(read.expires_at.unix_timestamp(), 1_765_456_503);
    let jwk = read.confirmation.public_key.to_jwk();
    assert_eq!(jwk["x"], "rzP7mLCKAHWmsM6X0EwVISC_hI3ujcu95ffUkyeDGGo");
    assert!(World::new().validate(SAMPLE).is_err());
}

#[test]
fn a_confirmation_is_a_public_key_with_its_algorithm() {
    let key = PrivateKey::generate(KeyType::Rsa2048).unwrap();
    let cnf = confirmation(key.public_key(), JwsAlgorithm::PS256).unwrap();
    assert_eq!(cnf["jwk"]["alg"], "PS256");
    assert_eq!(cnf["jwk"].as_object().unwrap().len(), 4);
    assert!(confirmation(key.public_key(), JwsAlgorithm::ES256).is_err());
}
