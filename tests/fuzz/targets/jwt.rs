//! JWT-SVIDs.

use std::sync::LazyLock;

use finial_identity::jwt::{JwtAuthority, parse_unverified, validate};
use finial_identity::key::PublicKey;
use finial_identity::spiffe_id::TrustDomain;
use time::{Duration, OffsetDateTime};

/// The key that signed the valid tokens of the corpus.
static AUTHORITY: LazyLock<JwtAuthority> = LazyLock::new(|| {
    let jwk = serde_json::from_str(include_str!("jwt_authority.json")).unwrap();
    JwtAuthority {
        key_id: "seed".to_owned(),
        public_key: PublicKey::from_jwk(&jwk).unwrap(),
        expires_at: 0,
        tainted: false,
    }
});

/// A token, whose signature is not skipped but whose time is: it is judged just before it expires.
pub fn run(data: &[u8]) {
    let Ok(token) = std::str::from_utf8(data) else {
        return;
    };
    let keys = |name: &TrustDomain| (name.as_str() == "example.org").then(|| vec![AUTHORITY.clone()]);
    let parsed = parse_unverified(token);
    let at = match &parsed {
        Ok(parsed) => parsed
            .expires_at
            .checked_sub(Duration::SECOND)
            .unwrap_or(parsed.expires_at),
        Err(_) => OffsetDateTime::UNIX_EPOCH,
    };
    let validated = validate(token, &keys, &["spiffe://example.org/db"], at, Duration::ZERO);
    if let Ok(valid) = &validated {
        let parsed = parsed.expect("a valid token can be read");
        assert_eq!(valid.spiffe_id, parsed.spiffe_id);
        assert_eq!(valid.claims, parsed.claims);
        assert_eq!(valid.expires_at, parsed.expires_at);
        assert_eq!(valid.kid, "seed");
        assert_eq!(valid.spiffe_id.trust_domain().as_str(), "example.org");
        assert!(
            valid
                .audience
                .iter()
                .any(|audience| audience == "spiffe://example.org/db")
        );
        assert!(token.matches('.').count() == 2 && token.len() <= 64 * 1024);
        assert!(
            validate(token, &keys, &["other"], at, Duration::ZERO).is_err(),
            "another audience"
        );
        assert!(
            validate(token, &keys, &[""], at, Duration::ZERO).is_err(),
            "no audience"
        );
        assert!(
            validate(token, &|_| None, &["spiffe://example.org/db"], at, Duration::ZERO).is_err(),
            "no bundle"
        );
        // Fractions of seconds are dropped, years that the calendar lacks are clamped.
        let late = valid
            .expires_at
            .checked_add(Duration::SECOND)
            .unwrap_or(valid.expires_at);
        let is_late = late.year() >= 9999
            || validate(token, &keys, &["spiffe://example.org/db"], late, Duration::ZERO).is_err();
        assert!(is_late, "expired");
        if let Some((input, _)) = token.rsplit_once('.') {
            let stripped = format!("{input}.");
            assert!(
                validate(&stripped, &keys, &["spiffe://example.org/db"], at, Duration::ZERO).is_err(),
                "unsigned"
            );
        }
    }
}
