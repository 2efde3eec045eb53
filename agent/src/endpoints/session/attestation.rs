//! What holds for a caller, found out in its turn.

use std::sync::Arc;
use std::time::Duration;

use tonic::Status;

use super::refusals::Refused;
use super::statuses::attestation_failed;
use super::view::Selectors;
use super::{Access, Shared};
use crate::endpoints::limits::Admitted;
use crate::workload::Workload;

/// How long the agent's own process is examined when it asks for its health: shorter than the health check, which takes
/// silence for death, and than a kubelet or an API server may take.
const OWN_TIME: Duration = Duration::from_secs(3);

/// What holds for the workload now. The agent's own process has its turn at once: it looks after its health.
///
/// # Errors
/// `Unavailable` when it cannot be found out.
pub(super) async fn attest(
    shared: &Shared,
    admitted: &Admitted,
    workload: &Workload,
    access: Access,
    is_on_behalf: bool,
) -> Result<Arc<Selectors>, Status> {
    let parts = &shared.parts;
    let is_own = workload.pid() == parts.own_pid && !is_on_behalf;
    let asked = parts.attestation.attest_workload(workload);
    let outcome = if is_own {
        let answer = tokio::time::timeout(OWN_TIME, asked).await;
        answer.map_or_else(
            |_elapsed| Err("no answer in time for the agent itself".to_owned()),
            |found| found.map_err(|error| error.to_string()),
        )
    } else {
        let _turn = admitted.turn().await;
        asked.await.map_err(|error| error.to_string())
    };
    let facts = outcome.map_err(|error| {
        let refused = describe(shared, workload, access, &error);
        let holder = admitted.accountable();
        if parts.refusals.is_repeated(holder, &refused) {
            tracing::debug!(error, pid = refused.pid, "workload attestation failed again");
        } else {
            tracing::warn!(error, pid = refused.pid, "workload attestation failed");
        }
        parts.refusals.note(holder, refused, attestation_failed())
    })?;
    if tracing::enabled!(tracing::Level::DEBUG)
        && workload.pid() != parts.own_pid
        && let Some(selectors) = parts.policy.logged_selectors.among(&facts)
    {
        tracing::debug!(pid = workload.pid(), selectors, "workload was attested");
    }
    Ok(shared.views.share(facts))
}

/// A refusal of the workload, of which nothing is known.
pub(super) fn describe(shared: &Shared, workload: &Workload, access: Access, reason: &str) -> Refused {
    Refused {
        at: shared.parts.clock.now(),
        access,
        pid: workload.pid(),
        started_at: workload.started_at(),
        selectors: None,
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::disallowed_methods,
        reason = "tests read the log that they had written"
    )]
    use async_trait::async_trait;
    use finial_identity::process::Clock;
    use finial_identity::process::log::{self, LogFormat, LogLevel, LogOptions};
    use finial_identity::selector::Selector;
    use futures_util::FutureExt as _;
    use tonic::{Code, Request};

    use super::*;
    use crate::endpoints::limits::Admission;
    use crate::endpoints::listener::Caller;
    use crate::endpoints::peer::Peer;
    use crate::endpoints::session::{Session, Sessions};
    use crate::endpoints::testing::World;
    use crate::workload::{AttestorError, ProcFs, Process, WorkloadAttestation, WorkloadAttestor};

    /// A kubelet that takes the connection and says nothing.
    #[derive(Debug)]
    struct Silent;

    #[async_trait]
    impl WorkloadAttestor for Silent {
        fn name(&self) -> &'static str {
            "silent"
        }

        async fn attest(&self, _process: &Arc<Process>) -> Result<Vec<Selector>, AttestorError> {
            std::future::pending().await
        }
    }

    fn open_this() -> Process {
        Process::open(std::process::id().into(), &ProcFs::default()).unwrap()
    }

    fn this_process() -> Workload {
        Workload::Process(Arc::new(open_this()))
    }

    #[tokio::test]
    async fn a_caller_that_calls_and_calls_writes_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("log");
        let options = LogOptions {
            level: LogLevel::Warn,
            format: LogFormat::Text,
            file: Some(file.clone()),
            source_location: false,
            clock: Clock::system(),
        };
        let (dispatch, _control) = log::build(options).unwrap();
        let writing = tracing::dispatcher::set_default(&dispatch);
        let world = World::new();
        *world.facts.lock().unwrap() = None;
        let sessions = Sessions::new(world.parts());
        let admitted = Arc::new(Admission::new(8).admit(0).unwrap());
        for peer in [Peer::of_process(open_this()), Peer::ended()] {
            let mut request = Request::new(());
            let admitted = Arc::clone(&admitted);
            request.extensions_mut().insert(Caller { peer, admitted });
            for _ in 0..20 {
                let refused = Session::open(&sessions, &request, Access::Identities).await;
                assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
            }
        }
        drop(writing);
        let text = std::fs::read_to_string(file).unwrap();
        for line in ["workload attestation failed", "cannot be identified"] {
            assert_eq!(text.matches(line).count(), 1, "{text}");
        }
    }

    #[tokio::test]
    async fn the_agent_itself_does_not_wait_behind_others_of_its_user() {
        let mut world = World::new();
        world.own_pid = std::process::id();
        let sessions = Sessions::new(world.parts());
        let admitted = Admission::new(8).admit(0).unwrap();
        let mut turns = Vec::new();
        while let Some(turn) = tokio::task::unconstrained(admitted.turn()).now_or_never() {
            turns.push(turn);
        }
        let (shared, workload) = (&*sessions.shared, this_process());
        let ask = |is_on_behalf| {
            let asked = attest(shared, &admitted, &workload, Access::X509Svids, is_on_behalf);
            tokio::task::unconstrained(asked).now_or_never()
        };
        assert!(ask(false).unwrap().is_ok());
        assert!(
            ask(true).is_none(),
            "a delegate that names the agent waits like all"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_agent_itself_hears_soon_that_an_attestor_is_silent() {
        let mut world = World::new();
        world.own_pid = std::process::id();
        let mut parts = world.parts();
        parts.attestation = WorkloadAttestation::new(vec![Arc::new(Silent)], Duration::from_secs(30));
        let sessions = Sessions::new(parts);
        let admitted = Admission::new(8).admit(0).unwrap();
        let (asked, workload) = (tokio::time::Instant::now(), this_process());
        let attested = attest(&sessions.shared, &admitted, &workload, Access::X509Svids, false).await;
        assert_eq!(attested.unwrap_err().code(), Code::Unavailable);
        assert_eq!(asked.elapsed(), OWN_TIME);
    }
}
