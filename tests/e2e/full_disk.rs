//! The agent's data directory on a disk that is full or read-only for a while: a small tmpfs in a mount namespace of
//! its own, because no mode forbids writing to root.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use finial_tests::{Entry, Program, Stack, StackOptions, absent, finial, free_port, wait_for, wait_until};
use rustix::process::{Pid, Signal, kill_process};

use crate::helper::get;

const LIMIT: Duration = Duration::from_secs(120);

/// Long enough that a busy machine is not overtaken, short enough to wait for two renewals.
const AGENT_TTL: &str = "40s";

#[test]
fn an_agent_renews_while_its_disk_is_full_and_no_restart_costs_its_identity() {
    let (stack, health) = renewing_soon();
    let Some(disk) = SmallDisk::mount(&stack.dir().join("agent")) else {
        return;
    };
    stack.write_bundle();
    let token = stack.join_token();
    let mut agent = disk.start_agent(&stack, &["-joinToken", &token]);
    wait_healthy(&stack, &mut agent);
    stack.create_entry(&Entry::for_me("/me"));
    stack.wait_identity("/me");
    let (id, first) = (stack.agent_id(), stack.agent_serial());
    assert!(disk.holds(&first));

    disk.fill();
    agent.wait_for_line("held back", LIMIT);
    let told = wait_ready(health, |told| told.contains("held back until it can be saved"));
    assert!(told.starts_with("HTTP/1.1 200"), "it serves: {told}");
    assert!(told.contains("No space left"), "{told}");
    assert_eq!(
        stack.agent_serial(),
        first,
        "the server has not seen another SVID"
    );

    // Killed while a new SVID is held back: the saved one is still accepted.
    agent.kill_hard();
    agent = disk.start_agent(&stack, &[]);
    wait_healthy(&stack, &mut agent);
    reaches_its_server(&stack, "/held-back");

    // The saved SVID nears its end: the new one is used from memory.
    wait_until("the renewed SVID to be used", LIMIT, || {
        stack.agent_serial() != first
    });
    agent.wait_for_line("used before it could be saved", LIMIT);
    assert!(disk.holds(&first), "nothing could be written");
    reaches_its_server(&stack, "/from-memory");
    let said = agent.lines();
    let times = said
        .iter()
        .filter(|line| line.contains("agent data could not be saved"))
        .count();
    assert!(times <= 3, "said {times} times:\n{}", said.join("\n"));

    disk.free();
    agent.wait_for_line("agent data is saved again", LIMIT);
    assert!(!disk.holds(&first));
    wait_ready(health, |told| {
        told.starts_with("HTTP/1.1 200") && !told.contains("saved")
    });

    // Killed after the space came back: what was made meanwhile is there.
    agent.kill_hard();
    agent = disk.start_agent(&stack, &[]);
    wait_healthy(&stack, &mut agent);
    reaches_its_server(&stack, "/saved");
    assert!(disk.holds(&stack.agent_serial()));
    assert_eq!(stack.agent_id(), id, "the agent is the same");
    let agents = stack.server_cli_ok(&["agent", "list", "-output", "json"]).json();
    assert_eq!(agents["agents"].as_array().map(Vec::len), Some(1));
    assert!(agent.terminate().success());
}

