//! The services, as far as agents call them.

use super::*;

/// Methods that no agent calls.
macro_rules! unused {
    ($($name:ident($request:ty) -> $response:ty;)*) => { $(
        fn $name<'life0, 'async_trait>(
            &'life0 self,
            _request: Request<$request>,
        ) -> Pin<Box<dyn Future<Output = Result<Response<$response>, Status>> + Send + 'async_trait>>
        where
            'life0: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(async { Err(Status::unimplemented(stringify!($name))) })
        }
    )* };
}

#[tonic::async_trait]
impl sync::sync_server::Sync for Service {
    type WatchStream = Events<sync::WatchResponse>;

    async fn watch(
        &self,
        request: Request<sync::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        let mut state = self.called(format!("watch {}", String::from_utf8_lossy(&request.cursor)));
        if !state.push {
            return Err(Status::unimplemented(
                "unknown service finial.server.sync.v1.Sync",
            ));
        }
        state.deny(&caller)?;
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut events = state
            .deltas_since(&request.cursor)
            .unwrap_or_else(|| state.snapshot());
        events.push(Event::Bundles(sync::Bundles {
            own: Some(wire::bundle_to_wire(&state.bundle)),
            federated: state.federated.values().map(wire::bundle_to_wire).collect(),
            removed_federated: vec![],
            complete: true,
        }));
        for event in events {
            sender
                .send(Ok(sync::WatchResponse { event: Some(event) }))
                .unwrap();
        }
        state.watchers.push(sender);
        Ok(Response::new(UnboundedReceiverStream::new(receiver)))
    }
}

#[tonic::async_trait]
impl agent::agent_server::Agent for Service {
    unused! {
        count_agents(agent::CountAgentsRequest) -> agent::CountAgentsResponse;
        list_agents(agent::ListAgentsRequest) -> agent::ListAgentsResponse;
        get_agent(agent::GetAgentRequest) -> types::Agent;
        delete_agent(agent::DeleteAgentRequest) -> ();
        ban_agent(agent::BanAgentRequest) -> ();
        create_join_token(agent::CreateJoinTokenRequest) -> types::JoinToken;
    }

    type AttestAgentStream = Events<agent::AttestAgentResponse>;

