//! The entries an agent is authorized for, as both ways of syncing receive them.

use finial_identity::selector::Selector;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use finial_identity::wire;
use finial_proto::spire::api::server::entry::v1::entry_client::EntryClient;
use finial_proto::spire::api::server::entry::v1::{
    EntryRevision, SyncAuthorizedEntriesRequest, SyncAuthorizedEntriesResponse,
};
use finial_proto::spire::api::types;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::Instrument;

use super::error::clipped;
use super::{RPC_TIMEOUT, Upstream, UpstreamError};
use crate::telemetry::{TRACE_TARGET, metrics};

/// A registration entry with the fields that agents get, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizedEntry {
    /// The entry's id.
    pub id: String,
    /// The identity.
    pub spiffe_id: SpiffeId,
    /// Sorted, without duplicates.
    pub selectors: Vec<Selector>,
    /// Sorted, without duplicates.
    pub federates_with: Vec<TrustDomain>,
    /// Gives admin rights on the server's API.
    pub admin: bool,
    /// May be used by a downstream server.
    pub downstream: bool,
    /// Grows with each update of the entry.
    pub revision_number: i64,
    /// Goes to an SVID store.
    pub store_svid: bool,
    /// Tells the workload what the identity is for.
    pub hint: String,
    /// Unix seconds.
    pub created_at: i64,
    /// Not issued before a workload wants it.
    pub disable_x509_svid_prefetch: bool,
    /// Each JWT-SVID has its own `jti`, so none is served twice.
    pub jwt_svid_include_jti: bool,
}

/// An entry as it came, with its digest. One that cannot be used still counts in the digest of the set.
#[derive(Clone, Debug)]
pub struct ReceivedEntry {
    /// The entry's id.
    pub id: String,
    /// Digest of id and content.
    pub digest: u128,
    /// Revision and creation time, by which polling tells whether the entry changed.
    pub stamp: EntryStamp,
    /// The entry, or what is wrong with it.
    pub entry: Result<AuthorizedEntry, String>,
}

/// Revision and creation time of an entry: it changed when either did. The latter tells an entry that was
/// deleted and made again under the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryStamp {
    /// Grows with each update.
    pub revision_number: i64,
    /// Unix seconds, 0 when the server does not say.
    pub created_at: i64,
}

/// What one poll brought.
#[derive(Clone, Debug)]
pub struct PolledEntries {
    /// The ids of all entries in the set.
    pub ids: Vec<String>,
    /// Those that were not known, or changed.
    pub changed: Vec<ReceivedEntry>,
}

impl EntryStamp {
    /// Whether an entry of this stamp must be fetched by one who holds it with stamp `held`.
    pub fn differs_from(&self, held: &Self) -> bool {
        self.revision_number != held.revision_number
            || (self.created_at != 0 && self.created_at != held.created_at)
    }
}

impl ReceivedEntry {
    pub(crate) fn from_wire(wire: types::Entry) -> Self {
        let digest = wire::entry_digest(&wire);
        let stamp = EntryStamp {
            revision_number: wire.revision_number,
            created_at: wire.created_at,
        };
        Self {
            id: wire.id.clone(),
            digest,
            stamp,
            entry: check(wire),
        }
    }
}

