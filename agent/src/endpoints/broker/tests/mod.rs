//! The API over real listeners with a real client, for processes whose facts the test decides.
#![allow(clippy::disallowed_methods, reason = "tests wait for several calls at a time")]

mod answers;
mod callers;
mod objects;
mod refusals;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use finial_identity::peer::{self, PeerPolicy, SharedBundles};
use finial_identity::selector::Selector;
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::x509::X509Svid;
use finial_proto::google::rpc;
use finial_proto::spiffe::broker as pb;
use finial_proto::spiffe::broker::api_client::ApiClient;
use hyper_util::rt::TokioIo;
use prost::Message;
use prost_types::Any;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_util::either::Either;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Error};
use tonic::{Code, Request, Status, Streaming};

use super::reference::ReferenceType;
use super::{BROKER_HEADER, BrokerEndpoint, BrokerParts, Transport};
use crate::config::{AllowedBroker, AllowedReference, BindAddress, BrokerSettings};
use crate::endpoints::limits::SocketShare;
use crate::endpoints::listener::LocalSocket;
use crate::endpoints::session::{SessionParts, Sessions};
use crate::endpoints::testing::{FactsByPid, FakePods, TRUST_DOMAIN, Workload, World};
use crate::svids::CachedEntry;
use crate::test_pki::Authority;
use crate::workload::{ProcFs, WorkloadAttestation};

/// Far more than any answer of these tests takes.
const PATIENCE: Duration = Duration::from_secs(30);
const FACT: &str = "unix:uid:1000";

/// An agent with a Broker Endpoint on a Unix socket and on TCP. Of its own trust domain `/broker` may use every
/// type on both, `/local` pids on the Unix socket, and `/objects` objects of Kubernetes; of `other.org`, `/broker`.
#[derive(Debug)]
struct Stage {
    world: World,
    facts: FactsByPid,
    svid: watch::Sender<Option<Arc<X509Svid>>>,
    own_bundle: watch::Sender<Arc<peer::X509Bundles>>,
    path: PathBuf,
    tcp: SocketAddr,
    _dir: tempfile::TempDir,
}

/// Sends the metadata, if there is any.
#[derive(Clone, Debug)]
struct Metadata(Vec<&'static str>);

impl Interceptor for Metadata {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        for value in &self.0 {
            request
                .metadata_mut()
                .append(BROKER_HEADER.0, value.parse().unwrap());
        }
        Ok(request)
    }
}

type Client = ApiClient<InterceptedService<Channel, Metadata>>;

impl Stage {
    async fn new() -> Self {
        Self::with(World::new(), |_share| {}).await
    }

    async fn with(world: World, change: impl FnOnce(&mut SocketShare)) -> Self {
        Self::of(world, change, None).await
    }

    /// With an attestor that knows pods.
    async fn with_pods(pods: &FakePods) -> Self {
        Self::of(World::new(), |_share| {}, Some(pods.clone())).await
    }

