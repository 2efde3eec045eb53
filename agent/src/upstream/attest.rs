//! Calls without a client certificate: attestation, and the first bundle.

use std::fmt;
use std::sync::Arc;

use finial_identity::bundle::Bundle;
use finial_identity::peer::{self, BundleSource, PeerPolicy};
use finial_identity::x509::Certificate;
use finial_proto::spire::api::server::agent::v1::agent_client::AgentClient;
use finial_proto::spire::api::server::agent::v1::{
    AgentX509svidParams, AttestAgentRequest, AttestAgentResponse, attest_agent_request, attest_agent_response,
};
use finial_proto::spire::api::server::bundle::v1::GetBundleRequest;
use finial_proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use finial_proto::spire::api::types::AttestationData;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::dial::Contact;
use super::signed::chain_from_wire;
use super::{RPC_TIMEOUT, TracedChannel, Upstream, UpstreamError, own_bundle_from_wire, traced};

/// How the server is recognised while the agent has no SVID.
#[derive(Clone, Debug)]
pub enum ServerTrust {
    /// Its chain verifies against these authorities.
    Bundle(Arc<dyn BundleSource>),
    /// It only claims to be the server: whoever can intercept the connection can take over this agent.
    Insecure,
}

/// A connection without a client certificate, of one attestation.
#[derive(Debug)]
pub struct Session {
    upstream: Upstream,
    channel: TracedChannel,
    contact: Contact,
    exchange: Option<Exchange>,
}

/// What the server wants next in an attestation.
pub enum AttestStep {
    /// An answer to this challenge.
    Challenge(Vec<u8>),
    /// Nothing more.
    Done {
        /// The agent's SVID, leaf first.
        chain: Vec<Certificate>,
        /// The agent may attest again, and must instead of renewing.
        reattestable: bool,
    },
}

#[derive(Debug)]
struct Exchange {
    requests: mpsc::Sender<AttestAgentRequest>,
    answers: Streaming<AttestAgentResponse>,
    challenges: usize,
}

impl Upstream {
    /// Opens a connection of its own, without a client certificate.
    ///
    /// # Errors
    /// [`UpstreamError`] when the server's address is unusable.
    pub fn session(&self, trust: ServerTrust) -> Result<Session, UpstreamError> {
        let shared = &self.shared;
        let verifier = match trust {
            ServerTrust::Bundle(bundles) => peer::server_verifier(
                bundles,
                PeerPolicy::ServerOf(shared.trust_domain.clone()),
                shared.clock.clone(),
            ),
            ServerTrust::Insecure => peer::insecure_server_verifier(shared.trust_domain.server_id()),
        };
        let tls = peer::client_config(verifier, None, shared.clock.clone());
        let (channel, contact) = shared.target.channel(Arc::new(tls))?;
        Ok(Session {
            upstream: self.clone(),
            channel: traced(channel),
            contact,
            exchange: None,
        })
    }
}

