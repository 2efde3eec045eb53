//! `entry create|update|delete|show|count`.

use anyhow::Context;
use clap::{ArgMatches, Command};
use finial_identity::command::flags::{
    self, is_set, list, match_behavior, number, required, seconds, selectors, spiffe_id, switch, text,
    tristate, value, values,
};
use finial_identity::command::{Console, dial, wants_json};
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use finial_identity::wire;
use finial_proto::spire::api::server::entry::v1::entry_client::EntryClient;
use finial_proto::spire::api::server::entry::v1::{
    BatchCreateEntryRequest, BatchDeleteEntryRequest, BatchUpdateEntryRequest, CountEntriesRequest,
    GetEntryRequest, ListEntriesRequest, ListEntriesResponse, count_entries_request, list_entries_request,
};
use finial_proto::spire::api::types;
use serde::Deserialize;
use tonic::transport::Channel;

use super::entry_document;
use super::entry_text::{block, id_text};

const PAGE: i32 = 500;

pub fn command() -> Command {
    let create = entry_flags(flags::query(
        "create",
        "Creates registration entries",
        dial::SERVER,
    ))
    .arg(switch("node", "The entry is for agents that match the selectors"))
    .arg(switch(
        "disableX509SVIDPrefetch",
        "Agents issue the SVID only when it is asked for",
    ))
    .arg(switch("jwtSVIDIncludeJTI", "JWT-SVIDs carry a jti claim"));
    flags::group("entry", "Registration entries")
        .subcommand(create)
        .subcommand(entry_flags(flags::query(
            "update",
            "Replaces a registration entry",
            dial::SERVER,
        )))
        .subcommand(
            flags::query("delete", "Deletes registration entries", dial::SERVER)
                .arg(text("entryID", "The entry to delete"))
                .arg(text(
                    "file",
                    "JSON document of the ids to delete, - for standard input",
                )),
        )
        .subcommand(
            filter_flags(flags::query("show", "Prints registration entries", dial::SERVER))
                .arg(text("entryID", "The entry to print")),
        )
        .subcommand(filter_flags(flags::query(
            "count",
            "Counts registration entries",
            dial::SERVER,
        )))
}

pub async fn run(name: &str, matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    match name {
        "create" => create(matches, console).await,
        "update" => update(matches, console).await,
        "delete" => delete(matches, console).await,
        "show" => show(matches, console).await,
        _ => count(matches, console).await,
    }
}

fn entry_flags(command: Command) -> Command {
    command
        .arg(text("entryID", "The id of the entry"))
        .arg(text("parentID", "The SPIFFE ID of the entry's parent"))
        .arg(text("spiffeID", "The SPIFFE ID that the entry gives"))
        .arg(list("selector", "A selector, type:value; may be repeated"))
        .arg(number(
            "x509SVIDTTL",
            "Lifetime of X.509-SVIDs in seconds, 0 for the server's default",
        ))
        .arg(number(
            "jwtSVIDTTL",
            "Lifetime of JWT-SVIDs in seconds, 0 for the server's default",
        ))
        .arg(list(
            "federatesWith",
            "A foreign trust domain to trust; may be repeated",
        ))
        .arg(switch("admin", "The SVID may administer the server"))
        .arg(switch("downstream", "The SVID is a downstream server's"))
        .arg(switch("storeSVID", "The SVID goes to an SVID store"))
        .arg(number(
            "entryExpiry",
            "When the entry is deleted, in seconds since 1970",
        ))
        .arg(list("dns", "A DNS name of the X.509-SVID; may be repeated"))
        .arg(text("hint", "A hint for the workload"))
        .arg(text("data", "JSON document of entries, - for standard input"))
}

