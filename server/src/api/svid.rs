//! `spire.api.server.svid.v1.SVID`: signing of X.509-SVIDs, JWT-SVIDs, WIT-SVIDs (`svid_wit`) and downstream CAs.

use std::sync::Arc;
use std::time::Duration;

use finial_identity::entry::{Entry, check_dns_name};
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::wire;
use finial_identity::x509::{Certificate, Csr};
use finial_proto::spire::api::server::svid::v1 as pb;
use finial_proto::spire::api::server::svid::v1::svid_server::Svid as SvidApi;
use finial_proto::spire::api::types;
use tonic::{Request, Response, Status};

use super::Services;
use super::call::{Call, field};
use super::csr;
use super::status::{OrRefuse, Refusal, ok};
use crate::authority::{JwtRequest, SignedJwt, X509Request, X509Subject};
use crate::credential::DistinguishedName;

/// Answers the SVID service.
#[derive(Debug)]
pub struct SvidService(pub(super) Arc<Services>);

impl SvidService {
    /// Works with these parts.
    pub fn new(services: Arc<Services>) -> Self {
        Self(services)
    }
}

/// Items of a batch that are signed before others get their turn.
pub(super) const YIELD_EVERY: usize = 8;

#[tonic::async_trait]
impl SvidApi for SvidService {
    async fn mint_x509svid(
        &self,
        request: Request<pb::MintX509svidRequest>,
    ) -> Result<Response<pb::MintX509svidResponse>, Status> {
        let call = Call::of(&request)?;
        let minted = self.mint_x509(&call, request.into_inner()).await;
        let svid = minted.map_err(|refusal| call.refuse(refusal))?;
        Ok(Response::new(pb::MintX509svidResponse { svid: Some(svid) }))
    }

    async fn mint_jwtsvid(
        &self,
        request: Request<pb::MintJwtsvidRequest>,
    ) -> Result<Response<pb::MintJwtsvidResponse>, Status> {
        let call = Call::of(&request)?;
        let minted = self.mint_jwt(&call, request.into_inner()).await;
        let svid = minted.map_err(|refusal| call.refuse(refusal))?;
        Ok(Response::new(pb::MintJwtsvidResponse { svid: Some(svid) }))
    }

    async fn mint_witsvid(
        &self,
        request: Request<pb::MintWitsvidRequest>,
    ) -> Result<Response<pb::MintWitsvidResponse>, Status> {
        let call = Call::of(&request)?;
        let minted = self.mint_wit(&call, request.into_inner()).await;
        let svid = minted.map_err(|refusal| call.refuse(refusal))?;
        Ok(Response::new(pb::MintWitsvidResponse { svid: Some(svid) }))
    }

    async fn batch_new_x509svid(
        &self,
        request: Request<pb::BatchNewX509svidRequest>,
    ) -> Result<Response<pb::BatchNewX509svidResponse>, Status> {
        let call = Call::of(&request)?;
        let params = request.into_inner().params;
        let signed = self.sign_batch(&call, params).await;
        let results = signed.map_err(|refusal| call.refuse(refusal))?;
        Ok(Response::new(pb::BatchNewX509svidResponse { results }))
    }

    async fn new_jwtsvid(
        &self,
        request: Request<pb::NewJwtsvidRequest>,
    ) -> Result<Response<pb::NewJwtsvidResponse>, Status> {
        let call = Call::of(&request)?;
        let signed = self.new_jwt(&call, request.into_inner()).await;
        let svid = signed.map_err(|refusal| call.refuse(refusal))?;
        Ok(Response::new(pb::NewJwtsvidResponse { svid: Some(svid) }))
    }

    async fn batch_new_witsvid(
        &self,
        request: Request<pb::BatchNewWitsvidRequest>,
    ) -> Result<Response<pb::BatchNewWitsvidResponse>, Status> {
        let call = Call::of(&request)?;
        let params = request.into_inner().params;
        let signed = self.sign_wit_batch(&call, params).await;
        let results = signed.map_err(|refusal| call.refuse(refusal))?;
        Ok(Response::new(pb::BatchNewWitsvidResponse { results }))
    }