impl Session {
    /// Starts an attestation (`AttestAgent`) and returns what the server wants first.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn attest(
        &mut self,
        attestor: &str,
        payload: Vec<u8>,
        csr_der: Vec<u8>,
    ) -> Result<AttestStep, UpstreamError> {
        let begun = self.begin(attestor, payload, csr_der).await;
        self.noted(begun)
    }

    async fn begin(
        &mut self,
        attestor: &str,
        payload: Vec<u8>,
        csr_der: Vec<u8>,
    ) -> Result<AttestStep, UpstreamError> {
        let params = attest_agent_request::Params {
            data: Some(AttestationData {
                r#type: attestor.to_owned(),
                payload,
            }),
            params: Some(AgentX509svidParams { csr: csr_der }),
        };
        let (requests, receiver) = mpsc::channel(1);
        send(&requests, attest_agent_request::Step::Params(params)).await?;
        let mut client = AgentClient::new(self.channel.clone());
        let opened = client.attest_agent(ReceiverStream::new(receiver));
        let answers = match tokio::time::timeout(RPC_TIMEOUT, opened).await {
            Ok(answers) => answers?.into_inner(),
            Err(_elapsed) => return Err(UpstreamError::Unanswered("attest agent")),
        };
        self.exchange = Some(Exchange {
            requests,
            answers,
            challenges: 0,
        });
        self.step().await
    }

    /// Answers the last challenge.
    ///
    /// # Errors
    /// [`UpstreamError`]; also when no attestation is under way.
    pub async fn answer(&mut self, response: Vec<u8>) -> Result<AttestStep, UpstreamError> {
        let answered = self.send_answer(response).await;
        self.noted(answered)
    }

    async fn send_answer(&mut self, response: Vec<u8>) -> Result<AttestStep, UpstreamError> {
        let Some(exchange) = &self.exchange else {
            return Err(UpstreamError::Malformed(
                "attest agent: no challenge is open".to_owned(),
            ));
        };
        send(
            &exchange.requests,
            attest_agent_request::Step::ChallengeResponse(response),
        )
        .await?;
        self.step().await
    }

    /// The bundle of the agent's trust domain, over this connection.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn bundle(&self) -> Result<Bundle, UpstreamError> {
        let mut client = BundleClient::new(self.channel.clone()).max_decoding_message_size(super::MAX_ANSWER);
        let call = client.get_bundle(GetBundleRequest { output_mask: None });
        let fetched = match tokio::time::timeout(RPC_TIMEOUT, call).await {
            Ok(Ok(answer)) => own_bundle_from_wire(answer.into_inner(), self.upstream.trust_domain()),
            Ok(Err(status)) => Err(UpstreamError::from(status)),
            Err(_elapsed) => Err(UpstreamError::Unanswered("get bundle")),
        };
        self.noted(fetched)
    }

    /// The next attempt, which has a connection of its own, goes to another server first if this one may be in trouble.
    fn noted<T>(&self, outcome: Result<T, UpstreamError>) -> Result<T, UpstreamError> {
        outcome.inspect_err(|error| {
            if error.may_be_of_one_server() {
                self.upstream.shared.target.leave(self.contact.address());
            }
        })
    }

    async fn step(&mut self) -> Result<AttestStep, UpstreamError> {
        let Some(exchange) = &mut self.exchange else {
            return Err(UpstreamError::Malformed("attest agent: not started".to_owned()));
        };
        let answer = match tokio::time::timeout(RPC_TIMEOUT, exchange.answers.message()).await {
            Ok(answer) => answer?,
            Err(_elapsed) => return Err(UpstreamError::Unanswered("attest agent")),
        };
        match answer.and_then(|answer| answer.step) {
            Some(attest_agent_response::Step::Challenge(challenge)) => {
                exchange.challenges = exchange.challenges.saturating_add(1);
                if exchange.challenges > MAX_CHALLENGES {
                    return Err(UpstreamError::Malformed(format!(
                        "attest agent: more than {MAX_CHALLENGES} challenges"
                    )));
                }
                Ok(AttestStep::Challenge(challenge))
            }
            Some(attest_agent_response::Step::Result(result)) => {
                self.exchange = None;
                Ok(AttestStep::Done {
                    chain: chain_from_wire(result.svid).map_err(UpstreamError::Malformed)?,
                    reattestable: result.reattestable,
                })
            }
            None => Err(UpstreamError::Malformed(
                "attest agent: ended without a result".to_owned(),
            )),
        }
    }
}

impl fmt::Debug for AttestStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Challenge(bytes) => write!(f, "Challenge({} bytes)", bytes.len()),
            Self::Done { reattestable, .. } => write!(f, "Done {{ reattestable: {reattestable} }}"),
        }
    }
}

async fn send(
    requests: &mpsc::Sender<AttestAgentRequest>,
    step: attest_agent_request::Step,
) -> Result<(), UpstreamError> {
    let request = AttestAgentRequest { step: Some(step) };
    let closed = |_closed| UpstreamError::Unavailable("attest agent: server ended the exchange".to_owned());
    requests.send(request).await.map_err(closed)
}

/// No attestor needs more than a few.
const MAX_CHALLENGES: usize = 32;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

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
    async fn an_attestation_that_a_server_in_trouble_fails_is_tried_at_another_address() {
        let server = TestServer::start();
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        let authorities = server.state().bundle.x509_certificates();
        let known = BTreeMap::from([(trust_domain.clone(), authorities.into())]);
        let bundles: Arc<dyn BundleSource> = Arc::new(SharedBundles::fixed(known));
        let settings = UpstreamSettings {
            trust_domain,
            server_address: server.address.ip().to_string(),
            server_port: server.address.port(),
        };
        let (_svid, none) = watch::channel(None);
        let upstream = Upstream::new(
            settings,
            none,
            Arc::clone(&bundles),
            Clock::system(),
            Jitter::new(|| 0.5),
        );
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        let csr_der = Csr::build(&key, CsrSubject::spire(), None, &[]).unwrap();
        let attest = async |token: &[u8]| {
            let trust = ServerTrust::Bundle(Arc::clone(&bundles));
            let mut session = upstream.session(trust).unwrap();
            let outcome = session
                .attest("join_token", token.to_vec(), csr_der.clone())
                .await;
            (outcome.is_ok(), upstream.shared.target.rotation())
        };
        assert_eq!(
            attest(b"unknown").await,
            (false, 0),
            "all servers would refuse it"
        );
        server.state().is_sick = true;
        assert_eq!(attest(b"token").await, (false, 1));
        let session = upstream.session(ServerTrust::Bundle(Arc::clone(&bundles)));
        assert!(session.unwrap().bundle().await.is_err());
        assert_eq!(upstream.shared.target.rotation(), 2);
        server.state().is_sick = false;
        assert_eq!(attest(b"token").await, (true, 2));
    }
}