    async fn attest_agent(
        &self,
        request: Request<Streaming<agent::AttestAgentRequest>>,
    ) -> Result<Response<Self::AttestAgentStream>, Status> {
        let first = request.into_inner().message().await?;
        let Some(agent::attest_agent_request::Step::Params(params)) = first.and_then(|request| request.step)
        else {
            return Err(Status::invalid_argument("missing params"));
        };
        let (data, csr) = (params.data.unwrap(), params.params.unwrap().csr);
        let token = String::from_utf8(data.payload).unwrap();
        let mut state = self.called(format!("attest {}", data.r#type));
        if state.is_sick {
            return Err(Status::unavailable("this server is sick"));
        }
        if data.r#type == "join_token" && !state.tokens.remove(&token) {
            return Err(Status::invalid_argument(
                "failed to attest: join token does not exist or has already been used",
            ));
        }
        // What `k8s_psat` sends is no part of an ID.
        let name = if data.r#type == "k8s_psat" { "node" } else { &token };
        state.supersede();
        let result = agent::attest_agent_response::Result {
            svid: Some(state.sign_agent(&format!("/spire/agent/{}/{name}", data.r#type), &csr)),
            reattestable: state.reattestable,
        };
        let (sender, receiver) = mpsc::unbounded_channel();
        let step = Some(agent::attest_agent_response::Step::Result(result));
        sender.send(Ok(agent::AttestAgentResponse { step })).unwrap();
        Ok(Response::new(UnboundedReceiverStream::new(receiver)))
    }

    async fn renew_agent(
        &self,
        request: Request<agent::RenewAgentRequest>,
    ) -> Result<Response<agent::RenewAgentResponse>, Status> {
        let caller = Caller::of(&request);
        if self.called("renew").is_mute(&caller) {
            std::future::pending::<()>().await;
        }
        let mut state = self.state.lock().unwrap();
        state.deny(&caller)?;
        if !state.is_signing(&caller) {
            return Err(Status::internal("failed to sign X509-SVID"));
        }
        let csr = request.into_inner().params.unwrap().csr;
        let svid = Some(state.sign_agent("/spire/agent/join_token/token", &csr));
        Ok(Response::new(agent::RenewAgentResponse { svid }))
    }

    async fn post_status(
        &self,
        request: Request<agent::PostStatusRequest>,
    ) -> Result<Response<agent::PostStatusResponse>, Status> {
        let caller = Caller::of(&request);
        let state = self.called(format!("status {}", request.into_inner().agent_version));
        state.deny(&caller)?;
        Ok(Response::new(agent::PostStatusResponse {}))
    }
}

#[tonic::async_trait]
impl bundle::bundle_server::Bundle for Service {
    unused! {
        count_bundles(bundle::CountBundlesRequest) -> bundle::CountBundlesResponse;
        append_bundle(bundle::AppendBundleRequest) -> types::Bundle;
        publish_jwt_authority(bundle::PublishJwtAuthorityRequest) -> bundle::PublishJwtAuthorityResponse;
        publish_wit_authority(bundle::PublishWitAuthorityRequest) -> bundle::PublishWitAuthorityResponse;
        list_federated_bundles(bundle::ListFederatedBundlesRequest) -> bundle::ListFederatedBundlesResponse;
        batch_create_federated_bundle(bundle::BatchCreateFederatedBundleRequest) -> bundle::BatchCreateFederatedBundleResponse;
        batch_update_federated_bundle(bundle::BatchUpdateFederatedBundleRequest) -> bundle::BatchUpdateFederatedBundleResponse;
        batch_set_federated_bundle(bundle::BatchSetFederatedBundleRequest) -> bundle::BatchSetFederatedBundleResponse;
        batch_delete_federated_bundle(bundle::BatchDeleteFederatedBundleRequest) -> bundle::BatchDeleteFederatedBundleResponse;
    }

    async fn get_bundle(
        &self,
        _request: Request<bundle::GetBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let (is_silent, is_sick, bundle) = {
            let state = self.called("bundle");
            let bundle = wire::bundle_to_wire(&state.bundle);
            (state.is_silent_about_bundles, state.is_sick, bundle)
        };
        if is_silent {
            std::future::pending::<()>().await;
        }
        if is_sick {
            return Err(Status::internal("this server is sick"));
        }
        Ok(Response::new(bundle))
    }

    async fn get_federated_bundle(
        &self,
        request: Request<bundle::GetFederatedBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let caller = Caller::of(&request);
        let name = request.into_inner().trust_domain;
        let state = self.called(format!("federated {name}"));
        state.deny(&caller)?;
        let found = state.federated.get(&name);
        let found = found.ok_or_else(|| Status::not_found("bundle not found"))?;
        Ok(Response::new(wire::bundle_to_wire(found)))
    }
}

#[tonic::async_trait]
impl entry::entry_server::Entry for Service {
    unused! {
        count_entries(entry::CountEntriesRequest) -> entry::CountEntriesResponse;
        list_entries(entry::ListEntriesRequest) -> entry::ListEntriesResponse;
        get_entry(entry::GetEntryRequest) -> types::Entry;
        batch_create_entry(entry::BatchCreateEntryRequest) -> entry::BatchCreateEntryResponse;
        batch_update_entry(entry::BatchUpdateEntryRequest) -> entry::BatchUpdateEntryResponse;
        batch_delete_entry(entry::BatchDeleteEntryRequest) -> entry::BatchDeleteEntryResponse;
        get_authorized_entries(entry::GetAuthorizedEntriesRequest) -> entry::GetAuthorizedEntriesResponse;
    }

    type SyncAuthorizedEntriesStream = Events<entry::SyncAuthorizedEntriesResponse>;

    async fn sync_authorized_entries(
        &self,
        request: Request<Streaming<entry::SyncAuthorizedEntriesRequest>>,
    ) -> Result<Response<Self::SyncAuthorizedEntriesStream>, Status> {
        let caller = Caller::of(&request);
        let (entries, page) = {
            let state = self.called("poll");
            state.deny(&caller)?;
            (state.entries.clone(), state.page)
        };
        let mut requests = request.into_inner();
        let first = requests.message().await?.unwrap();
        if !first.ids.is_empty() || !first.output_mask.unwrap().revision_number {
            return Err(Status::invalid_argument("wrong first request"));
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        if entries.len() <= page {
            let entries = entries.into_values().collect();
            let answer = entry::SyncAuthorizedEntriesResponse {
                entries,
                ..Default::default()
            };
            sender.send(Ok(answer)).unwrap();
            return Ok(Response::new(UnboundedReceiverStream::new(receiver)));
        }
        let revisions: Vec<_> = entries
            .values()
            .map(|held| entry::EntryRevision {
                id: held.id.clone(),
                revision_number: held.revision_number,
                created_at: held.created_at,
            })
            .collect();
        let pages = revisions.chunks(page).count();
        for (n, part) in revisions.chunks(page).enumerate() {
            let answer = entry::SyncAuthorizedEntriesResponse {
                entry_revisions: part.to_vec(),
                more: n + 1 < pages,
                ..Default::default()
            };
            sender.send(Ok(answer)).unwrap();
        }
        let service = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(wanted)) = requests.message().await {
                drop(service.called(format!("fetch {}", wanted.ids.len())));
                let found = wanted.ids.iter().filter_map(|id| entries.get(id).cloned());
                let answer = entry::SyncAuthorizedEntriesResponse {
                    entries: found.collect(),
                    ..Default::default()
                };
                if sender.send(Ok(answer)).is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(UnboundedReceiverStream::new(receiver)))
    }
}

#[tonic::async_trait]
impl svid::svid_server::Svid for Service {
    unused! {
        mint_x509svid(svid::MintX509svidRequest) -> svid::MintX509svidResponse;
        mint_jwtsvid(svid::MintJwtsvidRequest) -> svid::MintJwtsvidResponse;
        mint_witsvid(svid::MintWitsvidRequest) -> svid::MintWitsvidResponse;
        batch_new_witsvid(svid::BatchNewWitsvidRequest) -> svid::BatchNewWitsvidResponse;
        new_downstream_x509ca(svid::NewDownstreamX509caRequest) -> svid::NewDownstreamX509caResponse;
    }

    /// The token is not one: agents serve what they get.
    async fn new_jwtsvid(
        &self,
        request: Request<svid::NewJwtsvidRequest>,
    ) -> Result<Response<svid::NewJwtsvidResponse>, Status> {
        let caller = Caller::of(&request);
        if self.called("jwt").is_mute(&caller) {
            std::future::pending::<()>().await;
        }
        let state = self.state.lock().unwrap();
        state.deny(&caller)?;
        if !state.is_signing(&caller) {
            return Err(Status::internal("signing failed"));
        }
        let id = request.into_inner().entry_id;
        let entry = state.entries.get(&id).ok_or_else(|| Status::not_found("entry"))?;
        let now = state.authority.clock().now();
        let svid = Some(types::Jwtsvid {
            token: format!("token-{}", state.calls.len()),
            id: entry.spiffe_id.clone(),
            issued_at: now.unix_timestamp(),
            expires_at: (now + JWT_TTL).unix_timestamp(),
            ..types::Jwtsvid::default()
        });
        Ok(Response::new(svid::NewJwtsvidResponse { svid }))
    }

    async fn batch_new_x509svid(
        &self,
        request: Request<svid::BatchNewX509svidRequest>,
    ) -> Result<Response<svid::BatchNewX509svidResponse>, Status> {
        let caller = Caller::of(&request);
        let params = request.into_inner().params;
        if self.called(format!("sign {}", params.len())).is_mute(&caller) {
            std::future::pending::<()>().await;
        }
        let mut state = self.state.lock().unwrap();
        state.deny(&caller)?;
        if state.failing > 0 {
            state.failing -= 1;
            return Err(Status::internal("signing failed"));
        }
        let mut results = Vec::new();
        let is_signing = state.is_signing(&caller);
        for param in params {
            let left = state.unknown.get_mut(&param.entry_id);
            let hidden = left.is_some_and(|left| std::mem::replace(left, left.saturating_sub(1)) > 0);
            let path = state
                .entries
                .get(&param.entry_id)
                .and_then(|entry| entry.spiffe_id.clone());
            let (code, svid) = match path.filter(|_| !hidden) {
                Some(_) if !is_signing => (Code::Internal, None),
                Some(id) => {
                    let leaf = state.authority.sign_csr(&id.path, &param.csr, state.svid_ttl);
                    (Code::Ok, Some(wire_svid(&leaf)))
                }
                None => (Code::NotFound, None),
            };
            results.push(svid::batch_new_x509svid_response::Result {
                status: Some(types::Status {
                    code: code.into(),
                    message: code.description().to_owned(),
                }),
                svid,
            });
        }
        Ok(Response::new(svid::BatchNewX509svidResponse { results }))
    }
}

const JWT_TTL: time::Duration = time::Duration::minutes(5);
