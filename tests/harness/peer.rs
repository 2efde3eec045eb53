//! Programs of other projects: found, or skipped with a printed reason.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Whether an absent peer is a failure (`FINIAL_TEST_REQUIRE=all`) and not a skip.
pub fn require_all() -> bool {
    std::env::var("FINIAL_TEST_REQUIRE").is_ok_and(|value| value == "all")
}

/// Says loudly that a test is skipped and why; panics instead when all peers are required.
pub fn absent(reason: &str) {
    assert!(
        !require_all(),
        "a peer is absent and FINIAL_TEST_REQUIRE=all: {reason}"
    );
    skipped(reason);
}

/// Says that a test is skipped, and why. The test passes, and what a passing test prints by macro is not shown, so
/// this goes past the macros.
pub fn skipped(reason: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // Without a place to say it, nothing is lost but the words.
    let _unsaid = writeln!(std::io::stderr(), "SKIPPED: {test}: {reason}");
}

/// A foreign program by the variable that names it, or by its usual name.
#[derive(Debug)]
pub struct Peer {
    program: PathBuf,
}

impl Peer {
    /// `variable` names the program; otherwise `default` is looked up in `PATH`. `probe` must exit 0.
    pub fn find(variable: &str, default: &str, probe: &[&str]) -> Option<Self> {
        let program = std::env::var_os(variable).map_or_else(|| PathBuf::from(default), PathBuf::from);
        let found = Command::new(&program)
            .args(probe)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if !found {
            absent(&format!(
                "{} {} does not run here ({variable} can name it)",
                program.display(),
                probe.join(" ")
            ));
            return None;
        }
        Some(Peer { program })
    }

    /// The program's file.
    pub fn program(&self) -> PathBuf {
        if self.program.components().count() > 1 {
            return self.program.clone();
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .map(|folder| folder.join(&self.program))
            .find(|file| file.is_file())
            .unwrap_or_else(|| self.program.clone())
    }

    pub fn command(&self) -> Command {
        Command::new(&self.program)
    }
}
