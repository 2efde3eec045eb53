//! What names mean, and what secrets look like.

use finial_identity::key::PrivateKey;
use finial_identity::spiffe_id::TrustDomain;
use finial_identity::x509::Certificate;
use tonic::Code;

use super::*;
use crate::svids::CachedEntry;

fn secret(world: &World, name: &str) -> SecretMessage {
    let found = found(world, &asked(&[name]));
    let secret = decode(&found[name].resource(name));
    assert_eq!(secret.name, name, "under the name that was asked");
    secret
}

fn names(found: &Found) -> Vec<&str> {
    found.keys().map(String::as_str).collect()
}

/// Of two identities, `a` federates with `foreign`.
fn federated(world: &World, foreign: &Foreign) {
    let a = CachedEntry {
        federates_with: vec![foreign.name.clone()],
        ..world.entry("a")
    };
    world.publish(|snapshot| {
        snapshot.entries = [a, world.entry("b")].map(Arc::new).into_iter().collect();
        snapshot.federated = foreign.federated();
    });
}

#[test]
fn a_certificate_is_a_pem_chain_leaf_first_with_its_pkcs8_key() {
    let world = World::new();
    world.publish_entries(vec![world.entry("a"), world.entry("b")]);
    for (name, id) in [("default", A), (A, A), (B, B)] {
        let (chain, key) = certificate(&secret(&world, name));
        let chain = Certificate::from_pem(&chain).unwrap();
        assert_eq!(chain[0].uri_sans(), [id], "{name}");
        assert!(key.starts_with("-----BEGIN PRIVATE KEY-----\n"));
        let key = PrivateKey::from_pem(&key).unwrap();
        assert_eq!(key.public_key(), chain[0].public_key());
    }
}

#[test]
fn a_bundle_names_the_bare_trust_domain_and_holds_its_authorities() {
    let world = World::new();
    let foreign = Foreign::new("a-foreign.test");
    federated(&world, &foreign);
    let own = ("example.org".to_owned(), world.own_bundle().to_pem());
    let theirs = ("a-foreign.test".to_owned(), foreign.bundle.to_pem());
    for (name, expected) in [
        ("ROOTCA", vec![own.clone()]),
        (OWN, vec![own.clone()]),
        ("spiffe://a-foreign.test", vec![theirs.clone()]),
        ("ALL", vec![theirs, own]), // Ordered by name.
    ] {
        assert_eq!(trust_domains(&secret(&world, name)), expected, "{name}");
    }
}

#[test]
fn names_can_be_chosen_and_the_usual_ones_mean_nothing_then() {
    let mut world = World::new();
    world.publish_entries(vec![world.entry("a")]);
    world.sds = SdsSettings {
        default_svid_name: "mine".to_owned(),
        default_bundle_name: "roots".to_owned(),
        default_all_bundles_name: "world".to_owned(),
        ..SdsSettings::default()
    };
    let given = found(
        &world,
        &asked(&["mine", "roots", "world", "default", "ROOTCA", "ALL"]),
    );
    assert_eq!(names(&given), ["mine", "roots", "world"]);
}

#[test]
fn all_names_of_one_request_are_answered_and_unknown_ones_left_out() {
    let world = World::new();
    world.publish_entries(vec![world.entry("a")]);
    let given = found(
        &world,
        &asked(&[
            "default",
            A,
            OWN,
            "ROOTCA",
            "ALL",
            B,
            "x",
            "",
            "spiffe://other.test",
        ]),
    );
    assert_eq!(names(&given), ["ALL", "ROOTCA", "default", OWN, A]);
}

#[test]
fn no_name_asks_for_every_identity_and_every_bundle_once() {
    let world = World::new();
    let foreign = Foreign::new("z.test");
    federated(&world, &foreign);
    world.publish(|snapshot| {
        let twin = CachedEntry {
            spiffe_id: snapshot.entry("a").unwrap().spiffe_id.clone(),
            ..world.unissued("c")
        };
        let entries = snapshot.entries.iter().cloned().chain([Arc::new(twin)]);
        snapshot.entries = entries.collect();
    });
    assert_eq!(names(&found(&world, &asked(&[]))), [OWN, A, B, "spiffe://z.test"]);
}

#[test]
fn identities_of_others_and_bundles_that_no_identity_federates_with_are_not_given() {
    let world = World::new();
    let foreign = Foreign::new("z.test");
    let other = CachedEntry {
        selectors: vec!["unix:uid:1001".parse_selector()],
        ..world.entry("b")
    };
    world.publish_entries(vec![world.entry("a"), other]);
    world.publish(|snapshot| snapshot.federated = foreign.federated());
    let given = found(&world, &asked(&[A, B, "spiffe://z.test", "ALL"]));
    assert_eq!(names(&given), ["ALL", A]);
    assert_eq!(trust_domains(&decode(&given["ALL"].resource("ALL"))).len(), 1);
}

trait ParseSelector {
    fn parse_selector(&self) -> finial_identity::selector::Selector;
}

