//! Size and names of files, `unsafe`, and words that must not be in the tree.

use std::collections::BTreeSet;
use std::process::Command;

use finial_tests::Output;

use crate::sources::{is_for_tests, root, rust_files, without_tests};

const LONGEST: usize = 500;
const SHIPPED: &[&str] = &["proto", "identity/src", "server/src", "agent/src", "cli/src"];

/// The only file that may hold `unsafe`.
const AUDITED: &str = "identity/src/process/sys.rs";

#[test]
fn no_file_grows_past_its_limit() {
    for folder in SHIPPED.iter().chain(&["tests"]) {
        for (path, text) in rust_files(folder) {
            if is_for_tests(&path) {
                continue;
            }
            let lines = without_tests(&text).lines().count();
            assert!(
                lines <= LONGEST,
                "{path}: {lines} lines before its tests; split it by job"
            );
        }
    }
}

#[test]
fn files_are_named_after_their_job() {
    for folder in SHIPPED {
        for (path, _) in rust_files(folder) {
            for part in path.trim_end_matches(".rs").split('/') {
                assert!(
                    !["util", "utils", "common", "helpers", "misc"].contains(&part),
                    "{path}"
                );
            }
        }
    }
}

#[test]
fn unsafe_stands_in_one_audited_file() {
    for folder in SHIPPED {
        for (path, text) in rust_files(folder) {
            let code = text
                .lines()
                .map(|line| line.split("//").next().unwrap_or_default());
            let has = code
                .into_iter()
                .any(|line| line.split_whitespace().any(|word| word == "unsafe"));
            assert!(!has || path == AUDITED, "{path} holds unsafe code");
        }
    }
}

/// The README's first command names no program, so the workspace must.
#[test]
fn cargo_run_means_the_one_program() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let metadata = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(root())
        .output()
        .expect("start cargo");
    let metadata: serde_json::Value =
        serde_json::from_slice(&metadata.stdout).expect("cargo metadata prints JSON");
    let named: Vec<_> = metadata["packages"]
        .as_array()
        .expect("packages")
        .iter()
        .filter_map(|package| package["default_run"].as_str())
        .collect();
    assert_eq!(named, ["finial"]);
}

#[test]
fn nothing_is_left_for_later() {
    let marks = [
        "todo!(",
        "unimplemented!(",
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("X", "XX"),
    ];
    for folder in SHIPPED {
        for (path, text) in rust_files(folder) {
            for mark in marks {
                assert!(!text.contains(mark), "{path} contains {mark}");
            }
        }
    }
}

/// rustls panics at start when two providers are linked, and a second one doubles the audit.
#[test]
fn one_crypto_provider_is_linked_into_the_program() {
    let tree = cargo_tree(&["--package", "finial"]);
    assert!(
        tree.lines().any(|line| line.starts_with("ring v")),
        "ring is not in the tree:\n{tree}"
    );
    for other in ["aws-lc-rs", "aws-lc-sys", "openssl", "openssl-sys"] {
        assert!(
            !tree.lines().any(|line| line.starts_with(&format!("{other} v"))),
            "{other} is linked"
        );
    }
}

/// Whom the web trusts must not vouch for a server of ours. Only an agent told to fetch its first bundle from a web
/// server, and a server told to follow a bundle endpoint by `https_web`, ask the system's roots; a library that brought
/// them along would do so unseen. The client of Kubernetes
/// can ask them, and `server/src/kubernetes` refuses a cluster for which it would.
#[test]
fn the_systems_roots_vouch_for_a_bundles_web_server_alone() {
    let users = cargo_tree(&[
        "--package",
        "finial",
        "--invert",
        "rustls-native-certs",
        "--depth",
        "1",
    ]);
    let users: Vec<_> = users.lines().skip(1).collect();
    let names: BTreeSet<&str> = users.iter().filter_map(|line| line.split(' ').next()).collect();
    let expected = [
        "finial-agent",
        "finial-server",
        "hyper-rustls",
        "rustls-platform-verifier",
    ];
    assert_eq!(names, BTreeSet::from(expected));
    for (client, package) in [
        ("hyper-rustls", "kube-client"),
        ("rustls-platform-verifier", "kube-client"),
    ] {
        let users = cargo_tree(&["--package", "finial", "--invert", client, "--depth", "1"]);
        let users: BTreeSet<&str> = users
            .lines()
            .skip(1)
            .filter_map(|line| line.split(' ').next())
            .collect();
        assert!(
            users.is_subset(&BTreeSet::from([package, "hyper-rustls"])),
            "{client}: {users:?}"
        );
    }
    for folder in ["identity", "server", "agent", "cli"] {
        for (path, text) in rust_files(&format!("{folder}/src")) {
            let uses = text.contains("rustls_native_certs");
            let may = [
                "agent/src/node/bootstrap/url.rs",
                "server/src/federation/fetch.rs",
            ];
            assert_eq!(uses, may.contains(&path.as_str()), "{path}");
        }
    }
}

/// What is linked, one package a line.
fn cargo_tree(args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO"));
    command
        .args(["tree", "--edges", "normal", "--prefix", "none", "--offline"])
        .args(args)
        .current_dir(root());
    Output::of(&mut command).ok(format!("cargo tree {args:?}")).stdout
}
