//! What the messages mean: SPIFFE IDs, selectors, registration entries, SVIDs, bundles, keys and
//! the verification of peers. Nothing here opens a network connection.
//!
//! A text or a message from outside is parsed once into a checked type: [`spiffe_id`], [`selector`], [`entry`]. Keys
//! ([`key`]) sign and verify certificates ([`x509`]) and tokens ([`jwt`], [`wit`]); a trust domain's authorities form a
//! [`bundle`]; [`federation`] describes how foreign ones are fetched, and [`peer`] verifies the other end of a
//! connection with them. [`wire`] and [`json`] convert from and to the messages of `finial-proto`; [`settings`] reads
//! configuration files; [`process`] has what every process needs, [`command`] what the commands of server and agent
//! share, [`metrics`] and [`traces`] are for monitoring.

pub mod bundle;
pub mod command;
pub mod entry;
pub mod federation;
pub mod json;
pub mod jwt;
pub mod key;
pub mod metrics;
pub mod peer;
pub mod process;
pub mod selector;
pub mod settings;
pub mod spiffe_id;
pub mod traces;
pub mod wire;
pub mod wit;
pub mod x509;
