//! Random changes against a model that computes every set from scratch.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use finial_identity::bundle::Bundle;
use finial_identity::entry::Entry;
use finial_identity::process::clock::Clock;
use finial_identity::selector::Selector;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use finial_identity::wire::{self, DigestSum};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::{AgentGone, Feed, FeedEvent, Registry, Resume};
use crate::store::testing::{agent, domain, entry, id};
use crate::store::{AgentRecord, Change, Revision, SqliteStore, StoredEntry, What};

const AGENTS: usize = 5;
const FOREIGN: [&str; 2] = ["f1.test", "f2.test"];

/// What should be there.
#[derive(Debug, Default)]
struct Model {
    entries: BTreeMap<String, (u64, Entry)>,
    agents: BTreeMap<SpiffeId, AgentRecord>,
    bundles: BTreeMap<TrustDomain, Bundle>,
}

impl Model {
    /// The set of an agent by the definition, with a scan of everything for each step.
    fn authorized(&self, agent: &SpiffeId) -> BTreeMap<String, Entry> {
        let server = domain().server_id();
        let mut parents: BTreeSet<&SpiffeId> = BTreeSet::from([agent]);
        let own: HashSet<&Selector> = self
            .agents
            .get(agent)
            .iter()
            .flat_map(|agent| &agent.selectors)
            .collect();
        for (_, alias) in self
            .entries
            .values()
            .filter(|(_, entry)| entry.parent_id == server)
        {
            if alias.selectors.iter().all(|selector| own.contains(selector)) {
                parents.insert(&alias.spiffe_id);
            }
        }
        loop {
            let children = self
                .entries
                .values()
                .filter(|(_, entry)| parents.contains(&entry.parent_id));
            let more: BTreeSet<&SpiffeId> = children.map(|(_, entry)| &entry.spiffe_id).collect();
            let before = parents.len();
            parents.extend(more);
            if parents.len() == before {
                break;
            }
        }
        self.entries
            .iter()
            .filter(|(_, (_, entry))| parents.contains(&entry.parent_id))
            .map(|(id, (_, entry))| (id.clone(), entry.clone()))
            .collect()
    }

    fn bundles(&self, agent: &SpiffeId) -> BTreeMap<TrustDomain, Bundle> {
        let set = self.authorized(agent);
        let mut names: BTreeSet<&TrustDomain> =
            set.values().flat_map(|entry| &entry.federates_with).collect();
        let own = domain();
        names.insert(&own);
        names
            .into_iter()
            .filter_map(|name| Some((name.clone(), self.bundles.get(name)?.clone())))
            .collect()
    }
}

/// What an agent makes of its feed.
#[derive(Debug, Default)]
struct Client {
    feed: Option<Feed>,
    entries: BTreeMap<String, Entry>,
    bundles: BTreeMap<TrustDomain, Bundle>,
    at: Option<Resume>,
    snapshots: usize,
    deltas: usize,
}

impl Client {
    fn digest(&self) -> DigestSum {
        DigestSum::of(
            self.entries
                .values()
                .map(|entry| wire::entry_digest(&wire::entry_to_wire(entry))),
        )
    }

    /// Takes all that waits; `Err` when the watch ended.
    fn drain(&mut self) -> Result<usize, AgentGone> {
        let mut events = 0;
        while let Some(event) = self.feed.as_mut().and_then(Feed::take) {
            events += 1;
            match event {
                FeedEvent::Snapshot {
                    cursor,
                    entries,
                    digest,
                } => {
                    self.snapshots += 1;
                    self.entries = entries
                        .iter()
                        .map(|entry| (entry.id.clone(), Entry::clone(entry)))
                        .collect();
                    self.at = Some(Resume { cursor, digest });
                }
                FeedEvent::Delta {
                    from,
                    to,
                    upserts,
                    removals,
                    digest,
                } => {
                    self.deltas += 1;
                    assert_eq!(self.at.map(|at| at.cursor), Some(from));
                    self.entries.retain(|id, _| !removals.contains(id));
                    self.entries.extend(
                        upserts
                            .iter()
                            .map(|entry| (entry.id.clone(), Entry::clone(entry))),
                    );
                    self.at = Some(Resume { cursor: to, digest });
                }
                FeedEvent::Current { cursor, digest } => self.at = Some(Resume { cursor, digest }),
                FeedEvent::Bundles(changes) => {
                    if changes.is_complete {
                        self.bundles.retain(|name, _| *name == domain());
                    }
                    for bundle in changes.own.iter().chain(&changes.federated) {
                        self.bundles
                            .insert(bundle.trust_domain.clone(), Bundle::clone(bundle));
                    }
                    self.bundles.retain(|name, _| !changes.removed.contains(name));
                }
                FeedEvent::AgentGone(reason) => return Err(reason),
            }
            if let Some(at) = self.at {
                assert_eq!(at.digest, self.digest());
            }
        }
        Ok(events)
    }
}

