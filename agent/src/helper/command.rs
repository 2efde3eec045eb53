//! The program that uses the files: started when they are first written, signalled at every renewal, ended with the
//! helper.
//!
//! As in spiffe-helper, a program that ended is not started again before the next renewal, so a short command
//! can be used to notify others of a renewal. Programs are executed directly, without a shell.

use std::io;
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use finial_identity::process::Stop;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait, waitpid};
use tokio::signal::unix::{self, SignalKind};
use tokio::sync::watch;

use super::config::CommandLine;
use super::signals;

/// How long the program may take to end after SIGTERM.
pub(super) const STOP_GRACE: Duration = Duration::from_secs(30);

/// Which signal ends us, once one did.
pub(super) type Ending = Arc<OnceLock<Signal>>;

/// Owns the running program.
#[derive(Debug)]
pub(super) struct Supervisor {
    command: Option<CommandLine>,
    renew_signal: Option<Signal>,
    reaps_all: bool,
    running: Option<Pid>,
}

impl Supervisor {
    /// `reaps_all` is for the first process of a container, to which the kernel gives the orphans of all others: it
    /// collects them when they end, or they would stay as zombies.
    pub(super) fn new(command: Option<CommandLine>, renew_signal: Option<Signal>, reaps_all: bool) -> Self {
        Self {
            command,
            renew_signal,
            reaps_all,
            running: None,
        }
    }

    /// Starts or signals the program with each of `renewals` until `stop`; then passes on the signal that is `ending`
    /// us and waits until the program has ended, for [`STOP_GRACE`].
    ///
    /// # Errors
    /// When the system lets us not know of children that end.
    pub(super) async fn run(
        mut self,
        mut renewals: watch::Receiver<u64>,
        ending: Ending,
        stop: Stop,
    ) -> io::Result<()> {
        let mut child_ended = unix::signal(SignalKind::child())?;
        loop {
            tokio::select! {
                () = stop.stopped() => break,
                _ = child_ended.recv() => self.reap(),
                Ok(()) = renewals.changed() => {
                    // What ended in this very moment is started, not signalled.
                    self.reap();
                    self.renewed();
                }
            }
        }
        let signal = ending.get().copied().unwrap_or(Signal::TERM);
        if !self.tell(signal) {
            return Ok(());
        }
        let ended = async {
            while self.running.is_some() {
                child_ended.recv().await;
                self.reap();
            }
        };
        if tokio::time::timeout(STOP_GRACE, ended).await.is_err() {
            tracing::warn!(
                pid = self.running.map(Pid::as_raw_nonzero),
                "command did not end in time and is left running"
            );
        }
        Ok(())
    }

    fn renewed(&mut self) {
        let Some(command) = &self.command else { return };
        if self.running.is_some() {
            if let Some(signal) = self.renew_signal {
                self.tell(signal);
            }
            return;
        }
        match Command::new(&command.program).args(&command.arguments).spawn() {
            Ok(child) => {
                self.running = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
                tracing::info!(command = command.program, pid = child.id(), "command started");
            }
            Err(error) => {
                tracing::error!(command = command.program, %error, "command cannot be started; the next renewal tries again");
            }
        }
    }

    /// Sends a signal to the program, if it runs. Nobody else collects it, so its pid is still its own.
    fn tell(&self, signal: Signal) -> bool {
        let Some(pid) = self.running else { return false };
        let (name, pid_number) = (signals::name(signal), pid.as_raw_nonzero());
        match kill_process(pid, signal) {
            Ok(()) => tracing::info!(pid = pid_number, signal = name, "command signalled"),
            Err(error) => {
                let error = io::Error::from(error);
                tracing::error!(pid = pid_number, signal = name, %error, "command cannot be signalled");
            }
        }
        true
    }

    /// Collects what has ended.
    fn reap(&mut self) {
        if self.reaps_all {
            while let Some((pid, status)) = collected(wait(WaitOptions::NOHANG)) {
                self.ended(pid, status);
            }
        } else if let Some(pid) = self.running
            && let Some((pid, status)) = collected(waitpid(Some(pid), WaitOptions::NOHANG))
        {
            self.ended(pid, status);
        }
    }

    fn ended(&mut self, pid: Pid, status: WaitStatus) {
        if self.running != Some(pid) {
            tracing::debug!(pid = pid.as_raw_nonzero(), "orphan collected");
            return;
        }
        self.running = None;
        match (status.exit_status(), status.terminating_signal()) {
            (Some(0), _) => tracing::info!(pid = pid.as_raw_nonzero(), "command ended"),
            (code, signal) => {
                tracing::warn!(
                    pid = pid.as_raw_nonzero(),
                    exit_code = code,
                    signal,
                    "command ended with a failure"
                );
            }
        }
    }
}

