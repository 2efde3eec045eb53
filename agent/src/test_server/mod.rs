//! A server for tests: real TLS, real signatures, a set of entries, and faults on demand.
#![allow(
    clippy::disallowed_methods,
    reason = "tests own their tasks and read the real clock"
)]

mod secured;
mod services;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use finial_identity::bundle::Bundle;
use finial_identity::key::{KeyType, PrivateKey};
use finial_identity::peer::{self, PeerPolicy, SharedBundles};
use finial_identity::process::{Clock, grpc_timeout};
use finial_identity::spiffe_id::TrustDomain;
use finial_identity::wire::{self, DigestSum};
use finial_identity::x509::{Certificate, X509Svid};
use finial_proto::finial::server::sync::v1 as sync;
use finial_proto::finial::server::sync::v1::watch_response::Event;
use finial_proto::google::rpc::Status as RpcStatus;
use finial_proto::spire::api::server::agent::v1 as agent;
use finial_proto::spire::api::server::bundle::v1 as bundle;
use finial_proto::spire::api::server::entry::v1 as entry;
use finial_proto::spire::api::server::svid::v1 as svid;
use finial_proto::spire::api::types;
use finial_proto::spire::api::types::permission_denied_details::Reason;
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::transport::server::Connected;
use tonic::{Code, Request, Response, Status, Streaming};

use self::secured::{Caller, Secured};
use crate::test_pki::Authority;

/// The server's process: stopping it cuts every connection.
#[derive(Debug)]
pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
    svid: watch::Sender<Option<Arc<X509Svid>>>,
    clock: Clock,
    runtime: Option<Runtime>,
}

/// What the server knows and how it misbehaves.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) authority: Authority,
    pub(crate) bundle: Bundle,
    pub(crate) federated: BTreeMap<String, Bundle>,
    pub(crate) entries: BTreeMap<String, types::Entry>,
    /// Whether it can push.
    pub(crate) push: bool,
    /// Denies every call of an agent.
    pub(crate) denied: Option<Reason>,
    /// How often signing says that it does not know an entry.
    pub(crate) unknown: HashMap<String, usize>,
    /// How many signing calls fail as a whole.
    pub(crate) failing: usize,
    /// Whether it has trouble that other servers do not have.
    pub(crate) is_sick: bool,
    /// At which of its addresses nothing is signed, although all else works.
    pub(crate) unsigning: HashSet<SocketAddr>,
    /// At which of its addresses nobody hears whether SVIDs are signed.
    pub(crate) mute: HashSet<SocketAddr>,
    /// Whether nobody is told the bundle who asks for it.
    pub(crate) is_silent_about_bundles: bool,
    /// SVIDs of agents that have attested anew since, by serial number.
    superseded: HashSet<String>,
    /// Those that have not.
    active: HashSet<String>,
    pub(crate) svid_ttl: time::Duration,
    pub(crate) agent_ttl: time::Duration,
    pub(crate) tokens: HashSet<String>,
    pub(crate) reattestable: bool,
    /// How many entries a poll brings at once.
    pub(crate) page: usize,
    /// What was called, in order.
    pub(crate) calls: Vec<String>,
    /// For how long those said that they wait who wanted something signed.
    pub(crate) timeouts: Vec<Option<Duration>>,
    epoch: u64,
    history: Vec<Step>,
    watchers: Vec<mpsc::UnboundedSender<Result<sync::WatchResponse, Status>>>,
}

#[derive(Clone, Debug)]
struct Step {
    upserts: Vec<types::Entry>,
    removals: Vec<String>,
    digest: u128,
}

impl TestServer {
    pub(crate) fn start() -> Self {
        Self::start_at(Clock::system())
    }

