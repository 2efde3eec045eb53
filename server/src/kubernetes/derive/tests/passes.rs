//! What one pass after a change looks at, and what it reports.

use super::*;

#[test]
fn a_pass_tells_only_what_changed() {
    let mut deriver = Deriver::new(settings());
    for fact in [
        node("n1", "node-1"),
        namespace("shop", &[]),
        rule("r", 0, &json!({"podSelector": {"matchLabels": {"app": "web"}}})),
        pod("shop", "a", &json!({})),
        pod("shop", "b", &json!({})),
    ] {
        deriver.apply(fact);
    }
    let first = deriver.pass(&|_| false);
    assert_eq!(
        (first.upserts.len(), first.removals.len(), first.rules.len()),
        (2, 0, 1)
    );
    assert_eq!(deriver.pass(&|_| false), Pass::default());
    // The same again, and a heartbeat of the node, change nothing.
    deriver.apply(pod("shop", "a", &json!({"metadata": {"resourceVersion": "99"}})));
    deriver.apply(node("n1", "node-1"));
    assert_eq!(deriver.pass(&|_| false), Pass::default());
    deriver.apply(pod("shop", "a", &json!({"metadata": {"labels": {"app": "x"}}})));
    let relabelled = deriver.pass(&|_| false);
    assert_eq!((relabelled.upserts.len(), relabelled.removals.len()), (0, 1));
    assert_eq!(relabelled.rules["r"].stats.pods_selected, 1);
    // A new node object is a new agent.
    deriver.apply(node("n1", "node-9"));
    let moved = deriver.pass(&|_| false);
    assert_eq!((moved.upserts.len(), moved.removals.len()), (1, 1));
    deriver.apply(Fact::Pod(NamespacedName::new("shop", "b"), None));
    assert_eq!(deriver.pass(&|_| false).removals.len(), 1);
    assert!(deriver.derivation().entries.is_empty());
}

#[test]
fn a_look_at_what_others_took_asks_once_for_each_key_and_touches_what_turned_alone() {
    let mut deriver = Deriver::new(settings());
    for fact in [node("n1", "u"), namespace("shop", &[]), rule("r", 0, &json!({}))] {
        deriver.apply(fact);
    }
    for n in 0..1_000 {
        deriver.apply(pod("shop", &format!("p{n}"), &json!({})));
    }
    deriver.pass(&|_| false);
    let asked = std::cell::Cell::new(0);
    let taken = |entry: &Entry| {
        asked.set(asked.get() + 1);
        entry.selectors[0].to_string() == "k8s:pod-uid:uid-shop-p7"
    };
    deriver.others_changed();
    let pass = deriver.pass(&taken);
    assert_eq!((pass.removals.len(), pass.upserts.len()), (1, 0));
    assert_eq!(asked.get(), 1_001, "each key, and the one that turned once more");
    asked.set(0);
    deriver.others_changed();
    assert_eq!(deriver.pass(&taken), Pass::default());
    assert_eq!(asked.get(), 1_000);
    asked.set(0);
    deriver.apply(pod("shop", "p8", &json!({"metadata": {"labels": {"x": "y"}}})));
    deriver.pass(&taken);
    assert_eq!(asked.get(), 1, "a pod is its own affair");
}

#[test]
fn of_ten_thousand_pods_one_that_changes_is_looked_at_alone() {
    let mut deriver = Deriver::new(settings());
    for n in 0..100 {
        deriver.apply(node(&format!("n{n}"), &format!("node-{n}")));
        deriver.apply(namespace(&format!("ns{n}"), &[]));
    }
    deriver.apply(rule("r", 0, &json!({"autoPopulateDNSNames": true})));
    for n in 0..10_000 {
        let more = json!({"spec": {"nodeName": format!("n{}", n % 100)}});
        deriver.apply(pod(&format!("ns{}", n / 100), &format!("p{n}"), &more));
    }
    let all = deriver.pass(&|_| false);
    assert_eq!((all.upserts.len(), all.evaluated), (10_000, 10_000));
    let changed =
        |n: usize| json!({"metadata": {"labels": {"changed": "1"}}, "spec": {"nodeName": format!("n{n}")}});
    let settled = std::cell::Cell::new(0);
    let taken = |_: &Entry| {
        settled.set(settled.get() + 1);
        false
    };
    for n in 0..100 {
        deriver.apply(pod("ns0", &format!("p{n}"), &changed(n)));
        let one = deriver.pass(&taken);
        assert_eq!(one.evaluated, 1);
    }
    assert!(
        settled.get() <= 200,
        "one key before and one after: {}",
        settled.get()
    );
    // A node has its own pods, a namespace too.
    deriver.apply(node("n7", "node-new"));
    assert_eq!(deriver.pass(&|_| false).evaluated, 100);
    deriver.apply(namespace("ns3", &[("team", "a")]));
    assert_eq!(deriver.pass(&|_| false).evaluated, 100);
}
