//! The workload that a broker asks for.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use tonic::{Code, Status};

use super::reference::Reference;
use super::refusal::Refusal;
use crate::endpoints::session::attestation_failed;
use crate::workload::{ProcFs, Process, ProcessError};

/// A process that was referred to by its pid. As long as it is held, the pid means no other one.
#[derive(Debug)]
pub(super) struct Target {
    process: Arc<Process>,
    _permit: OwnedSemaphorePermit,
}

impl Target {
    /// Finds what a reference names on this machine. Nothing that it says is believed: facts are found out afterwards,
    /// by the attestors.
    ///
    /// # Errors
    /// `NotFound` when there is no such workload, `Unimplemented` when nobody here knows workloads of that kind,
    /// `Unavailable` when it cannot be told.
    pub(super) fn find(
        reference: &Reference,
        procfs: &ProcFs,
        permit: OwnedSemaphorePermit,
    ) -> Result<Self, Status> {
        match reference {
            Reference::Pid(pid) => {
                let process = Process::open(i64::from(*pid), procfs).map_err(|error| cannot_hold(&error))?;
                Ok(Self {
                    process: Arc::new(process),
                    _permit: permit,
                })
            }
            // An object of Kubernetes is known by the API of its cluster, which no attestor of this agent asks.
            Reference::KubernetesObject(_) => Err(Refusal::NoAttestor.into()),
        }
    }

    /// The process.
    pub(super) fn process(&self) -> &Arc<Process> {
        &self.process
    }

    /// # Errors
    /// The process has ended.
    pub(super) fn check_alive(&self) -> Result<(), Status> {
        match self.process.is_alive() {
            true => Ok(()),
            false => Err(ended()),
        }
    }

    /// What to tell a broker of a status that is meant for the workload itself.
    pub(super) fn explain(&self, status: Status) -> Status {
        if !self.process.is_alive() {
            return ended();
        }
        match status.code() {
            Code::PermissionDenied => Refusal::NotEntitled.with_metadata(status.metadata().clone()),
            _ => status,
        }
    }
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

fn no_process() -> Status {
    Refusal::NotFound("there is no process with the given pid").into()
}

fn ended() -> Status {
    Refusal::NotFound("the process with the given pid has ended").into()
}
