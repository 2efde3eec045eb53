//! Whether the agent is healthy: gRPC health on the socket, `/live` and `/ready` over HTTP.
//!
//! Both ask the agent's own Workload API through its socket, as a workload would. An answer that has identities,
//! or says that there are none for the agent itself, is a healthy one.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response as HttpResponse;
use axum::routing::get;
use finial_identity::process::http_listener::health_answer;
use finial_proto::grpc::health::v1::health_check_response::ServingStatus;
use finial_proto::grpc::health::v1::health_server::Health;
use finial_proto::grpc::health::v1::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
};
use finial_proto::workload::X509svidRequest;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, WeakShared};
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};

use super::client;
use crate::node::NodeState;

/// How long the agent's own Workload API may take to answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a good answer is told to others who ask: each takes a connection and an attestation, and anybody may ask.
const KEPT: Duration = Duration::from_secs(1);
/// The same of a bad one, which an agent that is starting soon makes good.
const KEPT_TROUBLE: Duration = Duration::from_millis(100);

/// Asks the agent's own Workload API, once for all who want to know at the same time. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The agent's socket; `None` when the Workload API is switched off, which is healthy.
    socket_path: Option<Arc<PathBuf>>,
    node: watch::Receiver<NodeState>,
    lost: Arc<[String]>,
    asked: Arc<Mutex<Asked>>,
}

/// Whether there are identities, or none for the agent; else why it is not known.
type Answer = Result<(), Trouble>;

/// What clones of a probe share.
#[derive(Debug, Default)]
struct Asked {
    /// The question that is under way, for as long as somebody waits for its answer.
    running: Option<WeakShared<BoxFuture<'static, Answer>>>,
    /// The last answer, and when it came.
    last: Option<(Instant, Answer)>,
}

/// What the probe found.
#[derive(Debug)]
struct Finding {
    state: NodeState,
    answer: Answer,
    lost: Arc<[String]>,
}

/// What is wrong with the Workload API.
#[derive(Clone, Debug, thiserror::Error)]
enum Trouble {
    /// Nobody answers at the socket.
    #[error("workload API is unreachable: {0}")]
    Unreachable(String),
    /// It answers, and cannot serve.
    #[error("workload API answers {code:?}: {message}", code = .0.code(), message = .0.message())]
    CannotServe(Box<Status>),
}

impl Probe {
    /// A probe of the Workload API at `socket_path`.
    pub fn new(socket_path: Option<PathBuf>, node: watch::Receiver<NodeState>) -> Self {
        Self {
            socket_path: socket_path.map(Arc::new),
            node,
            lost: Arc::new([]),
            asked: Arc::default(),
        }
    }

    /// Also tells of files of an earlier run that could not be read, for as long as the agent runs.
    #[must_use]
    pub fn telling(self, lost: Vec<String>) -> Self {
        Self {
            lost: lost.into(),
            ..self
        }
    }

    async fn find(&self) -> Finding {
        Finding {
            answer: self.answer().await,
            state: self.node.borrow().clone(),
            lost: Arc::clone(&self.lost),
        }
    }

    async fn answer(&self) -> Answer {
        let Some(path) = &self.socket_path else {
            return Ok(());
        };
        let running = {
            let mut asked = lock(&self.asked);
            if let Some(answer) = asked.kept() {
                return answer;
            }
            let running = asked.running.as_ref().and_then(WeakShared::upgrade);
            running.unwrap_or_else(|| {
                let begun = ask_for_all(Arc::clone(path), Arc::clone(&self.asked));
                let begun = begun.boxed().shared();
                asked.running = begun.downgrade();
                begun
            })
        };
        running.await
    }
}

impl Asked {
    /// The last answer, if it is still told.
    fn kept(&self) -> Option<Answer> {
        let (at, answer) = self.last.as_ref()?;
        let kept = if answer.is_ok() { KEPT } else { KEPT_TROUBLE };
        (at.elapsed() < kept).then(|| answer.clone())
    }
}

fn lock(asked: &Mutex<Asked>) -> MutexGuard<'_, Asked> {
    // Both fields are replaced whole, so a panic cannot leave one half-changed.
    asked.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn ask_for_all(path: Arc<PathBuf>, asked: Arc<Mutex<Asked>>) -> Answer {
    let answer = match tokio::time::timeout(PROBE_TIMEOUT, ask(&path)).await {
        Ok(answer) => answer,
        Err(_elapsed) => Err(Trouble::Unreachable("no answer in time".to_owned())),
    };
    lock(&asked).last = Some((Instant::now(), answer.clone()));
    answer
}