fn filter_flags(command: Command) -> Command {
    command
        .arg(text("parentID", "Only entries of this parent"))
        .arg(text("spiffeID", "Only entries of this SPIFFE ID"))
        .arg(switch("downstream", "Only entries of downstream servers"))
        .arg(list("selector", "A selector to match; may be repeated"))
        .arg(list("federatesWith", "A trust domain to match; may be repeated"))
        .arg(text("matchSelectorsOn", "exact, subset, superset or any").default_value("superset"))
        .arg(text("matchFederatesWithOn", "exact, subset, superset or any").default_value("superset"))
        .arg(text("hint", "Only entries with this hint"))
}

async fn create(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let entries = match value(matches, "data") {
        Some(path) => entry_document::parse(&console.read(path)?)?,
        None => vec![from_flags(matches, is_set(matches, "node"))?],
    };
    let mut client = super::client!(EntryClient, matches, console);
    let answer = client
        .batch_create_entry(BatchCreateEntryRequest {
            entries: entries.clone(),
            output_mask: None,
        })
        .await
        .map_err(|status| dial::status("error creating entries", &status))?
        .into_inner();
    let failed = answer.results.iter().any(|result| !is_ok(result.status.as_ref()));
    if wants_json(matches) {
        console.message("spire.api.server.entry.v1.BatchCreateEntryResponse", &answer)?;
    } else {
        for (result, asked) in answer.results.iter().zip(&entries) {
            match &result.entry {
                Some(entry) if is_ok(result.status.as_ref()) => console.raw(&block(entry))?,
                _ => report(console, "create", result.status.as_ref(), asked)?,
            }
        }
    }
    anyhow::ensure!(!failed, "failed to create one or more entries");
    Ok(())
}

