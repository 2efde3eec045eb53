//! `spire.api.server.agent.v1.Agent`: attested nodes, their attestation and renewal, join tokens.

use std::sync::Arc;

use finial_identity::entry::{Entry, EntryParts};
use finial_identity::selector::Selector;
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::wire;
use finial_proto::spire::api::server::agent::v1 as pb;
use finial_proto::spire::api::server::agent::v1::agent_server::Agent as AgentApi;
use finial_proto::spire::api::types;
use finial_proto::spire::api::types::permission_denied_details::Reason;
use futures_util::stream::BoxStream;
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use super::agent_attest::{Conversation, attest};
use super::agent_filter::AgentFilter;
use super::call::{Call, field};
use super::csr;
use super::page::Page;
use super::status::{OrRefuse, Refusal};
use super::streaming::driven;
use super::svid::svid_to_wire;
use super::{SCAN, Services};
use crate::attestation::join_token;
use crate::store::{AgentRecord, EntryCreated, StoredAgent};

/// Longest version that an agent may post.
const MAX_VERSION_CHARS: usize = 255;

/// Answers the Agent service.
#[derive(Debug)]
pub struct AgentService(Arc<Services>);

impl AgentService {
    /// Works with these parts.
    pub fn new(services: Arc<Services>) -> Self {
        Self(services)
    }
}

#[tonic::async_trait]
impl AgentApi for AgentService {
    type AttestAgentStream = BoxStream<'static, Result<pb::AttestAgentResponse, Status>>;

    async fn count_agents(
        &self,
        request: Request<pb::CountAgentsRequest>,
    ) -> Result<Response<pb::CountAgentsResponse>, Status> {
        let call = Call::of(&request)?;
        let filter = request.into_inner().filter;
        let count = self.count(filter).await.map_err(|refusal| call.refuse(refusal))?;
        Ok(Response::new(pb::CountAgentsResponse { count }))
    }

    async fn list_agents(
        &self,
        request: Request<pb::ListAgentsRequest>,
    ) -> Result<Response<pb::ListAgentsResponse>, Status> {
        let call = Call::of(&request)?;
        let listed = self.list(request.into_inner()).await;
        listed.map(Response::new).map_err(|refusal| call.refuse(refusal))
    }

    async fn get_agent(
        &self,
        request: Request<pb::GetAgentRequest>,
    ) -> Result<Response<types::Agent>, Status> {
        let call = Call::of(&request)?;
        let request = request.into_inner();
        let found = async {
            let id = self.agent_id(&call, request.id)?;
            let record = self.0.store.agent(&id).await.or_refuse("failed to fetch agent")?;
            record.ok_or_else(|| Refusal::not_found("agent not found"))
        };
        let record = found.await.map_err(|refusal| call.refuse(refusal))?;
        Ok(Response::new(masked(&record.agent, &request.output_mask)))
    }

    async fn delete_agent(&self, request: Request<pb::DeleteAgentRequest>) -> Result<Response<()>, Status> {
        let call = Call::of(&request)?;
        let deleted = async {
            let id = self.agent_id(&call, request.into_inner().id)?;
            let deleted = self
                .0
                .store
                .delete_agent(&id)
                .await
                .or_refuse("failed to remove agent")?;
            deleted
                .map(drop)
                .ok_or_else(|| Refusal::not_found("agent not found"))
        };
        deleted
            .await
            .map(Response::new)
            .map_err(|refusal| call.refuse(refusal))
    }

    async fn ban_agent(&self, request: Request<pb::BanAgentRequest>) -> Result<Response<()>, Status> {
        let call = Call::of(&request)?;
        let banned = async {
            let id = self.agent_id(&call, request.into_inner().id)?;
            let banned = self
                .0
                .store
                .ban_agent(&id)
                .await
                .or_refuse("failed to ban agent")?;
            banned
                .map(drop)
                .ok_or_else(|| Refusal::not_found("agent not found"))
        };
        banned
            .await
            .map(Response::new)
            .map_err(|refusal| call.refuse(refusal))
    }

