//! Errors say what is wrong and where; nothing is lost and the process continues.

use std::process::Command;
use std::time::Duration;

use finial_tests::{Entry, Program, Stack, StackOptions, finial, run, wait_until};
use tonic::Code;

use crate::wire::{call, call_with, tls, unix};

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn all_mistakes_of_a_configuration_are_reported_together_with_their_path() {
    let dir = tempfile::TempDir::new().expect("a temporary directory");
    let path = dir.path().join("server.conf");
    std::fs::write(
        &path,
        r#"server { trust_domain = "Not A Domain" bind_port = 70000 ca_ttl = "soon" unknown_key = 1 }
           plugins { KeyManager "nonesuch" {} }"#,
    )
    .expect("the file is written");
    let path = path.display().to_string();
    for command in [
        ["server", "validate", "-config", &path],
        ["server", "run", "-config", &path],
    ] {
        let output = run(command);
        assert_eq!(output.status.code(), Some(1));
        let text = output.stdout + &output.stderr;
        for part in [
            "trust_domain",
            "bind_port",
            "ca_ttl",
            "unknown_key",
            "data_dir",
            "nonesuch",
            "DataStore",
        ] {
            assert!(text.contains(part), "{part:?} is not reported in\n{text}");
        }
        assert!(!text.contains("panicked"), "{text}");
    }
}

#[test]
fn a_configuration_that_does_not_parse_names_line_and_file() {
    let dir = tempfile::TempDir::new().expect("a temporary directory");
    for (name, text) in [
        ("a.conf", "server {\n trust_domain = \n"),
        ("b.json", "{\"server\": {,}}"),
        ("c.yaml", "server: [}"),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("the file is written");
        let output = run(["server", "validate", "-config", &path.display().to_string()]);
        assert_eq!(output.status.code(), Some(1), "{name}");
        let printed = output.stdout + &output.stderr;
        assert!(
            printed.contains("line") && printed.contains(name),
            "{name}: {printed}"
        );
    }
    let missing = run(["agent", "validate", "-config", "/nonexistent/agent.conf"]);
    assert!(
        missing.stderr.contains("/nonexistent/agent.conf"),
        "{}",
        missing.stderr
    );
}

#[test]
fn every_template_and_manifest_of_a_configuration_is_parsed_before_the_server_is_started() {
    let dir = tempfile::TempDir::new().expect("a temporary directory");
    let path = dir.path().join("server.conf");
    let validate = |clusters: &str| {
        let text = format!(
            r#"server {{ trust_domain = "example.org" data_dir = "{}" kubernetes {{ clusters {{ {clusters} }} }} }}
            plugins {{ KeyManager "memory" {{}}
              DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "x" }} }} }}"#,
            dir.path().display()
        );
        std::fs::write(&path, text).expect("the file is written");
        run(["server", "validate", "-config", &path.display().to_string()])
    };
    let template = |name: &str, text: &str| format!(r#""{name}" = {{ parent_id_template = "{text}" }} "#);
    let node = "spiffe://{{ .TrustDomain }}/{{ .NodeMeta.Name }}";
    let valid = validate(&template("demo", node));
    assert_eq!(valid.status.code(), Some(0), "{}{}", valid.stdout, valid.stderr);
    let both = [
        template("one", "{{ .NodeMeta.Name"),
        template("two", node),
        template("three", "spiffe://{{ .PodMeta.Name }}"),
    ];
    let objects = dir.path().join("objects");
    let files = format!(
        r#""files" = {{ static_manifest_path = "{}" }} "#,
        objects.display()
    );
    std::fs::create_dir(&objects).expect("a folder");
    let valid = validate(&files);
    assert_eq!(valid.status.code(), Some(0), "{}{}", valid.stdout, valid.stderr);
    std::fs::write(objects.join("pod.yaml"), "kind: Pod\n").expect("the object is written");
    let invalid = validate(&[&both.concat(), files.as_str()].concat());
    let text = invalid.stdout + &invalid.stderr;
    assert_eq!(invalid.status.code(), Some(1), "{text}");
    for part in [
        "server.kubernetes.clusters \"one\".parent_id_template",
        "server.kubernetes.clusters \"three\".parent_id_template",
        "PodMeta",
        "server.kubernetes.clusters \"files\".static_manifest_path",
        "pod.yaml",
    ] {
        assert!(text.contains(part), "{part:?} is not reported in\n{text}");
    }
    assert!(!text.contains("\"two\""), "{text}");
}

