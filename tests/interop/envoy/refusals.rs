//! What the agent does when Envoy refuses a secret (NACK): it says so once, does not send the same again, and the next
//! change is taken.

use std::collections::BTreeSet;

use finial_identity::x509::Certificate;
use finial_tests::wait_until;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, SanType};

use super::http::application;
use super::scenarios::{counter, wait_status};
use super::{Envoy, LIMIT, Mesh, free_port};

const FOREIGN: &str = "spiffe://other.test";
/// The agent's line about a refusal.
const REFUSED: &str = "Envoy refused a secret";

#[test]
fn a_bundle_that_envoy_cannot_load_is_refused_once_and_the_next_one_is_taken() {
    refuses_a_bundle("api_type: GRPC");
}

#[test]
fn by_delta_too_a_bundle_that_envoy_cannot_load_is_refused_once_and_the_next_one_is_taken() {
    refuses_a_bundle("api_type: DELTA_GRPC");
}

/// The foreign trust domain publishes an authority that is a certificate to everybody but Envoy.
fn refuses_a_bundle(api_type: &str) {
    let Some(mesh) = Mesh::start("example.org") else {
        return;
    };
    let (app, tls, plain) = (application(), free_port(), free_port());
    publish(&mesh, &[authority()]);
    let entry = mesh.entry("backend", "/backend", &["-federatesWith", FOREIGN]);
    mesh.entry("frontend", "/frontend", &[]);
    let mut backend = mesh.envoy(
        "backend",
        "federation.yaml",
        &[(18443, tls), (18080, app)],
        &[("api_type: GRPC", api_type)],
    );
    let mut frontend = mesh.envoy("frontend", "egress.yaml", &[(18443, tls), (19080, plain)], &[]);
    backend.wait_ready();
    frontend.wait_ready();
    wait_status(plain, 200);
    backend.wait_authorities("ALL", "other.test", 1);
    assert_eq!(of_all(&backend, "rejected"), 0);

    publish(&mesh, &[unloadable_authority()]);
    wait_until("Envoy to refuse the bundle", LIMIT, || {
        of_all(&backend, "rejected") == 1 && refusals(&mesh).len() == 1
    });
    let said = refusals(&mesh).remove(0);
    for word in ["names=ALL", "node_id=backend", "other.test"] {
        assert!(said.contains(word), "{said}");
    }
    let attempts = of_all(&backend, "attempt");
    let known: BTreeSet<String> = backend.certificates().into_keys().collect();

    // Envoy puts together what it was given last: with that bundle it takes no new certificate either. One more
    // refusal, of another secret, and none of the bundle, which is not sent again.
    rename(&mesh, &entry, "renewed.example.org");
    wait_until("Envoy to refuse the certificate", LIMIT, || {
        refusals(&mesh).len() == 2
    });
    assert!(refusals(&mesh)[1].contains("names=default"));
    assert_eq!(
        of_all(&backend, "attempt"),
        attempts,
        "the bundle was not sent again"
    );
    assert_eq!(of_all(&backend, "rejected"), 1);
    // What it had before is in use.
    let certificates: BTreeSet<String> = backend.certificates().into_keys().collect();
    assert_eq!(certificates, known);
    wait_status(plain, 200);

    // The next bundle is taken, and the certificate with it.
    publish(&mesh, &[authority(), authority()]);
    backend.wait_authorities("ALL", "other.test", 2);
    backend.wait_certificate(&known);
    wait_status(plain, 200);
    assert_eq!((of_all(&backend, "rejected"), refusals(&mesh).len()), (1, 2));
    let known = backend.certificates().into_keys().collect();
    rename(&mesh, &entry, "again.example.org");
    backend.wait_certificate(&known);
    assert_eq!(refusals(&mesh).len(), 2);
}

