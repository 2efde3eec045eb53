//! `spire.api.server.localauthority.v1.LocalAuthority`: manual operations on this server's
//! authorities: prepare, activate, taint, revoke.

use std::sync::Arc;

use finial_proto::spire::api::server::localauthority::v1 as pb;
use finial_proto::spire::api::server::localauthority::v1::local_authority_server::LocalAuthority as LocalAuthorityApi;
use tonic::{Request, Response, Status};

use super::Services;
use super::call::{Call, field};
use super::status::{OrRefuse, Refusal};
use crate::authority::{AuthorityKind, AuthorityState, AuthorityStates};

/// Answers the LocalAuthority service.
#[derive(Debug)]
pub struct LocalAuthorityService(Arc<Services>);

impl LocalAuthorityService {
    /// Works with these parts.
    pub fn new(services: Arc<Services>) -> Self {
        Self(services)
    }

    fn states(&self, kind: AuthorityKind) -> Result<AuthorityStates, Refusal> {
        self.require(kind)?;
        self.0
            .authority
            .state(kind)
            .or_refuse("failed to read authorities")
    }

    async fn change(
        &self,
        call: &Call,
        kind: AuthorityKind,
        change: Change,
    ) -> Result<AuthorityState, Refusal> {
        self.require(kind)?;
        let authority = &self.0.authority;
        if !matches!(change, Change::Prepare) {
            call.note(field::AUTHORITY_ID, change.authority_id());
            if change.authority_id().is_empty() {
                return Err(Refusal::invalid("no authority ID provided"));
            }
        }
        match change {
            Change::Prepare => authority
                .prepare(kind)
                .await
                .or_refuse("failed to prepare authority"),
            Change::Activate(id) => authority
                .activate(kind, &id)
                .await
                .or_refuse("failed to activate authority"),
            Change::Taint(id) => authority
                .taint(kind, &id)
                .await
                .or_refuse("failed to taint authority"),
            Change::Revoke(id) => authority
                .revoke(kind, &id)
                .await
                .or_refuse("failed to revoke authority"),
        }
    }

    fn require(&self, kind: AuthorityKind) -> Result<(), Refusal> {
        match kind {
            AuthorityKind::X509 => Ok(()),
            AuthorityKind::Jwt => self.0.require_jwt(),
            AuthorityKind::Wit if self.0.settings.wit_svids => Ok(()),
            AuthorityKind::Wit => Err(Refusal::unimplemented("WIT authorities are not supported")),
        }
    }
}

enum Change {
    Prepare,
    Activate(String),
    Taint(String),
    Revoke(String),
}

impl Change {
    fn authority_id(&self) -> &str {
        match self {
            Self::Prepare => "",
            Self::Activate(id) | Self::Taint(id) | Self::Revoke(id) => id,
        }
    }
}

fn to_wire(state: AuthorityState) -> pb::AuthorityState {
    pb::AuthorityState {
        authority_id: state.authority_id,
        expires_at: state.expires_at,
        upstream_authority_subject_key_id: state.upstream_authority_subject_key_id,
    }
}

/// JWT and WIT taint and revoke answer with the id alone, as SPIRE does for JWT.
fn id_only(state: AuthorityState) -> pb::AuthorityState {
    pb::AuthorityState {
        authority_id: state.authority_id,
        ..pb::AuthorityState::default()
    }
}

fn no_upstream() -> Status {
    Status::failed_precondition("upstream authority is not configured")
}

#[tonic::async_trait]
impl LocalAuthorityApi for LocalAuthorityService {
    async fn get_jwt_authority_state(
        &self,
        request: Request<pb::GetJwtAuthorityStateRequest>,
    ) -> Result<Response<pb::GetJwtAuthorityStateResponse>, Status> {
        let call = Call::of(&request)?;
        let states = self
            .states(AuthorityKind::Jwt)
            .map_err(|refusal| call.refuse(refusal))?;
        Ok(Response::new(pb::GetJwtAuthorityStateResponse {
            active: Some(to_wire(states.active)),
            prepared: states.prepared.map(to_wire),
            old: states.old.map(to_wire),
        }))
    }

