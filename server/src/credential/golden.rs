//! Certificates that Go's `crypto/x509` made from SPIRE's templates, and the parts they were made of. What is built here
//! has to come out byte for byte the same. Another builder, `rcgen`, covers other keys, serial numbers and times.

use std::sync::Arc;

use data_encoding::BASE64;
use finial_identity::key::{PrivateKey, PublicKey};
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use finial_identity::x509::Certificate;
use time::OffsetDateTime;
use time::macros::datetime;

use super::*;

pub(super) const NOW: OffsetDateTime = datetime!(2030-06-01 12:00 UTC);
const LEAF_SERIAL: u128 = 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10;

pub(super) fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

pub(super) fn id(path: &str) -> SpiffeId {
    SpiffeId::new(&trust_domain(), path).unwrap()
}

fn bytes(text: &str) -> Vec<u8> {
    BASE64.decode(text.as_bytes()).unwrap()
}

pub(super) fn ca_key() -> PrivateKey {
    PrivateKey::from_pkcs8_der(&bytes(CA_PKCS8)).unwrap()
}

pub(super) fn leaf_key() -> PublicKey {
    PublicKey::from_spki_der(&bytes(LEAF_SPKI)).unwrap()
}

pub(super) fn issuer() -> X509Issuer {
    let certificate = Certificate::parse(&bytes(CA_DER)).unwrap();
    X509Issuer::new(certificate, Vec::new(), Arc::new(ca_key())).unwrap()
}

pub(super) fn hour() -> Validity {
    Validity::starting(NOW, std::time::Duration::from_secs(3600), None).unwrap()
}

pub(super) fn basis<'a>(trust_domain: &'a TrustDomain, key: &'a PublicKey) -> Basis<'a> {
    Basis {
        trust_domain,
        public_key: key,
        serial: Serial::new(LEAF_SERIAL).unwrap(),
        validity: hour(),
    }
}

fn self_signed(subject: DistinguishedName, serial: u128, not_after: OffsetDateTime) -> Vec<u8> {
    let key = ca_key();
    let trust_domain = trust_domain();
    let basis = Basis {
        trust_domain: &trust_domain,
        public_key: finial_identity::key::Signer::public_key(&key),
        serial: Serial::new(serial).unwrap(),
        validity: Validity {
            not_before: hour().not_before,
            not_after,
        },
    };
    let profile = X509Profile::self_signed_ca(subject, basis).unwrap();
    profile.tbs_der(&SignedBy::itself(&key).unwrap()).unwrap()
}

#[test]
fn default_root_is_the_same() {
    let built = self_signed(
        DistinguishedName::us("SPIFFE"),
        0x80,
        datetime!(2030-06-02 12:00 UTC),
    );
    assert_eq!(built, bytes(CA_TBS));
}

#[test]
fn root_with_every_attribute_the_largest_serial_and_a_late_end_is_the_same() {
    let list = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
    let subject = DistinguishedName {
        country: list(&["DE", "AT"]),
        organization: list(&["Zebra", "A&B", "Ähren"]),
        common_name: "root *".to_owned(),
        serial_number: "7".to_owned(),
        locality: list(&["K"]),
        province: list(&["P"]),
        street_address: list(&["S 1"]),
        postal_code: list(&["1010"]),
        ..DistinguishedName::default()
    };
    let built = self_signed(subject, u128::MAX, datetime!(2051-02-03 04:05:06 UTC));
    assert_eq!(built, bytes(ODD_CA_TBS));
}

#[test]
fn workload_svid_is_the_same() {
    let (trust_domain, key) = (trust_domain(), leaf_key());
    let profile = X509Profile::workload(&id("/db"), &[], None, false, basis(&trust_domain, &key)).unwrap();
    assert_eq!(
        profile.tbs_der(&issuer().signed_by()).unwrap(),
        bytes(WORKLOAD_TBS)
    );
}

#[test]
fn workload_svid_with_dns_names_and_unique_identifier_is_the_same() {
    let (trust_domain, key) = (trust_domain(), leaf_key());
    let names = ["db.example.org".to_owned(), "*.db.example.org".to_owned()];
    let profile = X509Profile::workload(&id("/db"), &names, None, true, basis(&trust_domain, &key)).unwrap();
    assert_eq!(
        profile.tbs_der(&issuer().signed_by()).unwrap(),
        bytes(NAMED_WORKLOAD_TBS)
    );
}

#[test]
fn agent_svid_is_the_same() {
    let (trust_domain, key) = (trust_domain(), leaf_key());
    let agent = id("/spire/agent/join_token/abc");
    let profile = X509Profile::agent(&agent, basis(&trust_domain, &key)).unwrap();
    assert_eq!(profile.tbs_der(&issuer().signed_by()).unwrap(), bytes(AGENT_TBS));
}