    async fn attest_agent(
        &self,
        request: Request<Streaming<pb::AttestAgentRequest>>,
    ) -> Result<Response<Self::AttestAgentStream>, Status> {
        let call = Call::of(&request)?;
        let requests = request.into_inner();
        let services = Arc::clone(&self.0);
        Ok(Response::new(driven(move |sender| async move {
            let conversation = Conversation::new(&call, requests, sender);
            attest(&services, &call, conversation)
                .await
                .map_err(|refusal| call.refuse(refusal))
        })))
    }

    async fn renew_agent(
        &self,
        request: Request<pb::RenewAgentRequest>,
    ) -> Result<Response<pb::RenewAgentResponse>, Status> {
        let call = Call::of(&request)?;
        let renewed = self.renew(&call, request.into_inner()).await;
        renewed.map(Response::new).map_err(|refusal| call.refuse(refusal))
    }

    async fn create_join_token(
        &self,
        request: Request<pb::CreateJoinTokenRequest>,
    ) -> Result<Response<types::JoinToken>, Status> {
        let call = Call::of(&request)?;
        let created = self.create_join_token(&call, request.into_inner()).await;
        created.map(Response::new).map_err(|refusal| call.refuse(refusal))
    }

    async fn post_status(
        &self,
        request: Request<pb::PostStatusRequest>,
    ) -> Result<Response<pb::PostStatusResponse>, Status> {
        let call = Call::of(&request)?;
        let version = request.into_inner().agent_version;
        call.note(field::AGENT_VERSION, &version);
        let posted = async {
            let id = call.agent()?;
            if version.chars().count() > MAX_VERSION_CHARS {
                return Err(Refusal::invalid(format!(
                    "agent version is too long: more than {MAX_VERSION_CHARS} characters"
                )));
            }
            if !version.is_empty() {
                self.0
                    .store
                    .set_agent_version(id, &version)
                    .await
                    .or_refuse("failed to update agent")?;
            }
            Ok(pb::PostStatusResponse {})
        };
        posted
            .await
            .map(Response::new)
            .map_err(|refusal| call.refuse(refusal))
    }
}

impl AgentService {
    fn agent_id(&self, call: &Call, id: Option<types::Spiffeid>) -> Result<SpiffeId, Refusal> {
        let id = wire::spiffe_id_from_wire(id).or_refuse("invalid agent ID")?;
        call.note(field::SPIFFE_ID, &id);
        if !id.is_member_of(&self.0.trust_domain) || !id.is_agent() {
            return Err(Refusal::invalid(format!(
                "invalid agent ID: \"{id}\" is not an agent in trust domain \"{}\"",
                self.0.trust_domain
            )));
        }
        Ok(id)
    }

    async fn count(&self, filter: Option<pb::count_agents_request::Filter>) -> Result<i32, Refusal> {
        let filter = AgentFilter::of_count(filter)?;
        self.0.count_agents(|agent| filter.matches(agent)).await
    }

    async fn list(&self, request: pb::ListAgentsRequest) -> Result<pb::ListAgentsResponse, Refusal> {
        let what = "failed to list agents";
        let filter = AgentFilter::of_list(request.filter)?;
        let mut page = Page::new(request.page_size, request.page_token);
        let mut after = page.begins_after_row(what)?;
        while page.has_room() {
            let rows = self.0.store.list_agents(after, SCAN).await.or_refuse(what)?;
            let Some(last) = rows.last() else { break };
            after = last.row;
            for StoredAgent { row, agent } in rows {
                if page.has_room() && filter.matches(&agent) {
                    page.push(masked(&agent, &request.output_mask), row);
                }
            }
        }
        let (agents, next_page_token) = page.finish();
        Ok(pb::ListAgentsResponse {
            agents,
            next_page_token,
        })
    }

