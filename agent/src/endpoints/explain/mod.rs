//! `finial.agent.explain.v1.Explain`: why a process has the identities it has, or has none. For operators, on the
//! admin socket.

mod comparison;
mod pod;
mod redaction;

use std::collections::HashSet;
use std::sync::Arc;

use finial_identity::selector::Selector;
use finial_identity::x509::X509Svid;
use finial_proto::finial::agent::explain::v1::explain_server::{Explain, ExplainServer};
use finial_proto::finial::agent::explain::v1::{
    Attestor, ExplainProcessRequest, ExplainProcessResponse, ExplainRefusalRequest, ExplainRefusalResponse,
    Pod as PodMessage, Process as ProcessMessage, State,
};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

pub use self::redaction::Redaction;
use super::limits::MAX_REQUEST_BYTES;
use super::listener::Caller;
use super::session::SessionParts;
use crate::socket_tree::SocketTree;
use crate::svids::Snapshot;
use crate::workload::{AttestError, AttestorReport, Pod, ProcFs, Process, Workload};

/// What tells the facts about a pod, as in the configuration.
const POD_ATTESTOR: &str = "k8s";

/// What the service looks at.
#[derive(Clone, Debug)]
pub struct ExplainParts {
    /// What calls of workloads stand on.
    pub sessions: SessionParts,
    /// The agent's own SVID.
    pub svid: watch::Receiver<Option<Arc<X509Svid>>>,
    /// Which values are hidden.
    pub redaction: Redaction,
    /// Where processes are looked up.
    pub procfs: ProcFs,
    /// Where the sockets of pods are, when each pod has its own.
    pub pod_sockets: Option<SocketTree>,
}

/// Answers the Explain service.
#[derive(Debug)]
pub struct ExplainService {
    parts: ExplainParts,
}

impl ExplainService {
    /// The service on top of its parts.
    pub fn server(parts: ExplainParts) -> ExplainServer<Self> {
        ExplainServer::new(Self { parts }).max_decoding_message_size(MAX_REQUEST_BYTES)
    }

    fn state(&self, snapshot: &Snapshot) -> State {
        let parts = &self.parts;
        let own = parts.svid.borrow();
        let synced_at = snapshot.synced_at.max(parts.sessions.svids.synced_at());
        State {
            agent: parts.sessions.node.borrow().to_string(),
            agent_id: own
                .as_ref()
                .map(|svid| svid.spiffe_id().to_string())
                .unwrap_or_default(),
            entries: i64::try_from(snapshot.entries.len()).unwrap_or(i64::MAX),
            synced_at: unix(synced_at),
            now: parts.sessions.clock.now().unix_timestamp(),
        }
    }

    fn may_serve(&self) -> bool {
        self.parts.sessions.node.borrow().may_serve()
    }

    fn attestor(&self, report: &AttestorReport) -> Attestor {
        let (mut selectors, error) = match &report.outcome {
            Ok(facts) => (
                facts.iter().map(|fact| self.parts.redaction.show(fact)).collect(),
                String::new(),
            ),
            Err(error) => (Vec::new(), error.to_string()),
        };
        selectors.sort_unstable();
        Attestor {
            name: report.name.to_owned(),
            took_microseconds: i64::try_from(report.took.as_micros()).unwrap_or(i64::MAX),
            selectors,
            error,
        }
    }
}

impl ExplainService {
    /// The pod that is asked about.
    fn named_pod(&self, uid: &str) -> Result<Arc<Pod>, Status> {
        let tree = self.parts.pod_sockets.as_ref().ok_or_else(|| {
            Status::failed_precondition("pods of this node have no sockets of their own: agent.csi.per_pod")
        })?;
        pod::find(tree, uid, self.parts.sessions.stop.clone())
    }

    /// The pod that the process is in, if that has a socket of its own.
    fn pod_of(&self, process: &Process) -> Option<Arc<Pod>> {
        let tree = self.parts.pod_sockets.as_ref()?;
        pod::find(tree, &pod::uid_of(process)?, self.parts.sessions.stop.clone()).ok()
    }

    /// How whoever calls on the pod's socket is known.
    async fn examine(&self, pod: Arc<Pod>) -> Result<PodMessage, Status> {
        let record = pod.record().clone();
        let begun = Instant::now();
        let workload = Workload::Pod(pod);
        let outcome = match self.parts.sessions.attestation.attest_workload(&workload).await {
            Ok(facts) => Ok(facts),
            Err(AttestError::Attestor { source, .. }) => Err(source),
            Err(gone) => return Err(Status::unavailable(gone.to_string())),
        };
        let snapshot = self.parts.sessions.svids.snapshot();
        let none = HashSet::new();
        let (facts, attested) = (outcome.as_ref().unwrap_or(&none), outcome.is_ok());
        let found = comparison::compare(&snapshot, facts, &self.parts.redaction);
        let verdict = comparison::verdict(&snapshot, &found.matches, attested, self.may_serve());
        let report = AttestorReport {
            name: POD_ATTESTOR,
            took: begun.elapsed(),
            outcome: outcome.map(|facts| facts.into_iter().collect()),
        };
        Ok(PodMessage {
            uid: record.uid,
            namespace: record.namespace,
            name: record.name,
            service_account: record.service_account,
            attestor: Some(self.attestor(&report)),
            matches: found.matches,
            near_misses: if attested { found.near_misses } else { Vec::new() },
            verdict: verdict.into(),
        })
    }
}

