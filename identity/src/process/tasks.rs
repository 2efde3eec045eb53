//! Every task is named and owned by one set, with a stop signal and a deadline.

use std::collections::HashMap;
use std::error::Error;
use std::future::Future;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// How long tasks may take to end after the stop signal, unless [`TaskSet::with_deadline`] says otherwise.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);

/// The cause of a task's failure, whatever its type was.
pub type TaskCause = Box<dyn Error + Send + Sync + 'static>;

/// The tasks of a process. Dropping the set aborts them.
#[derive(Debug)]
pub struct TaskSet {
    tasks: JoinSet<Result<(), TaskCause>>,
    names: HashMap<Id, &'static str>,
    stop: CancellationToken,
    deadline: Duration,
}

/// Tells a task that it should end. Clones share the signal.
#[derive(Clone, Debug)]
pub struct Stop(CancellationToken);

/// A task that ended otherwise than it should.
#[derive(Debug, thiserror::Error)]
#[error("task {name}: {source}")]
pub struct TaskError {
    /// The name given to [`TaskSet::spawn`].
    pub name: &'static str,
    /// What happened to it.
    pub source: TaskFailure,
}

/// How a task ended.
#[derive(Debug, thiserror::Error)]
pub enum TaskFailure {
    /// It returned an error.
    #[error("{0}")]
    Failed(#[source] TaskCause),
    /// It panicked, with this message.
    #[error("panicked: {0}")]
    Panicked(String),
    /// It was aborted from outside of the set.
    #[error("was aborted")]
    Aborted,
    /// It, and the others named, still ran when the deadline passed, and were aborted.
    #[error("did not stop within {} s: {}", deadline.as_secs_f32(), names.join(", "))]
    Overdue {
        /// The deadline of the set.
        deadline: Duration,
        /// All tasks that were aborted, sorted.
        names: Vec<&'static str>,
    },
}

/// How many tasks the current runtime has, 0 outside of one.
pub fn alive() -> usize {
    Handle::try_current().map_or(0, |runtime| runtime.metrics().num_alive_tasks())
}

impl TaskSet {
    /// An empty set with [`DEFAULT_DEADLINE`].
    pub fn new() -> Self {
        Self::with_deadline(DEFAULT_DEADLINE)
    }

    /// An empty set whose tasks have `deadline` to end after the stop signal.
    pub fn with_deadline(deadline: Duration) -> Self {
        Self {
            tasks: JoinSet::new(),
            names: HashMap::new(),
            stop: CancellationToken::new(),
            deadline,
        }
    }

    /// Starts a task on the current runtime. Returning `Ok` is a normal end at any time.
    pub fn spawn<E>(&mut self, name: &'static str, task: impl Future<Output = Result<(), E>> + Send + 'static)
    where
        E: Into<TaskCause> + 'static,
    {
        let handle = self.tasks.spawn(async move { task.await.map_err(Into::into) });
        self.names.insert(handle.id(), name);
    }

    /// Starts a task on another runtime.
    pub fn spawn_on<E>(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
        runtime: &Handle,
    ) where
        E: Into<TaskCause> + 'static,
    {
        let handle: AbortHandle = self
            .tasks
            .spawn_on(async move { task.await.map_err(Into::into) }, runtime);
        self.names.insert(handle.id(), name);
    }

    /// The signal that tells this set's tasks to end.
    pub fn stop_signal(&self) -> Stop {
        Stop(self.stop.clone())
    }