    async fn renew(
        &self,
        call: &Call,
        request: pb::RenewAgentRequest,
    ) -> Result<pb::RenewAgentResponse, Refusal> {
        let id = call.agent()?;
        let csr_der = request
            .params
            .ok_or_else(|| Refusal::invalid("params cannot be nil"))?
            .csr;
        if csr_der.is_empty() {
            return Err(Refusal::invalid("missing CSR"));
        }
        call.note(field::CSR, csr::fingerprint(&csr_der));
        let record = self.0.store.agent(id).await.or_refuse("failed to fetch agent")?;
        let record = record.ok_or_else(|| Refusal::not_found("agent not found"))?;
        if record.agent.can_reattest {
            return Err(Refusal::denied_agent(
                "agent must reattest instead of renew",
                Reason::AgentMustReattest,
            ));
        }
        let csr = csr::checked(&csr_der)?;
        let svid = self.0.sign_agent(id, csr.public_key()).await?;
        let leaf = svid
            .first()
            .ok_or_else(|| Refusal::internal("failed to sign SVID"))?;
        let pending = self
            .0
            .store
            .set_new_serial(id, &leaf.serial_decimal(), leaf.not_after().unix_timestamp())
            .await
            .or_refuse("failed to update agent")?;
        if pending.is_none() {
            return Err(Refusal::not_found("agent not found"));
        }
        Ok(pb::RenewAgentResponse {
            svid: Some(svid_to_wire(id, &svid)),
        })
    }

    async fn create_join_token(
        &self,
        call: &Call,
        request: pb::CreateJoinTokenRequest,
    ) -> Result<types::JoinToken, Refusal> {
        call.note(field::TTL, request.ttl);
        if request.ttl < 1 {
            return Err(Refusal::invalid("ttl is required, you must provide one"));
        }
        let agent_id = match request.agent_id {
            None => None,
            Some(id) => {
                let id = wire::spiffe_id_from_wire(Some(id)).or_refuse("invalid agent ID")?;
                call.note(field::SPIFFE_ID, &id);
                if !id.is_member_of(&self.0.trust_domain) || !id.is_workload() {
                    return Err(Refusal::invalid(format!(
                        "invalid agent ID: \"{id}\" is not a workload in trust domain \"{}\"",
                        self.0.trust_domain
                    )));
                }
                Some(id)
            }
        };
        let value = if request.token.is_empty() {
            Uuid::new_v4().to_string()
        } else {
            request.token
        };
        let parent_id = join_token::agent_id(&self.0.trust_domain, &value).or_refuse("invalid token")?;
        let expires_at = self.0.clock.unix() + i64::from(request.ttl);
        let created = self
            .0
            .store
            .create_join_token(&value, expires_at)
            .await
            .or_refuse("failed to create token")?;
        if !created {
            return Err(Refusal::internal("failed to create token: token exists already"));
        }
        if let Some(agent_id) = agent_id {
            self.create_alias(agent_id, parent_id).await?;
        }
        Ok(types::JoinToken { value, expires_at })
    }

    /// The entry that gives a join token's agent another name, under which entries can be parented.
    async fn create_alias(&self, spiffe_id: SpiffeId, parent_id: SpiffeId) -> Result<(), Refusal> {
        let what = "failed to create join token registration entry";
        let selector = Selector::new("spiffe_id", parent_id.as_str()).or_refuse(what)?;
        let parts = EntryParts {
            created_at: self.0.clock.unix(),
            ..EntryParts::new(spiffe_id, parent_id, vec![selector])
        };
        let entry = Entry::check_new(parts, &self.0.trust_domain).or_refuse(what)?;
        match self
            .0
            .store
            .create_entries(vec![entry])
            .await
            .or_refuse(what)?
            .pop()
        {
            Some(EntryCreated::Created(_) | EntryCreated::Similar(_)) => Ok(()),
            Some(EntryCreated::IdTaken | EntryCreated::MissingBundle(_)) | None => {
                Err(Refusal::internal(what))
            }
        }
    }
}

fn masked(record: &AgentRecord, mask: &Option<types::AgentMask>) -> types::Agent {
    let agent = types::Agent {
        id: Some(wire::spiffe_id_to_wire(&record.id)),
        attestation_type: record.attestation_type.clone(),
        x509svid_serial_number: record.serial.clone(),
        x509svid_expires_at: record.expires_at,
        selectors: record.selectors.iter().map(wire::selector_to_wire).collect(),
        banned: record.is_banned(),
        can_reattest: record.can_reattest,
        agent_version: record.agent_version.clone(),
    };
    wire::apply_agent_mask(agent, mask)
}
