//! What the agent does when Envoy refuses a secret (NACK): it says so once, does not send the same again, and the next
//! change is taken. And that no certificate is sent which Envoy could not read.

use std::collections::BTreeSet;
use std::process::Command;

use finial_identity::x509::Certificate;
use finial_tests::{Output, Peer, free_port, wait_until};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, SanType};

use super::http::application;
use super::scenarios::{counter, wait_status};
use super::{Envoy, LIMIT, Mesh};

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

/// With each bundle Envoy reads a list of revoked certificates of its own; while that file is missing it refuses every
/// bundle.
fn refuses_a_bundle(api_type: &str) {
    let Some(mesh) = Mesh::start("example.org") else {
        return;
    };
    let (app, tls, plain) = (application(), free_port(), free_port());
    publish_ok(&mesh, &[authority()]);
    let entry = mesh.entry("backend", "/backend", &["-federatesWith", FOREIGN]);
    mesh.entry("frontend", "/frontend", &[]);
    let revoked = mesh.stack.dir().join("revoked.pem");
    std::fs::write(&revoked, "").expect("a list without entries");
    let own_list = format!(
        "combined_validation_context: {{default_validation_context: {{crl: {{filename: {}}}}}, {BUNDLE}}}",
        revoked.display()
    );
    let mut backend = mesh.envoy(
        "backend",
        "federation.yaml",
        &[(18443, tls), (18080, app)],
        &[("api_type: GRPC", api_type), (BUNDLE, &own_list)],
    );
    let mut frontend = mesh.envoy("frontend", "egress.yaml", &[(18443, tls), (19080, plain)], &[]);
    backend.wait_ready();
    frontend.wait_ready();
    wait_status(plain, 200);
    backend.wait_authorities("ALL", "other.test", 1);
    assert_eq!(of_all(&backend, "rejected"), 0);

    std::fs::remove_file(&revoked).expect("the list is there");
    publish_ok(&mesh, &[authority()]);
    wait_until("Envoy to refuse the bundle", LIMIT, || {
        of_all(&backend, "rejected") == 1 && refusals(&mesh).len() == 1
    });
    let said = refusals(&mesh).remove(0);
    for word in ["names=ALL", "node_id=backend", "revoked.pem"] {
        assert!(said.contains(word), "{said}");
    }
    let attempts = of_all(&backend, "attempt");
    let known: BTreeSet<String> = backend.certificates().into_keys().collect();

    // What it had before is in use. A new certificate is taken, and the bundle is not sent again with it.
    rename(&mesh, &entry, "renewed.example.org");
    backend.wait_certificate(&known);
    wait_status(plain, 200);
    assert_eq!(
        of_all(&backend, "attempt"),
        attempts,
        "the bundle was not sent again"
    );
    assert_eq!((of_all(&backend, "rejected"), refusals(&mesh).len()), (1, 1));

    // The next bundle is taken.
    std::fs::write(&revoked, "").expect("the list is back");
    publish_ok(&mesh, &[authority(), authority()]);
    backend.wait_authorities("ALL", "other.test", 2);
    wait_status(plain, 200);
    assert_eq!((of_all(&backend, "rejected"), refusals(&mesh).len()), (1, 1));
}

/// One authority that Envoy cannot read would cost it all bundles, and with them every new certificate of its own.
#[test]
fn an_authority_that_envoy_cannot_read_does_not_get_in() {
    let Some(mesh) = Mesh::start("example.org") else {
        return;
    };
    publish_ok(&mesh, &[authority()]);
    let entry = mesh.entry("backend", "/backend", &["-federatesWith", FOREIGN]);
    let (ports, bootstrap) = ([(18443, free_port()), (18080, application())], "federation.yaml");
    let mut backend = mesh.envoy("backend", bootstrap, &ports, &[]);
    backend.wait_ready();
    backend.wait_authorities("ALL", "other.test", 1);
    for (name, wrong) in unreadable() {
        let refused = publish(&mesh, &[authority(), wrong]);
        assert!(!refused.status.success(), "{name}");
        assert!(
            refused.stderr.contains("certificate"),
            "{name}: {}",
            refused.stderr
        );
    }
    let known = backend.certificates().into_keys().collect();
    rename(&mesh, &entry, "renewed.example.org");
    backend.wait_certificate(&known);
    assert_eq!(backend.authorities("ALL").get("other.test"), Some(&1));
    assert_eq!((of_all(&backend, "rejected"), refusals(&mesh).len()), (0, 0));
}

