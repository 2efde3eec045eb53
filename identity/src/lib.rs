//! What the messages mean: SPIFFE IDs, selectors, registration entries, SVIDs, bundles, keys and
//! the verification of peers. Nothing here opens a network connection.
//!
//! A text or a message from outside is parsed once into a type that cannot be wrong: [`spiffe_id`],
//! [`selector`], [`entry`]. Keys ([`key`]) sign and verify certificates ([`x509`]) and tokens ([`jwt`], [`wit`]);
//! a trust domain's authorities form a [`bundle`], which [`federation`] brings from elsewhere, and against which [`peer`] checks who is at the other
//! end of a connection. [`wire`] and [`json`] are the way to and from the messages of `finial-proto`;
//! [`settings`] reads configuration files; [`process`] is what every process stands on,
//! [`command`] what its commands spell alike, [`metrics`] and [`traces`] what operators watch it by.

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
