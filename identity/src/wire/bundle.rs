//! Bundles on the wire.

use finial_proto::spire::api::types;

use super::{WireCause, WireError, of};
use crate::bundle::{Bundle, JwtAuthority, WitAuthority, X509Authority};
use crate::key::PublicKey;
use crate::spiffe_id::TrustDomain;
use crate::x509::Certificate;

/// Reads a bundle with its taint. A certificate or a key ID that comes twice counts once; a negative
/// refresh hint is none.
///
/// # Errors
/// The trust domain, a certificate or a key is malformed, or a key has no ID.
pub fn bundle_from_wire(bundle: types::Bundle) -> Result<Bundle, WireError> {
    let trust_domain = TrustDomain::parse_name_or_id(&bundle.trust_domain).map_err(of("trust_domain"))?;
    let mut read = Bundle::new(trust_domain);
    read.refresh_hint = bundle.refresh_hint.max(0);
    read.sequence_number = bundle.sequence_number;
    let keys = bundle
        .jwt_authorities
        .iter()
        .map(jwt_authority_from_wire)
        .collect::<Result<_, _>>()?;
    read.append(x509_authorities_from_wire(&bundle.x509_authorities)?, keys);
    let keys = bundle
        .wit_authorities
        .iter()
        .map(wit_authority_from_wire)
        .collect::<Result<_, _>>()?;
    read.append_wit(keys);
    Ok(read)
}

/// Reads a bundle that was taken by other rules once, as [`bundle_from_wire`] does but without the authorities that
/// cannot be read, and says what is wrong with those.
///
/// # Errors
/// The trust domain is malformed.
pub fn bundle_from_wire_with_skipped(bundle: types::Bundle) -> Result<(Bundle, Vec<WireError>), WireError> {
    let mut skipped = Vec::new();
    let mut bundle = bundle;
    bundle.x509_authorities.retain(|item| {
        is_whole(
            x509_authorities_from_wire(std::slice::from_ref(item)),
            &mut skipped,
        )
    });
    bundle
        .jwt_authorities
        .retain(|key| is_whole(jwt_authority_from_wire(key), &mut skipped));
    bundle
        .wit_authorities
        .retain(|key| is_whole(wit_authority_from_wire(key), &mut skipped));
    Ok((bundle_from_wire(bundle)?, skipped))
}

fn is_whole<T>(read: Result<T, WireError>, skipped: &mut Vec<WireError>) -> bool {
    read.map_err(|error| skipped.push(error)).is_ok()
}

/// Writes a bundle whole.
#[must_use]
pub fn bundle_to_wire(bundle: &Bundle) -> types::Bundle {
    types::Bundle {
        trust_domain: bundle.trust_domain.as_str().to_owned(),
        x509_authorities: bundle
            .x509_authorities
            .iter()
            .map(x509_authority_to_wire)
            .collect(),
        jwt_authorities: bundle.jwt_authorities.iter().map(jwt_authority_to_wire).collect(),
        refresh_hint: bundle.refresh_hint,
        sequence_number: bundle.sequence_number,
        wit_authorities: bundle.wit_authorities.iter().map(wit_authority_to_wire).collect(),
    }
}

/// Reads X.509 authorities with their taint. As in SPIRE, one item may hold several certificates back
/// to back. In errors the field is `x509_authorities`.
///
/// # Errors
/// An item is empty or is not made of certificates.
pub fn x509_authorities_from_wire(items: &[types::X509Certificate]) -> Result<Vec<X509Authority>, WireError> {
    let mut authorities = Vec::with_capacity(items.len());
    for item in items {
        let certificates = Certificate::parse_many(&item.asn1).map_err(of(X509_AUTHORITIES))?;
        if certificates.is_empty() {
            return Err(WireError::missing(X509_AUTHORITIES));
        }
        let with_taint = |certificate| X509Authority {
            certificate,
            tainted: item.tainted,
        };
        authorities.extend(certificates.into_iter().map(with_taint));
    }
    Ok(authorities)
}