impl Upstream {
    /// Polls the authorized entries (`SyncAuthorizedEntries`); `known` says what is held of an id. Small sets
    /// come whole, of large ones only what changed.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn authorized_entries(
        &self,
        known: impl Fn(&str) -> Option<EntryStamp> + Send,
    ) -> Result<PolledEntries, UpstreamError> {
        let span = tracing::info_span!(target: TRACE_TARGET, "sync");
        let timer = metrics().start("manager_sync_fetch_entries_updates");
        let synced = self.sync_authorized_entries(known).instrument(span);
        timer.around(synced, UpstreamError::code).await
    }

    async fn sync_authorized_entries(
        &self,
        known: impl Fn(&str) -> Option<EntryStamp> + Send,
    ) -> Result<PolledEntries, UpstreamError> {
        let line = self.line()?;
        let (requests, receiver) = mpsc::channel(1);
        let first = SyncAuthorizedEntriesRequest {
            output_mask: Some(wire::agent_entry_mask()),
            ids: Vec::new(),
        };
        let closed = |_closed| UpstreamError::Unavailable("sync entries: stream ended".to_owned());
        requests.send(first).await.map_err(closed)?;
        let mut client = EntryClient::new(line.channel.clone()).max_decoding_message_size(super::MAX_ANSWER);
        let opened = client.sync_authorized_entries(ReceiverStream::new(receiver));
        let mut answers = self.timed(&line, "sync entries", opened).await?;

        let mut page = self.page(&line, &mut answers).await?;
        if page.entry_revisions.is_empty() {
            let changed: Vec<_> = page.entries.into_iter().map(ReceivedEntry::from_wire).collect();
            let ids = changed.iter().map(|entry| entry.id.clone()).collect();
            return Ok(PolledEntries { ids, changed });
        }
        let page_size = page.entry_revisions.len();
        let mut revisions = std::mem::take(&mut page.entry_revisions);
        while page.more {
            page = self.page(&line, &mut answers).await?;
            revisions.append(&mut page.entry_revisions);
            if revisions.len() > MAX_ENTRIES {
                return Err(UpstreamError::Malformed(format!(
                    "more than {MAX_ENTRIES} entries"
                )));
            }
        }
        let (needed, mut ids) = split(revisions, known);
        let mut changed = Vec::with_capacity(needed.len());
        for wanted in needed.chunks(page_size) {
            let request = SyncAuthorizedEntriesRequest {
                output_mask: None,
                ids: wanted.to_vec(),
            };
            requests.send(request).await.map_err(closed)?;
            loop {
                let page = self.page(&line, &mut answers).await?;
                changed.extend(page.entries.into_iter().map(ReceivedEntry::from_wire));
                if !page.more {
                    break;
                }
            }
        }
        ids.extend(changed.iter().map(|entry| entry.id.clone()));
        Ok(PolledEntries { ids, changed })
    }

    async fn page(
        &self,
        line: &super::Line,
        answers: &mut Streaming<SyncAuthorizedEntriesResponse>,
    ) -> Result<SyncAuthorizedEntriesResponse, UpstreamError> {
        match tokio::time::timeout(RPC_TIMEOUT, answers.message()).await {
            Err(_elapsed) => Err(UpstreamError::Unanswered("sync entries")),
            Ok(Err(status)) => Err(self.judge(line, status)),
            Ok(Ok(None)) => Err(UpstreamError::Malformed(
                "sync entries: stream ended early".to_owned(),
            )),
            Ok(Ok(Some(page))) => Ok(page),
        }
    }
}

/// Which ids must be fetched, and which are held as they are.
fn split(
    revisions: Vec<EntryRevision>,
    known: impl Fn(&str) -> Option<EntryStamp>,
) -> (Vec<String>, Vec<String>) {
    let mut needed = Vec::new();
    let mut held = Vec::new();
    for revision in revisions {
        let stamp = EntryStamp {
            revision_number: revision.revision_number,
            created_at: revision.created_at,
        };
        match known(&revision.id) {
            Some(have) if !stamp.differs_from(&have) => held.push(revision.id),
            _ => needed.push(revision.id),
        }
    }
    (needed, held)
}

