//! Entry points of the fuzzer into `finial-identity` and `finial-proto`: functions of bytes that panic when a
//! promise is broken. The fuzzer calls them, and so does an ordinary test with every file of the corpus.

mod authority;
mod bundle;
mod federation;
mod ids;
mod jwt;
mod key;
mod settings;
mod wire;
mod wit;
mod x509;

/// A target's name, which is also the folder of its corpus, and what runs it.
pub type Target = (&'static str, fn(&[u8]));

/// All targets of this part.
pub const TARGETS: &[Target] = &[
    ("authority", authority::run),
    ("bundle_jwks", bundle::run_jwks),
    ("bundle_map", bundle::run_map),
    ("bundle_pem", bundle::run_pem),
    ("bundle_spiffe", bundle::run_spiffe),
    ("csr", x509::run_csr),
    ("endpoint_url", federation::run),
    ("entry", ids::run_entry),
    ("jwk", key::run_jwk),
    ("jwt", jwt::run),
    ("keys_json", key::run_keys_json),
    ("private_key", key::run_private_key),
    ("selector", ids::run_selector),
    ("settings_hcl", settings::run_hcl),
    ("settings_json", settings::run_json),
    ("settings_yaml", settings::run_yaml),
    ("spiffe_id", ids::run_spiffe_id),
    ("wire", wire::run),
    ("wit", wit::run),
    ("x509", x509::run),
];
