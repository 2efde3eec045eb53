//! What every process of Finial needs: time, tasks, files, sockets, logs.
//!
//! Nothing here depends on SPIFFE. [`Clock`] is the only source of time, [`Jitter`] that of chance for timers, [`TaskSet`] the only owner of tasks,
//! [`private_file`] the only way to write state, [`unix_listener`] the only way to open a local socket,
//! [`http_listener`] the only way to answer plain HTTP, [`http_get`] the only way to send an HTTP request, and
//! [`AuthorityAdapter`] makes a local socket work with gRPC clients of every language, and [`grpc_timeout()`] the only reader of how
//! long they wait.

pub mod authority;
mod causes;
pub mod clock;
mod grpc_timeout;
mod header_block;
pub mod http_get;
pub mod http_listener;
mod jitter;
pub mod limits;
pub mod log;
mod log_line;
mod log_sink;
pub mod memory;
pub mod private_file;
pub mod selinux;
pub mod signals;
pub mod sources;
pub mod sys;
pub mod tasks;
pub mod umask;
pub mod unix_listener;

pub use authority::AuthorityAdapter;
pub use causes::with_causes;
pub use clock::Clock;
pub use grpc_timeout::grpc_timeout;
pub use jitter::Jitter;
pub use tasks::{Stop, TaskError, TaskSet};
