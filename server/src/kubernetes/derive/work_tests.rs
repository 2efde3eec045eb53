use serde_json::json;

use super::tests::{namespace, node, pod, rule, settings};
use super::*;

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
