//! The server as a library: the authority of a trust domain.
//!
//! A call comes in through [`endpoints`] (who, may they, how many, audit) and goes to a service in
//! [`api`], which turns wire messages into checked types and asks [`attestation`] who a node is,
//! [`registry`] who may have which identity and [`authority`] for signatures on what
//! [`credential`] describes; [`store`] remembers. A change is committed in the store with the next
//! revision, and the registry tells the streams of exactly those agents that it concerns.
//! Bundles of foreign trust domains come by [`federation`]. Entries that objects in Kubernetes declare come from [`kubernetes`] straight into the registry.
//! [`config`] is read before anything starts, [`app`] puts the parts together, [`cli`] is what an
//! operator types, [`telemetry`] what the operator reads.

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