fn collected(outcome: Result<Option<(Pid, WaitStatus)>, Errno>) -> Option<(Pid, WaitStatus)> {
    outcome.unwrap_or_else(|error| {
        if error != Errno::CHILD {
            tracing::error!(error = %io::Error::from(error), "children cannot be waited for");
        }
        None
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)] // Tests lay out files by hand.
    use std::path::Path;

    use finial_identity::process::TaskSet;

    use super::super::testing::eventually;
    use super::*;

    /// A shell script that appends words to `$1`.
    fn script(dir: &Path, text: &str) -> CommandLine {
        CommandLine {
            program: "/bin/sh".to_owned(),
            arguments: ["-c", text, "sh", &dir.join("told").display().to_string()]
                .map(str::to_owned)
                .to_vec(),
        }
    }

    fn told(dir: &Path) -> String {
        std::fs::read_to_string(dir.join("told"))
            .unwrap_or_default()
            .replace('\n', " ")
    }

    struct Running {
        tasks: TaskSet,
        renewals: watch::Sender<u64>,
        ending: Ending,
        dir: tempfile::TempDir,
    }

    impl Running {
        fn start(text: &str, renew_signal: Option<Signal>) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let (renewals, receiver) = watch::channel(0);
            let ending = Ending::default();
            let supervisor = Supervisor::new(Some(script(dir.path(), text)), renew_signal, false);
            let mut tasks = TaskSet::new();
            tasks.spawn(
                "command",
                supervisor.run(receiver, Arc::clone(&ending), tasks.stop_signal()),
            );
            Self {
                tasks,
                renewals,
                ending,
                dir,
            }
        }

        fn renew(&self) {
            self.renewals.send_modify(|count| *count += 1);
        }

        async fn told(&self, expected: &str) {
            eventually(|| told(self.dir.path()) == expected, || told(self.dir.path())).await;
        }

        async fn stop(self, signal: Signal) -> String {
            self.ending.set(signal).unwrap();
            self.tasks
                .run_until_first_exit(std::future::ready(()))
                .await
                .unwrap();
            told(self.dir.path())
        }
    }

    const DAEMON: &str = r#"
        trap 'echo hup >> "$1"' HUP
        trap 'echo term >> "$1"; exit 0' TERM
        echo up >> "$1"
        while test -d "${1%/*}"; do sleep 0.01; done
    "#;

    #[tokio::test]
    async fn a_program_is_started_by_the_first_renewal_signalled_by_the_next_and_ended_with_us() {
        let running = Running::start(DAEMON, Some(Signal::HUP));
        assert_eq!(told(running.dir.path()), "");
        running.renew();
        running.told("up ").await;
        running.renew();
        running.told("up hup ").await;
        assert_eq!(running.stop(Signal::TERM).await, "up hup term ");
    }

    #[tokio::test]
    async fn a_program_that_ended_is_started_by_the_next_renewal_only() {
        let running = Running::start(r#"echo ran >> "$1"; exit 3"#, Some(Signal::HUP));
        running.renew();
        running.told("ran ").await;
        // Once it is collected, nothing of it is left to signal.
        eventually(|| children() == 0, || children().to_string()).await;
        assert_eq!(told(running.dir.path()), "ran ");
        running.renew();
        running.told("ran ran ").await;
        running.stop(Signal::TERM).await;
    }

    /// How many zombies the tests of this process have.
    fn children() -> usize {
        let own = format!(" {} ", std::process::id());
        let is_zombie = |stat: String| {
            let after = stat.rsplit(')').next().unwrap_or_default().to_owned();
            after.starts_with(" Z") && after[2..].starts_with(&own)
        };
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok())
            .filter(|stat| is_zombie(stat.clone()))
            .count()
    }

    #[tokio::test]
    async fn without_a_signal_a_running_program_is_left_alone() {
        let running = Running::start(DAEMON, None);
        running.renew();
        running.told("up ").await;
        running.renew();
        assert_eq!(running.stop(Signal::TERM).await, "up term ");
    }

    #[tokio::test]
    async fn arguments_reach_the_program_as_they_are_and_a_missing_program_is_no_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = script(dir.path(), r#"echo "$2" >> "$1""#);
        command.arguments.push("$HOME; `id` 'x'".to_owned());
        let mut supervisor = Supervisor::new(Some(command), None, false);
        supervisor.renewed();
        eventually(|| !told(dir.path()).is_empty(), String::new).await;
        assert_eq!(told(dir.path()), "$HOME; `id` 'x' ");
        let absent = CommandLine {
            program: dir.path().join("absent").display().to_string(),
            arguments: Vec::new(),
        };
        eventually(
            || {
                supervisor.reap();
                supervisor.running.is_none()
            },
            String::new,
        )
        .await;
        supervisor.command = Some(absent);
        supervisor.renewed();
        assert_eq!(supervisor.running, None);
    }
}
