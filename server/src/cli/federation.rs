//! `federation create|list|show|update|delete|refresh`.

use anyhow::Context;
use clap::{ArgMatches, Command};
use finial_identity::command::flags::{self, required, text, value};
use finial_identity::command::{Console, dial, wants_json};
use finial_proto::spire::api::server::trustdomain::v1::trust_domain_client::TrustDomainClient;
use finial_proto::spire::api::server::trustdomain::v1::{
    BatchCreateFederationRelationshipRequest, BatchDeleteFederationRelationshipRequest,
    BatchUpdateFederationRelationshipRequest, GetFederationRelationshipRequest,
    ListFederationRelationshipsRequest, ListFederationRelationshipsResponse, RefreshBundleRequest,
};
use finial_proto::spire::api::types;
use finial_proto::spire::api::types::federation_relationship::BundleEndpointProfile as WireProfile;
use tonic::Code;

use super::federation_document::{self, Described};

const PAGE: i32 = 500;

pub fn command() -> Command {
    flags::group(
        "federation",
        "Federation relationships with foreign trust domains",
    )
    .subcommand(relationship_flags(flags::query(
        "create",
        "Creates a federation relationship",
        dial::SERVER,
    )))
    .subcommand(relationship_flags(flags::query(
        "update",
        "Replaces a federation relationship",
        dial::SERVER,
    )))
    .subcommand(flags::query(
        "list",
        "Prints federation relationships",
        dial::SERVER,
    ))
    .subcommand(
        flags::query("show", "Prints a federation relationship", dial::SERVER).arg(text(
            "trustDomain",
            "The trust domain name of the federation relationship to show",
        )),
    )
    .subcommand(
        flags::query("delete", "Deletes a federation relationship", dial::SERVER)
            .arg(text("id", "SPIFFE ID of the trust domain")),
    )
    .subcommand(
        flags::query(
            "refresh",
            "Fetches the bundle of a trust domain now",
            dial::SERVER,
        )
        .arg(text("id", "SPIFFE ID of the trust domain")),
    )
}

fn relationship_flags(command: Command) -> Command {
    command
        .arg(text(
            "data",
            "File with federation relationships in JSON; - is standard input",
        ))
        .arg(text("trustDomain", "Name of the trust domain to federate with"))
        .arg(text(
            "bundleEndpointURL",
            "URL of the bundle endpoint of the trust domain; https",
        ))
        .arg(text("bundleEndpointProfile", "https_web or https_spiffe"))
        .arg(text(
            "endpointSpiffeID",
            "SPIFFE ID of the bundle endpoint, with https_spiffe only",
        ))
        .arg(text(
            "trustDomainBundlePath",
            "File with the bundle to start from",
        ))
        .arg(
            text("trustDomainBundleFormat", "Format of the bundle: pem or spiffe")
                .value_parser(["pem", "spiffe"])
                .default_value("pem"),
        )
}

pub async fn run(name: &str, matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    match name {
        "create" | "update" => change(name, matches, console).await,
        "list" => list(matches, console).await,
        "show" => show(matches, console).await,
        "delete" => delete(matches, console).await,
        _ => refresh(matches, console).await,
    }
}

async fn change(verb: &str, matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let wanted = relationships(matches, console)?;
    let federation_relationships = wanted.clone();
    let mut client = super::client!(TrustDomainClient, matches, console);
    // Both calls have messages of their own, which differ in their names alone.
    macro_rules! call {
        ($method:ident, $request:expr, $answer:literal) => {{
            let answer = client.$method($request).await;
            let answer = answer.map_err(|status| dial::status("request failed", &status))?;
            let answer = answer.into_inner();
            if wants_json(matches) {
                return console.message($answer, &answer);
            }
            let results = answer.results.into_iter();
            results
                .map(|result| (result.status, result.federation_relationship))
                .collect::<Vec<Outcome>>()
        }};
    }
    let results = match verb {
        "create" => call!(
            batch_create_federation_relationship,
            BatchCreateFederationRelationshipRequest {
                federation_relationships,
                output_mask: None,
            },
            "spire.api.server.trustdomain.v1.BatchCreateFederationRelationshipResponse"
        ),
        _ => call!(
            batch_update_federation_relationship,
            BatchUpdateFederationRelationshipRequest {
                federation_relationships,
                input_mask: None,
                output_mask: None,
            },
            "spire.api.server.trustdomain.v1.BatchUpdateFederationRelationshipResponse"
        ),
    };
    print_results(verb, results, wanted, console)
}

async fn list(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let mut client = super::client!(TrustDomainClient, matches, console);
    let mut all = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListFederationRelationshipsRequest {
            output_mask: None,
            page_size: PAGE,
            page_token: std::mem::take(&mut page_token),
        };
        let page = client
            .list_federation_relationships(request)
            .await
            .map_err(|status| dial::status("error listing federation relationship", &status))?
            .into_inner();
        all.extend(page.federation_relationships);
        if page.next_page_token.is_empty() {
            break;
        }
        page_token = page.next_page_token;
    }
    if wants_json(matches) {
        let answer = ListFederationRelationshipsResponse {
            federation_relationships: all,
            next_page_token: String::new(),
        };
        return console.message(
            "spire.api.server.trustdomain.v1.ListFederationRelationshipsResponse",
            &answer,
        );
    }
    let noun = match all.len() {
        1 => "federation relationship",
        _ => "federation relationships",
    };
    console.line(format!("Found {} {noun}", all.len()))?;
    for relationship in &all {
        console.line("")?;
        console.raw(&block(relationship))?;
    }
    Ok(())
}

