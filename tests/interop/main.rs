//! Programs that nobody here wrote, unchanged, against the real server and agent.

mod clients;
mod envoy;
mod fetch;
mod jwt_libraries;
mod mutual_tls;
mod podman;
mod spire;
mod systemd;
