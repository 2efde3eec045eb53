//! The agent's own files, written one after the other, by a disk that may not answer for long.
//!
//! What a disk has begun cannot be taken back. So work that takes too long goes on, nothing else is begun before it has
//! ended, and the agent does meanwhile as if it had failed. What is read at the start is waited for without limit.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::Instant;

/// See the module's text.
pub(super) struct Disk {
    /// For the reader of logs.
    data_dir: PathBuf,
    late: Option<Late>,
}

/// Work that did not end in time.
struct Late {
    work: Pin<Box<dyn Future<Output = Result<(), String>> + Send>>,
    what: &'static str,
    since: Instant,
}

impl Disk {
    pub(super) fn new(data_dir: PathBuf) -> Self {
        Self { data_dir, late: None }
    }

    /// Does some work. When it takes longer than [`PATIENCE`] it goes on without being waited for, and while other work
    /// does, it is not begun.
    ///
    /// # Errors
    /// What the work says, or that the disk does not answer.
    pub(super) async fn work(
        &mut self,
        what: &'static str,
        work: impl Future<Output = Result<(), String>> + Send + 'static,
    ) -> Result<(), String> {
        if let Some(late) = &mut self.late {
            if late.work.as_mut().now_or_never().is_none() {
                let what = late.what;
                return Err(self.no_answer(what));
            }
            self.late_ended();
        }
        let since = Instant::now();
        let mut work = Box::pin(work);
        if let Ok(done) = tokio::time::timeout(PATIENCE, &mut work).await {
            return done;
        }
        self.late = Some(Late { work, what, since });
        let error = self.no_answer(what);
        tracing::error!(error, "the disk does not answer, the agent goes on without it");
        Err(error)
    }

    /// Whether work is late.
    pub(super) fn is_late(&self) -> bool {
        self.late.is_some()
    }

    /// Waits until late work has ended: forever, if there is none. Dropping the future loses nothing.
    pub(super) async fn answered(&mut self) {
        match &mut self.late {
            // What came of it is found out by trying again.
            Some(late) => drop(late.work.as_mut().await),
            None => std::future::pending().await,
        }
        self.late_ended();
    }

    fn late_ended(&mut self) {
        if let Some(late) = self.late.take() {
            tracing::warn!(
                what = late.what, after = ?Duration::from_secs(late.since.elapsed().as_secs()),
                "the disk answers again"
            );
        }
    }

    /// The same text for as long as it lasts, so that the state does not change.
    fn no_answer(&self, what: &str) -> String {
        format!("{what}: {}: no answer from the disk", self.data_dir.display())
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk")
            .field("data_dir", &self.data_dir)
            .field("late", &self.late.as_ref().map(|late| late.what))
            .finish()
    }
}

/// How long the disk may take for one file. Disks that spin up, and file systems that fail over, take seconds.
const PATIENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    fn disk() -> Disk {
        Disk::new(PathBuf::from("/data"))
    }

    async fn until(done: oneshot::Receiver<()>) -> Result<(), String> {
        done.await.map_err(|error| error.to_string())
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_too_long_goes_on_and_nothing_is_begun_meanwhile() {
        let mut disk = disk();
        assert_eq!(disk.work("write a", async { Ok(()) }).await, Ok(()));
        let failed = disk.work("write a", async { Err("disk full".to_owned()) }).await;
        assert_eq!(failed, Err("disk full".to_owned()));
        assert!(!disk.is_late());
        let (answer, done) = oneshot::channel();
        let begun = Instant::now();
        let late = disk.work("write a", until(done)).await.unwrap_err();
        assert_eq!(late, "write a: /data: no answer from the disk");
        assert_eq!(begun.elapsed(), PATIENCE);
        let (_never, other) = oneshot::channel();
        assert_eq!(disk.work("write b", until(other)).await.unwrap_err(), late);
        assert!(begun.elapsed() == PATIENCE && disk.is_late());
        let early = tokio::time::timeout(Duration::from_secs(60), disk.answered()).await;
        assert!(early.is_err() && disk.is_late());
        answer.send(()).unwrap();
        disk.answered().await;
        assert!(!disk.is_late());
        assert!(disk.answered().now_or_never().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn work_goes_on_when_what_was_late_has_ended() {
        let mut disk = disk();
        let (answer, done) = oneshot::channel();
        disk.work("write a", until(done)).await.unwrap_err();
        answer.send(()).unwrap();
        assert_eq!(disk.work("write b", async { Ok(()) }).await, Ok(()));
    }
}
