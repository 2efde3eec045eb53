//! The only code that calls the server.
//!
//! There is one channel at a time, over mTLS with the agent's present SVID; watching, signing and bundles use
//! it and fail over together: `reconnect` opens another channel, `leave` to another address first, and `give_up` does
//! that once for all who find one useless. A new SVID opens a new channel. Calls before there is an SVID, and re-attestation,
//! run in a separate [`Session`] without a client certificate. Wire types are not used outside of this module.

mod attest;
mod conduct;
mod connection;
mod dial;
mod duties;
mod entries;
mod error;
mod federated;
mod signed;
mod watch;
mod wit;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use finial_identity::bundle::Bundle;
use finial_identity::peer::{self, BundleSource, PeerPolicy};
use finial_identity::process::{Clock, Jitter};
use finial_identity::spiffe_id::TrustDomain;
use finial_identity::traces::TraceContext;
use finial_identity::wire;
use finial_identity::x509::X509Svid;
use finial_proto::spire::api::server::agent::v1::PostStatusRequest;
use finial_proto::spire::api::server::agent::v1::agent_client::AgentClient;
use finial_proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use finial_proto::spire::api::server::bundle::v1::{GetBundleRequest, GetFederatedBundleRequest};
use finial_proto::spire::api::types;
use tokio::sync::watch as channel;
use tokio::time::Instant;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};
use tracing::Instrument;

use self::conduct::Conduct;
use self::dial::{Contact, Target};
use self::federated::Faults;
use crate::telemetry::TRACE_TARGET;

pub use self::attest::{AttestStep, ServerTrust, Session};
pub use self::entries::{AuthorizedEntry, EntryStamp, PolledEntries, ReceivedEntry};
pub use self::error::{DenialReason, UpstreamError};
pub use self::federated::FederatedBundle;
pub use self::signed::{SignFailure, SignOutcome, SignRequest, SignedJwt};
pub use self::watch::{BundleChanges, Cursor, WatchEvent, WatchStream};

/// Time for one answer of the server.
pub const RPC_TIMEOUT: Duration = Duration::from_secs(30);

/// Most bytes of one answer of the server. Bundles and entries may be many.
const MAX_ANSWER: usize = 64 << 20;

/// Where the server is and how it is recognised.
#[derive(Clone, Debug)]
pub struct UpstreamSettings {
    /// The agent's trust domain; the server must be its `/spire/server`.
    pub trust_domain: TrustDomain,
    /// Host name or address; all addresses that it resolves to are tried.
    pub server_address: String,
    /// TCP port.
    pub server_port: u16,
}

/// The connection to the server. Cheap to clone; clones share the channel.
#[derive(Clone, Debug)]
pub struct Upstream {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    trust_domain: TrustDomain,
    target: Target,
    clock: Clock,
    svid: channel::Receiver<Option<Arc<X509Svid>>>,
    bundles: Arc<dyn BundleSource>,
    line: Mutex<Option<Line>>,
    /// Grows with each [`Upstream::reconnect`]. A line that only gives way to a new SVID is not counted: streams hear of that
    /// by `svid`.
    given_up: channel::Sender<u64>,
    conduct: Conduct,
    /// Of foreign bundles.
    faults: Faults,
}

/// A channel whose calls carry the context of the trace that they are part of.
type TracedChannel = InterceptedService<Channel, TraceContext>;

fn traced(channel: Channel) -> TracedChannel {
    InterceptedService::new(channel, TraceContext)
}

/// A channel and the SVID that its connections are made with.
#[derive(Clone, Debug)]
struct Line {
    channel: TracedChannel,
    svid: Arc<X509Svid>,
    /// Also tells one line from the others.
    contact: Contact,
}