struct World {
    random: StdRng,
    model: Model,
    revision: Revision,
    next_row: u64,
}

impl World {
    fn agent_path(n: usize) -> String {
        format!("/spire/agent/{n}")
    }

    fn selectors(&mut self, most: usize) -> Vec<String> {
        let count = self.random.random_range(1..=most);
        (0..count)
            .map(|_| format!("k8s:s{}", self.random.random_range(0..5)))
            .collect()
    }

    fn entry(&mut self, id: &str) -> Entry {
        let node = |n: usize| format!("/node/{n}");
        let workload = |n: usize| format!("/work/{n}");
        let parent = match self.random.random_range(0..10) {
            0..2 => "/spire/server".to_owned(),
            2..5 => Self::agent_path(self.random.random_range(0..AGENTS)),
            5..8 => node(self.random.random_range(0..4)),
            _ => workload(self.random.random_range(0..6)),
        };
        let spiffe = if self.random.random_bool(0.4) {
            node(self.random.random_range(0..4))
        } else {
            workload(self.random.random_range(0..6))
        };
        let selectors = self.selectors(3);
        let selectors: Vec<&str> = selectors.iter().map(String::as_str).collect();
        let mut parts = entry(id, &spiffe, &parent, &selectors).into_parts();
        if let Some((_, old)) = self.model.entries.get(id) {
            // Half of the updates leave the entry where it stands.
            if self.random.random_bool(0.5) {
                parts = Entry::clone(old).into_parts();
            }
            parts.revision_number = old.revision_number + 1;
        }
        let names = FOREIGN.iter().filter(|_| self.random.random_bool(0.2));
        parts.federates_with = names.map(|name| TrustDomain::parse(name).unwrap()).collect();
        Entry::check(parts, &domain()).unwrap()
    }

    fn change(&mut self) -> Change {
        let what = match self.random.random_range(0..100) {
            0..55 => {
                let id = format!("e{}", self.random.random_range(0..40));
                let entry = self.entry(&id);
                let row = match self.model.entries.get(&id) {
                    Some((row, _)) => *row,
                    None => {
                        self.next_row += 1;
                        self.next_row
                    }
                };
                self.model.entries.insert(id, (row, entry.clone()));
                What::EntryPut(StoredEntry {
                    row,
                    entry: Arc::new(entry),
                })
            }
            55..85 => {
                let ids: Vec<String> = self.model.entries.keys().cloned().collect();
                let id = ids
                    .choose(&mut self.random)
                    .cloned()
                    .unwrap_or_else(|| "nobody".into());
                self.model.entries.remove(&id);
                What::EntryDeleted(id)
            }
            85..92 => {
                let selectors = self.selectors(4);
                let selectors: Vec<&str> = selectors.iter().map(String::as_str).collect();
                let path = Self::agent_path(self.random.random_range(0..AGENTS));
                let mut record = agent(&path, "1", &selectors);
                record.selectors.sort_unstable();
                record.selectors.dedup();
                self.model.agents.insert(record.id.clone(), record.clone());
                What::AgentPut(Arc::new(record))
            }
            92..98 => {
                let name = ["example.test", FOREIGN[0], FOREIGN[1]]
                    .choose(&mut self.random)
                    .copied()
                    .unwrap();
                let mut bundle = Bundle::new(TrustDomain::parse(name).unwrap());
                bundle.refresh_hint = self.random.random_range(0..1_000);
                self.model
                    .bundles
                    .insert(bundle.trust_domain.clone(), bundle.clone());
                What::BundlePut(Arc::new(bundle))
            }
            _ => {
                let name = TrustDomain::parse(FOREIGN.choose(&mut self.random).copied().unwrap()).unwrap();
                self.model.bundles.remove(&name);
                What::BundleDeleted(name)
            }
        };
        self.revision.n += 1;
        self.revision.mark = self.random.random();
        Change {
            revision: self.revision,
            what,
        }
    }
}

async fn registry() -> Arc<Registry> {
    let store = SqliteStore::in_memory(&domain(), Clock::system()).await.unwrap();
    Registry::load(Arc::new(store), &domain(), Clock::system())
        .await
        .unwrap()
}

