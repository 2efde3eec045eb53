//! `finial.server.registry.v1.Registry`: the command that releases store content that the registry holds back.

use std::sync::Arc;

use finial_proto::finial::server::registry::v1 as pb;
use finial_proto::finial::server::registry::v1::registry_server::Registry as RegistryApi;
use tonic::{Request, Response, Status};

use super::Services;
use super::call::{Call, field};
use super::status::OrRefuse as _;

/// Answers the Registry service.
#[derive(Debug)]
pub struct RegistryService(Arc<Services>);

impl RegistryService {
    /// Works with these parts.
    pub fn new(services: Arc<Services>) -> Self {
        Self(services)
    }
}

#[tonic::async_trait]
impl RegistryApi for RegistryService {
    async fn release(
        &self,
        request: Request<pb::ReleaseRequest>,
    ) -> Result<Response<pb::ReleaseResponse>, Status> {
        let call = Call::of(&request)?;
        let registry = &self.0.registry;
        let held = registry.held();
        if let Some(reason) = &held {
            call.note(field::HELD, reason);
            let released = registry.release().await;
            released
                .or_refuse("failed to release the registry")
                .map_err(|refusal| call.refuse(refusal))?;
        }
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        Ok(Response::new(pb::ReleaseResponse {
            held: held.as_deref().unwrap_or_default().to_owned(),
            entries: count(registry.entry_count()),
            agents: count(registry.agent_count()),
        }))
    }
}
