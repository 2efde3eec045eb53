//! Who may use whom: between packages, and between the first-level modules of server and agent.

use std::collections::BTreeSet;
use std::fs;

use crate::sources::{is_for_tests, root, rust_files, without_tests};

/// Package folder, and the packages of this workspace it may depend on.
const PACKAGES: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("identity", &["finial-proto"]),
    ("server", &["finial-identity", "finial-proto"]),
    ("agent", &["finial-identity", "finial-proto"]),
    (
        "cli",
        &["finial-agent", "finial-identity", "finial-proto", "finial-server"],
    ),
    ("tests", &["finial-identity", "finial-proto"]),
];

/// Those that a package's own tests may use besides.
const FOR_TESTS: &[(&str, &[&str])] = &[("cli", &["finial-tests"])];

/// Module of the server, and the modules it may use besides `config` and `telemetry`.
const SERVER: &[(&str, &[&str])] = &[
    ("endpoints", &["api"]),
    (
        "api",
        &[
            "attestation",
            "registry",
            "credential",
            "authority",
            "federation",
            "store",
        ],
    ),
    ("kubernetes", &["registry"]),
    ("attestation", &["store"]),
    ("registry", &["store"]),
    ("authority", &["credential", "store"]),
    ("federation", &["store"]),
    ("credential", &[]),
    ("store", &[]),
    ("config", &[]),
    ("telemetry", &[]),
];

/// Module of the agent, and the modules it may use besides `config` and `telemetry`.
const AGENT: &[(&str, &[&str])] = &[
    ("endpoints", &["workload", "svids", "node", "socket_tree"]),
    ("svids", &["node", "upstream"]),
    ("node", &["upstream"]),
    ("workload", &["socket_tree"]),
    ("upstream", &[]),
    ("csi", &["socket_tree"]),
    ("helper", &[]),
    ("socket_tree", &[]),
    ("config", &["socket_tree"]),
    ("telemetry", &[]),
];

/// They put the parts together, so they may use all.
const ASSEMBLERS: &[&str] = &["app", "cli", "lib"];

#[test]
fn packages_depend_only_along_the_arrows() {
    for (folder, allowed) in PACKAGES {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).expect("a manifest");
        let of_tests = FOR_TESTS.iter().find(|(name, _)| name == folder);
        let of_tests = of_tests.map_or(&[][..], |(_, allowed)| *allowed);
        let mut section = "";
        for line in manifest.lines() {
            if line.starts_with('[') {
                section = line;
            }
            let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
            let may = allowed.contains(&name) || section == "[dev-dependencies]" && of_tests.contains(&name);
            assert!(
                may || !name.starts_with("finial-"),
                "{folder}/Cargo.toml: {section} has {name}; allowed: {allowed:?}, for tests {of_tests:?}"
            );
        }
    }
}

#[test]
fn server_modules_use_each_other_only_along_the_arrows() {
    check_modules("server", SERVER);
}

#[test]
fn agent_modules_use_each_other_only_along_the_arrows() {
    check_modules("agent", AGENT);
}

#[test]
fn identity_opens_no_network_connection() {
    for (path, text) in rust_files("identity/src") {
        // The commands reach a running program over its Unix socket.
        if path == "identity/src/command/dial.rs" {
            continue;
        }
        for banned in [
            "TcpStream",
            "TcpListener",
            "UdpSocket",
            "transport::Channel",
            "transport::Endpoint",
            "transport::Server",
        ] {
            assert!(!without_tests(&text).contains(banned), "{path} uses {banned}");
        }
    }
}

fn check_modules(package: &str, table: &[(&str, &[&str])]) {
    let known: BTreeSet<&str> = table.iter().map(|(module, _)| *module).collect();
    for (path, text) in rust_files(&format!("{package}/src")) {
        let module = first_level_module(&path);
        if ASSEMBLERS.contains(&module.as_str()) || is_for_tests(&path) {
            continue;
        }
        let Some((_, allowed)) = table.iter().find(|(name, _)| *name == module) else {
            panic!("{path}: module {module} is not in the table of who may use whom");
        };
        for used in used_modules(without_tests(&text)) {
            let fine =
                used == module || used == "config" || used == "telemetry" || allowed.contains(&used.as_str());
            let is_module = known.contains(used.as_str()) || ASSEMBLERS.contains(&used.as_str());
            assert!(fine || !is_module, "{path}: {module} must not use {used}");
        }
    }
}

/// `server/src/store/sqlite.rs` and `server/src/store.rs` both belong to `store`.
fn first_level_module(path: &str) -> String {
    let inner = path.split("/src/").nth(1).expect("a path below src");
    inner
        .split('/')
        .next()
        .expect("split gives one part")
        .trim_end_matches(".rs")
        .to_owned()
}

/// The names after `crate::`, also within one-line groups `use crate::{a, b::c};`.
fn used_modules(text: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut name = String::new();
            for character in group.chars() {
                match character {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => used.extend(head(&std::mem::take(&mut name))),
                    other if depth == 0 => name.push(other),
                    _ => {}
                }
            }
            used.extend(head(&name));
        } else {
            used.extend(head(rest));
        }
    }
    used
}

fn head(path: &str) -> Option<String> {
    let name: String = path
        .trim_start()
        .chars()
        .take_while(|character| character.is_alphanumeric() || *character == '_')
        .collect();
    (!name.is_empty()).then_some(name)
}

#[test]
fn the_reader_of_imports_sees_every_form() {
    let text =
        "use crate::store::Store;\nuse crate::{api, registry::{feed, index}, app};\nlet x = crate::node::Y;";
    let expected: BTreeSet<String> = ["store", "api", "registry", "app", "node"]
        .map(str::to_owned)
        .into();
    assert_eq!(used_modules(text), expected);
}
