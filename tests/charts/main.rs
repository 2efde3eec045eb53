//! The Helm chart `charts/finial`, rendered by Helm's own engine; no cluster is needed.

mod alternatives;
mod configuration;
mod custom_resources;
mod engine;
mod federation;
mod image;
mod objects;
mod reference;
mod security;
mod sets;
mod values;
