//! The log of changes: in the table `changes`, and the latest ones with their content in memory.

use std::collections::VecDeque;
use std::sync::{PoisonError, RwLock};

use async_trait::async_trait;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use sqlx::{AssertSqlSafe, Connection, Row, SqliteConnection};
use tokio::sync::watch;

use super::{SqliteStore, agents, bundles, entries, writer};
use crate::store::{Change, ChangeLog, HistoryError, Revision, StoreError, What};

/// Changes that the table keeps.
const KEPT: u64 = 100_000;
/// The table is pruned once for so many changes.
const PRUNE_STEP: u64 = 1_000;
/// Changes that are kept in memory with their content.
const RECENT: usize = 8_192;
/// Changes that one answer carries at most.
const PAGE: usize = 4_096;

/// The latest changes.
#[derive(Debug)]
pub(super) struct History {
    recent: RwLock<Recent>,
    committed: watch::Sender<Revision>,
}

#[derive(Debug)]
struct Recent {
    /// The revision before the first of `changes`.
    before: Revision,
    changes: VecDeque<Change>,
}

impl History {
    pub(super) fn new(head: Revision) -> Self {
        Self {
            recent: RwLock::new(Recent {
                before: head,
                changes: VecDeque::new(),
            }),
            committed: watch::Sender::new(head),
        }
    }

    pub(super) fn committed(&self) -> Revision {
        *self.committed.borrow()
    }

    /// Takes the stored revision as the last one where it is not what this process wrote last.
    pub(super) fn meet(&self, head: Revision) {
        if head != self.committed() {
            *self.recent.write().unwrap_or_else(PoisonError::into_inner) = Recent {
                before: head,
                changes: VecDeque::new(),
            };
            self.committed.send_replace(head);
        }
    }

    /// Announces changes that are committed.
    pub(super) fn publish(&self, changes: Vec<Change>) {
        let Some(head) = changes.last().map(|change| change.revision) else {
            return;
        };
        {
            let mut recent = self.recent.write().unwrap_or_else(PoisonError::into_inner);
            recent.changes.extend(changes);
            while recent.changes.len() > RECENT
                && let Some(oldest) = recent.changes.pop_front()
            {
                recent.before = oldest.revision;
            }
        }
        self.committed.send_replace(head);
    }

    /// The changes after `after`, if memory reaches back so far. `Err` carries the head.
    fn recent_since(&self, after: Revision) -> Option<Result<Vec<Change>, Revision>> {
        let recent = self.recent.read().unwrap_or_else(PoisonError::into_inner);
        let head = recent
            .changes
            .back()
            .map_or(recent.before, |change| change.revision);
        if after == head {
            return Some(Ok(Vec::new()));
        }
        if after.n >= head.n {
            return Some(Err(head));
        }
        let skipped = usize::try_from(after.n.checked_sub(recent.before.n)?).ok()?;
        let found = match skipped.checked_sub(1) {
            None => recent.before,
            Some(index) => recent.changes.get(index)?.revision,
        };
        if found != after {
            return Some(Err(head));
        }
        Some(Ok(recent
            .changes
            .iter()
            .skip(skipped)
            .take(PAGE)
            .cloned()
            .collect()))
    }
}

#[async_trait]
impl ChangeLog for SqliteStore {
    async fn changes_since(&self, after: Revision) -> Result<Vec<Change>, HistoryError> {
        match self.history.recent_since(after) {
            Some(Ok(changes)) => return Ok(changes),
            Some(Err(head)) => return Err(HistoryError::Other { asked: after, head }),
            None => {}
        }
        let mut connection = self.readers.acquire().await?;
        // One read transaction: the states are those of one moment, not older than the changes.
        let mut transaction = connection.begin().await.map_err(StoreError::from)?;
        stored_since(&mut transaction, after, &self.trust_domain).await
    }

    async fn entries_deleted_since(&self, after: u64) -> Result<usize, StoreError> {
        let row = sqlx::query("SELECT COUNT(DISTINCT key) FROM changes WHERE n > ? AND kind = ?")
            .bind(after.cast_signed())
            .bind(Kind::EntryDeleted as i64)
            .fetch_one(&mut *self.readers.acquire().await?)
            .await?;
        Ok(usize::try_from(row.try_get::<i64, _>(0)?).unwrap_or(0))
    }

