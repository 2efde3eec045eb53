//! The agent's admin socket: what is served only there, and the commands that use it.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use finial_tests::rpcs::{AGENT_SOCKETS, rows};
use finial_tests::{Entry, Output, Stack, StackOptions, run, run_ok, wait_for};
use tempfile::TempDir;
use tonic::Code;

use crate::wire::{call, call_with, unix};

/// A stack whose agent has an admin socket, and the directory of that: it may not be the public one's.
pub struct WithAdmin {
    pub stack: Stack,
    dir: TempDir,
}

impl WithAdmin {
    /// The delegate is `/delegate`. Programs are told apart by their paths.
    pub fn start() -> Self {
        let dir = TempDir::with_prefix("finial-admin-").expect("a temporary directory");
        let agent = format!(
            "admin_socket_path = \"{}\"\n  authorized_delegates = [\"spiffe://example.org/delegate\"]\n  \
             experimental {{ feature_flags = [\"wit-svid\"] }}",
            dir.path().join("private/admin.sock").display()
        );
        let stack = Stack::start(StackOptions {
            agent,
            unix_attestor: "discover_workload_path = true\n workload_size_limit = -1".to_owned(),
            ..StackOptions::default()
        });
        WithAdmin { stack, dir }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("private/admin.sock")
    }

    /// `finial agent …` against the admin socket.
    fn command(&self, args: &[&str]) -> Vec<String> {
        let socket = self.socket().display().to_string();
        let socket = ["-socketPath", socket.as_str()];
        let all = ["agent"].iter().chain(args).chain(&socket);
        all.map(ToString::to_string).collect()
    }

    fn ok(&self, args: &[&str]) -> Output {
        run_ok(self.command(args))
    }
}

#[tokio::test]
async fn every_rpc_stands_on_the_socket_that_the_table_names() {
    let with = WithAdmin::start();
    let public = unix(with.stack.agent_socket()).await.expect("the public socket");
    let admin = unix(with.socket()).await.expect("the admin socket");
    let mut wrong = Vec::new();
    let mut checked = 0;
    for (method, words) in rows(AGENT_SOCKETS) {
        for (name, channel) in [("public", &public), ("admin", &admin)] {
            let is_here = words[0] == name || words[0] == "both";
            let header = [("workload.spiffe.io", "true")];
            let outcome = call_with(channel, method, Vec::new(), &header).await;
            let code = outcome.as_ref().map_or_else(tonic::Status::code, |_| Code::Ok);
            let mut right = match is_here {
                false => code == Code::Unimplemented,
                // This process has no entry, so it is no delegate.
                true if words.contains(&"delegate") => code == Code::PermissionDenied,
                true => code != Code::Unimplemented,
            };
            if is_here && words.contains(&"header") {
                let without = call(channel, method, Vec::new()).await;
                right &= without.is_err_and(|status| status.code() == Code::InvalidArgument);
            }
            if !right {
                wrong.push(format!("{method} on {name}: {outcome:?}"));
            }
            checked += 1;
        }
    }
    assert!(wrong.is_empty(), "wrong:\n{}", wrong.join("\n"));
    assert!(
        checked > 40,
        "only {checked} pairs of socket and method were tried"
    );
}

#[test]
fn the_log_level_is_changed_while_the_agent_runs() {
    let mut with = WithAdmin::start();
    let get = |with: &WithAdmin| with.ok(&["logger", "get"]).stdout;
    assert_eq!(get(&with), "Logger Level : debug\nLaunch Level : debug\n");
    with.ok(&["logger", "set", "-level", "error"]);
    assert_eq!(get(&with), "Logger Level : error\nLaunch Level : debug\n");
    let json = with.ok(&["logger", "reset", "-output", "json"]).json();
    assert_eq!(
        json,
        serde_json::json!({"current_level": "DEBUG", "launch_level": "DEBUG"})
    );
    let wrong = run(with.command(&["logger", "set", "-level", "loud"]));
    assert_eq!(wrong.status.code(), Some(1));
    assert!(wrong.stderr.contains("is not a valid level"), "{}", wrong.stderr);
    let agent = with.stack.agent();
    let line = agent.wait_for_line("log level is set", Duration::from_secs(10));
    let uid = rustix::process::getuid().as_raw();
    assert!(
        line.contains("log_level=ERROR") && line.contains(&format!("caller_uid={uid}")),
        "{line}"
    );
}

#[test]
fn debug_tells_who_the_agent_is_and_what_it_holds() {
    let with = WithAdmin::start();
    with.stack.create_entry(&Entry::for_me("/web"));
    let info = wait_for("an SVID to be counted", Duration::from_secs(30), || {
        let info = with.ok(&["debug", "getinfo", "-output", "json"]).json();
        anyhow::ensure!(info["cached_x509_svids_count"] == 1, "{info}");
        Ok(info)
    });
    let leaf = &info["svid_chain"][0];
    let id = format!(
        "spiffe://{}{}",
        text(&leaf["id"]["trust_domain"]),
        text(&leaf["id"]["path"])
    );
    assert_eq!(id, with.stack.agent_id());
    assert_ne!(info["last_sync_success"], "0");
    assert!(
        info["svid_chain"]
            .as_array()
            .is_some_and(|chain| chain.len() == 2),
        "{info}"
    );
    let pretty = with.ok(&["debug", "getinfo"]).stdout;
    assert!(
        pretty.contains(&id) && pretty.contains("X509-SVIDs:              1"),
        "{pretty}"
    );
}

#[test]
fn the_admin_socket_is_for_the_agents_user_and_group_and_goes_with_the_agent() {
    let mut with = WithAdmin::start();
    let mode = std::fs::metadata(with.socket())
        .expect("the admin socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o770);
    let healthy = run(with.command(&["healthcheck"]));
    assert!(healthy.status.success(), "{}", healthy.stderr);
    assert!(with.stack.agent().terminate().success());
    assert!(!with.socket().exists());
}

#[test]
fn an_admin_socket_beside_the_public_one_is_refused() {
    let stack = Stack::server_only(StackOptions::default());
    let beside = stack.dir().join("admin.sock").display().to_string();
    let config = std::fs::read_to_string(stack.dir().join("agent.conf")).expect("agent.conf");
    let config = config.replacen(
        "agent {",
        &format!("agent {{\n admin_socket_path = \"{beside}\""),
        1,
    );
    let path = stack.dir().join("beside.conf");
    std::fs::write(&path, config).expect("beside.conf is written");
    let path = path.display().to_string();
    let refused = run(["agent", "validate", "-config", &path]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.stderr.contains("admin_socket_path"), "{}", refused.stderr);
}

fn text(value: &serde_json::Value) -> &str {
    value.as_str().expect("a text")
}