impl ParseSelector for str {
    fn parse_selector(&self) -> finial_identity::selector::Selector {
        finial_identity::selector::Selector::parse(self).unwrap()
    }
}

#[test]
fn a_caller_without_identity_gets_the_own_bundle_alone() {
    let world = World::new();
    let given = found(&world, &asked(&[]));
    assert_eq!(names(&given), [OWN]);
    assert_eq!(names(&found(&world, &asked(&["default", "ALL"]))), ["ALL"]);
}

#[test]
fn default_is_the_first_identity_and_no_other_while_that_has_no_svid() {
    let world = World::new();
    world.publish_entries(vec![world.unissued("a"), world.entry("b")]);
    let given = found(&world, &asked(&["default", A, B]));
    assert_eq!(names(&given), [B]);
    let gone = |name: &str| secrets::is_gone(name, &view(&world), &world.sds);
    assert!(!gone("default") && !gone(A), "they are about to come");
    assert!(gone("spiffe://example.org/c") && gone("spiffe://z.test") && gone("x"));
    assert!(!gone(OWN) && !gone("ROOTCA") && !gone("ALL"));
    world.publish(|snapshot| snapshot.synced_at = None);
    let gone = |name: &str| secrets::is_gone(name, &view(&world), &world.sds);
    assert!(!gone("spiffe://example.org/c"), "not known before the first sync");
}

#[test]
fn hints_do_not_hide_identities_from_envoy() {
    let world = World::new();
    let hinted = |id: &str| CachedEntry {
        hint: "internal".to_owned(),
        ..world.entry(id)
    };
    world.publish_entries(vec![hinted("a"), hinted("b")]);
    assert_eq!(view(&world).entries().len(), 1);
    assert_eq!(names(&found(&world, &asked(&[A, B]))), [A, B]);
}

#[test]
fn a_trust_domain_without_authorities_is_left_out_and_an_empty_list_is_never_sent() {
    let world = World::new();
    let mut foreign = Foreign::new("z.test");
    foreign.bundle.x509_authorities.clear();
    federated(&world, &foreign);
    let given = found(&world, &asked(&["ALL", "spiffe://z.test"]));
    assert_eq!(names(&given), ["ALL"]);
    assert_eq!(trust_domains(&decode(&given["ALL"].resource("ALL"))).len(), 1);
    world.publish(|snapshot| {
        let empty = finial_identity::bundle::Bundle::new(TrustDomain::parse("example.org").unwrap());
        snapshot.own_bundle = Arc::new(empty);
    });
    assert!(found(&world, &asked(&["ALL", "ROOTCA", OWN])).is_empty());
}

#[test]
fn without_the_spiffe_validator_bundles_are_plain_authorities_of_one_trust_domain() {
    let world = World::new();
    let foreign = Foreign::new("z.test");
    federated(&world, &foreign);
    let plain =
        |names: &[&str]| secrets::find(&asked(names), &view(&world), &world.sds, Validator::TrustedCa);
    for (name, bundle) in [
        ("ROOTCA", world.own_bundle()),
        ("spiffe://z.test", foreign.bundle.clone()),
    ] {
        let given = plain(&[name]).unwrap();
        let secret = decode(&given[name].resource(name));
        assert_eq!(inline(context(&secret).trusted_ca.as_ref()), bundle.to_pem());
        assert_eq!(context(&secret).custom_validator_config, None);
    }
    // All authorities in one list would let each trust domain speak for the others.
    assert_eq!(plain(&["ALL"]).unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(plain(&[]).unwrap().len(), 4);
}

#[test]
fn versions_follow_the_content_and_nothing_else() {
    let world = World::new();
    let a = world.entry("a");
    world.publish_entries(vec![a.clone()]);
    let before = found(&world, &asked(&[A, "default", "ROOTCA"]));
    assert_eq!(before[A].version, before["default"].version);
    world.publish_entries(vec![a, world.entry("b")]);
    let after = found(&world, &asked(&[A, "default", "ROOTCA"]));
    assert_eq!(secrets::version_of(&before), secrets::version_of(&after));
    world.publish_entries(vec![world.entry("a")]);
    let renewed = found(&world, &asked(&[A, "default", "ROOTCA"]));
    assert_ne!(before[A].version, renewed[A].version);
    assert_eq!(before["ROOTCA"].version, renewed["ROOTCA"].version);
    let plain = secrets::find(
        &asked(&["ROOTCA"]),
        &view(&world),
        &world.sds,
        Validator::TrustedCa,
    );
    assert_ne!(plain.unwrap()["ROOTCA"].version, renewed["ROOTCA"].version);
}

#[test]
fn only_names_of_certificates_have_them_issued() {
    let settings = SdsSettings::default();
    for (names, wants) in [
        (&["ROOTCA", "ALL", OWN, "x"][..], false),
        (&["ROOTCA", "default"], true),
        (&[A], true),
        (&[], true),
    ] {
        assert_eq!(secrets::wants_svids(&asked(names), &settings), wants, "{names:?}");
    }
}
