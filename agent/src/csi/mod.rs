//! The CSI driver, `csi.spiffe.io` unless `agent.csi.plugin_name` is another: gives pods the folder of their socket
//! without `hostPath`.
//!
//! It is a separate process on each node, with root's rights: the kubelet finds it by `registration`, and calls `node`
//! for each volume of each pod. `request` checks what it asks for, `target` finds the place and mounts, `folders` makes
//! what is mounted. The sockets themselves are the agent's. Nothing here keeps keys or knows identities.

mod folders;
mod kubelet_certificate;
pub mod mountinfo;
mod node;
mod registration;
mod request;
mod target;

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use finial_identity::process::http_listener::{HttpListener, health_answer};
use finial_identity::process::private_file::FileMode;
use finial_identity::process::unix_listener::{self, ListenError, SocketGuard, UnixListenerOptions};
use finial_identity::process::{AuthorityAdapter, Stop, TaskError, TaskSet};
use finial_proto::csi::v1::identity_server::IdentityServer;
use finial_proto::csi::v1::node_server::NodeServer;
use finial_proto::pluginregistration::registration_server::RegistrationServer;
use futures_util::StreamExt as _;
use serde_json::{Map, Value};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::{Routes, RoutesBuilder};
use tonic::transport::Server;

use self::folders::{FolderError, Folders};
use self::node::Driver;
use self::registration::{Registered, Registrar};
use crate::config::{CsiSettings, NODE_NAME_VARIABLE};

/// Most bytes of a request: paths, names and what the kubelet adds to the context.
const MAX_REQUEST_BYTES: usize = 256 * 1024;
/// Most bytes of all headers of a request.
const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// How long calls may continue when the driver is told to stop.
const LAST_CALLS: Duration = Duration::from_secs(2);
/// Most requests at a time on one connection.
const MAX_STREAMS: u32 = 64;

