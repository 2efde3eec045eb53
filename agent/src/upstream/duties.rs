//! The calls by which a server does its duties for the agent. How it does them is noted, and one that fails at them for
//! too long is left for another.

use finial_identity::x509::Certificate;
use finial_proto::spire::api::server::agent::v1::agent_client::AgentClient;
use finial_proto::spire::api::server::agent::v1::{AgentX509svidParams, RenewAgentRequest};
use finial_proto::spire::api::server::svid::v1::svid_client::SvidClient;
use finial_proto::spire::api::server::svid::v1::{
    BatchNewX509svidRequest, NewJwtsvidRequest, NewX509svidParams,
};
use tonic::Request;
use tracing::Instrument;

use super::conduct::{self, Duty};
use super::{MAX_ANSWER, RPC_TIMEOUT, SignOutcome, SignRequest, SignedJwt, Upstream, UpstreamError, signed};
use crate::telemetry::{TRACE_TARGET, metrics};

impl Upstream {
    /// Has the server renew the agent's SVID for the key of `csr_der` (`RenewAgent`).
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn renew(&self, csr_der: Vec<u8>) -> Result<Vec<Certificate>, UpstreamError> {
        let request = RenewAgentRequest {
            params: Some(AgentX509svidParams { csr: csr_der }),
        };
        let line = self.line()?;
        let mut client = AgentClient::new(line.channel.clone());
        let call = client.renew_agent(within_time(request));
        let answer = self.timed(&line, Duty::RenewAgent.name(), call).await;
        let chain =
            answer.and_then(|answer| signed::chain_from_wire(answer.svid).map_err(UpstreamError::Malformed));
        self.note_conduct(&line, Duty::RenewAgent, conduct::of_answer(&chain));
        chain
    }

    /// Has a batch of certificates signed. The outcomes are in the order of `requests`.
    ///
    /// # Errors
    /// [`UpstreamError`] when the call as a whole failed.
    pub async fn sign_x509_batch(
        &self,
        requests: Vec<SignRequest>,
    ) -> Result<Vec<SignOutcome>, UpstreamError> {
        let span = tracing::info_span!(target: TRACE_TARGET, "sign_batch", count = requests.len());
        let timer = metrics().start("manager_sync_fetch_svids_updates");
        let signed = self.batch_new_x509svid(requests).instrument(span);
        timer.around(signed, UpstreamError::code).await
    }

    async fn batch_new_x509svid(
        &self,
        requests: Vec<SignRequest>,
    ) -> Result<Vec<SignOutcome>, UpstreamError> {
        let expected = requests.len();
        let params = requests
            .into_iter()
            .map(|request| NewX509svidParams {
                entry_id: request.entry_id,
                csr: request.csr_der,
            })
            .collect();
        let line = self.line()?;
        let mut client = SvidClient::new(line.channel.clone()).max_decoding_message_size(MAX_ANSWER);
        let call = client.batch_new_x509svid(within_time(BatchNewX509svidRequest { params }));
        let answer = self.timed(&line, Duty::SignX509.name(), call).await;
        let outcomes = answer.and_then(|answer| signed::outcomes(answer.results, expected));
        self.note_conduct(&line, Duty::SignX509, conduct::of_batch(&outcomes));
        outcomes
    }

    /// Has a JWT-SVID signed (`NewJWTSVID`).
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn sign_jwt(&self, entry_id: &str, audiences: &[String]) -> Result<SignedJwt, UpstreamError> {
        let request = NewJwtsvidRequest {
            entry_id: entry_id.to_owned(),
            audience: audiences.to_vec(),
        };
        let line = self.line()?;
        let mut client = SvidClient::new(line.channel.clone()).max_decoding_message_size(MAX_ANSWER);
        let call = client.new_jwtsvid(within_time(request));
        let answer = self.timed(&line, Duty::SignJwt.name(), call).await;
        let svid = answer.and_then(|answer| {
            let none = || UpstreamError::Malformed("JWT-SVID: none in the answer".to_owned());
            answer.svid.ok_or_else(none).and_then(signed::jwt_from_wire)
        });
        self.note_conduct(&line, Duty::SignJwt, conduct::of_answer(&svid));
        svid
    }
}

/// A request that says for how long its answer is waited for, so that a server with too much to do can refuse it at once
/// instead of working for nobody.
fn within_time<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(RPC_TIMEOUT);
    request
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use finial_identity::key::{KeyType, PrivateKey};
    use finial_identity::peer::SharedBundles;
    use finial_identity::process::{Clock, Jitter};
    use finial_identity::spiffe_id::TrustDomain;
    use finial_identity::x509::{Csr, CsrSubject};
    use tokio::sync::watch;

    use super::*;
    use crate::test_server::TestServer;
    use crate::upstream::UpstreamSettings;

    #[tokio::test]
    async fn the_server_is_told_for_how_long_what_it_signs_is_waited_for() {
        let server = TestServer::start();
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        let authorities = server.state().bundle.x509_certificates();
        let known = BTreeMap::from([(trust_domain.clone(), authorities.into())]);
        let settings = UpstreamSettings {
            trust_domain,
            server_address: server.address.ip().to_string(),
            server_port: server.address.port(),
        };
        let svid = Arc::new(server.state().authority.svid("/spire/agent/x/1"));
        let (_publisher, svid) = watch::channel(Some(svid));
        let bundles = Arc::new(SharedBundles::fixed(known));
        let upstream = Upstream::new(settings, svid, bundles, Clock::system(), Jitter::new(|| 0.5));
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        let csr_der = Csr::build(&key, CsrSubject::spire(), None, &[]).unwrap();
        upstream.renew(csr_der).await.unwrap();
        upstream.sign_x509_batch(Vec::new()).await.unwrap();
        assert!(upstream.sign_jwt("unknown", &[]).await.is_err());
        let timeouts = server.state().timeouts.clone();
        assert_eq!(timeouts, [Some(RPC_TIMEOUT); 3]);
    }
}
