//! Entries and bundles that a benchmark creates at the server, over its private socket, and deletes at the end.
//!
//! All of them have the name of this run in their SPIFFE ID or trust domain, so that they are found at the end even
//! when a call was interrupted.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use data_encoding::HEXLOWER;
use finial_identity::command::dial::{LARGEST_ANSWER, status, unix_channel};
use finial_identity::process::Clock;
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::wire;
use finial_proto::spire::api::server::agent::v1::agent_client::AgentClient;
use finial_proto::spire::api::server::agent::v1::{ListAgentsRequest, list_agents_request};
use finial_proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use finial_proto::spire::api::server::bundle::v1::{
    BatchDeleteFederatedBundleRequest, BatchSetFederatedBundleRequest,
    batch_delete_federated_bundle_request::Mode,
};
use finial_proto::spire::api::server::entry::v1::entry_client::EntryClient;
use finial_proto::spire::api::server::entry::v1::{
    BatchCreateEntryRequest, BatchDeleteEntryRequest, BatchUpdateEntryRequest, GetEntryRequest,
    ListEntriesRequest, list_entries_request,
};
use finial_proto::spire::api::types::{self, Entry, EntryMask};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, SanType};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::time::timeout;
use tonic::transport::Channel;

const OK: i32 = tonic::Code::Ok as i32;
const NOT_FOUND: i32 = tonic::Code::NotFound as i32;

/// How many entries one call carries.
const BATCH: usize = 500;
const PAGE: i32 = 1000;

/// How long taking everything away may take.
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(120);

/// See the module's text.
#[derive(Debug)]
pub struct Registrations {
    entries: EntryClient<Channel>,
    bundles: BundleClient<Channel>,
    parent: SpiffeId,
    run: String,
    has_bundle: AtomicBool,
}

impl Registrations {
    /// Connects to the server; `parent` is the agent, and may be left out when there is one only.
    ///
    /// # Errors
    /// When no server listens, or it is not clear which agent is meant.
    pub async fn connect(socket: &Path, parent: Option<&str>) -> anyhow::Result<Self> {
        let channel = unix_channel(socket.to_owned()).await?;
        let parent = match parent {
            Some(id) => SpiffeId::parse(id).with_context(|| format!("invalid SPIFFE ID {id:?}"))?,
            None => only_agent(channel.clone()).await?,
        };
        Ok(Registrations {
            entries: EntryClient::new(channel.clone()).max_decoding_message_size(LARGEST_ANSWER),
            bundles: BundleClient::new(channel),
            parent,
            run: random_name()?,
            has_bundle: AtomicBool::new(false),
        })
    }

    /// The SPIFFE ID of this run's workload of that name.
    pub fn id(&self, name: &str) -> String {
        format!("{}{}", self.parent.trust_domain().id(), self.path(name))
    }

    /// An entry, not yet created, for every process of the calling user.
    pub fn entry(&self, name: &str) -> Entry {
        let uid = rustix::process::getuid().as_raw();
        self.entry_for(name, "unix", format!("uid:{uid}"))
    }

    /// An entry, not yet created, that fits no process.
    pub fn idle_entry(&self, name: &str) -> Entry {
        self.entry_for(name, "finial-bench", self.run.clone())
    }

    /// Creates entries; gives them as the server has them, in the same order.
    ///
    /// # Errors
    /// When one of them is refused.
    pub async fn create(&self, entries: Vec<Entry>) -> anyhow::Result<Vec<Entry>> {
        let mut created = Vec::with_capacity(entries.len());
        for batch in entries.chunks(BATCH) {
            let request = BatchCreateEntryRequest {
                entries: batch.to_vec(),
                output_mask: None,
            };
            let answer = self.entries.clone().batch_create_entry(request).await;
            let results = answer.map_err(|error| status("create entries", &error))?;
            for result in results.into_inner().results {
                check("create an entry", result.status, &[OK])?;
                created.push(result.entry.context("the server did not send the entry")?);
            }
        }
        ensure!(created.len() == entries.len(), "the server sent too few results");
        Ok(created)
    }

    /// Creates one entry.
    ///
    /// # Errors
    /// As [`Registrations::create`].
    pub async fn create_one(&self, entry: Entry) -> anyhow::Result<Entry> {
        let created = self.create(vec![entry]).await?;
        created.into_iter().next().context("the server sent no entry")
    }

