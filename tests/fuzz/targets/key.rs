//! Keys: as JWK, as PKCS#8 and PEM, and the key manager's file.

use data_encoding::BASE64;
use finial_identity::key::manager::DiskKeyManager;
use finial_identity::key::{PrivateKey, PrivateKeyManager as _, PublicKey, Signer as _};
use serde_json::Value;

pub fn run_jwk(data: &[u8]) {
    let Ok(Value::Object(jwk)) = serde_json::from_slice(data) else {
        return;
    };
    if let Ok(key) = PublicKey::from_jwk(&jwk) {
        look_public(&key);
    }
}

/// DER (PKCS#8), and PEM of any kind.
pub fn run_private_key(data: &[u8]) {
    let from_pem = std::str::from_utf8(data)
        .ok()
        .and_then(|text| PrivateKey::from_pem(text).ok());
    for key in PrivateKey::from_pkcs8_der(data).ok().into_iter().chain(from_pem) {
        look_private(&key);
        let again = PrivateKey::from_pem(&key.to_pem()).unwrap();
        assert_eq!(again.pkcs8_der(), key.pkcs8_der());
    }
    if let Ok(key) = PublicKey::from_spki_der(data) {
        look_public(&key);
    }
}

/// The file that a key manager finds. Whatever it holds, opening leaves it as it was.
pub fn run_keys_json(data: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.json");
    std::fs::write(&path, data).unwrap();
    if let Ok(manager) = DiskKeyManager::open(&path) {
        let file: Value = serde_json::from_slice(data).expect("a file that was read is JSON");
        for (id, text) in file.get("keys").and_then(Value::as_object).expect("it has keys") {
            let key = manager.private_key(id).expect("every key in the file is there");
            let der = BASE64.decode(text.as_str().unwrap().as_bytes()).unwrap();
            assert_eq!(key.pkcs8_der(), der);
            look_private(&key);
        }
    }
    assert_eq!(std::fs::read(&path).unwrap(), data);
}

pub fn look_public(key: &PublicKey) {
    assert_eq!(&PublicKey::from_spki_der(key.spki_der()).unwrap(), key);
    assert_eq!(
        &PublicKey::from_jwk(&key.to_jwk()).unwrap(),
        key,
        "{:?}",
        key.to_jwk()
    );
    let _ = (key.subject_key_id(), key.kind().to_string(), format!("{key:?}"));
    for algorithm in key.jws_algorithms() {
        assert!(
            key.verify_jws(*algorithm, b"input", &[7; 64]).is_err(),
            "a made-up signature verifies"
        );
    }
}

fn look_private(key: &PrivateKey) {
    look_public(key.public_key());
    // The parts of an RSA key are not proved when it is read: a broken one signs nothing.
    let Ok(signature) = key.sign_jws(b"input") else {
        return;
    };
    key.public_key()
        .verify_jws(key.jws_algorithm(), b"input", &signature)
        .expect("its own signature");
    assert!(
        key.public_key()
            .verify_jws(key.jws_algorithm(), b"other", &signature)
            .is_err()
    );
    let shown = format!("{key:?}");
    assert!(!shown.contains(&BASE64.encode(key.pkcs8_der())));
}
