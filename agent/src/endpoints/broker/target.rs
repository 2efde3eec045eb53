//! The workload that a broker asks for.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use tonic::{Code, Status};

use super::reference::{KubernetesObject, Reference, ReferenceError};
use super::refusal::Refusal;
use crate::endpoints::session::{Sessions, attestation_failed};
use crate::workload::{AttestorError, FindPodError, PodReference, ProcFs, Process, ProcessError, Workload};

/// A workload that was referred to. As long as it is held, a pid means no other process, and the name of a pod no pod
/// of another UID.
#[derive(Debug)]
pub(super) struct Target {
    workload: Workload,
    _permit: OwnedSemaphorePermit,
}

impl Target {
    /// Finds what a reference names on this machine. Nothing that it says is trusted: facts are found out afterwards,
    /// by the attestors.
    ///
    /// # Errors
    /// `NotFound` when there is no such workload, `Unimplemented` when no attestor here supports workloads of that kind,
    /// `InvalidArgument` when one of that kind cannot be named so, `Unavailable` when it cannot be found out.
    pub(super) async fn find(
        reference: &Reference,
        procfs: &ProcFs,
        sessions: &Sessions,
        permit: OwnedSemaphorePermit,
    ) -> Result<Self, Status> {
        let workload = match reference {
            Reference::Pid(pid) => {
                let process = Process::open(i64::from(*pid), procfs).map_err(|error| cannot_hold(&error))?;
                Workload::Process(Arc::new(process))
            }
            Reference::KubernetesObject(object) => {
                let meant = pod(object)?;
                let found = sessions.attestation().find_pod(&meant).await;
                let found = found.map_err(|error| cannot_find(&error))?;
                Workload::Pod(found.ok_or_else(no_pod)?)
            }
        };
        Ok(Self {
            workload,
            _permit: permit,
        })
    }

    /// The workload.
    pub(super) fn workload(&self) -> &Workload {
        &self.workload
    }

    /// # Errors
    /// The workload has ended, or it cannot be found out whether it has.
    pub(super) async fn check_alive(&self) -> Result<(), Status> {
        match &self.workload {
            Workload::Process(process) if process.is_alive() => Ok(()),
            Workload::Process(_) => Err(self.ended()),
            Workload::Pod(pod) => match pod.is_there().await {
                Ok(true) => Ok(()),
                Ok(false) => Err(self.ended()),
                Err(error) => Err(untold(&error)),
            },
        }
    }

    /// The status for a broker, from one that is meant for the workload itself.
    pub(super) fn explain(&self, status: Status) -> Status {
        let has_ended = match &self.workload {
            Workload::Process(process) => !process.is_alive(),
            Workload::Pod(pod) => pod.is_gone(),
        };
        if has_ended {
            return self.ended();
        }
        match status.code() {
            Code::PermissionDenied => Refusal::NotEntitled.with_metadata(status.metadata().clone()),
            _ => status,
        }
    }

    fn ended(&self) -> Status {
        let text = match &self.workload {
            Workload::Process(_) => "the process with the given pid has ended",
            Workload::Pod(_) => "the pod has ended",
        };
        Refusal::NotFound(text).into()
    }
}

/// The pod that an object is. Others are known by the API of the cluster, which no attestor of this agent asks.
fn pod(object: &KubernetesObject) -> Result<PodReference, Refusal> {
    if (object.plural.as_str(), object.group.as_str()) != ("pods", "core") {
        return Err(Refusal::NoAttestor);
    }
    let name = match &object.key {
        None => None,
        Some(key) => {
            let namespace = key.namespace.clone();
            let namespace = namespace.ok_or(ReferenceError::Unset("key.namespace"))?;
            Some((namespace, key.name.clone()))
        }
    };
    Ok(PodReference {
        name,
        uid: object.uid.map(|uid| uid.to_string()),
    })
}

fn cannot_hold(error: &ProcessError) -> Status {
    match error {
        ProcessError::NotVisible(_) | ProcessError::Gone(_) => no_process(),
        ProcessError::Io { .. } => {
            tracing::warn!(%error, "process that a broker named cannot be held");
            attestation_failed()
        }
    }
}

fn cannot_find(error: &FindPodError) -> Status {
    match error {
        FindPodError::NoAttestor => Refusal::NoAttestor.into(),
        FindPodError::Attestor(error) => untold(error),
    }
}

fn untold(error: &AttestorError) -> Status {
    tracing::warn!(%error, "it cannot be told whether a pod is there that a broker named");
    attestation_failed()
}

fn no_process() -> Status {
    Refusal::NotFound("there is no process with the given pid").into()
}

fn no_pod() -> Status {
    Refusal::NotFound("there is no such pod on this node").into()
}