#[test]
fn a_used_join_token_attests_no_second_agent() {
    let mut stack = Stack::start(StackOptions::default());
    let token = stack.join_token();
    let first = foreign_agent(&stack, "agent-one", &token);
    wait_until("the second agent to attest", LIMIT, || {
        stack
            .server_cli_ok(&["agent", "count"])
            .stdout
            .contains("2 attested agents")
    });
    let mut second = foreign_agent(&stack, "agent-two", &token);
    second.wait_for_line("join token", LIMIT);
    let printed = second.lines().join("\n");
    assert!(
        printed.contains("does not exist or has already been used"),
        "{printed}"
    );
    assert!(
        stack
            .server_cli_ok(&["agent", "count"])
            .stdout
            .contains("2 attested agents")
    );
    assert!(stack.server().is_running());
    drop(first);
}

#[test]
fn a_wrong_bundle_is_named_and_no_token_is_burnt() {
    let stack = Stack::server_only(StackOptions::default());
    let other = Stack::server_only(StackOptions::default());
    let token = stack.join_token();
    let bundle = other.server_cli_ok(&["bundle", "show"]).stdout;
    std::fs::write(stack.dir().join("bundle.pem"), bundle).expect("the bundle file is written");
    let mut agent = foreign_agent(&stack, "agent-one", &token);
    agent.wait_for_line("bundle", LIMIT);
    agent.kill_hard();
    stack.write_bundle();
    let _agent = foreign_agent(&stack, "agent-one", &token);
    wait_until("the agent to attest with the unspent token", LIMIT, || {
        stack
            .server_cli_ok(&["agent", "count"])
            .stdout
            .contains("1 attested agent")
    });
}

#[test]
fn corrupted_state_files_are_named_and_left_alone() {
    let mut stack = Stack::start(StackOptions::default());
    stack.agent().terminate();
    stack.server().terminate();
    for (program, file) in [
        ("server", "server/keys.json"),
        ("agent", "agent/keys.json"),
        ("agent", "agent/agent-data.json"),
    ] {
        let path = stack.dir().join(file);
        let good = std::fs::read(&path).unwrap_or_else(|error| panic!("{file}: {error}"));
        let broken = &good[..good.len() / 2];
        std::fs::write(&path, broken).expect("the file is written");
        let config = stack.dir().join(format!("{program}.conf")).display().to_string();
        let mut process = Program::start(
            program,
            Command::new(finial()).args([program, "run", "-config", &config]),
        );
        let name = path
            .file_name()
            .expect("a file name")
            .to_string_lossy()
            .into_owned();
        process.wait_for_line(&name, LIMIT);
        assert_eq!(process.wait_exit(LIMIT).code(), Some(1), "{file}");
        assert_eq!(
            std::fs::read(&path).expect("the file is still there"),
            broken,
            "{file} was overwritten"
        );
        std::fs::write(&path, good).expect("the file is restored");
    }
    stack.start_server();
    stack.wait_server();
    stack.start_agent(&[]);
    stack.wait_agent();
}

#[test]
fn a_database_of_spire_is_refused_and_untouched() {
    let stack = Stack::server_only(StackOptions::default());
    let dir = stack.dir().join("foreign");
    std::fs::create_dir(&dir).expect("a directory");
    let database = dir.join("datastore.sqlite3");
    let script = "import sqlite3,sys; c=sqlite3.connect(sys.argv[1]); \
        [c.execute(f'create table {t} (id integer primary key)') for t in \
        ('bundles','attested_node_entries','registered_entries','join_tokens','selectors','migrations','ca_journals')]; c.commit()";
    let Some(python) = finial_tests::Peer::find("FINIAL_TEST_PYTHON", "python3", &["-c", "import sqlite3"])
    else {
        return;
    };
    assert!(
        python
            .command()
            .args(["-c", script])
            .arg(&database)
            .status()
            .expect("python runs")
            .success()
    );
    let before = std::fs::read(&database).expect("the database");
    let config = std::fs::read_to_string(stack.dir().join("server.conf")).expect("server.conf");
    let config = config
        .replace(
            &stack.dir().join("server/datastore.sqlite3").display().to_string(),
            &database.display().to_string(),
        )
        .replace("server.sock", "other.sock")
        .replace(&format!("bind_port = {}", stack.port()), "bind_port = 0");
    let path = dir.join("server.conf");
    std::fs::write(&path, config).expect("the file is written");
    let output = run(["server", "run", "-config", &path.display().to_string()]);
    assert_eq!(output.status.code(), Some(1));
    let printed = output.stdout + &output.stderr;
    assert!(printed.contains("SPIRE"), "{printed}");
    assert_eq!(
        std::fs::read(&database).expect("the database"),
        before,
        "the file was touched"
    );
}

