//! Size, names, `unsafe`, and words that do not belong into the tree.

use std::process::Command;

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
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--package",
            "finial",
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--offline",
        ])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "cargo tree: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let tree = String::from_utf8_lossy(&output.stdout);
    assert!(
        tree.lines().any(|line| line.starts_with("ring v")),
        "ring is not in the tree:\n{tree}"
    );
    for other in [
        "aws-lc-rs",
        "aws-lc-sys",
        "openssl",
        "openssl-sys",
        "rustls-native-certs",
    ] {
        assert!(
            !tree.lines().any(|line| line.starts_with(&format!("{other} v"))),
            "{other} is linked"
        );
    }
}
