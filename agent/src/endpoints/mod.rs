//! The sockets that workloads and operators use.
//!
//! `listener` admits a connection and finds its `peer` (a process held by a descriptor); `connection` repairs
//! `:authority`, puts the `greeting` together and keeps its limits; `serving` runs HTTP/2 on it. Each call passes `calls`
//! (counted) and `limits`, and `routes` brings it to the Workload API, Envoy's secret discovery, health checks or
//! reflection; on the `admin` socket, which is for operators, to the `delegated` identity API, the log level and the
//! state of the agent. Calls that depend on the caller use a `session`. `pod_sockets` opens sockets in the folders of the
//! CSI driver, whose callers are pods. `broker` has separate listeners, whose callers authenticate with an X509-SVID.
//! `client` is the client side.

pub mod admin;
pub mod broker;
mod calls;
pub mod client;
mod codec;
mod connection;
pub mod delegated;
pub mod explain;
mod greeting;
pub mod health;
pub mod http;
mod jwt_svids;
pub mod limits;
pub mod listener;
pub mod peer;
pub mod pod_sockets;
pub mod routes;
pub mod sds;
mod serving;
pub mod session;
pub mod workload_api;

#[cfg(test)]
pub(crate) mod testing;
