//! One process of the program under test.

use std::ffi::OsStr;
use std::fmt::Display;
use std::io::{self, BufRead, BufReader, Read, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::wait_for;

/// The path of the built `finial` binary. `FINIAL_BIN` names another build of it.
pub fn finial() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("FINIAL_BIN") {
            return PathBuf::from(path);
        }
        let output = Command::new(env!("CARGO"))
            .args([
                "build",
                "--package",
                "finial",
                "--message-format",
                "json-render-diagnostics",
            ])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stderr(Stdio::inherit())
            .output()
            .expect("cargo runs");
        assert!(output.status.success(), "building the program failed");
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter(|message| message["target"]["name"] == "finial")
            .find_map(|message| message["executable"].as_str().map(PathBuf::from))
            .expect("cargo names the executable it built")
    })
}

/// What a finished command printed and how it ended.
#[derive(Debug)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Runs a command to its end, with nothing to read.
    pub fn of(command: &mut Command) -> Self {
        let output = command.stdin(Stdio::null()).output();
        Self::decoded(command, output)
    }

    /// Runs a command to its end, with `input` to read.
    pub fn with_input(command: &mut Command, input: &str) -> Self {
        let output = fed(command, input);
        Self::decoded(command, output)
    }

    /// Panics with what was printed unless the command exited 0.
    pub fn ok(self, what: impl Display) -> Self {
        assert!(
            self.status.success(),
            "{what} failed ({})\n{}{}",
            self.status,
            self.stdout,
            self.stderr
        );
        self
    }

    fn decoded(command: &Command, output: io::Result<process::Output>) -> Self {
        let output = output.unwrap_or_else(|error| panic!("{}: {error}", command.get_program().display()));
        Self {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The standard output as one JSON document.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("not JSON: {error}: {}", self.stdout))
    }
}

/// Runs `finial` with `args` to its end.
pub fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    Output::of(Command::new(finial()).args(args))
}

/// Runs `finial` and panics with what it printed unless it exits 0.
pub fn run_ok<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    let args: Vec<S> = args.into_iter().collect();
    let shown: Vec<_> = args.iter().map(AsRef::as_ref).collect();
    run(&args).ok(format!("finial {shown:?}"))
}

/// A port on loopback that nobody listens on now.
pub fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .expect("a free port on loopback")
        .port()
}

/// A child process whose output is collected line by line and shown when a test fails.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Program {
    pub fn start(name: &str, command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("starting {name}: {error}"));
        let lines = Arc::new(Mutex::new(Vec::new()));
        collect(child.stdout.take().expect("stdout is piped"), "", &lines);
        collect(child.stderr.take().expect("stderr is piped"), "stderr: ", &lines);
        Program {
            name: name.to_owned(),
            child,
            lines,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything printed so far, one line each; lines of standard error begin with `stderr: `.
    pub fn lines(&self) -> Vec<String> {
        self.lines
            .lock()
            .expect("no reader panics while it holds the lock")
            .clone()
    }

    /// Waits for a line that contains `needle`, among those already printed too.
    pub fn wait_for_line(&mut self, needle: &str, limit: Duration) -> String {
        let what = format!("{} to print {needle:?}", self.name);
        wait_for(&what, limit, || {
            if let Some(line) = self.lines().into_iter().find(|line| line.contains(needle)) {
                return Ok(line);
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!(
                    "{} ended ({status}) before it printed {needle:?}:\n{}",
                    self.name,
                    self.lines().join("\n")
                );
            }
            anyhow::bail!("printed so far:\n{}", self.lines().join("\n"))
        })
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        let _ = kill_process(pid, signal);
    }

    /// Waits until the process ends by itself.
    pub fn wait_exit(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("{} to exit", self.name);
        wait_for(&what, limit, || match self.child.try_wait()? {
            Some(status) => Ok(status),
            None => anyhow::bail!("still running"),
        })
    }

    /// SIGTERM, then the exit status.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_exit(Duration::from_secs(30))
    }

    /// kill -9, and reaped.
    pub fn kill_hard(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill_hard();
        if std::thread::panicking() {
            eprintln!("---- {} printed:\n{}", self.name, self.lines().join("\n"));
        }
    }
}

fn fed(command: &mut Command, input: &str) -> io::Result<process::Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    child.wait_with_output()
}

fn collect(pipe: impl Read + Send + 'static, prefix: &'static str, lines: &Arc<Mutex<Vec<String>>>) {
    let lines = Arc::clone(lines);
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            // What is not UTF-8 is printed too, and does not keep what follows from being read.
            let line = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(&line));
            lines
                .lock()
                .expect("no reader panics while it holds the lock")
                .push(format!("{prefix}{line}"));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_not_utf8_is_kept_and_so_are_those_after_it() {
        let script = r"printf 'first\r\nbad \377 line\nlast\n'; printf 'a \376\nb' >&2; exec sleep 60";
        let mut program = Program::start("shell", Command::new("sh").args(["-c", script]));
        let limit = Duration::from_secs(60);
        program.wait_for_line("last", limit);
        // Without a line end it is there when the program ends.
        program.wait_for_line("stderr: a \u{fffd}", limit);
        program.kill_hard();
        wait_for("the rest", limit, || {
            let found = program.lines().contains(&"stderr: b".to_owned());
            found.then_some(()).ok_or_else(|| anyhow::anyhow!("not yet"))
        });
        let lines = program.lines();
        let said: Vec<&str> = lines
            .iter()
            .map(String::as_str)
            .filter(|line| !line.starts_with("stderr: "))
            .collect();
        assert_eq!(said, ["first", "bad \u{fffd} line", "last"]);
    }
}
