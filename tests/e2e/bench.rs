//! `finial bench` against a real server and agent, small: every benchmark runs, says what it measured, and leaves
//! nothing behind.

use finial_tests::{Entry, Output, Stack, StackOptions, run, run_ok};
use serde_json::Value;

/// What all benchmarks of this stack ran against is gone afterwards, and the numbers are numbers.
#[test]
fn every_benchmark_of_a_socket_prints_what_it_measured_and_leaves_nothing_behind() {
    let mut stack = Stack::start(StackOptions::default());
    stack.create_entry(&Entry::for_me("/me"));
    stack.wait_identity("/me");
    let before = registered(&stack);

    let first = bench(&stack, &["first-svid", "-count", "20", "-parallel", "10"]);
    let one = row(&first, "one after the other");
    assert_eq!(one["n"], 20);
    assert!(number(one, "p50_us") > 0.0 && number(one, "p99_us") >= number(one, "p50_us"));
    assert!(number(row(&first, "one after the other, ratio"), "p50_ratio") > 0.0);
    assert_eq!(row(&first, "10 at once")["n"], 50, "five crowds of ten");

    let processes = bench(
        &stack,
        &["first-svid", "-process", "-count", "5", "-parallel", "0"],
    );
    assert_eq!(row(&processes, "one after the other, bare gRPC")["n"], 5);

    let pid = stack.agent().pid().to_string();
    let streams = [
        "streams",
        "-streams",
        "20",
        "-rotations",
        "2",
        "-settle",
        "0",
        "-pid",
        &pid,
        "-idleEntries",
        "5",
    ];
    let streams = bench(&stack, &streams);
    assert!(number(row(&streams, "open"), "rssanon_bytes") > 100_000.0);
    assert!(number(row(&streams, "after closing, bare gRPC"), "rssanon_bytes") > 10_000.0);
    let opening = row(&streams, "opening");
    assert_eq!(
        (&opening["streams"], &opening["rotations"]),
        (&20.into(), &2.into())
    );
    assert!(number(opening, "last_stream_p50_us") > 0.0);

    let push = bench(&stack, &["bundle-push", "-streams", "10", "-changes", "3"]);
    let pushed = row(&push, "change to stream");
    assert_eq!(pushed["changes"], 3);
    assert!(number(pushed, "last_stream_p50_us") >= number(pushed, "first_stream_p50_us"));

    let updates = bench(&stack, &["update-latency", "-count", "5", "-spread", "1"]);
    for case in ["updated", "created", "deleted"] {
        assert_eq!(row(&updates, case)["n"], 5, "{case}");
        assert!(number(row(&updates, case), "p50_us") > 0.0, "{case}");
    }

    let jwt = bench(&stack, &["jwt", "-count", "10"]);
    for case in ["same audience, 1 in flight", "new audience, 16 in flight"] {
        let calls = row(&jwt, case);
        assert_eq!((&calls["n"], &calls["failed"]), (&10.into(), &0.into()), "{case}");
        assert!(number(calls, "calls_per_second") > 0.0, "{case}");
    }

    let rotation = [
        "rotation",
        "-entries",
        "20",
        "-visible",
        "10",
        "-ttl",
        "6",
        "-duration",
        "8",
        "-streams",
        "5",
    ];
    let rotation = bench(&stack, &rotation);
    let renewal = row(&rotation, "renewal");
    assert!(number(renewal, "renewed") >= 10.0, "{renewal}");
    assert_eq!(renewal["late"], 0, "{renewal}");
    assert!(number(row(&rotation, "first SVID meanwhile"), "n") > 0.0);
    let open = row(&rotation, "open streams meanwhile");
    // Four of the five have each renewal later than the first.
    assert!(number(open, "renewals") >= 40.0, "{open}");
    assert!(number(open, "longest_after_the_first_stream_us") > 0.0, "{open}");
    assert!(number(open, "longest_since_signed_us") < 4e6, "{open}");

    assert_eq!(registered(&stack), before, "entries and bundles are as they were");
}

