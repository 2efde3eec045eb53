//! Tests that every key manager must pass.

use std::sync::Arc;

use super::{DiskKeyManager, MemoryKeyManager, PrivateKeyManager};
use crate::key::{KeyType, PrivateKey};

#[tokio::test]
async fn memory_keeps_the_contract() {
    run(&MemoryKeyManager::new()).await;
}

#[tokio::test]
async fn disk_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    run(&DiskKeyManager::open(&dir.path().join("keys.json")).unwrap()).await;
}

async fn run(manager: &dyn PrivateKeyManager) {
    starts_empty(manager).await;
    makes_keys_that_sign(manager).await;
    replaces_a_key_of_the_same_id(manager).await;
    keeps_keys_made_elsewhere(manager).await;
    lists_in_the_order_of_ids(manager).await;
}

async fn starts_empty(manager: &dyn PrivateKeyManager) {
    assert!(manager.keys().await.unwrap().is_empty());
    assert!(manager.key("b").await.unwrap().is_none());
    assert!(manager.private_key("b").is_none());
}

async fn makes_keys_that_sign(manager: &dyn PrivateKeyManager) {
    for key_type in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
        let made = manager.generate_key("b", key_type).await.unwrap();
        let found = manager.key("b").await.unwrap().unwrap();
        let signature = found.sign_jws(b"input").unwrap();
        made.public_key()
            .verify_jws(made.jws_algorithm(), b"input", &signature)
            .unwrap();
        assert_eq!(manager.private_key("b").unwrap().key_type(), Some(key_type));
    }
}

async fn replaces_a_key_of_the_same_id(manager: &dyn PrivateKeyManager) {
    let first = manager.generate_key("b", KeyType::EcP256).await.unwrap();
    let second = manager.generate_key("b", KeyType::EcP256).await.unwrap();
    assert_ne!(first.public_key(), second.public_key());
    let found = manager.key("b").await.unwrap().unwrap();
    assert_eq!(found.public_key(), second.public_key());
    assert_eq!(manager.keys().await.unwrap().len(), 1);
}

async fn keeps_keys_made_elsewhere(manager: &dyn PrivateKeyManager) {
    let key = Arc::new(PrivateKey::generate(KeyType::EcP256).unwrap());
    manager.set_private_key("c", key.clone()).await.unwrap();
    let found = manager.private_key("c").unwrap();
    assert_eq!(found.public_key(), key.public_key());
}

async fn lists_in_the_order_of_ids(manager: &dyn PrivateKeyManager) {
    manager.generate_key("a", KeyType::EcP256).await.unwrap();
    let ids: Vec<String> = manager
        .keys()
        .await
        .unwrap()
        .into_iter()
        .map(|(id, _)| id)
        .collect();
    assert_eq!(ids, ["a", "b", "c"]);
}
