//! The one writer. Jobs that wait when a transaction begins share it, each under a savepoint, and
//! are answered after its commit; so a thousand small writes need only a few syncs of the disk.

use std::sync::Arc;

use finial_identity::process::clock::Clock;
use finial_identity::process::tasks::Stop;
use finial_identity::spiffe_id::TrustDomain;
use futures_util::future::BoxFuture;
use sqlx::{AssertSqlSafe, Connection, Row, SqliteConnection};
use tokio::sync::{mpsc, oneshot};

use super::history::{self, History};
use crate::store::{Change, Revision, StoreError, What};

/// Jobs that one transaction takes at most.
const MAX_JOBS: usize = 512;
/// Jobs that wait at most; then callers wait to hand theirs in.
const QUEUE: usize = 4096;

/// Hands jobs to the writer's task.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    jobs: mpsc::Sender<Box<dyn Job>>,
}

/// What a job works on: the connection inside the transaction, and the changes it makes.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) connection: SqliteConnection,
    pub(super) trust_domain: TrustDomain,
    pub(super) clock: Clock,
    head: Revision,
    is_head_known: bool,
    staged: Vec<Change>,
}

impl Work {
    pub(super) fn new(connection: SqliteConnection, trust_domain: TrustDomain, clock: Clock) -> Self {
        Self {
            connection,
            trust_domain,
            clock,
            head: Revision::START,
            is_head_known: false,
            staged: Vec::new(),
        }
    }

    /// Gives the next revision to a change that the job made.
    pub(super) fn record(&mut self, what: What) {
        self.head = Revision {
            n: self.head.n + 1,
            mark: rand::random(),
        };
        self.staged.push(Change {
            revision: self.head,
            what,
        });
    }

    /// The present in Unix seconds.
    pub(super) fn now(&self) -> i64 {
        self.clock.now().unix_timestamp()
    }

    async fn execute(&mut self, statement: &'static str) -> Result<(), StoreError> {
        sqlx::query(AssertSqlSafe(statement))
            .execute(&mut self.connection)
            .await?;
        Ok(())
    }
}

impl Writer {
    /// The writer and its queue, which [`run`] works off.
    pub(super) fn new() -> (Self, mpsc::Receiver<Box<dyn Job>>) {
        let (jobs, queue) = mpsc::channel(QUEUE);
        (Self { jobs }, queue)
    }

    /// Completes once no job is taken any more.
    pub(super) async fn closed(&self) {
        self.jobs.closed().await;
    }

    /// Runs a job and waits for the commit. An error of the job undoes what it did, and nothing else.
    /// The job runs to its end also when the caller goes away.
    pub(super) async fn write<T, F>(&self, job: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'w> FnOnce(&'w mut Work) -> BoxFuture<'w, Result<T, StoreError>> + Send + 'static,
    {
        let (answer, result) = oneshot::channel();
        let job = Box::new(TypedJob { job, answer });
        self.jobs.send(job).await.map_err(|_closed| StoreError::Closed)?;
        result.await.map_err(|_dropped| StoreError::Closed)?
    }
}

/// Works off the queue until `stop`, then what is left in it, and closes the connection.
pub(super) async fn run(
    mut work: Work,
    mut queue: mpsc::Receiver<Box<dyn Job>>,
    history: Arc<History>,
    stop: Stop,
) -> Result<(), StoreError> {
    loop {
        let first = tokio::select! {
            biased;
            job = queue.recv() => job,
            () = stop.stopped(), if !queue.is_closed() => {
                queue.close();
                continue;
            }
        };
        let Some(first) = first else { break };
        // Lets every caller that is ready hand in its job before the transaction begins.
        tokio::task::yield_now().await;
        let mut jobs = vec![first];
        while jobs.len() < MAX_JOBS
            && let Ok(job) = queue.try_recv()
        {
            jobs.push(job);
        }
        commit(&mut work, jobs, &history).await;
    }
    work.connection.close().await?;
    Ok(())
}

/// One transaction for all jobs.
async fn commit(work: &mut Work, jobs: Vec<Box<dyn Job>>, history: &History) {
    if let Err(error) = begin(work, history).await {
        for job in jobs {
            job.refuse(error.clone());
        }
        return;
    }
    // A job that is alone needs no savepoint: what undoes the transaction undoes the job.
    let is_alone = jobs.len() == 1;
    let mut answers = Vec::with_capacity(jobs.len());
    let mut broken = None;
    for job in jobs {
        if let Some(error) = &broken {
            job.refuse(StoreError::clone(error));
            continue;
        }
        let ran = if is_alone {
            run_alone(work, job).await
        } else {
            run_job(work, job).await
        };
        match ran {
            Ok(answer) => answers.push(answer),
            Err((answer, error)) => {
                answers.push(answer);
                broken = Some(error);
            }
        }
    }
    let committed = match broken {
        None => finish(work, history).await,
        Some(error) => Err(error),
    };
    match &committed {
        Ok(()) => history.publish(std::mem::take(&mut work.staged)),
        Err(error) => {
            tracing::error!(%error, jobs = answers.len(), "store transaction failed");
            undo(work).await;
        }
    }
    for answer in answers {
        answer.send(committed.clone());
    }
}

const BEGIN: &str = "BEGIN IMMEDIATE";

async fn begin(work: &mut Work, history: &History) -> Result<(), StoreError> {
    if let Err(error) = work.execute(BEGIN).await {
        // A transaction that could neither be committed nor rolled back may still be open.
        tracing::warn!(%error, "store transaction did not begin, trying once more");
        undo(work).await;
        work.execute(BEGIN).await?;
    }
    if work.is_head_known {
        return Ok(());
    }
    match read_head(&mut work.connection).await {
        Ok(head) => {
            history.meet(head);
            work.head = head;
            work.is_head_known = true;
            Ok(())
        }
        Err(error) => {
            undo(work).await;
            Err(error)
        }
    }
}

