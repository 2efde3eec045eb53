//! Many entries and many open streams: the work for one change does not depend on how many there are.

use std::collections::HashSet;
use std::sync::Arc;

use finial_identity::bundle::Bundle;
use finial_identity::process::Clock;
use finial_identity::selector::Selector;
use time::{Duration, OffsetDateTime};

use super::model::Model;
use super::tests::{authorized, identity, moment};
use super::tokens::{JwtCache, JwtCacheSettings, JwtSource, SignedJwt};
use super::visits;
use super::{IssuedSvid, Subscription, SvidCache};
use crate::node::{Jitter, RenewalTime};
use crate::test_pki::Authority;
use crate::upstream::{AuthorizedEntry, UpstreamError};

/// Before anything expires.
const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

/// Pods of one namespace: an entry for each, and one for each service account of ten pods.
struct Node {
    model: Model,
    cache: SvidCache,
    streams: Vec<Subscription>,
}

#[derive(Debug)]
struct NoServer;

#[async_trait::async_trait]
impl JwtSource for NoServer {
    async fn sign_jwt(&self, _entry_id: &str, _audiences: &[String]) -> Result<SignedJwt, UpstreamError> {
        Err(UpstreamError::Unavailable("none".to_owned()))
    }
}

fn selector(value: &str) -> Selector {
    Selector::new("k8s", value).unwrap()
}

fn of_pod(n: usize) -> AuthorizedEntry {
    authorized(
        &format!("pod-{n}"),
        vec![selector("ns:prod"), selector(&format!("pod-uid:{n}"))],
    )
}

fn of_account(n: usize) -> AuthorizedEntry {
    authorized(
        &format!("sa-{n}"),
        vec![selector("ns:prod"), selector(&format!("sa:{n}"))],
    )
}

/// Facts about the process of a pod, most of which other pods have too.
fn workload(n: usize) -> Arc<HashSet<Selector>> {
    let mut facts = HashSet::from([
        selector("ns:prod"),
        selector("node-name:one"),
        selector(&format!("sa:{}", n / 10)),
        selector(&format!("pod-uid:{n}")),
    ]);
    facts.extend((0..6).map(|label| selector(&format!("pod-label:l{label}:{}", n % (label + 2)))));
    Arc::new(facts)
}

impl Node {
    fn new(pods: usize) -> Self {
        let own = Arc::new(Bundle::new(identity("/x").trust_domain().clone()));
        let jwt = JwtCache::new(
            Arc::new(NoServer),
            JwtCacheSettings::default(),
            Clock::system(),
            Jitter::new(|| 0.5),
        );
        let cache = SvidCache::new(Arc::clone(&own), jwt);
        let model = Model::new(own, pods / 10, Arc::clone(cache.counters()), moment(NOW));
        let streams = (0..pods).map(|n| match n % 2 {
            0 => cache.subscribe(workload(n)),
            _ => cache.observe(workload(n)),
        });
        let streams = streams.collect();
        let mut node = Self {
            model,
            cache,
            streams,
        };
        let entries = (0..pods).map(of_pod).chain((0..pods / 10).map(of_account));
        node.apply(entries.collect(), &[]);
        for stream in &mut node.streams {
            assert!(stream.version() > 0);
            stream.mark_seen();
        }
        node
    }

    /// What the sync task does about changed entries.
    fn apply(&mut self, entries: Vec<AuthorizedEntry>, removals: &[String]) {
        let subscribers = self.cache.subscribers();
        self.model
            .apply_entries(entries, removals, &|entry| subscribers.is_wanted(entry));
        self.work();
    }

    /// What the sync task does after each event.
    fn work(&mut self) {
        let subscribers = self.cache.subscribers();
        for selectors in subscribers.take_touched() {
            self.model
                .touched(&selectors, &|entry| subscribers.is_wanted(entry));
        }
        self.model.advance(moment(NOW));
        if let Some((snapshot, news)) = self.model.snapshot() {
            self.cache.publish_news(snapshot, &news);
        }
    }

