//! Pods that somebody else names, as the kubelet of this node lists them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use finial_identity::selector::Selector;
use time::OffsetDateTime;
use tokio::time::{Instant, sleep_until};

use super::AttestorError;
use super::pods::PodLookup;
use crate::socket_tree::PodRecord;

/// How often it is looked whether a pod is still there, and how long after a list without it another must have been
/// asked for before it counts as gone: a kubelet that has just been started anew does not know its pods yet.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How a pod is named: by namespace and name, by UID, or by both, which then must be the same pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodReference {
    /// Namespace and name.
    pub name: Option<(String, String)>,
    /// The UID, with or without dashes.
    pub uid: Option<String>,
}

/// A pod as the kubelet lists it.
#[derive(Clone, Debug)]
pub struct ListedPod {
    /// Which one it is.
    pub record: PodRecord,
    /// When the kubelet took it on, as far as it says.
    pub started_at: Option<OffsetDateTime>,
    /// What holds for each of its containers alike.
    pub facts: Vec<Selector>,
}

/// Whether a pod is there, by what the kubelet says. Once it is gone it stays gone: another of its name is another pod.
#[derive(Debug)]
pub(super) struct Listing {
    kubelet: Arc<dyn PodLookup>,
    pod: PodReference,
    is_gone: AtomicBool,
    watch: Mutex<Watch>,
}

#[derive(Debug)]
struct Watch {
    next_look: Instant,
    /// When a list was heard that had it not, the first since one had it.
    unlisted_since: Option<Instant>,
}

impl Listing {
    /// Of the pod with this UID, which is listed now.
    pub(super) fn new(kubelet: Arc<dyn PodLookup>, uid: &str) -> Self {
        Self {
            kubelet,
            pod: PodReference {
                uid: Some(uid.to_owned()),
                ..PodReference::default()
            },
            is_gone: AtomicBool::new(false),
            watch: Mutex::new(Watch {
                next_look: Instant::now() + LOOK_EVERY,
                unlisted_since: None,
            }),
        }
    }