    fn committed(&self) -> watch::Receiver<Revision> {
        self.history.committed.subscribe()
    }
}

async fn stored_since(
    connection: &mut SqliteConnection,
    after: Revision,
    trust_domain: &TrustDomain,
) -> Result<Vec<Change>, HistoryError> {
    let head = writer::read_head(connection).await?;
    let asked = after;
    if after.n > head.n {
        return Err(HistoryError::Other { asked, head });
    }
    let rows = sqlx::query("SELECT n, mark, kind, key FROM changes WHERE n >= ? ORDER BY n LIMIT ?")
        .bind(after.n.cast_signed())
        .bind(PAGE as i64)
        .fetch_all(&mut *connection)
        .await
        .map_err(StoreError::from)?;
    let mut logged = Vec::with_capacity(rows.len());
    for row in rows {
        logged.push(Logged::read(&row).map_err(StoreError::from)?);
    }
    // Before the first change there is no row.
    let continued = match logged.first() {
        Some(first) if first.revision.n == after.n => {
            let known = first.revision;
            logged.remove(0);
            known
        }
        Some(first) if first.revision.n == after.n + 1 && after.n == 0 => Revision::START,
        Some(first) => {
            let oldest = first.revision.n;
            return Err(HistoryError::Pruned { asked, oldest });
        }
        None => head,
    };
    if continued != after {
        return Err(HistoryError::Other { asked, head });
    }
    let mut changes = Vec::with_capacity(logged.len());
    for logged in logged {
        changes.push(logged.load(connection, trust_domain).await?);
    }
    Ok(changes)
}

/// Writes changes into the table.
pub(super) async fn insert(connection: &mut SqliteConnection, changes: &[Change]) -> Result<(), StoreError> {
    for chunk in super::chunks(changes) {
        let statement = format!(
            "INSERT INTO changes (n, mark, kind, key) VALUES {}",
            super::placeholders(4, chunk.len())
        );
        let mut query = sqlx::query(AssertSqlSafe(statement));
        for change in chunk {
            let (kind, key) = Kind::of(&change.what);
            query = query
                .bind(change.revision.n.cast_signed())
                .bind(change.revision.mark.cast_signed())
                .bind(kind as i64)
                .bind(key);
        }
        query.execute(&mut *connection).await?;
    }
    Ok(())
}

/// Deletes what is too old, once for each [`PRUNE_STEP`] that the head passes.
pub(super) async fn prune(
    connection: &mut SqliteConnection,
    before: Revision,
    head: Revision,
) -> Result<(), StoreError> {
    if before.n / PRUNE_STEP == head.n / PRUNE_STEP || head.n <= KEPT {
        return Ok(());
    }
    sqlx::query("DELETE FROM changes WHERE n <= ?")
        .bind((head.n - KEPT).cast_signed())
        .execute(connection)
        .await?;
    Ok(())
}

/// The kinds of changes as the table has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    EntryPut = 1,
    EntryDeleted = 2,
    AgentPut = 3,
    AgentDeleted = 4,
    BundlePut = 5,
    BundleDeleted = 6,
}

impl Kind {
    fn of(what: &What) -> (Self, &str) {
        match what {
            What::EntryPut(stored) => (Self::EntryPut, &stored.entry.id),
            What::EntryDeleted(id) => (Self::EntryDeleted, id),
            What::AgentPut(agent) => (Self::AgentPut, agent.id.as_str()),
            What::AgentDeleted(id) => (Self::AgentDeleted, id.as_str()),
            What::BundlePut(bundle) => (Self::BundlePut, bundle.trust_domain.as_str()),
            What::BundleDeleted(trust_domain) => (Self::BundleDeleted, trust_domain.as_str()),
        }
    }

    fn from_number(number: i64) -> Option<Self> {
        [
            Self::EntryPut,
            Self::EntryDeleted,
            Self::AgentPut,
            Self::AgentDeleted,
            Self::BundlePut,
            Self::BundleDeleted,
        ]
        .into_iter()
        .find(|kind| *kind as i64 == number)
    }
}

