//! Reads back what was signed and compares it with what was to be signed.
//!
//! The parser shares no code with the encoder: a bug in either is found here, before anything is sent.

use finial_identity::key::{KeyError, PublicKey, PublicKeyKind, X509SignatureAlgorithm};
use thiserror::Error;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension, X509Extension};
use x509_parser::oid_registry::{
    OID_PKCS1_SHA256WITHRSA, OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384,
};
use x509_parser::prelude::{FromDer, X509Version};

use super::issuer::SignedBy;
use super::profile::X509Profile;

/// What came out differently. Always a fault of this program or of a key manager, never of a caller.
#[derive(Debug, Error)]
pub enum CheckError {
    #[error("signed certificate cannot be parsed: {0}")]
    Unparsable(String),
    #[error("signed certificate differs from its profile: {0}")]
    Differs(&'static str),
    #[error("signed token differs from its profile: {0}")]
    TokenDiffers(&'static str),
    #[error("signature of the authority does not verify: {0}")]
    Signature(#[from] KeyError),
}

/// Compares every field of a signed certificate with the profile that it was made from, and its signed part with the
/// bytes that were handed to the signer: the parser overlooks some faults of form. The signature itself is verified where
/// the key is not in this process, and on certificates that sign themselves.
pub fn check_certificate(
    certificate_der: &[u8],
    tbs_der: &[u8],
    profile: &X509Profile,
    signed_by: &SignedBy<'_>,
) -> Result<(), CheckError> {
    let (rest, certificate) = X509Certificate::from_der(certificate_der)
        .map_err(|error| CheckError::Unparsable(error.to_string()))?;
    let tbs = &certificate.tbs_certificate;
    ensure(rest.is_empty(), "trailing bytes")?;
    ensure(tbs.as_ref() == tbs_der, "signed part")?;
    ensure(tbs.version == X509Version::V3, "version")?;
    ensure(
        profile.serial.is_encoded_as(certificate.raw_serial()),
        "serial number",
    )?;
    check_algorithm(&certificate, signed_by)?;
    ensure(tbs.issuer.as_raw() == signed_by.issuer_der(profile), "issuer")?;
    let validity = profile.validity;
    ensure(
        tbs.validity.not_before.to_datetime() == validity.not_before,
        "not before",
    )?;
    ensure(
        tbs.validity.not_after.to_datetime() == validity.not_after,
        "not after",
    )?;
    ensure(profile.subject.name.is_same_as(&tbs.subject), "subject")?;
    ensure(tbs.subject_pki.raw == profile.public_key.spki_der(), "public key")?;
    ensure(
        tbs.issuer_uid.is_none() && tbs.subject_uid.is_none(),
        "unique identifiers",
    )?;
    check_extensions(tbs.extensions(), profile, signed_by)?;
    if !signed_by.signer.in_process() || signed_by.signs_itself() {
        let signature: &[u8] = &certificate.signature_value.data;
        verify_signature(signed_by.signer.public_key(), tbs.as_ref(), signature)?;
    }
    Ok(())
}

/// Verifies a signature by the algorithm that authorities use with that kind of key.
pub(super) fn verify_signature(key: &PublicKey, tbs_der: &[u8], signature: &[u8]) -> Result<(), KeyError> {
    let algorithm = match key.kind() {
        PublicKeyKind::EcP384 => X509SignatureAlgorithm::EcdsaSha384,
        PublicKeyKind::Rsa { .. } => X509SignatureAlgorithm::RsaSha256,
        // Other kinds are refused as a mismatch.
        _ => X509SignatureAlgorithm::EcdsaSha256,
    };
    key.verify_x509(algorithm, tbs_der, signature)
}

pub(super) fn ensure(holds: bool, what: &'static str) -> Result<(), CheckError> {
    if holds {
        Ok(())
    } else {
        Err(CheckError::Differs(what))
    }
}

fn check_algorithm(certificate: &X509Certificate<'_>, signed_by: &SignedBy<'_>) -> Result<(), CheckError> {
    let (expected, null_parameters) = match signed_by.signer.public_key().kind() {
        PublicKeyKind::EcP256 => (&OID_SIG_ECDSA_WITH_SHA256, false),
        PublicKeyKind::EcP384 => (&OID_SIG_ECDSA_WITH_SHA384, false),
        PublicKeyKind::Rsa { .. } => (&OID_PKCS1_SHA256WITHRSA, true),
        _ => return Err(CheckError::Differs("signing key")),
    };
    for identifier in [
        &certificate.tbs_certificate.signature,
        &certificate.signature_algorithm,
    ] {
        ensure(identifier.algorithm == *expected, "signature algorithm")?;
        let is_null = identifier
            .parameters
            .as_ref()
            .is_some_and(|value| value.as_null().is_ok());
        let fits = if null_parameters {
            is_null
        } else {
            identifier.parameters.is_none()
        };
        ensure(fits, "parameters of the signature algorithm")?;
    }
    Ok(())
}

fn check_extensions(
    extensions: &[X509Extension<'_>],
    profile: &X509Profile,
    signed_by: &SignedBy<'_>,
) -> Result<(), CheckError> {
    let is_ca = profile.kind.is_ca();
    let mut extensions = extensions.iter();
    let mut next = |critical: bool, what: &'static str| match extensions.next() {
        Some(extension) if extension.critical == critical => Ok(extension.parsed_extension()),
        _ => Err(CheckError::Differs(what)),
    };

    let usage = if is_ca {
        KEY_CERT_SIGN | CRL_SIGN
    } else {
        DIGITAL_SIGNATURE | KEY_ENCIPHERMENT | KEY_AGREEMENT
    };
    let ParsedExtension::KeyUsage(found) = next(true, "key usage")? else {
        return Err(CheckError::Differs("key usage"));
    };
    ensure(found.flags == usage, "key usage")?;

    if !is_ca {
        let ParsedExtension::ExtendedKeyUsage(found) = next(false, "extended key usage")? else {
            return Err(CheckError::Differs("extended key usage"));
        };
        let others = found.any
            || found.code_signing
            || found.email_protection
            || found.time_stamping
            || found.ocsp_signing
            || !found.other.is_empty();
        ensure(
            found.server_auth && found.client_auth && !others,
            "extended key usage",
        )?;
    }

    let ParsedExtension::BasicConstraints(found) = next(true, "basic constraints")? else {
        return Err(CheckError::Differs("basic constraints"));
    };
    ensure(
        found.ca == is_ca && found.path_len_constraint.is_none(),
        "basic constraints",
    )?;

    let ParsedExtension::SubjectKeyIdentifier(found) = next(false, "subject key identifier")? else {
        return Err(CheckError::Differs("subject key identifier"));
    };
    ensure(
        found.0 == profile.public_key.subject_key_id(),
        "subject key identifier",
    )?;

    if let Some(expected) = signed_by.authority_key_id {
        let ParsedExtension::AuthorityKeyIdentifier(found) = next(false, "authority key identifier")? else {
            return Err(CheckError::Differs("authority key identifier"));
        };
        let identifier = found.key_identifier.as_ref().map(|id| id.0);
        let others = found.authority_cert_issuer.is_some() || found.authority_cert_serial.is_some();
        ensure(
            identifier == Some(expected) && !others,
            "authority key identifier",
        )?;
    }

    let critical = profile.alternative_name_is_critical();
    let ParsedExtension::SubjectAlternativeName(found) = next(critical, "subject alternative name")? else {
        return Err(CheckError::Differs("subject alternative name"));
    };
    check_names(&found.general_names, profile)?;

    ensure(extensions.next().is_none(), "additional extension")
}

fn check_names(found: &[GeneralName<'_>], profile: &X509Profile) -> Result<(), CheckError> {
    const WHAT: &str = "subject alternative name";
    let Some((last, dns_names)) = found.split_last() else {
        return Err(CheckError::Differs(WHAT));
    };
    let same_dns = dns_names.len() == profile.dns_names.len()
        && dns_names.iter().zip(&profile.dns_names).all(
            |(found, expected)| matches!(found, GeneralName::DNSName(name) if *name == expected.as_str()),
        );
    let same_uri = matches!(last, GeneralName::URI(uri) if *uri == profile.spiffe_id.as_str());
    ensure(same_dns && same_uri, WHAT)
}

// Key usage bits as the parser numbers them.
const DIGITAL_SIGNATURE: u16 = 1;
const KEY_ENCIPHERMENT: u16 = 1 << 2;
const KEY_AGREEMENT: u16 = 1 << 4;
const KEY_CERT_SIGN: u16 = 1 << 5;
const CRL_SIGN: u16 = 1 << 6;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::golden::{basis, ca_key, hour, id, issuer, leaf_key, trust_domain};
    use crate::credential::{Basis, DistinguishedName, Serial, Validity};
    use finial_identity::key::{JwsAlgorithm, KeyType, PrivateKey, Signer};

    fn profile(change: impl FnOnce(&mut X509Profile)) -> X509Profile {
        let (trust_domain, key) = (trust_domain(), leaf_key());
        let names = ["db.example.org".to_owned()];
        let mut profile =
            X509Profile::workload(&id("/db"), &names, None, true, basis(&trust_domain, &key)).unwrap();
        change(&mut profile);
        profile
    }

    fn sign(profile: &X509Profile, signed_by: &SignedBy<'_>) -> Vec<u8> {
        let tbs = profile.tbs_der(signed_by).unwrap();
        signed_by.assemble(&tbs, &signed_by.signer().sign_x509(&tbs).unwrap())
    }

    /// As if the signed part had been handed to the signer as it is in the certificate.
    fn check(der: &[u8], profile: &X509Profile, signed_by: &SignedBy<'_>) -> Result<(), CheckError> {
        let (_, certificate) = X509Certificate::from_der(der).unwrap();
        check_certificate(der, certificate.tbs_certificate.as_ref(), profile, signed_by)
    }

    #[test]
    fn what_was_signed_as_planned_passes_for_every_kind_of_key() {
        let trust_domain = trust_domain();
        for key_type in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
            let key = PrivateKey::generate(key_type).unwrap();
            let basis = Basis {
                trust_domain: &trust_domain,
                public_key: Signer::public_key(&key),
                serial: Serial::new(9).unwrap(),
                validity: hour(),
            };
            let profile = X509Profile::self_signed_ca(DistinguishedName::us("SPIFFE"), basis).unwrap();
            let signed_by = SignedBy::itself(&key).unwrap();
            check(&sign(&profile, &signed_by), &profile, &signed_by).unwrap();
        }
    }

    #[test]
    fn every_field_that_differs_is_noticed() {
        let issuer = issuer();
        let signed_by = issuer.signed_by();
        let plain = profile(|_| {});
        let der = sign(&plain, &signed_by);
        check(&der, &plain, &signed_by).unwrap();

        let other_key = PrivateKey::generate(KeyType::EcP256).unwrap();
        let later = Validity {
            not_before: hour().not_before,
            not_after: hour().not_after + time::Duration::SECOND,
        };
        let earlier = Validity {
            not_before: hour().not_before - time::Duration::SECOND,
            ..hour()
        };
        let named = |name: &str| {
            crate::credential::Subject::new(DistinguishedName {
                common_name: name.to_owned(),
                ..Default::default()
            })
        };
        let changed: Vec<(&str, X509Profile)> = vec![
            (
                "kind",
                profile(|p| p.kind = crate::credential::X509Kind::DownstreamCa),
            ),
            ("id", profile(|p| p.spiffe_id = id("/other"))),
            ("subject", profile(|p| p.subject = named("x"))),
            ("names", profile(|p| p.dns_names.push("b.example.org".to_owned()))),
            ("no names", profile(|p| p.dns_names.clear())),
            (
                "key",
                profile(|p| p.public_key = Signer::public_key(&other_key).clone()),
            ),
            ("serial", profile(|p| p.serial = Serial::new(5).unwrap())),
            ("end", profile(|p| p.validity = later)),
            ("start", profile(|p| p.validity = earlier)),
        ];
        for (what, wanted) in changed {
            assert!(check(&der, &wanted, &signed_by).is_err(), "{what}");
        }
        let itself = ca_key();
        let other_signer = SignedBy::itself(&itself).unwrap();
        assert!(check(&der, &plain, &other_signer).is_err(), "issuer");
    }

    #[test]
    fn no_bit_of_the_signed_part_can_change_unnoticed() {
        let issuer = issuer();
        let signed_by = issuer.signed_by();
        let plain = profile(|_| {});
        let tbs = plain.tbs_der(&signed_by).unwrap();
        let der = sign(&plain, &signed_by);
        for index in 0..4 + tbs.len() {
            for bit in 0..8 {
                let mut broken = der.clone();
                broken[index] ^= 1 << bit;
                // Of the outermost element only the parser sees the tag, and it sees some tags alike.
                let noticed = check_certificate(&broken, &tbs, &plain, &signed_by).is_err();
                assert!(noticed || index == 0, "byte {index}, bit {bit}");
            }
        }
    }

    #[test]
    fn trailing_bytes_are_noticed() {
        let issuer = issuer();
        let plain = profile(|_| {});
        let mut der = sign(&plain, &issuer.signed_by());
        der.push(0);
        assert!(check(&der, &plain, &issuer.signed_by()).is_err());
    }

    /// A key elsewhere that signs something else.
    #[derive(Debug)]
    struct Faulty(PrivateKey);

    impl Signer for Faulty {
        fn public_key(&self) -> &PublicKey {
            self.0.public_key()
        }
        fn sign_x509(&self, _tbs: &[u8]) -> Result<Vec<u8>, KeyError> {
            self.0.sign_x509(b"something else")
        }
        fn sign_jws(&self, _input: &[u8]) -> Result<Vec<u8>, KeyError> {
            self.0.sign_jws(b"something else")
        }
        fn jws_algorithm(&self) -> JwsAlgorithm {
            self.0.jws_algorithm()
        }
        fn in_process(&self) -> bool {
            false
        }
    }

    #[test]
    fn a_wrong_signature_of_a_key_elsewhere_is_noticed() {
        let trust_domain = trust_domain();
        let key = Faulty(ca_key());
        let profile = X509Profile::server(basis(&trust_domain, key.public_key())).unwrap();
        let signed_by = SignedBy::itself(&key).unwrap();
        let der = sign(&profile, &signed_by);
        assert!(matches!(
            check(&der, &profile, &signed_by),
            Err(CheckError::Signature(_))
        ));
    }
}
