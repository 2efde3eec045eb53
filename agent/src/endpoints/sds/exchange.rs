//! A stream of requests and responses: the loop around the two protocols.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use finial_proto::google::rpc;
use futures_util::stream::{self, Stream};
use prost::Message;
use tonic::{Request, Status, Streaming};

use super::node::Requester;
use super::secrets::{self, Asked, Found, SECRET_TYPE};
use crate::config::SdsSettings;
use crate::endpoints::session::{Access, Session, Sessions};

/// Most names of one stream, and most bytes of them together: they are kept for as long as it is open.
const MAX_NAMES: usize = 256;
const MAX_NAMES_BYTES: usize = 32 * 1024;
/// Characters of a client's words that are logged.
const LOGGED_MESSAGE: usize = 512;
/// Names that are logged in one line.
const LOGGED_NAMES: usize = 8;
/// How often one stream may say that something is missing.
const MISSING_REPORTS: u32 = 32;
/// For how long the attestation of a process that has just come is good for its first answer.
pub(super) const FRESH: Duration = Duration::from_secs(1);

/// The rules of one method: requests in, responses out. Nothing in it waits.
pub trait Protocol: Send + 'static {
    /// What the client sends.
    type Request: Message + Default + 'static;
    /// A response that was not sent yet.
    type Reply: Send;

    /// Takes a request up.
    ///
    /// # Errors
    /// When the stream cannot continue.
    fn receive(&mut self, request: Self::Request) -> Result<(), Status>;

    /// What the client asks for, once it has asked.
    fn asked(&self) -> Option<&Asked>;

    /// Who the client says it is.
    fn requester(&self) -> &Requester;

    /// The response that is due when there is `found` of what the client asks for, if one is. `is_gone` tells
    /// of a name that is not found whether the client must no longer have the secret with that name.
    fn reply(&self, found: &Found, is_gone: &dyn Fn(&str) -> bool, nonce: String) -> Option<Self::Reply>;

    /// Notes that a response is sent, and gives its bytes.
    fn sent(&mut self, reply: Self::Reply) -> Bytes;
}

/// One open stream.
#[derive(Debug)]
pub(super) struct Exchange<P: Protocol> {
    settings: Arc<SdsSettings>,
    session: Session,
    protocol: P,
    requests: Streaming<P::Request>,
    /// The client may send more.
    is_open: bool,
    /// Something was sent.
    is_answered: bool,
    /// Names that are asked for and were there when it was last looked.
    present: BTreeSet<String>,
    /// Those that were not.
    missing: BTreeSet<String>,
    reports_left: u32,
}

impl<P: Protocol> Exchange<P> {
    /// Finds out who calls.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub(super) async fn open(
        sessions: &Sessions,
        settings: Arc<SdsSettings>,
        request: Request<Streaming<P::Request>>,
        protocol: P,
    ) -> Result<Self, Status> {
        let session = Session::open(sessions, &request, Access::Secrets).await?;
        Ok(Self {
            settings,
            session,
            protocol,
            requests: request.into_inner(),
            is_open: true,
            is_answered: false,
            present: BTreeSet::new(),
            missing: BTreeSet::new(),
            reports_left: MISSING_REPORTS,
        })
    }

    /// The responses. The stream ends when the client has no more to say and an answer to all that it said.
    pub(super) fn into_responses(self) -> impl Stream<Item = Result<Bytes, Status>> + Send + 'static {
        stream::unfold(Some(self), |exchange| async move {
            let mut exchange = exchange?;
            match exchange.next().await {
                Ok(Some(message)) => Some((Ok(message), Some(exchange))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        })
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(reply) = self.reply()? {
                let is_fresh = !self.is_answered && self.session.attested_ago() < FRESH;
                if is_fresh || self.session.attest_again().await? {
                    self.is_answered = true;
                    return Ok(Some(self.protocol.sent(reply)));
                }
                continue;
            }
            if !self.is_open {
                return Ok(None);
            }
            tokio::select! {
                request = self.requests.message() => match request? {
                    Some(request) => self.receive(request)?,
                    None => self.is_open = false,
                },
                outcome = self.session.changed() => outcome?,
            }
        }
    }

    fn receive(&mut self, request: P::Request) -> Result<(), Status> {
        self.protocol.receive(request)?;
        let asked = self.protocol.asked();
        if asked.is_some_and(|asked| secrets::wants_svids(asked, &self.settings)) {
            self.session.want_svids();
        }
        Ok(())
    }

    fn reply(&mut self) -> Result<Option<P::Reply>, Status> {
        let Some(asked) = self.protocol.asked() else {
            return Ok(None);
        };
        let Some(view) = self.session.glance()? else {
            return Ok(None);
        };
        let validator = self.protocol.requester().validator;
        let found = secrets::find(asked, &view, &self.settings, validator)?;
        let is_gone = |name: &str| secrets::is_gone(name, &view, &self.settings);
        let reply = self.protocol.reply(&found, &is_gone, nonce());
        let names = asked.names.iter().cloned();
        let (present, missing) = names.partition(|name| found.contains_key(name));
        self.report(present, missing);
        Ok(reply)
    }

    fn report(&mut self, present: BTreeSet<String>, missing: BTreeSet<String>) {
        let lost = missing.iter().any(|name| self.present.contains(name));
        let is_news = missing != self.missing && !missing.is_empty() && self.reports_left > 0;
        (self.present, self.missing) = (present, missing);
        if !is_news {
            return;
        }
        self.reports_left -= 1;
        let (node_id, pid) = (self.protocol.requester().id.as_str(), self.session.pid());
        let names = listed(self.missing.iter());
        if lost {
            tracing::warn!(
                node_id,
                pid,
                names,
                "secrets that an Envoy has are there no longer"
            );
        } else {
            tracing::info!(
                node_id,
                pid,
                names,
                "secrets that an Envoy asks for are not there yet"
            );
        }
    }
}

/// No other type than secrets is served.
pub(super) fn check_type(type_url: &str) -> Result<(), Status> {
    if type_url.is_empty() || type_url == SECRET_TYPE {
        return Ok(());
    }
    let shown: String = type_url.chars().take(LOGGED_MESSAGE).collect();
    Err(Status::invalid_argument(format!(
        "no other type than {SECRET_TYPE} is served: {shown}"
    )))
}

/// Keeps what a stream holds of its client's words within bounds.
pub(super) fn check_names<'a>(names: impl Iterator<Item = &'a String>) -> Result<(), Status> {
    let (count, bytes) = names.fold((0, 0), |(count, bytes), name| (count + 1, bytes + name.len()));
    if count > MAX_NAMES || bytes > MAX_NAMES_BYTES {
        return Err(Status::invalid_argument(format!(
            "a stream may have {MAX_NAMES} names of {MAX_NAMES_BYTES} bytes together, not {count} of {bytes}"
        )));
    }
    Ok(())
}

/// A client keeps what it had; the same is not sent again.
pub(super) fn log_rejection<'a>(
    requester: &Requester,
    names: impl Iterator<Item = &'a String>,
    error: &rpc::Status,
) {
    let error: String = error.message.chars().take(LOGGED_MESSAGE).collect();
    let (node_id, names) = (requester.id.as_str(), listed(names));
    tracing::warn!(node_id, names, error, "Envoy refused a secret");
}

fn listed<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<&str> = names.take(LOGGED_NAMES).map(String::as_str).collect();
    names.join(" ")
}

fn nonce() -> String {
    format!("{:08x}", rand::random::<u32>())
}