    /// Changes the DNS names of an entry, which makes its SVID a new one.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn rename(&self, entry: &Entry, dns_name: String) -> anyhow::Result<()> {
        let mut entry = entry.clone();
        entry.dns_names = vec![dns_name];
        let mask = EntryMask {
            dns_names: true,
            ..EntryMask::default()
        };
        let request = BatchUpdateEntryRequest {
            entries: vec![entry],
            input_mask: Some(mask),
            output_mask: None,
        };
        let answer = self.entries.clone().batch_update_entry(request).await;
        let answer = answer
            .map_err(|error| status("update an entry", &error))?
            .into_inner();
        let result = answer.results.into_iter().next();
        check("update an entry", result.and_then(|result| result.status), &[OK])
    }

    /// Deletes entries.
    ///
    /// # Errors
    /// When the server refuses; entries that are gone already are none.
    pub async fn delete(&self, ids: Vec<String>) -> anyhow::Result<()> {
        for batch in ids.chunks(BATCH) {
            let request = BatchDeleteEntryRequest { ids: batch.to_vec() };
            let answer = self.entries.clone().batch_delete_entry(request).await;
            let results = answer.map_err(|error| status("delete entries", &error))?;
            for result in results.into_inner().results {
                check("delete an entry", result.status, &[OK, NOT_FOUND])?;
            }
        }
        Ok(())
    }

    /// Asks for an entry, which changes nothing.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn look_up(&self, id: &str) -> anyhow::Result<()> {
        let request = GetEntryRequest {
            id: id.to_owned(),
            output_mask: None,
        };
        let answer = self.entries.clone().get_entry(request).await;
        answer.map(drop).map_err(|error| status("get an entry", &error))
    }

    /// The foreign trust domain of this run.
    pub fn foreign_domain(&self) -> String {
        format!("{}.finial-bench.test", self.run)
    }

    /// Gives the foreign trust domain a bundle with a new authority.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn set_foreign_bundle(&self, sequence_number: u64) -> anyhow::Result<()> {
        let trust_domain = self.foreign_domain();
        let authority = types::X509Certificate {
            asn1: new_authority(&trust_domain)?,
            tainted: false,
        };
        let bundle = types::Bundle {
            trust_domain,
            x509_authorities: vec![authority],
            sequence_number,
            ..Default::default()
        };
        self.has_bundle.store(true, Ordering::Relaxed);
        let request = BatchSetFederatedBundleRequest {
            bundle: vec![bundle],
            output_mask: None,
        };
        let answer = self.bundles.clone().batch_set_federated_bundle(request).await;
        let answer = answer.map_err(|error| status("set a federated bundle", &error))?;
        let result = answer.into_inner().results.into_iter().next();
        check(
            "set a federated bundle",
            result.and_then(|result| result.status),
            &[OK],
        )
    }

    /// Takes away everything that this run made.
    ///
    /// # Errors
    /// When the server does not do it in time; the text says what may be left.
    pub async fn clean_up(&self) -> anyhow::Result<()> {
        let left = || format!("entries below {} may be left at the server", self.path(""));
        timeout(CLEAN_UP_LIMIT, self.remove_all())
            .await
            .with_context(left)?
            .with_context(left)
    }

    async fn remove_all(&self) -> anyhow::Result<()> {
        loop {
            let left = self.own_entries().await?;
            if left.is_empty() {
                break;
            }
            self.delete(left).await?;
        }
        if !self.has_bundle.load(Ordering::Relaxed) {
            return Ok(());
        }
        let request = BatchDeleteFederatedBundleRequest {
            trust_domains: vec![self.foreign_domain()],
            mode: Mode::Dissociate.into(),
        };
        let answer = self.bundles.clone().batch_delete_federated_bundle(request).await;
        let answer = answer.map_err(|error| status("delete a federated bundle", &error))?;
        let result = answer.into_inner().results.into_iter().next();
        let outcome = result.and_then(|result| result.status);
        check("delete a federated bundle", outcome, &[OK, NOT_FOUND])
    }

    async fn own_entries(&self) -> anyhow::Result<Vec<String>> {
        let prefix = self.path("");
        let filter = list_entries_request::Filter {
            by_parent_id: Some(wire::spiffe_id_to_wire(&self.parent)),
            ..Default::default()
        };
        let mut request = ListEntriesRequest {
            filter: Some(filter),
            output_mask: Some(EntryMask {
                spiffe_id: true,
                ..EntryMask::default()
            }),
            page_size: PAGE,
            page_token: String::new(),
        };
        let mut ids = Vec::new();
        loop {
            let answer = self.entries.clone().list_entries(request.clone()).await;
            let page = answer
                .map_err(|error| status("list entries", &error))?
                .into_inner();
            let own = page.entries.into_iter().filter(|entry| {
                let id = entry.spiffe_id.as_ref();
                id.is_some_and(|id| id.path.starts_with(&prefix))
            });
            ids.extend(own.map(|entry| entry.id));
            if page.next_page_token.is_empty() {
                return Ok(ids);
            }
            request.page_token = page.next_page_token;
        }
    }

    fn entry_for(&self, name: &str, kind: &str, value: String) -> Entry {
        let id = types::Spiffeid {
            trust_domain: self.parent.trust_domain().to_string(),
            path: self.path(name),
        };
        let selector = types::Selector {
            r#type: kind.to_owned(),
            value,
        };
        Entry {
            spiffe_id: Some(id),
            parent_id: Some(wire::spiffe_id_to_wire(&self.parent)),
            selectors: vec![selector],
            ..Entry::default()
        }
    }

    fn path(&self, name: &str) -> String {
        format!("/finial-bench/{}/{name}", self.run)
    }
}

