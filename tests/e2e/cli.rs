//! The command line as scripts written for SPIRE use it.

use std::process::Command;

use finial_tests::{Entry, Output, Stack, StackOptions, finial, run};

#[test]
fn entries_are_created_shown_counted_updated_and_deleted() {
    let stack = Stack::start(StackOptions::default());
    let parent = stack.agent_id();
    let created = stack.server_cli_ok(&[
        "entry",
        "create",
        "-parentID",
        &parent,
        "-spiffeID",
        "spiffe://example.org/web",
        "-selector",
        "unix:uid:77",
        "-selector",
        "unix:gid:78",
        "-x509SVIDTTL",
        "600",
        "-dns",
        "web.example.org",
        "-hint",
        "main",
    ]);
    for line in [
        "SPIFFE ID               : spiffe://example.org/web",
        "Revision                : 0",
        "X509-SVID TTL           : 600",
        "JWT-SVID TTL            : default",
        "Selector                : unix:gid:78",
        "Selector                : unix:uid:77",
        "DNS name                : web.example.org",
        "Hint                    : main",
    ] {
        assert!(
            created.stdout.contains(line),
            "{line:?} is not in\n{}",
            created.stdout
        );
    }
    let again = stack.server_cli(&[
        "entry",
        "create",
        "-parentID",
        &parent,
        "-spiffeID",
        "spiffe://example.org/web",
        "-selector",
        "unix:gid:78",
        "-selector",
        "unix:uid:77",
    ]);
    assert_eq!(again.status.code(), Some(1));
    assert!(
        again.stderr.contains("similar entry already exists"),
        "{}",
        again.stderr
    );
    assert!(
        again.stderr.contains("failed to create one or more entries"),
        "{}",
        again.stderr
    );

    let shown = stack.server_cli_ok(&["entry", "show", "-selector", "unix:uid:77"]);
    assert!(shown.stdout.contains("Found 1 entry"), "{}", shown.stdout);
    let count = stack.server_cli_ok(&["entry", "count"]);
    assert!(count.stdout.contains("1 registration entry"), "{}", count.stdout);

    let json = stack.server_cli_ok(&["entry", "show", "-output", "json"]).json();
    let entry = &json["entries"][0];
    assert_eq!(entry["x509_svid_ttl"], 600);
    assert_eq!(entry["jwt_svid_ttl"], 0, "unset fields are printed");
    assert_eq!(entry["revision_number"], "0", "64-bit integers are strings");
    let id = entry["id"].as_str().expect("an id").to_owned();

    stack.server_cli_ok(&[
        "entry",
        "update",
        "-entryID",
        &id,
        "-parentID",
        &parent,
        "-spiffeID",
        "spiffe://example.org/web2",
        "-selector",
        "unix:uid:79",
    ]);
    let json = stack
        .server_cli_ok(&["entry", "show", "-entryID", &id, "-output", "json"])
        .json();
    let text = json.to_string();
    assert!(
        text.contains("/web2") && !text.contains("web.example.org"),
        "every field was replaced: {text}"
    );
    let deleted = stack.server_cli_ok(&["entry", "delete", "-entryID", &id]);
    assert!(
        deleted.stdout.contains(&format!("Deleted entry with ID: {id}")),
        "{}",
        deleted.stdout
    );
    let gone = stack.server_cli(&["entry", "delete", "-entryID", &id]);
    assert_eq!(gone.status.code(), Some(1));
}

#[test]
fn flags_are_taken_in_every_spelling() {
    let stack = Stack::start(StackOptions::default());
    let parent = stack.agent_id();
    for (number, (spiffe_id, parent_id)) in [
        ("-spiffeID", "-parentID"),
        ("--spiffeID", "--parentID"),
        ("--spiffe-id", "--parent-id"),
    ]
    .iter()
    .enumerate()
    {
        let id = format!("spiffe://example.org/spelled/{number}");
        stack.server_cli_ok(&[
            "entry",
            "create",
            spiffe_id,
            &id,
            parent_id,
            &parent,
            "-selector",
            "unix:uid:1",
        ]);
        let equals = format!("{spiffe_id}={id}-equals");
        stack.server_cli_ok(&[
            "entry",
            "create",
            &equals,
            parent_id,
            &parent,
            "-selector=unix:uid:1",
            "-admin=false",
        ]);
    }
    assert!(
        stack
            .server_cli_ok(&["entry", "count"])
            .stdout
            .contains("6 registration entries")
    );
}

