//! `spire.api.server.logger.v1.Logger`: the log level while the server runs.

use std::sync::Arc;

use finial_identity::wire;
use finial_proto::spire::api::server::logger::v1 as pb;
use finial_proto::spire::api::server::logger::v1::logger_server::Logger as LoggerApi;
use finial_proto::spire::api::types;
use tonic::{Request, Response, Status};

use super::Services;
use super::call::{Call, field};
use super::status::Refusal;

/// Answers the Logger service.
#[derive(Debug)]
pub struct LoggerService(Arc<Services>);

impl LoggerService {
    /// Works with these parts.
    pub fn new(services: Arc<Services>) -> Self {
        Self(services)
    }

    fn levels(&self) -> types::Logger {
        wire::logger_to_wire(&self.0.log)
    }
}

#[tonic::async_trait]
impl LoggerApi for LoggerService {
    async fn get_logger(&self, _: Request<pb::GetLoggerRequest>) -> Result<Response<types::Logger>, Status> {
        Ok(Response::new(self.levels()))
    }

    async fn set_log_level(
        &self,
        request: Request<pb::SetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        let call = Call::of(&request)?;
        let wanted = request.into_inner().new_level;
        let level = wire::log_level_from_wire(wanted)
            .map_err(|error| call.refuse(Refusal::invalid(error.to_string())))?;
        call.note(field::LOG_LEVEL, level);
        self.0.log.set(level);
        Ok(Response::new(self.levels()))
    }

    async fn reset_log_level(
        &self,
        request: Request<pb::ResetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        let call = Call::of(&request)?;
        let level = self.0.log.launch_level();
        call.note(field::LOG_LEVEL, level);
        self.0.log.set(level);
        Ok(Response::new(self.levels()))
    }
}
