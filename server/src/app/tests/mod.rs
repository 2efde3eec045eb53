//! The server as its callers see it: each test runs a real one.
#![allow(clippy::disallowed_methods)] // Tests run clients beside each other.

mod agents;
mod authorities;
mod bundles;
mod callers;
mod clusters;
mod entries;
mod entry_batches;
mod federation;
mod federation_wakes;
mod registry;
mod stopping;
mod svids;
mod watching;
mod wit;
mod writes;
