//! Every RPC of the server has a row in `who_may_call.txt`, and no row names an RPC that is gone.
//!
//! The refusals themselves are proved against the running server in `e2e/authorization.rs`, which
//! walks the same file: a row is at once its refusal test.

use std::collections::BTreeSet;

use finial_tests::rpcs::{self, WHO_MAY_CALL};

const CLASSES: &[&str] = &["any", "local", "admin", "downstream", "agent"];

#[test]
fn every_rpc_of_the_server_has_a_row() {
    let rows: BTreeSet<String> = rpcs::rows(WHO_MAY_CALL)
        .map(|(method, _)| method.to_owned())
        .collect();
    let found = server_rpcs();
    let missing: Vec<_> = found.difference(&rows).collect();
    let stale: Vec<_> = rows.difference(&found).collect();
    assert!(missing.is_empty(), "no row in who_may_call.txt for {missing:?}");
    assert!(
        stale.is_empty(),
        "who_may_call.txt names RPCs that do not exist: {stale:?}"
    );
}

#[test]
fn rows_use_known_classes_once() {
    let mut seen = BTreeSet::new();
    for (method, classes) in rpcs::rows(WHO_MAY_CALL) {
        assert!(seen.insert(method), "two rows for {method}");
        assert!(!classes.is_empty(), "{method} has no class");
        for class in classes {
            assert!(CLASSES.contains(&class), "{method}: unknown class {class}");
        }
    }
}

fn server_rpcs() -> BTreeSet<String> {
    let found = rpcs::rpcs(|package| {
        package.starts_with("spire.api.server.")
            || package.starts_with("finial.server.")
            || package == "grpc.health.v1"
    });
    assert!(
        found.len() > 60,
        "only {} RPCs found: the descriptor set lost its services",
        found.len()
    );
    found
}
