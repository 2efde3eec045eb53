//! `api fetch x509`.

use std::path::Path;

use anyhow::Context;
use clap::{ArgMatches, Command};
use finial_identity::command::flags::{is_set, switch, text, value};
use finial_identity::command::{Console, utc, wants_json};
use finial_identity::key::PrivateKey;
use finial_identity::process::private_file::{self, FileMode};
use finial_identity::x509::Certificate;
use finial_proto::workload::{X509svid, X509svidRequest, X509svidResponse};
use tokio::time::Instant;

use super::workload;

pub fn flags(command: Command) -> Command {
    workload::flags(command)
        .arg(switch("silent", "Prints nothing"))
        .arg(text("write", "Directory to write SVIDs, keys and bundles to"))
}

pub async fn run(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut client = workload::client(matches, console).await?;
    let open = client.fetch_x509svid(workload::timed_request(matches, X509svidRequest {})?);
    let answer = workload::first(matches, "unable to fetch X509-SVIDs", open).await?;
    let took = start.elapsed();

    if let Some(directory) = value(matches, "write") {
        write(&answer, Path::new(directory))?;
    }
    if is_set(matches, "silent") {
        return Ok(());
    }
    if wants_json(matches) {
        return console.message("X509SVIDResponse", &answer);
    }
    let noun = if answer.svids.len() == 1 { "svid" } else { "svids" };
    console.line(format!("Received {} {noun} after {took:?}", answer.svids.len()))?;
    print(&answer, console)?;
    if let Some(directory) = value(matches, "write") {
        for index in 0..answer.svids.len() {
            let path = |kind: &str| {
                Path::new(directory)
                    .join(format!("{kind}.{index}.pem"))
                    .display()
                    .to_string()
            };
            console.line(format!("Writing SVID #{index} to file {}.", path("svid")))?;
            console.line(format!("Writing bundle #{index} to file {}.", path("bundle")))?;
        }
    }
    Ok(())
}

/// The SVIDs of one answer, as `fetch` and `watch` print them.
pub fn print(answer: &X509svidResponse, console: &mut Console<'_>) -> anyhow::Result<()> {
    for svid in &answer.svids {
        console.line("")?;
        console.line(format!("SPIFFE ID:\t\t{}", svid.spiffe_id))?;
        if !svid.hint.is_empty() {
            console.line(format!("Hint:\t\t\t{}", svid.hint))?;
        }
        let chain = certificates(&svid.x509_svid, "SVID")?;
        for (index, certificate) in chain.iter().enumerate() {
            match index {
                0 => validity("SVID", certificate, console)?,
                index => validity(&format!("Intermediate #{index}"), certificate, console)?,
            }
        }
        for (index, certificate) in certificates(&svid.bundle, "bundle")?.iter().enumerate() {
            validity(&format!("CA #{}", index + 1), certificate, console)?;
        }
        for (domain, bundle) in &answer.federated_bundles {
            for (index, certificate) in certificates(bundle, "federated bundle")?.iter().enumerate() {
                let name = domain.trim_start_matches("spiffe://");
                validity(&format!("[{name}] CA #{}", index + 1), certificate, console)?;
            }
        }
    }
    console.line("")
}

fn validity(what: &str, certificate: &Certificate, console: &mut Console<'_>) -> anyhow::Result<()> {
    console.line(format!(
        "{:<24}{}",
        format!("{what} Valid After:"),
        utc(certificate.not_before().unix_timestamp())
    ))?;
    console.line(format!(
        "{:<24}{}",
        format!("{what} Valid Until:"),
        utc(certificate.not_after().unix_timestamp())
    ))
}

fn write(answer: &X509svidResponse, directory: &Path) -> anyhow::Result<()> {
    for (index, svid) in answer.svids.iter().enumerate() {
        let pem = |der: &[u8], what| -> anyhow::Result<String> {
            Ok(certificates(der, what)?.iter().map(Certificate::to_pem).collect())
        };
        public(
            directory,
            &format!("svid.{index}.pem"),
            &pem(&svid.x509_svid, "SVID")?,
        )?;
        public(
            directory,
            &format!("bundle.{index}.pem"),
            &pem(&svid.bundle, "bundle")?,
        )?;
        for (foreign, bundle) in answer.federated_bundles.values().enumerate() {
            let name = format!("federated_bundle.{index}.{foreign}.pem");
            public(directory, &name, &pem(bundle, "federated bundle")?)?;
        }
        key(directory, index, svid)?;
    }
    Ok(())
}

fn key(directory: &Path, index: usize, svid: &X509svid) -> anyhow::Result<()> {
    let key = PrivateKey::from_pkcs8_der(&svid.x509_svid_key).context("the agent sent a malformed key")?;
    let path = directory.join(format!("svid.{index}.key"));
    private_file::write(&path, key.to_pem().as_bytes(), FileMode::new(0o600))?;
    Ok(())
}

fn public(directory: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    private_file::write(&directory.join(name), text.as_bytes(), FileMode::new(0o644))?;
    Ok(())
}

fn certificates(der: &[u8], what: &str) -> anyhow::Result<Vec<Certificate>> {
    Certificate::parse_many(der).with_context(|| format!("the agent sent a malformed {what}"))
}
