//! Programs of other projects, unchanged, against the real server and agent.

mod clients;
mod envoy;
mod jwt_libraries;
mod mutual_tls;
mod podman;
mod session;
mod spire;
mod systemd;
mod workload;
