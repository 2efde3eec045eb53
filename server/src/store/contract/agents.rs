//! Agents and join tokens.

use super::*;

pub(super) async fn agents_attest_renew_and_are_banned(store: &dyn Store) {
    let a = id("/spire/agent/a");
    let AgentPut::Stored(first) = store
        .put_agent(agent("/spire/agent/a", "10", &["t:b", "t:a", "t:b"]))
        .await
        .unwrap()
    else {
        panic!()
    };
    let texts: Vec<String> = first.selectors.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["t:a", "t:b"]);
    store.set_agent_version(&a, "1.2.3").await.unwrap().unwrap();
    let pending = store.set_new_serial(&a, "11", 5_000).await.unwrap().unwrap();
    assert!(pending.has_serial("10") && pending.has_serial("11"));
    assert_eq!(store.promote_new_serial(&a, "12").await.unwrap(), None);
    let promoted = store.promote_new_serial(&a, "11").await.unwrap().unwrap();
    assert_eq!((promoted.serial.as_str(), promoted.expires_at), ("11", 5_000));
    assert!(!promoted.has_serial("10") && promoted.new_serial.is_empty());
    assert_eq!(store.promote_new_serial(&a, "").await.unwrap(), None);
    let AgentPut::Stored(again) = store
        .put_agent(agent("/spire/agent/a", "20", &["t:c"]))
        .await
        .unwrap()
    else {
        panic!()
    };
    assert_eq!(
        (again.selectors.len(), again.agent_version.as_str()),
        (1, "1.2.3")
    );
    store.set_new_serial(&a, "21", 6_000).await.unwrap().unwrap();
    let banned = store.ban_agent(&a).await.unwrap().unwrap();
    assert!(banned.is_banned() && !banned.has_serial("20") && !banned.has_serial("21"));
    assert_eq!(store.agent(&a).await.unwrap().unwrap().agent, banned);
    assert_eq!(store.ban_agent(&id("/spire/agent/b")).await.unwrap(), None);
}

pub(super) async fn a_banned_agent_stays_banned(store: &dyn Store) {
    let a = id("/spire/agent/a");
    store.put_agent(agent("/spire/agent/a", "10", &[])).await.unwrap();
    store.ban_agent(&a).await.unwrap();
    let again = store.put_agent(agent("/spire/agent/a", "11", &[])).await.unwrap();
    assert_eq!(again, AgentPut::Banned);
    assert_eq!(store.set_new_serial(&a, "12", 1).await.unwrap(), None);
    assert!(store.agent(&a).await.unwrap().unwrap().agent.is_banned());
    store.delete_agent(&a).await.unwrap().unwrap();
    let fresh = store.put_agent(agent("/spire/agent/a", "13", &[])).await.unwrap();
    assert!(matches!(fresh, AgentPut::Stored(_)));
}

pub(super) async fn deleting_a_join_token_agent_deletes_its_entry(store: &dyn Store) {
    for attestor in ["join_token", "x509pop"] {
        let path = format!("/spire/agent/{attestor}/t");
        let mut record = agent(&path, "1", &[]);
        record.attestation_type = attestor.into();
        store.put_agent(record).await.unwrap();
        let selector = format!("spiffe_id:{}", id(&path));
        create(
            store,
            entry(&format!("alias-{attestor}"), "/node", &path, &[&selector]),
        )
        .await;
        create(store, entry(&format!("child-{attestor}"), "/w", &path, &["u:1"])).await;
        store.delete_agent(&id(&path)).await.unwrap().unwrap();
        assert_eq!(store.delete_agent(&id(&path)).await.unwrap(), None);
    }
    let left: HashSet<String> = store
        .list_entries(0, 10)
        .await
        .unwrap()
        .iter()
        .map(|s| s.entry.id.clone())
        .collect();
    let expected = ["child-join_token", "child-x509pop", "alias-x509pop"];
    assert_eq!(left, expected.map(String::from).into());
}

pub(super) async fn agents_are_pruned_by_age_and_kind(store: &dyn Store) {
    for (name, expires_at, can_reattest) in [
        ("old", 100, true),
        ("tofu", 100, false),
        ("banned", 100, true),
        ("live", 900, true),
    ] {
        let mut record = agent(&format!("/spire/agent/{name}"), "1", &[]);
        (record.expires_at, record.can_reattest) = (expires_at, can_reattest);
        store.put_agent(record).await.unwrap();
    }
    store.ban_agent(&id("/spire/agent/banned")).await.unwrap();
    assert_eq!(store.prune_agents(at(500), false, 10).await.unwrap(), 1);
    assert_eq!(store.agent(&id("/spire/agent/old")).await.unwrap(), None);
    assert_eq!(store.prune_agents(at(500), true, 10).await.unwrap(), 1);
    let rows = store.list_agents(0, 10).await.unwrap();
    assert_eq!(rows.len(), 2);
    assert_eq!(store.list_agents(rows[0].row, 10).await.unwrap(), rows[1..]);
}

pub(super) async fn a_join_token_is_taken_once(store: &dyn Store) {
    assert!(store.create_join_token("t", 42).await.unwrap());
    assert!(!store.create_join_token("t", 43).await.unwrap());
    assert_eq!(store.take_join_token("t").await.unwrap(), Some(42));
    assert_eq!(store.take_join_token("t").await.unwrap(), None);
    store.create_join_token("old", 10).await.unwrap();
    store.create_join_token("new", 99).await.unwrap();
    assert_eq!(store.prune_join_tokens(at(50)).await.unwrap(), 1);
    assert_eq!(store.take_join_token("new").await.unwrap(), Some(99));
}
