//! `spire.api.server.logger.v1.Logger`: the log level while the server runs.

use std::sync::Arc;

use finial_proto::spire::api::server::logger::v1 as pb;
use finial_proto::spire::api::server::logger::v1::logger_server::Logger as LoggerApi;
use finial_proto::spire::api::types;
use finial_proto::spire::api::types::LogLevel;
use tonic::{Request, Response, Status};

use super::Services;
use super::call::{Call, field};
use super::status::Refusal;
use crate::telemetry::Level;

/// Answers the Logger service.
#[derive(Debug)]
pub struct LoggerService(Arc<Services>);

impl LoggerService {
    /// Works with these parts.
    pub fn new(services: Arc<Services>) -> Self {
        Self(services)
    }

    fn levels(&self) -> types::Logger {
        types::Logger {
            current_level: to_wire(self.0.log.current()).into(),
            launch_level: to_wire(self.0.log.launch_level()).into(),
        }
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
        let level = from_wire(wanted).map_err(|refusal| call.refuse(refusal))?;
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

fn from_wire(level: i32) -> Result<Level, Refusal> {
    match LogLevel::try_from(level) {
        Ok(LogLevel::Panic) => Ok(Level::Panic),
        Ok(LogLevel::Fatal) => Ok(Level::Fatal),
        Ok(LogLevel::Error) => Ok(Level::Error),
        Ok(LogLevel::Warn) => Ok(Level::Warn),
        Ok(LogLevel::Info) => Ok(Level::Info),
        Ok(LogLevel::Debug) => Ok(Level::Debug),
        Ok(LogLevel::Trace) => Ok(Level::Trace),
        Ok(LogLevel::Unspecified) => Err(Refusal::invalid("newLevel value cannot be LogLevel_UNSPECIFIED")),
        Err(_) => Err(Refusal::invalid(format!("unsupported log level: {level}"))),
    }
}

fn to_wire(level: Level) -> LogLevel {
    match level {
        Level::Panic => LogLevel::Panic,
        Level::Fatal => LogLevel::Fatal,
        Level::Error => LogLevel::Error,
        Level::Warn => LogLevel::Warn,
        Level::Info => LogLevel::Info,
        Level::Debug => LogLevel::Debug,
        Level::Trace => LogLevel::Trace,
    }
}