    async fn new_downstream_x509ca(
        &self,
        request: Request<pb::NewDownstreamX509caRequest>,
    ) -> Result<Response<pb::NewDownstreamX509caResponse>, Status> {
        let call = Call::of(&request)?;
        let signed = self.new_downstream_ca(&call, request.into_inner()).await;
        signed.map(Response::new).map_err(|refusal| call.refuse(refusal))
    }
}

impl SvidService {
    async fn mint_x509(
        &self,
        call: &Call,
        request: pb::MintX509svidRequest,
    ) -> Result<types::X509svid, Refusal> {
        call.note(field::CSR, csr::fingerprint(&request.csr));
        call.note(field::TTL, request.ttl);
        let csr = csr::checked(&request.csr)?;
        let id = match csr.uri_sans() {
            [uri] => SpiffeId::parse(uri).or_refuse("CSR URI SAN is invalid")?,
            [] => return Err(Refusal::invalid("CSR URI SAN is required")),
            _ => return Err(Refusal::invalid("only one URI SAN is expected")),
        };
        self.check_workload(&id, "CSR URI SAN is invalid")?;
        call.note(field::SPIFFE_ID, &id);
        let dns_names = csr.dns_names();
        for name in dns_names {
            check_dns_name(name).or_refuse("CSR DNS name is not valid")?;
        }
        check_wildcards(dns_names)?;
        let ttl = ttl_seconds(request.ttl, "TTL is invalid")?;
        let subject = X509Subject::Workload {
            spiffe_id: id.clone(),
            dns_names: dns_names.to_vec(),
            name: DistinguishedName::from_der(csr.subject_der())
                .filter(|name| !name.is_empty())
                .map(Box::new),
        };
        let chain = self.sign(subject, &csr, ttl, "failed to sign X509-SVID").await?;
        Ok(svid_to_wire(&id, &chain))
    }

    async fn mint_jwt(
        &self,
        call: &Call,
        request: pb::MintJwtsvidRequest,
    ) -> Result<types::Jwtsvid, Refusal> {
        self.0.require_jwt()?;
        let id = wire::spiffe_id_from_wire(request.id).or_refuse("invalid SPIFFE ID")?;
        self.check_workload(&id, "invalid SPIFFE ID")?;
        call.note(field::SPIFFE_ID, &id);
        call.note(field::AUDIENCE, request.audience.join(","));
        call.note(field::TTL, request.ttl);
        let signed = self
            .0
            .authority
            .sign_jwt_off_thread(JwtRequest {
                spiffe_id: id.clone(),
                audiences: audience(request.audience)?,
                ttl: ttl_seconds(request.ttl, "TTL is invalid")?,
                include_jti: false,
            })
            .await
            .or_refuse("failed to sign JWT-SVID")?;
        Ok(jwt_to_wire(&id, signed, String::new()))
    }

    async fn sign_batch(
        &self,
        call: &Call,
        params: Vec<pb::NewX509svidParams>,
    ) -> Result<Vec<pb::batch_new_x509svid_response::Result>, Refusal> {
        if params.is_empty() {
            return Err(Refusal::invalid("missing parameters"));
        }
        call.pay_for(params.len()).await?;
        let agent = call.agent()?;
        let mut results = Vec::with_capacity(params.len());
        for (n, param) in params.into_iter().enumerate() {
            if n > 0 && n % YIELD_EVERY == 0 {
                // So that a large batch does not keep other calls waiting.
                tokio::task::yield_now().await;
            }
            let fields = vec![
                (field::ENTRY_ID, param.entry_id.clone()),
                (field::CSR, csr::fingerprint(&param.csr)),
            ];
            let signed = self.sign_one(agent, param).await;
            call.note_item(fields, signed.as_ref());
            results.push(match signed {
                Ok(svid) => pb::batch_new_x509svid_response::Result {
                    status: Some(ok()),
                    svid: Some(svid),
                },
                Err(refusal) => pb::batch_new_x509svid_response::Result {
                    status: Some(call.refuse_item(&refusal)),
                    svid: None,
                },
            });
        }
        Ok(results)
    }

