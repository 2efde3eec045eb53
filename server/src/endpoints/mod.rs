//! Where calls come in: the TLS listener and the private Unix socket. Each call passes the one
//! [`gate`]: the table of [`authorization`] says who may, [`caller`] says who it is, [`limits`] how
//! often, [`audit`] keeps what was done; then the service in `api` answers.

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
