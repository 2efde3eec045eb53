//! The push stream: the server's messages, checked.

use std::time::Duration;

use finial_identity::bundle::Bundle;
use finial_identity::spiffe_id::TrustDomain;
use finial_proto::finial::server::sync::v1::sync_client::SyncClient;
use finial_proto::finial::server::sync::v1::watch_response::Event;
use finial_proto::finial::server::sync::v1::{Bundles, WatchRequest, WatchResponse};
use tonic::Streaming;

use super::federated::Faults;
use super::{Line, MAX_ANSWER, ReceivedEntry, Upstream, UpstreamError, own_bundle_from_wire};
use crate::telemetry::metrics;

/// Where in the server's history the agent stands. Only the server knows what it means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor(Vec<u8>);

/// One message of the push stream.
#[derive(Clone, Debug)]
pub enum WatchEvent {
    /// Part of the whole set.
    Snapshot {
        /// Entries of this part.
        entries: Vec<ReceivedEntry>,
        /// Where the set stands and its digest, in the last part only.
        end: Option<(Cursor, u128)>,
    },
    /// One step from one state to the next.
    Delta {
        /// The state before.
        from: Cursor,
        /// The state after.
        to: Cursor,
        /// New or changed entries.
        upserts: Vec<ReceivedEntry>,
        /// Ids of entries the agent is no longer authorized for.
        removals: Vec<String>,
        /// Digest of the set after.
        digest: u128,
    },
    /// Bundles that changed.
    Bundles(BundleChanges),
    /// A heartbeat, with the digest of what the agent should have.
    Heartbeat {
        /// Where the set stands.
        cursor: Cursor,
        /// Digest of the set.
        digest: u128,
        /// Longest time until the next message.
        interval: Duration,
    },
}

/// Bundles that changed, each whole.
#[derive(Clone, Debug, Default)]
pub struct BundleChanges {
    /// The own trust domain's.
    pub own: Option<Bundle>,
    /// Those of foreign trust domains.
    pub federated: Vec<Bundle>,
    /// Foreign trust domains whose bundle cannot be used: what is held of them stays.
    pub kept: Vec<TrustDomain>,
    /// Foreign trust domains without a bundle by now.
    pub removed: Vec<TrustDomain>,
    /// `federated` is the whole list.
    pub complete: bool,
}

/// An open push stream.
#[derive(Debug)]
pub struct WatchStream {
    upstream: Upstream,
    line: Line,
    messages: Streaming<WatchResponse>,
}

impl Cursor {
    /// Whether the agent stands nowhere yet.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn from_wire(bytes: Vec<u8>) -> Result<Self, UpstreamError> {
        if bytes.is_empty() || bytes.len() > MAX_CURSOR {
            return Err(UpstreamError::Malformed(format!(
                "cursor of {} bytes",
                bytes.len()
            )));
        }
        Ok(Self(bytes))
    }
}

impl Upstream {
    /// Opens the push stream from where the agent stands. A server that cannot push answers
    /// [`UpstreamError::Unimplemented`].
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn watch(
        &self,
        cursor: &Cursor,
        digest: Option<u128>,
        agent_version: &str,
    ) -> Result<WatchStream, UpstreamError> {
        let request = WatchRequest {
            cursor: cursor.0.clone(),
            digest: digest.map(|sum| sum.to_be_bytes().to_vec()).unwrap_or_default(),
            agent_version: agent_version.to_owned(),
        };
        let line = self.line()?;
        let mut client = SyncClient::new(line.channel.clone()).max_decoding_message_size(MAX_ANSWER);
        let messages = self.timed(&line, "watch", client.watch(request)).await?;
        Ok(WatchStream {
            upstream: self.clone(),
            line,
            messages,
        })
    }
}

impl WatchStream {
    /// The next message. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`UpstreamError`]; the end of the stream is [`UpstreamError::Unavailable`].
    pub async fn next(&mut self) -> Result<WatchEvent, UpstreamError> {
        loop {
            let message = match self.messages.message().await {
                Ok(Some(message)) => message,
                Ok(None) => {
                    return Err(UpstreamError::Unavailable(
                        "watch: server ended the stream".to_owned(),
                    ));
                }
                Err(status) => return Err(self.upstream.judge(&self.line, status)),
            };
            // An event of a later version of the protocol is none of ours.
            if let Some(event) = message.event {
                let timer = metrics().start("manager_sync_fetch_entries_updates");
                let checked = check(event, self.upstream.trust_domain(), &self.upstream.shared.faults);
                match &checked {
                    Ok(WatchEvent::Bundles(_) | WatchEvent::Heartbeat { .. }) => timer.discard(),
                    Ok(WatchEvent::Snapshot { end: None, .. }) => timer.discard(),
                    told => timer.end_with(told, UpstreamError::code),
                }
                return checked;
            }
        }
    }
}

