//! Follows a stream of the Workload API: whenever it ends, it is opened again after a pause.

use std::convert::Infallible;
use std::future::Future;
use std::path::Path;

use finial_identity::command::workload_api::{self, WorkloadClient};
use finial_identity::process::{Stop, with_causes};
use finial_proto::workload::{JwtBundlesRequest, JwtBundlesResponse, X509svidRequest, X509svidResponse};
use tonic::{Code, Status, Streaming};

use super::backoff::Backoff;

/// A kind of stream.
pub(super) trait Feed {
    /// What the stream brings.
    type Message: Send + 'static;
    /// What is fetched, for logs and errors.
    const WHAT: &'static str;

    /// Opens the stream.
    fn open(client: WorkloadClient) -> impl Future<Output = Result<Streaming<Self::Message>, Status>> + Send;
}

/// `FetchX509SVID`.
#[derive(Debug)]
pub(super) struct X509Svids;

/// `FetchJWTBundles`.
#[derive(Debug)]
pub(super) struct JwtBundles;

impl Feed for X509Svids {
    type Message = X509svidResponse;
    const WHAT: &'static str = "X.509-SVID";

    async fn open(mut client: WorkloadClient) -> Result<Streaming<X509svidResponse>, Status> {
        Ok(client.fetch_x509svid(X509svidRequest {}).await?.into_inner())
    }
}

impl Feed for JwtBundles {
    type Message = JwtBundlesResponse;
    const WHAT: &'static str = "JWT bundle";

    async fn open(mut client: WorkloadClient) -> Result<Streaming<JwtBundlesResponse>, Status> {
        Ok(client.fetch_jwt_bundles(JwtBundlesRequest {}).await?.into_inner())
    }
}

/// Why there is no answer of the agent.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// Nobody answers at the socket.
    #[error("connect to the agent: {}", with_causes(.0))]
    Connect(#[from] tonic::transport::Error),
    /// It says no.
    #[error("agent answers {code:?}: {message}", code = .0.code(), message = .0.message())]
    Refused(Box<Status>),
}

impl CallError {
    /// No entry fits this process, or none does yet.
    pub(super) fn is_no_identity(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code() == Code::PermissionDenied)
    }

    /// The same request can never succeed.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code() == Code::InvalidArgument)
    }
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

/// Hands each message of the stream to `accept` until `stop`.
pub(super) async fn follow<F: Feed>(
    socket: &Path,
    mut accept: impl FnMut(F::Message),
    mut backoff: Backoff,
    stop: Stop,
) -> Result<(), Infallible> {
    let mut trouble = Trouble::default();
    loop {
        let error = tokio::select! {
            () = stop.stopped() => return Ok(()),
            error = read::<F>(socket, |message| {
                backoff.reset();
                trouble.over(F::WHAT);
                accept(message);
            }) => error,
        };
        let pause = backoff.pause();
        trouble.report(F::WHAT, &error, pause);
        tokio::select! {
            () = stop.stopped() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Reads one stream to its end.
async fn read<F: Feed>(socket: &Path, mut accept: impl FnMut(F::Message)) -> CallError {
    let open = async {
        let client = workload_api::connect(socket).await?;
        Ok::<_, CallError>(F::open(client).await?)
    };
    let mut stream = match open.await {
        Ok(stream) => stream,
        Err(error) => return error,
    };
    loop {
        match stream.message().await {
            Ok(Some(message)) => accept(message),
            Ok(None) => return Status::unavailable("the stream ended").into(),
            Err(status) => return status.into(),
        }
    }
}

/// The first message of a stream.
pub(super) async fn first<F: Feed>(socket: &Path) -> Result<F::Message, CallError> {
    let client = workload_api::connect(socket).await?;
    let message = F::open(client).await?.message().await?;
    Ok(message.ok_or_else(|| Status::unavailable("the stream ended without an answer"))?)
}

/// Tells of trouble when it begins, when it changes and when it is over.
#[derive(Debug, Default)]
pub(super) struct Trouble(Option<String>);

impl Trouble {
    pub(super) fn report(&mut self, what: &'static str, error: &CallError, pause: std::time::Duration) {
        let text = error.to_string();
        if self.0.as_ref() == Some(&text) {
            return;
        }
        let retry_in = pause.as_secs_f32();
        if error.is_no_identity() {
            tracing::warn!(what, error = %text, retry_in, "no identity is issued to this process; files that are there stay as they are");
        } else {
            tracing::warn!(what, error = %text, retry_in, "agent cannot be asked; files that are there stay as they are");
        }
        self.0 = Some(text);
    }

    pub(super) fn over(&mut self, what: &'static str) {
        if self.0.take().is_some() {
            tracing::info!(what, "agent answers again");
        }
    }
}
