//! Every RPC that an agent can have is in `agent_sockets.txt`, with the socket that serves it and what a call
//! needs; no row names an RPC that is gone.
//!
//! That the running agent does as the table says is proved in `e2e/admin.rs`, `e2e/broker.rs` and `e2e/pod_sockets.rs`.

use std::collections::BTreeSet;

use finial_tests::rpcs::{self, AGENT_SOCKETS};

const SOCKETS: &[&str] = &["public", "admin", "both", "broker", "none"];
const NEEDS: &[&str] = &["header", "delegate", "wit-svid"];

#[test]
fn every_rpc_of_the_agent_has_a_row() {
    let rows: BTreeSet<String> = rpcs::rows(AGENT_SOCKETS)
        .map(|(method, _)| method.to_owned())
        .collect();
    let found = agent_rpcs();
    let missing: Vec<_> = found.difference(&rows).collect();
    let stale: Vec<_> = rows.difference(&found).collect();
    assert!(missing.is_empty(), "no row in agent_sockets.txt for {missing:?}");
    assert!(
        stale.is_empty(),
        "agent_sockets.txt names RPCs that do not exist: {stale:?}"
    );
}

#[test]
fn rows_of_the_agent_name_one_socket_and_known_needs() {
    let mut seen = BTreeSet::new();
    for (method, words) in rpcs::rows(AGENT_SOCKETS) {
        assert!(seen.insert(method), "two rows for {method}");
        let (socket, needs) = words.split_first().expect("a row names its socket");
        assert!(SOCKETS.contains(socket), "{method}: unknown socket {socket}");
        for need in needs {
            assert!(NEEDS.contains(need), "{method}: unknown need {need}");
        }
        let for_others = method.contains(".DelegatedIdentity/");
        assert_eq!(
            needs.contains(&"delegate"),
            for_others,
            "{method}: identities of others are for delegates alone"
        );
        assert!(
            !method.starts_with("/SpiffeWorkloadAPI/") || *socket == "none" || needs.contains(&"header"),
            "{method}: the Workload API asks for its header (Workload Endpoint §3)"
        );
        assert_eq!(
            *socket == "broker",
            method.starts_with("/spiffe.broker.API/"),
            "{method}: brokers get the Broker API, and nobody else does"
        );
        assert!(
            *socket != "broker" || needs.contains(&"header"),
            "{method}: every request of a broker has its header (Broker Endpoint §3)"
        );
    }
}

fn agent_rpcs() -> BTreeSet<String> {
    let found = rpcs::rpcs(|package| {
        ["spire.api.agent.", "spire.agent.", "finial.agent."]
            .iter()
            .any(|prefix| package.starts_with(prefix))
            || ["", "envoy.service.secret.v3", "spiffe.broker", "grpc.health.v1"].contains(&package)
    });
    assert!(
        found.len() > 15,
        "only {} RPCs found: the descriptor set lost its services",
        found.len()
    );
    found
}