async fn show(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let trust_domain = required(matches, "trustDomain", "a trust domain name")?;
    let mut client = super::client!(TrustDomainClient, matches, console);
    let relationship = client
        .get_federation_relationship(GetFederationRelationshipRequest {
            trust_domain: trust_domain.to_owned(),
            output_mask: None,
        })
        .await
        .map_err(|status| dial::status("error showing federation relationship", &status))?
        .into_inner();
    if wants_json(matches) {
        return console.message("spire.api.types.FederationRelationship", &relationship);
    }
    console.line(format!(
        "Found a federation relationship with trust domain {trust_domain}:\n"
    ))?;
    console.raw(&block(&relationship))
}

async fn delete(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let id = required(matches, "id", "a trust domain")?;
    let mut client = super::client!(TrustDomainClient, matches, console);
    let answer = client
        .batch_delete_federation_relationship(BatchDeleteFederationRelationshipRequest {
            trust_domains: vec![id.to_owned()],
        })
        .await
        .map_err(|status| dial::status("failed to delete federation relationship", &status))?
        .into_inner();
    if wants_json(matches) {
        return console.message(
            "spire.api.server.trustdomain.v1.BatchDeleteFederationRelationshipResponse",
            &answer,
        );
    }
    let result = answer.results.first().context("the server gave no result")?;
    let status = result.status.clone().unwrap_or_default();
    anyhow::ensure!(
        status.code == 0,
        "failed to delete federation relationship \"{}\": {}",
        result.trust_domain,
        status.message
    );
    console.line("federation relationship deleted.")
}

async fn refresh(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let id = required(matches, "id", "a trust domain")?;
    let mut client = super::client!(TrustDomainClient, matches, console);
    let request = RefreshBundleRequest {
        trust_domain: id.to_owned(),
    };
    match client.refresh_bundle(request).await {
        Ok(_) if wants_json(matches) => console.message(
            "spire.api.types.Status",
            &types::Status {
                code: 0,
                message: "OK".to_owned(),
            },
        ),
        Ok(_) => console.line("Bundle refreshed"),
        Err(status) if status.code() == Code::NotFound => {
            anyhow::bail!("there is no federation relationship with trust domain \"{id}\"")
        }
        Err(status) => Err(dial::status("failed to refresh bundle", &status)),
    }
}

fn relationships(
    matches: &ArgMatches,
    console: &mut Console<'_>,
) -> anyhow::Result<Vec<types::FederationRelationship>> {
    let flag = |name: &str| value(matches, name).unwrap_or_default().to_owned();
    let described = Described {
        trust_domain: flag("trustDomain"),
        bundle_endpoint_url: flag("bundleEndpointURL"),
        bundle_endpoint_profile: flag("bundleEndpointProfile"),
        endpoint_spiffe_id: flag("endpointSpiffeID"),
        bundle: None,
        bundle_format: flag("trustDomainBundleFormat"),
    };
    let path = value(matches, "trustDomainBundlePath");
    if let Some(data) = value(matches, "data") {
        let has_others = described
            != Described {
                bundle_format: "pem".to_owned(),
                ..Described::default()
            };
        anyhow::ensure!(
            !has_others && path.is_none(),
            "cannot use other flags to specify relationship fields when 'data' flag is set"
        );
        return federation_document::parse(&console.read(data)?);
    }
    let bundle = path
        .map(|path| console.read(path))
        .transpose()
        .context("cannot read bundle file")?;
    Ok(vec![Described { bundle, ..described }.convert()?])
}

type Outcome = (Option<types::Status>, Option<types::FederationRelationship>);

/// What was done first, then what was not, as it was asked for.
fn print_results(
    verb: &str,
    results: Vec<Outcome>,
    wanted: Vec<types::FederationRelationship>,
    console: &mut Console<'_>,
) -> anyhow::Result<()> {
    let mut failed = Vec::new();
    for ((status, done), wanted) in results.into_iter().zip(wanted) {
        let status = status.unwrap_or_default();
        if status.code != 0 {
            failed.push((status, wanted));
            continue;
        }
        console.line("")?;
        console.raw(&block(&done.unwrap_or(wanted)))?;
    }
    for (status, wanted) in &failed {
        console.line("")?;
        console.warn(format!(
            "Failed to {verb} the following federation relationship (code: {:?}, msg: {:?}):",
            Code::from(status.code),
            status.message
        ))?;
        console.warn(block(wanted).trim_end())?;
    }
    anyhow::ensure!(
        failed.is_empty(),
        "failed to {verb} one or more federation relationships"
    );
    Ok(())
}

fn block(relationship: &types::FederationRelationship) -> String {
    let mut lines = vec![
        ("Trust domain", relationship.trust_domain.as_str()),
        ("Bundle endpoint URL", relationship.bundle_endpoint_url.as_str()),
    ];
    match &relationship.bundle_endpoint_profile {
        None => {}
        Some(WireProfile::HttpsWeb(_)) => lines.push(("Bundle endpoint profile", "https_web")),
        Some(WireProfile::HttpsSpiffe(profile)) => {
            lines.push(("Bundle endpoint profile", "https_spiffe"));
            lines.push(("Endpoint SPIFFE ID", &profile.endpoint_spiffe_id));
        }
    }
    lines
        .into_iter()
        .map(|(label, value)| format!("{label:<26}: {value}\n"))
        .collect()
}
