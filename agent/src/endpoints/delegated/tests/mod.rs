//! The API over a real admin socket, with processes whose facts the test decides.
#![allow(clippy::disallowed_methods, reason = "tests wait for several calls at a time")]

mod refusals;
mod streams;
mod targets;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use finial_identity::selector::Selector;
use finial_identity::spiffe_id::SpiffeId;
use finial_proto::spire::api::agent::delegatedidentity::v1 as pb;
use finial_proto::spire::api::agent::delegatedidentity::v1::delegated_identity_client::DelegatedIdentityClient;
use finial_proto::spire::api::types;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::{DelegatedIdentity, DelegatedIdentityParts};
use crate::endpoints::client;
use crate::endpoints::health::Probe;
use crate::endpoints::limits::Admission;
use crate::endpoints::listener::LocalSocket;
use crate::endpoints::routes::LocalRoutes;
use crate::endpoints::testing::{FactsByPid, TRUST_DOMAIN, Workload, World};
use crate::svids::CachedEntry;
use crate::workload::{ProcFs, WorkloadAttestation};

/// Far more than any answer of these tests takes.
const PATIENCE: Duration = Duration::from_secs(30);
/// The fact about the delegate, which is this process.
const DELEGATE: &str = "unix:uid:7";

/// An agent with an admin socket, whose delegate is `spiffe://example.org/delegate`.
#[derive(Debug)]
struct Stage {
    world: World,
    facts: FactsByPid,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

fn parts(world: &World, facts: &FactsByPid) -> DelegatedIdentityParts {
    DelegatedIdentityParts {
        attestation: WorkloadAttestation::new(vec![Arc::new(facts.clone())], Duration::from_secs(5)),
        svids: world.svids.clone(),
        node: world.node.subscribe(),
        stop: world.tasks.stop_signal(),
        clock: world.clock.clone(),
        procfs: ProcFs::default(),
        authorized_delegates: vec![SpiffeId::parse("spiffe://example.org/delegate").unwrap()],
        max_processes: 1,
        sync_interval: Duration::from_millis(50),
    }
}

impl Stage {
    fn new() -> Self {
        let (mut world, facts) = (World::new(), FactsByPid::default());
        facts.set(std::process::id(), &[DELEGATE]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("private/admin.sock");
        let public = LocalSocket::public(&dir.path().join("public/api.sock")).unwrap();
        let socket = LocalSocket::private(&path, public.path()).unwrap();
        let routes = LocalRoutes::new(Probe::new(None, world.node.subscribe()))
            .with(DelegatedIdentity::server(parts(&world, &facts)))
            .build()
            .unwrap();
        let stop = world.tasks.stop_signal();
        let serve = socket.serve(routes, Admission::new(64), ProcFs::default(), stop);
        world.tasks.spawn("admin", serve);
        let stage = Self {
            world,
            facts,
            path,
            _dir: dir,
        };
        stage.publish(Vec::new());
        stage
    }

    /// These entries beside that of the delegate.
    fn publish(&self, entries: Vec<CachedEntry>) {
        let mut all = vec![CachedEntry {
            selectors: vec![selector(DELEGATE)],
            ..self.world.entry("delegate")
        }];
        all.extend(entries);
        all.sort_by(|one, other| one.entry_id.cmp(&other.entry_id));
        self.world.publish_entries(all);
    }

    /// An entry with its SVID for `fact`.
    fn entry(&self, id: &str, fact: &str) -> CachedEntry {
        CachedEntry {
            selectors: vec![selector(fact)],
            ..self.world.entry(id)
        }
    }

    async fn client(&self) -> DelegatedIdentityClient<Channel> {
        DelegatedIdentityClient::new(client::connect(&self.path).await.unwrap())
    }

    async fn svids(
        &self,
        selectors: &[&str],
        pid: u32,
    ) -> Result<Streaming<pb::SubscribeToX509sviDsResponse>, Status> {
        let request = pb::SubscribeToX509sviDsRequest {
            selectors: wire_selectors(selectors),
            pid: i32::try_from(pid).unwrap(),
        };
        let answer = in_time(async { self.client().await.subscribe_to_x509svi_ds(request).await });
        answer.await.map(tonic::Response::into_inner)
    }

    async fn jwt(
        &self,
        audience: &[&str],
        selectors: &[&str],
        pid: i32,
    ) -> Result<Vec<types::Jwtsvid>, Status> {
        let request = pb::FetchJwtsviDsRequest {
            audience: audience.iter().map(ToString::to_string).collect(),
            selectors: wire_selectors(selectors),
            pid,
        };
        let answer = in_time(async { self.client().await.fetch_jwtsvi_ds(request).await }).await?;
        Ok(answer.into_inner().svids)
    }

    async fn x509_bundles(&self) -> Result<Streaming<pb::SubscribeToX509BundlesResponse>, Status> {
        let request = pb::SubscribeToX509BundlesRequest {};
        let answer = in_time(async { self.client().await.subscribe_to_x509_bundles(request).await });
        answer.await.map(tonic::Response::into_inner)
    }

    async fn jwt_bundles(&self) -> Result<Streaming<pb::SubscribeToJwtBundlesResponse>, Status> {
        let request = pb::SubscribeToJwtBundlesRequest {};
        let answer = in_time(async { self.client().await.subscribe_to_jwt_bundles(request).await });
        answer.await.map(tonic::Response::into_inner)
    }

    /// How each of the four calls is refused.
    async fn refusals(&self) -> [(Code, String); 4] {
        let told = |status: Status| (status.code(), status.message().to_owned());
        [
            told(self.svids(&["unix:uid:1000"], 0).await.unwrap_err()),
            told(self.x509_bundles().await.unwrap_err()),
            told(self.jwt_bundles().await.unwrap_err()),
            told(self.jwt(&["a"], &["unix:uid:1000"], 0).await.unwrap_err()),
        ]
    }
}

fn selector(text: &str) -> Selector {
    Selector::parse(text).unwrap()
}

fn wire_selectors(texts: &[&str]) -> Vec<types::Selector> {
    let selectors: Vec<Selector> = texts.iter().map(|text| selector(text)).collect();
    finial_identity::wire::selectors_to_wire(&selectors)
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
fn paths(response: &pb::SubscribeToX509sviDsResponse) -> Vec<&str> {
    let svids = response.x509_svids.iter();
    svids
        .map(|svid| {
            let id = svid.x509_svid.as_ref().unwrap().id.as_ref().unwrap();
            assert_eq!(id.trust_domain, TRUST_DOMAIN);
            id.path.as_str()
        })
        .collect()
}
