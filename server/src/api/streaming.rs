//! Streams whose work runs as they are read: no task outlives the call it belongs to.

use std::future::Future;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::sync::mpsc;
use tonic::Status;

/// Sends messages of a stream from within its work.
pub type Sender<T> = mpsc::Sender<T>;

/// A stream of what `work` sends. It ends when the work is done, with the work's error if it fails,
/// and the work is dropped with the stream.
pub fn driven<T, W, F>(work: W) -> BoxStream<'static, Result<T, Status>>
where
    T: Send + 'static,
    W: FnOnce(Sender<T>) -> F,
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(1);
    let work: BoxFuture<'static, Result<(), Status>> = Box::pin(work(sender));
    stream::unfold(Some((work, receiver)), step).boxed()
}

type State<T> = Option<(BoxFuture<'static, Result<(), Status>>, mpsc::Receiver<T>)>;

async fn step<T>(state: State<T>) -> Option<(Result<T, Status>, State<T>)> {
    let (mut work, mut messages) = state?;
    tokio::select! {
        biased;
        Some(message) = messages.recv() => Some((Ok(message), Some((work, messages)))),
        ended = &mut work => match (ended, messages.try_recv()) {
            (ended, Ok(message)) => Some((Ok(message), Some((Box::pin(async { ended }), messages)))),
            (Ok(()), Err(_)) => None,
            (Err(status), Err(_)) => Some((Err(status), None)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn gives_all_messages_then_the_error() {
        let stream = driven(|sender| async move {
            for n in 0..3 {
                sender.send(n).await.unwrap();
            }
            Err(Status::aborted("enough"))
        });
        let items: Vec<_> = stream.collect().await;
        let numbers: Vec<_> = items.iter().filter_map(|item| item.as_ref().ok()).collect();
        assert_eq!(numbers, [&0, &1, &2]);
        assert_eq!(items.len(), 4);
        assert_eq!(items[3].as_ref().unwrap_err().code(), tonic::Code::Aborted);
    }

    #[tokio::test]
    async fn ends_when_the_work_is_done() {
        let stream = driven(|sender| async move {
            sender.send(7).await.unwrap();
            Ok(())
        });
        let items: Vec<Result<i32, Status>> = stream.collect().await;
        assert_eq!(items.len(), 1);
    }
}