#[test]
fn downstream_ca_is_the_same() {
    let (trust_domain, key) = (trust_domain(), leaf_key());
    let not_after = datetime!(2030-06-02 12:00 UTC);
    let basis = Basis {
        trust_domain: &trust_domain,
        public_key: &key,
        serial: Serial::new(1).unwrap(),
        validity: Validity {
            not_before: hour().not_before,
            not_after,
        },
    };
    let profile = X509Profile::downstream_ca(&issuer(), basis).unwrap();
    assert_eq!(
        profile.tbs_der(&issuer().signed_by()).unwrap(),
        bytes(DOWNSTREAM_TBS)
    );
}

/// The same root by `rcgen`, its extensions given as they are.
fn root_by_rcgen(key: &PrivateKey, profile: &X509Profile) -> Vec<u8> {
    use finial_identity::key::SignerForRcgen;
    use rcgen::{CertificateParams, CustomExtension, DnType, DnValue, SerialNumber};
    use x509_parser::prelude::FromDer;

    let printable = |text: &str| DnValue::PrintableString(text.try_into().unwrap());
    let extension = |last: u64, critical: bool, content: &[u8]| {
        let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, last], content.to_vec());
        extension.set_criticality(critical);
        extension
    };
    let mut params = CertificateParams::default();
    let serial = profile.serial().to_decimal();
    params.serial_number = Some(SerialNumber::from_slice(
        &serial.parse::<u128>().unwrap().to_be_bytes(),
    ));
    params.not_before = profile.validity().not_before;
    params.not_after = profile.validity().not_after;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CountryName, printable("US"));
    params
        .distinguished_name
        .push(DnType::OrganizationName, printable("SPIFFE"));
    let serial_attribute = DnType::CustomDnType(vec![2, 5, 4, 5]);
    params
        .distinguished_name
        .push(serial_attribute, printable(&serial));
    let key_id = [&[4, 20], &key.public_key().subject_key_id()[..]].concat();
    let uri = [&[0x30, 22, 0x86, 20], &b"spiffe://example.org"[..]].concat();
    params.custom_extensions = vec![
        extension(15, true, &[3, 2, 1, 6]),
        extension(19, true, &[0x30, 3, 1, 1, 0xff]),
        extension(14, false, &key_id),
        extension(17, false, &uri),
    ];
    let certificate = params.self_signed(&SignerForRcgen::new(key).unwrap()).unwrap();
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate.der()).unwrap();
    parsed.tbs_certificate.as_ref().to_vec()
}

#[test]
fn roots_are_the_same_as_those_of_another_builder() {
    use finial_identity::key::KeyType;
    use ring::rand::SystemRandom;

    let trust_domain = trust_domain();
    let random = SystemRandom::new();
    for key_type in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
        let key = PrivateKey::generate(key_type).unwrap();
        for days in [1, 365, 7300, 9125] {
            let ttl = std::time::Duration::from_secs(days * 24 * 3600);
            let basis = Basis {
                trust_domain: &trust_domain,
                public_key: key.public_key(),
                serial: Serial::draw(&random).unwrap(),
                validity: Validity::starting(NOW, ttl, None).unwrap(),
            };
            let profile = X509Profile::self_signed_ca(DistinguishedName::us("SPIFFE"), basis).unwrap();
            let built = profile.tbs_der(&SignedBy::itself(&key).unwrap()).unwrap();
            assert_eq!(built, root_by_rcgen(&key, &profile), "{key_type} {days}");
        }
    }
}

