//! What open feeds send to agents.

use super::*;

#[tokio::test]
async fn only_the_agents_concerned_are_woken() {
    let setup = setup().await;
    setup
        .store
        .put_agent(agent("/spire/agent/b", "1", &["k8s:cluster:y"]))
        .await
        .unwrap();
    let mut one = setup.feed(None).await;
    let mut other = setup
        .registry
        .subscribe(&id("/spire/agent/b"), "1", None)
        .await
        .unwrap();
    next_of_entries(&mut one).await;
    next_of_entries(&mut other).await;
    let alias = entry("alias", "/nodes", "/spire/server", &["k8s:cluster:x"]);
    setup
        .create(vec![entry("below", "/w", "/nodes", &["u:1"]), alias])
        .await;
    setup.registry.catch_up().await.unwrap();
    let FeedEvent::Delta { upserts, .. } = next(&mut one).await else {
        panic!()
    };
    assert_eq!(
        upserts.iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>(),
        ["below"]
    );
    assert!(other.heartbeat().is_some());
}

#[tokio::test]
async fn a_slow_agent_gets_a_snapshot_instead_of_a_long_delta() {
    let setup = setup().await;
    let mut feed = setup.feed(None).await;
    next_of_entries(&mut feed).await;
    for step in 0..3 {
        setup
            .create((step * 1_000..(step + 1) * 1_000).map(child).collect())
            .await;
        setup.registry.catch_up().await.unwrap();
    }
    let FeedEvent::Snapshot { entries, .. } = next(&mut feed).await else {
        panic!()
    };
    assert_eq!(entries.len(), 3_000);
    assert!(feed.heartbeat().is_some());
}

#[tokio::test]
async fn an_agent_that_holds_its_set_is_told_so_also_by_another_server() {
    let setup = setup().await;
    setup.create(vec![child(1), child(2)]).await;
    setup.registry.catch_up().await.unwrap();
    let mut feed = setup.feed(None).await;
    let FeedEvent::Snapshot { cursor, digest, .. } = next_of_entries(&mut feed).await else {
        panic!()
    };
    drop(feed);
    assert_eq!(setup.registry.watch_count(), 0);
    let resume = Some(Resume { cursor, digest });
    let restarted = load(setup.store.clone()).await;
    for registry in [&setup.registry, &restarted] {
        let mut feed = registry.subscribe(&id(AGENT), "1", resume).await.unwrap();
        assert!(
            matches!(next_of_entries(&mut feed).await, FeedEvent::Current { digest: now, .. } if now == digest)
        );
    }
}

#[tokio::test]
async fn an_agent_that_was_away_hears_what_it_missed() {
    let setup = setup().await;
    setup.create((0..10).map(child).collect()).await;
    let mut feed = setup.feed(None).await;
    setup.registry.catch_up().await.unwrap();
    let FeedEvent::Snapshot { cursor, digest, .. } = next_of_entries(&mut feed).await else {
        panic!()
    };
    drop(feed);
    setup.store.delete_entry("e3").await.unwrap();
    setup
        .create(vec![child(11), entry("other", "/o", "/spire/agent/b", &["u:1"])])
        .await;
    setup.store.delete_entry("other").await.unwrap();
    setup.registry.catch_up().await.unwrap();
    let resume = Some(Resume { cursor, digest });
    let mut feed = setup.feed(resume).await;
    let FeedEvent::Delta {
        from,
        upserts,
        removals,
        ..
    } = next_of_entries(&mut feed).await
    else {
        panic!()
    };
    assert_eq!(from, cursor);
    assert_eq!(
        upserts.iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>(),
        ["e11"]
    );
    assert_eq!(removals, ["e3"], "the other agent's entry is not spoken of");
    // A restarted server knows no changes before itself.
    let restarted = load(setup.store.clone()).await;
    let mut feed = restarted.subscribe(&id(AGENT), "1", resume).await.unwrap();
    assert!(matches!(
        next_of_entries(&mut feed).await,
        FeedEvent::Snapshot { .. }
    ));
}

