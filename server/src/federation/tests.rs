use finial_identity::bundle::{Bundle, MAX_FOREIGN_DOCUMENT_BYTES};
use finial_identity::federation::{EndpointProfile, EndpointUrl, RefreshState};
use finial_identity::process::TaskSet;
use finial_identity::spiffe_id::SpiffeId;
use time::Duration as Span;

use super::testing::{Authority, Endpoint, domain, ok, redirect, store, web};
use super::*;

const PATH: &str = "/spire/server";

/// A federation that runs, and what it needs.
struct World {
    store: Arc<dyn Store>,
    declared: watch::Sender<DeclaredSets>,
    federation: Arc<Federation>,
    tasks: TaskSet,
}

impl World {
    async fn new(configured: Vec<Relationship>) -> Self {
        let store = store().await;
        let (declared, receiver) = watch::channel(DeclaredSets::new());
        let federation = Federation::new(FederationParts {
            store: Arc::clone(&store),
            clock: Clock::system(),
            configured,
            declared: receiver,
            wit_svids: false,
        });
        Self {
            store,
            declared,
            federation,
            tasks: TaskSet::new(),
        }
    }

    async fn run(&mut self) {
        let stop = self.tasks.stop_signal();
        self.tasks
            .spawn("federation", Arc::clone(&self.federation).run(stop));
        while self.federation.turn.lock().await.is_stopped {
            tokio::task::yield_now().await;
        }
    }

    async fn create(&self, relationship: Relationship, bundle: Option<Bundle>) {
        let created = self.store.create_relationship(relationship, bundle).await;
        assert!(created.unwrap().is_some());
        self.federation.reload().await.unwrap();
    }

    async fn held(&self) -> Option<Bundle> {
        let stored = self.store.bundle(&domain("a.test")).await.unwrap();
        stored.map(|stored| Bundle::clone(&stored.bundle))
    }

    /// What the next refresh says, or nothing when it goes well.
    async fn refresh(&self) -> String {
        let refreshed = self.federation.refresh(&domain("a.test")).await;
        refreshed
            .expect("a relationship")
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    }

    /// Waits until the state is so.
    async fn until(&self, is_so: impl FnMut(&RefreshStates) -> bool) {
        self.federation.states().wait_for(is_so).await.unwrap();
    }
}

fn spiffe(url: &str, id: &str) -> Relationship {
    Relationship {
        trust_domain: domain("a.test"),
        endpoint_url: EndpointUrl::parse(url).unwrap(),
        profile: EndpointProfile::HttpsSpiffe(SpiffeId::parse(id).unwrap()),
    }
}

/// An endpoint of `a.test` that serves its own bundle, and a federation with it.
async fn self_serving() -> (World, Authority, Endpoint) {
    let authority = Authority::new("a.test");
    let endpoint = Endpoint::start(authority.svid(PATH, Span::hours(1))).await;
    endpoint.serve(&authority.bundle(5));
    let mut world = World::new(Vec::new()).await;
    world.run().await;
    let relationship = spiffe(&endpoint.url("/"), "spiffe://a.test/spire/server");
    world.create(relationship, Some(authority.bundle(1))).await;
    (world, authority, endpoint)
}

fn sequence(world: &Option<Bundle>) -> u64 {
    world.as_ref().map_or(0, |bundle| bundle.sequence_number)
}

#[tokio::test]
async fn a_bundle_is_fetched_as_soon_as_there_is_a_relationship_and_follows_the_endpoints_authorities() {
    let (world, old, endpoint) = self_serving().await;
    world
        .until(|states| states.values().any(|state| state.sequence_number == 5))
        .await;
    assert_eq!(world.held().await, Some(old.bundle(5)));
    // The next authority is published, then used, then the first one goes.
    let new = Authority::new("a.test");
    let mut both = old.bundle(6);
    both.x509_authorities.extend(new.bundle(0).x509_authorities);
    endpoint.serve(&both);
    assert_eq!(world.refresh().await, "");
    endpoint.present(new.svid(PATH, Span::hours(1)));
    endpoint.serve(&new.bundle(7));
    assert_eq!(world.refresh().await, "");
    assert_eq!(world.held().await, Some(new.bundle(7)));
    // Whoever comes with the first one now is a stranger.
    endpoint.present(old.svid(PATH, Span::hours(1)));
    let refused = world.refresh().await;
    assert!(refused.contains("authenticate 127.0.0.1"), "{refused}");
}

