//! `finial bench` with the original server and agent as the other column.

use std::process::Command;

use finial_tests::{Output, Program, Stack, StackOptions, run_ok, wait_until};
use serde_json::Value;

use super::{LIMIT, Mixed, binaries};

#[test]
fn one_command_measures_ours_and_the_original_in_turn() {
    let Some(binaries) = binaries() else { return };
    let ours = Stack::start(StackOptions::default());
    let (original, port) = Mixed::start(binaries.clone(), "", "join_token", "");
    let (_agent, socket) = original_agent(&original, port);
    let [our_socket, our_server] =
        [ours.agent_socket(), ours.server_socket()].map(|path| path.display().to_string());
    let original_server = original.server_socket();
    let columns = [
        "-socketPath",
        &our_socket,
        "-serverSocketPath",
        &our_server,
        "-compare",
        &socket,
        "-compareServerSocketPath",
        &original_server,
        "-rounds",
        "1",
        "-output",
        "json",
    ];
    let benchmarks = [
        (
            "first-svid -count 10 -parallel 10",
            "one after the other",
            "p50_us",
        ),
        (
            "streams -streams 10 -rotations 1 -settle 0",
            "open",
            "rssanon_bytes",
        ),
        (
            "bundle-push -streams 10 -changes 2",
            "change to stream",
            "last_stream_p50_us",
        ),
        ("update-latency -count 2 -spread 1000", "updated", "p50_us"),
        ("jwt -count 10", "new audience, 16 in flight", "calls_per_second"),
        (
            "rotation -entries 10 -visible 10 -ttl 20 -duration 5",
            "first SVID meanwhile",
            "p50_us",
        ),
    ];
    for (line, case, name) in benchmarks {
        let args: Vec<&str> = std::iter::once("bench").chain(line.split(' ')).collect();
        let report = run_ok([&args[..], &columns].concat()).json();
        has_both(&report, case, name);
        has_both(&report, "agent, whole run", "rss_bytes");
        has_both(&report, "server, whole run", "rss_bytes");
    }

    let directory = binaries.display().to_string();
    let footprint = ["bench", "footprint", "-runs", "1", "-settle", "0"];
    let report = run_ok([&footprint[..], &["-compare", &directory, "-output", "json"]].concat()).json();
    has_both(&report, "size", "programs_bytes");
    has_both(&report, "new trust domain to first SVID", "p50_us");
    has_both(&report, "idle agent", "rss_bytes");
}

fn has_both(report: &Value, case: &str, name: &str) {
    let mut rows = report["results"].as_array().into_iter().flatten();
    let row = rows
        .find(|row| row["case"] == case)
        .unwrap_or_else(|| panic!("no {case}: {report}"));
    for at in [0, 1] {
        let value = row[name]["columns"][at].as_f64();
        assert!(value.is_some_and(|value| value > 0.0), "{name}: {row}");
    }
    assert!(
        row[name]["ratios"][0].is_number(),
        "{}: {name}: {row}",
        report["benchmark"]
    );
}

/// The original agent beside the original server, and its Workload API.
fn original_agent(mixed: &Mixed, port: u16) -> (Program, String) {
    let root = mixed.dir.path().display();
    let config = format!(
        r#"agent {{
  trust_domain = "example.org"
  server_address = "127.0.0.1"
  server_port = {port}
  socket_path = "{root}/public/agent.sock"
  data_dir = "{root}/original"
  trust_bundle_path = "{root}/bundle.pem"
  experimental {{ sync_interval = "1s" }}
}}
plugins {{
  KeyManager "memory" {{ plugin_data {{}} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  WorkloadAttestor "unix" {{ plugin_data {{}} }}
}}
"#
    );
    let path = mixed.path("original.conf");
    std::fs::write(&path, config).expect("the configuration is written");
    let token: Value =
        serde_json::from_str(&mixed.server(&["token", "generate", "-output", "json"])).expect("JSON");
    let token = token["value"].as_str().expect("a token");
    let mut command = Command::new(mixed.binaries.join("spire-agent"));
    command.args(["run", "-joinToken", token, "-config", &path]);
    let agent = Program::start("spire-agent", &mut command);
    let socket = mixed.path("public/agent.sock");
    wait_until("the original agent to be healthy", LIMIT, || {
        let mut command = Command::new(mixed.binaries.join("spire-agent"));
        let output = Output::of(command.args(["healthcheck", "-socketPath", &socket]));
        output.status.success()
    });
    (agent, socket)
}
