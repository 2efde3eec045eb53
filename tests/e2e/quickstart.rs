//! The commands of docs/quickstart.md, typed in order into one shell.

use std::path::Path;
use std::process::Command;

use finial_tests::finial;

#[test]
fn what_the_page_says_to_type_ends_with_an_identity() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/quickstart.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let script = script(&page);
    assert!(
        script.contains("until finial agent healthcheck"),
        "the page has other commands:\n{script}"
    );
    let dir = tempfile::TempDir::with_prefix("finial-quickstart-").expect("a temporary directory");
    let programs = dir.path().join("bin");
    std::fs::create_dir(&programs).expect("a folder for programs");
    std::os::unix::fs::symlink(finial(), programs.join("finial")).expect("a link");
    // The page has a fixed port; here others may listen there.
    let port = free_port().to_string();
    let script = format!(
        "set -e\ntrap 'kill $(jobs -p); wait' EXIT\n{}",
        script.replace("8081", &port)
    );
    let path = std::env::var("PATH").unwrap_or_default();
    let typed = Command::new("timeout")
        .args(["--kill-after", "10", "120", "bash", "-c", &script])
        .current_dir(dir.path())
        .env("PATH", format!("{}:{path}", programs.display()))
        .output()
        .expect("bash starts");
    let printed = String::from_utf8_lossy(&typed.stdout);
    let said = String::from_utf8_lossy(&typed.stderr);
    assert!(typed.status.success(), "{}:\n{printed}\n{said}", typed.status);
    for part in [
        "Server is healthy.",
        "Agent is healthy.",
        "SPIFFE ID:\t\tspiffe://example.org/me",
        "token(spiffe://example.org/me)",
        "Found 2 entries",
    ] {
        assert!(printed.contains(part), "{part} in\n{printed}\n{said}");
    }
}

/// The indented lines of the section with server and agent, and of those after it. What stands before installs the program, and runs
/// `finial dev`, which has tests of its own.
fn script(page: &str) -> String {
    let (_before, page) = page
        .split_once("\n## Server and agent\n")
        .expect("the page has the section");
    let lines = page.lines().filter_map(|line| line.strip_prefix("    "));
    lines.map(|line| format!("{line}\n")).collect()
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("it is bound").port()
}
