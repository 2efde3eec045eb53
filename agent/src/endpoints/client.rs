//! A client of the agent's own public socket, for health checks.

use std::path::Path;

pub use finial_identity::command::dial::connect;
pub use finial_identity::command::workload_api::{
    SECURITY_HEADER, SecurityHeader, WorkloadClient, connect as workload,
};
use finial_proto::grpc::health::v1::health_client::HealthClient;
use tonic::transport::{Channel, Error};

/// Connects to the health service.
///
/// # Errors
/// When no program listens there.
pub async fn health(path: &Path) -> Result<HealthClient<Channel>, Error> {
    Ok(HealthClient::new(connect(path).await?))
}