/// The one attested agent whose SVID has not expired.
async fn only_agent(channel: Channel) -> anyhow::Result<SpiffeId> {
    let filter = list_agents_request::Filter {
        by_banned: Some(false),
        ..Default::default()
    };
    let request = ListAgentsRequest {
        filter: Some(filter),
        ..Default::default()
    };
    let answer = AgentClient::new(channel).list_agents(request).await;
    let agents = answer
        .map_err(|error| status("list the agents", &error))?
        .into_inner()
        .agents;
    let now = Clock::system().unix();
    let mut alive = agents.into_iter().filter(|agent| agent.x509svid_expires_at > now);
    match (alive.next(), alive.next()) {
        (Some(agent), None) => wire::spiffe_id_from_wire(agent.id).context("read the agent's ID"),
        (None, _) => bail!("the server knows no attested agent"),
        _ => bail!("the server knows several agents: name the one at -socketPath with -parentID"),
    }
}

fn check(what: &str, outcome: Option<types::Status>, accepted: &[i32]) -> anyhow::Result<()> {
    let outcome = outcome.with_context(|| format!("{what}: the server sent no result"))?;
    ensure!(accepted.contains(&outcome.code), "{what}: {}", outcome.message);
    Ok(())
}

fn random_name() -> anyhow::Result<String> {
    let mut bytes = [0; 8];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| anyhow::anyhow!("the system gives no random bytes"))?;
    Ok(HEXLOWER.encode(&bytes))
}

/// A self-signed authority of a trust domain, as DER.
fn new_authority(trust_domain: &str) -> anyhow::Result<Vec<u8>> {
    let mut params = CertificateParams::default();
    let uri = format!("spiffe://{trust_domain}");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.subject_alt_names = vec![SanType::URI(uri.try_into().context("the trust domain as a URI")?)];
    let key = KeyPair::generate().context("make a key")?;
    let certificate = params.self_signed(&key).context("make an authority")?;
    Ok(certificate.der().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use finial_identity::x509::Certificate;

    #[test]
    fn every_authority_is_another_one_of_the_trust_domain() {
        let [one, other] = [(); 2].map(|()| new_authority("a.finial-bench.test").unwrap());
        assert_ne!(one, other);
        let certificate = Certificate::parse(&one).unwrap();
        assert!(certificate.is_ca());
        assert_eq!(certificate.uri_sans(), ["spiffe://a.finial-bench.test"]);
    }

    #[test]
    fn runs_have_names_of_their_own_that_fit_into_a_host_name() {
        let (one, other) = (random_name().unwrap(), random_name().unwrap());
        assert_ne!(one, other);
        assert_eq!(one.len(), 16);
    }
}
