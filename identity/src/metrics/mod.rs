//! Metrics under SPIRE's names, kept in memory and exposed to Prometheus on request.
//!
//! Code that does something reports it to a [`Recorder`]; numbers that exist anyway are read when a scrape
//! comes ([`Scrape::polled`]). [`Exposition`] writes both as text. Names and label values are `&'static str`, so
//! that no input can create a series.
//!
//! A *call counter* `k` is a counter `k` and a summary `k_elapsed_time` in milliseconds, both with the label
//! `status`, as SPIRE has them.

mod call;
mod endpoint;
mod exposition;
mod filter;
mod interned;
mod recorder;
mod rpc_name;
mod runtime;
mod scrape;
mod summary;
mod tls;

pub use call::{CallTimer, code_name};
pub use endpoint::{OwnIdentity, tls_source};
pub use exposition::{Exposition, Polled};
pub use filter::Filter;
pub use interned::interned;
pub use recorder::{Kind, Label, Recorder};
pub use rpc_name::{method_segment, service_segments};
pub use scrape::Scrape;
pub use tls::{CertificateFiles, TlsError, tls_of_svid};

/// The label of call counters for the result of a call.
pub const STATUS: &str = "status";