#[test]
fn called_by_the_name_of_a_spire_program_it_is_that_program() {
    let stack = Stack::server_only(StackOptions::default());
    let link = stack.dir().join("spire-server");
    std::os::unix::fs::symlink(finial(), &link).expect("a link");
    let output = Output::of(
        Command::new(&link)
            .args(["healthcheck", "-socketPath"])
            .arg(stack.server_socket()),
    );
    assert!(output.status.success());
    assert!(output.stdout.contains("Server is healthy."));
    let by_variable = Output::of(
        Command::new(&link)
            .arg("healthcheck")
            .env("SPIRE_SERVER_PRIVATE_SOCKET", stack.server_socket()),
    );
    assert!(by_variable.status.success());
}

#[test]
fn exit_codes_are_spires() {
    assert_eq!(run(["server"]).status.code(), Some(127));
    assert_eq!(run(["server", "no-such-command"]).status.code(), Some(127));
    assert_eq!(run(["agent"]).status.code(), Some(127));
    assert_eq!(run(["agent", "no-such-command"]).status.code(), Some(127));
    assert_eq!(
        run(["agent", "healthcheck", "-noSuchFlag"]).status.code(),
        Some(1)
    );
    assert_eq!(
        run(["server", "healthcheck", "-socketPath", "/nonexistent/api.sock"])
            .status
            .code(),
        Some(1)
    );
    assert_eq!(
        run(["server", "entry", "show", "-noSuchFlag"]).status.code(),
        Some(1)
    );
    assert_eq!(run(["--version"]).status.code(), Some(0));
}

#[test]
fn an_instance_is_put_into_the_template_of_its_socket() {
    let stack = Stack::start(StackOptions::default());
    let template = stack.dir().join("%i.sock").display().to_string();
    for (program, variable) in [
        ("server", "SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE"),
        ("agent", "SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE"),
    ] {
        let check = |template: Option<&str>, instance: &str| {
            let mut command = Command::new(finial());
            command.args([program, "healthcheck", "-instance", instance]);
            command.env_remove(variable);
            command.envs(template.map(|template| (variable, template)));
            Output::of(&mut command)
        };
        let found = check(Some(&template), program);
        assert!(found.status.success(), "{}", found.stderr);
        assert_eq!(check(Some(&template), "other").status.code(), Some(1));
        for (template, says) in [(None, variable), (Some("/tmp/fixed.sock"), "lacks %i")] {
            let refused = check(template, program);
            assert_eq!(refused.status.code(), Some(1));
            assert!(refused.stderr.contains(says), "{}", refused.stderr);
        }
    }
}

#[test]
fn a_silent_fetch_prints_nothing_and_writes_and_the_old_format_flag_is_output() {
    let stack = Stack::start(StackOptions::default());
    stack.create_entry(&Entry::for_me("/me"));
    stack.wait_identity("/me");
    let dir = stack.dir().join("written");
    std::fs::create_dir(&dir).expect("a directory");
    let path = dir.display().to_string();
    let silent = stack.agent_cli_ok(&["api", "fetch", "x509", "-silent", "-write", &path]);
    assert_eq!((silent.stdout.as_str(), silent.stderr.as_str()), ("", ""));
    for name in ["svid.0.pem", "svid.0.key", "bundle.0.pem"] {
        assert!(dir.join(name).is_file(), "{name}");
    }
    let fetch = |flags: &[&str]| {
        let args = [&["api", "fetch", "jwt", "-audience", "db"], flags].concat();
        stack.agent_cli(&args)
    };
    let json = fetch(&["-format", "json"]).json();
    assert_eq!(json[0]["svids"][0]["spiffe_id"], stack.id("/me"));
    assert!(json[1]["bundles"].is_object(), "{json}");
    let pretty = fetch(&["-format", "pretty"]).stdout;
    assert!(pretty.starts_with("token(spiffe://example.org/me):"), "{pretty}");
    assert_eq!(fetch(&["-format", "yaml"]).status.code(), Some(1));
}