#[tokio::test]
async fn an_agent_that_was_away_hears_of_a_branch_that_was_cut_leaf_by_leaf() {
    let setup = setup().await;
    let middle = entry("middle", "/m", AGENT, &["u:1"]);
    setup
        .create(vec![middle, entry("leaf", "/l", "/m", &["u:1"]), child(1)])
        .await;
    setup.registry.catch_up().await.unwrap();
    let mut feed = setup.feed(None).await;
    let FeedEvent::Snapshot { cursor, digest, .. } = next_of_entries(&mut feed).await else {
        panic!()
    };
    drop(feed);
    for id in ["leaf", "middle"] {
        setup.store.delete_entry(id).await.unwrap();
    }
    setup.registry.catch_up().await.unwrap();
    let mut feed = setup.feed(Some(Resume { cursor, digest })).await;
    let FeedEvent::Delta { mut removals, .. } = next_of_entries(&mut feed).await else {
        panic!()
    };
    removals.sort_unstable();
    assert_eq!(removals, ["leaf", "middle"]);
}

#[tokio::test]
async fn a_watch_ends_with_the_reason() {
    let (banned, deleted, superseded) = (setup().await, setup().await, setup().await);
    let mut feeds = [
        banned.feed(None).await,
        deleted.feed(None).await,
        superseded.feed(None).await,
    ];
    let agent_id = id(AGENT);
    banned.store.ban_agent(&agent_id).await.unwrap();
    deleted.store.delete_agent(&agent_id).await.unwrap();
    superseded.store.set_new_serial(&agent_id, "2", 9).await.unwrap();
    superseded.registry.catch_up().await.unwrap();
    assert!(
        !matches!(next(&mut feeds[2]).await, FeedEvent::AgentGone(_)),
        "both serials are valid"
    );
    superseded.store.promote_new_serial(&agent_id, "2").await.unwrap();
    for (setup, (feed, expected)) in [banned, deleted, superseded].iter().zip(feeds.iter_mut().zip([
        AgentGone::Banned,
        AgentGone::Deleted,
        AgentGone::Superseded,
    ])) {
        setup.registry.catch_up().await.unwrap();
        assert!(matches!(next(feed).await, FeedEvent::AgentGone(reason) if reason == expected));
        let again = setup.registry.subscribe(&agent_id, "1", None).await;
        assert!(matches!(again, Err(SubscribeError::Agent(reason)) if reason == expected));
    }
}

#[tokio::test]
async fn a_ban_that_is_learned_while_a_watch_opens_refuses_it() {
    let agent_id = id(AGENT);
    for (is_ban, reason) in [(true, AgentGone::Banned), (false, AgentGone::Deleted)] {
        let setup = setup().await;
        if is_ban {
            setup.store.ban_agent(&agent_id).await.unwrap();
        } else {
            setup.store.delete_agent(&agent_id).await.unwrap();
        }
        // Memory still admits the agent; its cursor, which is ahead, makes memory catch up.
        let ahead = load(setup.store.clone()).await;
        let resume = Resume {
            cursor: ahead.read().cursor(),
            digest: DigestSum::default(),
        };
        let refused = setup.registry.subscribe(&agent_id, "1", Some(resume)).await;
        let Err(SubscribeError::Agent(found)) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(found, reason);
        assert_eq!(setup.registry.watch_count(), 0);
    }
}

