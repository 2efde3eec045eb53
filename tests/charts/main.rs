//! The Helm chart `charts/finial`, rendered by Helm's own engine; no cluster is needed.

mod alternatives;
mod clusters;
mod configuration;
mod custom_resources;
mod engine;
mod federation;
mod helm_test;
mod image;
mod network;
mod objects;
mod pod_security;
mod reference;
mod security;
mod sets;
mod values;
mod volume;
