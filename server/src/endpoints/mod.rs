//! The TLS listener and the private Unix socket. Each call passes the one [`gate`]: the table of [`authorization`] says
//! which callers are allowed, [`caller`] identifies the caller, [`limits`] says how often it may call, [`audit`] logs
//! the call; then the service in `api` answers.

pub mod audit;
pub mod authorization;
pub mod caller;
mod calls;
pub mod connection;
pub mod gate;
pub mod health;
pub mod http;
pub mod limits;
pub mod strangers;
pub mod tcp;
pub mod uds;

pub use authorization::table;
