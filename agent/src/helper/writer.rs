//! Keeps trying until the newest content is on disk.

use std::convert::Infallible;
use std::fmt::Display;
use std::sync::Arc;

use finial_identity::process::Stop;
use tokio::sync::watch;

use super::backoff::Backoff;
use super::health::{Statuses, Which, Written};

/// Writes what `news` holds, with `write` on a blocking thread, whenever it is another than what was written last;
/// updates `statuses`, and calls `written` after each success. What fails is tried again after a pause.
pub(super) async fn write_newest<T, E>(
    mut news: watch::Receiver<Option<Arc<T>>>,
    write: impl Fn(&T) -> Result<(), E> + Send + Sync + 'static,
    written: impl Fn(&T),
    (statuses, which): (Statuses, Which),
    mut backoff: Backoff,
    stop: Stop,
) -> Result<(), Infallible>
where
    T: PartialEq + Send + Sync + 'static,
    E: Display + Send + 'static,
{
    let write = Arc::new(write);
    let mut last: Option<Arc<T>> = None;
    loop {
        let newest = news.borrow_and_update().clone();
        let mut retry_in = None;
        if let Some(content) = newest {
            if last.as_ref() == Some(&content) {
                statuses.set(&which, Written::Yes);
            } else {
                match on_disk(&write, &content).await {
                    Ok(()) => {
                        backoff.reset();
                        statuses.set(&which, Written::Yes);
                        written(&content);
                        last = Some(content);
                    }
                    Err(error) => {
                        statuses.set(&which, Written::Failed);
                        let pause = backoff.pause();
                        tracing::error!(file = %which, %error, retry_in = pause.as_secs_f32(), "files cannot be written");
                        retry_in = Some(pause);
                    }
                }
            }
        }
        let again = async {
            match retry_in {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.stopped() => return Ok(()),
            () = again => {}
            changed = news.changed() => if changed.is_err() {
                return Ok(());
            },
        }
    }
}

async fn on_disk<T, E>(
    write: &Arc<impl Fn(&T) -> Result<(), E> + Send + Sync + 'static>,
    content: &Arc<T>,
) -> Result<(), String>
where
    T: Send + Sync + 'static,
    E: Display + Send + 'static,
{
    let (write, content) = (Arc::clone(write), Arc::clone(content));
    let done = tokio::task::spawn_blocking(move || write(&content).map_err(|error| error.to_string())).await;
    done.unwrap_or_else(|error| Err(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use finial_identity::process::TaskSet;

    use super::super::testing::{config, eventually};
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn failures_are_repeated_with_the_newest_and_what_stands_there_is_not_written_again() {
        let statuses = Statuses::new(&config("/c", ""));
        let (news, receiver) = watch::channel(None);
        let attempts = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::new(Mutex::new(Vec::new()));
        let (seen, heard) = (Arc::clone(&attempts), Arc::clone(&told));
        let (progress, mut steps) = tokio::sync::mpsc::unbounded_channel();
        let mut tasks = TaskSet::new();
        tasks.spawn(
            "writer",
            write_newest(
                receiver,
                move |content: &u32| {
                    seen.lock().unwrap().push(*content);
                    progress.send(*content).unwrap();
                    if *content == 1 {
                        Err("disk is full")
                    } else {
                        Ok(())
                    }
                },
                move |content| heard.lock().unwrap().push(*content),
                (statuses.clone(), Which::X509),
                Backoff::new(Duration::from_secs(1), Duration::from_secs(60), || 0.5),
                tasks.stop_signal(),
            ),
        );
        news.send_replace(Some(Arc::new(1)));
        assert_eq!((steps.recv().await, steps.recv().await), (Some(1), Some(1)));
        news.send_replace(Some(Arc::new(2)));
        while steps.recv().await != Some(2) {}
        eventually(|| told.lock().unwrap().len() == 1, String::new).await;
        statuses.set(&Which::X509, Written::Failed);
        news.send_replace(Some(Arc::new(2)));
        eventually(|| statuses.get(&Which::X509) == Some(Written::Yes), String::new).await;
        news.send_replace(Some(Arc::new(3)));
        assert_eq!(steps.recv().await, Some(3));
        drop(news);
        tasks.run_until_first_exit(std::future::pending()).await.unwrap();
        assert_eq!(*told.lock().unwrap(), [2, 3]);
        let attempts = attempts.lock().unwrap();
        assert_eq!(
            attempts.iter().filter(|content| **content == 2).count(),
            1,
            "{attempts:?}"
        );
    }
}
