//! The services of one socket.

use std::convert::Infallible;

use axum::response::IntoResponse;
use finial_proto::grpc::health::v1::health_server::{HealthServer, SERVICE_NAME as HEALTH};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::{Routes, RoutesBuilder};
use tower_service::Service;

pub use tonic_reflection::server::Error as RoutesError;

use super::health::{HealthService, Probe};
use super::limits::MAX_REQUEST_BYTES;

/// The services of a socket, added one after the other. Reflection comes with them, and names exactly the others.
#[derive(Debug)]
pub struct LocalRoutes {
    routes: RoutesBuilder,
    names: Vec<&'static str>,
}

impl LocalRoutes {
    /// Health checks, which `probe` answers.
    pub fn new(probe: Probe) -> Self {
        let health = HealthServer::new(HealthService::new(probe));
        let mut routes = RoutesBuilder::default();
        routes.add_service(health.max_decoding_message_size(MAX_REQUEST_BYTES));
        Self {
            routes,
            names: vec![HEALTH],
        }
    }

    /// No health checks: for callers from elsewhere, who have no use for them.
    pub fn without_health() -> Self {
        Self {
            routes: RoutesBuilder::default(),
            names: Vec::new(),
        }
    }

    /// And this service.
    #[must_use]
    pub fn with<S>(mut self, service: S) -> Self
    where
        S: Service<http::Request<Body>, Error = Infallible> + NamedService + Clone + Send + Sync + 'static,
        S::Response: IntoResponse,
        S::Future: Send + 'static,
    {
        self.routes.add_service(service);
        self.names.push(S::NAME);
        self
    }

    /// And this service, if it is not switched off.
    #[must_use]
    pub fn with_any<S>(self, service: Option<S>) -> Self
    where
        S: Service<http::Request<Body>, Error = Infallible> + NamedService + Clone + Send + Sync + 'static,
        S::Response: IntoResponse,
        S::Future: Send + 'static,
    {
        match service {
            Some(service) => self.with(service),
            None => self,
        }
    }

    /// All of them.
    ///
    /// # Errors
    /// When the schema that reflection shows cannot be read, which a build would have found.
    pub fn build(mut self) -> Result<Routes, RoutesError> {
        let reflection = || {
            let builder = tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(finial_proto::FILE_DESCRIPTOR_SET);
            self.names
                .iter()
                .fold(builder, |builder, name| builder.with_service_name(*name))
        };
        let (v1, v1alpha) = (reflection().build_v1()?, reflection().build_v1alpha()?);
        self.routes
            .add_service(v1.max_decoding_message_size(MAX_REQUEST_BYTES))
            .add_service(v1alpha.max_decoding_message_size(MAX_REQUEST_BYTES));
        Ok(self.routes.routes())
    }
}
