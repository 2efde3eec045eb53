//! The stream of WIT-SVIDs (Workload API §7.2.1): one for each identity of the caller with its private key, and all of
//! them again whenever an identity comes or goes or a token was renewed.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use finial_identity::bundle::Bundle;
use finial_identity::spiffe_id::SpiffeId;
use finial_proto::workload::{Witsvid, WitsvidRequest, WitsvidResponse};
use futures_util::stream::{self, Stream, StreamExt as _};
use time::OffsetDateTime;
use tokio::time::Instant;
use tonic::{Request, Status};
use zeroize::Zeroize as _;

use super::encoding::secret;
use super::jwt::requested_identity;
use crate::endpoints::codec::Framed;
use crate::endpoints::session::{Access, ISSUE_WAIT, Session, Sessions, denied};
use crate::node::Moment;
use crate::svids::tokens::{Signed as _, Token};
use crate::svids::{CachedEntry, SignedWit, WitCache};

/// How many tokens of one stream are requested at the same time.
const CONCURRENT_TOKENS: usize = 8;
/// When a token that could not be had is asked for again.
const RETRY: Duration = Duration::from_secs(5);
/// How long a stream sleeps at most: the clock may be set.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// So that a clock which is far off does not keep the agent busy.
const SHORTEST_SLEEP: Duration = Duration::from_millis(100);

type Held = Arc<Token<SignedWit>>;

/// `FetchWITSVID`: all identities of the caller, or the one it names.
pub(super) async fn fetch(
    sessions: Sessions,
    request: Request<WitsvidRequest>,
) -> Result<impl Stream<Item = Result<Framed, Status>> + Send + 'static, Status> {
    let mut messages = Messages::open(&sessions, &request).await?;
    let first = messages.next().await?;
    Ok(messages.into_stream(first))
}

/// A stream of one caller.
pub(super) struct Messages {
    session: Session,
    sessions: Sessions,
    cache: WitCache,
    only: Option<SpiffeId>,
    /// The last token of each entry.
    held: HashMap<String, Held>,
    sent: Option<Framed>,
}

/// Without what was sent, which holds private keys.
impl fmt::Debug for Messages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Messages")
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}

impl Messages {
    /// Finds out who calls.
    ///
    /// # Errors
    /// As [`Session::open`]; `InvalidArgument` for a requested identity that is none.
    pub(super) async fn open(sessions: &Sessions, request: &Request<WitsvidRequest>) -> Result<Self, Status> {
        let cache = sessions.svids().wit_cache();
        let cache = cache.ok_or_else(|| Status::unimplemented("the WIT profile is switched off"))?;
        let only = requested_identity(&request.get_ref().spiffe_id)?;
        Ok(Self {
            session: Session::open(sessions, request, Access::WitSvids).await?,
            sessions: sessions.clone(),
            cache: cache.clone(),
            only,
            held: HashMap::new(),
            sent: None,
        })
    }

    /// The next message: when what this caller gets is another than what was sent.
    ///
    /// # Errors
    /// As [`Session::view`], and `Unavailable` when there is no token to begin with.
    pub(super) async fn next(&mut self) -> Result<Framed, Status> {
        loop {
            let view = self.session.view().await?;
            let wanted = self.granted(view.entries())?;
            let bundle = Arc::clone(view.own_bundle());
            drop(view);
            self.renew(&wanted, &bundle).await?;
            self.session.mark_new();

            // Signing takes a while: what was granted may have been taken back, and more may have come.
            let view = self.session.view().await?;
            let granted = self.granted(view.entries())?;
            drop(view);
            if !granted.iter().all(|entry| is_among(entry, &wanted)) {
                continue;
            }
            let content = self.encode(&granted);
            let is_new = content.is_some() && self.sent != content;
            match content {
                Some(content) if is_new => {
                    if self.sent.is_none() || self.session.attest_again().await? {
                        self.session.mark_answered();
                        self.sent = Some(content.clone());
                        return Ok(content);
                    }
                }
                None if self.sent.is_none() => {
                    return Err(Status::unavailable("could not fetch WIT-SVID"));
                }
                _ => {
                    self.session
                        .changed_until(Some(self.look_again(&granted)))
                        .await?
                }
            }
        }
    }

