//! Certificate requests of callers: checked once, in one place, before anything is signed for them.

use finial_identity::x509::Csr;
use ring::digest::{SHA256, digest};

use super::status::{OrRefuse, Refusal};

/// A request that is well-formed and signed with the key that it asks a certificate for. Of what it asks, callers take
/// the key, and where their method says so (minting) the names.
///
/// # Errors
/// `InvalidArgument` when it is missing, malformed, or signed with another key.
pub fn checked(csr_der: &[u8]) -> Result<Csr, Refusal> {
    if csr_der.is_empty() {
        return Err(Refusal::invalid("missing CSR"));
    }
    let csr = Csr::parse(csr_der).or_refuse("malformed CSR")?;
    csr.verify_self_signature().or_refuse("invalid CSR signature")?;
    Ok(csr)
}

/// How a request is named in the audit log: its SHA-256 in hexadecimal.
pub fn fingerprint(csr_der: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(digest(&SHA256, csr_der).as_ref())
}

#[cfg(test)]
mod tests {
    use finial_identity::key::{KeyType, PrivateKey};
    use finial_identity::x509::CsrSubject;

    use super::*;

    #[test]
    fn what_is_not_signed_with_its_own_key_is_refused() {
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        let csr_der = Csr::build(&key, CsrSubject::spire(), None, &[]).unwrap();
        assert_eq!(checked(&csr_der).unwrap().public_key(), key.public_key());
        let mut forged = csr_der.clone();
        *forged.last_mut().unwrap() ^= 1;
        for (bad, why) in [
            (forged.as_slice(), "invalid CSR signature"),
            (&csr_der[1..], "malformed CSR"),
            (b"", "missing CSR"),
        ] {
            let refusal = checked(bad).unwrap_err();
            assert_eq!(refusal.code(), tonic::Code::InvalidArgument);
            assert!(refusal.message().starts_with(why), "{}", refusal.message());
        }
    }
}