#[tokio::test]
async fn malformed_and_oversize_requests_get_a_status_and_the_server_lives() {
    let mut stack = Stack::start(StackOptions::default());
    stack.create_entry(&Entry::for_me("/me"));
    stack.wait_identity("/me");
    let private = unix(stack.server_socket()).await.expect("the private socket");
    let public = tls(stack.port(), None).await.expect("TLS");
    let workload = unix(stack.agent_socket()).await.expect("the Workload API");
    let header = [("workload.spiffe.io", "true")];

    let garbage = vec![0xff; 64];
    for method in [
        "/spire.api.server.entry.v1.Entry/BatchCreateEntry",
        "/spire.api.server.svid.v1.SVID/MintX509SVID",
    ] {
        let status = call(&private, method, garbage.clone())
            .await
            .expect_err("garbage is refused");
        assert!(
            matches!(status.code(), Code::Internal | Code::InvalidArgument),
            "{method}: {status:?}"
        );
        let status = call(&private, method, vec![0; 16 << 20])
            .await
            .expect_err("an oversize request is refused");
        assert!(
            matches!(
                status.code(),
                Code::OutOfRange | Code::ResourceExhausted | Code::InvalidArgument
            ),
            "{method}: {status:?}"
        );
    }
    let status = call(
        &public,
        "/spire.api.server.agent.v1.Agent/AttestAgent",
        garbage.clone(),
    )
    .await
    .expect_err("garbage");
    assert!(
        matches!(status.code(), Code::Internal | Code::InvalidArgument),
        "{status:?}"
    );
    let method = "/SpiffeWorkloadAPI/FetchJWTSVID";
    let status = call_with(&workload, method, Vec::new(), &header)
        .await
        .expect_err("no audience");
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let status = call_with(&workload, method, vec![0; 16 << 20], &header)
        .await
        .expect_err("an oversize request");
    assert!(
        matches!(
            status.code(),
            Code::OutOfRange | Code::ResourceExhausted | Code::InvalidArgument
        ),
        "{status:?}"
    );
    for method in [
        "/SpiffeWorkloadAPI/FetchWITSVID",
        "/SpiffeWorkloadAPI/FetchWITBundles",
    ] {
        let status = call_with(&workload, method, Vec::new(), &header)
            .await
            .expect_err("the profile is off");
        assert_eq!(status.code(), Code::Unimplemented, "{method}: {status:?}");
    }
    assert!(stack.server().is_running() && stack.agent().is_running());
    stack.wait_identity("/me");
}

#[test]
fn malformed_ids_are_refused_by_the_server_with_what_and_where() {
    let stack = Stack::start(StackOptions::default());
    let parent = stack.agent_id();
    for id in [
        "spiffe://example.org/a//b",
        "spiffe://Example.org/a",
        "spiffe://other.org/a",
        "spiffe://example.org/spire/x",
        "web",
    ] {
        let output = stack.server_cli(&[
            "entry",
            "create",
            "-parentID",
            &parent,
            "-spiffeID",
            id,
            "-selector",
            "unix:uid:1",
        ]);
        assert_eq!(output.status.code(), Some(1), "{id}");
        assert!(!output.stderr.is_empty(), "{id} is refused in silence");
    }
    assert!(
        stack
            .server_cli_ok(&["entry", "count"])
            .stdout
            .contains("0 registration entries")
    );
}

/// An agent of its own directory against the stack's server.
fn foreign_agent(stack: &Stack, name: &str, token: &str) -> Program {
    let config = std::fs::read_to_string(stack.dir().join("agent.conf")).expect("agent.conf");
    let own = stack.dir().join(name);
    let config = config
        .replace(
            &stack.dir().join("agent.sock").display().to_string(),
            &own.join("agent.sock").display().to_string(),
        )
        .replace(
            &format!("{}/agent\"", stack.dir().display()),
            &format!("{}/data\"", own.display()),
        );
    let _ = std::fs::create_dir(&own);
    let path = own.join("agent.conf");
    std::fs::write(&path, config).expect("the file is written");
    let mut command = Command::new(finial());
    command
        .args(["agent", "run", "-config"])
        .arg(path)
        .args(["-joinToken", token]);
    Program::start(name, &mut command)
}
