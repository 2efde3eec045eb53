//! A real server in this process, and clients for it.
#![allow(clippy::disallowed_methods)] // The server under test runs beside the test that calls it.

use std::path::PathBuf;
use std::sync::Arc;

use finial_identity::key::{KeyType, PrivateKey};
use finial_identity::peer;
use finial_identity::process::{Clock, TaskError};
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use finial_identity::wire;
use finial_identity::x509::{Certificate, Csr, CsrSubject, X509Svid};
use finial_proto::spire::api::server::agent::v1 as agent_pb;
use finial_proto::spire::api::server::agent::v1::agent_client::AgentClient;
use finial_proto::spire::api::server::agent::v1::attest_agent_request::{Params, Step};
use finial_proto::spire::api::server::agent::v1::attest_agent_response::Step as Answer;
use finial_proto::spire::api::server::entry::v1::BatchCreateEntryRequest;
use finial_proto::spire::api::server::entry::v1::entry_client::EntryClient;
use finial_proto::spire::api::types;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tempfile::TempDir;
use time::Duration;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::app;
use crate::config::Config;
use crate::telemetry::LogSettings;

/// A server that runs until the test ends.
pub(crate) struct TestServer {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) clock: Clock,
    pub(crate) socket: PathBuf,
    pub(crate) health: Option<std::net::SocketAddr>,
    address: std::net::SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<Result<(), TaskError>>>,
    _dir: TempDir,
}

/// An agent that attested, with the means to call as it.
#[derive(Clone)]
pub(crate) struct TestAgent {
    pub(crate) id: SpiffeId,
    pub(crate) svid: Arc<X509Svid>,
}

impl TestServer {
    pub(crate) async fn start() -> Self {
        Self::start_with(|config| config).await
    }

    /// With a configuration changed from that of `dev`.
    pub(crate) async fn start_with(change: impl FnOnce(Config) -> Config) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        let clock = Clock::offset(Duration::ZERO);
        let config = change(Config::dev(
            trust_domain.clone(),
            &dir.path().join("data"),
            &dir.path().join("run/api.sock"),
        ));
        let (_dispatch, log) = LogSettings::default().build(clock.clone()).unwrap();
        let bound = app::build(config, clock.clone(), log).await.unwrap();
        let health = bound.health_addr();
        let (stop, stopped) = oneshot::channel::<()>();
        let (address, socket) = (bound.tcp_addr(), bound.socket_path().to_owned());
        let running = tokio::spawn(bound.run(async move {
            let _dropped = stopped.await;
        }));
        Self {
            trust_domain,
            clock,
            socket,
            health,
            address,
            stop: Some(stop),
            running: Some(running),
            _dir: dir,
        }
    }

    /// Stops the server and tells how it ended.
    pub(crate) async fn stop(mut self) -> Result<(), TaskError> {
        self.stop.take().unwrap().send(()).unwrap();
        self.running.take().unwrap().await.unwrap()
    }

    /// Calls over the private socket.
    pub(crate) async fn local(&self) -> Channel {
        let socket = self.socket.clone();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        Endpoint::from_static("http://localhost")
            .connect_with_connector(connector)
            .await
            .unwrap()
    }

    /// Calls over TLS without a certificate.
    pub(crate) async fn anonymous(&self) -> Channel {
        self.remote(None).await.unwrap()
    }

    /// Calls over TLS as an agent.
    pub(crate) async fn as_agent(&self, agent: &TestAgent) -> Channel {
        self.remote(Some(agent.svid.clone())).await.unwrap()
    }

    /// Calls over TLS with or without a certificate.
    pub(crate) async fn remote(
        &self,
        svid: Option<Arc<X509Svid>>,
    ) -> Result<Channel, tonic::transport::Error> {
        let verifier = peer::insecure_server_verifier(self.trust_domain.server_id());
        let tls = peer::client_config(verifier, svid.as_deref(), self.clock.clone());
        let tls = TlsConnector::from(Arc::new(tls));
        let address = self.address;
        let connector = tower::service_fn(move |_| {
            let tls = tls.clone();
            async move {
                let stream = TcpStream::connect(address).await?;
                let name = ServerName::try_from("spire-server").unwrap();
                tls.connect(name, stream).await.map(TokioIo::new)
            }
        });
        Endpoint::from_static("http://localhost")
            .connect_with_connector(connector)
            .await
    }

    /// A join token, good for ten minutes.
    pub(crate) async fn token(&self) -> String {
        AgentClient::new(self.local().await)
            .create_join_token(agent_pb::CreateJoinTokenRequest {
                ttl: 600,
                ..Default::default()
            })
            .await
            .unwrap()
            .into_inner()
            .value
    }

    /// An agent attested with a new join token.
    pub(crate) async fn attest(&self) -> TestAgent {
        let token = self.token().await;
        self.attest_with(&token).await.unwrap()
    }

    /// An agent attested with this join token.
    pub(crate) async fn attest_with(&self, token: &str) -> Result<TestAgent, Status> {
        let key = new_key();
        let data = types::AttestationData {
            r#type: "join_token".to_owned(),
            payload: token.as_bytes().to_vec(),
        };
        let answer = self.attest_raw(data, csr(&key)).await?;
        let svid = answer.svid.unwrap();
        Ok(agent_of(&svid, key))
    }

    /// Attestation with any data.
    pub(crate) async fn attest_raw(
        &self,
        data: types::AttestationData,
        csr: Vec<u8>,
    ) -> Result<agent_pb::attest_agent_response::Result, Status> {
        let request = agent_pb::AttestAgentRequest {
            step: Some(Step::Params(Params {
                data: Some(data),
                params: Some(agent_pb::AgentX509svidParams { csr }),
            })),
        };
        let mut client = AgentClient::new(self.anonymous().await);
        let mut answers = client
            .attest_agent(tokio_stream::once(request))
            .await?
            .into_inner();
        match answers.message().await?.unwrap().step.unwrap() {
            Answer::Result(result) => Ok(result),
            Answer::Challenge(_) => panic!("join tokens have no challenge"),
        }
    }

    /// Creates an entry and returns it as the server stored it.
    pub(crate) async fn entry(&self, entry: types::Entry) -> types::Entry {
        let mut client = EntryClient::new(self.local().await);
        let request = BatchCreateEntryRequest {
            entries: vec![entry],
            output_mask: None,
        };
        let mut results = client
            .batch_create_entry(request)
            .await
            .unwrap()
            .into_inner()
            .results;
        let result = results.pop().unwrap();
        assert_eq!(
            result.status.as_ref().unwrap().code,
            Code::Ok as i32,
            "{:?}",
            result.status
        );
        result.entry.unwrap()
    }

    /// `spiffe://example.org<path>`
    pub(crate) fn id(&self, path: &str) -> types::Spiffeid {
        wire::spiffe_id_to_wire(&SpiffeId::new(&self.trust_domain, path).unwrap())
    }
}

