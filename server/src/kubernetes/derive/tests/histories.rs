//! Random histories: deriving step by step gives the same as deriving everything at once.

use proptest::prelude::*;
use serde_json::json;

use super::super::*;
use super::{fixed, namespace, node, pod, rule, service, settings};

const NAMESPACES: [&str; 3] = ["shop", "bank", "kube-system"];

#[derive(Clone, Debug)]
enum Step {
    Pod(usize, usize, Option<(usize, usize)>),
    Node(usize, Option<usize>),
    Namespace(usize, Option<usize>),
    Service(usize, Option<Vec<usize>>),
    Rule(usize, Option<(usize, u8)>),
    Static(usize, Option<(usize, u8)>),
    Stored(bool),
    Pass,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3_usize, 0..4_usize, proptest::option::weighted(0.8, (0..4_usize, 0..3_usize)))
            .prop_map(|(ns, pod, what)| Step::Pod(ns, pod, what)),
        2 => (0..3_usize, proptest::option::weighted(0.8, 0..2_usize)).prop_map(|(n, uid)| Step::Node(n, uid)),
        2 => (0..3_usize, proptest::option::weighted(0.8, 0..2_usize)).prop_map(|(n, team)| Step::Namespace(n, team)),
        2 => (0..3_usize, proptest::option::weighted(0.8, proptest::collection::vec(0..4_usize, 0..3)))
            .prop_map(|(n, pods)| Step::Service(n, pods)),
        3 => (0..4_usize, proptest::option::weighted(0.8, (0..7_usize, 0..3_u8))).prop_map(|(n, spec)| Step::Rule(n, spec)),
        1 => (0..2_usize, proptest::option::weighted(0.8, (0..3_usize, 0..3_u8))).prop_map(|(n, spec)| Step::Static(n, spec)),
        1 => any::<bool>().prop_map(Step::Stored),
        4 => Just(Step::Pass),
    ]
}

fn fact(step: &Step) -> Option<Fact> {
    Some(match step {
        Step::Pod(ns, n, None) => Fact::Pod(NamespacedName::new(NAMESPACES[*ns], &format!("p{n}")), None),
        Step::Pod(ns, n, Some((label, node))) => {
            let node = if *node == 2 {
                json!(null)
            } else {
                json!(format!("n{node}"))
            };
            let more = json!({
                "metadata": {"labels": {"app": format!("a{label}")}}, "spec": {"nodeName": node}
            });
            pod(NAMESPACES[*ns], &format!("p{n}"), &more)
        }
        Step::Node(n, None) => Fact::Node(format!("n{n}").as_str().into(), None),
        Step::Node(n, Some(uid)) => node(&format!("n{n}"), &format!("u{uid}")),
        Step::Namespace(n, None) => Fact::Namespace(NAMESPACES[*n].into(), None),
        Step::Namespace(n, Some(team)) => namespace(NAMESPACES[*n], &[("team", &format!("t{team}"))]),
        Step::Service(n, None) => Fact::Endpoints(NamespacedName::new("shop", &format!("s{n}")), None),
        Step::Service(n, Some(pods)) => {
            let pods: Vec<String> = pods.iter().map(|pod| format!("p{pod}")).collect();
            let pods: Vec<&str> = pods.iter().map(String::as_str).collect();
            service(&format!("s{n}"), "shop", &format!("svc{}", n % 2), &pods)
        }
        Step::Rule(n, None) => Fact::Rule(format!("r{n}").as_str().into(), None),
        Step::Rule(n, Some((spec, age))) => {
            let spec = match spec {
                0 => json!({}),
                1 => json!({"podSelector": {"matchLabels": {"app": "a1"}}, "hint": "h"}),
                2 => json!({"namespaceSelector": {"matchLabels": {"team": "t1"}}}),
                3 => json!({"fallback": true, "spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/fallback"}),
                4 => json!({"autoPopulateDNSNames": true}),
                5 => json!({"spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/{{ .PodMeta.Labels.no }}"}),
                _ => json!({"className": "other"}),
            };
            rule(&format!("r{n}"), *age, &spec)
        }
        Step::Static(n, None) => Fact::Static(format!("s{n}").as_str().into(), None),
        Step::Static(n, Some((spec, age))) => {
            let spec = match spec {
                0 => json!({}),
                1 => json!({
                    "spiffeID": "spiffe://example.test/ns/shop/sa/sa",
                    "parentID": "spiffe://example.test/spire/agent/k8s_psat/demo/u0",
                    "selectors": ["k8s:pod-uid:uid-shop-p0"]
                }),
                _ => json!({"selectors": ["bad"]}),
            };
            fixed(&format!("s{n}"), *age, &spec)
        }
        Step::Stored(_) | Step::Pass => return None,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn step_by_step_is_the_same_as_at_once(steps in proptest::collection::vec(step(), 1..60)) {
        let mut deriver = Deriver::new(settings());
        let mut stored = false;
        let (mut held, mut masked) = (BTreeMap::new(), BTreeMap::new());
        for step in steps.iter().chain([&Step::Pass]) {
            if let Some(fact) = fact(step) {
                deriver.apply(fact);
            }
            if let Step::Stored(now) = step {
                stored = *now;
                deriver.others_changed();
            }
            if matches!(step, Step::Pass) {
                let is_stored = |entry: &Entry| stored && entry.spiffe_id.path() == "/ns/shop/sa/sa";
                let pass = deriver.pass(&is_stored);
                for id in &pass.removals {
                    prop_assert!(held.remove(id).is_some());
                }
                for id in &pass.unmasked {
                    prop_assert!(masked.remove(id).is_some());
                }
                for upsert in &pass.upserts {
                    masked.remove(&upsert.entry.id);
                    held.insert(upsert.entry.id.clone(), upsert.clone());
                }
                for entry in &pass.masked {
                    masked.insert(entry.entry.id.clone(), entry.clone());
                }
                let whole = derive(deriver.objects(), &settings(), &is_stored);
                prop_assert_eq!(&deriver.derivation(), &whole);
                prop_assert_eq!(&held, &whole.entries);
                prop_assert_eq!(&masked, &whole.masked);
            }
        }
    }
}
