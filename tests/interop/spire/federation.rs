//! The original server and ours federate, in both directions, by the bundle endpoints of both.

use finial_tests::{Stack, StackOptions, free_port, wait_until};
use serde_json::Value;

use super::{LIMIT, Mixed, binaries, run};

fn endpoint(port: u16) -> String {
    format!(
        r#"federation {{ bundle_endpoint {{ address = "127.0.0.1" port = {port} profile "https_spiffe" {{}} }} }}"#
    )
}

fn keys(document: &str) -> Value {
    let document: Value = serde_json::from_str(document).expect("a bundle document");
    document["keys"].clone()
}

/// The flags of `federation create`.
fn relationship<'a>(name: &'a str, url: &'a str, id: &'a str, bundle: &'a str) -> [&'a str; 14] {
    [
        "federation",
        "create",
        "-trustDomain",
        name,
        "-bundleEndpointURL",
        url,
        "-bundleEndpointProfile",
        "https_spiffe",
        "-endpointSpiffeID",
        id,
        "-trustDomainBundlePath",
        bundle,
        "-trustDomainBundleFormat",
        "spiffe",
    ]
}

#[test]
fn the_original_server_and_ours_federate_in_both_directions() {
    let Some(binaries) = binaries() else { return };
    let (theirs, ours) = (free_port(), free_port());
    let (mixed, _port) = Mixed::start(binaries.clone(), &endpoint(theirs), "join_token", "");
    let stack = Stack::server_only(StackOptions {
        trust_domain: "ours.test".to_owned(),
        server: endpoint(ours),
        ..StackOptions::default()
    });
    let (their_url, our_url) = (
        format!("https://127.0.0.1:{theirs}/"),
        format!("https://127.0.0.1:{ours}/"),
    );
    let their_bundle = mixed.path("their-bundle.json");
    let shown = mixed.server(&["bundle", "show", "-format", "spiffe"]);
    std::fs::write(&their_bundle, &shown).expect("a file");
    let our_bundle = mixed.path("our-bundle.json");
    let shown = stack
        .server_cli_ok(&["bundle", "show", "-format", "spiffe"])
        .stdout;
    std::fs::write(&our_bundle, &shown).expect("a file");

    let their_id = "spiffe://example.org/spire/server";
    let created = stack.server_cli_ok(&relationship("example.org", &their_url, their_id, &their_bundle));
    let our_id = "spiffe://ours.test/spire/server";
    let theirs_created = mixed.server(&relationship("ours.test", &our_url, our_id, &our_bundle));
    let same = theirs_created
        .replace("ours.test", "example.org")
        .replace(&ours.to_string(), &theirs.to_string());
    assert_eq!(created.stdout, same, "both programs print the same");

    // Each takes up an authority that the other has made since.
    mixed.server(&["localauthority", "x509", "prepare"]);
    stack.server_cli_ok(&["localauthority", "x509", "prepare"]);
    stack.server_cli_ok(&["federation", "refresh", "-id", "spiffe://example.org"]);
    let held = stack
        .server_cli_ok(&["bundle", "list", "-id", "example.org", "-format", "spiffe"])
        .stdout;
    let shown = mixed.server(&["bundle", "show", "-format", "spiffe"]);
    assert_eq!(keys(&held), keys(&shown));
    let refreshed = mixed.server(&["federation", "refresh", "-id", "spiffe://ours.test"]);
    assert_eq!(refreshed.trim(), "Bundle refreshed");
    let held = mixed.server(&["bundle", "list", "-id", "spiffe://ours.test", "-format", "spiffe"]);
    let shown = stack
        .server_cli_ok(&["bundle", "show", "-format", "spiffe"])
        .stdout;
    assert_eq!(keys(&held), keys(&shown));

    // Its commands work with our server and print what ours print.
    let socket = stack.server_socket().display().to_string();
    for args in [
        &["federation", "list"][..],
        &["federation", "show", "-trustDomain", "example.org"],
        &["federation", "refresh", "-id", "example.org"],
        &["federation", "delete", "-id", "example.org"],
    ] {
        let expected = match args[1] {
            "delete" => "federation relationship deleted.\n".to_owned(),
            _ => stack.server_cli_ok(args).stdout,
        };
        let args: Vec<&str> = args.iter().copied().chain(["-socketPath", &socket]).collect();
        assert_eq!(run(&binaries.join("spire-server"), &args), expected, "{args:?}");
    }
    wait_until("the relationship to be gone", LIMIT, || {
        let listed = stack.server_cli_ok(&["federation", "list"]).stdout;
        listed.starts_with("Found 0 ")
    });
}
