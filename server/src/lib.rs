//! The server as a library: the authority of a trust domain.
//!
//! A call comes in through [`endpoints`] (caller, authorization, limits, audit) and goes to a service in [`api`], which
//! converts wire messages into checked types and uses [`attestation`] to identify a node, [`registry`] to find who may
//! have which identity and [`authority`] to sign what [`credential`] describes; [`store`] keeps the data. A change is
//! committed in the store with the next revision, and the registry pushes it to exactly those agents that it affects.
//! Bundles of foreign trust domains are fetched by [`federation`]. Entries that objects in Kubernetes declare come from
//! [`kubernetes`] straight into the registry. [`config`] is read before anything starts, [`app`] builds the server,
//! [`cli`] has the commands for operators, [`telemetry`] logs, metrics and traces.

pub mod api;
pub mod app;
pub mod attestation;
pub mod authority;
pub mod cli;
pub mod config;
pub mod credential;
pub mod endpoints;
pub mod federation;
pub mod kubernetes;
pub mod registry;
pub mod store;
pub mod telemetry;
