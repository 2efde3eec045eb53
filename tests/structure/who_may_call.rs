//! Every RPC of the server has a row in `who_may_call.txt`, and no row names an RPC that is gone.
//!
//! The refusals themselves are proved against the running server in `e2e/authorization.rs`, which
//! walks the same file: a row is at once its refusal test.

use std::collections::BTreeSet;

use prost::Message as _;
use prost_types::FileDescriptorSet;

const TABLE: &str = include_str!("who_may_call.txt");
const CLASSES: &[&str] = &["any", "local", "admin", "downstream", "agent"];

#[test]
fn every_rpc_of_the_server_has_a_row() {
    let rows: BTreeSet<String> = rows().map(|(method, _)| method.to_owned()).collect();
    let rpcs = server_rpcs();
    let missing: Vec<_> = rpcs.difference(&rows).collect();
    let stale: Vec<_> = rows.difference(&rpcs).collect();
    assert!(missing.is_empty(), "no row in who_may_call.txt for {missing:?}");
    assert!(
        stale.is_empty(),
        "who_may_call.txt names RPCs that do not exist: {stale:?}"
    );
}

#[test]
fn rows_use_known_classes_once() {
    let mut seen = BTreeSet::new();
    for (method, classes) in rows() {
        assert!(seen.insert(method), "two rows for {method}");
        assert!(!classes.is_empty(), "{method} has no class");
        for class in classes {
            assert!(CLASSES.contains(&class), "{method}: unknown class {class}");
        }
    }
}

fn rows() -> impl Iterator<Item = (&'static str, Vec<&'static str>)> {
    TABLE
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let mut words = line.split_whitespace();
            (
                words.next().expect("a line that is not empty has a word"),
                words.collect(),
            )
        })
}

fn server_rpcs() -> BTreeSet<String> {
    let set =
        FileDescriptorSet::decode(finial_proto::FILE_DESCRIPTOR_SET).expect("the exported descriptor set");
    let mut rpcs = BTreeSet::new();
    for file in set.file {
        let package = file.package().to_owned();
        if !(package.starts_with("spire.api.server.")
            || package.starts_with("finial.server.")
            || package == "grpc.health.v1")
        {
            continue;
        }
        for service in &file.service {
            for method in &service.method {
                rpcs.insert(format!("/{package}.{}/{}", service.name(), method.name()));
            }
        }
    }
    assert!(
        rpcs.len() > 60,
        "only {} RPCs found: the descriptor set lost its services",
        rpcs.len()
    );
    rpcs
}