#[test]
fn without_the_server_a_benchmark_uses_the_identity_that_is_there_and_says_what_it_lacks() {
    let stack = Stack::start(StackOptions::default());
    let socket = stack.agent_socket().display().to_string();
    let alone =
        |args: &[&str]| run([&["bench"], args, &["-socketPath", &socket, "-output", "json"]].concat());

    let failed = alone(&["first-svid", "-count", "5"]);
    assert!(!failed.status.success());
    assert!(
        failed.stderr.contains("make an entry for unix:uid:"),
        "{}",
        failed.stderr
    );
    let failed = alone(&["update-latency"]);
    assert!(failed.stderr.contains("-serverSocketPath"), "{}", failed.stderr);

    stack.create_entry(&Entry::for_me("/me"));
    stack.wait_identity("/me");
    let streams = alone(&["streams", "-streams", "5", "-settle", "0"]);
    assert!(streams.status.success(), "{}", streams.stderr);
    assert_eq!(row(&streams.json(), "opening")["rotations"], 0);
}

#[test]
fn a_benchmark_that_is_given_up_takes_its_entries_away() {
    let stack = Stack::start(StackOptions::default());
    let before = registered(&stack);
    let args = [
        "rotation",
        "-entries",
        "10",
        "-visible",
        "5",
        "-duration",
        "600",
        "-timeout",
        "3",
    ];
    let given_up = run_bench(&stack, &args);
    assert!(!given_up.status.success());
    assert!(
        given_up.stderr.contains("not done within 3s"),
        "{}",
        given_up.stderr
    );
    assert_eq!(registered(&stack), before);
}

#[test]
fn the_footprint_of_the_program_itself_is_measured() {
    let footprint = run_ok([
        "bench",
        "footprint",
        "-runs",
        "1",
        "-settle",
        "0",
        "-output",
        "json",
    ])
    .json();
    let size = row(&footprint, "size");
    assert!(number(size, "programs_bytes") > 1e6);
    for case in ["dev --once", "both again to first SVID"] {
        assert_eq!(row(&footprint, case)["n"], 1, "{case}");
    }
    let idle = row(&footprint, "idle agent");
    assert!(number(idle, "rss_bytes") > number(idle, "rssanon_bytes"));
}

#[test]
fn the_limits_need_no_other_program() {
    let limits = run_ok([
        "bench", "limits", "-calls", "2", "-streams", "10", "-output", "json",
    ])
    .json();
    assert!(number(row(&limits, "P-256 sign"), "per_cpu_second") > 0.0);
    assert_eq!(row(&limits, "bare gRPC, push to 10 streams")["n"], 10);
    let table = run_ok(["bench", "limits", "-calls", "2", "-streams", "10"]).stdout;
    assert!(table.starts_with("limits\n") && table.contains("p50"), "{table}");
}

fn bench(stack: &Stack, args: &[&str]) -> Value {
    let output = run_bench(stack, args);
    assert!(output.status.success(), "{args:?}: {}", output.stderr);
    output.json()
}

fn run_bench(stack: &Stack, args: &[&str]) -> Output {
    let agent = stack.agent_socket().display().to_string();
    let server = stack.server_socket().display().to_string();
    let sockets = [
        "-socketPath",
        &agent,
        "-serverSocketPath",
        &server,
        "-output",
        "json",
    ];
    run([&["bench"], args, &sockets].concat())
}

pub fn row<'a>(report: &'a Value, case: &str) -> &'a Value {
    let rows = report["results"].as_array().expect("results");
    rows.iter()
        .find(|row| row["case"] == case)
        .unwrap_or_else(|| panic!("no row {case:?} in {report}"))
}

fn number(row: &Value, name: &str) -> f64 {
    row[name].as_f64().unwrap_or_else(|| panic!("no {name} in {row}"))
}

/// All entries and federated bundles, as the server lists them.
pub fn registered(stack: &Stack) -> (String, String) {
    let show = |args: &[&str]| stack.server_cli_ok(args).stdout;
    (
        show(&["entry", "show", "-output", "json"]),
        show(&["bundle", "list", "-output", "json"]),
    )
}
