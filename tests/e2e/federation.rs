//! Trust domains that federate: real servers on both sides, endpoints that misbehave, objects of Kubernetes.

use std::time::Duration;

use finial_tests::kubernetes::FakeCluster;
use finial_tests::{
    BundleEndpoint, Entry, Stack, StackOptions, TlsIdentity, WebAuthority, free_port, wait_until,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(60);
const ENDPOINT_ID: &str = "spiffe://a.test/spire/server";

/// A server of `a.test` whose bundle endpoint is on that port.
fn partner(port: u16, profile: &str) -> Stack {
    Stack::server_only(StackOptions {
        trust_domain: "a.test".to_owned(),
        server: format!(
            r#"federation {{ bundle_endpoint {{ address = "127.0.0.1" port = {port} profile {profile} }} }}"#
        ),
        ..StackOptions::default()
    })
}

/// The own bundle of a server in a file beside it.
fn bundle_file(stack: &Stack) -> String {
    let path = stack.dir().join("own-bundle.json");
    let bundle = stack
        .server_cli_ok(&["bundle", "show", "-format", "spiffe"])
        .stdout;
    std::fs::write(&path, bundle).expect("the bundle is written");
    path.display().to_string()
}

/// `federation create` by `https_spiffe`, with what makes the first connection possible.
fn federate(stack: &Stack, url: &str, bundle: &str) {
    stack.server_cli_ok(&[
        "federation",
        "create",
        "-trustDomain",
        "a.test",
        "-bundleEndpointURL",
        url,
        "-bundleEndpointProfile",
        "https_spiffe",
        "-endpointSpiffeID",
        ENDPOINT_ID,
        "-trustDomainBundlePath",
        bundle,
        "-trustDomainBundleFormat",
        "spiffe",
    ]);
}

/// What `federation refresh` says when it fails; empty when it succeeds.
fn refresh(stack: &Stack) -> String {
    let output = stack.server_cli(&["federation", "refresh", "-id", "a.test"]);
    match output.status.success() {
        true => {
            assert_eq!(output.stdout, "Bundle refreshed\n");
            String::new()
        }
        false => output.stderr,
    }
}

/// The foreign bundle as the server holds it.
fn held(stack: &Stack) -> Value {
    let args = ["bundle", "list", "-id", "a.test", "-format", "spiffe"];
    stack.server_cli_ok(&args).json()
}

fn sequence(bundle: &Value) -> u64 {
    bundle["spiffe_sequence"].as_u64().unwrap_or_default()
}

/// The foreign X.509 authorities that a workload of this user gets, in PEM.
fn foreign_of_workload(stack: &Stack) -> String {
    let dir = TempDir::with_prefix("finial-").expect("a temporary directory");
    let path = dir.path().display().to_string();
    let fetched = stack.agent_cli(&["api", "fetch", "x509", "-write", &path]);
    if !fetched.status.success() {
        return String::new();
    }
    let file = dir.path().join("federated_bundle.0.0.pem");
    std::fs::read_to_string(file).unwrap_or_default()
}

fn step(stack: &Stack, step: &str, id: &str) {
    stack.server_cli_ok(&["localauthority", "x509", step, "-authorityID", id]);
}

/// Covers FED-11, FED-15, FED-35, FED-36, FED-47.
#[test]
fn two_servers_federate_by_svid_through_restarts_and_new_authorities() {
    let port = free_port();
    let mut a = partner(port, "\"https_spiffe\" {}");
    let mut b = Stack::start(StackOptions {
        trust_domain: "b.test".to_owned(),
        ..StackOptions::default()
    });
    federate(&b, &format!("https://127.0.0.1:{port}/"), &bundle_file(&a));
    assert_eq!(refresh(&b), "");
    b.create_entry(&Entry::for_me("/web").with(&["-federatesWith", "a.test"]));
    b.wait_identity("/web");
    let own = a.server_cli_ok(&["bundle", "show", "-format", "pem"]).stdout;
    wait_until("the foreign bundle at the workload", SOON, || {
        foreign_of_workload(&b).trim() == own.trim()
    });

    // The next authority is fetched before it signs, and the endpoint is trusted with it afterwards.
    let old = a.authority_id("active");
    a.server_cli_ok(&["localauthority", "x509", "prepare"]);
    assert_eq!(refresh(&b), "");
    step(&a, "activate", &a.authority_id("prepared"));
    step(&a, "taint", &old);
    assert_eq!(refresh(&b), "", "the endpoint shows an SVID of the new authority");
    step(&a, "revoke", &old);
    assert_eq!(refresh(&b), "");
    let own = a.server_cli_ok(&["bundle", "show", "-format", "pem"]).stdout;
    assert_eq!(own.matches("BEGIN CERTIFICATE").count(), 1);
    wait_until("the revoked authority to go at the workload", SOON, || {
        foreign_of_workload(&b).trim() == own.trim()
    });

    // The partner cannot be reached: what is known stays.
    let before = held(&b);
    a.server().terminate();
    let refused = refresh(&b);
    assert!(refused.contains("connect to 127.0.0.1"), "{refused}");
    b.server().terminate();
    b.start_server();
    b.wait_server();
    assert_eq!(held(&b), before);
    a.start_server();
    a.wait_server();
    assert_eq!(refresh(&b), "", "the relationship outlived the restart of both");

    // The relationship ends, and with `bundle delete` what it brought.
    let deleted = b.server_cli_ok(&["federation", "delete", "-id", "spiffe://a.test"]);
    assert_eq!(deleted.stdout, "federation relationship deleted.\n");
    assert!(refresh(&b).contains("there is no federation relationship"));
    assert_eq!(held(&b), before);
    b.server_cli_ok(&["bundle", "delete", "-id", "a.test", "-mode", "dissociate"]);
    wait_until("the foreign bundle to go at the workload", SOON, || {
        foreign_of_workload(&b).is_empty()
    });
}

/// Covers FED-11, FED-27, FED-30.
#[test]
fn two_servers_federate_by_the_web_as_configured() {
    let pki = TempDir::with_prefix("finial-").expect("a temporary directory");
    let path = |name: &str| pki.path().join(name).display().to_string();
    let web = WebAuthority::new("trusted");
    web.write_server(&["127.0.0.1"], pki.path());
    std::fs::write(pki.path().join("roots.pem"), web.pem()).expect("the roots are written");
    let port = free_port();
    let profile = format!(
        r#""https_web" {{ serving_cert_file {{ cert_file_path = "{}" key_file_path = "{}" }} }}"#,
        path("cert.pem"),
        path("key.pem")
    );
    let a = partner(port, &profile);
    let other = BundleEndpoint::start(web.server(&["127.0.0.1"]));
    let moved = format!("Location: https://127.0.0.1:{port}/\r\n");
    other.answer("/moved", 307, &moved, "");
    let b = Stack::server_only(StackOptions {
        trust_domain: "b.test".to_owned(),
        server: format!(
            r#"federation {{ federates_with "a.test" {{
                bundle_endpoint_url = "{}" bundle_endpoint_profile "https_web" {{}}
            }} }}"#,
            other.url("/moved")
        ),
        server_env: vec![("SSL_CERT_FILE".to_owned(), path("roots.pem"))],
        ..StackOptions::default()
    });
    wait_until("the bundle of the configured trust domain", SOON, || {
        let args = ["bundle", "list", "-id", "a.test"];
        b.server_cli(&args).status.success()
    });
    let own = a.server_cli_ok(&["bundle", "show", "-format", "spiffe"]).json();
    assert_eq!(held(&b)["keys"], own["keys"]);
    assert_eq!(held(&b)["spiffe_refresh_hint"], 300);
    let listed = b.server_cli_ok(&["federation", "list"]);
    assert_eq!(
        listed.stdout, "Found 0 federation relationships\n",
        "as with SPIRE"
    );

    // Who is not the host, or whom nobody vouches for, is not trusted; after a redirect neither.
    other.present(web.server(&["other.test"]));
    let refused = refresh(&b);
    assert!(refused.contains("authenticate 127.0.0.1"), "{refused}");
    other.present(WebAuthority::new("stranger").server(&["127.0.0.1"]));
    let refused = refresh(&b);
    assert!(refused.contains("UnknownIssuer"), "{refused}");
    other.present(web.server(&["127.0.0.1"]));
    let stranger = BundleEndpoint::start(WebAuthority::new("stranger").server(&["127.0.0.1"]));
    stranger.answer("/", 200, "", r#"{"keys":[],"spiffe_sequence":999}"#);
    other.answer("/moved", 302, &format!("Location: {}\r\n", stranger.url("/")), "");
    let refused = refresh(&b);
    assert!(refused.contains("UnknownIssuer"), "{refused}");
    assert_eq!(held(&b)["keys"], own["keys"]);
    other.answer("/moved", 302, &moved, "");
    assert_eq!(refresh(&b), "", "the first URL is asked each time");
}