    /// The stream, beginning with a message that is at hand. It never ends without an error.
    fn into_stream(self, first: Framed) -> impl Stream<Item = Result<Framed, Status>> + Send + 'static {
        let rest = stream::unfold(Some(self), |messages| async move {
            let mut messages = messages?;
            match messages.next().await {
                Ok(content) => Some((Ok(content), Some(messages))),
                Err(status) => Some((Err(status), None)),
            }
        });
        stream::once(std::future::ready(Ok(first))).chain(rest)
    }

    /// The identities that the caller gets tokens for, in their order.
    fn granted(&self, entries: &[Arc<CachedEntry>]) -> Result<Vec<Arc<CachedEntry>>, Status> {
        let is_asked_for = |entry: &&Arc<CachedEntry>| {
            let only = self.only.as_ref();
            only.is_none_or(|only| entry.spiffe_id == *only)
        };
        let granted: Vec<_> = entries.iter().filter(is_asked_for).cloned().collect();
        if granted.is_empty() {
            return Err(self.session.refused(denied()));
        }
        Ok(granted)
    }

    /// Has tokens signed where there is none, or one that is to be replaced. What cannot be had in time is left as it
    /// is.
    async fn renew(&mut self, wanted: &[Arc<CachedEntry>], bundle: &Bundle) -> Result<(), Status> {
        self.held
            .retain(|id, _token| wanted.iter().any(|entry| entry.entry_id == *id));
        let now = Moment::now(self.sessions.clock());
        let due: Vec<_> = wanted
            .iter()
            .filter(|entry| {
                self.usable(entry, now.clock)
                    .is_none_or(|token| !token.is_fresh(now) || is_tainted(token, bundle))
            })
            .cloned()
            .collect();
        if due.is_empty() {
            return Ok(());
        }
        let turns = async {
            for entry in &due {
                if !self.cache.holds(&entry.entry_id, &entry.spiffe_id, &[]) {
                    self.session.signing_turn().await;
                }
            }
        };
        self.session.during(turns).await?;
        let deadline = Instant::now() + ISSUE_WAIT;
        let (cache, held) = (&self.cache, &self.held);
        let requests = due.into_iter().map(|entry| async move {
            let (id, identity) = (&entry.entry_id, &entry.spiffe_id);
            let fetched = async {
                if held.contains_key(id) {
                    cache.renew_held(id, identity, &[]).await
                } else {
                    cache.fetch_held(id, identity, &[], true).await
                }
            };
            let error = match tokio::time::timeout_at(deadline, fetched).await {
                Ok(Ok(token)) => return Some((entry.entry_id.clone(), token)),
                Ok(Err(error)) => error.to_string(),
                Err(_elapsed) => "no answer in time".to_owned(),
            };
            tracing::warn!(entry_id = entry.entry_id, error, "WIT-SVID could not be obtained");
            None
        });
        let all = stream::iter(requests)
            .buffered(CONCURRENT_TOKENS)
            .filter_map(std::future::ready)
            .collect::<Vec<_>>();
        let fetched = self.session.during(all).await?;
        self.held.extend(fetched);
        Ok(())
    }

    fn usable(&self, entry: &CachedEntry, now: OffsetDateTime) -> Option<&Held> {
        let token = self.held.get(&entry.entry_id)?;
        (token.is_valid(now) && *token.value.spiffe_id() == entry.spiffe_id).then_some(token)
    }

    /// `WITSVIDResponse` of the identities that have a token, if there is one.
    fn encode(&self, granted: &[Arc<CachedEntry>]) -> Option<Framed> {
        let now = self.sessions.clock().now();
        let svids = granted.iter().filter_map(|entry| {
            let wit = &self.usable(entry, now)?.value;
            Some(Witsvid {
                spiffe_id: entry.spiffe_id.to_string(),
                wit_svid: wit.token().to_owned(),
                wit_svid_key: wit.key_jwk().to_owned(),
                hint: entry.hint.clone(),
            })
        });
        let mut answer = WitsvidResponse {
            svids: svids.collect(),
        };
        if answer.svids.is_empty() {
            return None;
        }
        let encoded = secret(&answer);
        answer
            .svids
            .iter_mut()
            .for_each(|svid| svid.wit_svid_key.zeroize());
        Some(encoded)
    }

    /// When a token is to be renewed next, or asked for again.
    fn look_again(&self, granted: &[Arc<CachedEntry>]) -> Instant {
        let now = Moment::now(self.sessions.clock());
        let pauses = granted.iter().map(|entry| match self.usable(entry, now.clock) {
            Some(token) if token.is_fresh(now) => {
                let pause = Duration::try_from(token.until_renewal(now)).unwrap_or_default();
                pause.clamp(SHORTEST_SLEEP, LONGEST_SLEEP)
            }
            _ => RETRY,
        });
        Instant::now() + pauses.min().unwrap_or(LONGEST_SLEEP)
    }
}

fn is_among(entry: &CachedEntry, others: &[Arc<CachedEntry>]) -> bool {
    others
        .iter()
        .any(|other| other.entry_id == entry.entry_id && other.spiffe_id == entry.spiffe_id)
}

/// Whether the authority that signed it is not to be trusted for long. One that the bundle does not have may be too new
/// for it.
fn is_tainted(token: &Held, bundle: &Bundle) -> bool {
    let authority = token.key_id.as_deref().and_then(|id| bundle.wit_authority(id));
    authority.is_some_and(|authority| authority.0.tainted)
}