#[tokio::test]
async fn bundles_come_first_and_follow_what_the_entries_need() {
    let setup = setup().await;
    let foreign = TrustDomain::parse("f.test").unwrap();
    update_bundle(&*setup.store, &domain(), |bundle| bundle.refresh_hint = 1)
        .await
        .unwrap();
    setup
        .store
        .put_bundle(Bundle::new(foreign.clone()))
        .await
        .unwrap();
    setup.registry.catch_up().await.unwrap();
    let mut feed = setup.feed(None).await;
    let FeedEvent::Bundles(first) = next(&mut feed).await else {
        panic!()
    };
    assert!(first.is_complete && first.own.is_some() && first.federated.is_empty());
    assert!(matches!(next(&mut feed).await, FeedEvent::Snapshot { .. }));

    let mut parts = child(1).into_parts();
    parts.federates_with = vec![foreign.clone()];
    setup.create(vec![Entry::check(parts, &domain()).unwrap()]).await;
    setup.registry.catch_up().await.unwrap();
    let FeedEvent::Bundles(joined) = next(&mut feed).await else {
        panic!()
    };
    assert!(!joined.is_complete && joined.own.is_none());
    assert_eq!(joined.federated[0].trust_domain, foreign);
    assert!(matches!(next(&mut feed).await, FeedEvent::Delta { .. }));

    update_bundle(&*setup.store, &domain(), |bundle| bundle.refresh_hint = 2)
        .await
        .unwrap();
    setup.registry.catch_up().await.unwrap();
    let FeedEvent::Bundles(own) = next(&mut feed).await else {
        panic!()
    };
    assert_eq!(own.own.unwrap().sequence_number, 2);
    assert_eq!(setup.registry.bundles().borrow()[&domain()].refresh_hint, 2);

    setup
        .store
        .delete_bundle(&foreign, BundleDeleteMode::Delete)
        .await
        .unwrap();
    setup.registry.catch_up().await.unwrap();
    let FeedEvent::Bundles(left) = next(&mut feed).await else {
        panic!()
    };
    assert_eq!(left.removed, [foreign]);
    assert!(matches!(next(&mut feed).await, FeedEvent::Delta { removals, .. } if removals == ["e1"]));
    assert!(feed.heartbeat().is_some());
}

#[tokio::test]
async fn derived_entries_know_their_rule_and_what_is_like_them() {
    let setup = setup().await;
    let derived = entry("k8s.c.1", "/pod", AGENT, &["k8s:pod-uid:1"]);
    setup.registry.apply_derived(&[of_rule(derived.clone())], &[]);
    assert_eq!(
        setup.registry.origin("k8s.c.1").as_deref(),
        Some("ClusterSPIFFEID r")
    );
    let like = entry("other", "/pod", AGENT, &["k8s:pod-uid:1"]);
    let found = setup.registry.similar_derived(&like).unwrap();
    assert_eq!(found.0.entry.id, "k8s.c.1");
    assert!(
        setup.registry.gives_way(&like),
        "to the derived one of another id"
    );
    let unlike = entry("other", "/pod", AGENT, &["k8s:pod-uid:2"]);
    assert!(setup.registry.similar_derived(&unlike).is_none());
    setup.registry.apply_derived(&[], &["k8s.c.1".into()]);
    assert!(setup.registry.origin("k8s.c.1").is_none());
}

