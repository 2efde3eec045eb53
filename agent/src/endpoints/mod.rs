//! The sockets that workloads and operators use.
//!
//! A connection passes `listener` (limits, repair of `:authority`), gets its `caller` (a process held by a
//! descriptor) and reaches the Workload API, Envoy's
//! secret discovery, health checks or reflection. Calls that depend on who calls are a
//! `session`. `client` is the other end.

pub mod caller;
pub mod client;
mod codec;
pub mod health;
pub mod limits;
pub mod listener;
pub mod sds;
pub mod session;
pub mod workload_api;

#[cfg(test)]
mod testing;

use finial_proto::grpc::health::v1::health_server::HealthServer;
use tonic::service::{Routes, RoutesBuilder};

pub use tonic_reflection::server::Error as RoutesError;

use self::health::{HealthService, Probe};
use self::sds::Sds;
use self::workload_api::WorkloadApi;

/// The services of the public socket. Reflection names exactly the others.
///
/// # Errors
/// When the schema that reflection shows cannot be read, which a build would have found.
pub fn routes(
    workload_api: Option<WorkloadApi>,
    sds: Option<Sds>,
    probe: Probe,
) -> Result<Routes, RoutesError> {
    use finial_proto::envoy::service::secret::v3::secret_discovery_service_server::SERVICE_NAME as SDS;
    use finial_proto::grpc::health::v1::health_server::SERVICE_NAME as HEALTH;
    use finial_proto::workload::spiffe_workload_api_server::SERVICE_NAME as WORKLOAD_API;

    let reflection = || {
        let served = [
            Some(HEALTH),
            workload_api.as_ref().map(|_| WORKLOAD_API),
            sds.as_ref().map(|_| SDS),
        ];
        let builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(finial_proto::FILE_DESCRIPTOR_SET);
        served
            .into_iter()
            .flatten()
            .fold(builder, |builder, name| builder.with_service_name(name))
    };
    let mut routes = RoutesBuilder::default();
    routes.add_service(reflection().build_v1()?);
    routes.add_service(reflection().build_v1alpha()?);
    let health = HealthServer::new(HealthService::new(probe));
    routes.add_service(health.max_decoding_message_size(limits::MAX_REQUEST_BYTES));
    if let Some(workload_api) = workload_api {
        routes.add_service(workload_api);
    }
    if let Some(sds) = sds {
        routes.add_service(sds);
    }
    Ok(routes.routes())
}
