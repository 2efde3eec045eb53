//! The admin socket: what operators and delegates may ask, and workloads may not.
//!
//! Whoever may open the socket (the agent's user and group) may call the services here; the delegated identity API
//! also attests its caller. `app` decides which services there are: each is added
//! to [`LocalRoutes`](super::routes::LocalRoutes).

mod debug;
mod logger;

#[cfg(test)]
mod tests;

pub use self::debug::{DebugParts, DebugService};
pub use self::logger::LoggerService;