    /// A server with a clock of the test's.
    pub(crate) fn start_at(clock: Clock) -> Self {
        let authority = Authority::new_at("example.org", clock.clone());
        let state = State {
            bundle: authority.bundle(),
            authority,
            federated: BTreeMap::new(),
            entries: BTreeMap::new(),
            push: true,
            denied: None,
            unknown: HashMap::new(),
            failing: 0,
            is_sick: false,
            unsigning: HashSet::new(),
            mute: HashSet::new(),
            timeouts: Vec::new(),
            is_silent_about_bundles: false,
            superseded: HashSet::new(),
            active: HashSet::new(),
            svid_ttl: time::Duration::hours(1),
            agent_ttl: time::Duration::hours(1),
            tokens: HashSet::from(["token".to_owned()]),
            reattestable: false,
            page: 500,
            calls: Vec::new(),
            epoch: 1,
            history: Vec::new(),
            watchers: Vec::new(),
        };
        let (svid, _receiver) = watch::channel(Some(server_svid(&state.authority)));
        let mut server = Self {
            address: ([127, 0, 0, 1], 0).into(),
            state: Arc::new(Mutex::new(state)),
            svid,
            clock,
            runtime: None,
        };
        server.resume();
        server
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Cuts all connections; nothing listens any more.
    pub(crate) fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        self.state().watchers.clear();
    }

    /// Listens again, at the same address.
    pub(crate) fn resume(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = {
            let _inside = runtime.enter();
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_reuseaddr(true).unwrap();
            let mut tries = 0;
            while socket.bind(self.address).is_err() {
                // The listener of the former runtime is closed by another thread.
                tries += 1;
                assert!(tries < 10_000_000, "address stays in use: {}", self.address);
                std::thread::yield_now();
            }
            socket.listen(64).unwrap()
        };
        self.address = listener.local_addr().unwrap();
        runtime.spawn(self.serve(listener));
        self.runtime = Some(runtime);
    }

    /// Listens at another address too, until it is stopped.
    pub(crate) fn listen_elsewhere(&self) -> SocketAddr {
        let runtime = self.runtime.as_ref().unwrap();
        let _inside = runtime.enter();
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let listener = socket.listen(64).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(self.serve(listener));
        address
    }

    fn serve(&self, listener: TcpListener) -> impl Future<Output = ()> + use<> {
        let (state, svid) = (Arc::clone(&self.state), self.svid.subscribe());
        serve(listener, state, svid, self.clock.clone())
    }

    /// Becomes a server with another authority, which alone is in its bundle, and gives the former one. To be called
    /// while it is stopped.
    pub(crate) fn replace_authority(&self, authority: Authority) -> Authority {
        let mut state = self.state();
        let former = std::mem::replace(&mut state.authority, authority);
        state.bundle = state.authority.bundle();
        state.epoch += 1;
        self.svid.send_replace(Some(server_svid(&state.authority)));
        former
    }

    /// Becomes a server whose authority is another one, of so short a life. To be called while it is stopped.
    pub(crate) fn rotate_authority(&self, lifetime: time::Duration) -> Authority {
        self.replace_authority(Authority::new_for("example.org", self.clock.clone(), lifetime))
    }

    /// Becomes a server that was installed again.
    pub(crate) fn reinstall(&self) -> Authority {
        self.replace_authority(Authority::new_at("example.org", self.clock.clone()))
    }

    /// Has the server's threads look at what came for them; tells when they have. `None` while it is stopped.
    pub(crate) fn take_turn(&self) -> Option<oneshot::Receiver<()>> {
        let (done, is_done) = oneshot::channel();
        self.runtime.as_ref()?.spawn(async move {
            tokio::task::yield_now().await;
            // Nobody may wait any more.
            let _gone = done.send(());
        });
        Some(is_done)
    }

    /// Ends the push streams, not the connections.
    pub(crate) fn end_streams(&self) {
        self.state().watchers.clear();
    }

    /// Sends something to all who watch.
    pub(crate) fn send(&self, event: Event) {
        self.state().send(&event);
    }

    pub(crate) fn put(&self, entry: types::Entry) {
        self.change(vec![entry], vec![]);
    }

