//! `agent list|count|show|evict|ban|purge`.

use anyhow::Context;
use clap::{ArgMatches, Command};
use finial_identity::command::flags::{
    self, is_set, list, match_behavior, required, selectors, spiffe_id, switch, text, tristate, value, values,
};
use finial_identity::command::{Console, dial, local, wants_json};
use finial_identity::process::Clock;
use finial_identity::settings::parse_duration;
use finial_proto::spire::api::server::agent::v1::agent_client::AgentClient;
use finial_proto::spire::api::server::agent::v1::{
    BanAgentRequest, CountAgentsRequest, DeleteAgentRequest, GetAgentRequest, ListAgentsRequest,
    ListAgentsResponse, count_agents_request, list_agents_request,
};
use finial_proto::spire::api::types;
use serde_json::json;
use tonic::transport::Channel;

use super::entry_text::id_text;

const PAGE: i32 = 1000;

pub fn command() -> Command {
    flags::group("agent", "Attested agents")
        .subcommand(filter_flags(flags::query(
            "list",
            "Prints attested agents",
            dial::SERVER,
        )))
        .subcommand(filter_flags(flags::query(
            "count",
            "Counts attested agents",
            dial::SERVER,
        )))
        .subcommand(id_flag(flags::query(
            "show",
            "Prints one attested agent",
            dial::SERVER,
        )))
        .subcommand(id_flag(flags::query(
            "evict",
            "Forgets an agent, which may attest again",
            dial::SERVER,
        )))
        .subcommand(id_flag(flags::query("ban", "Shuts an agent out", dial::SERVER)))
        .subcommand(
            flags::query(
                "purge",
                "Forgets agents that expired long ago and can attest again",
                dial::SERVER,
            )
            .arg(text("expiredFor", "How long an agent must have been expired").default_value("720h"))
            .arg(switch("dryRun", "Only says what would be done")),
        )
}

pub async fn run(name: &str, matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let mut client = super::client!(AgentClient, matches, console);
    match name {
        "list" => print_list(&mut client, matches, console).await,
        "count" => count(&mut client, matches, console).await,
        "show" => show(&mut client, matches, console).await,
        "evict" => {
            let id = Some(agent_id(matches)?);
            let done = client.delete_agent(DeleteAgentRequest { id }).await;
            done.map_err(|status| dial::status("error evicting agent", &status))?;
            console_done(matches, console, "Agent evicted successfully")
        }
        "ban" => {
            let id = Some(agent_id(matches)?);
            let done = client.ban_agent(BanAgentRequest { id }).await;
            done.map_err(|status| dial::status("error banning agent", &status))?;
            console_done(matches, console, "Agent banned successfully")
        }
        _ => purge(&mut client, matches, console).await,
    }
}

fn id_flag(command: Command) -> Command {
    command.arg(text("spiffeID", "The SPIFFE ID of the agent"))
}

fn filter_flags(command: Command) -> Command {
    command
        .arg(list("selector", "A selector to match; may be repeated"))
        .arg(text("matchSelectorsOn", "exact, subset, superset or any").default_value("superset"))
        .arg(text("attestationType", "Only agents attested by this method"))
        .arg(switch(
            "canReattest",
            "Only agents that can, or can not, attest again",
        ))
        .arg(switch("banned", "Only agents that are, or are not, banned"))
        .arg(text(
            "expiresBefore",
            "Only agents that expire before, as 2006-01-02 15:04:05 -0700 -07",
        ))
}

fn agent_id(matches: &ArgMatches) -> anyhow::Result<types::Spiffeid> {
    spiffe_id(required(matches, "spiffeID", "the SPIFFE ID of an agent")?)
}

fn filter(matches: &ArgMatches) -> anyhow::Result<list_agents_request::Filter> {
    let given = selectors(&values(matches, "selector"))?;
    let by_selector_match = (!given.is_empty())
        .then(|| match_behavior(matches, "matchSelectorsOn"))
        .transpose()?
        .map(|behavior| types::SelectorMatch {
            selectors: given,
            r#match: behavior,
        });
    Ok(list_agents_request::Filter {
        by_attestation_type: value(matches, "attestationType").unwrap_or_default().to_owned(),
        by_selector_match,
        by_banned: tristate(matches, "banned"),
        by_can_reattest: tristate(matches, "canReattest"),
        by_expires_before: value(matches, "expiresBefore").unwrap_or_default().to_owned(),
    })
}

async fn list_all(
    client: &mut AgentClient<Channel>,
    filter: list_agents_request::Filter,
    output_mask: Option<types::AgentMask>,
) -> anyhow::Result<Vec<types::Agent>> {
    let mut agents = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListAgentsRequest {
            filter: Some(filter.clone()),
            output_mask,
            page_size: PAGE,
            page_token: std::mem::take(&mut page_token),
        };
        let page = client
            .list_agents(request)
            .await
            .map_err(|status| dial::status("error listing agents", &status))?;
        let page = page.into_inner();
        agents.extend(page.agents);
        if page.next_page_token.is_empty() {
            return Ok(agents);
        }
        page_token = page.next_page_token;
    }
}