    async fn of(mut world: World, change: impl FnOnce(&mut SocketShare), pods: Option<FakePods>) -> Self {
        let facts = FactsByPid::default();
        let attestation = WorkloadAttestation::new(vec![Arc::new(facts.clone())], Duration::from_secs(5));
        let attestation = match pods {
            Some(pods) => attestation.with_pod_lookup(Arc::new(pods)),
            None => attestation,
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("broker/broker.sock");
        let public = LocalSocket::public(&dir.path().join("public/api.sock")).unwrap();
        let endpoint = BrokerEndpoint::bind(&settings(&path), public.path())
            .await
            .unwrap();
        let tcp = endpoint.tcp_addr().unwrap();
        let svid = watch::Sender::new(Some(Arc::new(world.authority.svid("/spire/agent/a"))));
        let own_bundle = watch::Sender::new(Arc::new(bundles(&[&world.authority])));
        let mut share = SocketShare {
            connections: 64,
            processes: 64,
        };
        change(&mut share);
        let stop = world.tasks.stop_signal();
        let sessions = Sessions::new(SessionParts {
            attestation,
            ..world.parts()
        });
        let serving = endpoint.into_tasks(BrokerParts {
            sessions,
            svid: svid.subscribe(),
            own_bundle: Arc::new(SharedBundles::new(own_bundle.subscribe())),
            procfs: ProcFs::default(),
            share,
            stop,
        });
        for (name, task) in serving.unwrap() {
            world.tasks.spawn(name, task);
        }
        Self {
            world,
            facts,
            svid,
            own_bundle,
            path,
            tcp,
            _dir: dir,
        }
    }

    /// A process with the fact that entries of this world are for.
    fn workload(&self) -> Workload {
        let workload = Workload::start();
        self.facts.set(workload.pid(), &[FACT]);
        workload
    }

    /// A connection of whoever shows this SVID.
    async fn connect(&self, transport: Transport, shown: Option<X509Svid>) -> Result<Channel, Error> {
        let socket = match transport {
            Transport::Unix => Either::Left(UnixStream::connect(&self.path).await.unwrap()),
            Transport::Tcp => Either::Right(TcpStream::connect(self.tcp).await.unwrap()),
        };
        self.connect_over(socket, shown).await
    }

    /// The same over a socket that is open already.
    async fn connect_over(
        &self,
        socket: Either<UnixStream, TcpStream>,
        shown: Option<X509Svid>,
    ) -> Result<Channel, Error> {
        let clock = self.world.clock.clone();
        let trusted = Arc::new(SharedBundles::fixed(bundles(&[&self.world.authority])));
        let verifier = peer::server_verifier(trusted, PeerPolicy::Anyone, clock.clone());
        let tls = peer::client_config(verifier, shown.as_ref(), clock);
        let tls = TlsConnector::from(Arc::new(tls));
        let mut socket = Some(socket);
        let dial = tower::service_fn(move |_uri: http::Uri| {
            let (socket, tls) = (socket.take(), tls.clone());
            async move {
                let socket = socket.ok_or(std::io::ErrorKind::NotConnected)?;
                let name = "ignored.example".try_into().map_err(std::io::Error::other)?;
                tls.connect(name, socket).await.map(TokioIo::new)
            }
        });
        in_time(Endpoint::from_static("http://localhost").connect_with_connector(dial)).await
    }

    /// The broker with this path in the agent's trust domain.
    async fn broker(&self, transport: Transport, path: &str) -> Client {
        let channel = self.connect(transport, Some(self.world.authority.svid(path)));
        ApiClient::with_interceptor(channel.await.unwrap(), Metadata(vec![BROKER_HEADER.1]))
    }

    /// The broker that may do everything, on the Unix socket.
    async fn client(&self) -> Client {
        self.broker(Transport::Unix, "/broker").await
    }
}

fn settings(path: &Path) -> BrokerSettings {
    let allowed = |id: &str, type_url: Option<ReferenceType>, allow_over_tcp| AllowedBroker {
        id: SpiffeId::parse(id).unwrap(),
        references: vec![AllowedReference {
            type_url: type_url.map(|kind| kind.url().to_owned()),
            allow_over_tcp,
        }],
    };
    BrokerSettings {
        socket_path: Some(path.to_owned()),
        bind_address: Some(BindAddress {
            host: Some("127.0.0.1".to_owned()),
            port: 0,
        }),
        brokers: vec![
            allowed("spiffe://example.org/broker", None, true),
            allowed("spiffe://example.org/local", Some(ReferenceType::Pid), false),
            allowed(
                "spiffe://example.org/objects",
                Some(ReferenceType::KubernetesObject),
                true,
            ),
            allowed("spiffe://other.org/broker", None, true),
        ],
    }
}

fn bundles(authorities: &[&Authority]) -> peer::X509Bundles {
    let bundles = authorities.iter().map(|authority| {
        let bundle = authority.bundle();
        (bundle.trust_domain.clone(), bundle.x509_certificates().into())
    });
    bundles.collect()
}

fn reference(kind: ReferenceType, message: &impl Message) -> Option<pb::WorkloadReference> {
    Some(pb::WorkloadReference {
        reference: Some(Any {
            type_url: kind.url().to_owned(),
            value: message.encode_to_vec(),
        }),
    })
}

fn pid(pid: u32) -> Option<pb::WorkloadReference> {
    let pid = i32::try_from(pid).unwrap();
    reference(ReferenceType::Pid, &pb::WorkloadPidReference { pid })
}

fn object() -> Option<pb::WorkloadReference> {
    of_kind("pods", "core", Some(("shop", "web")), "")
}

fn of_kind(plural: &str, group: &str, key: Option<(&str, &str)>, uid: &str) -> Option<pb::WorkloadReference> {
    let message = pb::KubernetesObjectReference {
        r#type: Some(pb::KubernetesObjectType {
            plural: plural.to_owned(),
            group: group.to_owned(),
        }),
        key: key.map(|(namespace, name)| pb::KubernetesObjectKey {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }),
        uid: uid.to_owned(),
    };
    reference(ReferenceType::KubernetesObject, &message)
}

