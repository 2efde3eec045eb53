//! The sockets that workloads and operators use.
//!
//! A connection passes `listener` (limits, repair of `:authority`), gets its `caller` (a process held by a
//! descriptor) and reaches the Workload API, health checks or reflection. `client` is the other end.

pub mod caller;
pub mod client;
pub mod health;
pub mod limits;
pub mod listener;
pub mod workload_api;

#[cfg(test)]
mod testing;

use finial_proto::grpc::health::v1::health_server::HealthServer;
use tonic::service::{Routes, RoutesBuilder};

pub use tonic_reflection::server::Error as RoutesError;

use self::health::{HealthService, Probe};
use self::workload_api::WorkloadApi;

/// The services of the public socket. Reflection names exactly the others.
///
/// # Errors
/// When the schema that reflection shows cannot be read, which a build would have found.
pub fn routes(workload_api: Option<WorkloadApi>, probe: Probe) -> Result<Routes, RoutesError> {
    use finial_proto::grpc::health::v1::health_server::SERVICE_NAME as HEALTH;
    use finial_proto::workload::spiffe_workload_api_server::SERVICE_NAME as WORKLOAD_API;

    let reflection = || {
        let builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(finial_proto::FILE_DESCRIPTOR_SET)
            .with_service_name(HEALTH);
        if workload_api.is_some() {
            builder.with_service_name(WORKLOAD_API)
        } else {
            builder
        }
    };
    let mut routes = RoutesBuilder::default();
    routes.add_service(reflection().build_v1()?);
    routes.add_service(reflection().build_v1alpha()?);
    let health = HealthServer::new(HealthService::new(probe));
    routes.add_service(health.max_decoding_message_size(limits::MAX_REQUEST_BYTES));
    if let Some(workload_api) = workload_api {
        routes.add_service(workload_api);
    }
    Ok(routes.routes())
}