/// Covers FED-14, FED-16, FED-17, FED-18, FED-28, FED-33, FED-34, FED-46, FED-49, FED-51.
#[test]
fn an_endpoint_that_does_wrong_is_told_and_the_good_bundle_stays() {
    let a = Stack::server_only(StackOptions {
        trust_domain: "a.test".to_owned(),
        ..StackOptions::default()
    });
    let mint = |path: &str| {
        let dir = a.dir().join(path.replace('/', "_"));
        std::fs::create_dir_all(&dir).expect("a directory");
        let text = dir.display().to_string();
        a.server_cli_ok(&["x509", "mint", "-spiffeID", &a.id(path), "-write", &text]);
        TlsIdentity::from_files(&dir)
    };
    // The server alone has the ID of the server; any other will do for an endpoint.
    let (good, wrong) = (mint("/endpoint"), mint("/another"));
    let endpoint = BundleEndpoint::start(good.clone());
    let document = a.server_cli_ok(&["bundle", "show", "-format", "spiffe"]).stdout;
    endpoint.answer("/", 200, "Content-Type: application/json\r\n", &document);
    let b = Stack::server_only(StackOptions {
        trust_domain: "b.test".to_owned(),
        ..StackOptions::default()
    });
    let create = |url: &str, more: &[&str]| {
        let mut args = vec!["federation", "create", "-bundleEndpointURL", url];
        args.extend_from_slice(more);
        b.server_cli(&args)
    };
    let spiffe = [
        "-trustDomain",
        "a.test",
        "-bundleEndpointProfile",
        "https_spiffe",
        "-endpointSpiffeID",
        "spiffe://a.test/endpoint",
    ];
    // Trust domain, URL and profile are all needed, and the URL must be one of an endpoint.
    for (url, more) in [
        ("http://127.0.0.1/", &spiffe[..]),
        ("https://user:secret@127.0.0.1/", &spiffe[..]),
        ("", &spiffe[..]),
        ("https://127.0.0.1/", &spiffe[2..]),
        ("https://127.0.0.1/", &spiffe[..2]),
        ("https://127.0.0.1/", &spiffe[..4]),
        (
            "http://127.0.0.1/",
            &["-trustDomain", "a.test", "-bundleEndpointProfile", "https_web"][..],
        ),
        (
            "https://u@127.0.0.1/",
            &["-trustDomain", "a.test", "-bundleEndpointProfile", "https_web"][..],
        ),
    ] {
        let refused = create(url, more);
        assert!(!refused.status.success(), "{url} {more:?}");
        assert!(!refused.stderr.contains("secret"), "{}", refused.stderr);
    }
    let created = create(&endpoint.url("/"), &spiffe);
    assert!(created.status.success(), "{}", created.stderr);
    let expected = format!(
        "\nTrust domain              : a.test\nBundle endpoint URL       : {}\n\
         Bundle endpoint profile   : https_spiffe\nEndpoint SPIFFE ID        : spiffe://a.test/endpoint\n",
        endpoint.url("/")
    );
    assert_eq!(created.stdout, expected);
    let again = create(&endpoint.url("/"), &spiffe);
    assert!(again.stderr.contains("AlreadyExists"), "{}", again.stderr);
    // Nothing is trusted without a bundle that authenticates it.
    let refused = refresh(&b);
    assert!(refused.contains("no X.509 authority of a.test"), "{refused}");
    b.server_cli_ok(&[
        "bundle",
        "set",
        "-id",
        "a.test",
        "-format",
        "spiffe",
        "-path",
        &bundle_file(&a),
    ]);
    assert_eq!(refresh(&b), "");
    let good_bundle = held(&b);
    assert_eq!(sequence(&good_bundle), sequence(&held(&b)));

    let older = document.replace("\"spiffe_sequence\": ", "\"spiffe_sequence\": 0, \"x\": ");
    let oversized = format!("{}{document}", " ".repeat(512 << 10));
    for (status, headers, body, part) in [
        (200, "", oversized.as_str(), "more than 524288 bytes"),
        (200, "", "<html>", "malformed JSON"),
        (200, "", r#"{"keys":[]}"#, "bundle is empty"),
        (
            302,
            "Location: http://127.0.0.1/\r\n",
            "",
            "redirects to where no endpoint can be",
        ),
        (302, "Location: https://u:p@127.0.0.1/\r\n", "", "user info"),
        (500, "", document.as_str(), "answered 500"),
    ] {
        endpoint.answer("/", status, headers, body);
        let refused = refresh(&b);
        assert!(refused.contains(part), "{part}: {refused}");
        assert_eq!(held(&b), good_bundle, "{part}");
    }
    endpoint.answer("/", 200, "", &older);
    // A bundle without a sequence number is always the present one.
    assert_eq!(refresh(&b), "");
    endpoint.answer("/", 200, "", &document);
    assert_eq!(refresh(&b), "");
    // Another identity of the same trust domain is not the endpoint; behind a redirect neither.
    endpoint.present(wrong.clone());
    let refused = refresh(&b);
    assert!(
        refused.contains("unexpected peer: spiffe://a.test/another"),
        "{refused}"
    );
    let second = BundleEndpoint::start(wrong);
    second.answer("/", 200, "", r#"{"keys":[],"spiffe_sequence":999}"#);
    endpoint.present(good);
    endpoint.answer("/", 307, &format!("Location: {}\r\n", second.url("/")), "");
    let refused = refresh(&b);
    assert!(refused.contains("unexpected peer"), "{refused}");
    assert_eq!(held(&b), good_bundle);
}

#[test]
fn an_object_declares_a_relationship_which_ends_with_it() {
    let port = free_port();
    let a = partner(port, "\"https_spiffe\" {}");
    let cluster = FakeCluster::start();
    let directory = TempDir::with_prefix("finial-").expect("a temporary directory");
    let kubeconfig = cluster.kubeconfig(directory.path());
    let b = Stack::server_only(StackOptions {
        trust_domain: "b.test".to_owned(),
        server: format!(
            r#"kubernetes {{ clusters {{ "demo" = {{ kube_config_file = "{}" class_name = "ours" }} }} }}"#,
            kubeconfig.display()
        ),
        ..StackOptions::default()
    });
    let put = |name: &str, class: &str, profile: Value| {
        let bundle = a.server_cli_ok(&["bundle", "show", "-format", "spiffe"]).stdout;
        cluster.put(json!({
            "apiVersion": "spire.spiffe.io/v1alpha1", "kind": "ClusterFederatedTrustDomain",
            "metadata": {"name": name},
            "spec": {
                "trustDomain": "a.test", "bundleEndpointURL": format!("https://127.0.0.1:{port}/"),
                "bundleEndpointProfile": profile, "trustDomainBundle": bundle, "className": class
            }
        }));
    };
    let spiffe = json!({"type": "https_spiffe", "endpointSPIFFEID": ENDPOINT_ID});
    let reason = |name: &str| {
        let object = cluster
            .get("clusterfederatedtrustdomains", "", name)
            .unwrap_or_default();
        let condition = &object["status"]["conditions"][0];
        condition["reason"].as_str().unwrap_or_default().to_owned()
    };
    put("foreign", "theirs", json!({"type": "https_web"}));
    put("partner", "ours", spiffe);
    wait_until("the bundle to be fetched", SOON, || {
        reason("partner") == "Applied"
    });
    let object = cluster
        .get("clusterfederatedtrustdomains", "", "partner")
        .expect("the object");
    assert!(object["status"]["sequenceNumber"].as_i64() > Some(0), "{object}");
    assert!(object["status"]["lastFetchTime"].is_string(), "{object}");
    assert_eq!(reason("foreign"), "", "another class's object is not ours");
    assert_eq!(
        held(&b)["spiffe_refresh_hint"],
        300,
        "it was fetched, not only taken from the object"
    );
    let listed = b.server_cli_ok(&["federation", "list"]).stdout;
    assert!(
        listed.starts_with("Found 1 federation relationship\n") && listed.contains("a.test"),
        "{listed}"
    );
    let name = "ClusterFederatedTrustDomain partner of cluster demo";
    for args in [
        vec!["federation", "delete", "-id", "a.test"],
        vec![
            "federation",
            "create",
            "-trustDomain",
            "a.test",
            "-bundleEndpointURL",
            "https://other.test",
            "-bundleEndpointProfile",
            "https_web",
        ],
    ] {
        let refused = b.server_cli(&args);
        let text = format!("{}{}", refused.stdout, refused.stderr);
        assert!(!refused.status.success() && text.contains(name), "{text}");
    }
    cluster.delete("clusterfederatedtrustdomains", "", "partner");
    wait_until("the relationship to go with its object", SOON, || {
        let listed = b.server_cli_ok(&["federation", "list"]).stdout;
        listed.starts_with("Found 0 ")
    });
    assert!(refresh(&b).contains("there is no federation relationship"));

    // An operator's counts before an object's.
    federate(&b, &format!("https://127.0.0.1:{port}/"), &bundle_file(&a));
    put("late", "ours", json!({"type": "https_web"}));
    wait_until("the object to be masked", SOON, || reason("late") == "Masked");
    assert_eq!(refresh(&b), "", "by the operator's profile");
    b.server_cli_ok(&["federation", "delete", "-id", "a.test"]);
    wait_until("the object to count, by its own profile", SOON, || {
        reason("late") == "FetchFailed"
    });
}
