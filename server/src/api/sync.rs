//! `finial.server.sync.v1.Sync`: pushes to an agent what it is authorized for, as it changes.

use std::sync::Arc;
use std::time::Duration;

use finial_identity::bundle::Bundle;
use finial_identity::entry::Entry;
use finial_identity::wire::{self, DigestSum};
use finial_identity::x509::{Certificate, PeerUsage, X509Error, verify_chain_to};
use finial_proto::finial::server::sync::v1 as pb;
use finial_proto::finial::server::sync::v1::sync_server::Sync as SyncApi;
use finial_proto::finial::server::sync::v1::watch_response::Event;
use finial_proto::spire::api::types;
use finial_proto::spire::api::types::permission_denied_details::Reason;
use futures_util::stream::BoxStream;
use prost::Message;
use rand::Rng;
use time::OffsetDateTime;
use tonic::{Request, Response, Status};

use super::Services;
use super::call::{Call, field};
use super::status::{OrRefuse, Refusal, Refuse};
use super::streaming::{Sender, driven};
use crate::registry::{AgentGone, BundleChanges, Cursor, Feed, FeedEvent, Resume, SubscribeError};

/// The largest message of a stream, in bytes of encoded entries.
const CHUNK_BYTES: usize = 1024 * 1024;

/// How often a heartbeat is sent on a stream without changes. Chosen again each time from the upper half of it, so
/// that streams that began together drift apart.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// Longest version that is remembered.
const MAX_VERSION_CHARS: usize = 255;

/// Answers the Sync service.
#[derive(Debug)]
pub struct SyncService(Arc<Services>);

impl SyncService {
    /// Works with these parts.
    pub fn new(services: Arc<Services>) -> Self {
        Self(services)
    }

    async fn subscribe(&self, call: &Call, request: &pb::WatchRequest) -> Result<Feed, Refusal> {
        let agent = call.agent()?;
        let version = &request.agent_version;
        if !version.is_empty() && version.chars().count() <= MAX_VERSION_CHARS {
            call.note(field::AGENT_VERSION, version);
            self.0
                .store
                .set_agent_version(agent, version)
                .await
                .or_refuse("failed to update agent")?;
        }
        // What cannot be read is as good as nothing held: the agent gets a snapshot.
        let resume = Cursor::from_bytes(&request.cursor)
            .zip(DigestSum::from_bytes(&request.digest))
            .map(|(cursor, digest)| Resume { cursor, digest });
        open(&self.0, call, resume).await
    }
}

async fn open(services: &Services, call: &Call, resume: Option<Resume>) -> Result<Feed, Refusal> {
    let agent = call.agent()?;
    let serial = call
        .caller
        .serial()
        .ok_or_else(|| Refusal::denied("caller has no certificate"))?;
    match services.registry.subscribe(agent, &serial, resume).await {
        Ok(feed) => Ok(feed),
        Err(SubscribeError::Agent(reason)) => Err(gone(reason)),
        Err(SubscribeError::Registry(error)) => Err(error.refuse("failed to watch")),
    }
}

#[tonic::async_trait]
impl SyncApi for SyncService {
    type WatchStream = BoxStream<'static, Result<pb::WatchResponse, Status>>;

    async fn watch(&self, request: Request<pb::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let call = Call::of(&request)?;
        let feed = self.subscribe(&call, request.get_ref()).await;
        let feed = feed.map_err(|refusal| call.refuse(refusal))?;
        let services = Arc::clone(&self.0);
        Ok(Response::new(driven(move |sender| async move {
            let refusal = tokio::select! {
                biased;
                refusal = expired(&services, &call) => Some(refusal),
                refusal = push(&services, &call, feed, &sender) => refusal,
                () = services.stop.stopped() => Some(Refusal::unavailable("server is stopping")),
            };
            refusal.map_or(Ok(()), |refusal| Err(call.refuse(refusal)))
        })))
    }
}

/// Completes once the SVID that the call came with is no longer one: its time has passed, or the own
/// bundle has lost the authority that it leads to. What was proved at the handshake is proved no more.
async fn expired(services: &Services, call: &Call) -> Refusal {
    let chain = call.caller.chain();
    let mut bundles = services.registry.bundles();
    loop {
        let now = services.clock.now();
        let own = services.registry.own_bundle();
        if let Err(error) = verify(&chain, own.as_deref(), now) {
            tracing::debug!(%error, "SVID of a watching agent is no longer valid");
            return Refusal::denied_agent("agent SVID has expired", Reason::AgentExpired);
        }
        let left = chain
            .first()
            .and_then(|leaf| Duration::try_from(leaf.not_after() - now).ok())
            .unwrap_or_default();
        tokio::select! {
            // Not in one go: somebody may set the machine's clock.
            () = tokio::time::sleep(left.clamp(EXPIRY_MIN, EXPIRY_MAX)) => {}
            // The sender lives as long as the registry.
            Ok(()) = bundles.changed() => {}
        }
    }
}

fn verify(chain: &[Certificate], own: Option<&Bundle>, at: OffsetDateTime) -> Result<(), X509Error> {
    match own {
        Some(bundle) => verify_chain_to(chain, &bundle.x509_certificates(), at, PeerUsage::Any),
        // Nothing can be told from a bundle that is not there.
        None => chain.first().map_or(Ok(()), |leaf| leaf.check_valid_at(at)),
    }
}

/// How long it is at least and at most until an SVID's time is looked at again.
const EXPIRY_MIN: Duration = Duration::from_secs(1);
const EXPIRY_MAX: Duration = Duration::from_secs(60);

