//! For whom a delegate asks.

use std::collections::HashSet;
use std::sync::Arc;

use finial_identity::selector::Selector;
use finial_identity::wire;
use finial_proto::spire::api::types;
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;

use super::Shared;
use crate::endpoints::limits::Admitted;
use crate::endpoints::session::attestation_failed;
use crate::workload::{AttestError, Process, ProcessError};

/// Most selectors of one request. Facts about a pod with all its labels and containers are a few hundred.
const MAX_SELECTORS: usize = 1024;
/// Most bytes of them together.
const MAX_SELECTOR_BYTES: usize = 128 * 1024;

/// The workload that the identities are for.
#[derive(Debug)]
pub(super) struct Target {
    selectors: Arc<HashSet<Selector>>,
    held: Option<Held>,
}

/// A process that was given by its pid. As long as it is held, the pid means no other one.
#[derive(Debug)]
struct Held {
    process: Arc<Process>,
    /// Counts what is done for the delegate.
    admitted: Arc<Admitted>,
    _permit: OwnedSemaphorePermit,
}

impl Target {
    /// Either by selectors, which are not checked, or by a pid.
    ///
    /// # Errors
    /// `InvalidArgument` for both, none, or what is no selector; `NotFound` when there is no such process (a pid
    /// may be another's the next time, so callers must look the pid up again first); `Unavailable` when it cannot be
    /// attested or too many are held.
    pub(super) async fn of(
        shared: &Shared,
        admitted: &Arc<Admitted>,
        selectors: &[types::Selector],
        pid: i32,
    ) -> Result<Self, Status> {
        if selectors.is_empty() == (pid == 0) {
            return Err(Status::invalid_argument(
                "must provide either selectors or non-zero PID, but not both",
            ));
        }
        if pid == 0 {
            let selectors = Arc::new(read(selectors)?);
            return Ok(Self {
                selectors,
                held: None,
            });
        }
        if pid < 0 {
            return Err(Status::invalid_argument(format!("pid must be positive: {pid}")));
        }
        let permit = Arc::clone(&shared.processes)
            .try_acquire_owned()
            .map_err(|_full| Status::unavailable("too many processes are held on behalf of delegates"))?;
        let process = Process::open(i64::from(pid), &shared.procfs).map_err(|error| cannot_hold(&error))?;
        let (process, admitted) = (Arc::new(process), Arc::clone(admitted));
        Ok(Self {
            selectors: Arc::new(attest(shared, &admitted, &process).await?),
            held: Some(Held {
                process,
                admitted,
                _permit: permit,
            }),
        })
    }

    /// The facts about it.
    pub(super) fn selectors(&self) -> &Arc<HashSet<Selector>> {
        &self.selectors
    }

    /// Whether the same facts hold as before. If not, those that hold now are taken up. Given selectors stay.
    ///
    /// # Errors
    /// As [`Target::of`] for a pid.
    pub(super) async fn attest_again(&mut self, shared: &Shared) -> Result<bool, Status> {
        let Some(held) = &self.held else {
            return Ok(true);
        };
        let facts = attest(shared, &held.admitted, &held.process).await?;
        if facts == *self.selectors {
            return Ok(true);
        }
        self.selectors = Arc::new(facts);
        Ok(false)
    }

    /// Completes when the process that was given has ended. Given selectors are never gone.
    pub(super) async fn gone(&self) -> Status {
        match &self.held {
            Some(held) => held.process.exited().await,
            None => std::future::pending().await,
        }
        ended()
    }

    /// # Errors
    /// The process that was given has ended.
    pub(super) fn check_alive(&self) -> Result<(), Status> {
        match &self.held {
            Some(held) if !held.process.is_alive() => Err(ended()),
            _ => Ok(()),
        }
    }
}

fn read(selectors: &[types::Selector]) -> Result<HashSet<Selector>, Status> {
    let bytes: usize = selectors
        .iter()
        .map(|selector| selector.r#type.len() + selector.value.len())
        .sum();
    if selectors.len() > MAX_SELECTORS || bytes > MAX_SELECTOR_BYTES {
        return Err(Status::invalid_argument(format!(
            "{} selectors of {bytes} bytes are more than {MAX_SELECTORS} or {MAX_SELECTOR_BYTES}",
            selectors.len()
        )));
    }
    let read = wire::selectors_from_wire(selectors)
        .map_err(|error| Status::invalid_argument(format!("could not parse provided selectors: {error}")))?;
    Ok(read.into_iter().collect())
}

async fn attest(
    shared: &Shared,
    admitted: &Admitted,
    process: &Arc<Process>,
) -> Result<HashSet<Selector>, Status> {
    let _turn = admitted.turn().await;
    shared.attestation.attest(process).await.map_err(|error| {
        if matches!(error, AttestError::Gone(_)) {
            return ended();
        }
        tracing::warn!(%error, pid = process.pid(), "attestation for a delegate failed");
        attestation_failed()
    })
}

fn cannot_hold(error: &ProcessError) -> Status {
    match error {
        ProcessError::NotVisible(_) | ProcessError::Gone(_) => {
            Status::not_found("there is no process with the given pid")
        }
        ProcessError::Io { .. } => {
            tracing::warn!(%error, "process that a delegate named cannot be held");
            attestation_failed()
        }
    }
}

fn ended() -> Status {
    Status::not_found("the process with the given pid has ended")
}
