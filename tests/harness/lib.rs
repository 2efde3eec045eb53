//! Starts the real program for the test suites and observes it.
//!
//! `Program` is one running `finial` process; `Stack` is a server and an agent in one temporary directory; `AgentPod` makes
//! its agent a pod; `https` has
//! bundle endpoints that answer as the test decides; `image` is what the Dockerfile makes; `rpcs` has the RPCs of the schema and of its tables; `peer` finds
//! programs of other projects and decides between skip and failure; `wait` is the only file of the Rust suites that
//! sleeps, between checks of a condition.

mod agent_pod;
mod https;
mod image;
pub mod kubernetes;
mod peer;
mod program;
pub mod rpcs;
mod stack;
mod wait;

pub use agent_pod::{AgentPod, MountedBundle};
pub use https::{BundleEndpoint, TlsIdentity, WebAuthority, https_get};
pub use image::image_like_dockerfile;
pub use peer::{Peer, absent, require_all, skipped};
pub use program::{Output, Program, finial, free_port, run, run_ok};
pub use stack::{Entry, Stack, StackOptions};
pub use wait::{wait_for, wait_for_async, wait_until};
