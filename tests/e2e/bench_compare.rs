//! `finial bench -compare`: two agents of our own as the two columns of one command.

use std::process::Command;

use finial_tests::{Program, Stack, StackOptions, finial, run, run_ok};
use serde_json::{Value, json};

use crate::bench::{registered, row};

/// Two stacks, and the flags that name both.
struct Columns {
    stacks: [Stack; 2],
    sockets: [String; 2],
    servers: [String; 2],
}

impl Columns {
    fn start() -> Self {
        let stacks = [(); 2].map(|()| Stack::start(StackOptions::default()));
        let [first, other] = &stacks;
        let sockets = [first, other].map(|stack| stack.agent_socket().display().to_string());
        let servers = [first, other].map(|stack| stack.server_socket().display().to_string());
        Self {
            stacks,
            sockets,
            servers,
        }
    }

    fn args<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        let named = [
            "-socketPath",
            &self.sockets[0],
            "-serverSocketPath",
            &self.servers[0],
            "-compare",
            &self.sockets[1],
            "-compareServerSocketPath",
            &self.servers[1],
        ];
        [&["bench"], args, &named].concat()
    }

    fn json(&self, args: &[&str]) -> Value {
        run_ok([&self.args(args)[..], &["-output", "json"]].concat()).json()
    }
}

#[test]
fn every_benchmark_compares_two_agents_in_turn_with_one_command() {
    let columns = Columns::start();
    let before: Vec<_> = columns.stacks.iter().map(registered).collect();
    // Each with a case and a time of it that both columns must have.
    let benchmarks = [
        (
            "first-svid -count 10 -parallel 5 -rounds 2",
            "one after the other",
            "p50_us",
        ),
        (
            "streams -streams 5 -rotations 1 -settle 0 -rounds 1",
            "opening",
            "last_stream_p50_us",
        ),
        (
            "bundle-push -streams 5 -changes 2 -rounds 1",
            "change to stream",
            "last_stream_p50_us",
        ),
        ("update-latency -count 2 -spread 1 -rounds 2", "created", "p50_us"),
        ("jwt -count 5 -rounds 1", "same audience, 16 in flight", "p50_us"),
        (
            "rotation -entries 5 -visible 5 -ttl 6 -duration 4 -rounds 1",
            "first SVID meanwhile",
            "p50_us",
        ),
    ];
    for (line, case, name) in benchmarks {
        let report = columns.json(&line.split(' ').collect::<Vec<_>>());
        assert_eq!(report["columns"], json!(columns.sockets), "{line}");
        let value = &row(&report, case)[name];
        let [one, other] = [0, 1].map(|at| value["columns"][at].as_f64().expect("a number"));
        let ratio = value["ratios"][0].as_f64().expect("a ratio");
        assert!(one > 0.0 && other > 0.0, "{line}: {value}");
        assert!((ratio - one / other).abs() < 1e-9, "{line}: {value}");
        for program in ["agent, whole run", "server, whole run"] {
            for at in [0, 1] {
                let rss = &row(&report, program)["rss_bytes"]["columns"][at];
                assert!(rss.as_f64().is_some_and(|rss| rss > 1e6), "{line}: {rss}");
            }
        }
    }
    let after: Vec<_> = columns.stacks.iter().map(registered).collect();
    assert_eq!(after, before, "entries and bundles are as they were");
}

#[test]
fn each_column_has_every_round_and_is_read_from_the_process_that_was_named() {
    let columns = Columns::start();
    let idle = Program::start("sleep", Command::new("sleep").arg("600"));
    let pid = idle.pid().to_string();
    let few = ["first-svid", "-count", "10", "-parallel", "0", "-rounds"];
    let report = columns.json(&[&few[..], &["3", "-comparePid", &pid]].concat());
    assert_eq!(report["rounds"], 3);
    assert_eq!(
        row(&report, "one after the other")["n"]["columns"],
        json!([10, 10])
    );
    let used = row(&report, "agent, whole run");
    let read = |name: &str, at: usize| used[name]["columns"][at].as_f64().expect("a number");
    assert!(read("rss_bytes", 1) < read("rss_bytes", 0) / 2.0, "{used}");
    assert_eq!(read("cpu_us", 1), 0.0, "it sleeps: {used}");

    let table = run_ok(columns.args(&[&few[..], &["1"]].concat())).stdout;
    assert!(
        table.contains("A/B\n") && table.contains("one after the other, p50"),
        "{table}"
    );
}

#[test]
fn one_column_without_its_server_is_refused() {
    let failed = run([
        "bench",
        "streams",
        "-serverSocketPath",
        "/nowhere",
        "-compare",
        "/nowhere",
    ]);
    assert!(!failed.status.success());
    assert!(
        failed.stderr.contains("-compareServerSocketPath"),
        "{}",
        failed.stderr
    );
}

#[test]
fn the_footprint_of_another_build_stands_beside_with_the_ratio() {
    let program = finial().display().to_string();
    let footprint = ["bench", "footprint", "-runs", "1", "-settle", "0"];
    let footprint = run_ok([&footprint[..], &["-compare", &program, "-output", "json"]].concat()).json();
    assert_eq!(footprint["columns"], json!(["this program", program]));
    let size = &row(&footprint, "size")["programs_bytes"];
    assert_eq!(size["ratios"], json!([1.0]), "the same file");
    assert!(row(&footprint, "idle agent")["rss_bytes"]["ratios"][0].is_number());
}
