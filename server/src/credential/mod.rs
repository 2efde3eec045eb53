//! The contents of certificates and tokens, and the check of what was signed.
//!
//! A profile is built from checked parts ([`profile`], [`jwt`]), encoded here ([`der`], [`name`], [`serial`]), signed by
//! the authority and then read back by a parser that shares no code with the encoder ([`check`]). Nothing that differs
//! from its profile is sent.

mod check;
mod der;
#[cfg(test)]
mod golden;
mod issuer;
mod jwt;
mod name;
mod profile;
mod serial;
mod wit;

pub use check::{CheckError, check_certificate};
pub use issuer::{SignedBy, X509Issuer};
pub use jwt::{JwtProfile, MintedJwt, check_token, draw_key_id};
pub use name::DistinguishedName;
pub use profile::{BACKDATE, Basis, ProfileError, Subject, Validity, X509Kind, X509Profile};
pub use serial::Serial;
pub use wit::MintedWit;