    /// How many tasks have not been seen to end.
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether all tasks ended.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Works until `shutdown` completes, a task fails or panics, or all tasks ended well. Then
    /// signals stop, waits up to the deadline and aborts what is left.
    ///
    /// # Errors
    /// The first failure; or, when all went well until the stop, the tasks that did not end in time.
    /// Failures after the first are logged.
    pub async fn run_until_first_exit(mut self, shutdown: impl Future<Output = ()>) -> Result<(), TaskError> {
        let mut first = {
            let mut shutdown = std::pin::pin!(shutdown);
            loop {
                tokio::select! {
                    () = &mut shutdown => break None,
                    ended = self.tasks.join_next_with_id() => match ended {
                        None => return Ok(()),
                        Some(ended) => {
                            if let Err(error) = self.outcome(ended) {
                                break Some(error);
                            }
                        }
                    },
                }
            }
        };
        self.stop.cancel();
        let last = self.drain().await;
        for error in last {
            if first.is_none() {
                first = Some(error);
            } else {
                tracing::error!(task = error.name, error = %error.source, "task failed while stopping");
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// Waits for the rest until the deadline, then aborts it.
    async fn drain(&mut self) -> Vec<TaskError> {
        let mut errors = Vec::new();
        let until = tokio::time::Instant::now() + self.deadline;
        loop {
            match tokio::time::timeout_at(until, self.tasks.join_next_with_id()).await {
                Ok(None) => return errors,
                Ok(Some(ended)) => errors.extend(self.outcome(ended).err()),
                Err(_elapsed) => break,
            }
        }
        let mut names: Vec<&'static str> = self.names.values().copied().collect();
        names.sort_unstable();
        self.tasks.shutdown().await;
        self.names.clear();
        if let Some(name) = names.first().copied() {
            errors.push(TaskError {
                name,
                source: TaskFailure::Overdue {
                    deadline: self.deadline,
                    names,
                },
            });
        }
        errors
    }

    fn outcome(&mut self, ended: Result<(Id, Result<(), TaskCause>), JoinError>) -> Result<(), TaskError> {
        let (id, source) = match ended {
            Ok((id, Ok(()))) => {
                self.names.remove(&id);
                return Ok(());
            }
            Ok((id, Err(cause))) => (id, TaskFailure::Failed(cause)),
            Err(error) => {
                let id = error.id();
                match error.try_into_panic() {
                    Ok(payload) => (id, TaskFailure::Panicked(panic_message(payload.as_ref()))),
                    Err(_cancelled) => (id, TaskFailure::Aborted),
                }
            }
        };
        let name = self.names.remove(&id).unwrap_or("unnamed");
        Err(TaskError { name, source })
    }
}

impl Default for TaskSet {
    fn default() -> Self {
        Self::new()
    }
}

impl Stop {
    /// Completes when the set stops; at once if it has.
    pub async fn stopped(&self) {
        self.0.cancelled().await;
    }

    /// Like [`Stop::stopped`], for where the future must own the signal.
    pub async fn stopped_owned(self) {
        self.0.cancelled_owned().await;
    }

    /// Whether the set is stopping.
    pub fn is_stopped(&self) -> bool {
        self.0.is_cancelled()
    }

    /// A signal that was never connected to a set and never fires, for tests and one-off commands.
    pub fn never() -> Self {
        Self(CancellationToken::new())
    }
}

fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&'static str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "without a message".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::future::{pending, ready};
    use std::io;

    #[tokio::test(start_paused = true)]
    async fn first_failure_stops_the_others_and_is_returned_by_name() {
        let mut tasks = TaskSet::new();
        let (stop, seen) = (tasks.stop_signal(), tasks.stop_signal());
        tasks.spawn("patient", async move {
            stop.stopped().await;
            Ok::<_, Infallible>(())
        });
        tasks.spawn("listener", async { Err(io::Error::other("address in use")) });
        let error = tasks.run_until_first_exit(pending()).await.unwrap_err();
        assert_eq!(error.to_string(), "task listener: address in use");
        assert!(seen.is_stopped());
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_an_error_with_the_name_of_its_task() {
        let mut tasks = TaskSet::new();
        tasks.spawn("rotator", async {
            assert_ne!(1 + 1, 2, "arithmetic");
            Ok::<_, Infallible>(())
        });
        let error = tasks.run_until_first_exit(pending()).await.unwrap_err();
        assert_eq!(error.name, "rotator");
        assert!(matches!(&error.source, TaskFailure::Panicked(text) if text.contains("arithmetic")));
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_waits_for_tasks_that_end_in_time() {
        let mut tasks = TaskSet::with_deadline(Duration::from_secs(5));
        let stop = tasks.stop_signal();
        let (done, ended) = tokio::sync::oneshot::channel();
        tasks.spawn("drain", async move {
            stop.stopped().await;
            tokio::time::sleep(Duration::from_secs(4)).await;
            done.send(()).map_err(|()| io::Error::other("nobody waits"))
        });
        tasks.run_until_first_exit(ready(())).await.unwrap();
        ended.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_past_the_deadline_are_aborted_and_named() {
        let mut tasks = TaskSet::with_deadline(Duration::from_secs(5));
        tasks.spawn("stuck-b", pending::<Result<(), Infallible>>());
        tasks.spawn("stuck-a", pending::<Result<(), Infallible>>());
        let started = tokio::time::Instant::now();
        let error = tasks.run_until_first_exit(ready(())).await.unwrap_err();
        assert_eq!(started.elapsed().as_secs(), 5);
        assert_eq!(
            error.to_string(),
            "task stuck-a: did not stop within 5 s: stuck-a, stuck-b"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_that_end_well_do_not_stop_the_others() {
        let mut tasks = TaskSet::new();
        let stop = tasks.stop_signal();
        tasks.spawn("once", async { Ok::<_, Infallible>(()) });
        tasks.spawn("later", async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            Ok::<_, Infallible>(())
        });
        let started = tokio::time::Instant::now();
        tasks.run_until_first_exit(pending()).await.unwrap();
        assert_eq!(started.elapsed().as_secs(), 60);
        assert!(!stop.is_stopped());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_while_stopping_is_not_lost() {
        let mut tasks = TaskSet::new();
        let stop = tasks.stop_signal();
        tasks.spawn("store", async move {
            stop.stopped_owned().await;
            Err("checkpoint failed")
        });
        let error = tasks.run_until_first_exit(ready(())).await.unwrap_err();
        assert_eq!(error.to_string(), "task store: checkpoint failed");
    }

    #[tokio::test]
    async fn dropping_the_set_aborts_its_tasks() {
        let (alive, dropped) = tokio::sync::oneshot::channel::<()>();
        let mut tasks = TaskSet::new();
        tasks.spawn("held", async move {
            let _alive = alive;
            pending::<Result<(), Infallible>>().await
        });
        drop(tasks);
        assert!(dropped.await.is_err());
    }
}