#[test]
fn a_disk_that_becomes_read_only_takes_nothing_away_and_is_shown() {
    let port = free_port();
    let stack = Stack::server_only(StackOptions {
        server: format!("agent_ttl = \"{AGENT_TTL}\""),
        agent_blocks: format!("health_checks {{ listener_enabled = true bind_port = {port} }}"),
        ..StackOptions::default()
    });
    let Some(disk) = SmallDisk::mount(&stack.dir().join("agent")) else {
        return;
    };
    stack.write_bundle();
    let token = stack.join_token();
    let mut agent = disk.start_agent(&stack, &["-joinToken", &token]);
    wait_healthy(&stack, &mut agent);
    stack.create_entry(&Entry::for_me("/me"));
    stack.wait_identity("/me");
    let first = stack.agent_serial();
    let ready = || get(port, "/ready").unwrap_or_default();
    assert!(!ready().contains("degraded"), "{}", ready());

    disk.remount("ro");
    wait_until("the ready path to say what is wrong", LIMIT, || {
        let said = ready();
        said.contains("degraded") && said.contains("Read-only file system")
    });
    stack.wait_identity("/me");
    assert!(disk.holds(&first), "what is saved stays");

    disk.remount("rw");
    wait_until("the ready path to say that all is well", LIMIT, || {
        let said = ready();
        said.starts_with("HTTP/1.1 200") && !said.contains("degraded")
    });
    assert!(!disk.holds(&first), "what was made meanwhile is saved");
    // Killed, it goes on with that.
    agent.kill_hard();
    let mut agent = disk.start_agent(&stack, &[]);
    wait_healthy(&stack, &mut agent);
    reaches_its_server(&stack, "/later");
    assert!(agent.terminate().success());
}

#[test]
fn a_join_token_is_not_spent_on_a_disk_that_is_read_only() {
    let stack = Stack::server_only(StackOptions::default());
    let Some(disk) = SmallDisk::mount(&stack.dir().join("agent")) else {
        return;
    };
    stack.write_bundle();
    let token = stack.join_token();
    disk.remount("ro");
    let mut agent = disk.start_agent(&stack, &["-joinToken", &token]);
    let line = agent.wait_for_line("it works once and is not used", LIMIT);
    assert!(line.contains("keys.json"), "{line}");
    assert!(!line.contains(&token), "the token is not shown");
    let agents = stack.server_cli_ok(&["agent", "list", "-output", "json"]).json();
    assert!(agents["agents"].as_array().is_none_or(Vec::is_empty), "{agents}");
    disk.remount("rw");
    wait_healthy(&stack, &mut agent);
    stack.create_entry(&Entry::for_me("/me"));
    stack.wait_identity("/me");
    assert!(disk.holds(&stack.agent_serial()));
}

#[test]
fn an_agent_that_starts_on_a_read_only_disk_serves_by_what_it_saved_and_changes_nothing() {
    let stack = Stack::server_only(StackOptions::default());
    let Some(disk) = SmallDisk::mount(&stack.dir().join("agent")) else {
        return;
    };
    stack.write_bundle();
    let token = stack.join_token();
    let mut agent = disk.start_agent(&stack, &["-joinToken", &token]);
    wait_healthy(&stack, &mut agent);
    let serial = stack.agent_serial();
    assert!(agent.terminate().success());
    let files = ["agent-data.json", "keys.json"].map(|name| disk.path().join(name));
    let saved = files
        .each_ref()
        .map(|path| std::fs::read(path).expect("a state file"));
    disk.remount("ro");
    let mut agent = disk.start_agent(&stack, &[]);
    wait_healthy(&stack, &mut agent);
    reaches_its_server(&stack, "/read-only");
    assert_eq!(stack.agent_serial(), serial);
    assert!(agent.terminate().success());
    assert_eq!(
        files
            .each_ref()
            .map(|path| std::fs::read(path).expect("a state file")),
        saved
    );
}

/// A server whose agents renew soon, and the port of the agent's health checks.
fn renewing_soon() -> (Stack, u16) {
    let port = free_port();
    let stack = Stack::server_only(StackOptions {
        server: format!("agent_ttl = \"{AGENT_TTL}\""),
        agent_blocks: format!("health_checks {{ listener_enabled = true bind_port = \"{port}\" }}"),
        ..StackOptions::default()
    });
    (stack, port)
}

/// Waits until `/ready` answers as it should, and gives the answer.
fn wait_ready(port: u16, holds: impl Fn(&str) -> bool) -> String {
    wait_for("/ready to tell", LIMIT, || {
        let told = get(port, "/ready")?;
        anyhow::ensure!(holds(&told), "it says {told}");
        Ok(told)
    })
}