    pub(crate) fn change(&self, upserts: Vec<types::Entry>, removals: Vec<String>) {
        let mut state = self.state();
        let from = state.cursor();
        for entry in &upserts {
            state.entries.insert(entry.id.clone(), entry.clone());
        }
        for id in &removals {
            state.entries.remove(id);
        }
        let digest = state.digest();
        state.history.push(Step {
            upserts: upserts.clone(),
            removals: removals.clone(),
            digest,
        });
        let delta = sync::Delta {
            from,
            to: state.cursor(),
            upserts,
            removals,
            digest: digest.to_be_bytes().to_vec(),
        };
        state.send(&Event::Delta(delta));
    }

    pub(crate) fn heartbeat(&self, digest: u128) {
        let mut state = self.state();
        let beat = sync::Heartbeat {
            cursor: state.cursor(),
            digest: digest.to_be_bytes().to_vec(),
            interval_seconds: 30,
        };
        state.send(&Event::Heartbeat(beat));
    }

    pub(crate) fn calls(&self, prefix: &str) -> Vec<String> {
        let state = self.state();
        let calls = state.calls.iter().filter(|call| call.starts_with(prefix));
        calls.cloned().collect()
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl State {
    fn cursor(&self) -> Vec<u8> {
        format!("{}:{}", self.epoch, self.history.len()).into_bytes()
    }

    /// Cursors given so far mean nothing any more, as after a restart.
    pub(crate) fn forget_cursors(&mut self) {
        self.epoch += 1;
    }

    pub(crate) fn digest(&self) -> u128 {
        DigestSum::of(self.entries.values().map(wire::entry_digest)).value()
    }

    fn send(&mut self, event: &Event) {
        self.watchers.retain(|watcher| {
            let message = sync::WatchResponse {
                event: Some(event.clone()),
            };
            watcher.send(Ok(message)).is_ok()
        });
    }

    fn deny(&self, caller: &Caller) -> Result<(), Status> {
        if self.is_sick {
            return Err(Status::internal("this server is sick"));
        }
        let is_former = caller
            .serial
            .as_ref()
            .is_some_and(|serial| self.superseded.contains(serial));
        let reason = self.denied.or(is_former.then_some(Reason::AgentNotActive));
        reason.map_or(Ok(()), |reason| Err(denial(reason)))
    }

    fn is_signing(&self, caller: &Caller) -> bool {
        caller.at.is_none_or(|at| !self.unsigning.contains(&at))
    }

    /// Whether those wait in vain who want something signed.
    fn is_mute(&mut self, caller: &Caller) -> bool {
        self.timeouts.push(caller.timeout);
        caller.at.is_some_and(|at| self.mute.contains(&at))
    }

    fn sign_agent(&mut self, path: &str, csr_der: &[u8]) -> types::X509svid {
        let leaf = self.authority.sign_csr(path, csr_der, self.agent_ttl);
        self.active.insert(leaf.serial_hex());
        wire_svid(&leaf)
    }

    /// From the moment that an agent has attested, its former SVID is no longer accepted, and its streams end.
    fn supersede(&mut self) {
        let former = std::mem::take(&mut self.active);
        self.superseded.extend(former);
        for watcher in std::mem::take(&mut self.watchers) {
            let _gone = watcher.send(Err(denial(Reason::AgentNotActive)));
        }
    }

    fn snapshot(&self) -> Vec<Event> {
        let part = |entries: Vec<types::Entry>, last: bool| {
            Event::Snapshot(sync::Snapshot {
                cursor: if last { self.cursor() } else { vec![] },
                entries,
                more: !last,
                digest: if last {
                    self.digest().to_be_bytes().to_vec()
                } else {
                    vec![]
                },
            })
        };
        let all: Vec<_> = self.entries.values().cloned().collect();
        let (first, second) = all.split_at(all.len() / 2);
        vec![part(first.to_vec(), false), part(second.to_vec(), true)]
    }

    fn deltas_since(&self, cursor: &[u8]) -> Option<Vec<Event>> {
        let text = std::str::from_utf8(cursor).ok()?;
        let (epoch, from) = text.split_once(':')?;
        if epoch.parse::<u64>().ok()? != self.epoch {
            return None;
        }
        let from: usize = from.parse().ok()?;
        let steps = self.history.iter().enumerate().skip(from);
        let at = |n: usize| format!("{}:{n}", self.epoch).into_bytes();
        let delta = |(n, step): (usize, &Step)| {
            Event::Delta(sync::Delta {
                from: at(n),
                to: at(n + 1),
                upserts: step.upserts.clone(),
                removals: step.removals.clone(),
                digest: step.digest.to_be_bytes().to_vec(),
            })
        };
        Some(steps.map(delta).collect())
    }
}

/// An entry for `unix:uid:<uid>`.
pub(crate) fn entry(id: &str, uid: u32) -> types::Entry {
    types::Entry {
        id: id.to_owned(),
        spiffe_id: Some(types::Spiffeid {
            trust_domain: "example.org".to_owned(),
            path: format!("/{id}"),
        }),
        selectors: vec![types::Selector {
            r#type: "unix".to_owned(),
            value: format!("uid:{uid}"),
        }],
        created_at: 1,
        ..types::Entry::default()
    }
}

/// One that outlives every test.
fn server_svid(authority: &Authority) -> Arc<X509Svid> {
    let key = Arc::new(PrivateKey::generate(KeyType::EcP256).unwrap());
    Arc::new(authority.svid_for("/spire/server", key, time::Duration::days(3650)))
}

fn denial(reason: Reason) -> Status {
    let details = RpcStatus {
        code: Code::PermissionDenied.into(),
        message: "authorization denied".to_owned(),
        details: vec![prost_types::Any {
            type_url: "type.googleapis.com/spire.api.types.PermissionDeniedDetails".to_owned(),
            value: types::PermissionDeniedDetails {
                reason: reason.into(),
            }
            .encode_to_vec(),
        }],
    };
    Status::with_details(
        Code::PermissionDenied,
        "authorization denied",
        details.encode_to_vec().into(),
    )
}

fn wire_svid(leaf: &Certificate) -> types::X509svid {
    types::X509svid {
        cert_chain: vec![leaf.der().to_vec()],
        id: Some(wire::spiffe_id_to_wire(&leaf.spiffe_id().unwrap())),
        expires_at: leaf.not_after().unix_timestamp(),
        ..types::X509svid::default()
    }
}

async fn serve(
    listener: TcpListener,
    state: Arc<Mutex<State>>,
    svid: watch::Receiver<Option<Arc<X509Svid>>>,
    clock: Clock,
) {
    let trust_domain = TrustDomain::parse("example.org").unwrap();
    let authorities = state.lock().unwrap().bundle.x509_certificates();
    let bundles = SharedBundles::fixed(BTreeMap::from([(trust_domain.clone(), authorities.into())]));
    let verifier = peer::client_verifier(
        Arc::new(bundles),
        PeerPolicy::AnyMemberOf(trust_domain),
        clock.clone(),
        false,
    );
    let tls = TlsAcceptor::from(Arc::new(peer::server_config(svid, Some(verifier), clock)));
    let (sender, accepted) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((stream, _from)) = listener.accept().await {
            let (tls, sender) = (tls.clone(), sender.clone());
            // Else the system may hold back for 40 ms what tests in paused time wait for.
            stream.set_nodelay(true).unwrap();
            tokio::spawn(async move {
                if let Ok(stream) = tls.accept(stream).await {
                    let _closed = sender.send(Ok::<_, std::io::Error>(Secured(stream))).await;
                }
            });
        }
    });
    let service = Service { state };
    tonic::transport::Server::builder()
        .add_service(sync::sync_server::SyncServer::new(service.clone()))
        .add_service(agent::agent_server::AgentServer::new(service.clone()))
        .add_service(bundle::bundle_server::BundleServer::new(service.clone()))
        .add_service(entry::entry_server::EntryServer::new(service.clone()))
        .add_service(svid::svid_server::SvidServer::new(service))
        .serve_with_incoming(ReceiverStream::new(accepted))
        .await
        .unwrap();
}

#[derive(Clone, Debug)]
struct Service {
    state: Arc<Mutex<State>>,
}

impl Service {
    fn called(&self, what: impl Into<String>) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap();
        state.calls.push(what.into());
        state
    }
}

type Events<T> = UnboundedReceiverStream<Result<T, Status>>;
