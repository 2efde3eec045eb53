//! What an operator does over the server's private socket.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use finial_identity::command::dial::{status, unix_channel};
use finial_identity::process::private_file::{self, FileMode};
use finial_identity::selector::Selector;
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::wire;
use finial_proto::spire::api::server::agent::v1::agent_client::AgentClient;
use finial_proto::spire::api::server::agent::v1::{
    CreateJoinTokenRequest, ListAgentsRequest, list_agents_request,
};
use finial_proto::spire::api::server::bundle::v1::GetBundleRequest;
use finial_proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use finial_proto::spire::api::server::entry::v1::BatchCreateEntryRequest;
use finial_proto::spire::api::server::entry::v1::entry_client::EntryClient;
use finial_proto::spire::api::server::localauthority::v1::GetX509AuthorityStateRequest;
use finial_proto::spire::api::server::localauthority::v1::local_authority_client::LocalAuthorityClient;
use finial_proto::spire::api::types;
use tonic::transport::Channel;

/// Seconds that a join token is good for; it is used at once.
const TOKEN_TTL: i32 = 60;

const OK: i32 = tonic::Code::Ok as i32;
const ALREADY_EXISTS: i32 = tonic::Code::AlreadyExists as i32;

#[derive(Debug)]
pub struct Operator {
    channel: Channel,
}

impl Operator {
    pub async fn connect(socket: PathBuf) -> anyhow::Result<Self> {
        Ok(Operator {
            channel: unix_channel(socket).await?,
        })
    }

    /// Writes the trust bundle to where the agent reads it, as PEM.
    pub async fn save_bundle(&self, path: &Path) -> anyhow::Result<()> {
        let answer = BundleClient::new(self.channel.clone())
            .get_bundle(GetBundleRequest { output_mask: None })
            .await;
        let bundle = answer
            .map_err(|error| status("get the bundle", &error))?
            .into_inner();
        let bundle = wire::bundle_from_wire(bundle).context("read the bundle")?;
        private_file::write(path, bundle.to_pem().as_bytes(), FileMode::new(0o644))?;
        Ok(())
    }

    /// The ID of the authority that signs X.509-SVIDs.
    pub async fn x509_authority(&self) -> anyhow::Result<String> {
        let answer = LocalAuthorityClient::new(self.channel.clone())
            .get_x509_authority_state(GetX509AuthorityStateRequest {})
            .await
            .map_err(|error| status("get the authorities", &error))?;
        Ok(answer
            .into_inner()
            .active
            .context("no active authority")?
            .authority_id)
    }

    /// A join token; the agent that uses it is also known as `node`.
    pub async fn join_token(&self, node: &SpiffeId) -> anyhow::Result<String> {
        let request = CreateJoinTokenRequest {
            ttl: TOKEN_TTL,
            token: String::new(),
            agent_id: Some(wire::spiffe_id_to_wire(node)),
        };
        let answer = AgentClient::new(self.channel.clone())
            .create_join_token(request)
            .await;
        Ok(answer
            .map_err(|error| status("make a join token", &error))?
            .into_inner()
            .value)
    }

    /// The attested agent whose SVID outlives `now` (unix seconds), if there is one.
    pub async fn valid_agent(&self, now: i64) -> anyhow::Result<Option<SpiffeId>> {
        let filter = list_agents_request::Filter {
            by_banned: Some(false),
            ..Default::default()
        };
        let request = ListAgentsRequest {
            filter: Some(filter),
            ..Default::default()
        };
        let answer = AgentClient::new(self.channel.clone()).list_agents(request).await;
        let agents = answer
            .map_err(|error| status("list the agents", &error))?
            .into_inner()
            .agents;
        let newest = agents.into_iter().filter(|agent| agent.x509svid_expires_at > now);
        let newest = newest.max_by_key(|agent| agent.x509svid_expires_at);
        newest
            .map(|agent| wire::spiffe_id_from_wire(agent.id).context("read the agent's ID"))
            .transpose()
    }

    /// Makes sure that `selector` gives `id`; whether the entry is new.
    pub async fn ensure_entry(
        &self,
        id: &SpiffeId,
        parent: &SpiffeId,
        selector: &str,
    ) -> anyhow::Result<bool> {
        let selector = Selector::parse(selector).context("parse the selector")?;
        let entry = types::Entry {
            spiffe_id: Some(wire::spiffe_id_to_wire(id)),
            parent_id: Some(wire::spiffe_id_to_wire(parent)),
            selectors: vec![wire::selector_to_wire(&selector)],
            ..types::Entry::default()
        };
        let request = BatchCreateEntryRequest {
            entries: vec![entry],
            output_mask: None,
        };
        let answer = EntryClient::new(self.channel.clone())
            .batch_create_entry(request)
            .await;
        let answer = answer
            .map_err(|error| status("create the entry", &error))?
            .into_inner();
        let result = answer.results.into_iter().next().and_then(|result| result.status);
        match result.context("the server sent no result")? {
            created if created.code == OK => Ok(true),
            existing if existing.code == ALREADY_EXISTS => Ok(false),
            failed => bail!("create the entry: {}", failed.message),
        }
    }
}