/// Why the driver cannot start.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// Volumes belong to nodes.
    #[error("agent.csi.node_name: is required: set it, or {NODE_NAME_VARIABLE} in the environment")]
    NoNodeName,
    /// The folders for pods cannot be used.
    #[error("{0}")]
    Folders(String),
    /// The kubelet could not call.
    #[error("csi {0}")]
    Socket(#[from] ListenError),
    /// The health listener has no place.
    #[error("agent.csi.health: listen on {address}: {source}")]
    Health {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// The kubelet does not take the driver.
#[derive(Debug, thiserror::Error)]
#[error("kubelet refused to register the driver: {0}")]
struct NotRegistered(String);

/// A driver whose sockets are open and not yet served.
#[derive(Debug)]
pub struct Bound {
    health_addr: Option<SocketAddr>,
    tasks: TaskSet,
}

/// Makes the folders and opens the sockets. Sockets of a driver that has ended are replaced. Must be called on the runtime
/// that runs the driver.
///
/// # Errors
/// [`DriverError`]; then nothing is left bound.
pub async fn build(settings: &CsiSettings) -> Result<Bound, DriverError> {
    let node_name = settings.node_name.clone().ok_or(DriverError::NoNodeName)?;
    let folders = Folders::open(&settings.socket_dir)?;
    folders.prune(&settings.kubelet_pods())?;
    let driver = Driver::new(settings.clone(), node_name, folders);
    let (told, registered) = watch::channel(Registered::NotYet);

    let mut plugin = RoutesBuilder::default();
    plugin
        .add_service(NodeServer::new(driver.clone()).max_decoding_message_size(MAX_REQUEST_BYTES))
        .add_service(IdentityServer::new(driver).max_decoding_message_size(MAX_REQUEST_BYTES));
    let registrar = RegistrationServer::new(Registrar::new(settings, told));
    let registrar = registrar.max_decoding_message_size(MAX_REQUEST_BYTES);

    // The kubelet calls the driver as soon as it finds the other socket.
    let plugin_socket = bind(&settings.plugin_socket())?;
    let registration_socket = bind(&settings.registration_socket())?;
    let health = match settings.health {
        None => None,
        Some(address) => Some(bind_health(address, registered.clone()).await?),
    };
    let health_addr = health.as_ref().and_then(HttpListener::local_addr);

    let mut tasks = TaskSet::new();
    let stop = tasks.stop_signal();
    tasks.spawn("csi", serve(plugin_socket, plugin.routes(), stop.clone()));
    tasks.spawn(
        "registration",
        serve(registration_socket, Routes::new(registrar), stop.clone()),
    );
    tasks.spawn("registered", refusal(registered, stop.clone()));
    if !settings.kubelet_certificates.is_empty() {
        let passing_on = kubelet_certificate::run(settings.clone(), stop.clone());
        tasks.spawn("kubelet certificate", passing_on);
    }
    if let Some(health) = health {
        tasks.spawn("health", health.run(stop));
    }
    Ok(Bound { health_addr, tasks })
}

impl Bound {
    /// Where `/healthz` is answered, when it is.
    pub fn health_addr(&self) -> Option<SocketAddr> {
        self.health_addr
    }

    /// Works until `shutdown` completes or the kubelet refuses the driver. The sockets are removed.
    ///
    /// # Errors
    /// What ended it, other than `shutdown`.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), TaskError> {
        tracing::info!(version = env!("CARGO_PKG_VERSION"), "CSI driver started");
        let outcome = self.tasks.run_until_first_exit(shutdown).await;
        tracing::info!("CSI driver stopped");
        outcome
    }
}

/// For the kubelet alone, which is root.
fn bind(path: &std::path::Path) -> Result<(UnixListener, SocketGuard), ListenError> {
    let options = UnixListenerOptions {
        socket_mode: FileMode::SECRET,
        dir_mode: FileMode::GROUP_DIR,
    };
    unix_listener::bind(path, options)
}

async fn bind_health(
    address: SocketAddr,
    registered: watch::Receiver<Registered>,
) -> Result<HttpListener<TcpListener>, DriverError> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| DriverError::Health { address, source })?;
    let answer = move || {
        let registered = registered.borrow().clone();
        async move {
            let (status, text) = match registered {
                Registered::Yes => (StatusCode::OK, "registered"),
                // The kubelet may be restarting, and a new driver would not change it.
                Registered::NotYet => (StatusCode::OK, "waiting for the kubelet"),
                Registered::No(_) => (StatusCode::SERVICE_UNAVAILABLE, "refused by the kubelet"),
            };
            health_answer(status, Map::from_iter([("csi".to_owned(), Value::from(text))]))
        }
    };
    Ok(HttpListener::new(
        listener,
        Router::new().route("/healthz", get(answer)),
    ))
}

async fn serve(
    (listener, guard): (UnixListener, SocketGuard),
    routes: Routes,
    stop: Stop,
) -> Result<(), tonic::transport::Error> {
    // Kubelets before 1.26 put the socket's path into `:authority`.
    let connections = UnixListenerStream::new(listener).map(|stream| stream.map(AuthorityAdapter::new));
    let serving = Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .add_routes(routes)
        .serve_with_incoming_shutdown(connections, stop.clone().stopped_owned());
    // Calls that are under way are answered; a kubelet that merely stays connected is not waited for.
    let outcome = tokio::select! {
        outcome = serving => outcome,
        () = async {
            stop.stopped().await;
            tokio::time::sleep(LAST_CALLS).await;
        } => Ok(()),
    };
    drop(guard);
    outcome
}

/// Ends with an error when the kubelet refuses the driver, so that the process ends and is started again.
async fn refusal(mut registered: watch::Receiver<Registered>, stop: Stop) -> Result<(), NotRegistered> {
    tokio::select! {
        told = registered.wait_for(|told| matches!(told, Registered::No(_))) => match told.as_deref() {
            Ok(Registered::No(reason)) => {
                tracing::error!(error = reason, "kubelet refused to register the driver");
                Err(NotRegistered(reason.clone()))
            }
            _ => Ok(()),
        },
        () = stop.stopped() => Ok(()),
    }
}

impl From<FolderError> for DriverError {
    fn from(error: FolderError) -> Self {
        Self::Folders(error.to_string())
    }
}

#[cfg(test)]
mod tests;