async fn update(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let entries = match value(matches, "data") {
        Some(path) => entry_document::parse(&console.read(path)?)?,
        None => {
            required(matches, "entryID", "an entry ID")?;
            vec![from_flags(matches, false)?]
        }
    };
    let mut client = super::client!(EntryClient, matches, console);
    let answer = client
        .batch_update_entry(BatchUpdateEntryRequest {
            entries: entries.clone(),
            input_mask: None,
            output_mask: None,
        })
        .await
        .map_err(|status| dial::status("error updating entries", &status))?
        .into_inner();
    let failed = answer.results.iter().any(|result| !is_ok(result.status.as_ref()));
    if wants_json(matches) {
        console.message("spire.api.server.entry.v1.BatchUpdateEntryResponse", &answer)?;
    } else {
        for (result, asked) in answer.results.iter().zip(&entries) {
            match &result.entry {
                Some(entry) if is_ok(result.status.as_ref()) => console.raw(&block(entry))?,
                _ => report(console, "update", result.status.as_ref(), asked)?,
            }
        }
    }
    anyhow::ensure!(!failed, "failed to update one or more entries");
    Ok(())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ids {
    ids: Vec<String>,
}

async fn delete(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let ids = match (value(matches, "entryID"), value(matches, "file")) {
        (Some(_), Some(_)) => anyhow::bail!("-entryID and -file exclude each other"),
        (Some(id), None) => vec![id.to_owned()],
        (None, Some(path)) => {
            serde_json::from_str::<Ids>(&console.read(path)?)
                .context("parse the document of ids")?
                .ids
        }
        (None, None) => anyhow::bail!("an entry ID is required: -entryID or -file"),
    };
    let mut client = super::client!(EntryClient, matches, console);
    let answer = client
        .batch_delete_entry(BatchDeleteEntryRequest { ids })
        .await
        .map_err(|status| dial::status("error deleting entries", &status))?
        .into_inner();
    let failures = answer
        .results
        .iter()
        .filter(|result| !is_ok(result.status.as_ref()))
        .count();
    if wants_json(matches) {
        console.message("spire.api.server.entry.v1.BatchDeleteEntryResponse", &answer)?;
    } else {
        for result in &answer.results {
            if is_ok(result.status.as_ref()) {
                console.line(format!("Deleted entry with ID: {}", result.id))?;
            } else {
                let status = result.status.clone().unwrap_or_default();
                console.warn(format!(
                    "Failed to delete entry with ID {} (code: {}, msg: {:?})",
                    result.id,
                    code_name(status.code),
                    status.message
                ))?;
            }
        }
        if failures > 0 {
            console.warn(format!(
                "{} succeeded, {failures} failed",
                answer.results.len() - failures
            ))?;
        }
    }
    anyhow::ensure!(failures == 0, "failed to delete one or more entries");
    Ok(())
}

async fn show(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let mut client = super::client!(EntryClient, matches, console);
    let mut entries = match value(matches, "entryID") {
        Some(id) => {
            anyhow::ensure!(
                !has_filter(matches),
                "the -entryID flag can't be combined with others"
            );
            let request = GetEntryRequest {
                id: id.to_owned(),
                output_mask: None,
            };
            let entry = client
                .get_entry(request)
                .await
                .map_err(|status| dial::status("error fetching entry", &status))?;
            vec![entry.into_inner()]
        }
        None => list_all(&mut client, filter(matches)?).await?,
    };
    entries.sort_by_cached_key(|entry| {
        (
            id_text(entry.spiffe_id.as_ref()),
            id_text(entry.parent_id.as_ref()),
            entry.id.clone(),
        )
    });
    if wants_json(matches) {
        let answer = ListEntriesResponse {
            entries,
            next_page_token: String::new(),
        };
        return console.message("spire.api.server.entry.v1.ListEntriesResponse", &answer);
    }
    let noun = if entries.len() == 1 { "entry" } else { "entries" };
    console.line(format!("Found {} {noun}", entries.len()))?;
    for entry in &entries {
        console.raw(&block(entry))?;
    }
    Ok(())
}

async fn count(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let filter = filter(matches)?;
    let filter = count_entries_request::Filter {
        by_spiffe_id: filter.by_spiffe_id,
        by_parent_id: filter.by_parent_id,
        by_selectors: filter.by_selectors,
        by_federates_with: filter.by_federates_with,
        by_hint: filter.by_hint,
        by_downstream: filter.by_downstream,
    };
    let mut client = super::client!(EntryClient, matches, console);
    let answer = client
        .count_entries(CountEntriesRequest { filter: Some(filter) })
        .await
        .map_err(|status| dial::status("error counting entries", &status))?
        .into_inner();
    if wants_json(matches) {
        return console.message("spire.api.server.entry.v1.CountEntriesResponse", &answer);
    }
    let noun = if answer.count == 1 { "entry" } else { "entries" };
    console.line(format!("{} registration {noun}", answer.count))
}

async fn list_all(
    client: &mut EntryClient<Channel>,
    filter: list_entries_request::Filter,
) -> anyhow::Result<Vec<types::Entry>> {
    let mut entries = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListEntriesRequest {
            filter: Some(filter.clone()),
            output_mask: None,
            page_size: PAGE,
            page_token: std::mem::take(&mut page_token),
        };
        let page = client
            .list_entries(request)
            .await
            .map_err(|status| dial::status("error fetching entries", &status))?;
        let page = page.into_inner();
        entries.extend(page.entries);
        if page.next_page_token.is_empty() {
            return Ok(entries);
        }
        page_token = page.next_page_token;
    }
}

