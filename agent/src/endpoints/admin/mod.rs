//! The admin socket: what operators and delegates may ask, and workloads may not.
//!
//! Whoever may open the socket (the agent's user and group) may call what stands here; the delegated identity API
//! asks besides who calls. Which services there are is decided where the parts are put together: each is added
//! to [`LocalRoutes`](super::routes::LocalRoutes).

mod debug;
mod logger;

#[cfg(test)]
mod tests;

pub use self::debug::{DebugParts, DebugService};
pub use self::logger::LoggerService;