/// Rolls back; the next transaction reads again where the store stands.
async fn undo(work: &mut Work) {
    work.staged.clear();
    work.is_head_known = false;
    // SQLite has rolled back by itself after some errors, then this one says so.
    let _ = work.execute("ROLLBACK").await;
}

/// The revision that is stored.
pub(super) async fn read_head(connection: &mut SqliteConnection) -> Result<Revision, StoreError> {
    let row = sqlx::query("SELECT n, mark FROM revision")
        .fetch_one(connection)
        .await?;
    Ok(Revision {
        n: row.try_get::<i64, _>(0)?.cast_unsigned(),
        mark: row.try_get::<i64, _>(1)?.cast_unsigned(),
    })
}

/// Runs one job under a savepoint. An error means that the transaction itself is lost.
async fn run_job(
    work: &mut Work,
    job: Box<dyn Job>,
) -> Result<Box<dyn Answer>, (Box<dyn Answer>, StoreError)> {
    let (before, staged) = (work.head, work.staged.len());
    if let Err(error) = work.execute("SAVEPOINT job").await {
        return Err((job.into_answer(error.clone()), error));
    }
    let answer = job.run(work).await;
    if answer.error().is_some() {
        work.head = before;
        work.staged.truncate(staged);
        if let Err(error) = work.execute("ROLLBACK TO job").await {
            return Err((answer, error));
        }
    }
    match work.execute("RELEASE job").await {
        Ok(()) => Ok(answer),
        Err(error) => Err((answer, error)),
    }
}

/// Runs the only job of a transaction. Its error is that of the transaction.
async fn run_alone(
    work: &mut Work,
    job: Box<dyn Job>,
) -> Result<Box<dyn Answer>, (Box<dyn Answer>, StoreError)> {
    let answer = job.run(work).await;
    match answer.error() {
        None => Ok(answer),
        Some(error) => Err((answer, error)),
    }
}

async fn finish(work: &mut Work, history: &History) -> Result<(), StoreError> {
    if !work.staged.is_empty() {
        history::insert(&mut work.connection, &work.staged).await?;
        let before = history.committed();
        let updated = sqlx::query("UPDATE revision SET n = ?, mark = ? WHERE n = ? AND mark = ?")
            .bind(work.head.n.cast_signed())
            .bind(work.head.mark.cast_signed())
            .bind(before.n.cast_signed())
            .bind(before.mark.cast_signed())
            .execute(&mut work.connection)
            .await?;
        if updated.rows_affected() != 1 {
            let moved = std::io::Error::other(format!(
                "another process moved the store on from revision {before}"
            ));
            return Err(StoreError::Internal(Arc::new(moved)));
        }
        history::prune(&mut work.connection, before, work.head).await?;
    }
    work.execute("COMMIT").await
}

/// A job without its type.
pub(super) trait Job: Send {
    fn run<'w>(self: Box<Self>, work: &'w mut Work) -> BoxFuture<'w, Box<dyn Answer>>;
    /// Answers a job that did not run.
    fn refuse(self: Box<Self>, error: StoreError);
    fn into_answer(self: Box<Self>, error: StoreError) -> Box<dyn Answer>;
}

/// A result that waits for the commit.
pub(super) trait Answer: Send {
    /// The job's error.
    fn error(&self) -> Option<StoreError>;
    fn send(self: Box<Self>, committed: Result<(), StoreError>);
}

struct TypedJob<T, F> {
    job: F,
    answer: oneshot::Sender<Result<T, StoreError>>,
}

struct TypedAnswer<T> {
    result: Result<T, StoreError>,
    answer: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> Job for TypedJob<T, F>
where
    T: Send + 'static,
    F: for<'w> FnOnce(&'w mut Work) -> BoxFuture<'w, Result<T, StoreError>> + Send + 'static,
{
    fn run<'w>(self: Box<Self>, work: &'w mut Work) -> BoxFuture<'w, Box<dyn Answer>> {
        Box::pin(async move {
            let Self { job, answer } = *self;
            let result = job(work).await;
            Box::new(TypedAnswer { result, answer }) as Box<dyn Answer>
        })
    }

    fn refuse(self: Box<Self>, error: StoreError) {
        // Fails only when the caller is gone.
        let _ = self.answer.send(Err(error));
    }

    fn into_answer(self: Box<Self>, error: StoreError) -> Box<dyn Answer> {
        Box::new(TypedAnswer {
            result: Err(error),
            answer: self.answer,
        })
    }
}

impl<T: Send + 'static> Answer for TypedAnswer<T> {
    fn error(&self) -> Option<StoreError> {
        self.result.as_ref().err().cloned()
    }

    fn send(self: Box<Self>, committed: Result<(), StoreError>) {
        let result = match committed {
            Ok(()) => self.result,
            // The job's own error tells more than that of the transaction.
            Err(error) => self.result.and(Err(error)),
        };
        // Fails only when the caller is gone.
        let _ = self.answer.send(result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_transaction_that_was_left_open_does_not_stop_the_next() {
        let mut connection = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        sqlx::raw_sql("CREATE TABLE revision (n, mark); INSERT INTO revision VALUES (0, 0)")
            .execute(&mut connection)
            .await
            .unwrap();
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        let mut work = Work::new(connection, trust_domain, Clock::system());
        work.execute("BEGIN").await.unwrap();
        let history = History::new(Revision::START);
        begin(&mut work, &history).await.unwrap();
        assert!(work.is_head_known);
    }
}