    pub(super) fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Relaxed)
    }

    /// What holds for the pod now; none when it is gone. Waits while one list alone has it not.
    ///
    /// # Errors
    /// When the kubelet does not tell.
    pub(super) async fn facts(&self) -> Result<Option<Vec<Selector>>, AttestorError> {
        while !self.is_gone() {
            let asked = Instant::now();
            let found = self.kubelet.listed(&self.pod, Duration::ZERO).await?;
            let settled = self.note(asked, found.is_some());
            if let Some(pod) = found {
                return Ok((!self.is_gone()).then_some(pod.facts));
            }
            sleep_until(settled).await;
        }
        Ok(None)
    }

    /// Completes when the pod is gone. A kubelet that does not answer says nothing about that.
    pub(super) async fn gone(&self) {
        while !self.is_gone() {
            let next_look = self.watch().next_look;
            sleep_until(next_look).await;
            let asked = Instant::now();
            let heard = self.kubelet.listed(&self.pod, LOOK_EVERY).await;
            let noted = heard.map(|found| (found.is_some(), self.note(asked, found.is_some())));
            self.watch().next_look = match noted {
                // Whoever heard first that it is not listed: the next list decides from then on.
                Ok((false, settled)) => settled,
                Ok((true, _)) | Err(_) => Instant::now() + LOOK_EVERY,
            };
        }
    }

    /// Takes in what a list said that was asked for at this time. However many ask at once, a list counts once: gone is
    /// what a second list has not either, asked for [`LOOK_EVERY`] after the first was heard. Tells from when on it is.
    fn note(&self, asked: Instant, is_listed: bool) -> Instant {
        let mut watch = self.watch();
        let now = Instant::now();
        if is_listed {
            watch.unlisted_since = None;
            return now;
        }
        let settled = *watch.unlisted_since.get_or_insert(now) + LOOK_EVERY;
        if asked >= settled {
            self.is_gone.store(true, Ordering::Relaxed);
        }
        settled
    }

    fn watch(&self) -> std::sync::MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::super::pods::tests::pod;
    use super::*;

    /// Answers in this order, the last one for ever: listed, not listed, or no answer.
    #[derive(Debug)]
    struct Answers(Mutex<Vec<Option<bool>>>);

    #[async_trait]
    impl PodLookup for Answers {
        async fn by_uid(&self, _uid: &str) -> Result<Vec<Selector>, AttestorError> {
            Err(AttestorError::CutOff)
        }

        async fn listed(
            &self,
            _meant: &PodReference,
            _max_age: Duration,
        ) -> Result<Option<ListedPod>, AttestorError> {
            let mut answers = self.0.lock().unwrap();
            let answer = match answers.len() {
                1 => answers[0],
                _ => answers.remove(0),
            };
            let listed = answer.ok_or(AttestorError::CutOff)?;
            Ok(listed.then(|| ListedPod {
                record: pod("u").record().clone(),
                started_at: None,
                facts: Vec::new(),
            }))
        }
    }

    fn listing(answers: &[Option<bool>]) -> Listing {
        Listing::new(Arc::new(Answers(Mutex::new(answers.to_vec()))), "u")
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_is_gone_when_it_is_not_listed_twice_in_a_row() {
        let begun = Instant::now();
        let (yes, no, untold) = (Some(true), Some(false), None);
        listing(&[yes, no, yes, no, untold, no]).gone().await;
        assert_eq!(begun.elapsed(), LOOK_EVERY * 6);
        let silent = listing(&[untold]);
        tokio::select! {
            () = silent.gone() => panic!("a kubelet that is away takes no pod away"),
            () = tokio::time::sleep(Duration::from_secs(3600)) => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn looking_again_and_again_does_not_put_the_next_look_off() {
        let listing = listing(&[Some(false)]);
        let begun = Instant::now();
        while !listing.is_gone() {
            tokio::select! {
                () = listing.gone() => {}
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
        assert_eq!(begun.elapsed(), LOOK_EVERY * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_that_another_call_heard_of_first_is_told_as_soon_as_it_is_sure() {
        let listing = listing(&[Some(false)]);
        let begun = Instant::now();
        tokio::time::sleep(Duration::from_secs(3)).await;
        let given_up = tokio::time::timeout(Duration::from_secs(1), listing.facts()).await;
        assert!(given_up.is_err());
        listing.gone().await;
        assert_eq!(begun.elapsed(), Duration::from_secs(3) + LOOK_EVERY);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_gone_stays_gone_whoever_is_listed_afterwards() {
        let listing = listing(&[Some(false), Some(false), Some(true)]);
        let begun = Instant::now();
        assert_eq!(listing.facts().await.unwrap(), None);
        assert_eq!(begun.elapsed(), LOOK_EVERY);
        assert_eq!(listing.facts().await.unwrap(), None);
        listing.gone().await;
        let untold = self::listing(&[None, Some(true)]);
        assert!(untold.facts().await.is_err() && !untold.is_gone());
        assert!(untold.facts().await.unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_one_list_has_not_is_asked_for_again_before_anything_is_said_of_it() {
        let begun = Instant::now();
        let once = listing(&[Some(false), Some(true)]);
        assert!(once.facts().await.unwrap().is_some() && !once.is_gone());
        assert_eq!(begun.elapsed(), LOOK_EVERY);
        // Two who ask at once hear the same list, and whoever waits for its end a third time.
        let (no, yes) = (Some(false), Some(true));
        let several = listing(&[no, no, yes]);
        tokio::select! {
            (one, other) = async { tokio::join!(several.facts(), several.facts()) } => {
                assert!(one.unwrap().is_some() && other.unwrap().is_some());
            }
            () = several.gone() => panic!("gone by what two were told at once"),
        }
        // A silence says nothing, and a list in between begins anew.
        let interrupted = listing(&[no, None, yes, no, yes]);
        assert!(interrupted.facts().await.is_err());
        assert!(interrupted.facts().await.unwrap().is_some());
        assert!(interrupted.facts().await.unwrap().is_some() && !interrupted.is_gone());
    }
}
