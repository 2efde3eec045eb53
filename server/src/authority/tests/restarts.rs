//! What survives a restart, or an interruption at any moment.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_restart_keeps_authorities_and_statuses() {
    let world = World::new();
    let manager = world.start().await.unwrap();
    let first = active(&manager);
    tokio::time::advance(13 * HOUR).await;
    manager.step().await;
    let states = (manager.x509_state().unwrap(), manager.jwt_state().unwrap());
    let manager = world.start().await.unwrap();
    assert_eq!(
        (manager.x509_state().unwrap(), manager.jwt_state().unwrap()),
        states
    );
    tokio::time::advance(8 * HOUR).await;
    let manager = world.start().await.unwrap();
    let states = (manager.x509_state().unwrap(), manager.jwt_state().unwrap());
    assert_eq!(states.0.old.as_ref().unwrap().authority_id, first.0);
    let manager = world.start().await.unwrap();
    assert_eq!(
        (manager.x509_state().unwrap(), manager.jwt_state().unwrap()),
        states
    );
    assert_eq!(world.store.inner.journals.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_tainted_authority_does_not_sign_again_after_a_restart() {
    let world = World::new();
    let first = active(&world.start().await.unwrap());
    if let Some(bundle) = &mut *world.store.inner.bundle.lock().unwrap() {
        bundle.taint_x509(&first.0).unwrap();
        bundle.taint_jwt(&first.1).unwrap();
    }
    let manager = world.start().await.unwrap();
    let second = active(&manager);
    assert!(second.0 != first.0 && second.1 != first.1);
    world.check_signing(&manager);
}

#[tokio::test(start_paused = true)]
async fn an_old_tainted_authority_can_be_revoked_after_a_restart() {
    let world = World::new();
    let manager = world.start().await.unwrap();
    let first = active(&manager);
    for kind in [AuthorityKind::X509, AuthorityKind::Jwt] {
        let prepared = manager.prepare(kind).await.unwrap();
        manager.activate(kind, &prepared.authority_id).await.unwrap();
    }
    manager.taint(AuthorityKind::X509, &first.0).await.unwrap();
    manager.taint(AuthorityKind::Jwt, &first.1).await.unwrap();
    let second = active(&manager);
    let manager = world.start().await.unwrap();
    assert_eq!(active(&manager), second);
    manager.revoke(AuthorityKind::X509, &first.0).await.unwrap();
    manager.revoke(AuthorityKind::Jwt, &first.1).await.unwrap();
    assert!(!world.has_x509(&first.0));
}

#[tokio::test(start_paused = true)]
async fn authorities_without_a_bundle_or_with_another_key_in_it_are_not_taken_up() {
    let world = World::new();
    let first = active(&world.start().await.unwrap());
    let other = PrivateKey::generate(KeyType::EcP256).unwrap();
    if let Some(bundle) = &mut *world.store.inner.bundle.lock().unwrap() {
        bundle.jwt_authorities[0].public_key = other.public_key().clone();
    }
    let second = active(&world.start().await.unwrap());
    assert_eq!(second.0, first.0);
    assert_ne!(second.1, first.1);
    *world.store.inner.bundle.lock().unwrap() = None;
    let manager = world.start().await.unwrap();
    let third = active(&manager);
    assert!(third.0 != second.0 && third.1 != second.1);
    world.check_signing(&manager);
}

/// Cuts the process off at every single change in turn, before and after it takes effect, and starts again.
async fn survives_every_cut(age: Duration) {
    for done in [false, true] {
        for change in 1.. {
            let world = World::new();
            let before = if age.is_zero() {
                None
            } else {
                let manager = world.start().await.unwrap();
                tokio::time::advance(12 * HOUR + SECOND).await;
                if age > 13 * HOUR {
                    manager.step().await;
                    tokio::time::advance(age - 12 * HOUR).await;
                }
                Some(manager)
            };
            let known: Vec<(String, String)> = before.iter().map(|manager| active(manager)).collect();
            world.fuse.burn_at(change, done);
            let cut = match &before {
                None => world.start().await.is_err(),
                Some(manager) => {
                    manager.step().await;
                    // Whatever happened, what is signed verifies.
                    world.check_signing(manager);
                    world.fuse.left.load(Ordering::SeqCst) == 0
                }
            };
            let in_use: Vec<(String, String)> = before.iter().map(|manager| active(manager)).collect();
            drop(before);
            world.fuse.mend();
            let manager = world.start().await.unwrap();
            world.check_signing(&manager);
            let after = active(&manager);
            for (now, former) in in_use.iter().zip(&known) {
                // The authority in use at the cut, or the one that was taking over from it.
                let x509_moves = after.0 == now.0 || now.0 == former.0;
                let jwt_moves = after.1 == now.1 || now.1 == former.1;
                assert!(x509_moves && jwt_moves, "change {change}, done {done}");
                assert!(world.has_x509(&now.0), "what was in use is still in the bundle");
                if age < 13 * HOUR {
                    assert_eq!(&after, now, "change {change}, done {done}");
                }
            }
            manager.step().await;
            let again = world.start().await.unwrap();
            assert_eq!(active(&again), active(&manager));
            if !cut {
                assert!(change > 1, "nothing was cut off");
                break;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_start_can_be_cut_off_anywhere() {
    survives_every_cut(Duration::ZERO).await;
}

#[tokio::test(start_paused = true)]
async fn a_preparation_can_be_cut_off_anywhere() {
    survives_every_cut(12 * HOUR + SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn an_activation_can_be_cut_off_anywhere() {
    survives_every_cut(20 * HOUR + SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn lost_keys_lead_to_new_authorities() {
    let mut world = World::new();
    let first = active(&world.start().await.unwrap());
    world.keys = Arc::new(Cut {
        inner: MemoryKeyManager::new(),
        fuse: Arc::clone(&world.fuse),
    });
    let manager = world.start().await.unwrap();
    assert_ne!(active(&manager).0, first.0);
    assert!(world.has_x509(&first.0), "the former one stays in the bundle");
    world.check_signing(&manager);
}

#[tokio::test(start_paused = true)]
async fn an_authority_that_is_not_in_the_bundle_is_not_used_again() {
    let world = World::new();
    let first = active(&world.start().await.unwrap());
    *world.store.inner.bundle.lock().unwrap() = Some(Bundle::new(trust_domain()));
    let manager = world.start().await.unwrap();
    assert_ne!(active(&manager).0, first.0);
    assert_ne!(active(&manager).1, first.1);
    world.check_signing(&manager);
}

#[tokio::test(start_paused = true)]
async fn an_expired_authority_is_replaced_at_start() {
    let world = World::new();
    let first = active(&world.start().await.unwrap());
    tokio::time::advance(25 * HOUR).await;
    let manager = world.start().await.unwrap();
    assert_ne!(active(&manager).0, first.0);
    world.check_signing(&manager);
}

#[tokio::test(start_paused = true)]
async fn a_failing_store_leaves_the_active_authority_at_work() {
    let world = World::new();
    let manager = world.start().await.unwrap();
    let first = active(&manager);
    world.fuse.burn_at(0, false);
    for _ in 0..6 {
        tokio::time::advance(4 * HOUR - SECOND).await;
        manager.step().await;
        world.check_signing(&manager);
    }
    assert_eq!(active(&manager), first);
    world.fuse.mend();
    tokio::time::advance(SECOND).await;
    manager.step().await;
    world.check_signing(&manager);
}

#[tokio::test]
async fn the_database_brings_authorities_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("datastore.sqlite3");
    let keys: Arc<dyn KeyManager> = Arc::new(MemoryKeyManager::new());
    let clock = Clock::system();
    let mut states = Vec::new();
    for _ in 0..2 {
        let trust_domain = trust_domain();
        let store = crate::store::SqliteStore::open(&path, &trust_domain, clock.clone());
        let store = Arc::new(store.await.unwrap());
        let shared = Arc::clone(&store) as Arc<dyn Store>;
        let manager = AuthorityManager::start(config(), Arc::clone(&keys), shared, clock.clone());
        let manager = manager.await.unwrap();
        if states.is_empty() {
            manager.prepare(AuthorityKind::X509).await.unwrap();
        }
        states.push((manager.x509_state().unwrap(), manager.jwt_state().unwrap()));
        store.close().await;
    }
    assert_eq!(states[0], states[1]);
}
