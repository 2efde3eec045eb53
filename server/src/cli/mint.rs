//! `x509 mint` and `jwt mint`: SVIDs for the operator, without an agent.

use std::path::Path;

use anyhow::Context;
use clap::{ArgMatches, Command};
use finial_identity::command::flags::{
    self, list, number, required, seconds, spiffe_id, text, value, values,
};
use finial_identity::command::{Console, dial, wants_json};
use finial_identity::key::{KeyType, PrivateKey};
use finial_identity::process::private_file;
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::x509::{Certificate, Csr, CsrSubject};
use finial_proto::spire::api::server::bundle::v1::GetBundleRequest;
use finial_proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use finial_proto::spire::api::server::svid::v1::svid_client::SvidClient;
use finial_proto::spire::api::server::svid::v1::{MintJwtsvidRequest, MintX509svidRequest};
use prost::Message;
use serde_json::json;

pub fn x509() -> Command {
    flags::group("x509", "X.509-SVIDs").subcommand(
        flags::query("mint", "Mints an X.509-SVID", dial::SERVER)
            .arg(text("spiffeID", "The SPIFFE ID of the X.509-SVID"))
            .arg(number("ttl", "Lifetime in seconds, 0 for the server's default"))
            .arg(list("dns", "A DNS name of the X.509-SVID; may be repeated"))
            .arg(text(
                "write",
                "Directory to write svid.pem, key.pem and bundle.pem to",
            )),
    )
}

pub fn jwt() -> Command {
    flags::group("jwt", "JWT-SVIDs").subcommand(
        flags::query("mint", "Mints a JWT-SVID", dial::SERVER)
            .arg(text("spiffeID", "The SPIFFE ID of the JWT-SVID"))
            .arg(list("audience", "An audience of the JWT-SVID; may be repeated"))
            .arg(number("ttl", "Lifetime in seconds, 0 for the server's default"))
            .arg(text("write", "File to write the token to")),
    )
}

pub async fn run_x509(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let id = SpiffeId::parse(required(matches, "spiffeID", "a SPIFFE ID")?).context("invalid SPIFFE ID")?;
    let dns: Vec<String> = values(matches, "dns").into_iter().map(str::to_owned).collect();
    let key = PrivateKey::generate(KeyType::EcP256).context("generate a key")?;
    let csr = Csr::build(&key, CsrSubject::spire(), Some(&id), &dns).context("build a CSR")?;
    let ttl = seconds(matches, "ttl")?;

    let mut svids = super::client!(SvidClient, matches, console);
    let answer = svids
        .mint_x509svid(MintX509svidRequest { csr, ttl })
        .await
        .map_err(|status| dial::status("unable to mint SVID", &status))?
        .into_inner();
    let svid = answer.svid.clone().context("the server sent no SVID")?;
    let mut bundles = super::client!(BundleClient, matches, console);
    let bundle = bundles
        .get_bundle(GetBundleRequest { output_mask: None })
        .await
        .map_err(|status| dial::status("unable to get bundle", &status))?
        .into_inner();

    let chain = svid
        .cert_chain
        .iter()
        .map(|der| Certificate::parse(der))
        .collect::<Result<Vec<_>, _>>();
    let chain = chain.context("the server sent a malformed certificate")?;
    let leaf = chain.first().context("the server sent an empty chain")?;
    let lifetime = (leaf.not_after() - leaf.not_before()).whole_seconds();
    if i64::from(ttl) > lifetime {
        console.warn(format!(
            "X509-SVID lifetime was capped shorter than specified ttl; expires {}",
            leaf.not_after()
        ))?;
    }
    let chain_pem: String = chain.iter().map(Certificate::to_pem).collect();
    let bundle_pem: String = bundle
        .x509_authorities
        .iter()
        .map(|authority| Certificate::parse(&authority.asn1).map(|certificate| certificate.to_pem()))
        .collect::<Result<_, _>>()
        .context("the server sent a malformed authority")?;
    let key_pem = key.to_pem();

    if let Some(directory) = value(matches, "write") {
        let directory = Path::new(directory);
        for (name, text, mode) in [
            ("svid.pem", chain_pem.as_str(), 0o644),
            ("key.pem", key_pem.as_str(), 0o600),
            ("bundle.pem", bundle_pem.as_str(), 0o644),
        ] {
            let path = directory.join(name);
            private_file::write(&path, text.as_bytes(), private_file::FileMode::new(mode))?;
            console.line(format!("{} written to {}", heading(name), path.display()))?;
        }
        return Ok(());
    }
    if wants_json(matches) {
        let mut value = finial_identity::json::render(
            "spire.api.server.svid.v1.MintX509SVIDResponse",
            &answer.encode_to_vec(),
        )?;
        value["private_key"] = json!(data_encoding::BASE64.encode(key.pkcs8_der()));
        return console.json(&value);
    }
    console.line("X509-SVID:")?;
    console.line(chain_pem)?;
    console.line("Private key:")?;
    console.line(key_pem.as_str())?;
    console.line("Root CAs:")?;
    console.line(bundle_pem)
}

pub async fn run_jwt(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let id = spiffe_id(required(matches, "spiffeID", "a SPIFFE ID")?)?;
    let audience: Vec<String> = values(matches, "audience")
        .into_iter()
        .map(str::to_owned)
        .collect();
    anyhow::ensure!(
        !audience.is_empty(),
        "at least one audience is required: -audience"
    );
    let ttl = seconds(matches, "ttl")?;
    let mut svids = super::client!(SvidClient, matches, console);
    let answer = svids
        .mint_jwtsvid(MintJwtsvidRequest {
            id: Some(id),
            audience,
            ttl,
        })
        .await
        .map_err(|status| dial::status("unable to mint SVID", &status))?
        .into_inner();
    let svid = answer.svid.clone().context("the server sent no SVID")?;
    if i64::from(ttl) > svid.expires_at - svid.issued_at {
        console.warn(format!(
            "JWT-SVID lifetime was capped shorter than specified ttl; expires {}",
            svid.expires_at
        ))?;
    }
    if let Some(path) = value(matches, "write") {
        private_file::write(
            Path::new(path),
            svid.token.as_bytes(),
            private_file::FileMode::new(0o600),
        )?;
        return console.line(format!("JWT-SVID written to {path}"));
    }
    if wants_json(matches) {
        return console.message("spire.api.server.svid.v1.MintJWTSVIDResponse", &answer);
    }
    console.line(svid.token)
}

fn heading(name: &str) -> &'static str {
    match name {
        "svid.pem" => "X509-SVID",
        "key.pem" => "Private key",
        _ => "Root CAs",
    }
}
