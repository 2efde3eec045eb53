//! What a process uses, read from `/proc`: the same for every implementation.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use rustix::net::sockopt::socket_peercred;
use tokio::net::UnixStream;

/// Parts of a second in which `/proc/PID/stat` counts (`USER_HZ`, which is 100 wherever Linux runs today, whatever
/// the kernel's own tick).
const TICK: Duration = Duration::from_millis(10);

/// Reads memory and CPU time of one process.
#[derive(Debug, Clone)]
pub struct Meter {
    directory: PathBuf,
}

/// Memory in RAM, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// All of it (`VmRSS`).
    pub total: u64,
    /// What belongs to the process alone: heap and stacks (`RssAnon`).
    pub anon: u64,
    /// Pages of files: code, mostly (`RssFile`).
    pub file: u64,
}

impl Meter {
    /// Of the process with this number.
    ///
    /// # Errors
    /// When there is none.
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        let meter = Meter {
            directory: Path::new("/proc").join(pid.to_string()),
        };
        meter.cpu().with_context(|| format!("no process {pid}"))?;
        Ok(meter)
    }

    /// Of the process that listens on a Unix socket, as the kernel knows it.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn of_listener(socket: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket)
            .await
            .with_context(|| format!("connect to {}", socket.display()))?;
        let peer = socket_peercred(stream.as_fd())
            .with_context(|| format!("ask who listens on {}", socket.display()))?;
        let pid = u32::try_from(peer.pid.as_raw_nonzero().get()).context("the listener's pid")?;
        Self::of(pid)
    }

    /// What it holds in RAM now.
    ///
    /// # Errors
    /// When it ended.
    pub fn memory(&self) -> anyhow::Result<Memory> {
        let text = self.read("status")?;
        memory_of(&text).with_context(|| format!("read {}/status", self.directory.display()))
    }

    /// The CPU time of all its threads since it started, also of those that ended.
    ///
    /// # Errors
    /// When it ended.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        let text = self.read("stat")?;
        cpu_of(&text).with_context(|| format!("read {}/stat", self.directory.display()))
    }

    fn read(&self, name: &str) -> anyhow::Result<String> {
        let path = self.directory.join(name);
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }
}

fn memory_of(status: &str) -> Option<Memory> {
    let bytes = |name: &str| {
        let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
        let number = rest.trim_start_matches(':').split_whitespace().next()?;
        number.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
    };
    Some(Memory {
        total: bytes("VmRSS")?,
        anon: bytes("RssAnon")?,
        file: bytes("RssFile")?,
    })
}

/// The 14th and 15th field; the second is a name in parentheses that may hold anything.
fn cpu_of(stat: &str) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(11);
    let mut ticks = || fields.next()?.parse::<u32>().ok();
    let (user, system) = (ticks()?, ticks()?);
    Some(TICK * user.checked_add(system)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let status =
            "Name:\ta\nVmPeak:\t 9 kB\nVmRSS:\t   18300 kB\nRssAnon:\t    1900 kB\nRssFile:\t   16400 kB\n";
        let expected = Memory {
            total: 18_300 * 1024,
            anon: 1900 * 1024,
            file: 16_400 * 1024,
        };
        assert_eq!(memory_of(status), Some(expected));
        assert_eq!(
            memory_of("Name:\tkthreadd\n"),
            None,
            "a kernel thread has no memory"
        );
    }

    #[test]
    fn cpu_time_is_the_sum_of_user_and_system() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 900 0 3 0 150 25 9 9 20 0 3 0 1234 1000 200";
        assert_eq!(cpu_of(stat), Some(Duration::from_millis(1750)));
        assert_eq!(cpu_of("7 (a) S 1"), None);
    }

    #[tokio::test]
    async fn the_listener_of_a_socket_is_found() {
        let directory = tempfile::TempDir::new().unwrap();
        let socket = directory.path().join("s");
        let _listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let meter = Meter::of_listener(&socket).await.unwrap();
        let own = Path::new("/proc").join(std::process::id().to_string());
        assert_eq!(meter.directory, own);
        assert!(meter.memory().unwrap().total > 0);
    }
}