/// An Envoy that is configured to take a certificate for authorities refuses every one, and each once.
#[test]
fn an_envoy_that_asks_for_the_wrong_kind_of_secret_refuses_each_version_once() {
    let Some(mesh) = Mesh::start("example.org") else {
        return;
    };
    let entry = mesh.entry("frontend", "/frontend", &[]);
    let ports = || [(18443, free_port()), (19080, free_port())];
    let wrong = [("name: ROOTCA", "name: default")];
    let mut envoy = mesh.envoy("frontend", "egress.yaml", &ports(), &wrong);
    envoy.wait_ready();
    for version in 1..=3 {
        wait_until("Envoy to refuse the certificate", LIMIT, || {
            refusals(&mesh).len() == version
        });
        rename(&mesh, &entry, &format!("version-{version}.example.org"));
    }
    wait_until("Envoy to refuse the last certificate", LIMIT, || {
        refusals(&mesh).len() == 4
    });
    assert_eq!(rejected(&envoy), 4);
    // Configured as it should be it has the certificate, and what was refused was never in use.
    assert_eq!(envoy.certificates().len(), 0);
    let mut right = mesh.envoy("frontend", "egress.yaml", &ports(), &[]);
    right.wait_ready();
    right.wait_certificate(&BTreeSet::new());
    assert_eq!(
        (rejected(&envoy), rejected(&right), refusals(&mesh).len()),
        (4, 0, 4)
    );
}

/// How many secrets this Envoy has refused.
fn rejected(envoy: &Envoy) -> u64 {
    let lines = envoy.counters("sds.*update_rejected");
    let values = lines.iter().filter_map(|line| line.rsplit(' ').next());
    values.map(|value| value.parse::<u64>().expect("a count")).sum()
}

/// The counter of what Envoy did with its secret `ALL`.
fn of_all(envoy: &Envoy, what: &str) -> u64 {
    counter(envoy, &format!("ALL.update_{what}"))
}

fn refusals(mesh: &Mesh) -> Vec<String> {
    let mut lines = mesh.stack.agent_lines();
    lines.retain(|line| line.contains(REFUSED));
    lines
}

/// Gives the foreign trust domain these authorities.
fn publish(mesh: &Mesh, authorities: &[Vec<u8>]) {
    let pem = authorities.iter().map(|der| {
        let certificate = Certificate::parse(der).expect("a certificate to us");
        certificate.to_pem()
    });
    let file = mesh.stack.dir().join("foreign.pem");
    std::fs::write(&file, pem.collect::<String>()).expect("the bundle is written");
    let path = file.display().to_string();
    mesh.stack
        .server_cli_ok(&["bundle", "set", "-id", FOREIGN, "-format", "pem", "-path", &path]);
}

/// Gives the entry another DNS name, hence another certificate.
fn rename(mesh: &Mesh, entry: &str, dns_name: &str) {
    let shown = mesh
        .stack
        .server_cli_ok(&["entry", "show", "-entryID", entry, "-output", "json"])
        .json();
    let entry_of = &shown["entries"][0];
    let id = entry_of["spiffe_id"]["path"].as_str().expect("a path");
    let selector = entry_of["selectors"][0]["value"].as_str().expect("a selector");
    let (id, selector) = (mesh.stack.id(id), format!("unix:{selector}"));
    let parent = mesh.stack.agent_id();
    let mut args = vec!["entry", "update", "-entryID", entry, "-parentID", &parent];
    args.extend(["-spiffeID", &id, "-selector", &selector, "-dns", dns_name]);
    let federates = entry_of["federates_with"]
        .as_array()
        .is_some_and(|with| !with.is_empty());
    if federates {
        args.extend(["-federatesWith", FOREIGN]);
    }
    mesh.stack.server_cli_ok(&args);
}

const NAME: &str = "an authority of the other trust domain";

fn authority() -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, NAME);
    params.subject_alt_names = vec![SanType::URI(FOREIGN.try_into().expect("a URI"))];
    let key = KeyPair::generate().expect("a key");
    params.self_signed(&key).expect("a certificate").der().to_vec()
}

/// Its names say that they are UTF-8 and are not: the library in Envoy reads no certificate with such a name.
fn unloadable_authority() -> Vec<u8> {
    let mut der = authority();
    let mut replaced = 0;
    for at in 0..der.len() - NAME.len() {
        if der[at..].starts_with(NAME.as_bytes()) {
            der[at..at + NAME.len()].fill(0xff);
            replaced += 1;
        }
    }
    assert_eq!(replaced, 2, "issuer and subject");
    der
}