/// An entry for user 1000 below a parent.
pub(crate) fn entry_below(parent: types::Spiffeid, spiffe_id: types::Spiffeid) -> types::Entry {
    types::Entry {
        spiffe_id: Some(spiffe_id),
        parent_id: Some(parent),
        selectors: vec![selector("unix:uid:1000")],
        ..types::Entry::default()
    }
}

pub(crate) fn selector(text: &str) -> types::Selector {
    let (kind, value) = text.split_once(':').unwrap();
    types::Selector {
        r#type: kind.to_owned(),
        value: value.to_owned(),
    }
}

pub(crate) fn new_key() -> Arc<PrivateKey> {
    Arc::new(PrivateKey::generate(KeyType::EcP256).unwrap())
}

pub(crate) fn csr(key: &PrivateKey) -> Vec<u8> {
    Csr::build(key, CsrSubject::spire(), None, &[]).unwrap()
}

pub(crate) fn certificates(svid: &types::X509svid) -> Vec<Certificate> {
    svid.cert_chain
        .iter()
        .map(|der| Certificate::parse(der).unwrap())
        .collect()
}

/// The agent to whom the server gave this SVID for this key.
pub(crate) fn agent_of(svid: &types::X509svid, key: Arc<PrivateKey>) -> TestAgent {
    let svid = X509Svid::new(certificates(svid), key).unwrap();
    TestAgent {
        id: svid.spiffe_id().clone(),
        svid: Arc::new(svid),
    }
}

/// The reason in the details of a refusal.
pub(crate) fn reason(status: &Status) -> types::permission_denied_details::Reason {
    use prost::Message;
    let details = finial_proto::google::rpc::Status::decode(status.details()).unwrap();
    let any = details.details.first().unwrap();
    types::PermissionDeniedDetails::decode(any.value.as_slice())
        .unwrap()
        .reason()
}
