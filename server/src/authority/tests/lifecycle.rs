//! Authorities are prepared, activated, tainted, revoked and removed at the right times.

use super::*;

#[tokio::test(start_paused = true)]
async fn authorities_follow_each_other_through_generations() {
    let world = World::new();
    let manager = world.start().await.unwrap();
    for kind in [AuthorityKind::X509, AuthorityKind::Jwt] {
        assert_eq!(manager.state(kind).unwrap().prepared, None);
    }
    // How old the active authority is when it takes over.
    let mut age = Duration::ZERO;
    for _ in 0..4 {
        let before = active(&manager);
        tokio::time::advance(12 * HOUR - age).await;
        age = 8 * HOUR;
        manager.step().await;
        assert_eq!(
            manager.x509_state().unwrap().prepared,
            None,
            "not yet at exactly half the lifetime"
        );
        tokio::time::advance(SECOND).await;
        manager.step().await;
        let prepared = manager
            .x509_state()
            .unwrap()
            .prepared
            .expect("prepared after half the lifetime");
        assert!(
            world.has_x509(&prepared.authority_id),
            "in the bundle before it signs"
        );
        assert!(manager.jwt_state().unwrap().prepared.is_some());
        assert_eq!(active(&manager), before);

        tokio::time::advance(8 * HOUR - SECOND).await;
        manager.step().await;
        assert_eq!(active(&manager), before, "not yet at exactly five sixths");
        tokio::time::advance(SECOND).await;
        manager.step().await;
        let states = manager.x509_state().unwrap();
        assert_eq!(states.active, prepared);
        assert_eq!(states.old.unwrap().authority_id, before.0);
        assert_eq!(manager.jwt_state().unwrap().old.unwrap().authority_id, before.1);
        world.check_signing(&manager);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_signed_verifies_at_any_hour_of_a_week() {
    let world = World::new();
    let manager = world.start().await.unwrap();
    let mut authorities = std::collections::BTreeSet::new();
    for _ in 0..7 * 24 * 4 {
        tokio::time::advance(HOUR / 4).await;
        let next = manager.step().await;
        assert!(next >= world.clock.now());
        world.check_signing(&manager);
        authorities.insert(active(&manager));
    }
    // A new one takes over every twelve hours and a quarter.
    assert_eq!(authorities.len(), 14);
    let slots: Vec<_> = world
        .keys
        .keys()
        .await
        .unwrap()
        .into_iter()
        .map(|(id, _)| id)
        .collect();
    assert_eq!(slots, ["JWT-Signer-A", "JWT-Signer-B", "x509-CA-A", "x509-CA-B"]);
}

#[tokio::test(start_paused = true)]
async fn the_loop_rotates_by_itself_and_stops_when_told() {
    let world = World::new();
    let manager = world.start().await.unwrap();
    let first = active(&manager);
    let mut tasks = TaskSet::new();
    tasks.spawn("authorities", Arc::clone(&manager).run(tasks.stop_signal()));
    tasks
        .run_until_first_exit(tokio::time::sleep(21 * HOUR))
        .await
        .unwrap();
    assert_ne!(active(&manager), first);
    assert_eq!(manager.x509_state().unwrap().old.unwrap().authority_id, first.0);
}

#[tokio::test(start_paused = true)]
async fn own_svid_is_renewed_at_half_its_life() {
    let world = World::new();
    let manager = world.start().await.unwrap();
    let receiver = manager.server_svid();
    let serial = || receiver.borrow().as_ref().unwrap().leaf().serial_hex();
    let first = serial();
    let leaf = receiver.borrow().as_ref().unwrap().leaf().clone();
    assert_eq!(leaf.uri_sans(), ["spiffe://example.org/spire/server"]);
    assert_eq!(
        leaf.not_after() - leaf.not_before(),
        time::Duration::seconds(3610)
    );
    // The ten seconds that it is backdated by are no part of its lifetime.
    tokio::time::advance(Duration::from_secs(1800)).await;
    manager.step().await;
    assert_eq!(serial(), first);
    tokio::time::advance(SECOND).await;
    manager.step().await;
    assert_ne!(serial(), first);
}

#[tokio::test(start_paused = true)]
async fn forced_rotation_goes_prepare_activate_taint_revoke() {
    let world = World::new();
    let manager = world.start_as(wit::config_with_wit()).await.unwrap();
    let receiver = manager.server_svid();
    let first = active(&manager);
    let first_wit = manager.state(AuthorityKind::Wit).unwrap().active.authority_id;
    for (kind, old) in [
        (AuthorityKind::X509, &first.0),
        (AuthorityKind::Jwt, &first.1),
        (AuthorityKind::Wit, &first_wit),
    ] {
        let invalid = |result: Result<AuthorityState, AuthorityError>, text: &str| {
            assert!(
                matches!(&result, Err(AuthorityError::InvalidArgument(found)) if found == text),
                "{result:?}"
            );
        };
        invalid(manager.activate(kind, "").await, "no authority ID provided");
        invalid(manager.activate(kind, "x").await, "unexpected authority ID");
        let prepared = manager.prepare(kind).await.unwrap();
        let again = manager.prepare(kind).await.unwrap();
        assert_ne!(
            prepared, again,
            "a second preparation takes the place of the first"
        );
        invalid(
            manager.activate(kind, &prepared.authority_id).await,
            "unexpected authority ID",
        );
        invalid(
            manager.taint(kind, &again.authority_id).await,
            "only Old local authorities can be tainted",
        );
        assert_eq!(manager.activate(kind, &again.authority_id).await.unwrap(), again);
        assert_eq!(&manager.state(kind).unwrap().old.unwrap().authority_id, old);
        let not_prepared = manager.activate(kind, old).await;
        assert!(matches!(not_prepared, Err(AuthorityError::Internal { .. })));

        invalid(manager.taint(kind, "").await, "no authority ID provided");
        invalid(
            manager.taint(kind, &again.authority_id).await,
            "unable to taint current local authority",
        );
        invalid(manager.taint(kind, "x").await, "unexpected authority ID");
        let untainted = manager.revoke(kind, old).await;
        assert!(
            matches!(untainted, Err(AuthorityError::Internal { .. })),
            "{untainted:?}"
        );
        manager.taint(kind, old).await.unwrap();
        let twice = manager.taint(kind, old).await;
        assert!(matches!(twice, Err(AuthorityError::Internal { .. })));

        let text = "invalid authority ID: unable to use current authority";
        invalid(manager.revoke(kind, &again.authority_id).await, text);
        let unknown = match kind {
            AuthorityKind::X509 => "invalid authority ID: only Old local authority can be revoked",
            AuthorityKind::Jwt => "invalid authority ID: no JWT authority found with provided authority ID",
            AuthorityKind::Wit => "invalid authority ID: no WIT authority found with provided authority ID",
        };
        invalid(manager.revoke(kind, "x").await, unknown);
        invalid(
            manager.revoke(kind, "").await,
            "invalid authority ID: no authority ID provided",
        );
        assert_eq!(&manager.revoke(kind, old).await.unwrap().authority_id, old);
    }
    let own = receiver.borrow().as_ref().unwrap().leaf().clone();
    assert_eq!(
        hex(own.authority_key_id().unwrap()),
        active(&manager).0,
        "own SVID left the tainted authority"
    );
    assert!(!world.has_x509(&first.0));
    assert!(world.bundle().jwt_authority(&first.1).is_none());
    assert!(world.bundle().wit_authority(&first_wit).is_none());
    world.check_signing(&manager);
    let after = active(&manager);
    let manager = world.start().await.unwrap();
    assert_eq!(active(&manager), after);
    assert_eq!(manager.x509_state().unwrap().old, None);
}

#[tokio::test(start_paused = true)]
async fn a_prepared_jwt_key_cannot_be_revoked_and_a_foreign_tainted_one_can() {
    let world = World::new();
    let manager = world.start().await.unwrap();
    let kind = AuthorityKind::Jwt;
    let first = manager.prepare(kind).await.unwrap().authority_id;
    let second = manager.prepare(kind).await.unwrap().authority_id;
    let refused = manager.revoke(kind, &second).await.unwrap_err().to_string();
    assert_eq!(refused, "invalid authority ID: unable to use a prepared key");
    world
        .store
        .inner
        .bundle
        .lock()
        .unwrap()
        .as_mut()
        .unwrap()
        .taint_jwt(&first)
        .unwrap();
    manager.revoke(kind, &first).await.unwrap();
    assert!(world.bundle().jwt_authority(&first).is_none());
}

#[tokio::test(start_paused = true)]
async fn switched_off_jwt_svids_have_no_authority() {
    let world = World::new();
    let manager = world
        .start_as(AuthorityConfig {
            disable_jwt_svids: true,
            ..config()
        })
        .await
        .unwrap();
    manager.step().await;
    assert!(matches!(manager.jwt_state(), Err(AuthorityError::JwtDisabled)));
    assert!(matches!(
        manager.prepare(AuthorityKind::Jwt).await,
        Err(AuthorityError::JwtDisabled)
    ));
    assert!(matches!(
        manager.sign_jwt(&token_request(&["a"])),
        Err(AuthorityError::JwtDisabled)
    ));
    assert!(world.bundle().jwt_authorities.is_empty());
    assert_eq!(world.keys.keys().await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn expired_authorities_leave_the_bundle_a_day_later() {
    let world = World::new();
    let manager = world.start().await.unwrap();
    let first = active(&manager);
    for _ in 0..14 {
        tokio::time::advance(4 * HOUR).await;
        manager.step().await;
        let age = world.clock.now() - T0;
        // Whether it is pruned at the next pruning, within eight hours here, is not of interest.
        if age <= time::Duration::hours(48) {
            assert!(world.has_x509(&first.0), "{age}");
        }
    }
    assert!(!world.has_x509(&first.0));
    assert!(world.bundle().jwt_authority(&first.1).is_none());
}

#[tokio::test(start_paused = true)]
async fn what_expired_long_ago_leaves_the_bundle_at_the_first_step_after_a_start() {
    let world = World::new();
    let first = active(&world.start().await.unwrap());
    tokio::time::advance(49 * HOUR).await;
    let manager = world.start().await.unwrap();
    assert!(world.has_x509(&first.0));
    manager.step().await;
    assert!(!world.has_x509(&first.0));
    assert!(world.bundle().jwt_authority(&first.1).is_none());
    world.check_signing(&manager);
}

#[tokio::test(start_paused = true)]
async fn journals_of_absent_servers_are_forgotten() {
    let world = World::new();
    let absent = World {
        keys: Arc::new(Cut {
            inner: MemoryKeyManager::new(),
            fuse: Arc::clone(&world.fuse),
        }),
        ..world.clone()
    };
    absent.start().await.unwrap();
    let manager = world.start().await.unwrap();
    let journals = || world.store.inner.journals.lock().unwrap().len();
    assert_eq!(journals(), 2);
    for _ in 0..15 {
        tokio::time::advance(12 * HOUR).await;
        manager.step().await;
        tokio::time::advance(12 * HOUR).await;
        manager.step().await;
        assert_eq!(journals(), 2);
    }
    tokio::time::advance(8 * HOUR).await;
    manager.step().await;
    assert_eq!(journals(), 1);
}
