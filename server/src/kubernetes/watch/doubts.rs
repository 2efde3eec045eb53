//! Objects that a complete list lacked. Each is asked for, a few at a time and again after a failure, while the watch
//! goes on.

use std::collections::{BTreeSet, VecDeque};
use std::future::pending;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep_until};

use super::follow::{Ask, Told};
use crate::kubernetes::derive::NamespacedName;

/// How many objects are asked for at once.
const ASKED_AT_ONCE: usize = 8;
/// How long after a failure the API server is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(5);

type Answered = (NamespacedName, kube::Result<Told>);

/// See the module's text.
#[derive(Default)]
pub(super) struct Doubts {
    /// Those that an answer counts for.
    open: BTreeSet<NamespacedName>,
    waiting: VecDeque<NamespacedName>,
    answers: FuturesUnordered<BoxFuture<'static, Answered>>,
    unanswered: Vec<NamespacedName>,
    again_at: Option<Instant>,
}

impl Doubts {
    /// A list lacked these, and no others.
    pub(super) fn raise(&mut self, missing: Vec<NamespacedName>) {
        *self = Self {
            open: missing.iter().cloned().collect(),
            waiting: missing.into(),
            ..Self::default()
        };
    }

    /// The watch told of an object: whatever was asked before is late.
    pub(super) fn settle(&mut self, name: &NamespacedName) {
        self.open.remove(name);
    }

    /// The next answer that counts. None is lost when this is dropped.
    pub(super) async fn next(&mut self, ask: &Ask) -> (NamespacedName, Told) {
        loop {
            while self.answers.len() < ASKED_AT_ONCE
                && let Some(name) = self.waiting.pop_front()
            {
                if self.open.contains(&name) {
                    let answer = ask(&name);
                    self.answers.push(Box::pin(async move { (name, answer.await) }));
                }
            }
            tokio::select! {
                Some((name, answer)) = self.answers.next() => match answer {
                    Ok(told) if self.open.remove(&name) => return (name, told),
                    Ok(_late) => {}
                    Err(error) => {
                        tracing::debug!(object = %name, %error, "failed to ask for an object that a list lacked");
                        self.unanswered.push(name);
                        self.again_at.get_or_insert_with(|| Instant::now() + ASK_AGAIN);
                    }
                },
                () = until(self.again_at) => {
                    self.again_at = None;
                    self.waiting.extend(self.unanswered.drain(..));
                }
            }
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}