async fn print_list(
    client: &mut AgentClient<Channel>,
    matches: &ArgMatches,
    console: &mut Console<'_>,
) -> anyhow::Result<()> {
    let agents = list_all(client, filter(matches)?, None).await?;
    if wants_json(matches) {
        let answer = ListAgentsResponse {
            agents,
            next_page_token: String::new(),
        };
        return console.message("spire.api.server.agent.v1.ListAgentsResponse", &answer);
    }
    if agents.is_empty() {
        return console.line("No attested agents found");
    }
    let noun = if agents.len() == 1 { "agent" } else { "agents" };
    console.line(format!("Found {} attested {noun}:\n", agents.len()))?;
    for agent in &agents {
        console.line(block(agent))?;
    }
    Ok(())
}

async fn count(
    client: &mut AgentClient<Channel>,
    matches: &ArgMatches,
    console: &mut Console<'_>,
) -> anyhow::Result<()> {
    let filter = filter(matches)?;
    let filter = count_agents_request::Filter {
        by_attestation_type: filter.by_attestation_type,
        by_selector_match: filter.by_selector_match,
        by_banned: filter.by_banned,
        by_can_reattest: filter.by_can_reattest,
        by_expires_before: filter.by_expires_before,
    };
    let answer = client
        .count_agents(CountAgentsRequest { filter: Some(filter) })
        .await;
    let answer = answer
        .map_err(|status| dial::status("error counting agents", &status))?
        .into_inner();
    if wants_json(matches) {
        return console.message("spire.api.server.agent.v1.CountAgentsResponse", &answer);
    }
    let noun = if answer.count == 1 { "agent" } else { "agents" };
    console.line(format!("{} attested {noun}", answer.count))
}

async fn show(
    client: &mut AgentClient<Channel>,
    matches: &ArgMatches,
    console: &mut Console<'_>,
) -> anyhow::Result<()> {
    let request = GetAgentRequest {
        id: Some(agent_id(matches)?),
        output_mask: None,
    };
    let agent = client
        .get_agent(request)
        .await
        .map_err(|status| dial::status("error fetching agent", &status))?;
    let agent = agent.into_inner();
    if wants_json(matches) {
        return console.message("spire.api.types.Agent", &agent);
    }
    console.line("Found an attested agent given its SPIFFE ID\n")?;
    console.line(block(&agent))?;
    for selector in &agent.selectors {
        console.line(format!(
            "{:<18}: {}:{}",
            "Selectors", selector.r#type, selector.value
        ))?;
    }
    Ok(())
}

async fn purge(
    client: &mut AgentClient<Channel>,
    matches: &ArgMatches,
    console: &mut Console<'_>,
) -> anyhow::Result<()> {
    let for_at_least =
        parse_duration(required(matches, "expiredFor", "a duration")?).context("invalid -expiredFor")?;
    let limit =
        Clock::system().unix() - i64::try_from(for_at_least.as_secs()).context("-expiredFor is too long")?;
    let filter = list_agents_request::Filter {
        by_can_reattest: Some(true),
        ..Default::default()
    };
    let mask = types::AgentMask {
        x509svid_expires_at: true,
        ..Default::default()
    };
    let agents = list_all(client, filter, Some(mask)).await?;
    let mut purged = Vec::new();
    for agent in agents
        .into_iter()
        .filter(|agent| agent.x509svid_expires_at < limit)
    {
        let id = id_text(agent.id.as_ref());
        let outcome = match is_set(matches, "dryRun") {
            true => None,
            false => Some(client.delete_agent(DeleteAgentRequest { id: agent.id }).await),
        };
        let error = match &outcome {
            Some(Err(status)) => status.message().to_owned(),
            _ => String::new(),
        };
        purged.push((id, matches!(outcome, Some(Ok(_))), error));
    }
    if wants_json(matches) {
        let agents: Vec<_> = purged
            .iter()
            .map(|(id, deleted, error)| json!({"agent_id": id, "deleted": deleted, "error": error}))
            .collect();
        return console.json(&json!({ "expired_agents": agents }));
    }
    if purged.is_empty() {
        return console.line("No agents to purge.");
    }
    let noun = if purged.len() == 1 { "agent" } else { "agents" };
    console.line(format!("Found {} expired {noun}\n", purged.len()))?;
    for (id, deleted, error) in &purged {
        let fate = match (deleted, error.is_empty()) {
            (true, _) => "purged".to_owned(),
            (false, true) => "would be purged".to_owned(),
            (false, false) => format!("not purged: {error}"),
        };
        console.line(format!("{:<18}: {id} ({fate})", "SPIFFE ID"))?;
    }
    Ok(())
}

fn console_done(matches: &ArgMatches, console: &mut Console<'_>, text: &str) -> anyhow::Result<()> {
    if wants_json(matches) {
        console.line("{}")
    } else {
        console.line(text)
    }
}

fn block(agent: &types::Agent) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: &str| text.push_str(&format!("{label:<18}: {value}\n"));
    line("SPIFFE ID", &id_text(agent.id.as_ref()));
    line("Attestation type", &agent.attestation_type);
    line("Expiration time", &local(agent.x509svid_expires_at));
    if agent.banned {
        line("Banned", "true");
    } else {
        line("Serial number", &agent.x509svid_serial_number);
    }
    line("Can re-attest", if agent.can_reattest { "true" } else { "false" });
    if !agent.agent_version.is_empty() {
        line("Agent version", &agent.agent_version);
    }
    text
}