    async fn sign_one(
        &self,
        agent: &SpiffeId,
        param: pb::NewX509svidParams,
    ) -> Result<types::X509svid, Refusal> {
        if param.entry_id.is_empty() {
            return Err(Refusal::invalid("missing entry ID"));
        }
        if param.csr.is_empty() {
            return Err(Refusal::invalid("missing CSR"));
        }
        let entry = self.authorized(agent, &param.entry_id).await?;
        let csr = csr::checked(&param.csr)?;
        let chain = self
            .0
            .authority
            .sign_x509_off_thread(X509Request::for_entry(&entry, csr.public_key().clone()))
            .await
            .or_refuse("failed to sign X509-SVID")?;
        let svid = svid_to_wire(&entry.spiffe_id, &chain);
        self.0.registry.note_signed(agent, &entry.id, svid.expires_at);
        Ok(svid)
    }

    async fn new_jwt(&self, call: &Call, request: pb::NewJwtsvidRequest) -> Result<types::Jwtsvid, Refusal> {
        self.0.require_jwt()?;
        call.note(field::ENTRY_ID, &request.entry_id);
        call.note(field::AUDIENCE, request.audience.join(","));
        let agent = call.agent()?;
        if request.audience.is_empty() {
            return Err(Refusal::invalid("at least one audience is required"));
        }
        if request.entry_id.is_empty() {
            return Err(Refusal::invalid("missing entry ID"));
        }
        let entry = self.authorized(agent, &request.entry_id).await?;
        let audiences = audience(request.audience)?;
        let signed = self
            .0
            .authority
            .sign_jwt_off_thread(JwtRequest::for_entry(&entry, audiences))
            .await
            .or_refuse("failed to sign JWT-SVID")?;
        Ok(jwt_to_wire(&entry.spiffe_id, signed, String::new()))
    }

    async fn new_downstream_ca(
        &self,
        call: &Call,
        request: pb::NewDownstreamX509caRequest,
    ) -> Result<pb::NewDownstreamX509caResponse, Refusal> {
        call.note(field::CSR, csr::fingerprint(&request.csr));
        call.note(field::TRUST_DOMAIN_ID, self.0.trust_domain.id());
        let csr = csr::checked(&request.csr)?;
        let ttl = ttl_seconds(request.preferred_ttl, "preferred TTL is invalid")?;
        let what = "failed to sign downstream X.509 CA";
        let chain = self.sign(X509Subject::DownstreamCa, &csr, ttl, what).await?;
        let bundle = self.0.own_bundle().await?;
        Ok(pb::NewDownstreamX509caResponse {
            ca_cert_chain: chain.iter().map(|cert| cert.der().to_vec()).collect(),
            x509_authorities: bundle
                .x509_authorities
                .iter()
                .map(|authority| authority.certificate.der().to_vec())
                .collect(),
        })
    }

    async fn sign(
        &self,
        subject: X509Subject,
        csr: &Csr,
        ttl: Option<Duration>,
        what: &str,
    ) -> Result<Vec<Certificate>, Refusal> {
        let request = X509Request {
            subject,
            public_key: csr.public_key().clone(),
            ttl,
        };
        self.0
            .authority
            .sign_x509_off_thread(request)
            .await
            .or_refuse(what)
    }

    pub(super) async fn authorized(&self, agent: &SpiffeId, entry_id: &str) -> Result<Arc<Entry>, Refusal> {
        self.0
            .registry
            .authorized_entry(agent, entry_id)
            .await
            .or_refuse("failed to fetch registration entries")?
            .ok_or_else(|| Refusal::not_found("entry not found or not authorized"))
    }

