//! WIT-SVIDs and their proofs.

use std::sync::LazyLock;

use finial_identity::jwt::JwtAuthority;
use finial_identity::key::PublicKey;
use finial_identity::spiffe_id::TrustDomain;
use finial_identity::wit::{WitAuthority, parse_unverified, validate};
use time::{Duration, OffsetDateTime};

/// The key that signed the valid tokens of the corpus.
static AUTHORITY: LazyLock<WitAuthority> = LazyLock::new(|| {
    let jwk = serde_json::from_str(include_str!("wit_authority.json")).unwrap();
    WitAuthority(JwtAuthority {
        key_id: "seed".to_owned(),
        public_key: PublicKey::from_jwk(&jwk).unwrap(),
        expires_at: 0,
        tainted: false,
    })
});

/// The request that the proofs of the corpus are for.
const TARGET: &str = "https://db.example.org/orders";

/// A token and, after a space, the proof that comes with it. The time is just before the token expires; nothing is
/// accepted that the signatures do not cover.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (token, proof) = text.split_once(' ').unwrap_or((text, ""));
    let parsed = parse_unverified(token);
    let at = match &parsed {
        Ok(parsed) => parsed
            .expires_at
            .checked_sub(Duration::SECOND)
            .unwrap_or(parsed.expires_at),
        Err(_) => OffsetDateTime::UNIX_EPOCH,
    };
    let keys = |name: &TrustDomain| (name.as_str() == "example.org").then(|| vec![AUTHORITY.clone()]);
    let Ok(unproven) = validate(token, &keys, at, Duration::ZERO) else {
        return;
    };
    let parsed = parsed.expect("a valid token can be read");
    assert_eq!(*unproven.confirmation_key(), parsed.confirmation.public_key);
    assert_eq!(unproven.confirmation_algorithm(), parsed.confirmation.algorithm);
    assert!(!parsed.claims.contains_key("aud"), "an audience");
    assert!(
        validate(token, &|_| None, at, Duration::ZERO).is_err(),
        "no bundle"
    );
    if let Some((input, _)) = token.rsplit_once('.') {
        let stripped = format!("{input}.");
        assert!(
            validate(&stripped, &keys, at, Duration::ZERO).is_err(),
            "unsigned"
        );
    }
    for no_proof in ["", token, "a.b.c"] {
        let unproven = validate(token, &keys, at, Duration::ZERO).expect("as before");
        assert!(
            unproven
                .prove_token(no_proof, TARGET, at, Duration::ZERO)
                .is_err()
        );
    }
    if let Ok(valid) = unproven.prove_token(proof, TARGET, at, Duration::ZERO) {
        assert_eq!(valid.spiffe_id.trust_domain().as_str(), "example.org");
        assert_eq!(valid.claims, parsed.claims);
        assert!(valid.proof_id.is_some_and(|id| !id.is_empty()));
        let again = validate(token, &keys, at, Duration::ZERO).expect("as before");
        assert!(
            again.prove_token(proof, "https://x", at, Duration::ZERO).is_err(),
            "another target"
        );
    }
}