#[test]
fn agents_are_listed_banned_and_evicted() {
    let mut stack = Stack::start(StackOptions::default());
    let id = stack.agent_id();
    let list = stack.server_cli_ok(&["agent", "list"]).stdout;
    assert!(list.contains("Found 1 attested agent:"), "{list}");
    assert!(list.contains(&format!("SPIFFE ID         : {id}")), "{list}");
    assert!(list.contains("Attestation type  : join_token"), "{list}");
    let banned = stack.server_cli_ok(&["agent", "ban", "-spiffeID", &id]).stdout;
    assert!(banned.contains("Agent banned successfully"), "{banned}");
    let status = stack.agent().wait_exit(std::time::Duration::from_secs(60));
    assert!(!status.success(), "a banned agent ends with an error");
    let list = stack.server_cli_ok(&["agent", "list", "-banned"]).stdout;
    assert!(list.contains("Found 1 attested agent:"), "{list}");
    let evicted = stack.server_cli_ok(&["agent", "evict", "-spiffeID", &id]).stdout;
    assert!(evicted.contains("Agent evicted successfully"), "{evicted}");
    assert!(
        stack
            .server_cli_ok(&["agent", "list"])
            .stdout
            .contains("No attested agents found")
    );
}

#[test]
fn the_workload_side_prints_what_scripts_read() {
    let stack = Stack::start(StackOptions::default());
    stack.create_entry(&Entry::for_me("/me").with(&["-hint", "main"]));
    stack.wait_identity("/me");
    let fetched = stack.agent_cli_ok(&["api", "fetch", "x509"]).stdout;
    assert!(fetched.contains("Received 1 svid after"), "{fetched}");
    assert!(
        fetched.contains("SPIFFE ID:\t\tspiffe://example.org/me"),
        "{fetched}"
    );
    let jwt = stack
        .agent_cli_ok(&["api", "fetch", "jwt", "-audience", "db"])
        .stdout;
    assert!(jwt.contains("token(spiffe://example.org/me):\n\t"), "{jwt}");
    let token = jwt.lines().nth(1).expect("the token's line").trim().to_owned();
    let valid = stack
        .agent_cli_ok(&["api", "validate", "jwt", "-audience", "db", "-svid", &token])
        .stdout;
    assert!(valid.contains("SVID is valid."), "{valid}");
    let wrong = stack.agent_cli(&["api", "validate", "jwt", "-audience", "other", "-svid", &token]);
    assert_eq!(wrong.status.code(), Some(1));
    let minted = stack
        .server_cli_ok(&[
            "jwt",
            "mint",
            "-spiffeID",
            "spiffe://example.org/me",
            "-audience",
            "db",
        ])
        .stdout;
    stack.agent_cli_ok(&[
        "api",
        "validate",
        "jwt",
        "-audience",
        "db",
        "-svid",
        minted.trim(),
    ]);
}

#[test]
fn agents_are_shown_with_their_expiry_in_local_time_and_an_empty_line_after_each() {
    let stack = Stack::start(StackOptions::default());
    let id = stack.agent_id();
    let socket = stack.server_socket().display().to_string();
    for args in [&["list"][..], &["show", "-spiffeID", &id]] {
        let mut command = Command::new(finial());
        command.args(["server", "agent"]).args(args);
        // Two hours ahead of UTC, without any file of time zones.
        command.args(["-socketPath", &socket]).env("TZ", "XYZ-2");
        let printed = Output::of(&mut command).stdout;
        let expiry = printed
            .lines()
            .find(|line| line.starts_with("Expiration time   : "));
        assert!(
            expiry.is_some_and(|line| line.ends_with(" +0200 XYZ")),
            "{printed}"
        );
        let after = printed.split_once("Can re-attest").expect("the last lines").1;
        assert!(after.contains("\n\n"), "{printed:?}");
    }
}
