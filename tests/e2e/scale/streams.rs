//! The agents: Sync streams, and what they received.

use std::collections::HashMap;
use std::ops::Range;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use finial_identity::key::{KeyType, PrivateKey};
use finial_identity::x509::{Csr, CsrSubject};
use finial_proto::finial::server::sync::v1::sync_client::SyncClient;
use finial_proto::finial::server::sync::v1::watch_response::Event;
use finial_proto::finial::server::sync::v1::{WatchRequest, WatchResponse};
use finial_proto::spire::api::server::agent::v1::agent_client::AgentClient;
use finial_proto::spire::api::server::agent::v1::attest_agent_request::{Params, Step};
use finial_proto::spire::api::server::agent::v1::{
    AgentX509svidParams, AttestAgentRequest, attest_agent_response,
};
use finial_proto::spire::api::types::{AttestationData, Entry};
use finial_tests::wait_for_async;

use super::objects::uid;
use crate::wire::{Identity, tls};

const LIMIT: Duration = Duration::from_secs(600);

/// What the streams told: when each pod's entry last came.
#[derive(Default)]
pub struct Seen {
    inner: Mutex<Inner>,
    news: tokio::sync::Notify,
}

#[derive(Default)]
struct Inner {
    /// By uid: when the entry came, and its path.
    pods: HashMap<String, (Instant, String)>,
    /// How many entries came, and how many were withdrawn.
    upserts: usize,
    removals: usize,
}

impl Seen {
    fn take(&self, upserts: &[Entry], removals: usize) {
        let now = Instant::now();
        let mut inner = self.inner.lock().expect("nobody panics while holding the lock");
        inner.removals += removals;
        for entry in upserts {
            let uid = entry
                .selectors
                .iter()
                .find_map(|selector| selector.value.strip_prefix("pod-uid:"));
            if let Some(uid) = uid {
                let path = entry
                    .spiffe_id
                    .as_ref()
                    .map(|id| id.path.clone())
                    .unwrap_or_default();
                inner.pods.insert(uid.to_owned(), (now, path));
                inner.upserts += 1;
            }
        }
        drop(inner);
        self.news.notify_waiters();
    }

    async fn until(&self, holds: impl Fn(&Inner) -> bool) {
        let waited = tokio::time::timeout(LIMIT, async {
            loop {
                let mut news = pin!(self.news.notified());
                news.as_mut().enable();
                if holds(&self.inner.lock().expect("nobody panics while holding the lock")) {
                    return;
                }
                news.await;
            }
        });
        waited.await.expect("the entries come in time");
    }

    /// Waits for the entries of these pods.
    pub async fn wait(&self, pods: Range<usize>) {
        let next = AtomicUsize::new(pods.start);
        self.until(|inner| {
            let first = next.load(Ordering::Relaxed);
            let lacking = (first..pods.end).find(|n| !inner.pods.contains_key(&uid(*n)));
            next.store(lacking.unwrap_or(pods.end), Ordering::Relaxed);
            lacking.is_none()
        })
        .await;
    }

    pub fn forget(&self) {
        *self.inner.lock().expect("nobody panics while holding the lock") = Inner::default();
    }

    /// Waits until so many entries more came, and as many went.
    pub async fn wait_for_changes(&self, before: usize, more: usize) {
        self.until(|inner| inner.upserts >= before + more && inner.removals >= more)
            .await;
    }

    pub fn count(&self) -> usize {
        self.inner
            .lock()
            .expect("nobody panics while holding the lock")
            .upserts
    }

    pub fn last(&self, uid: &str) -> Instant {
        self.inner
            .lock()
            .expect("nobody panics while holding the lock")
            .pods[uid]
            .0
    }

    pub fn check(&self, pods: &[usize], part: &str) {
        let inner = self.inner.lock().expect("nobody panics while holding the lock");
        for n in pods {
            let path = &inner.pods[&uid(*n)].1;
            assert!(path.contains(part), "pod {n} has {path}");
        }
    }
}

/// An agent by its join token.
pub async fn attest(port: u16, token: &str) -> Identity {
    let key = PrivateKey::generate(KeyType::EcP256).expect("a key");
    let csr = Csr::build(&key, CsrSubject::spire(), None, &[]).expect("a CSR");
    let step = Step::Params(Params {
        data: Some(AttestationData {
            r#type: "join_token".into(),
            payload: token.as_bytes().to_vec(),
        }),
        params: Some(AgentX509svidParams { csr }),
    });
    let channel = tls(port, None).await.expect("TLS without a certificate");
    let requests = tokio_stream::iter([AttestAgentRequest { step: Some(step) }]);
    let mut answers = AgentClient::new(channel)
        .attest_agent(requests)
        .await
        .expect("attestation begins")
        .into_inner();
    let answer = answers.message().await.expect("attestation").expect("an answer");
    let Some(attest_agent_response::Step::Result(result)) = answer.step else {
        panic!("no result")
    };
    let chain = result.svid.expect("an SVID").cert_chain;
    Identity {
        chain: chain.into_iter().map(Into::into).collect(),
        key: rustls::pki_types::PrivatePkcs8KeyDer::from(key.pkcs8_der().to_vec()).into(),
    }
}

/// Opens a stream, as often as it takes, and reads it to its end in the background.
pub fn follow(port: u16, identity: Identity, seen: Arc<Seen>) {
    tokio::spawn(async move {
        // A server that has just started asks agents to come again.
        let mut stream = wait_for_async("a stream", LIMIT, || watch(port, identity.clone())).await;
        while let Ok(Some(message)) = stream.message().await {
            match message.event {
                Some(Event::Snapshot(snapshot)) => seen.take(&snapshot.entries, 0),
                Some(Event::Delta(delta)) => seen.take(&delta.upserts, delta.removals.len()),
                _ => {}
            }
        }
    });
}

async fn watch(port: u16, identity: Identity) -> anyhow::Result<tonic::Streaming<WatchResponse>> {
    let channel = tls(port, Some(identity)).await?;
    let mut client = SyncClient::new(channel).max_decoding_message_size(16 << 20);
    Ok(client.watch(WatchRequest::default()).await?.into_inner())
}