/// The real Envoy says what it reads, and what is a certificate to us.
#[test]
fn what_envoy_cannot_read_is_no_certificate() {
    let Some(envoy) = Peer::find("FINIAL_TEST_ENVOY", "envoy", &["--version"]) else {
        return;
    };
    let dir = tempfile::tempdir().expect("a directory");
    let reads = |der: &[u8]| {
        let file = dir.path().join("bundle.pem");
        std::fs::write(&file, pem(der)).expect("the bundle is written");
        let bootstrap = dir.path().join("bootstrap.yaml");
        let text = VALIDATOR.replace("BUNDLE", &file.display().to_string());
        std::fs::write(&bootstrap, text).expect("the bootstrap is written");
        let mut command = Command::new(envoy.program());
        command
            .args(["--mode", "validate", "-l", "error", "-c"])
            .arg(&bootstrap);
        let output = Output::of(&mut command);
        let said = output.stderr;
        assert!(
            output.status.success() || said.contains("Failed to load trusted CA"),
            "{said}"
        );
        output.status.success()
    };
    for (name, der) in [("plain", authority()), ("T61String", in_name(0x14, NOT_TEXT))] {
        assert!(reads(&der) && Certificate::parse(&der).is_ok(), "{name}");
    }
    for (name, der) in unreadable() {
        assert!(!reads(&der) && Certificate::parse(&der).is_err(), "{name}");
    }
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
fn publish(mesh: &Mesh, authorities: &[Vec<u8>]) -> Output {
    let file = mesh.stack.dir().join("foreign.pem");
    let text: String = authorities.iter().map(|der| pem(der)).collect();
    std::fs::write(&file, text).expect("the bundle is written");
    let path = file.display().to_string();
    mesh.stack
        .server_cli(&["bundle", "set", "-id", FOREIGN, "-format", "pem", "-path", &path])
}

fn publish_ok(mesh: &Mesh, authorities: &[Vec<u8>]) {
    let done = publish(mesh, authorities);
    assert!(done.status.success(), "{}", done.stderr);
}

fn pem(der: &[u8]) -> String {
    let lines = data_encoding::BASE64.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n")
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

fn authority() -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, NAME);
    params.subject_alt_names = vec![SanType::URI(FOREIGN.try_into().expect("a URI"))];
    let key = KeyPair::generate().expect("a key");
    params.self_signed(&key).expect("a certificate").der().to_vec()
}

/// Certificates but for one thing each that the library in Envoy does not read.
fn unreadable() -> Vec<(&'static str, Vec<u8>)> {
    let plain = authority();
    let content = plain[4..].to_vec();
    let [high, low] = u16::try_from(content.len()).expect("a small one").to_be_bytes();
    let version = |number: u8| replace(&plain, &[0xa0, 3, 2, 1, 2], &[0xa0, 3, 2, 1, number]);
    vec![
        ("UTF8String of no text", in_name(0x0c, NOT_TEXT)),
        (
            "UTF8String with a noncharacter",
            in_name(0x0c, "an authority\u{ffff}of the other trust domain".as_bytes()),
        ),
        (
            "BMPString with a surrogate",
            in_name(0x1e, &[0xd8, 0].repeat(NAME.len() / 2)),
        ),
        (
            "UniversalString beyond Unicode",
            in_name(0x1c, &[0, 0x11, 0, 0].repeat(NAME.len() / 4)),
        ),
        ("text that is constructed", in_name(0x2c, NOT_TEXT)),
        ("version 4", version(3)),
        ("extensions in version 1", version(0)),
        (
            "a length with a leading zero",
            [&[0x30, 0x83, 0, high, low][..], &content].concat(),
        ),
    ]
}

/// An authority whose name is this, and as long as [`NAME`].
fn in_name(tag: u8, content: &[u8]) -> Vec<u8> {
    let tlv = |tag: u8, content: &[u8]| [&[tag, NAME.len() as u8][..], content].concat();
    let (old, new) = (tlv(0x0c, NAME.as_bytes()), tlv(tag, content));
    assert_eq!(old.len(), new.len(), "all lengths stay the same");
    replace(&authority(), &old, &new)
}

/// The same bytes with one part in the place of another, wherever it is.
fn replace(der: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    let mut replaced = der.to_vec();
    for at in 0..=der.len() - old.len() {
        if der[at..].starts_with(old) {
            replaced[at..at + old.len()].copy_from_slice(new);
        }
    }
    assert_ne!(replaced, der, "the part is there");
    replaced
}

const NAME: &str = "an authority of the other trust domains.";
const NOT_TEXT: &[u8] = &[0xff; NAME.len()];
/// How the bootstrap asks for the bundles.
const BUNDLE: &str = "validation_context_sds_secret_config: {name: ALL, sds_config: *agent}";
/// A bootstrap that does nothing but load a bundle.
const VALIDATOR: &str = r#"
static_resources:
  clusters:
  - name: peer
    type: STATIC
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        common_tls_context:
          validation_context:
            custom_validator_config:
              name: envoy.tls.cert_validator.spiffe
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig
                trust_domains: [{name: other.test, trust_bundle: {filename: BUNDLE}}]
"#;
