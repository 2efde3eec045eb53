//! `bundle show|list|count|set|delete`.

use anyhow::Context;
use clap::{ArgMatches, Command};
use finial_identity::bundle::Bundle;
use finial_identity::command::flags::{self, required, text, value};
use finial_identity::command::{Console, dial, wants_json};
use finial_identity::spiffe_id::TrustDomain;
use finial_identity::wire;
use finial_proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use finial_proto::spire::api::server::bundle::v1::{
    BatchDeleteFederatedBundleRequest, BatchSetFederatedBundleRequest, CountBundlesRequest, GetBundleRequest,
    GetFederatedBundleRequest, ListFederatedBundlesRequest, ListFederatedBundlesResponse,
};
use finial_proto::spire::api::types;

const PAGE: i32 = 500;

pub fn command() -> Command {
    let format = || {
        text("format", "pem or spiffe")
            .value_parser(["pem", "spiffe"])
            .default_value("pem")
    };
    flags::group("bundle", "Trust bundles")
        .subcommand(flags::query("show", "Prints the server's own bundle", dial::SERVER).arg(format()))
        .subcommand(
            flags::query("list", "Prints foreign bundles", dial::SERVER)
                .arg(text("id", "Only the bundle of this trust domain"))
                .arg(format()),
        )
        .subcommand(flags::query("count", "Counts bundles", dial::SERVER))
        .subcommand(
            flags::query("set", "Creates or replaces a foreign bundle", dial::SERVER)
                .arg(text("id", "The trust domain of the bundle"))
                .arg(text("path", "File with the bundle; standard input when absent"))
                .arg(format()),
        )
        .subcommand(
            flags::query("delete", "Deletes a foreign bundle", dial::SERVER)
                .arg(text("id", "The trust domain of the bundle"))
                .arg(
                    text("mode", "What happens to entries that federate with it")
                        .value_parser(["restrict", "delete", "dissociate"])
                        .default_value("restrict"),
                ),
        )
}

pub async fn run(name: &str, matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    match name {
        "show" => show(matches, console).await,
        "list" => list(matches, console).await,
        "count" => count(matches, console).await,
        "set" => set(matches, console).await,
        _ => delete(matches, console).await,
    }
}

async fn show(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let mut client = super::client!(BundleClient, matches, console);
    let bundle = client
        .get_bundle(GetBundleRequest { output_mask: None })
        .await
        .map_err(|status| dial::status("error fetching bundle", &status))?
        .into_inner();
    if wants_json(matches) {
        return console.message("spire.api.types.Bundle", &bundle);
    }
    console.raw(&render(bundle, matches)?)
}

async fn list(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let mut client = super::client!(BundleClient, matches, console);
    if let Some(id) = value(matches, "id") {
        let trust_domain =
            TrustDomain::parse_name_or_id(id).with_context(|| format!("invalid -id {id:?}"))?;
        let request = GetFederatedBundleRequest {
            trust_domain: trust_domain.to_string(),
            output_mask: None,
        };
        let bundle = client
            .get_federated_bundle(request)
            .await
            .map_err(|status| dial::status("error getting federated bundle", &status))?
            .into_inner();
        if wants_json(matches) {
            return console.message("spire.api.types.Bundle", &bundle);
        }
        return console.raw(&render(bundle, matches)?);
    }
    let mut bundles = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListFederatedBundlesRequest {
            output_mask: None,
            page_size: PAGE,
            page_token: std::mem::take(&mut page_token),
        };
        let page = client
            .list_federated_bundles(request)
            .await
            .map_err(|status| dial::status("error listing federated bundles", &status))?
            .into_inner();
        bundles.extend(page.bundles);
        if page.next_page_token.is_empty() {
            break;
        }
        page_token = page.next_page_token;
    }
    if wants_json(matches) {
        let answer = ListFederatedBundlesResponse {
            bundles,
            next_page_token: String::new(),
        };
        return console.message("spire.api.server.bundle.v1.ListFederatedBundlesResponse", &answer);
    }
    for (index, bundle) in bundles.into_iter().enumerate() {
        if index > 0 {
            console.line("")?;
        }
        let stars = "*".repeat(40);
        console.line(format!("{stars}\n* {}\n{stars}", bundle.trust_domain))?;
        console.raw(&render(bundle, matches)?)?;
    }
    Ok(())
}

async fn count(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let mut client = super::client!(BundleClient, matches, console);
    let answer = client
        .count_bundles(CountBundlesRequest {})
        .await
        .map_err(|status| dial::status("error counting bundles", &status))?
        .into_inner();
    if wants_json(matches) {
        return console.message("spire.api.server.bundle.v1.CountBundlesResponse", &answer);
    }
    let noun = if answer.count == 1 { "bundle" } else { "bundles" };
    console.line(format!("{} {noun}", answer.count))
}

async fn set(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let id = required(matches, "id", "a trust domain")?;
    let trust_domain = TrustDomain::parse_name_or_id(id).with_context(|| format!("invalid -id {id:?}"))?;
    let text = console.read(value(matches, "path").unwrap_or("-"))?;
    let bundle = match value(matches, "format") {
        Some("spiffe") => Bundle::parse_spiffe_json(trust_domain, text.as_bytes()),
        _ => Bundle::parse_pem(trust_domain, &text),
    };
    let bundle = wire::bundle_to_wire(&bundle.context("unable to parse the bundle")?);
    let mut client = super::client!(BundleClient, matches, console);
    let answer = client
        .batch_set_federated_bundle(BatchSetFederatedBundleRequest {
            bundle: vec![bundle],
            output_mask: None,
        })
        .await
        .map_err(|status| dial::status("failed to set federated bundle", &status))?
        .into_inner();
    check(
        answer.results.first().and_then(|result| result.status.as_ref()),
        "failed to set federated bundle",
    )?;
    if wants_json(matches) {
        return console.message(
            "spire.api.server.bundle.v1.BatchSetFederatedBundleResponse",
            &answer,
        );
    }
    console.line("bundle set.")
}

async fn delete(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let id = required(matches, "id", "a trust domain")?;
    let trust_domain = TrustDomain::parse_name_or_id(id).with_context(|| format!("invalid -id {id:?}"))?;
    let mode = match value(matches, "mode") {
        Some("delete") => 1,
        Some("dissociate") => 2,
        _ => 0,
    };
    let mut client = super::client!(BundleClient, matches, console);
    let answer = client
        .batch_delete_federated_bundle(BatchDeleteFederatedBundleRequest {
            trust_domains: vec![trust_domain.to_string()],
            mode,
        })
        .await
        .map_err(|status| dial::status("failed to delete federated bundle", &status))?
        .into_inner();
    let status = answer.results.first().and_then(|result| result.status.as_ref());
    check(
        status,
        &format!("failed to delete federated bundle {trust_domain}"),
    )?;
    if wants_json(matches) {
        return console.message(
            "spire.api.server.bundle.v1.BatchDeleteFederatedBundleResponse",
            &answer,
        );
    }
    console.line("bundle deleted.")
}

fn render(bundle: types::Bundle, matches: &ArgMatches) -> anyhow::Result<String> {
    let bundle = wire::bundle_from_wire(bundle).context("the server sent a malformed bundle")?;
    Ok(match value(matches, "format") {
        Some("spiffe") => bundle.to_spiffe_json() + "\n",
        _ => bundle.to_pem(),
    })
}

fn check(status: Option<&types::Status>, what: &str) -> anyhow::Result<()> {
    match status {
        Some(status) if status.code != 0 => anyhow::bail!("{what}: {}", status.message),
        _ => Ok(()),
    }
}
