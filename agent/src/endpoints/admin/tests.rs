#![allow(clippy::disallowed_methods, reason = "tests stand on the real time")]

use std::path::PathBuf;
use std::sync::Arc;

use finial_identity::process::Clock;
use finial_identity::process::log::{self, LogFormat, LogOptions};
use finial_proto::grpc::health::v1::HealthCheckRequest;
use finial_proto::spire::agent::debug::v1::GetInfoRequest;
use finial_proto::spire::agent::debug::v1::debug_client::DebugClient;
use finial_proto::spire::api::agent::logger::v1::logger_client::LoggerClient;
use finial_proto::spire::api::agent::logger::v1::{
    GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest,
};
use finial_proto::spire::api::types;
use time::{Duration, OffsetDateTime};
use tokio::sync::watch;
use tonic::Code;

use super::*;
use crate::endpoints::client;
use crate::endpoints::health::Probe;
use crate::endpoints::limits::Admission;
use crate::endpoints::listener::LocalSocket;
use crate::endpoints::routes::LocalRoutes;
use crate::endpoints::testing::World;
use crate::svids::CachedEntry;
use crate::telemetry::{LogControl, LogLevel};
use crate::workload::ProcFs;

/// An agent's admin socket, with debug and logger.
struct Stage {
    world: World,
    log: LogControl,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let mut world = World::at(Clock::offset(Duration::ZERO));
        let options = LogOptions {
            level: LogLevel::Warn,
            format: LogFormat::Text,
            file: None,
            source_location: false,
            clock: world.clock.clone(),
        };
        let (_dispatch, log) = log::build(options).unwrap();
        let own = world.authority.svid("/spire/agent/join_token/a");
        let (_own, svid) = watch::channel(Some(Arc::new(own)));
        let debug = DebugParts {
            svid,
            svids: world.svids.clone(),
            clock: world.clock.clone(),
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("private/admin.sock");
        let public = LocalSocket::public(&dir.path().join("public/api.sock")).unwrap();
        let socket = LocalSocket::private(&path, public.path()).unwrap();
        let routes = LocalRoutes::new(Probe::new(None, world.node.subscribe()))
            .with(DebugService::server(debug))
            .with(LoggerService::server(log.clone()))
            .build()
            .unwrap();
        let stop = world.tasks.stop_signal();
        let serve = socket.serve(routes, Admission::new(64), ProcFs::default(), stop);
        world.tasks.spawn("admin", serve);
        Self {
            world,
            log,
            path,
            _dir: dir,
        }
    }
}

#[tokio::test]
async fn the_level_is_told_set_and_set_back() {
    let stage = Stage::new();
    let mut logger = LoggerClient::new(client::connect(&stage.path).await.unwrap());
    let levels = |current: types::LogLevel| types::Logger {
        current_level: current.into(),
        launch_level: types::LogLevel::Warn.into(),
    };
    let told = logger.get_logger(GetLoggerRequest {}).await.unwrap().into_inner();
    assert_eq!(told, levels(types::LogLevel::Warn));
    let set = |new_level: i32| SetLogLevelRequest { new_level };
    let told = logger
        .set_log_level(set(types::LogLevel::Trace.into()))
        .await
        .unwrap();
    assert_eq!(told.into_inner(), levels(types::LogLevel::Trace));
    assert_eq!(stage.log.current(), LogLevel::Trace);
    for wrong in [0, 8, -1] {
        let status = logger.set_log_level(set(wrong)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
    assert_eq!(stage.log.current(), LogLevel::Trace);
    let told = logger.reset_log_level(ResetLogLevelRequest {}).await.unwrap();
    assert_eq!(told.into_inner(), levels(types::LogLevel::Warn));
    assert_eq!(stage.log.current(), LogLevel::Warn);
}

#[tokio::test]
async fn debug_counts_and_names_the_agent_and_is_some_seconds_old() {
    let stage = Stage::new();
    let stored = CachedEntry {
        store_svid: true,
        ..stage.world.entry("stored")
    };
    let entries = vec![stage.world.entry("a"), stored, stage.world.unissued("unissued")];
    stage.world.publish_entries(entries);
    let synced_at = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
    stage
        .world
        .publish(|snapshot| snapshot.synced_at = Some(synced_at));
    let a = stage.world.svids.snapshot().entry("a").unwrap().spiffe_id.clone();
    stage.world.svids.jwt("a", &a, &["x".to_owned()]).await.unwrap();

    let mut debug = DebugClient::new(client::connect(&stage.path).await.unwrap());
    stage.world.clock.shift(Duration::seconds(90));
    let info = debug.get_info(GetInfoRequest {}).await.unwrap().into_inner();
    assert!((90..120).contains(&info.uptime), "{}", info.uptime);
    assert_eq!(info.last_sync_success, 1_800_000_000);
    assert_eq!((info.svids_count, info.cached_x509_svids_count), (1, 1));
    assert_eq!(
        (
            info.cached_jwt_svids_count,
            info.cached_svidstore_x509_svids_count
        ),
        (1, 1)
    );
    let [leaf, root] = &info.svid_chain[..] else {
        panic!("{:?}", info.svid_chain)
    };
    assert_eq!(leaf.id.as_ref().unwrap().path, "/spire/agent/join_token/a");
    assert_eq!(
        root.expires_at,
        stage.world.authority.certificate().not_after().unix_timestamp()
    );
    assert_eq!(root.id.as_ref().unwrap().path, "");

    stage.world.publish_entries(Vec::new());
    stage.world.clock.shift(Duration::seconds(3));
    assert_eq!(
        debug.get_info(GetInfoRequest {}).await.unwrap().into_inner(),
        info
    );
    stage.world.clock.shift(Duration::seconds(5));
    let later = debug.get_info(GetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(
        (later.cached_x509_svids_count, later.svid_chain),
        (0, info.svid_chain)
    );
}

#[tokio::test]
async fn health_and_reflection_stand_on_the_admin_socket_too() {
    let stage = Stage::new();
    let check = HealthCheckRequest {
        service: String::new(),
    };
    let mut health = client::health(&stage.path).await.unwrap();
    assert_eq!(health.check(check).await.unwrap().into_inner().status, 1);
    let mut names = Vec::new();
    let reflection = client::connect(&stage.path).await.unwrap();
    let mut reflection =
        tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient::new(reflection);
    let request = tonic_reflection::pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            tonic_reflection::pb::v1::server_reflection_request::MessageRequest::ListServices(String::new()),
        ),
    };
    let mut answers = reflection
        .server_reflection_info(tokio_stream::once(request))
        .await
        .unwrap()
        .into_inner();
    let answer = answers
        .message()
        .await
        .unwrap()
        .unwrap()
        .message_response
        .unwrap();
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    if let MessageResponse::ListServicesResponse(list) = answer {
        names.extend(list.service.into_iter().map(|service| service.name));
    }
    names.sort();
    assert_eq!(
        names,
        [
            "grpc.health.v1.Health",
            "spire.agent.debug.v1.Debug",
            "spire.api.agent.logger.v1.Logger",
        ]
    );
}
