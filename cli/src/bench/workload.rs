//! What one workload does: it connects, calls, and reads its stream.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use finial_agent::endpoints::client::{SecurityHeader, WorkloadClient};
use finial_identity::command::dial::{LARGEST_ANSWER, status};
use finial_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use finial_proto::workload::{X509svidRequest, X509svidResponse};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};
use tonic::transport::{Endpoint, Uri};
use tonic::{Code, Streaming};

/// How long one answer may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Before the next attempt while the listener's queue is full or there is no identity.
const PAUSE: Duration = Duration::from_millis(1);

/// An open stream of X.509-SVIDs on a connection of its own, and its first message.
#[derive(Debug)]
pub struct OpenStream {
    /// Holds the connection open.
    _client: WorkloadClient,
    messages: Streaming<X509svidResponse>,
    /// What came first.
    pub first: X509svidResponse,
}

impl OpenStream {
    /// Connects, calls FetchX509SVID and waits for the first message.
    ///
    /// # Errors
    /// When no agent listens, or the call fails; without an identity with `PermissionDenied`.
    pub async fn open(socket: &Path) -> anyhow::Result<Self> {
        Self::call(connect(socket).await?)
            .await?
            .map_err(|refusal| status("fetch X.509-SVIDs", &refusal))
    }

    /// Waits until the stream on a new connection begins with an SVID for `id`.
    ///
    /// # Errors
    /// When it does not come within a minute.
    pub async fn with_identity(socket: &Path, id: &str) -> anyhow::Result<Self> {
        let attempts = async {
            loop {
                let refusal = match Self::call(connect(socket).await?).await? {
                    Ok(stream) => match stream.until(id).await? {
                        Ok(stream) => return Ok(stream),
                        // What an earlier run made is gone, and the agent has not heard of this run's yet.
                        Err(refusal) => refusal,
                    },
                    Err(refusal) => refusal,
                };
                if refusal.code() != Code::PermissionDenied {
                    return Err(status("fetch X.509-SVIDs", &refusal));
                }
                sleep(PAUSE).await;
            }
        };
        match timeout(LIMIT, attempts).await {
            Ok(outcome) => outcome,
            Err(_) => bail!("{id} did not arrive within {LIMIT:?}"),
        }
    }

    /// The next message; waits for it however long it takes.
    ///
    /// # Errors
    /// When the stream ends.
    pub async fn next(&mut self) -> anyhow::Result<X509svidResponse> {
        let message = self.messages.message().await;
        message
            .map_err(|ended| status("read the stream of X.509-SVIDs", &ended))?
            .context("the stream of X.509-SVIDs ended")
    }

    /// Reads on until the last message has an SVID for `id`, or the stream is refused.
    async fn until(mut self, id: &str) -> anyhow::Result<Result<Self, tonic::Status>> {
        while leaf_of(&self.first, id).is_none() {
            self.first = match self.messages.message().await {
                Ok(message) => message.context("the stream of X.509-SVIDs ended")?,
                Err(refusal) => return Ok(Err(refusal)),
            };
        }
        Ok(Ok(self))
    }

    async fn call(mut client: WorkloadClient) -> anyhow::Result<Result<Self, tonic::Status>> {
        let first = async {
            let mut messages = client.fetch_x509svid(X509svidRequest {}).await?.into_inner();
            let first = messages.message().await?;
            let first = first.ok_or_else(|| tonic::Status::unavailable("the stream ended"))?;
            Ok((messages, first))
        };
        let first = timeout(LIMIT, first).await;
        let first = first.with_context(|| format!("no answer within {LIMIT:?}"))?;
        Ok(first.map(|(messages, first)| OpenStream {
            _client: client,
            messages,
            first,
        }))
    }
}

/// A new connection to a Workload API. A full queue of the listener is waited for, as a workload would.
///
/// # Errors
/// When no program listens at `socket`.
pub async fn connect(socket: &Path) -> anyhow::Result<WorkloadClient> {
    let path: Arc<Path> = Arc::from(socket);
    let connector = tower::service_fn(move |_: Uri| {
        let path = Arc::clone(&path);
        async move { dial(&path).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .with_context(|| format!("connect to the Workload API at {}", socket.display()))?;
    let client = SpiffeWorkloadApiClient::with_interceptor(channel, SecurityHeader);
    Ok(client.max_decoding_message_size(LARGEST_ANSWER))
}

/// The leaf (and its chain) of the SVID for `id`, as DER.
pub fn leaf_of<'a>(message: &'a X509svidResponse, id: &str) -> Option<&'a [u8]> {
    let svid = message.svids.iter().find(|svid| svid.spiffe_id == id)?;
    Some(&svid.x509_svid)
}

/// A number that differs when the bytes differ; never 0.
pub fn mark_of(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish().max(1)
}

async fn dial(path: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == ErrorKind::WouldBlock => sleep(PAUSE).await,
            outcome => return outcome,
        }
    }
}