    /// The streams that are woken by `change`, and how many records it looks at.
    fn woken(&mut self, change: impl FnOnce(&mut Self)) -> (Vec<usize>, usize) {
        let visited = visits::during(|| change(self));
        let version = self.cache.snapshot().version;
        let mut woken = Vec::new();
        for (n, stream) in self.streams.iter_mut().enumerate() {
            if futures_util::FutureExt::now_or_never(stream.changed()).is_some() {
                assert_eq!(stream.version(), version);
                woken.push(n);
            }
        }
        (woken, visited)
    }
}

/// Every kind of change of one thing, with the streams that it concerns.
fn changes(node: &mut Node, authority: &Authority) -> Vec<(Vec<usize>, usize)> {
    let revised = AuthorizedEntry {
        revision_number: 1,
        ..of_pod(77)
    };
    vec![
        node.woken(|node| node.apply(vec![revised], &[])),
        node.woken(|node| {
            let request = node.model.start_signing(1).remove(0);
            assert_eq!(request.entry_id, "pod-0", "wanted ones come first");
            let svid = IssuedSvid::new(authority.svid("/pod-0"));
            node.model.stop_signing("pod-0");
            node.model
                .issued(
                    &request,
                    svid,
                    RenewalTime::at(NOW + Duration::HOUR),
                    moment(NOW).passed,
                )
                .unwrap();
            node.work();
        }),
        node.woken(|node| node.apply(Vec::new(), &["sa-5".to_owned()])),
        node.woken(|node| node.apply(vec![of_account(5)], &[])),
        node.woken(|node| {
            node.apply(
                vec![authorized("x", vec![selector("pod-uid:91"), selector("sa:9")])],
                &[],
            )
        }),
        node.woken(|node| {
            node.apply(
                vec![authorized("x", vec![selector("pod-uid:92"), selector("sa:9")])],
                &[],
            )
        }),
        node.woken(|node| node.apply(vec![authorized("y", vec![selector("pod-uid:none")])], &[])),
        node.woken(|node| {
            drop(node.cache.subscribe(workload(33)));
            node.work();
        }),
        node.woken(|node| {
            let snapshot = node.cache.snapshot();
            let ids: Vec<_> = snapshot
                .matching(&workload(42))
                .iter()
                .map(|entry| entry.entry_id.clone())
                .collect();
            assert_eq!(ids, ["pod-42", "sa-4"]);
        }),
    ]
}

#[test]
fn one_change_wakes_those_it_concerns_and_costs_the_same_among_a_thousand_and_ten_thousand() {
    let authority = Authority::new("example.org");
    let few = changes(&mut Node::new(1_000), &authority);
    let many = changes(&mut Node::new(10_000), &authority);
    let woken: Vec<_> = many.iter().map(|(woken, _visited)| woken.clone()).collect();
    let of_five: Vec<usize> = (50..60).collect();
    let expected = [
        vec![77],
        vec![0],
        of_five.clone(),
        of_five,
        vec![91],
        vec![91, 92],
        vec![],
        vec![],
        vec![],
    ];
    assert_eq!(woken, expected);
    for (at, ((one, few), (other, many))) in few.iter().zip(&many).enumerate() {
        assert_eq!(one, other, "change {at}");
        assert!(
            *many <= few + 5 && *many <= 60,
            "change {at} looks at {few} and at {many} records"
        );
    }
}

#[test]
fn everybody_hears_of_the_own_bundle() {
    let authority = Authority::new("example.org");
    let mut node = Node::new(100);
    let (woken, _visited) = node.woken(|node| {
        node.model
            .set_own_bundle(Arc::new(authority.bundle()), moment(NOW).passed);
        node.work();
    });
    assert_eq!(woken.len(), 100);
}

#[test]
fn a_thousand_streams_of_one_workload_are_looked_at_once() {
    let mut node = Node::new(1_000);
    let same: Vec<_> = (0..1_000).map(|_| node.cache.subscribe(workload(7))).collect();
    node.work();
    let (woken, visited) = node.woken(|node| {
        let revised = AuthorizedEntry {
            revision_number: 1,
            ..of_pod(7)
        };
        node.apply(vec![revised], &[]);
    });
    assert_eq!(woken, [7]);
    assert!(visited < 10, "{visited}");
    let version = node.cache.snapshot().version;
    assert!(same.iter().all(|stream| stream.version() == version));
    assert_eq!(node.cache.stream_count(), 2_000);
}
