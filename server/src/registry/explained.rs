//! What a source of derived entries reports to an operator about one pod. The source's own task answers, so that the
//! answer is of one moment; questions reach it through the registry.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use finial_identity::entry::Entry;
use finial_identity::spiffe_id::SpiffeId;
use thiserror::Error;
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::Registry;

/// How many questions may wait for one source.
const WAITING: usize = 8;
/// How long a question may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A question about a pod, for the source that has it.
#[derive(Debug)]
pub struct PodQuestion {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// Where the answer goes.
    pub answer: oneshot::Sender<PodReport>,
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AskError {
    /// There is no such source.
    #[error("no cluster of this name is configured: {0:?}")]
    Unknown(String),
    /// It does not answer in time.
    #[error("cluster {0:?} does not answer")]
    Silent(String),
}

/// What a source knows about a pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodReport {
    /// When the API server last sent an event about pods.
    pub heard_at: Option<OffsetDateTime>,
    /// When all pods were last listed.
    pub listed_at: Option<OffsetDateTime>,
    /// How many pods there are.
    pub pods: usize,
    /// The pod; none when it is not known.
    pub pod: Option<PodFacts>,
    /// Its node; none before it is bound.
    pub node: Option<NodeReport>,
    /// What each rule makes of the pod, what concerns it first.
    pub rules: Vec<RuleReport>,
}

/// What is known of a pod itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodFacts {
    /// Its uid.
    pub uid: String,
    /// `Running` and the like.
    pub phase: String,
    /// Its service account.
    pub service_account: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The labels of its namespace; none when the namespace is not known.
    pub namespace_labels: Option<BTreeMap<String, String>>,
    /// Whether rules pass over its namespace.
    pub is_namespace_ignored: bool,
    /// Whether it is being deleted.
    pub is_being_deleted: bool,
    /// When it was made, by the cluster's clock.
    pub created_at: Option<OffsetDateTime>,
    /// When it was bound to its node, by the cluster's clock.
    pub scheduled_at: Option<OffsetDateTime>,
    /// When this server first saw it.
    pub seen_at: Option<OffsetDateTime>,
    /// When this server first saw it bound.
    pub seen_bound_at: Option<OffsetDateTime>,
    /// When this server last saw it change.
    pub seen_changed_at: Option<OffsetDateTime>,
    /// Selectors that hold for it for certain, as `type:value`.
    pub selectors: Vec<String>,
}

/// What is known of a pod's node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeReport {
    /// Its name.
    pub name: String,
    /// Whether the node object is known.
    pub is_known: bool,
    /// The parent of the entries of its pods, or why there is none.
    pub parent_id: Result<SpiffeId, String>,
}

/// What a rule makes of a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct RuleReport {
    /// The rule's name.
    pub name: Arc<str>,
    /// Whether it counts only where no other rule does.
    pub is_fallback: bool,
    /// What it makes of the pod.
    pub outcome: RuleOutcome,
}

/// What a rule makes of a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum RuleOutcome {
    /// It declares this entry.
    Matches(Arc<Entry>),
    /// It declares this entry, and something else declares the same and counts.
    Masked {
        /// The entry.
        entry: Arc<Entry>,
        /// The object, or the stored entry, that counts.
        by: String,
    },
    /// It is a fallback, and these rules give the pod an entry.
    FallbackNotUsed(Vec<Arc<str>>),
    /// The pod has no node yet.
    WaitsForNode,
    /// It selects the pod, and no entry can be made.
    Broken(String),
    /// One label differs.
    NearlyMatches(LabelDifference),
    /// It does not select the pod, for this reason among others.
    DoesNotMatch(String),
    /// It has this class, which is not the one of this server.
    OtherClass(String),
}

/// A label that is not what a rule wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelDifference {
    /// Whether it is a label of the namespace.
    pub of_namespace: bool,
    /// Its key.
    pub key: String,
    /// What the rule wants, in words.
    pub wanted: String,
    /// Its value; none when the label is not there.
    pub found: Option<String>,
}

impl std::fmt::Display for LabelDifference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let whose = if self.of_namespace {
            "namespace's label"
        } else {
            "label"
        };
        match &self.found {
            Some(found) => write!(f, "{whose} {} is {found:?}, wanted {}", self.key, self.wanted),
            None => write!(f, "{whose} {} is not there, wanted {}", self.key, self.wanted),
        }
    }
}

impl Registry {
    /// Where questions for a source arrive. A second call takes the place of the first.
    pub fn questions(&self, source: &str) -> mpsc::Receiver<PodQuestion> {
        let (sender, receiver) = mpsc::channel(WAITING);
        let mut askable = self.askable.write().unwrap_or_else(PoisonError::into_inner);
        askable.insert(source.into(), sender);
        receiver
    }

    /// Asks a source about a pod.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn ask(&self, source: &str, namespace: &str, name: &str) -> Result<PodReport, AskError> {
        let sender = {
            let askable = self.askable.read().unwrap_or_else(PoisonError::into_inner);
            askable.get(source).cloned()
        };
        let Some(sender) = sender else {
            return Err(AskError::Unknown(source.to_owned()));
        };
        let (answer, answered) = oneshot::channel();
        let question = PodQuestion {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            answer,
        };
        let asked = async {
            sender.send(question).await.ok()?;
            answered.await.ok()
        };
        match timeout(PATIENCE, asked).await {
            Ok(Some(report)) => Ok(report),
            _ => Err(AskError::Silent(source.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use finial_identity::process::Clock;

    use super::*;
    use crate::store::testing::domain;
    use crate::store::{SqliteStore, Store};

    #[tokio::test(start_paused = true)]
    async fn a_question_is_answered_by_its_source_or_not_at_all() {
        let store: Arc<dyn Store> =
            Arc::new(SqliteStore::in_memory(&domain(), Clock::system()).await.unwrap());
        let registry = Registry::load(store, &domain(), Clock::system()).await.unwrap();
        let asked = registry.ask("demo", "shop", "a").await;
        assert_eq!(asked, Err(AskError::Unknown("demo".to_owned())));
        let mut questions = registry.questions("demo");
        let answered = async {
            let question = questions.recv().await.unwrap();
            assert_eq!((&*question.namespace, &*question.name), ("shop", "a"));
            let report = PodReport {
                pods: 7,
                ..PodReport::default()
            };
            question.answer.send(report).unwrap();
        };
        let (report, ()) = tokio::join!(registry.ask("demo", "shop", "a"), answered);
        assert_eq!(report.unwrap().pods, 7);
        let asked = registry.ask("demo", "shop", "a").await;
        assert_eq!(asked, Err(AskError::Silent("demo".to_owned())), "nobody listens");
    }
}