/// Writes an X.509 authority.
#[must_use]
pub fn x509_authority_to_wire(authority: &X509Authority) -> types::X509Certificate {
    types::X509Certificate {
        asn1: authority.certificate.der().to_vec(),
        tainted: authority.tainted,
    }
}

/// Reads a JWT authority with its taint. In errors the field is `key_id` or `jwt_authorities`.
///
/// # Errors
/// The key has no ID, is malformed, or is of a kind that signs no JWT-SVIDs.
pub fn jwt_authority_from_wire(key: &types::JwtKey) -> Result<JwtAuthority, WireError> {
    Ok(JwtAuthority {
        key_id: key.key_id.clone(),
        public_key: token_key_from_wire(&key.key_id, &key.public_key, JWT_AUTHORITIES)?,
        expires_at: key.expires_at,
        tainted: key.tainted,
    })
}

/// Reads a WIT authority with its taint. In errors the field is `key_id` or `wit_authorities`.
///
/// # Errors
/// As [`jwt_authority_from_wire`].
pub fn wit_authority_from_wire(key: &types::WitKey) -> Result<WitAuthority, WireError> {
    Ok(WitAuthority(JwtAuthority {
        key_id: key.key_id.clone(),
        public_key: token_key_from_wire(&key.key_id, &key.public_key, WIT_AUTHORITIES)?,
        expires_at: key.expires_at,
        tainted: key.tainted,
    }))
}

/// Writes a WIT authority.
#[must_use]
pub fn wit_authority_to_wire(WitAuthority(authority): &WitAuthority) -> types::WitKey {
    types::WitKey {
        public_key: authority.public_key.spki_der().to_vec(),
        key_id: authority.key_id.clone(),
        expires_at: authority.expires_at,
        tainted: authority.tainted,
    }
}

fn token_key_from_wire(key_id: &str, spki_der: &[u8], field: &'static str) -> Result<PublicKey, WireError> {
    if key_id.is_empty() {
        return Err(WireError::missing("key_id"));
    }
    let public_key = PublicKey::from_spki_der(spki_der).map_err(of(field))?;
    if public_key.jws_algorithms().is_empty() {
        return Err(WireError {
            field,
            cause: WireCause::NotForJwt,
        });
    }
    Ok(public_key)
}

/// Writes a JWT authority.
#[must_use]
pub fn jwt_authority_to_wire(authority: &JwtAuthority) -> types::JwtKey {
    types::JwtKey {
        public_key: authority.public_key.spki_der().to_vec(),
        key_id: authority.key_id.clone(),
        expires_at: authority.expires_at,
        tainted: authority.tainted,
    }
}

