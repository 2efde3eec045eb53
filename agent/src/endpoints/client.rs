//! A client of the agent's own public socket, for health checks and for the commands of the CLI.

use std::path::Path;
use std::sync::Arc;

use finial_proto::grpc::health::v1::health_client::HealthClient;
use finial_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

/// Name and value of the metadata that every call of the Workload API carries (Workload Endpoint §3).
pub const SECURITY_HEADER: (&str, &str) = ("workload.spiffe.io", "true");

/// The largest answer that is accepted, in bytes.
const MAX_ANSWER_BYTES: usize = 256 * 1024 * 1024;

/// A client that sends the security header.
pub type WorkloadClient = SpiffeWorkloadApiClient<InterceptedService<Channel, SecurityHeader>>;

/// Adds the security header to every call.
#[derive(Clone, Copy, Debug)]
pub struct SecurityHeader;

impl Interceptor for SecurityHeader {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let (name, value) = SECURITY_HEADER;
        request
            .metadata_mut()
            .insert(name, MetadataValue::from_static(value));
        Ok(request)
    }
}

/// Connects to a Unix socket.
///
/// # Errors
/// When nobody listens there.
pub async fn connect(path: &Path) -> Result<Channel, tonic::transport::Error> {
    let path: Arc<Path> = Arc::from(path);
    let connector = tower::service_fn(move |_: Uri| {
        let path = Arc::clone(&path);
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The authority is required by HTTP/2 and means nothing on a Unix socket.
    Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
}

/// Connects to a Workload API.
///
/// # Errors
/// When nobody listens there.
pub async fn workload(path: &Path) -> Result<WorkloadClient, tonic::transport::Error> {
    let client = SpiffeWorkloadApiClient::with_interceptor(connect(path).await?, SecurityHeader);
    Ok(client.max_decoding_message_size(MAX_ANSWER_BYTES))
}

/// Connects to the health service.
///
/// # Errors
/// When nobody listens there.
pub async fn health(path: &Path) -> Result<HealthClient<Channel>, tonic::transport::Error> {
    Ok(HealthClient::new(connect(path).await?))
}