fn from_flags(matches: &ArgMatches, node: bool) -> anyhow::Result<types::Entry> {
    let id = required(matches, "spiffeID", "a SPIFFE ID")?;
    let federates_with: Vec<String> = values(matches, "federatesWith")
        .into_iter()
        .map(str::to_owned)
        .collect();
    for name in &federates_with {
        TrustDomain::parse_name_or_id(name).with_context(|| format!("invalid -federatesWith {name:?}"))?;
    }
    let selectors = selectors(&values(matches, "selector"))?;
    anyhow::ensure!(
        !selectors.is_empty(),
        "at least one selector is required: -selector"
    );
    let parent_id = if node {
        anyhow::ensure!(
            federates_with.is_empty(),
            "node entries can not federate: -federatesWith"
        );
        let id = SpiffeId::parse(id).with_context(|| format!("invalid SPIFFE ID {id:?}"))?;
        wire::spiffe_id_to_wire(&id.trust_domain().server_id())
    } else {
        spiffe_id(required(matches, "parentID", "a parent ID, or -node,")?)?
    };
    let known = |name| matches.try_contains_id(name).is_ok() && is_set(matches, name);
    let attributes = types::entry::AdditionalAttributes {
        disable_x509_svid_prefetch: known("disableX509SVIDPrefetch"),
        jwt_svid_include_jti: known("jwtSVIDIncludeJTI"),
    };
    let has_attributes = attributes.disable_x509_svid_prefetch || attributes.jwt_svid_include_jti;
    Ok(types::Entry {
        id: value(matches, "entryID").unwrap_or_default().to_owned(),
        spiffe_id: Some(spiffe_id(id)?),
        parent_id: Some(parent_id),
        selectors,
        x509_svid_ttl: seconds(matches, "x509SVIDTTL")?,
        jwt_svid_ttl: seconds(matches, "jwtSVIDTTL")?,
        federates_with,
        admin: is_set(matches, "admin"),
        downstream: is_set(matches, "downstream"),
        expires_at: matches.get_one::<i64>("entryExpiry").copied().unwrap_or(0),
        dns_names: values(matches, "dns").into_iter().map(str::to_owned).collect(),
        store_svid: is_set(matches, "storeSVID"),
        hint: value(matches, "hint").unwrap_or_default().to_owned(),
        additional_attributes: has_attributes.then_some(attributes),
        ..types::Entry::default()
    })
}

fn has_filter(matches: &ArgMatches) -> bool {
    ["parentID", "spiffeID", "hint"]
        .iter()
        .any(|name| value(matches, name).is_some())
        || ["selector", "federatesWith"]
            .iter()
            .any(|name| !values(matches, name).is_empty())
        || tristate(matches, "downstream").is_some()
}

fn filter(matches: &ArgMatches) -> anyhow::Result<list_entries_request::Filter> {
    let given = selectors(&values(matches, "selector"))?;
    let domains: Vec<String> = values(matches, "federatesWith")
        .into_iter()
        .map(str::to_owned)
        .collect();
    let by_selectors = (!given.is_empty())
        .then(|| match_behavior(matches, "matchSelectorsOn"))
        .transpose()?
        .map(|behavior| types::SelectorMatch {
            selectors: given,
            r#match: behavior,
        });
    let by_federates_with = (!domains.is_empty())
        .then(|| match_behavior(matches, "matchFederatesWithOn"))
        .transpose()?
        .map(|behavior| types::FederatesWithMatch {
            trust_domains: domains,
            r#match: behavior,
        });
    Ok(list_entries_request::Filter {
        by_spiffe_id: value(matches, "spiffeID").map(spiffe_id).transpose()?,
        by_parent_id: value(matches, "parentID").map(spiffe_id).transpose()?,
        by_selectors,
        by_federates_with,
        by_hint: value(matches, "hint").map(str::to_owned),
        by_downstream: tristate(matches, "downstream"),
    })
}

fn report(
    console: &mut Console<'_>,
    verb: &str,
    status: Option<&types::Status>,
    asked: &types::Entry,
) -> anyhow::Result<()> {
    let status = status.cloned().unwrap_or_default();
    console.warn(format!(
        "Failed to {verb} the following entry (code: {}, msg: {:?}):",
        code_name(status.code),
        status.message
    ))?;
    console.warn(block(asked))
}

fn is_ok(status: Option<&types::Status>) -> bool {
    status.is_none_or(|status| status.code == 0)
}

fn code_name(code: i32) -> String {
    format!("{:?}", tonic::Code::from_i32(code))
}