async fn ask(path: &std::path::Path) -> Answer {
    let unreachable = |error: tonic::transport::Error| Trouble::Unreachable(error.to_string());
    let mut client = client::workload(path).await.map_err(unreachable)?;
    let outcome = match client.fetch_x509svid(X509svidRequest {}).await {
        Ok(answer) => answer.into_inner().message().await.map(drop),
        Err(status) => Err(status),
    };
    match outcome {
        Ok(()) => Ok(()),
        Err(status) if status.code() == Code::PermissionDenied => Ok(()),
        Err(status) => Err(Trouble::CannotServe(Box::new(status))),
    }
}

impl Finding {
    /// The process works; it need not be restarted.
    fn is_live(&self) -> bool {
        !matches!(self.answer, Err(Trouble::Unreachable(_))) && self.state != NodeState::Banned
    }

    /// Workloads are served.
    fn is_ready(&self) -> bool {
        self.answer.is_ok() && self.state.may_serve()
    }

    fn details(&self) -> Map<String, Value> {
        let workload_api = match &self.answer {
            Ok(()) => "ok".to_owned(),
            Err(trouble) => trouble.to_string(),
        };
        let mut agent = json!({"state": self.state.to_string(), "workload_api": workload_api});
        if !self.lost.is_empty()
            && let Some(agent) = agent.as_object_mut()
        {
            agent.insert("lost_files".to_owned(), json!(*self.lost));
        }
        Map::from_iter([("agent".to_owned(), agent)])
    }
}

/// The service `grpc.health.v1.Health`: `Check` of the whole process, as SPIRE has it.
#[derive(Debug)]
pub struct HealthService {
    probe: Probe,
}

impl HealthService {
    /// Answers with what `probe` finds.
    pub fn new(probe: Probe) -> Self {
        Self { probe }
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !request.get_ref().service.is_empty() {
            return Err(Status::invalid_argument("per-service health is not supported"));
        }
        let finding = self.probe.find().await;
        let status = if finding.is_ready() {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        Ok(Response::new(HealthCheckResponse {
            status: status.into(),
        }))
    }

    async fn list(
        &self,
        _request: Request<HealthListRequest>,
    ) -> Result<Response<HealthListResponse>, Status> {
        Err(Status::unimplemented("health is checked, not listed"))
    }

    type WatchStream = tokio_stream::Empty<Result<HealthCheckResponse, Status>>;

    async fn watch(
        &self,
        _request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("health is checked, not watched"))
    }
}

/// Answers HTTP health checks on two paths, which must begin with a slash: 200 when well, else 500, with the details
/// as JSON.
pub fn health_routes(live_path: &str, ready_path: &str, probe: Probe) -> Router {
    let mut routes = Router::new().route(live_path, get(live));
    if ready_path != live_path {
        routes = routes.route(ready_path, get(ready));
    }
    routes.with_state(probe)
}

async fn live(State(probe): State<Probe>) -> HttpResponse {
    let finding = probe.find().await;
    answer(finding.is_live(), &finding)
}

async fn ready(State(probe): State<Probe>) -> HttpResponse {
    let finding = probe.find().await;
    answer(finding.is_ready(), &finding)
}