#[tonic::async_trait]
impl Explain for ExplainService {
    async fn explain_process(
        &self,
        request: Request<ExplainProcessRequest>,
    ) -> Result<Response<ExplainProcessResponse>, Status> {
        let caller = request.extensions().get::<Caller>();
        // Looking into a process costs as much as serving it.
        let _turn = match caller {
            None => None,
            Some(caller) => Some(caller.admitted.turn().await),
        };
        let ExplainProcessRequest { pid, pod_uid } = request.get_ref();
        if !pod_uid.is_empty() {
            let pod = self.examine(self.named_pod(pod_uid)?).await?;
            return Ok(Response::new(ExplainProcessResponse {
                pod: Some(pod),
                state: Some(self.state(&self.parts.sessions.svids.snapshot())),
                ..ExplainProcessResponse::default()
            }));
        }
        let process = match *pid {
            0 => {
                let caller = caller.ok_or_else(|| Status::internal("connection has no peer"))?;
                let process = caller.peer.process();
                Arc::clone(process.map_err(|error| Status::unavailable(error.to_string()))?)
            }
            pid => {
                let process = Process::open(i64::from(pid), &self.parts.procfs);
                Arc::new(process.map_err(|error| Status::not_found(error.to_string()))?)
            }
        };
        let reports = self.parts.sessions.attestation.examine(&process).await;
        if !process.is_alive() {
            return Err(Status::unavailable(format!(
                "process ended meanwhile: pid {}",
                process.pid()
            )));
        }
        let facts: HashSet<Selector> = reports
            .iter()
            .filter_map(|report| report.outcome.as_ref().ok())
            .flatten()
            .cloned()
            .collect();
        let attested = reports.iter().all(|report| report.outcome.is_ok());
        let snapshot = self.parts.sessions.svids.snapshot();
        let found = comparison::compare(&snapshot, &facts, &self.parts.redaction);
        let verdict = comparison::verdict(&snapshot, &found.matches, attested, self.may_serve());
        let pod = match self.pod_of(&process) {
            // One that goes meanwhile takes nothing from what was found out about the process.
            Some(pod) => self.examine(pod).await.ok(),
            None => None,
        };
        Ok(Response::new(ExplainProcessResponse {
            process: Some(ProcessMessage {
                pid: i32::try_from(process.pid()).unwrap_or_default(),
                started_at: unix(process.started_at()),
            }),
            attestors: reports.iter().map(|report| self.attestor(report)).collect(),
            matches: found.matches,
            near_misses: found.near_misses,
            state: Some(self.state(&snapshot)),
            verdict: verdict.into(),
            pod,
        }))
    }

    async fn explain_refusal(
        &self,
        request: Request<ExplainRefusalRequest>,
    ) -> Result<Response<ExplainRefusalResponse>, Status> {
        let refused = self.parts.sessions.refusals.find(&request.get_ref().reference);
        let refused = refused.ok_or_else(|| {
            Status::not_found("no such reference: the agent remembers the last 4096 since it started")
        })?;
        let snapshot = self.parts.sessions.svids.snapshot();
        let none = HashSet::new();
        let facts = refused.selectors.as_deref().unwrap_or(&none);
        let found = comparison::compare(&snapshot, facts, &self.parts.redaction);
        let attested = refused.selectors.is_some();
        let verdict = comparison::verdict(&snapshot, &found.matches, attested, self.may_serve());
        let mut selectors: Vec<String> = facts.iter().map(|fact| self.parts.redaction.show(fact)).collect();
        selectors.sort_unstable();
        Ok(Response::new(ExplainRefusalResponse {
            refused_at: refused.at.unix_timestamp(),
            method: refused.access.method().to_owned(),
            process: Some(ProcessMessage {
                pid: i32::try_from(refused.pid).unwrap_or_default(),
                started_at: unix(refused.started_at),
            }),
            selectors,
            status: refused.reason,
            state: Some(self.state(&snapshot)),
            matches: found.matches,
            near_misses: if attested { found.near_misses } else { Vec::new() },
            verdict: verdict.into(),
        }))
    }
}

fn unix(at: Option<OffsetDateTime>) -> i64 {
    at.map_or(0, OffsetDateTime::unix_timestamp)
}
