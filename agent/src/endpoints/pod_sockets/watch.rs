//! Reports created and deleted folders, by inotify(7).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Room for some events; only their arrival matters, not their content.
const EVENT_BYTES: usize = 4096;

/// Watches one folder.
#[derive(Debug)]
pub(super) struct FolderWatch {
    inotify: AsyncFd<OwnedFd>,
}

impl FolderWatch {
    /// Watches `folder` for names that come and go. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        let inotify = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let names = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::ONLYDIR;
        add_watch(&inotify, folder, names)?;
        #[allow(
            deprecated,
            reason = "its successor is unsafe; an OwnedFd stays open as long as it lives"
        )]
        let inotify = AsyncFd::with_interest(inotify, Interest::READABLE)?;
        Ok(Self { inotify })
    }

    /// Completes when something has changed since the last time, all of it at once. May be dropped at any time.
    pub(super) async fn changed(&mut self) {
        loop {
            let Ok(mut ready) = self.inotify.readable().await else {
                // Without its runtime nothing can be watched; nothing is served either.
                return std::future::pending().await;
            };
            let seen = drain(self.inotify.get_ref());
            ready.clear_ready();
            match seen {
                Ok(0) => {}
                Ok(_) => return,
                // The folders are looked at now and then anyway.
                Err(error) => {
                    tracing::warn!(%error, "folder of pods is watched no more");
                    return std::future::pending().await;
                }
            }
        }
    }
}

fn drain(inotify: &OwnedFd) -> io::Result<usize> {
    let mut room = [MaybeUninit::uninit(); EVENT_BYTES];
    let mut reader = Reader::new(inotify, &mut room);
    let mut seen = 0;
    loop {
        match reader.next() {
            Ok(_event) => seen += 1,
            Err(Errno::AGAIN) => return Ok(seen),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tells_of_folders_that_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = FolderWatch::open(dir.path()).unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::create_dir(&a).unwrap();
        watch.changed().await;
        std::fs::rename(&a, &b).unwrap();
        watch.changed().await;
        std::fs::remove_dir(&b).unwrap();
        watch.changed().await;
        tokio::select! {
            biased;
            () = watch.changed() => panic!("nothing happened"),
            () = tokio::task::yield_now() => {}
        }
    }
}