    pub(super) fn check_workload(&self, id: &SpiffeId, what: &str) -> Result<(), Refusal> {
        if id.is_member_of(&self.0.trust_domain) && id.is_workload() {
            return Ok(());
        }
        Err(Refusal::invalid(format!(
            "{what}: \"{id}\" is not a workload in trust domain \"{}\"",
            self.0.trust_domain
        )))
    }
}

/// The chain as it is sent: leaf first, without the root.
pub fn svid_to_wire(id: &SpiffeId, chain: &[Certificate]) -> types::X509svid {
    types::X509svid {
        cert_chain: chain.iter().map(|cert| cert.der().to_vec()).collect(),
        id: Some(wire::spiffe_id_to_wire(id)),
        expires_at: chain.first().map_or(0, |leaf| leaf.not_after().unix_timestamp()),
        hint: String::new(),
    }
}

fn jwt_to_wire(id: &SpiffeId, signed: SignedJwt, hint: String) -> types::Jwtsvid {
    types::Jwtsvid {
        token: signed.token,
        id: Some(wire::spiffe_id_to_wire(id)),
        expires_at: signed.expires_at.unix_timestamp(),
        issued_at: signed.issued_at.unix_timestamp(),
        hint,
    }
}

/// Seconds of a request; none is the server's default.
pub(super) fn ttl_seconds(seconds: i32, what: &str) -> Result<Option<Duration>, Refusal> {
    match u64::try_from(seconds) {
        Ok(0) => Ok(None),
        Ok(seconds) => Ok(Some(Duration::from_secs(seconds))),
        Err(_) => Err(Refusal::invalid(format!(
            "{what}: must not be negative: {seconds}"
        ))),
    }
}

/// Audiences without the empty ones, of which SPIRE makes nothing.
fn audience(given: Vec<String>) -> Result<Vec<String>, Refusal> {
    let audience: Vec<String> = given.into_iter().filter(|name| !name.is_empty()).collect();
    if audience.is_empty() {
        return Err(Refusal::invalid("at least one audience is required"));
    }
    Ok(audience)
}

/// A wildcard must not cover another name of the same CSR.
fn check_wildcards(names: &[String]) -> Result<(), Refusal> {
    for wildcard in names {
        let Some(parent) = wildcard.strip_prefix("*.") else {
            continue;
        };
        let covered = names.iter().find(|name| {
            name.split_once('.')
                .is_some_and(|(label, rest)| label != "*" && rest == parent)
        });
        if let Some(name) = covered {
            return Err(Refusal::invalid(format!(
                "CSR DNS name is not valid: wildcard \"{wildcard}\" overlaps with \"{name}\""
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_that_covers_another_name_is_refused() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert!(check_wildcards(&names(&["*.example.org", "a.example.org"])).is_err());
        assert!(check_wildcards(&names(&["a.example.org", "*.example.org"])).is_err());
        assert!(check_wildcards(&names(&["*.example.org", "a.b.example.org", "example.org"])).is_ok());
        assert!(check_wildcards(&names(&["*.example.org", "*.b.example.org"])).is_ok());
    }

    #[test]
    fn empty_audiences_are_dropped_and_none_left_is_refused() {
        let given = vec![String::new(), "a".to_owned()];
        assert_eq!(audience(given).unwrap(), ["a"]);
        assert!(audience(vec![String::new()]).is_err());
    }

    #[test]
    fn a_negative_ttl_is_refused_and_zero_is_the_default() {
        assert!(ttl_seconds(-1, "ttl").is_err());
        assert_eq!(ttl_seconds(0, "ttl").unwrap(), None);
        assert_eq!(ttl_seconds(60, "ttl").unwrap(), Some(Duration::from_secs(60)));
    }
}