/// A row of the table.
#[derive(Debug)]
struct Logged {
    revision: Revision,
    kind: i64,
    key: String,
}

impl Logged {
    fn read(row: &sqlx::sqlite::SqliteRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            revision: Revision {
                n: row.try_get::<i64, _>(0)?.cast_unsigned(),
                mark: row.try_get::<i64, _>(1)?.cast_unsigned(),
            },
            kind: row.try_get(2)?,
            key: row.try_get(3)?,
        })
    }

    /// The change with the present state of what it changed; what is gone by now shows as deleted.
    async fn load(
        self,
        connection: &mut SqliteConnection,
        trust_domain: &TrustDomain,
    ) -> Result<Change, StoreError> {
        let Self { revision, kind, key } = self;
        let agent_id = |key: &str| {
            SpiffeId::parse(key).map_err(|error| StoreError::unreadable("change of agent", key, error))
        };
        let name = |key: &str| {
            TrustDomain::parse(key).map_err(|error| StoreError::unreadable("change of bundle", key, error))
        };
        let what = match Kind::from_number(kind) {
            Some(Kind::EntryPut) => match entries::read(connection, &key, trust_domain).await? {
                Some(stored) => What::EntryPut(stored),
                None => What::EntryDeleted(key),
            },
            Some(Kind::EntryDeleted) => What::EntryDeleted(key),
            Some(Kind::AgentPut) => match agents::read(connection, &key).await? {
                Some(stored) => What::AgentPut(stored.agent),
                None => What::AgentDeleted(agent_id(&key)?),
            },
            Some(Kind::AgentDeleted) => What::AgentDeleted(agent_id(&key)?),
            Some(Kind::BundlePut) => match bundles::read(connection, &key, trust_domain).await? {
                Some(stored) => What::BundlePut(stored.bundle),
                None => What::BundleDeleted(name(&key)?),
            },
            Some(Kind::BundleDeleted) => What::BundleDeleted(name(&key)?),
            None => {
                let kind = std::io::Error::other(format!("unknown kind {kind}"));
                return Err(StoreError::unreadable("change", &key, kind));
            }
        };
        Ok(Change { revision, what })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(n: u64) -> Change {
        Change {
            revision: Revision { n, mark: n * 7 },
            what: What::EntryDeleted(format!("e{n}")),
        }
    }

    fn history() -> History {
        let history = History::new(Revision { n: 10, mark: 70 });
        history.publish((11..=20).map(change).collect());
        history
    }

    #[test]
    fn memory_answers_from_each_revision_it_knows() {
        let history = history();
        for n in 10..=20 {
            let changes = history
                .recent_since(Revision { n, mark: n * 7 })
                .unwrap()
                .unwrap();
            let numbers: Vec<u64> = changes.iter().map(|change| change.revision.n).collect();
            assert_eq!(numbers, ((n + 1)..=20).collect::<Vec<_>>());
        }
    }

    #[test]
    fn memory_refuses_another_mark_and_a_number_ahead() {
        let history = history();
        for asked in [(15, 1), (10, 1), (20, 1), (21, 147)] {
            let asked = Revision {
                n: asked.0,
                mark: asked.1,
            };
            assert_eq!(
                history.recent_since(asked),
                Some(Err(Revision { n: 20, mark: 140 }))
            );
        }
    }

    #[test]
    fn memory_leaves_older_revisions_to_the_table() {
        assert!(history().recent_since(Revision { n: 9, mark: 63 }).is_none());
    }

    #[test]
    fn memory_stays_bounded() {
        let history = History::new(Revision::START);
        history.publish((1..=RECENT as u64 + 5).map(change).collect());
        assert!(history.recent_since(Revision { n: 4, mark: 28 }).is_none());
        assert_eq!(
            history
                .recent_since(Revision { n: 5, mark: 35 })
                .unwrap()
                .unwrap()
                .len(),
            PAGE
        );
    }

    impl PartialEq for Change {
        fn eq(&self, other: &Self) -> bool {
            self.revision == other.revision
        }
    }
}
