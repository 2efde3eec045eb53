//! Many workloads at once, each with one stream on its own connection.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use finial_proto::workload::X509svidResponse;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::samples::Samples;
use super::workload::OpenStream;

/// How many connections are opened at the same time.
const OPENING: usize = 32;

/// How many unread reports wait at most before the streams do.
const QUEUE: usize = 4096;

/// Sums up what matters of a message; 0 when it is not there.
pub type Mark = Arc<dyn Fn(&X509svidResponse) -> u64 + Send + Sync>;

/// See the module's text. Dropping it closes all streams.
pub struct Fleet {
    /// One task a stream; it ends when the stream does.
    tasks: JoinSet<anyhow::Result<()>>,
    news: mpsc::Receiver<News>,
    marks: Vec<u64>,
    /// How many streams show a mark.
    holders: HashMap<u64, usize>,
    /// What all streams agreed on last.
    agreed: u64,
    /// From the connect to the first message, of each stream.
    pub opened: Samples,
    /// From the first connect to the last first message.
    pub opening: Duration,
}

/// How a change reached all streams.
#[derive(Debug)]
pub struct Wave {
    /// From the change to the new message in a stream.
    pub times: Samples,
}

#[derive(Debug)]
struct News {
    stream: usize,
    mark: u64,
    at: Instant,
}

impl Fleet {
    /// Opens `count` streams.
    ///
    /// # Errors
    /// When one of them can not be opened.
    pub async fn open(socket: &Path, count: usize, mark: Mark) -> anyhow::Result<Self> {
        let start = Instant::now();
        let mut opening = JoinSet::new();
        let mut opened = Vec::with_capacity(count);
        let mut streams = Vec::with_capacity(count);
        let socket: Arc<Path> = Arc::from(socket);
        for _ in 0..count {
            if opening.len() >= OPENING {
                take(&mut opening, &mut opened, &mut streams).await?;
            }
            let socket = Arc::clone(&socket);
            opening.spawn(async move {
                let start = Instant::now();
                let stream = OpenStream::open(&socket).await?;
                Ok((start.elapsed(), stream))
            });
        }
        while !opening.is_empty() {
            take(&mut opening, &mut opened, &mut streams).await?;
        }
        let opening = start.elapsed();
        let mut fleet = Self::follow(streams, &mark);
        fleet.opened.extend(opened);
        fleet.opening = opening;
        Ok(fleet)
    }

    /// Waits until all streams show the same, other than what they agreed on before.
    ///
    /// # Errors
    /// When a stream ends.
    pub async fn agree(&mut self, since: Instant) -> anyhow::Result<Wave> {
        let mut arrivals: HashMap<usize, (u64, Instant)> = HashMap::new();
        loop {
            let all = self.marks.first().copied().unwrap_or_default();
            let is_common = self.holders.get(&all) == Some(&self.marks.len());
            if is_common && all != 0 && all != self.agreed {
                self.agreed = all;
                let last = arrivals.into_values().filter(|(mark, _)| *mark == all);
                let times = last.map(|(_, at)| at.saturating_duration_since(since)).collect();
                return Ok(Wave { times });
            }
            tokio::select! {
                biased;
                Some(news) = self.news.recv() => {
                    self.note(news.stream, news.mark);
                    arrivals.insert(news.stream, (news.mark, news.at));
                }
                Some(ended) = self.tasks.join_next() => ended.context("a stream's task")??,
                else => anyhow::bail!("all streams ended"),
            }
        }
    }

    /// How many streams are open.
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Closes all streams and waits until that is done.
    pub async fn close(mut self) {
        self.tasks.shutdown().await;
    }

    fn follow(streams: Vec<OpenStream>, mark: &Mark) -> Self {
        let (sender, news) = mpsc::channel(QUEUE);
        let mut fleet = Fleet {
            tasks: JoinSet::new(),
            news,
            marks: vec![0; streams.len()],
            holders: HashMap::from([(0, streams.len())]),
            agreed: 0,
            opened: Samples::new(),
            opening: Duration::ZERO,
        };
        for (index, stream) in streams.into_iter().enumerate() {
            fleet.note(index, mark(&stream.first));
            let follower = follow_one(index, stream, Arc::clone(mark), sender.clone());
            fleet.tasks.spawn(follower);
        }
        fleet
    }

    fn note(&mut self, stream: usize, mark: u64) {
        let old = std::mem::replace(&mut self.marks[stream], mark);
        *self.holders.entry(mark).or_default() += 1;
        if let Some(count) = self.holders.get_mut(&old) {
            *count -= 1;
            if *count == 0 {
                self.holders.remove(&old);
            }
        }
    }
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet")
            .field("streams", &self.marks.len())
            .finish()
    }
}

type Opened = anyhow::Result<(Duration, OpenStream)>;

async fn take(
    opening: &mut JoinSet<Opened>,
    times: &mut Vec<Duration>,
    streams: &mut Vec<OpenStream>,
) -> anyhow::Result<()> {
    if let Some(done) = opening.join_next().await {
        let (time, stream) = done.context("open a stream")??;
        times.push(time);
        streams.push(stream);
    }
    Ok(())
}

/// Reports each message whose mark differs from the one before; keeps no message.
async fn follow_one(
    index: usize,
    mut stream: OpenStream,
    mark: Mark,
    news: mpsc::Sender<News>,
) -> anyhow::Result<()> {
    let mut last = mark(&std::mem::take(&mut stream.first));
    loop {
        let message = stream.next().await?;
        let at = Instant::now();
        let now = mark(&message);
        drop(message);
        if now == last {
            continue;
        }
        last = now;
        let report = News {
            stream: index,
            mark: now,
            at,
        };
        if news.send(report).await.is_err() {
            return Ok(());
        }
    }
}
