//! The rules of the SPIFFE standards, one file for each document. `coverage` checks that no rule is missing.

mod broker;
mod broker_objects;
mod bundle;
mod coverage;
mod federation;
mod fixture;
mod jwt_svid;
mod spiffe_id;
#[allow(dead_code, reason = "shared with the e2e suite, which uses the rest")]
#[path = "../e2e/wire.rs"]
mod wire;
mod wit_svid;
mod workload_api;
mod workload_endpoint;
mod x509_svid;
