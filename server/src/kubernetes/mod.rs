//! Entries that operators declare as objects in Kubernetes.

pub mod admission;
pub mod derive;
pub mod label_filter;
pub mod resources;
pub mod template;