const CA_PKCS8: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg82Vm082y5Vhu8vkM9pacPJhBtDFmf2cf5lM2NH21+p2hRANCAAT1ChsBKfo9/U\
rI7PiFfuECjeW19xAhwySSEoB+J1LqGNVauTBoDNxPYEL4SFoWDu4agg5bSGFXeJDvavbZWnOj";
const LEAF_SPKI: &str = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEd2AEp4dvjrQT1FkDmk2JtgwUAJ8V2sSIzWH/S1lnNyH7k8ct6X84F0/7frA9tJ2/x3/NlPLOn+\
u2NcHsyhCGvg==";
const CA_DER: &str = "MIIBqzCCAVGgAwIBAgICAIAwCgYIKoZIzj0EAwIwLDELMAkGA1UEBhMCVVMxDzANBgNVBAoTBlNQSUZGRTEMMAoGA1UEBRMDMTI4MB4XDTMwMD\
YwMTExNTk1MFoXDTMwMDYwMjEyMDAwMFowLDELMAkGA1UEBhMCVVMxDzANBgNVBAoTBlNQSUZGRTEMMAoGA1UEBRMDMTI4MFkwEwYHKoZIzj0C\
AQYIKoZIzj0DAQcDQgAE9QobASn6Pf1KyOz4hX7hAo3ltfcQIcMkkhKAfidS6hjVWrkwaAzcT2BC+EhaFg7uGoIOW0hhV3iQ72r22Vpzo6NjMG\
EwDgYDVR0PAQH/BAQDAgEGMA8GA1UdEwEB/wQFMAMBAf8wHQYDVR0OBBYEFBRn/iPBCqa3R94l46EvfOYU5BvKMB8GA1UdEQQYMBaGFHNwaWZm\
ZTovL2V4YW1wbGUub3JnMAoGCCqGSM49BAMCA0gAMEUCIQDGIOGhqHSSyUZyeti5M8pPsDVNPkfnEbvKrqXoBZJMBAIgVApxLUH50euezfvoMv\
s3x4lo3JcsWz6sn5xJrTrOj5o=";
const CA_TBS: &str = "MIIBUaADAgECAgIAgDAKBggqhkjOPQQDAjAsMQswCQYDVQQGEwJVUzEPMA0GA1UEChMGU1BJRkZFMQwwCgYDVQQFEwMxMjgwHhcNMzAwNjAxMT\
E1OTUwWhcNMzAwNjAyMTIwMDAwWjAsMQswCQYDVQQGEwJVUzEPMA0GA1UEChMGU1BJRkZFMQwwCgYDVQQFEwMxMjgwWTATBgcqhkjOPQIBBggq\
hkjOPQMBBwNCAAT1ChsBKfo9/UrI7PiFfuECjeW19xAhwySSEoB+J1LqGNVauTBoDNxPYEL4SFoWDu4agg5bSGFXeJDvavbZWnOjo2MwYTAOBg\
NVHQ8BAf8EBAMCAQYwDwYDVR0TAQH/BAUwAwEB/zAdBgNVHQ4EFgQUFGf+I8EKprdH3iXjoS985hTkG8owHwYDVR0RBBgwFoYUc3BpZmZlOi8v\
ZXhhbXBsZS5vcmc=";
const ODD_CA_TBS: &str = "MIICNqADAgECAhEA/////////////////////zAKBggqhkjOPQQDAjCBlTEWMAkGA1UEBhMCQVQwCQYDVQQGEwJERTEKMAgGA1UECBMBUDEKMA\
gGA1UEBxMBSzEMMAoGA1UECRMDUyAxMQ0wCwYDVQQREwQxMDEwMSkwCgYDVQQKDANBJkIwDAYDVQQKEwVaZWJyYTANBgNVBAoMBsOEaHJlbjEP\
MA0GA1UEAwwGcm9vdCAqMQowCAYDVQQFEwE3MCAXDTMwMDYwMTExNTk1MFoYDzIwNTEwMjAzMDQwNTA2WjCBlTEWMAkGA1UEBhMCQVQwCQYDVQ\
QGEwJERTEKMAgGA1UECBMBUDEKMAgGA1UEBxMBSzEMMAoGA1UECRMDUyAxMQ0wCwYDVQQREwQxMDEwMSkwCgYDVQQKDANBJkIwDAYDVQQKEwVa\
ZWJyYTANBgNVBAoMBsOEaHJlbjEPMA0GA1UEAwwGcm9vdCAqMQowCAYDVQQFEwE3MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE9QobASn6Pf\
1KyOz4hX7hAo3ltfcQIcMkkhKAfidS6hjVWrkwaAzcT2BC+EhaFg7uGoIOW0hhV3iQ72r22Vpzo6NjMGEwDgYDVR0PAQH/BAQDAgEGMA8GA1Ud\
EwEB/wQFMAMBAf8wHQYDVR0OBBYEFBRn/iPBCqa3R94l46EvfOYU5BvKMB8GA1UdEQQYMBaGFHNwaWZmZTovL2V4YW1wbGUub3Jn";
const WORKLOAD_TBS: &str = "MIIBkqADAgECAhABAgMEBQYHCAkKCwwNDg8QMAoGCCqGSM49BAMCMCwxCzAJBgNVBAYTAlVTMQ8wDQYDVQQKEwZTUElGRkUxDDAKBgNVBAUTAz\
EyODAeFw0zMDA2MDExMTU5NTBaFw0zMDA2MDExMzAwMDBaMB0xCzAJBgNVBAYTAlVTMQ4wDAYDVQQKEwVTUElSRTBZMBMGByqGSM49AgEGCCqG\
SM49AwEHA0IABHdgBKeHb460E9RZA5pNibYMFACfFdrEiM1h/0tZZzch+5PHLel/OBdP+36wPbSdv8d/zZTyzp/rtjXB7MoQhr6jgaQwgaEwDg\
YDVR0PAQH/BAQDAgOoMB0GA1UdJQQWMBQGCCsGAQUFBwMBBggrBgEFBQcDAjAMBgNVHRMBAf8EAjAAMB0GA1UdDgQWBBTLz8Zqail+/GczA9CN\
Mkjh7oT65TAfBgNVHSMEGDAWgBQUZ/4jwQqmt0feJeOhL3zmFOQbyjAiBgNVHREEGzAZhhdzcGlmZmU6Ly9leGFtcGxlLm9yZy9kYg==";
const NAMED_WORKLOAD_TBS: &str = "MIIB+KADAgECAhABAgMEBQYHCAkKCwwNDg8QMAoGCCqGSM49BAMCMCwxCzAJBgNVBAYTAlVTMQ8wDQYDVQQKEwZTUElGRkUxDDAKBgNVBAUTAz\
EyODAeFw0zMDA2MDExMTU5NTBaFw0zMDA2MDExMzAwMDBaMGExCzAJBgNVBAYTAlVTMQ4wDAYDVQQKEwVTUElSRTEXMBUGA1UEAxMOZGIuZXhh\
bXBsZS5vcmcxKTAnBgNVBC0TIGE5MTU2OWZlODQ5MTNjNDU1MDY3MDY1MThlYmZkNjE4MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEd2AEp4\
dvjrQT1FkDmk2JtgwUAJ8V2sSIzWH/S1lnNyH7k8ct6X84F0/7frA9tJ2/x3/NlPLOn+u2NcHsyhCGvqOBxjCBwzAOBgNVHQ8BAf8EBAMCA6gw\
HQYDVR0lBBYwFAYIKwYBBQUHAwEGCCsGAQUFBwMCMAwGA1UdEwEB/wQCMAAwHQYDVR0OBBYEFMvPxmpqKX78ZzMD0I0ySOHuhPrlMB8GA1UdIw\
QYMBaAFBRn/iPBCqa3R94l46EvfOYU5BvKMEQGA1UdEQQ9MDuCDmRiLmV4YW1wbGUub3JnghAqLmRiLmV4YW1wbGUub3JnhhdzcGlmZmU6Ly9l\
eGFtcGxlLm9yZy9kYg==";
const AGENT_TBS: &str = "MIIBqqADAgECAhABAgMEBQYHCAkKCwwNDg8QMAoGCCqGSM49BAMCMCwxCzAJBgNVBAYTAlVTMQ8wDQYDVQQKEwZTUElGRkUxDDAKBgNVBAUTAz\
EyODAeFw0zMDA2MDExMTU5NTBaFw0zMDA2MDExMzAwMDBaMB0xCzAJBgNVBAYTAlVTMQ4wDAYDVQQKEwVTUElSRTBZMBMGByqGSM49AgEGCCqG\
SM49AwEHA0IABHdgBKeHb460E9RZA5pNibYMFACfFdrEiM1h/0tZZzch+5PHLel/OBdP+36wPbSdv8d/zZTyzp/rtjXB7MoQhr6jgbwwgbkwDg\
YDVR0PAQH/BAQDAgOoMB0GA1UdJQQWMBQGCCsGAQUFBwMBBggrBgEFBQcDAjAMBgNVHRMBAf8EAjAAMB0GA1UdDgQWBBTLz8Zqail+/GczA9CN\
Mkjh7oT65TAfBgNVHSMEGDAWgBQUZ/4jwQqmt0feJeOhL3zmFOQbyjA6BgNVHREEMzAxhi9zcGlmZmU6Ly9leGFtcGxlLm9yZy9zcGlyZS9hZ2\
VudC9qb2luX3Rva2VuL2FiYw==";
const DOWNSTREAM_TBS: &str = "MIIBiqADAgECAgEBMAoGCCqGSM49BAMCMCwxCzAJBgNVBAYTAlVTMQ8wDQYDVQQKEwZTUElGRkUxDDAKBgNVBAUTAzEyODAeFw0zMDA2MDExMT\
U5NTBaFw0zMDA2MDIxMjAwMDBaMEMxCzAJBgNVBAYTAlVTMQ8wDQYDVQQKEwZTUElGRkUxFTATBgNVBAsTDERPV05TVFJFQU0tMTEMMAoGA1UE\
BRMDMTI4MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEd2AEp4dvjrQT1FkDmk2JtgwUAJ8V2sSIzWH/S1lnNyH7k8ct6X84F0/7frA9tJ2/x3\
/NlPLOn+u2NcHsyhCGvqOBhTCBgjAOBgNVHQ8BAf8EBAMCAQYwDwYDVR0TAQH/BAUwAwEB/zAdBgNVHQ4EFgQUy8/GamopfvxnMwPQjTJI4e6E\
+uUwHwYDVR0jBBgwFoAUFGf+I8EKprdH3iXjoS985hTkG8owHwYDVR0RBBgwFoYUc3BpZmZlOi8vZXhhbXBsZS5vcmc=";