fn check(wire: types::Entry) -> Result<AuthorizedEntry, String> {
    if wire.id.is_empty() || wire.id.len() > MAX_ID {
        return Err(format!("entry id is empty or over {MAX_ID} bytes"));
    }
    let spiffe_id = wire::spiffe_id_from_wire(wire.spiffe_id.as_ref()).map_err(|error| error.to_string())?;
    let mut selectors = wire::selectors_from_wire(&wire.selectors).map_err(|error| error.to_string())?;
    if selectors.is_empty() {
        return Err("entry has no selectors".to_owned());
    }
    selectors.sort_unstable();
    selectors.dedup();
    let mut federates_with =
        wire::trust_domains_from_wire(&wire.federates_with).map_err(|error| error.to_string())?;
    federates_with.sort_unstable();
    federates_with.dedup();
    let additional = wire.additional_attributes.unwrap_or_default();
    Ok(AuthorizedEntry {
        id: wire.id,
        spiffe_id,
        selectors,
        federates_with,
        admin: wire.admin,
        downstream: wire.downstream,
        revision_number: wire.revision_number,
        store_svid: wire.store_svid,
        hint: if wire.hint.len() > MAX_HINT {
            clipped(&wire.hint)
        } else {
            wire.hint
        },
        created_at: wire.created_at,
        disable_x509_svid_prefetch: additional.disable_x509_svid_prefetch,
        jwt_svid_include_jti: additional.jwt_svid_include_jti,
    })
}

const MAX_ID: usize = 255;
const MAX_HINT: usize = 1024;
/// More entries than any agent can have a use for: a server gone wrong must not eat the node's memory.
pub(super) const MAX_ENTRIES: usize = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> types::Entry {
        types::Entry {
            id: "web".to_owned(),
            spiffe_id: Some(types::Spiffeid {
                trust_domain: "example.org".to_owned(),
                path: "/web".to_owned(),
            }),
            selectors: vec![
                types::Selector {
                    r#type: "unix".to_owned(),
                    value: "uid:2".to_owned(),
                },
                types::Selector {
                    r#type: "unix".to_owned(),
                    value: "uid:1".to_owned(),
                },
                types::Selector {
                    r#type: "unix".to_owned(),
                    value: "uid:1".to_owned(),
                },
            ],
            federates_with: vec!["b.example".to_owned(), "spiffe://a.example".to_owned()],
            ..types::Entry::default()
        }
    }

    #[test]
    fn selectors_and_federation_are_sorted_and_without_duplicates() {
        let received = ReceivedEntry::from_wire(entry());
        let entry = received.entry.unwrap();
        let selectors: Vec<_> = entry.selectors.iter().map(ToString::to_string).collect();
        assert_eq!(selectors, ["unix:uid:1", "unix:uid:2"]);
        let names: Vec<_> = entry.federates_with.iter().map(TrustDomain::as_str).collect();
        assert_eq!(names, ["a.example", "b.example"]);
    }

    #[test]
    fn an_entry_that_cannot_be_used_still_has_id_and_digest() {
        let mut wire = entry();
        wire.selectors.clear();
        let digest = wire::entry_digest(&wire);
        let received = ReceivedEntry::from_wire(wire);
        assert_eq!((received.id.as_str(), received.digest), ("web", digest));
        assert!(received.entry.unwrap_err().contains("no selectors"));
        let mut wire = entry();
        wire.spiffe_id = None;
        assert!(ReceivedEntry::from_wire(wire).entry.is_err());
    }

    #[test]
    fn an_entry_changed_when_its_revision_or_a_known_creation_time_differs() {
        let held = EntryStamp {
            revision_number: 1,
            created_at: 100,
        };
        assert!(!held.differs_from(&held));
        assert!(
            EntryStamp {
                revision_number: 2,
                ..held
            }
            .differs_from(&held)
        );
        assert!(
            EntryStamp {
                created_at: 101,
                ..held
            }
            .differs_from(&held)
        );
        assert!(
            !EntryStamp {
                created_at: 0,
                ..held
            }
            .differs_from(&held)
        );
    }

    #[test]
    fn only_new_and_changed_entries_are_fetched() {
        let revision = |id: &str, revision_number| EntryRevision {
            id: id.to_owned(),
            revision_number,
            created_at: 5,
        };
        let known = |id: &str| {
            (id != "new").then_some(EntryStamp {
                revision_number: 1,
                created_at: 5,
            })
        };
        let (needed, held) = split(
            vec![revision("same", 1), revision("changed", 2), revision("new", 0)],
            known,
        );
        assert_eq!(needed, ["changed", "new"]);
        assert_eq!(held, ["same"]);
    }
}
