//! A program that the helper did not start, found by a file with its pid.

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use finial_identity::process::Stop;
use finial_identity::process::private_file::{self, FileError};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;

use super::backoff::Backoff;
use super::signals;

/// The largest pid file, in bytes.
const MAX_PID_FILE: usize = 4096;
/// How often signalling is tried, as in spiffe-helper.
const ATTEMPTS: usize = 10;

/// Why no process was signalled.
#[derive(Debug, thiserror::Error)]
enum PidFileError {
    /// It cannot be read.
    #[error("pid file: {0}")]
    File(#[from] FileError),
    /// It holds something else.
    #[error("pid file holds no pid: {}", .0.display())]
    NoPid(PathBuf),
    /// The system refused.
    #[error("signal process {pid}: {source}")]
    Signal {
        /// The pid.
        pid: i32,
        /// What the system said.
        source: io::Error,
    },
}

/// Sends `signal` with each of `renewals` to the process whose pid is in the file then.
pub(super) async fn signal_each_renewal(
    path: PathBuf,
    signal: Signal,
    mut renewals: watch::Receiver<u64>,
    backoff: Backoff,
    stop: Stop,
) -> Result<(), Infallible> {
    loop {
        tokio::select! {
            () = stop.stopped() => return Ok(()),
            changed = renewals.changed() => if changed.is_err() {
                return Ok(());
            },
        }
        tokio::select! {
            () = stop.stopped() => return Ok(()),
            () = tell(&path, signal, backoff.clone()) => {}
        }
    }
}

async fn tell(path: &Path, signal: Signal, mut backoff: Backoff) {
    for left in (0..ATTEMPTS).rev() {
        let file = path.to_owned();
        let outcome = tokio::task::spawn_blocking(move || signal_process(&file, signal)).await;
        match outcome {
            Ok(Ok(pid)) => {
                tracing::info!(
                    pid,
                    signal = signals::name(signal),
                    "process of the pid file signalled"
                );
                return;
            }
            Ok(Err(error)) if left == 0 => {
                tracing::error!(%error, "process of the pid file cannot be signalled; the next renewal tries again");
            }
            Ok(Err(error)) => tracing::debug!(%error, "process of the pid file cannot be signalled yet"),
            Err(error) => tracing::error!(%error, "task that signals failed"),
        }
        if left > 0 {
            tokio::time::sleep(backoff.pause()).await;
        }
    }
}

/// A pause before the next attempt: 0.1 s, doubled each time.
pub(super) fn pauses(random: fn() -> f64) -> Backoff {
    Backoff::new(Duration::from_millis(100), Duration::from_secs(60), random)
}

fn signal_process(path: &Path, signal: Signal) -> Result<i32, PidFileError> {
    let bytes = private_file::read_secret(path, MAX_PID_FILE)?;
    let number: Option<i32> = str::from_utf8(bytes.as_bytes())
        .ok()
        .and_then(|text| text.trim().parse().ok());
    // 0 and negative numbers would mean groups of processes.
    let pid = number
        .filter(|number| *number > 0)
        .and_then(Pid::from_raw)
        .ok_or_else(|| PidFileError::NoPid(path.to_owned()))?;
    let number = pid.as_raw_nonzero().get();
    kill_process(pid, signal).map_err(|error| PidFileError::Signal {
        pid: number,
        source: error.into(),
    })?;
    Ok(number)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)] // Tests lay out files by hand.
    use std::process::Command;

    use super::*;

    #[test]
    fn the_process_of_the_file_gets_the_signal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        std::fs::write(&path, format!(" {}\n", child.id())).unwrap();
        let pid = signal_process(&path, Signal::TERM).unwrap();
        assert_eq!(pid.unsigned_abs(), child.id());
        assert!(!child.wait().unwrap().success());
        // It is gone and collected.
        let error = signal_process(&path, Signal::TERM).unwrap_err();
        assert!(matches!(error, PidFileError::Signal { .. }), "{error}");
    }

    #[test]
    fn groups_and_texts_are_never_signalled() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        for text in ["0", "-1", "", "12 13", "nginx", "99999999999"] {
            std::fs::write(&path, text).unwrap();
            let error = signal_process(&path, Signal::TERM).unwrap_err();
            assert!(matches!(error, PidFileError::NoPid(_)), "{text}: {error}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(
            signal_process(&path, Signal::TERM).unwrap_err(),
            PidFileError::File(_)
        ));
    }

    #[tokio::test]
    async fn a_file_that_comes_late_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let backoff = Backoff::new(Duration::from_millis(1), Duration::from_secs(1), || 0.5);
        let telling = tell(&path, Signal::KILL, backoff);
        let writing = async {
            tokio::task::yield_now().await;
            std::fs::write(&path, child.id().to_string()).unwrap();
        };
        tokio::join!(telling, writing);
        assert!(!child.wait().unwrap().success());
    }
}