/// A tmpfs of 512 KiB that only the programs started in its namespace see, until this is dropped.
#[derive(Debug)]
struct SmallDisk {
    /// Holds the namespace; ends when its input does.
    holder: Child,
    dir: PathBuf,
}

impl SmallDisk {
    fn mount(dir: &Path) -> Option<Self> {
        std::fs::create_dir(dir).expect("a mount point");
        let script = "mount -t tmpfs -o size=512k,mode=0700 tmpfs \"$0\" && echo mounted && exec cat";
        let started = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut holder) = started else {
            absent("unshare is not installed: no disk can be filled");
            return None;
        };
        let mut said = [0; 8];
        let out = holder.stdout.as_mut().expect("stdout is piped");
        let mounted = std::io::Read::read_exact(out, &mut said).is_ok() && &said == b"mounted\n";
        let disk = SmallDisk {
            holder,
            dir: dir.to_owned(),
        };
        if !mounted || !disk.enter("true").status().is_ok_and(|status| status.success()) {
            absent("mounting in a namespace is not permitted here: no disk can be filled");
            return None;
        }
        Some(disk)
    }

    /// A program that sees the disk; its process becomes that program's.
    fn enter(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()))
            .arg(program);
        command
    }

    fn start_agent(&self, stack: &Stack, args: &[&str]) -> Program {
        let mut command = self.enter(finial());
        command
            .args(["agent", "run", "-config"])
            .arg(stack.dir().join("agent.conf"))
            .args(args);
        Program::start("agent", &mut command)
    }

    /// The disk's directory as this process reaches it.
    fn path(&self) -> PathBuf {
        let inside = self.dir.strip_prefix("/").expect("an absolute path");
        PathBuf::from(format!("/proc/{}/root", self.holder.id())).join(inside)
    }

    /// Takes what room there is, to the last page.
    fn fill(&self) {
        let mut filler = std::fs::File::create(self.path().join("filler")).expect("a file");
        let full = std::iter::repeat_with(|| filler.write_all(&[0; 4096])).find_map(Result::err);
        assert_eq!(
            full.map(|error| error.kind()),
            Some(std::io::ErrorKind::StorageFull)
        );
    }

    fn free(&self) {
        std::fs::remove_file(self.path().join("filler")).expect("the filler goes");
    }

    fn remount(&self, mode: &str) {
        let mut command = self.enter("mount");
        command.arg("-o").arg(format!("remount,{mode}")).arg(&self.dir);
        let done = command.status().expect("mount runs");
        assert!(done.success(), "remount,{mode}: {done}");
    }

    /// Whether `agent-data.json` has the SVID with this serial number, in decimal.
    fn holds(&self, serial: &str) -> bool {
        let text = std::fs::read(self.path().join("agent-data.json")).expect("agent-data.json");
        let data: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        let pem = data["svid"][0].as_str().expect("a saved SVID");
        let pem = data_encoding::BASE64.decode(pem.as_bytes()).expect("base64");
        let pem = String::from_utf8(pem).expect("PEM text");
        let chain = finial_identity::x509::Certificate::from_pem(&pem).expect("PEM");
        chain[0].serial_decimal() == serial
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The mount goes with the last process in the namespace.
        let _ = kill_process(Pid::from_child(&self.holder), Signal::KILL);
        let _ = self.holder.wait();
    }
}

fn wait_healthy(stack: &Stack, agent: &mut Program) {
    wait_until("the agent to be healthy", LIMIT, || {
        assert!(
            agent.is_running(),
            "the agent ended:\n{}",
            agent.lines().join("\n")
        );
        stack.agent_cli(&["healthcheck"]).status.success()
    });
}

/// A new entry comes through the agent to this process: the server accepts the agent, and the agent serves.
fn reaches_its_server(stack: &Stack, path: &str) {
    stack.create_entry(&Entry::for_me(path));
    stack.wait_identity(path);
}
