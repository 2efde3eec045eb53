//! What the admin socket serves.

use std::sync::Arc;

use finial_identity::x509::X509Svid;
use tokio::sync::watch;
use tonic::service::Routes;

use crate::config::AdminSettings;
use crate::endpoints::admin::{DebugParts, DebugService, LoggerService};
use crate::endpoints::delegated::{DelegatedIdentity, DelegatedIdentityParts};
use crate::endpoints::explain::{ExplainParts, ExplainService, Redaction};
use crate::endpoints::health::Probe;
use crate::endpoints::limits::SocketShare;
use crate::endpoints::routes::{LocalRoutes, RoutesError};
use crate::endpoints::session::SessionParts;
use crate::socket_tree::SocketTree;
use crate::telemetry::LogControl;
use crate::workload::ProcFs;

/// What the services stand on.
pub(super) struct AdminParts<'a> {
    pub(super) settings: &'a AdminSettings,
    pub(super) share: SocketShare,
    pub(super) sessions: &'a SessionParts,
    pub(super) redaction: Redaction,
    /// Where pods have sockets of their own, if they have.
    pub(super) pod_sockets: Option<SocketTree>,
    /// The agent's own.
    pub(super) svid: watch::Receiver<Option<Arc<X509Svid>>>,
    pub(super) log: LogControl,
    pub(super) probe: Probe,
}

/// The services of the admin socket, in addition to health and reflection.
pub(super) fn routes(parts: AdminParts<'_>) -> Result<Routes, RoutesError> {
    let AdminParts {
        settings,
        share,
        sessions: parts,
        redaction,
        pod_sockets,
        svid,
        log,
        probe,
    } = parts;
    let delegated = DelegatedIdentityParts {
        attestation: parts.attestation.clone(),
        svids: parts.svids.clone(),
        node: parts.node.clone(),
        stop: parts.stop.clone(),
        clock: parts.clock.clone(),
        procfs: ProcFs::default(),
        authorized_delegates: settings.authorized_delegates.clone(),
        max_processes: share.processes,
        sync_interval: parts.policy.sync_interval,
    };
    let debug = DebugParts {
        svid: svid.clone(),
        svids: parts.svids.clone(),
        clock: parts.clock.clone(),
    };
    let explain = ExplainParts {
        sessions: parts.clone(),
        svid: svid.clone(),
        redaction,
        procfs: ProcFs::default(),
        pod_sockets,
    };
    LocalRoutes::new(probe)
        .with(ExplainService::server(explain))
        .with(DelegatedIdentity::server(delegated))
        .with(DebugService::server(debug))
        .with(LoggerService::server(log))
        .build()
}