impl Upstream {
    /// Prepares the connection; nothing is sent yet. `svid` is the agent's own, `bundles` what its server is
    /// verified against. With `jitter`, agents whose server fails do not leave it at the same time.
    pub fn new(
        settings: UpstreamSettings,
        svid: channel::Receiver<Option<Arc<X509Svid>>>,
        bundles: Arc<dyn BundleSource>,
        clock: Clock,
        jitter: Jitter,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                trust_domain: settings.trust_domain,
                target: Target::new(settings.server_address, settings.server_port),
                clock,
                svid,
                bundles,
                line: Mutex::new(None),
                given_up: channel::channel(0).0,
                conduct: Conduct::new(jitter),
                faults: Faults::default(),
            }),
        }
    }

    /// The trust domain of the server and of this agent.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.shared.trust_domain
    }

    /// How many connections were made so far: a change tells that the server at the other end may be another.
    pub fn connections(&self) -> u64 {
        self.shared.target.connections()
    }

    /// Resolves the server's name to these addresses.
    #[cfg(test)]
    pub(crate) fn resolve_to(&self, addresses: Vec<SocketAddr>) {
        self.shared.target.resolve_to(addresses);
    }

    /// Opens a new connection for the next call, as when an authority that the server was verified with has been removed.
    /// Whoever holds a stream on the old one learns it by [`Upstream::given_up`] and must open it again.
    pub fn reconnect(&self) {
        *self.locked() = None;
        self.shared
            .given_up
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Changes when the connection is given up.
    pub fn given_up(&self) -> channel::Receiver<u64> {
        self.shared.given_up.subscribe()
    }

    /// Tries another of the server's addresses first when the next connection is made.
    pub fn prefer_another_address(&self) {
        let held = self.locked().as_ref().and_then(|line| line.contact.address());
        self.leave(held);
    }

    fn leave(&self, address: Option<SocketAddr>) {
        self.shared.target.leave(address);
        self.reconnect();
    }

    /// Tells the server which version this agent is (`PostStatus`).
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn post_status(&self, agent_version: &str) -> Result<(), UpstreamError> {
        let request = PostStatusRequest {
            current_bundle_serial: 0,
            agent_version: agent_version.to_owned(),
        };
        let line = self.line()?;
        let mut client = AgentClient::new(line.channel.clone());
        self.timed(&line, "post status", client.post_status(request))
            .await?;
        Ok(())
    }

    /// The bundle of the agent's trust domain (`GetBundle`).
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn bundle(&self) -> Result<Bundle, UpstreamError> {
        let line = self.line()?;
        let mut client = BundleClient::new(line.channel.clone()).max_decoding_message_size(MAX_ANSWER);
        let call = client.get_bundle(GetBundleRequest { output_mask: None });
        let answer = self.timed(&line, "get bundle", call).await?;
        own_bundle_from_wire(answer, &self.shared.trust_domain)
    }

    /// The bundle of a foreign trust domain (`GetFederatedBundle`).
    ///
    /// # Errors
    /// [`UpstreamError`]; a bundle that cannot be used is none.
    pub async fn federated_bundle(
        &self,
        trust_domain: &TrustDomain,
    ) -> Result<FederatedBundle, UpstreamError> {
        let request = GetFederatedBundleRequest {
            trust_domain: trust_domain.as_str().to_owned(),
            output_mask: None,
        };
        let line = self.line()?;
        let mut client = BundleClient::new(line.channel.clone()).max_decoding_message_size(MAX_ANSWER);
        let call = client.get_federated_bundle(request);
        match self.timed(&line, "get federated bundle", call).await {
            Ok(answer) => Ok(self.shared.faults.check_asked(trust_domain, answer)),
            Err(UpstreamError::Other {
                code: Code::NotFound, ..
            }) => Ok(FederatedBundle::Absent),
            Err(error) => Err(error),
        }
    }

    /// The present channel; a new one when there is none, or the SVID has changed since it was opened.
    fn line(&self) -> Result<Line, UpstreamError> {
        let Some(svid) = self.shared.svid.borrow().clone() else {
            return Err(UpstreamError::Unavailable("the agent has no SVID yet".to_owned()));
        };
        let mut held = self.locked();
        if let Some(line) = held.as_ref().filter(|line| Arc::ptr_eq(&line.svid, &svid)) {
            return Ok(line.clone());
        }
        let verifier = peer::server_verifier(
            Arc::clone(&self.shared.bundles),
            PeerPolicy::ServerOf(self.shared.trust_domain.clone()),
            self.shared.clock.clone(),
        );
        let tls = peer::client_config(verifier, Some(&svid), self.shared.clock.clone());
        let (channel, contact) = self.shared.target.channel(Arc::new(tls))?;
        let line = Line {
            channel: traced(channel),
            svid,
            contact,
        };
        *held = Some(line.clone());
        Ok(line)
    }

    /// Waits for an answer, but not forever.
    async fn timed<T>(
        &self,
        line: &Line,
        what: &'static str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, UpstreamError> {
        let span =
            tracing::info_span!(target: TRACE_TARGET, "upstream", otel.name = what, otel.kind = "client");
        let begun = Instant::now();
        match tokio::time::timeout(RPC_TIMEOUT, call.instrument(span)).await {
            Ok(Ok(response)) => {
                self.shared.conduct.answered(what);
                Ok(response.into_inner())
            }
            Ok(Err(status)) if !is_overdue(&status, begun) => Err(self.judge(line, status)),
            Ok(Err(_)) | Err(_) => {
                self.note_silence(line, what);
                Err(UpstreamError::Unanswered(what))
            }
        }
    }

    /// Prefers another address, once for all who find that a line is of no use: of two addresses, twice another would be
    /// the same again. Returns whether this was the first.
    fn give_up(&self, line: &Line) -> bool {
        let given_up = self.locked().take_if(|held| held.contact.is(&line.contact));
        if given_up.is_some() {
            self.leave(line.contact.address());
        }
        given_up.is_some()
    }

    /// Whether new calls go over this line.
    fn is_held(&self, line: &Line) -> bool {
        self.locked()
            .as_ref()
            .is_some_and(|held| held.contact.is(&line.contact))
    }

    /// An error, as it concerns the agent. What is said against an SVID that was renewed meanwhile is ignored.
    fn judge(&self, line: &Line, status: Status) -> UpstreamError {
        let mut error = UpstreamError::from(status);
        if matches!(error, UpstreamError::Unavailable(_))
            && let Some(refused) = line.contact.take_refusal()
        {
            error = refused;
        }
        let current = self.shared.svid.borrow();
        let superseded = !current.as_ref().is_some_and(|svid| Arc::ptr_eq(svid, &line.svid));
        if superseded && error.is_about_the_svid() {
            UpstreamError::Superseded
        } else {
            error.about(&line.svid)
        }
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Option<Line>> {
        // The slot is replaced whole, so a panic cannot leave it half-changed.
        self.shared.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether it says no more than that the time is over: where the server is told for how long its answer is waited for, the
/// channel and the server notice that in the same moment.
fn is_overdue(status: &Status, begun: Instant) -> bool {
    matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded) && begun.elapsed() >= RPC_TIMEOUT
}

fn bundle_from_wire(bundle: types::Bundle) -> Result<Bundle, UpstreamError> {
    wire::bundle_from_wire(bundle).map_err(|error| UpstreamError::Malformed(format!("bundle: {error}")))
}

/// A bundle that must be the own trust domain's and must not be empty: nothing would verify any more.
fn own_bundle_from_wire(bundle: types::Bundle, trust_domain: &TrustDomain) -> Result<Bundle, UpstreamError> {
    let bundle = bundle_from_wire(bundle)?;
    if bundle.trust_domain != *trust_domain {
        return Err(UpstreamError::Malformed(format!(
            "own bundle is that of {}, not of {trust_domain}",
            bundle.trust_domain
        )));
    }
    if bundle.x509_authorities.is_empty() {
        return Err(UpstreamError::Malformed(
            "own bundle has no X.509 authorities".to_owned(),
        ));
    }
    Ok(bundle)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use finial_identity::peer::SharedBundles;

    use super::*;
    use crate::test_pki::Authority;
    use crate::test_server::TestServer;

    const ID: &str = "/spire/agent/x/1";

    fn settings(server_address: &str, server_port: u16) -> UpstreamSettings {
        UpstreamSettings {
            trust_domain: TrustDomain::parse("example.org").unwrap(),
            server_address: server_address.to_owned(),
            server_port,
        }
    }

    #[tokio::test]
    async fn what_a_server_says_against_a_former_svid_is_not_held_against_the_present_one() {
        let mut server = TestServer::start();
        let former = Arc::new(Authority::new("example.org").svid(ID));
        let (svid, receiver) = channel::channel(Some(Arc::clone(&former)));
        let settings = settings(&server.address.ip().to_string(), server.address.port());
        let authorities = server.state().bundle.x509_certificates();
        let known = BTreeMap::from([(settings.trust_domain.clone(), authorities.into())]);
        let bundles = SharedBundles::fixed(known);
        let upstream = Upstream::new(
            settings,
            receiver,
            Arc::new(bundles),
            Clock::system(),
            Jitter::new(|| 0.5),
        );
        let refused = upstream.post_status("1").await.unwrap_err();
        let UpstreamError::SvidRefused { serial, .. } = &refused else {
            panic!("{refused:?}");
        };
        assert_eq!(*serial, Some(former.leaf().serial_hex()));

        // A call that began before the renewal learns it afterwards.
        let line = upstream.line().unwrap();
        let present = server.state().authority.svid(ID);
        svid.send_replace(Some(Arc::new(present)));
        let mut client = AgentClient::new(line.channel.clone());
        let call = client.post_status(PostStatusRequest::default());
        let outcome = upstream.timed(&line, "post status", call).await;
        assert!(matches!(outcome, Err(UpstreamError::Superseded)), "{outcome:?}");
        // What is said on the former connection last is not taken for what ended the present one.
        upstream.post_status("1").await.unwrap();
        let unheard = client.post_status(PostStatusRequest::default()).await;
        assert!(unheard.is_err());
        server.stop();
        let lost = upstream.bundle().await.unwrap_err();
        assert!(matches!(lost, UpstreamError::Unavailable(_)), "{lost:?}");
    }

    #[tokio::test]
    async fn an_address_that_was_left_is_not_last_any_longer_when_others_cannot_be_reached() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let left = std::net::SocketAddr::from(([127, 0, 0, 2], 1));
        let svid = Arc::new(Authority::new("example.org").svid(ID));
        let (_svid, receiver) = channel::channel(Some(svid));
        let bundles = SharedBundles::fixed(BTreeMap::new());
        let settings = settings("server.invalid", 1);
        let upstream = Upstream::new(
            settings,
            receiver,
            Arc::new(bundles),
            Clock::system(),
            Jitter::new(|| 0.5),
        );
        upstream.resolve_to(vec![left, closed]);
        upstream.leave(Some(left));
        assert_eq!(upstream.shared.target.last(), Some(left));
        upstream.post_status("1").await.unwrap_err();
        assert_eq!(upstream.shared.target.last(), None);
    }

    #[tokio::test]
    async fn an_address_that_was_left_stays_last_when_another_cannot_be_reached_but_a_third_can() {
        let closed = || {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap()
        };
        let server = TestServer::start();
        let (dead, left, good) = (closed(), closed(), server.address);
        let (svid, authorities) = {
            let state = server.state();
            (state.authority.svid(ID), state.bundle.x509_certificates())
        };
        let (_svid, receiver) = channel::channel(Some(Arc::new(svid)));
        let settings = settings("server.invalid", 1);
        let known = BTreeMap::from([(settings.trust_domain.clone(), authorities.into())]);
        let bundles = SharedBundles::fixed(known);
        let upstream = Upstream::new(
            settings,
            receiver,
            Arc::new(bundles),
            Clock::system(),
            Jitter::new(|| 0.5),
        );
        // Leaving it makes the second the first.
        upstream.resolve_to(vec![good, dead, left]);
        upstream.leave(Some(left));
        upstream.post_status("1").await.unwrap();
        let target = &upstream.shared.target;
        assert_eq!((target.rotation(), target.last()), (2, Some(left)));
    }

    #[test]
    fn calls_that_find_a_line_useless_together_prefer_another_address_once() {
        let authority = Authority::new("example.org");
        let svid = Arc::new(authority.svid(ID));
        let (_svid, receiver) = channel::channel(Some(svid));
        let settings = settings("server.invalid", 1);
        let bundles = SharedBundles::fixed(BTreeMap::new());
        let upstream = Upstream::new(
            settings,
            receiver,
            Arc::new(bundles),
            Clock::system(),
            Jitter::new(|| 0.5),
        );
        // A channel is spawned on a runtime.
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _inside = runtime.enter();
        let line = upstream.line().unwrap();
        assert!(upstream.give_up(&line));
        assert!(!upstream.give_up(&line));
        assert_eq!(upstream.shared.target.rotation(), 1);
        let next = upstream.line().unwrap();
        assert!(!upstream.give_up(&line));
        assert!(upstream.is_held(&next) && upstream.line().unwrap().contact.is(&next.contact));
    }
}