async fn svids(
    client: &mut Client,
    reference: Option<pb::WorkloadReference>,
) -> Result<Streaming<pb::SubscribeToX509svidResponse>, Status> {
    let request = pb::SubscribeToX509svidRequest { reference };
    let answer = in_time(client.subscribe_to_x509svid(request)).await;
    answer.map(tonic::Response::into_inner)
}

async fn x509_bundles(
    client: &mut Client,
    reference: Option<pb::WorkloadReference>,
) -> Result<Streaming<pb::SubscribeToX509BundlesResponse>, Status> {
    let request = pb::SubscribeToX509BundlesRequest { reference };
    let answer = in_time(client.subscribe_to_x509_bundles(request)).await;
    answer.map(tonic::Response::into_inner)
}

async fn jwt_bundles(
    client: &mut Client,
    reference: Option<pb::WorkloadReference>,
) -> Result<Streaming<pb::SubscribeToJwtBundlesResponse>, Status> {
    let request = pb::SubscribeToJwtBundlesRequest { reference };
    let answer = in_time(client.subscribe_to_jwt_bundles(request)).await;
    answer.map(tonic::Response::into_inner)
}

async fn tokens(
    client: &mut Client,
    reference: Option<pb::WorkloadReference>,
    audience: &[&str],
    spiffe_id: &str,
) -> Result<Vec<pb::Jwtsvid>, Status> {
    let request = pb::FetchJwtsvidRequest {
        reference,
        audience: audience.iter().map(ToString::to_string).collect(),
        spiffe_id: spiffe_id.to_owned(),
    };
    let answer = in_time(client.fetch_jwtsvid(request)).await?;
    Ok(answer.into_inner().svids)
}

/// How each of the four calls ends at once for a reference.
async fn refusals(client: &mut Client, reference: Option<pb::WorkloadReference>) -> [Status; 4] {
    [
        svids(client, reference.clone()).await.map(drop).unwrap_err(),
        x509_bundles(client, reference.clone())
            .await
            .map(drop)
            .unwrap_err(),
        jwt_bundles(client, reference.clone())
            .await
            .map(drop)
            .unwrap_err(),
        tokens(client, reference, &["db"], "")
            .await
            .map(drop)
            .unwrap_err(),
    ]
}

/// The code of a refusal and the reason in its details.
fn told(status: &Status) -> (Code, Option<String>) {
    let details = rpc::Status::decode(status.details()).unwrap();
    if let Some(detail) = details.details.first() {
        assert_eq!(detail.type_url, "type.googleapis.com/google.rpc.ErrorInfo");
        let info = rpc::ErrorInfo::decode(&*detail.value).unwrap();
        assert_eq!(info.domain, "spiffe.io");
        assert_eq!(
            (details.code, details.message.as_str()),
            (status.code() as i32, status.message())
        );
        return (status.code(), Some(info.reason));
    }
    (status.code(), None)
}

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work)
        .await
        .expect("an answer in time")
}

async fn next<T>(stream: &mut Streaming<T>) -> Result<T, Status> {
    in_time(stream.message())
        .await
        .map(|message| message.expect("streams never end with OK"))
}

/// The paths of the SVIDs in a message.
fn paths(response: &pb::SubscribeToX509svidResponse) -> Vec<&str> {
    let own = format!("spiffe://{TRUST_DOMAIN}");
    let svids = response.svids.iter();
    svids
        .map(|svid| svid.spiffe_id.strip_prefix(&own).unwrap())
        .collect()
}