#[tokio::test]
async fn whatever_an_endpoint_does_wrong_is_told_and_the_good_bundle_stays() {
    let (world, authority, endpoint) = self_serving().await;
    assert_eq!(world.refresh().await, "");
    let good = world.held().await;
    assert_eq!(sequence(&good), 5);
    let oversized = " ".repeat(MAX_FOREIGN_DOCUMENT_BYTES + 1);
    let unusable = r#"{"keys":[{"kty":"XYZ","use":"x509-svid"}],"spiffe_sequence":9}"#;
    for (answer, part) in [
        (ok(&oversized), "more than 524288 bytes"),
        (ok("<html>"), "malformed JSON"),
        (ok("{}"), "no valid member \"keys\""),
        (ok(r#"{"keys":[]}"#), "bundle is empty"),
        (ok(unusable), "no authority that can be used"),
        (
            ok(&authority.bundle(4).to_spiffe_json()),
            "older than the stored one: sequence number 4, stored 5",
        ),
        (
            redirect(302, "http://127.0.0.1/"),
            "redirects to where no endpoint can be: bundle endpoint URL must use the https",
        ),
        (redirect(307, "https://u:secret@127.0.0.1/"), "user info"),
        (redirect(302, "/around"), "redirects more than 5 times"),
        (
            b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
            "without a location",
        ),
        (
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
            "answered 404",
        ),
        (b"220 mail.a.test ESMTP\r\n".to_vec(), "HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{".to_vec(), ""),
    ] {
        endpoint.say(answer);
        let error = world.refresh().await;
        assert!(
            !error.is_empty() && error.contains(part) && !error.contains("secret"),
            "{part}: {error}"
        );
        assert_eq!(world.held().await, good, "{part}");
        let trouble = world.federation.states().borrow()[&domain("a.test")]
            .trouble
            .clone();
        assert_eq!(trouble.as_deref(), Some(error.as_str()));
    }
    endpoint.serve(&authority.bundle(6));
    assert_eq!(world.refresh().await, "");
    assert_eq!(sequence(&world.held().await), 6);
    assert_eq!(
        world.federation.states().borrow()[&domain("a.test")].trouble,
        None
    );
}

#[tokio::test]
async fn only_the_endpoint_with_exactly_the_id_and_a_valid_svid_is_believed() {
    let (world, authority, endpoint) = self_serving().await;
    assert_eq!(world.refresh().await, "");
    endpoint.serve(&authority.bundle(9));
    let stranger = Authority::new("a.test");
    let other_domain = Authority::new("b.test");
    world.store.put_bundle(other_domain.bundle(1)).await.unwrap();
    for (svid, part) in [
        (
            authority.svid("/spire/other", Span::hours(1)),
            "unexpected peer: spiffe://a.test/spire/other",
        ),
        (authority.svid(PATH, -Span::hours(1)), "xpired"),
        (stranger.svid(PATH, Span::hours(1)), "authenticate"),
        (other_domain.svid(PATH, Span::hours(1)), "b.test"),
    ] {
        endpoint.present(svid);
        let error = world.refresh().await;
        assert!(error.contains(part), "{part}: {error}");
        assert_eq!(sequence(&world.held().await), 5, "{part}");
    }
    // The profile is never changed for the other one: no root of this machine vouches for an SVID.
    let relationship = web("a.test", &endpoint.url("/"));
    endpoint.present(authority.svid(PATH, Span::hours(1)));
    let patch = Box::new(move |_| relationship);
    world
        .store
        .update_relationship(&domain("a.test"), patch, None)
        .await
        .unwrap();
    let error = world.refresh().await;
    assert!(
        error.contains("https_spiffe") || error.contains("no root certificates"),
        "{error}"
    );
    assert_eq!(sequence(&world.held().await), 5);
}

#[tokio::test]
async fn an_endpoint_of_another_trust_domain_is_authenticated_by_that_ones_bundle() {
    let authority = Authority::new("a.test");
    let host = Authority::new("host.test");
    let endpoint = Endpoint::start(host.svid("/bundles", Span::hours(1))).await;
    endpoint.serve(&authority.bundle(3));
    let mut world = World::new(Vec::new()).await;
    world.run().await;
    world
        .create(
            spiffe(&endpoint.url("/moved"), "spiffe://host.test/bundles"),
            None,
        )
        .await;
    let error = world.refresh().await;
    assert!(
        error.contains("no X.509 authority of host.test is stored"),
        "{error}"
    );
    world.store.put_bundle(host.bundle(1)).await.unwrap();
    assert_eq!(world.refresh().await, "");
    assert_eq!(world.held().await, Some(authority.bundle(3)));
    assert_eq!(endpoint.paths(), ["/moved", "/"], "the redirect was followed");
    // It is not remembered.
    assert_eq!(world.refresh().await, "");
    assert_eq!(endpoint.paths()[2..], ["/moved", "/"]);
}

#[tokio::test]
async fn a_bundle_that_an_operator_sets_counts_until_the_next_refresh() {
    let (world, authority, endpoint) = self_serving().await;
    assert_eq!(world.refresh().await, "");
    // The peer lost its state and counts again.
    endpoint.serve(&authority.bundle(2));
    assert!(world.refresh().await.contains("older"));
    world.store.put_bundle(authority.bundle(0)).await.unwrap();
    assert_eq!(world.refresh().await, "");
    assert_eq!(sequence(&world.held().await), 2);
}

#[tokio::test]
async fn a_call_that_names_a_trust_domain_hastens_what_it_concerns() {
    let authority = Authority::new("a.test");
    let host = Authority::new("host.test");
    let endpoint = Endpoint::start(host.svid(PATH, Span::hours(1))).await;
    let mut served = authority.bundle(3);
    served.refresh_hint = 86_400;
    endpoint.serve(&served);
    let mut world = World::new(Vec::new()).await;
    world.run().await;
    world
        .create(
            spiffe(&endpoint.url("/"), "spiffe://host.test/spire/server"),
            None,
        )
        .await;
    let is_tried = |state: &RefreshState| state.trouble.is_some();
    world.until(|states| states.values().any(is_tried)).await;
    // What authenticates the endpoint comes, then a newer bundle.
    world.store.put_bundle(host.bundle(1)).await.unwrap();
    for (named, number) in [("host.test", 3), ("a.test", 4)] {
        served.sequence_number = number;
        endpoint.serve(&served);
        world.federation.changed(&[domain("other.test")]).await.unwrap();
        world.federation.changed(&[domain(named)]).await.unwrap();
        let is_there = |state: &RefreshState| state.sequence_number == number;
        let soon = world.until(|states| states.values().any(is_there));
        let soon = tokio::time::timeout(Duration::from_secs(10), soon).await;
        assert!(soon.is_ok(), "{named}");
    }
}

#[tokio::test]
async fn a_relationship_that_ends_is_refreshed_no_more_and_its_bundle_stays() {
    let (world, _authority, endpoint) = self_serving().await;
    assert_eq!(world.refresh().await, "");
    world.store.delete_relationship(&domain("a.test")).await.unwrap();
    assert!(world.federation.refresh(&domain("a.test")).await.is_none());
    assert!(world.federation.states().borrow().is_empty());
    assert_eq!(sequence(&world.held().await), 5);
    let asked = endpoint.paths().len();
    // A task that still ran would be due: it was created again and asks at once.
    let relationship = spiffe(&endpoint.url("/"), "spiffe://a.test/spire/server");
    world.create(relationship, None).await;
    world
        .until(|states| states.values().any(|state| state.refreshed_at.is_some()))
        .await;
    assert_eq!(endpoint.paths().len(), asked + 1);
}

#[tokio::test]
async fn what_objects_declare_counts_where_nobody_else_does_and_begins_with_their_bundle() {
    let authority = Authority::new("a.test");
    let endpoint = Endpoint::start(authority.svid(PATH, Span::hours(1))).await;
    endpoint.serve(&authority.bundle(5));
    let mut world = World::new(Vec::new()).await;
    world.run().await;
    let object = Declared {
        relationship: spiffe(&endpoint.url("/object"), "spiffe://a.test/spire/server"),
        bundle: Some(Arc::new(authority.bundle(1))),
        origin: "ClusterFederatedTrustDomain a of cluster demo".into(),
        created_at: 0,
    };
    world
        .declared
        .send_replace([("demo".into(), vec![object.clone()])].into());
    let by_object = Origin::Object(Arc::clone(&object.origin));
    world
        .until(|states| {
            let state = states.get(&domain("a.test"));
            state.is_some_and(|state| state.origin == by_object && state.refreshed_at.is_some())
        })
        .await;
    assert_eq!(sequence(&world.held().await), 5);
    assert_eq!(world.federation.declared(&domain("a.test")), Some(object));
    // An operator's takes its place, and the object's comes back when it goes.
    let operators = spiffe(&endpoint.url("/operator"), "spiffe://a.test/spire/server");
    world.create(operators, None).await;
    world
        .until(|states| states.values().all(|state| state.origin == Origin::Api))
        .await;
    assert_eq!(world.refresh().await, "");
    assert_eq!(endpoint.paths().last().map(String::as_str), Some("/operator"));
    world.store.delete_relationship(&domain("a.test")).await.unwrap();
    assert_eq!(world.refresh().await, "");
    assert_eq!(endpoint.paths().last().map(String::as_str), Some("/object"));
    // With the object the relationship goes.
    world.declared.send_replace(DeclaredSets::new());
    world.until(RefreshStates::is_empty).await;
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_does_not_answer_is_left_and_asked_ever_less() {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("https://127.0.0.1:{}/", listener.local_addr().unwrap().port());
    let authority = Authority::new("a.test");
    let mut world = World::new(vec![spiffe(&url, "spiffe://a.test/spire/server")]).await;
    world.store.put_bundle(authority.bundle(1)).await.unwrap();
    world.run().await;
    world
        .until(|states| states.values().any(|state| state.trouble.is_some()))
        .await;
    let state = world.federation.states().borrow()[&domain("a.test")].clone();
    assert_eq!(state.trouble.as_deref(), Some("no answer within 10 s"));
    assert_eq!((state.origin, state.sequence_number), (Origin::Configuration, 1));
}
