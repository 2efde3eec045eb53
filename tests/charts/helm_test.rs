//! The pod of `helm test`: it is there for all values, asks for what the installation gives, and has its rule.

use serde_json::{Value, json};

use crate::engine::{Rendered, engine, merge};
use crate::sets::required;

const ID: &str =
    "spiffe://{{ .TrustDomain }}/ns/{{ .PodMeta.Namespace }}/sa/{{ .PodSpec.ServiceAccountName }}";

/// What its containers run, one after the other.
fn commands(pod: &Value) -> Vec<String> {
    let lists = ["initContainers", "containers"].into_iter();
    lists
        .filter_map(|list| pod["spec"][list].as_array())
        .flatten()
        .map(|container| {
            let args = container["args"].as_array().expect("arguments").iter();
            let words: Vec<_> = args.filter_map(Value::as_str).collect();
            words.join(" ")
        })
        .collect()
}

fn pod(rendered: &Rendered) -> &Value {
    rendered.named("Pod", "finial-test-identity")
}

fn rule(rendered: &Rendered) -> Option<&Value> {
    let mut rules = rendered.of_kind("ClusterSPIFFEID");
    rules.find(|rule| rule["metadata"]["name"] == "finial-finial-helm-test")
}

#[test]
fn it_fetches_what_its_rule_gives_it_by_the_socket_that_there_is() {
    let Some(engine) = engine() else { return };
    for (csi, namespace, socket) in [
        (true, "finial", "/spiffe-workload-api/spire-agent.sock"),
        (false, "spire-system", "/spiffe-workload-api/other.sock"),
    ] {
        for jwt in [true, false] {
            let mut values = required();
            let given = json!({
                "spiffe-csi-driver": {"enabled": csi},
                "spire-server": {"jwtSVIDSupport": jwt},
                "spire-agent": {"socketPath": "/run/x/other.sock", "nodeSelector": {"pool": "a"}},
            });
            merge(&mut values, &given);
            let rendered = engine.render(&values).expect("renders");
            let pod = pod(&rendered);
            assert_eq!(pod["metadata"]["namespace"], namespace);
            let mut expected = vec![format!("agent api fetch x509 -timeout 30s -socketPath {socket}")];
            if jwt {
                expected.push(format!(
                    "agent api fetch jwt -timeout 30s -audience helm-test -socketPath {socket}"
                ));
            }
            assert_eq!(commands(pod), expected);
            // Helm shows logs of pods with one container only.
            assert_eq!(pod["spec"]["containers"].as_array().map(Vec::len), Some(1));
            assert_eq!(
                pod["spec"]["nodeSelector"],
                json!({"pool": "a"}),
                "where there is an agent"
            );
            let volume = &pod["spec"]["volumes"][0];
            if csi {
                assert_eq!(
                    volume["csi"],
                    json!({"driver": "csi.spiffe.io", "readOnly": true})
                );
            } else {
                assert_eq!(volume["hostPath"], json!({"path": "/run/x", "type": "Directory"}));
            }
            assert_eq!(pod["spec"]["automountServiceAccountToken"], false);

            let rule = &rule(&rendered).expect("its rule")["spec"];
            assert_eq!(rule["spiffeIDTemplate"], ID);
            assert_eq!(
                rule["namespaceSelector"]["matchLabels"],
                json!({ "kubernetes.io/metadata.name": namespace })
            );
            let wanted = rule["podSelector"]["matchLabels"].as_object().expect("labels");
            let labels = &pod["metadata"]["labels"];
            assert!(
                wanted.iter().all(|(key, value)| labels[key] == *value),
                "{labels}"
            );
        }
    }
}

/// Then there is no rule either, and the agent's health is all that can be asked for.
#[test]
fn where_rules_give_it_nothing_it_asks_for_the_agents_health() {
    let Some(engine) = engine() else { return };
    for given in [
        json!({"spire-server": {"controllerManager": {"enabled": false}}}),
        json!({"spire-server": {"controllerManager": {"ignoreNamespaces": ["^fin"]}}}),
        json!({
            "spire-server": {"controllerManager": {"ignoreNamespaces": ["^spire-system$"]}},
            "spiffe-csi-driver": {"enabled": false},
        }),
    ] {
        let mut values = required();
        merge(&mut values, &given);
        let rendered = engine.render(&values).expect("renders");
        assert_eq!(rule(&rendered), None, "{given}");
        assert_eq!(
            commands(pod(&rendered)),
            ["agent healthcheck -socketPath /spiffe-workload-api/spire-agent.sock"],
            "{given}"
        );
    }
}

#[test]
fn notes_warn_of_one_server_and_of_none() {
    let Some(engine) = engine() else { return };
    let notes = |given: Value| {
        let mut values = required();
        merge(&mut values, &given);
        engine.render(&values).expect("renders").notes
    };
    assert!(notes(json!({})).contains("NOTE: one server."));
    let none = notes(json!({"spire-server": {"replicaCount": 0}}));
    assert!(
        none.contains("no server runs") && !none.contains("one server."),
        "{none}"
    );
}
