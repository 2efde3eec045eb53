//! `finial why <namespace>/<pod>` in a cluster: of a pod that has its identity, and of one that nearly has.

use finial_tests::wait_for;
use serde_json::{Value, json};

use crate::cluster::READY;
use crate::installation::{Installation, SYSTEM_NAMESPACE, TRUST_DOMAIN};
use crate::workload::Workload;

#[test]
fn an_operator_is_told_the_way_of_an_identity_and_the_label_that_lacks() {
    let Some(installation) = Installation::shared() else {
        return;
    };
    let cluster = installation.cluster();
    let space = cluster.namespace("why");
    installation.rule(
        "why",
        json!({
            "spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/why",
            "podSelector": {"matchLabels": {"why": "yes"}},
        }),
    );
    cluster.apply(&Workload::new(&space, "has").label("why", "yes").manifest());
    let id = format!("spiffe://{TRUST_DOMAIN}/why");
    installation.wait_for_identity(&space, "has", &id);
    let answer = asked(installation, &format!("{space}/has"), "HAS_IDENTITY");
    let entry = &answer["entries"][0];
    assert_eq!(
        (&entry["spiffe_id"], &entry["is_at_agent"]),
        (&json!(id), &json!(true))
    );
    assert_eq!(answer["pod"]["phase"], "Running");
    let agent = installation.agent_id(answer["node"]["name"].as_str().expect("a node"));
    assert_eq!(answer["node"]["agents"][0]["spiffe_id"], agent.as_str());
    let milliseconds = |value: &Value| {
        value
            .as_str()
            .and_then(|text| text.parse::<i64>().ok())
            .unwrap_or_default()
    };
    let hops = [
        &answer["pod"]["created_at_ms"],
        &answer["pod"]["scheduled_at_ms"],
        &answer["pod"]["seen_bound_at_ms"],
        &entry["derived_at_ms"],
        &entry["sent_at_ms"],
        &entry["signed_at_ms"],
    ]
    .map(milliseconds);
    assert!(hops[0] > 0 && hops.is_sorted(), "{answer}");
    eprintln!(
        "bound to derived {} ms, to the agent {} ms, to its SVID {} ms",
        hops[3] - hops[2],
        hops[4] - hops[2],
        hops[5] - hops[2]
    );

    // Where no fallback hides it: rules pass over nothing in the agents' namespace but by selectors.
    cluster.apply(
        &Workload::new(SYSTEM_NAMESPACE, "nearly")
            .label("why", "yess")
            .manifest(),
    );
    installation.wait_for_refusal(SYSTEM_NAMESPACE, "nearly");
    let answer = asked(installation, &format!("{SYSTEM_NAMESPACE}/nearly"), "NO_RULE");
    let rules = answer["rules"].as_array().expect("rules");
    let near = rules.iter().find(|rule| rule["name"] == "why").expect("the rule");
    assert_eq!(near["verdict"], "NEARLY_MATCHES");
    assert_eq!(
        (&near["difference"]["key"], &near["difference"]["found"]),
        (&json!("why"), &json!("yess"))
    );
    cluster.kubectl_ok(&["-n", SYSTEM_NAMESPACE, "delete", "pod", "nearly"]);
}

/// The answer about a pod, once it has this verdict.
fn asked(installation: &Installation<'_>, pod: &str, verdict: &str) -> Value {
    wait_for(&format!("{verdict} for {pod}"), READY, || {
        let output = installation.why(&[pod]);
        // kubectl tells an exit with 3 in its own words, behind what the command printed.
        let line = output.stdout.lines().find(|line| line.starts_with('{'));
        let answer: Value = serde_json::from_str(line.unwrap_or_default())?;
        anyhow::ensure!(answer["verdict"] == verdict, "{answer}{}", output.stderr);
        assert_eq!(output.status.success(), verdict == "HAS_IDENTITY", "{answer}");
        Ok(answer)
    })
}