    async fn prepare_jwt_authority(
        &self,
        request: Request<pb::PrepareJwtAuthorityRequest>,
    ) -> Result<Response<pb::PrepareJwtAuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let state = self.change(&call, AuthorityKind::Jwt, Change::Prepare).await;
        let prepared_authority = Some(to_wire(state.map_err(|refusal| call.refuse(refusal))?));
        Ok(Response::new(pb::PrepareJwtAuthorityResponse {
            prepared_authority,
        }))
    }

    async fn activate_jwt_authority(
        &self,
        request: Request<pb::ActivateJwtAuthorityRequest>,
    ) -> Result<Response<pb::ActivateJwtAuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let change = Change::Activate(request.into_inner().authority_id);
        let state = self.change(&call, AuthorityKind::Jwt, change).await;
        let activated_authority = Some(to_wire(state.map_err(|refusal| call.refuse(refusal))?));
        Ok(Response::new(pb::ActivateJwtAuthorityResponse {
            activated_authority,
        }))
    }

    async fn taint_jwt_authority(
        &self,
        request: Request<pb::TaintJwtAuthorityRequest>,
    ) -> Result<Response<pb::TaintJwtAuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let change = Change::Taint(request.into_inner().authority_id);
        let state = self.change(&call, AuthorityKind::Jwt, change).await;
        let tainted_authority = Some(id_only(state.map_err(|refusal| call.refuse(refusal))?));
        Ok(Response::new(pb::TaintJwtAuthorityResponse { tainted_authority }))
    }

    async fn revoke_jwt_authority(
        &self,
        request: Request<pb::RevokeJwtAuthorityRequest>,
    ) -> Result<Response<pb::RevokeJwtAuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let change = Change::Revoke(request.into_inner().authority_id);
        let state = self.change(&call, AuthorityKind::Jwt, change).await;
        let revoked_authority = Some(id_only(state.map_err(|refusal| call.refuse(refusal))?));
        Ok(Response::new(pb::RevokeJwtAuthorityResponse {
            revoked_authority,
        }))
    }

    async fn get_x509_authority_state(
        &self,
        request: Request<pb::GetX509AuthorityStateRequest>,
    ) -> Result<Response<pb::GetX509AuthorityStateResponse>, Status> {
        let call = Call::of(&request)?;
        let states = self
            .states(AuthorityKind::X509)
            .map_err(|refusal| call.refuse(refusal))?;
        Ok(Response::new(pb::GetX509AuthorityStateResponse {
            active: Some(to_wire(states.active)),
            prepared: states.prepared.map(to_wire),
            old: states.old.map(to_wire),
        }))
    }

    async fn prepare_x509_authority(
        &self,
        request: Request<pb::PrepareX509AuthorityRequest>,
    ) -> Result<Response<pb::PrepareX509AuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let state = self.change(&call, AuthorityKind::X509, Change::Prepare).await;
        let prepared_authority = Some(to_wire(state.map_err(|refusal| call.refuse(refusal))?));
        Ok(Response::new(pb::PrepareX509AuthorityResponse {
            prepared_authority,
        }))
    }

    async fn activate_x509_authority(
        &self,
        request: Request<pb::ActivateX509AuthorityRequest>,
    ) -> Result<Response<pb::ActivateX509AuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let change = Change::Activate(request.into_inner().authority_id);
        let state = self.change(&call, AuthorityKind::X509, change).await;
        let activated_authority = Some(to_wire(state.map_err(|refusal| call.refuse(refusal))?));
        Ok(Response::new(pb::ActivateX509AuthorityResponse {
            activated_authority,
        }))
    }

    async fn taint_x509_authority(
        &self,
        request: Request<pb::TaintX509AuthorityRequest>,
    ) -> Result<Response<pb::TaintX509AuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let change = Change::Taint(request.into_inner().authority_id);
        let state = self.change(&call, AuthorityKind::X509, change).await;
        let tainted_authority = Some(to_wire(state.map_err(|refusal| call.refuse(refusal))?));
        Ok(Response::new(pb::TaintX509AuthorityResponse {
            tainted_authority,
        }))
    }

    async fn revoke_x509_authority(
        &self,
        request: Request<pb::RevokeX509AuthorityRequest>,
    ) -> Result<Response<pb::RevokeX509AuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let change = Change::Revoke(request.into_inner().authority_id);
        let state = self.change(&call, AuthorityKind::X509, change).await;
        let revoked_authority = Some(to_wire(state.map_err(|refusal| call.refuse(refusal))?));
        Ok(Response::new(pb::RevokeX509AuthorityResponse {
            revoked_authority,
        }))
    }

    async fn taint_x509_upstream_authority(
        &self,
        _: Request<pb::TaintX509UpstreamAuthorityRequest>,
    ) -> Result<Response<pb::TaintX509UpstreamAuthorityResponse>, Status> {
        Err(no_upstream())
    }

    async fn revoke_x509_upstream_authority(
        &self,
        _: Request<pb::RevokeX509UpstreamAuthorityRequest>,
    ) -> Result<Response<pb::RevokeX509UpstreamAuthorityResponse>, Status> {
        Err(no_upstream())
    }

    async fn get_wit_authority_state(
        &self,
        request: Request<pb::GetWitAuthorityStateRequest>,
    ) -> Result<Response<pb::GetWitAuthorityStateResponse>, Status> {
        let call = Call::of(&request)?;
        let states = self
            .states(AuthorityKind::Wit)
            .map_err(|refusal| call.refuse(refusal))?;
        Ok(Response::new(pb::GetWitAuthorityStateResponse {
            active: Some(to_wire(states.active)),
            prepared: states.prepared.map(to_wire),
            old: states.old.map(to_wire),
        }))
    }

    async fn prepare_wit_authority(
        &self,
        request: Request<pb::PrepareWitAuthorityRequest>,
    ) -> Result<Response<pb::PrepareWitAuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let state = self.change(&call, AuthorityKind::Wit, Change::Prepare).await;
        let prepared_authority = Some(to_wire(state.map_err(|refusal| call.refuse(refusal))?));
        Ok(Response::new(pb::PrepareWitAuthorityResponse {
            prepared_authority,
        }))
    }

    async fn activate_wit_authority(
        &self,
        request: Request<pb::ActivateWitAuthorityRequest>,
    ) -> Result<Response<pb::ActivateWitAuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let change = Change::Activate(request.into_inner().authority_id);
        let state = self.change(&call, AuthorityKind::Wit, change).await;
        let activated_authority = Some(to_wire(state.map_err(|refusal| call.refuse(refusal))?));
        Ok(Response::new(pb::ActivateWitAuthorityResponse {
            activated_authority,
        }))
    }

    async fn taint_wit_authority(
        &self,
        request: Request<pb::TaintWitAuthorityRequest>,
    ) -> Result<Response<pb::TaintWitAuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let change = Change::Taint(request.into_inner().authority_id);
        let state = self.change(&call, AuthorityKind::Wit, change).await;
        let tainted_authority = Some(id_only(state.map_err(|refusal| call.refuse(refusal))?));
        Ok(Response::new(pb::TaintWitAuthorityResponse { tainted_authority }))
    }

    async fn revoke_wit_authority(
        &self,
        request: Request<pb::RevokeWitAuthorityRequest>,
    ) -> Result<Response<pb::RevokeWitAuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let change = Change::Revoke(request.into_inner().authority_id);
        let state = self.change(&call, AuthorityKind::Wit, change).await;
        let revoked_authority = Some(id_only(state.map_err(|refusal| call.refuse(refusal))?));
        Ok(Response::new(pb::RevokeWitAuthorityResponse {
            revoked_authority,
        }))
    }
}