#[tokio::test]
async fn an_agent_of_a_cluster_whose_rules_are_not_known_yet_is_not_told_a_smaller_set() {
    let setup = setup().await;
    let agent = id(AGENT);
    let waits = SourceState {
        parent_prefix: agent.to_string(),
        ..SourceState::default()
    };
    setup.registry.set_source("demo", waits.clone());
    assert!(setup.registry.check_settled(&agent).is_err());
    let elsewhere = id("/spire/agent/elsewhere");
    assert!(
        setup.registry.check_settled(&elsewhere).is_err(),
        "a static entry may be meant for any agent"
    );
    let waits = SourceState {
        has_statics: true,
        ..waits
    };
    setup.registry.set_source("demo", waits.clone());
    assert!(setup.registry.check_settled(&agent).is_err());
    assert!(setup.registry.check_settled(&elsewhere).is_ok());
    assert!(
        setup
            .registry
            .authorized_entry(&agent, "k8s.demo.1")
            .await
            .is_err()
    );
    let settled = SourceState {
        is_settled: true,
        ..waits
    };
    setup.registry.set_source("demo", settled);
    assert!(setup.registry.check_settled(&agent).is_ok());
    assert!(
        setup
            .registry
            .authorized_entry(&agent, "k8s.demo.1")
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn a_cluster_that_never_answers_holds_agents_of_another_shortly_and_others_for_a_while_only() {
    let setup = setup().await;
    let (one, other, none) = (
        id(AGENT),
        id("/spire/agent/k8s_psat/east/1"),
        id("/spire/agent/x509pop/1"),
    );
    let state = |agent: &SpiffeId, is_settled| SourceState {
        parent_prefix: agent.to_string(),
        has_statics: is_settled,
        is_settled,
        ..SourceState::default()
    };
    setup.registry.set_source("here", state(&one, true));
    setup.registry.set_source("east", state(&other, false));
    let mut waiting = Vec::new();
    tokio::time::pause();
    for seconds in [0, 30, 14 * 60, 60] {
        tokio::time::advance(std::time::Duration::from_secs(seconds)).await;
        let held = [&one, &none, &other].map(|agent| setup.registry.check_settled(agent).is_err());
        waiting.push(held);
    }
    assert_eq!(
        waiting,
        [
            [true, true, true],
            [false, true, true],
            [false, true, true],
            [false, false, true]
        ]
    );
    assert!(setup.registry.check_settled(&none).is_ok());
    assert!(
        setup.registry.check_settled(&other).is_err(),
        "its own objects are not known"
    );
}

#[tokio::test]
async fn while_rules_are_not_known_an_agent_that_holds_what_is_known_watches_and_one_that_holds_more_waits() {
    let setup = setup().await;
    setup.create(vec![child(1)]).await;
    setup.registry.catch_up().await.unwrap();
    let FeedEvent::Snapshot { cursor, digest, .. } = next_of_entries(&mut setup.feed(None).await).await
    else {
        panic!()
    };
    setup.registry.set_source("demo", SourceState::default());
    let same = Some(Resume { cursor, digest });
    let mut feed = setup.feed(same).await;
    assert!(matches!(
        next_of_entries(&mut feed).await,
        FeedEvent::Current { .. }
    ));
    let mut more = digest;
    more.add(77);
    for resume in [None, Some(Resume { cursor, digest: more })] {
        let refused = setup.registry.subscribe(&id(AGENT), "1", resume).await;
        assert!(matches!(
            refused,
            Err(SubscribeError::Registry(RegistryError::Unsettled(_)))
        ));
    }
}

#[tokio::test]
async fn derived_entries_are_pushed_listed_last_and_never_stored() {
    let setup = setup().await;
    setup.create(vec![child(1)]).await;
    setup.registry.catch_up().await.unwrap();
    let mut feed = setup.feed(None).await;
    next_of_entries(&mut feed).await;
    let derived = entry("k8s.c.1", "/pod", AGENT, &["k8s:pod-uid:1"]);
    let clash = entry("e1", "/stolen", AGENT, &["u:2"]);
    setup.registry.apply_derived(&[derived, clash].map(of_rule), &[]);
    let FeedEvent::Delta { upserts, .. } = next(&mut feed).await else {
        panic!()
    };
    assert_eq!(
        upserts.iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>(),
        ["k8s.c.1"]
    );
    setup.create(vec![child(2)]).await;
    setup.registry.catch_up().await.unwrap();
    let ids: Vec<String> = setup
        .registry
        .entries(0, 9)
        .iter()
        .map(|stored| stored.entry.id.clone())
        .collect();
    assert_eq!(ids, ["e1", "e2", "k8s.c.1"]);
    setup.registry.release().await.unwrap();
    assert!(
        setup.registry.entry("k8s.c.1").is_some(),
        "a reload keeps what is derived"
    );
    setup
        .registry
        .apply_derived(&[], &["k8s.c.1".into(), "e2".into()]);
    assert!(setup.registry.entry("k8s.c.1").is_none() && setup.registry.entry("e2").is_some());
    assert!(setup.store.entry("k8s.c.1").await.unwrap().is_none());
}