async fn run(seed: u64, steps: usize) -> (usize, usize) {
    let registry = registry().await;
    let mut world = World {
        random: StdRng::seed_from_u64(seed),
        model: Model::default(),
        revision: Revision::START,
        next_row: 0,
    };
    let ids: Vec<SpiffeId> = (0..AGENTS).map(|n| id(&World::agent_path(n))).collect();
    let attested: Vec<Change> = ids
        .iter()
        .map(|agent_id| {
            let record = agent(agent_id.path(), "1", &["k8s:s0"]);
            world.model.agents.insert(agent_id.clone(), record.clone());
            world.revision.n += 1;
            Change {
                revision: world.revision,
                what: What::AgentPut(Arc::new(record)),
            }
        })
        .collect();
    registry.write().apply(attested);
    let mut clients: Vec<Client> = ids.iter().map(|_| Client::default()).collect();
    for _ in 0..steps {
        for (agent_id, client) in ids.iter().zip(&mut clients) {
            match &client.feed {
                None if world.random.random_bool(0.3) => {
                    client.feed = Some(registry.subscribe(agent_id, "1", client.at).await.unwrap());
                }
                Some(_) if world.random.random_bool(0.03) => client.feed = None,
                _ => {}
            }
            if world.random.random_bool(0.7) {
                client.drain().unwrap();
            }
        }
        let settled: Vec<Option<BTreeMap<String, Entry>>> = clients
            .iter_mut()
            .zip(&ids)
            .map(|(client, agent_id)| {
                let (cursor, digest) = client.feed.as_mut()?.heartbeat()?;
                client.at = Some(Resume { cursor, digest });
                Some(world.model.authorized(agent_id))
            })
            .collect();
        let size = if world.random.random_bool(0.5) {
            1
        } else {
            world.random.random_range(2..12)
        };
        let batch: Vec<Change> = (0..size).map(|_| world.change()).collect();
        let is_bundle = batch
            .iter()
            .any(|change| matches!(change.what, What::BundlePut(_) | What::BundleDeleted(_)));
        registry.write().apply(batch);
        for ((agent_id, client), settled) in ids.iter().zip(&mut clients).zip(settled) {
            let expected = world.model.authorized(agent_id);
            let found: BTreeMap<String, Entry> = registry
                .authorized(agent_id)
                .iter()
                .map(|entry| (entry.id.clone(), Entry::clone(entry)))
                .collect();
            assert_eq!(found, expected, "seed {seed}");
            if size == 1 && !is_bundle && settled.as_ref() == Some(&expected) {
                let waiting = client.feed.as_ref().unwrap().watcher.state().pending.len();
                assert_eq!(
                    waiting, 0,
                    "seed {seed}: an agent hears of what does not concern it"
                );
            }
            if client.feed.is_some() && world.random.random_bool(0.5) {
                client.drain().unwrap();
                assert_eq!(client.entries, expected, "seed {seed}");
                assert_eq!(client.bundles, world.model.bundles(agent_id), "seed {seed}");
                let at = client.feed.as_mut().unwrap().heartbeat().unwrap();
                assert_eq!(at.1, client.digest());
                client.at = Some(Resume {
                    cursor: at.0,
                    digest: at.1,
                });
            }
        }
        assert_listing(&registry, &world.model);
    }
    let counts = clients.iter().map(|client| (client.snapshots, client.deltas));
    counts.fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1))
}

fn assert_listing(registry: &Registry, model: &Model) {
    let mut expected: Vec<(u64, String)> = model
        .entries
        .iter()
        .map(|(id, (row, _))| (*row, id.clone()))
        .collect();
    expected.sort_unstable();
    let listed: Vec<(u64, String)> = registry
        .entries(0, 1_000)
        .iter()
        .map(|stored| (stored.row, stored.entry.id.clone()))
        .collect();
    assert_eq!(listed, expected);
}

#[tokio::test]
async fn sets_and_feeds_agree_with_a_model_over_thousands_of_random_changes() {
    let (mut snapshots, mut deltas) = (0, 0);
    for seed in 0..12 {
        let counts = run(seed, 250).await;
        snapshots += counts.0;
        deltas += counts.1;
    }
    assert!(deltas > 2_000, "the test says little with few deltas: {deltas}");
    assert!(
        snapshots > 50 && snapshots * 4 < deltas,
        "{snapshots} snapshots, {deltas} deltas"
    );
}