fn check(event: Event, trust_domain: &TrustDomain, faults: &Faults) -> Result<WatchEvent, UpstreamError> {
    Ok(match event {
        Event::Snapshot(part) => WatchEvent::Snapshot {
            entries: part.entries.into_iter().map(ReceivedEntry::from_wire).collect(),
            end: if part.more {
                None
            } else {
                Some((Cursor::from_wire(part.cursor)?, digest(&part.digest)?))
            },
        },
        Event::Delta(step) => WatchEvent::Delta {
            from: Cursor::from_wire(step.from)?,
            to: Cursor::from_wire(step.to)?,
            upserts: step.upserts.into_iter().map(ReceivedEntry::from_wire).collect(),
            removals: step.removals,
            digest: digest(&step.digest)?,
        },
        Event::Bundles(changes) => WatchEvent::Bundles(bundle_changes(changes, trust_domain, faults)?),
        Event::Heartbeat(beat) => WatchEvent::Heartbeat {
            cursor: Cursor::from_wire(beat.cursor)?,
            digest: digest(&beat.digest)?,
            interval: Duration::from_secs(
                u64::try_from(beat.interval_seconds.clamp(1, MAX_INTERVAL)).unwrap_or(1),
            ),
        },
    })
}

/// Trouble with the own bundle fails the stream, that with a foreign one concerns this one alone.
fn bundle_changes(
    changes: Bundles,
    trust_domain: &TrustDomain,
    faults: &Faults,
) -> Result<BundleChanges, UpstreamError> {
    let own = changes
        .own
        .map(|bundle| own_bundle_from_wire(bundle, trust_domain))
        .transpose()?;
    let (mut federated, mut kept) = (Vec::new(), Vec::new());
    for bundle in changes.federated {
        match faults.check(bundle) {
            Ok(bundle) => federated.push(bundle),
            Err(name) => kept.extend(name),
        }
    }
    // Nothing can be held under a name that is none.
    let removed = changes.removed_federated.iter();
    Ok(BundleChanges {
        own,
        federated,
        kept,
        removed: removed.filter_map(|name| TrustDomain::parse(name).ok()).collect(),
        complete: changes.complete,
    })
}

/// Sixteen bytes, most significant first. The empty set's digest may be left out.
fn digest(bytes: &[u8]) -> Result<u128, UpstreamError> {
    if bytes.is_empty() {
        return Ok(0);
    }
    let sum: [u8; 16] = bytes
        .try_into()
        .map_err(|_length| UpstreamError::Malformed(format!("digest of {} bytes", bytes.len())))?;
    Ok(u128::from_be_bytes(sum))
}

const MAX_CURSOR: usize = 4096;
/// Longest heartbeat interval that is accepted, in seconds.
const MAX_INTERVAL: i32 = 600;

#[cfg(test)]
mod tests {
    use super::*;
    use finial_proto::finial::server::sync::v1::{Heartbeat, Snapshot};
    use finial_proto::spire::api::types;

    fn td() -> TrustDomain {
        TrustDomain::parse("example.org").unwrap()
    }

    #[test]
    fn a_digest_has_sixteen_bytes_or_none() {
        assert_eq!(digest(&[]).unwrap(), 0);
        assert_eq!(digest(&7_u128.to_be_bytes()).unwrap(), 7);
        assert!(digest(&[1; 15]).is_err());
        assert!(digest(&[1; 17]).is_err());
    }

    #[test]
    fn only_the_last_part_of_a_snapshot_needs_a_cursor() {
        let part = Snapshot {
            more: true,
            ..Snapshot::default()
        };
        assert!(matches!(
            check(Event::Snapshot(part.clone()), &td(), &Faults::default()),
            Ok(WatchEvent::Snapshot { end: None, .. })
        ));
        let last = Snapshot { more: false, ..part };
        assert!(check(Event::Snapshot(last), &td(), &Faults::default()).is_err());
    }

    #[test]
    fn an_interval_from_the_wire_is_kept_within_sense() {
        let beat = |interval_seconds| Heartbeat {
            cursor: vec![1],
            digest: vec![],
            interval_seconds,
        };
        for (given, taken) in [(-5, 1), (30, 30), (i32::MAX, 600)] {
            let event = check(Event::Heartbeat(beat(given)), &td(), &Faults::default()).unwrap();
            assert!(matches!(event, WatchEvent::Heartbeat { interval, .. } if interval.as_secs() == taken));
        }
    }

    #[test]
    fn a_foreign_or_empty_own_bundle_is_refused() {
        let changes = |name: &str| Bundles {
            own: Some(types::Bundle {
                trust_domain: name.to_owned(),
                ..types::Bundle::default()
            }),
            ..Default::default()
        };
        assert!(check(Event::Bundles(changes("other.org")), &td(), &Faults::default()).is_err());
        assert!(check(Event::Bundles(changes("example.org")), &td(), &Faults::default()).is_err());
    }

    #[test]
    fn an_unusable_foreign_bundle_is_left_out_and_the_others_are_not() {
        let foreign = |name: &str, kid: &str| types::Bundle {
            trust_domain: name.to_owned(),
            jwt_authorities: vec![types::JwtKey {
                key_id: kid.to_owned(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let good = types::Bundle {
            jwt_authorities: Vec::new(),
            ..foreign("good.test", "")
        };
        let changes = Bundles {
            federated: vec![foreign("broken.test", "key"), good, foreign("No Name", "key")],
            removed_federated: vec!["No Name".to_owned(), "gone.test".to_owned()],
            ..Default::default()
        };
        let changes = bundle_changes(changes, &td(), &Faults::default()).unwrap();
        let names: Vec<_> = changes
            .federated
            .iter()
            .map(|bundle| bundle.trust_domain.as_str())
            .collect();
        assert_eq!(names, ["good.test"]);
        assert_eq!(changes.kept, [TrustDomain::parse("broken.test").unwrap()]);
        assert_eq!(changes.removed, [TrustDomain::parse("gone.test").unwrap()]);
    }
}
