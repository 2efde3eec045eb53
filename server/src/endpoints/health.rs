//! `grpc.health.v1.Health` on the private socket: serving when the own bundle can be read
//! and the registry follows the store.

use std::pin::Pin;
use std::sync::Arc;

use finial_proto::grpc::health::v1::health_check_response::ServingStatus;
use finial_proto::grpc::health::v1::health_server::Health;
use finial_proto::grpc::health::v1::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
};
use futures_util::Stream;
use tonic::{Request, Response, Status};

use crate::api::Services;

/// Answers health checks of the whole server.
#[derive(Debug)]
pub struct HealthService(Arc<Services>);

impl HealthService {
    /// Looks at these services.
    pub fn new(services: Arc<Services>) -> Self {
        Self(services)
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !request.get_ref().service.is_empty() {
            return Err(Status::invalid_argument("per-service health is not supported"));
        }
        let status = if self.0.is_healthy().await {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        Ok(Response::new(HealthCheckResponse {
            status: status.into(),
        }))
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        Err(Status::unimplemented("method List not implemented"))
    }

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("method Watch not implemented"))
    }
}