/// Sends what the feed gives until the agent is gone (a refusal) or has left (none).
async fn push(
    services: &Services,
    call: &Call,
    mut feed: Feed,
    sender: &Sender<pb::WatchResponse>,
) -> Option<Refusal> {
    loop {
        let messages = match tokio::time::timeout(heartbeat_after(), feed.next()).await {
            Ok(FeedEvent::AgentGone(reason)) => return Some(gone(reason)),
            Ok(FeedEvent::Snapshot {
                cursor,
                entries,
                digest,
            }) => snapshot(cursor, &entries, digest),
            Ok(FeedEvent::Delta {
                from,
                to,
                upserts,
                removals,
                digest,
            }) => match delta(from, to, &upserts, removals, digest) {
                Some(delta) => vec![delta],
                // Too much for one message: a feed that begins again has it in chunks.
                None => match open(services, call, None).await {
                    Ok(anew) => {
                        feed = anew;
                        continue;
                    }
                    Err(refusal) => return Some(refusal),
                },
            },
            Ok(FeedEvent::Bundles(changes)) => bundles(services, &changes),
            Ok(FeedEvent::Current { cursor, digest }) => vec![heartbeat(cursor, digest)],
            Err(_silence) => match feed.heartbeat() {
                Some((cursor, digest)) => vec![heartbeat(cursor, digest)],
                None => continue,
            },
        };
        for event in messages {
            if sender
                .send(pb::WatchResponse { event: Some(event) })
                .await
                .is_err()
            {
                return None;
            }
        }
    }
}

fn snapshot(cursor: Cursor, entries: &[Arc<Entry>], digest: DigestSum) -> Vec<Event> {
    let mut chunks = vec![pb::Snapshot::default()];
    let mut size = 0;
    for entry in entries {
        let entry = to_wire(entry);
        let entry_size = entry.encoded_len() + ENTRY_OVERHEAD;
        if size + entry_size > CHUNK_BYTES && size > 0 {
            chunks.push(pb::Snapshot::default());
            size = 0;
        }
        size += entry_size;
        if let Some(chunk) = chunks.last_mut() {
            chunk.entries.push(entry);
        }
    }
    let last = chunks.len() - 1;
    for (n, chunk) in chunks.iter_mut().enumerate() {
        if n < last {
            chunk.more = true;
        } else {
            chunk.cursor = cursor.to_bytes().to_vec();
            chunk.digest = digest.to_bytes().to_vec();
        }
    }
    chunks.into_iter().map(Event::Snapshot).collect()
}

/// `None` when it would not fit into what a caller must be ready to receive.
fn delta(
    from: Cursor,
    to: Cursor,
    upserts: &[Arc<Entry>],
    removals: Vec<String>,
    digest: DigestSum,
) -> Option<Event> {
    let delta = pb::Delta {
        from: from.to_bytes().to_vec(),
        to: to.to_bytes().to_vec(),
        upserts: upserts.iter().map(|entry| to_wire(entry)).collect(),
        removals,
        digest: digest.to_bytes().to_vec(),
    };
    (delta.encoded_len() <= 3 * CHUNK_BYTES).then_some(Event::Delta(delta))
}

/// Bundles in messages of at most [`CHUNK_BYTES`], except one that alone is larger. The first is the
/// complete list, if there is to be one.
fn bundles(services: &Services, changes: &BundleChanges) -> Vec<Event> {
    let mut messages = vec![pb::Bundles {
        own: changes.own.as_deref().map(|own| services.bundle_to_wire(own)),
        removed_federated: changes.removed.iter().map(ToString::to_string).collect(),
        complete: changes.is_complete,
        federated: Vec::new(),
    }];
    let mut size = messages.iter().map(Message::encoded_len).sum::<usize>();
    for bundle in &changes.federated {
        let bundle = services.bundle_to_wire(bundle);
        let bundle_size = bundle.encoded_len() + ENTRY_OVERHEAD;
        // A complete list that continues in another message would not be complete.
        if size + bundle_size > CHUNK_BYTES && size > 0 && !changes.is_complete {
            messages.push(pb::Bundles::default());
            size = 0;
        }
        size += bundle_size;
        if let Some(message) = messages.last_mut() {
            message.federated.push(bundle);
        }
    }
    messages.into_iter().map(Event::Bundles).collect()
}

fn heartbeat(cursor: Cursor, digest: DigestSum) -> Event {
    Event::Heartbeat(pb::Heartbeat {
        cursor: cursor.to_bytes().to_vec(),
        digest: digest.to_bytes().to_vec(),
        interval_seconds: i32::try_from(HEARTBEAT.as_secs()).unwrap_or(i32::MAX),
    })
}

fn heartbeat_after() -> Duration {
    HEARTBEAT.mul_f64(rand::rng().random_range(0.5..=1.0))
}

fn gone(reason: AgentGone) -> Refusal {
    match reason {
        AgentGone::Banned => Refusal::denied_agent("agent is banned", Reason::AgentBanned),
        AgentGone::Deleted => Refusal::denied_agent("agent is not attested", Reason::AgentNotAttested),
        AgentGone::Superseded => Refusal::denied_agent("agent SVID is not active", Reason::AgentNotActive),
    }
}

/// An entry as agents get it, over which both sides compute the digest.
fn to_wire(entry: &Entry) -> types::Entry {
    wire::apply_entry_mask(wire::entry_to_wire(entry), &Some(wire::agent_entry_mask()))
}

/// Tag and length around an entry.
const ENTRY_OVERHEAD: usize = 6;
