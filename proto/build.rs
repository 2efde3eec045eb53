//! Compiles the schema with protox and writes the Rust code and the descriptor set to `OUT_DIR`.
#![allow(
    clippy::disallowed_methods,
    reason = "a build script writes into OUT_DIR, which cargo owns"
)]
#![allow(clippy::print_stdout, reason = "cargo reads a build script's standard output")]

use std::error::Error;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use prost::Message;

const SCHEMA: &str = "schema";

/// Fields of these messages and packages hold `bytes` as `bytes::Bytes`, so that one encoding can be
/// shared between many streams. All other `bytes` are `Vec<u8>`.
const SHARED_BYTES: &[&str] = &[
    ".X509SVIDResponse",
    ".X509SVID",
    ".X509BundlesResponse",
    ".JWTBundlesResponse",
    ".spire.api.agent.delegatedidentity.v1",
    ".envoy",
];

/// Messages that carry a secret; `src/redaction.rs` has their `Debug`.
const SECRET: &[&str] = &[
    ".X509SVID",
    ".JWTSVID",
    ".WITSVID",
    ".ValidateJWTSVIDRequest",
    ".spiffe.broker.X509SVID",
    ".spiffe.broker.JWTSVID",
    ".spire.api.agent.delegatedidentity.v1.X509SVIDWithKey",
    ".spire.api.types.AttestationData",
    ".spire.api.types.JWTSVID",
    ".envoy.service.discovery.v3.DiscoveryResponse",
    ".envoy.service.discovery.v3.Resource",
    ".envoy.extensions.transport_sockets.tls.v3.TlsCertificate",
    ".envoy.extensions.transport_sockets.tls.v3.TlsSessionTicketKeys",
    ".envoy.extensions.transport_sockets.tls.v3.GenericSecret",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={SCHEMA}");

    let mut set = protox::compile(schema_files(Path::new(SCHEMA))?, [SCHEMA])?;
    SHARED_BYTES
        .iter()
        .fold(tonic_prost_build::configure(), |builder, path| {
            builder.bytes(path)
        })
        // Sorted keys: equal content gives equal bytes.
        .btree_map(".")
        .skip_debug(SECRET)
        .compile_fds(set.clone())?;

    // Reflection has no use for the comments.
    for file in &mut set.file {
        file.source_code_info = None;
    }
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    fs::write(out_dir.join("finial_descriptor.bin"), set.encode_to_vec())?;
    Ok(())
}

/// All `.proto` files below `folder`, sorted.
fn schema_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension() == Some(OsStr::new("proto")) {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}