fn answer(well: bool, finding: &Finding) -> HttpResponse {
    let code = if well {
        StatusCode::OK
    } else {
        StatusCode::INTERNAL_SERVER_ERROR
    };
    health_answer(code, finding.details())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "tests own their tasks")]
    use std::sync::atomic::{AtomicUsize, Ordering};

    use finial_identity::process::http_listener::HttpListener;
    use futures_util::future::join_all;
    use tokio::net::{TcpListener, UnixListener, UnixStream};

    use super::*;
    use crate::endpoints::testing::World;
    use crate::test_http;

    fn finding(state: NodeState, answer: Result<(), Trouble>) -> (bool, bool) {
        let finding = Finding {
            state,
            answer,
            lost: Arc::new([]),
        };
        (finding.is_live(), finding.is_ready())
    }

    #[test]
    fn trouble_with_the_server_is_neither_dead_nor_unready() {
        let degraded = NodeState::Degraded("server unreachable".to_owned());
        assert_eq!(finding(degraded.clone(), Ok(())), (true, true));
        let unsynced = || Err(Trouble::CannotServe(Box::new(Status::unavailable("not synced"))));
        assert_eq!(finding(NodeState::Attesting, unsynced()), (true, false));
        let silent = Err(Trouble::Unreachable("refused".to_owned()));
        assert_eq!(finding(NodeState::Serving, silent), (false, false));
        assert_eq!(finding(NodeState::Banned, Ok(())), (false, false));
    }

    /// A way to a socket that counts the connections on it.
    fn counted(to: PathBuf) -> (PathBuf, Arc<AtomicUsize>) {
        let path = to.with_extension("counted");
        let listener = UnixListener::bind(&path).unwrap();
        let count = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&count);
        tokio::spawn(async move {
            while let Ok((mut near, _from)) = listener.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                let mut far = UnixStream::connect(&to).await.unwrap();
                tokio::spawn(async move {
                    let _closed = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        (path, count)
    }

    #[tokio::test]
    async fn all_who_ask_at_a_time_share_one_connection_and_for_a_second_its_answer() {
        let mut world = World::new();
        world.own_pid = std::process::id();
        let served = world.serve();
        let (path, count) = counted(served.path.clone());
        let probe = Probe::new(Some(path), served.world.node.subscribe());
        let others = probe.clone();
        let findings = join_all((0..100).map(|_| others.find())).await;
        assert!(findings.iter().all(Finding::is_ready));
        assert_eq!(count.load(Ordering::Relaxed), 1);
        tokio::time::pause();
        assert!(probe.find().await.is_ready());
        assert_eq!(count.load(Ordering::Relaxed), 1);
        tokio::time::advance(KEPT).await;
        tokio::time::resume();
        assert!(probe.find().await.is_ready());
        assert_eq!(count.load(Ordering::Relaxed), 2);
        served.stop().await;
    }

    #[tokio::test]
    async fn who_stops_waiting_takes_the_answer_from_nobody() {
        let served = World::new().serve();
        let (path, count) = counted(served.path.clone());
        let probe = Probe::new(Some(path), served.world.node.subscribe());
        let gone = probe.clone();
        let mut first = Box::pin(gone.find());
        assert!((&mut first).now_or_never().is_none());
        let mut second = Box::pin(probe.find());
        assert!((&mut second).now_or_never().is_none());
        drop(first);
        assert!(second.await.is_ready());
        assert_eq!(count.load(Ordering::Relaxed), 1);
        // With nobody left the question is given up, and the next who asks begins anew.
        lock(&probe.asked).last = None;
        assert!(Box::pin(probe.find()).now_or_never().is_none());
        assert!(probe.find().await.is_ready());
        served.stop().await;
    }

    #[tokio::test]
    async fn an_agent_whose_own_svid_is_not_signed_lives_and_is_not_ready() {
        let mut world = World::new();
        world.own_pid = std::process::id();
        let served = world.serve();
        served.world.publish_entries(vec![served.world.unissued("agent")]);
        let node = || served.world.node.subscribe();
        let finding = Probe::new(Some(served.path.clone()), node()).find().await;
        assert_eq!(
            (finding.is_live(), finding.is_ready()),
            (true, false),
            "{finding:?}"
        );
        let entries = vec![served.world.entry("agent"), served.world.unissued("other")];
        served.world.publish_entries(entries);
        let finding = Probe::new(Some(served.path.clone()), node()).find().await;
        assert_eq!(
            (finding.is_live(), finding.is_ready()),
            (true, true),
            "{finding:?}"
        );
        served.stop().await;
    }

    #[tokio::test]
    async fn http_tells_the_state_of_the_node() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (node, watcher) = watch::channel(NodeState::Degraded("no route".to_owned()));
        let routes = health_routes("/live", "/ready", Probe::new(None, watcher));
        let mut tasks = finial_identity::process::TaskSet::new();
        let stop = tasks.stop_signal();
        tasks.spawn("health", HttpListener::new(listener, routes).run(stop));
        let ask = |path| test_http::get(address, path);
        let answer = ask("/ready").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        assert!(answer.contains("content-type: application/json"), "{answer}");
        assert!(
            answer.ends_with(r#"{"agent":{"state":"degraded: no route","workload_api":"ok"}}"#),
            "{answer}"
        );
        node.send_replace(NodeState::Banned);
        assert!(ask("/live").await.starts_with("HTTP/1.1 500 "));
        assert!(ask("/other").await.starts_with("HTTP/1.1 404 "));
        tasks.run_until_first_exit(std::future::ready(())).await.unwrap();
    }
}