const X509_AUTHORITIES: &str = "x509_authorities";
const JWT_AUTHORITIES: &str = "jwt_authorities";
const WIT_AUTHORITIES: &str = "wit_authorities";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::testing::{bundle, wit};

    /// A bundle with a value in every field.
    fn full() -> Bundle {
        let mut bundle = Bundle {
            refresh_hint: 300,
            sequence_number: u64::MAX,
            ..bundle()
        };
        bundle.x509_authorities[1].tainted = true;
        bundle.jwt_authorities[0].tainted = true;
        bundle.jwt_authorities[1].expires_at = 77;
        bundle.append_wit(vec![wit("w")]);
        bundle.wit_authorities[0].0.tainted = true;
        bundle.wit_authorities[0].0.expires_at = 78;
        bundle
    }

    fn refused(change: impl FnOnce(&mut types::Bundle)) -> WireError {
        let mut wire = bundle_to_wire(&full());
        change(&mut wire);
        bundle_from_wire(wire).unwrap_err()
    }

    #[test]
    fn a_bundle_keeps_every_field_in_both_directions() {
        let bundle = full();
        assert_eq!(bundle_from_wire(bundle_to_wire(&bundle)).unwrap(), bundle);
    }

    #[test]
    fn authorities_that_cannot_be_read_are_left_out_where_that_is_wanted() {
        let bundle = full();
        let mut wire = bundle_to_wire(&bundle);
        assert_eq!(
            bundle_from_wire_with_skipped(wire.clone()).unwrap().0,
            bundle,
            "nothing is wrong"
        );
        wire.x509_authorities[0].asn1.pop();
        wire.jwt_authorities[1].public_key.clear();
        wire.wit_authorities[0].key_id.clear();
        assert!(bundle_from_wire(wire.clone()).is_err());
        let (read, skipped) = bundle_from_wire_with_skipped(wire).unwrap();
        let expected = Bundle {
            x509_authorities: vec![bundle.x509_authorities[1].clone()],
            jwt_authorities: vec![bundle.jwt_authorities[0].clone()],
            wit_authorities: Vec::new(),
            ..bundle
        };
        assert_eq!(read, expected);
        let fields: Vec<_> = skipped.iter().map(|error| error.field).collect();
        assert_eq!(fields, ["x509_authorities", "jwt_authorities", "key_id"]);
    }

    #[test]
    fn several_certificates_in_one_item_are_taken_apart() {
        let bundle = full();
        let item = types::X509Certificate {
            asn1: bundle.x509_der_concat(),
            tainted: false,
        };
        let read = x509_authorities_from_wire(&[item]).unwrap();
        assert_eq!(
            read.iter().map(|a| a.certificate.der()).collect::<Vec<_>>().len(),
            2
        );
        assert_eq!(
            read[1].certificate.der(),
            bundle.x509_authorities[1].certificate.der()
        );
    }

    #[test]
    fn a_bundle_may_come_with_the_id_of_its_trust_domain() {
        let wire = types::Bundle {
            trust_domain: "spiffe://example.org".into(),
            ..bundle_to_wire(&full())
        };
        assert_eq!(
            bundle_to_wire(&bundle_from_wire(wire).unwrap()).trust_domain,
            "example.org"
        );
    }

    #[test]
    fn errors_name_the_field_of_a_bundle() {
        assert_eq!(refused(|b| b.trust_domain.clear()).field, "trust_domain");
        assert_eq!(
            refused(|b| b.x509_authorities[0].asn1.clear()).field,
            "x509_authorities"
        );
        assert_eq!(
            refused(|b| b.x509_authorities[0].asn1.truncate(40)).field,
            "x509_authorities"
        );
        assert_eq!(
            refused(|b| b.x509_authorities[0].asn1.push(0)).field,
            "x509_authorities"
        );
        let error = refused(|b| b.jwt_authorities[1].key_id.clear());
        assert_eq!(error.to_string(), "invalid key_id: it is missing");
        assert_eq!(
            refused(|b| b.jwt_authorities[0].public_key.truncate(8)).field,
            "jwt_authorities"
        );
        let error = refused(|b| b.wit_authorities[0].public_key.truncate(8));
        assert_eq!(error.field, "wit_authorities");
    }

    #[test]
    fn a_key_that_signs_no_jwt_svids_is_refused() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let public_key = rcgen::PublicKeyData::subject_public_key_info(&key);
        let error = refused(|b| b.jwt_authorities[0].public_key = public_key);
        assert_eq!(error.field, "jwt_authorities");
    }

    #[test]
    fn a_negative_hint_is_none_and_repeats_count_once() {
        let bundle = full();
        let mut wire = bundle_to_wire(&bundle);
        wire.refresh_hint = -1;
        wire.x509_authorities.push(wire.x509_authorities[0].clone());
        wire.jwt_authorities.push(wire.jwt_authorities[1].clone());
        assert_eq!(
            bundle_from_wire(wire).unwrap(),
            Bundle {
                refresh_hint: 0,
                ..bundle
            }
        );
    }
}
