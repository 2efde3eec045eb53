//! The WIT authority together with the others.

use finial_identity::key::JwsAlgorithm;
use finial_identity::wit::{DEFAULT_SKEW, UnprovenWit, validate};

use super::*;
use crate::authority::{WitConfig, WitRequest};

pub(super) fn config_with_wit() -> AuthorityConfig {
    AuthorityConfig {
        wit: Some(WitConfig::default()),
        ..config()
    }
}

fn active_wit(manager: &AuthorityManager) -> String {
    manager.state(AuthorityKind::Wit).unwrap().active.authority_id
}

async fn sign(manager: &Arc<AuthorityManager>, key: &PrivateKey) -> Result<SignedJwt, AuthorityError> {
    let request = WitRequest {
        spiffe_id: id("/web"),
        public_key: key.public_key().clone(),
        algorithm: JwsAlgorithm::ES256,
        ttl: None,
    };
    manager.sign_wit(request).await
}

/// What the bundle says about a token that is signed now.
async fn check(world: &World, manager: &Arc<AuthorityManager>) -> UnprovenWit {
    let key = PrivateKey::generate(KeyType::EcP256).unwrap();
    let signed = sign(manager, &key).await.unwrap();
    let keys = |_: &TrustDomain| Some(world.bundle().wit_authorities);
    let unproven = validate(&signed.token, &keys, world.clock.now(), DEFAULT_SKEW).unwrap();
    assert_eq!(unproven.confirmation_key(), key.public_key());
    unproven
}

#[tokio::test(start_paused = true)]
async fn switched_off_there_is_no_authority_no_key_and_no_signature() {
    let world = World::new();
    let manager = world.start().await.unwrap();
    let kind = AuthorityKind::Wit;
    assert!(matches!(manager.state(kind), Err(AuthorityError::WitDisabled)));
    assert!(matches!(
        manager.prepare(kind).await,
        Err(AuthorityError::WitDisabled)
    ));
    let key = PrivateKey::generate(KeyType::EcP256).unwrap();
    assert!(matches!(
        sign(&manager, &key).await,
        Err(AuthorityError::WitDisabled)
    ));
    assert!(world.bundle().wit_authorities.is_empty());
    assert_eq!(world.keys.keys().await.unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_authority_rotates_by_age_and_comes_back_after_a_restart() {
    let world = World::new();
    let manager = world.start_as(config_with_wit()).await.unwrap();
    let first = active_wit(&manager);
    check(&world, &manager).await;
    let ids: Vec<String> = world
        .keys
        .keys()
        .await
        .unwrap()
        .into_iter()
        .map(|(id, _)| id)
        .collect();
    assert!(ids.contains(&"WIT-Signer-A".to_owned()), "{ids:?}");
    tokio::time::advance(12 * HOUR + SECOND).await;
    manager.step().await;
    let prepared = manager.state(AuthorityKind::Wit).unwrap().prepared.unwrap();
    assert!(world.bundle().wit_authority(&prepared.authority_id).is_some());
    assert_eq!(active_wit(&manager), first);
    tokio::time::advance(8 * HOUR).await;
    manager.step().await;
    assert_eq!(active_wit(&manager), prepared.authority_id);
    check(&world, &manager).await;
    let manager = world.start_as(config_with_wit()).await.unwrap();
    assert_eq!(active_wit(&manager), prepared.authority_id);
    check(&world, &manager).await;
    // Off for a while, and on again: the journal still knows it.
    world.start().await.unwrap();
    let manager = world.start_as(config_with_wit()).await.unwrap();
    assert_eq!(active_wit(&manager), prepared.authority_id);
    tokio::time::advance(30 * HOUR).await;
    manager.step().await;
    assert!(
        world.bundle().wit_authority(&first).is_none(),
        "pruned a day after it expired"
    );
}

#[tokio::test(start_paused = true)]
async fn a_tainted_authority_is_not_taken_up_again() {
    let world = World::new();
    let manager = world.start_as(config_with_wit()).await.unwrap();
    let first = active_wit(&manager);
    let bundle = &world.store.inner.bundle;
    bundle
        .lock()
        .unwrap()
        .as_mut()
        .unwrap()
        .taint_wit(&first)
        .unwrap();
    let manager = world.start_as(config_with_wit()).await.unwrap();
    assert_ne!(active_wit(&manager), first);
    check(&world, &manager).await;
}
