//! One list of pods for all callers: at most one request at a time, and at most one in an interval.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

use super::super::off_thread;
use super::ask::AskError;
use super::kubelet::FetchPods;
use super::pod_list::{PodList, PodsError};

/// Asks the kubelet on behalf of many.
#[derive(Debug)]
pub(super) struct Poller {
    kubelet: Arc<dyn FetchPods>,
    interval: Duration,
    attempts: u32,
    last: Mutex<Option<Answer>>,
}

/// What the kubelet said last, and when.
#[derive(Clone, Debug)]
struct Answer {
    at: Instant,
    number: u64,
    pods: Result<Arc<PodList>, Arc<AskError>>,
}

/// Why waiting ended without what was waited for.
#[derive(Debug, thiserror::Error)]
pub(super) enum Waited {
    #[error("{0}")]
    Kubelet(Arc<AskError>),
    #[error("{0}")]
    Pods(#[from] PodsError),
    #[error("not listed after {0} answers")]
    InVain(u32),
}

impl Poller {
    pub(super) fn new(kubelet: Arc<dyn FetchPods>, interval: Duration, attempts: u32) -> Self {
        Self {
            kubelet,
            interval,
            attempts,
            last: Mutex::new(None),
        }
    }

    /// Asks until `look` finds something; it is shown each list once. May be dropped at any time.
    ///
    /// # Errors
    /// At once when the kubelet does not answer, or `look` fails.
    pub(super) async fn wait_for<T>(
        &self,
        look: impl Fn(&PodList) -> Result<Option<T>, PodsError>,
    ) -> Result<T, Waited> {
        let mut seen = None;
        for _attempt in 0..self.attempts {
            let answer = self.newer_than(seen).await;
            seen = Some(answer.number);
            let pods = answer.pods.map_err(Waited::Kubelet)?;
            if let Some(found) = look(&pods)? {
                return Ok(found);
            }
        }
        Err(Waited::InVain(self.attempts))
    }

    /// Looks once, at a list that is no older than this or an interval; what is not found there is looked for once more,
    /// in the next one. May be dropped at any time.
    ///
    /// # Errors
    /// When the kubelet does not answer, or `look` fails.
    pub(super) async fn look<T>(
        &self,
        max_age: Duration,
        look: impl Fn(&PodList) -> Result<Option<T>, PodsError>,
    ) -> Result<Option<T>, Waited> {
        let answer = match self.held(max_age).await {
            Some(answer) => answer,
            None => return Ok(look(&self.told(None).await?.1)?),
        };
        let (number, pods) = answer;
        match look(&pods)? {
            Some(found) => Ok(Some(found)),
            None => Ok(look(&self.told(Some(number)).await?.1)?),
        }
    }

    async fn told(&self, seen: Option<u64>) -> Result<(u64, Arc<PodList>), Waited> {
        let answer = self.newer_than(seen).await;
        Ok((answer.number, answer.pods.map_err(Waited::Kubelet)?))
    }

    /// The last list, if it is no older than this.
    async fn held(&self, max_age: Duration) -> Option<(u64, Arc<PodList>)> {
        let last = self.last.lock().await;
        let answer = last.as_ref()?;
        let pods = answer.pods.as_ref().ok()?;
        (answer.at.elapsed() < max_age.max(self.interval)).then(|| (answer.number, Arc::clone(pods)))
    }

    /// An answer that is not this one, and is no older than an interval.
    async fn newer_than(&self, seen: Option<u64>) -> Answer {
        if let Some(next) = self.next_after(seen).await {
            // Those who have not seen the last answer can have it meanwhile.
            sleep_until(next).await;
        }
        let mut last = self.last.lock().await;
        if let Some(answer) = last.as_ref().filter(|answer| self.is_fresh(answer))
            && Some(answer.number) != seen
        {
            return answer.clone();
        }
        let pods = self.fetch().await;
        let number = last.as_ref().map_or(0, |answer| answer.number + 1);
        let answer = Answer {
            at: Instant::now(),
            number,
            pods: pods.map(Arc::new).map_err(Arc::new),
        };
        *last = Some(answer.clone());
        answer
    }

    async fn fetch(&self) -> Result<PodList, AskError> {
        let text = self.kubelet.fetch().await?;
        let parsed = off_thread(move || Ok(PodList::parse(&text))).await;
        parsed
            .map_err(|_cut_off| AskError::CutOff)?
            .map_err(AskError::Malformed)
    }

    /// When the next request may be made, for one who has seen the last answer.
    async fn next_after(&self, seen: Option<u64>) -> Option<Instant> {
        let last = self.last.lock().await;
        let answer = last.as_ref().filter(|answer| Some(answer.number) == seen)?;
        Some(answer.at + self.interval)
    }

    fn is_fresh(&self, answer: &Answer) -> bool {
        answer.at.elapsed() < self.interval
    }
}
