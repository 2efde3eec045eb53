//! `spire.api.agent.logger.v1.Logger`: the log level while the agent runs.

use finial_identity::wire;
use finial_proto::spire::api::agent::logger::v1::logger_server::{Logger, LoggerServer};
use finial_proto::spire::api::agent::logger::v1::{
    GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest,
};
use finial_proto::spire::api::types;
use tonic::{Request, Response, Status};

use crate::endpoints::limits::MAX_REQUEST_BYTES;
use crate::endpoints::listener::Caller;
use crate::telemetry::{LogControl, LogLevel};

/// Answers the Logger service.
#[derive(Clone, Debug)]
pub struct LoggerService(LogControl);

impl LoggerService {
    /// The service over the log of this process.
    pub fn server(log: LogControl) -> LoggerServer<Self> {
        LoggerServer::new(Self(log)).max_decoding_message_size(MAX_REQUEST_BYTES)
    }

    fn set(&self, level: LogLevel, caller: Option<&Caller>) -> Response<types::Logger> {
        let ids = caller.and_then(|caller| caller.peer.process().ok()?.ids_at_connect());
        let change = || {
            tracing::info!(
                log_level = %level,
                caller_uid = ids.map(|ids| ids.uid),
                caller_gid = ids.map(|ids| ids.gid),
                "log level is set"
            );
        };
        // It is told by whichever of the two levels says more.
        let before = self.0.current();
        if before > level {
            change();
        }
        self.0.set(level);
        if before <= level {
            change();
        }
        Response::new(wire::logger_to_wire(&self.0))
    }
}

#[tonic::async_trait]
impl Logger for LoggerService {
    async fn get_logger(&self, _: Request<GetLoggerRequest>) -> Result<Response<types::Logger>, Status> {
        Ok(Response::new(wire::logger_to_wire(&self.0)))
    }

    async fn set_log_level(
        &self,
        request: Request<SetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        let level = wire::log_level_from_wire(request.get_ref().new_level)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(self.set(level, request.extensions().get()))
    }

    async fn reset_log_level(
        &self,
        request: Request<ResetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        Ok(self.set(self.0.launch_level(), request.extensions().get()))
    }
}
