//! What users do with Envoy and the agent, one test each.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use finial_identity::peer::insecure_server_verifier;
use finial_identity::spiffe_id::SpiffeId;
use finial_tests::{Entry, free_port, wait_for, wait_until};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use serde_json::Value;

use super::http::{application, get};
use super::{Envoy, LIMIT, Mesh, authorizer, sample};

/// Waits for a status through an Envoy and gives the body.
pub fn wait_status(port: u16, status: u16) -> String {
    wait_for(&format!("status {status}"), LIMIT, || {
        let (got, body) = get(port, "/", &[]);
        (got == status)
            .then_some(body.clone())
            .ok_or_else(|| anyhow::anyhow!("{got}: {body}"))
    })
}

fn assert_no_trouble(envoys: &[&Envoy]) {
    for envoy in envoys {
        assert_eq!(envoy.trouble(), [""; 0]);
    }
}

/// The value of the only counter of this name.
pub fn counter(envoy: &Envoy, name: &str) -> u64 {
    let lines = envoy.counters(name);
    let value = lines
        .first()
        .and_then(|line| line.rsplit(' ').next()?.parse().ok());
    value.unwrap_or_else(|| panic!("no counter {name}: {lines:?}"))
}

#[test]
fn two_envoys_talk_by_mutual_tls_and_others_are_refused() {
    let Some(mesh) = Mesh::start("example.org") else {
        return;
    };
    let (app, tls, plain, wrong) = (application(), free_port(), free_port(), free_port());
    // Before there is an entry: the streams wait, and nobody has to come back later.
    let mut backend = mesh.envoy("backend", "ingress.yaml", &[(18443, tls), (18080, app)], &[]);
    let mut frontend = mesh.envoy("frontend", "egress.yaml", &[(18443, tls), (19080, plain)], &[]);
    wait_until("the Envoys to ask for their certificates", LIMIT, || {
        let lines = mesh_lines(&mesh);
        ["backend", "frontend"]
            .iter()
            .all(|node| lines.contains(&format!("node_id={node}")))
    });
    assert_eq!(get(backend.admin, "/ready", &[]).0, 503);
    let since = Instant::now();
    mesh.entry("backend", "/backend", &[]);
    mesh.entry("frontend", "/frontend", &[]);
    backend.wait_ready();
    frontend.wait_ready();
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    assert_no_trouble(&[&backend, &frontend]);

    let body = wait_status(plain, 200);
    let forwarded = serde_json::from_str::<Value>(&body).unwrap_or_default();
    let forwarded = forwarded["x-forwarded-client-cert"].as_str().unwrap_or_default();
    for side in [
        "By=spiffe://example.org/backend",
        "URI=spiffe://example.org/frontend",
    ] {
        assert!(forwarded.contains(side), "{forwarded}");
    }
    let ids: Vec<String> = frontend.certificates().into_values().collect();
    assert_eq!(ids, ["spiffe://example.org/frontend"]);

    // A client that expects another server.
    let mut strict = mesh.envoy(
        "frontend",
        "egress.yaml",
        &[(18443, tls), (19080, wrong)],
        &[(
            "spiffe://example.org/backend",
            "spiffe://example.org/somebody-else",
        )],
    );
    strict.wait_ready();
    wait_status(wrong, 503);
    assert!(counter(&strict, "cluster.backend.ssl.fail_verify_san") > 0);

    // A client of the trust domain that the backend does not expect.
    let stranger_port = free_port();
    mesh.entry("stranger", "/stranger", &[]);
    let ports = [(18443, tls), (19080, stranger_port)];
    let mut stranger = mesh.envoy("stranger", "egress.yaml", &ports, &[]);
    stranger.wait_ready();
    stranger.wait_certificate(&BTreeSet::new());
    wait_status(stranger_port, 503);
    assert!(counter(&backend, "listener.*fail_verify_san") > 0);

    assert!(!is_answered_without_certificate(tls));
    assert_eq!(get(plain, "/", &[]).0, 200);
    assert_no_trouble(&[&backend, &frontend, &strict, &stranger]);
}

fn mesh_lines(mesh: &Mesh) -> String {
    mesh.stack.agent_lines().join("\n")
}

/// Whether the backend answers a request by a client that shows no certificate.
fn is_answered_without_certificate(port: u16) -> bool {
    let backend = SpiffeId::parse("spiffe://example.org/backend").expect("an ID");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(insecure_server_verifier(backend))
        .with_no_client_auth();
    let name = ServerName::try_from("backend").expect("a name");
    let mut tls = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut tcp = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    tcp.set_read_timeout(Some(Duration::from_secs(5)))
        .expect("a time limit");
    let mut stream = rustls::Stream::new(&mut tls, &mut tcp);
    let mut answer = [0; 64];
    let sent = stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n");
    let outcome = sent.and_then(|()| stream.read(&mut answer));
    matches!(outcome, Ok(1..))
}

#[test]
fn the_sidecar_of_the_documentation_works_in_both_directions() {
    let Some(mesh) = Mesh::start("example.org") else {
        return;
    };
    let (front_tls, back_tls) = (free_port(), free_port());
    let (front_out, back_out) = (free_port(), free_port());
    mesh.entry("frontend", "/frontend", &[]);
    mesh.entry("backend", "/backend", &[]);
    let start = |name: &str, own: u16, other: u16, out: u16| {
        let ports = [(15443, own), (25443, other), (15001, out), (8080, application())];
        mesh.envoy(
            name,
            &sample(),
            &ports,
            &[("address: 0.0.0.0", "address: 127.0.0.1")],
        )
    };
    let mut frontend = start("frontend", front_tls, back_tls, front_out);
    let mut backend = start("backend", back_tls, front_tls, back_out);
    frontend.wait_ready();
    backend.wait_ready();
    assert!(wait_status(front_out, 200).contains("URI=spiffe://example.org/frontend"));
    assert!(wait_status(back_out, 200).contains("URI=spiffe://example.org/backend"));
    assert_no_trouble(&[&frontend, &backend]);
}

#[test]
fn peers_of_a_federated_trust_domain_are_let_in_for_as_long_as_it_is_federated() {
    let Some(here) = Mesh::start("example.org") else {
        return;
    };
    let Some(there) = Mesh::start("other.test") else {
        return;
    };
    for (from, to) in [(&here, &there), (&there, &here)] {
        let bundle = from.stack.dir().join("published.json");
        let text = from
            .stack
            .server_cli_ok(&["bundle", "show", "-format", "spiffe"])
            .stdout;
        std::fs::write(&bundle, text).expect("the bundle is written");
        let id = format!("spiffe://{}", from.stack.trust_domain());
        let path = bundle.display().to_string();
        to.stack
            .server_cli_ok(&["bundle", "set", "-id", &id, "-format", "spiffe", "-path", &path]);
    }
    let (app, tls) = (application(), free_port());
    let backend_entry = here.entry("backend", "/backend", &[]);
    here.entry("frontend", "/frontend", &[]);
    here.entry("stranger", "/stranger", &[]);
    there.entry("visitor", "/visitor", &["-federatesWith", "spiffe://example.org"]);
    let mut backend = here.envoy("backend", "federation.yaml", &[(18443, tls), (18080, app)], &[]);
    backend.wait_ready();
    let client = |mesh: &Mesh, name: &str, edits: &[(&str, &str)]| {
        let port = free_port();
        let mut envoy = mesh.envoy(name, "egress.yaml", &[(18443, tls), (19080, port)], edits);
        envoy.wait_ready();
        (envoy, port)
    };
    let (_frontend, frontend) = client(&here, "frontend", &[]);
    let (_stranger, stranger) = client(&here, "stranger", &[]);
    // The visitor knows the bundle of the backend's trust domain by its name.
    let (_visitor, visitor) = client(
        &there,
        "visitor",
        &[("name: ROOTCA", "name: \"spiffe://example.org\"")],
    );
    wait_status(frontend, 200);
    assert!(wait_status(stranger, 403).contains("RBAC: access denied"));
    wait_status(visitor, 503);
    backend.wait_authorities("ALL", "other.test", 0);

    let federate = |with: &[&str]| {
        let parent = here.stack.agent_id();
        let selector = format!("unix:path:{}", here.program("backend").display());
        let mut args = vec![
            "entry",
            "update",
            "-entryID",
            &backend_entry,
            "-parentID",
            &parent,
        ];
        args.extend([
            "-spiffeID",
            "spiffe://example.org/backend",
            "-selector",
            &selector,
        ]);
        args.extend(with);
        here.stack.server_cli_ok(&args);
    };
    federate(&["-federatesWith", "spiffe://other.test"]);
    backend.wait_authorities("ALL", "other.test", 1);
    wait_status(visitor, 200);
    wait_status(frontend, 200);
    federate(&[]);
    backend.wait_authorities("ALL", "other.test", 0);
    wait_status(visitor, 503);
    wait_status(frontend, 200);
    assert_no_trouble(&[&backend]);
}

#[test]
fn envoy_checks_jwt_svids_and_their_subject() {
    let Some(mesh) = Mesh::start("example.org") else {
        return;
    };
    let (app, port) = (application(), free_port());
    // Tokens are for the user that runs the test.
    for path in ["/frontend", "/stranger"] {
        mesh.stack.create_entry(&Entry::for_me(path));
        mesh.stack.wait_identity(path);
    }
    let bundle = mesh
        .stack
        .server_cli_ok(&["bundle", "show", "-format", "spiffe"])
        .stdout;
    let bundle: Value = serde_json::from_str(&bundle).expect("a bundle document");
    let sample = std::fs::read_to_string(super::file_of("jwt.yaml")).expect("a bootstrap");
    let key = sample
        .split_once("inline_string: '")
        .and_then(|(_before, rest)| rest.split_once('\''))
        .map(|(key, _after)| key.to_owned())
        .expect("a sample key");
    let edits = [(key.as_str(), bundle.to_string())];
    let edits = edits.each_ref().map(|(old, new)| (*old, new.as_str()));
    let mut api = mesh.envoy("api", "jwt.yaml", &[(18081, port), (18080, app)], &edits);
    api.wait_ready();
    let token = |path: &str, audience: &str| {
        let id = mesh.stack.id(path);
        let args = [
            "api",
            "fetch",
            "jwt",
            "-audience",
            audience,
            "-spiffeID",
            &id,
            "-output",
            "json",
        ];
        let answer = mesh.stack.agent_cli_ok(&args).json();
        let token = answer[0]["svids"][0]["svid"].as_str().map(str::to_owned);
        token.unwrap_or_else(|| panic!("no token in {answer}"))
    };
    let status = |token: &str| get(port, "/", &[("authorization", &format!("Bearer {token}"))]).0;
    let audience = "spiffe://example.org/api";
    assert_eq!(status(&token("/frontend", audience)), 200);
    assert_eq!(status(&token("/stranger", audience)), 403, "another subject");
    assert_eq!(status(&token("/frontend", "another-audience")), 403);
    assert_eq!(get(port, "/", &[]).0, 401, "no token");
    let good = token("/frontend", audience);
    let (head, signature) = good.rsplit_once('.').expect("three parts");
    let forged: String = signature.chars().rev().collect();
    assert_eq!(status(&format!("{head}.{forged}")), 401, "another signature");
}

#[test]
fn an_external_authorizer_learns_both_spiffe_ids() {
    let Some(mesh) = Mesh::start("example.org") else {
        return;
    };
    let (app, tls, front, other) = (application(), free_port(), free_port(), free_port());
    for name in ["backend", "frontend", "stranger"] {
        mesh.entry(name, &format!("/{name}"), &[]);
    }
    let socket = mesh.stack.dir().join("authorizer.sock");
    let asked = authorizer::start(&socket, "spiffe://example.org/frontend");
    let path = socket.display().to_string();
    let edits = [("/run/authorizer.sock", path.as_str())];
    let mut backend = mesh.envoy("backend", "ext_authz.yaml", &[(18443, tls), (18080, app)], &edits);
    backend.wait_ready();
    let mut clients = [("frontend", front), ("stranger", other)]
        .map(|(name, port)| mesh.envoy(name, "egress.yaml", &[(18443, tls), (19080, port)], &[]));
    for client in &mut clients {
        client.wait_ready();
    }
    wait_status(front, 200);
    let request = asked.recv_timeout(LIMIT).expect("the authorizer was asked");
    let attributes = request.attributes.expect("attributes");
    let source = attributes.source.expect("a source");
    assert_eq!(source.principal, "spiffe://example.org/frontend");
    assert!(
        source.certificate.contains("BEGIN%20CERTIFICATE"),
        "{}",
        source.certificate
    );
    let destination = attributes.destination.expect("a destination");
    assert_eq!(destination.principal, "spiffe://example.org/backend");
    wait_status(other, 403);
}

#[test]
fn envoy_keeps_a_certificate_whose_entry_is_gone_and_takes_the_next_one() {
    let Some(mesh) = Mesh::start("example.org") else {
        return;
    };
    let (app, tls, plain) = (application(), free_port(), free_port());
    let entry = mesh.entry("backend", "/backend", &[]);
    mesh.entry("frontend", "/frontend", &[]);
    let mut backend = mesh.envoy("backend", "ingress.yaml", &[(18443, tls), (18080, app)], &[]);
    let mut frontend = mesh.envoy("frontend", "egress.yaml", &[(18443, tls), (19080, plain)], &[]);
    backend.wait_ready();
    frontend.wait_ready();
    wait_status(plain, 200);
    let first = backend.wait_certificate(&BTreeSet::new());
    let attempts = counter(&backend, "sds.spiffe.*backend.update_attempt");
    mesh.stack.delete_entry(&entry);
    wait_until("a warning in the agent's log", LIMIT, || {
        mesh_lines(&mesh).contains("secrets that an Envoy has are there no longer")
    });
    assert_eq!(
        get(plain, "/", &[]).0,
        200,
        "there is no way to take a secret back"
    );
    mesh.entry("backend", "/backend", &[]);
    backend.wait_certificate(&BTreeSet::from([first]));
    assert_eq!(get(plain, "/", &[]).0, 200);
    let after = counter(&backend, "sds.spiffe.*backend.update_attempt");
    assert!(after <= attempts + 1, "the stream stayed: {attempts} {after}");
    assert_no_trouble(&[&backend, &frontend]);
}

#[test]
fn incremental_discovery_works_and_survives_a_restart_of_the_agent() {
    let Some(mut mesh) = Mesh::start("example.org") else {
        return;
    };
    let (app, tls, plain) = (application(), free_port(), free_port());
    let entry = mesh.entry("backend", "/backend", &[]);
    mesh.entry("frontend", "/frontend", &[]);
    let delta = [("api_type: GRPC", "api_type: DELTA_GRPC")];
    let mut backend = mesh.envoy("backend", "ingress.yaml", &[(18443, tls), (18080, app)], &delta);
    let mut frontend = mesh.envoy("frontend", "egress.yaml", &[(18443, tls), (19080, plain)], &delta);
    backend.wait_ready();
    frontend.wait_ready();
    wait_status(plain, 200);
    let before = backend.wait_certificate(&BTreeSet::new());
    mesh.stack.agent().kill_hard();
    mesh.stack.start_agent(&[]);
    let after = backend.wait_certificate(&BTreeSet::from([before]));
    assert_eq!(get(plain, "/", &[]).0, 200);

    mesh.stack.delete_entry(&entry);
    wait_until("Envoy to hear that its secret is gone", LIMIT, || {
        mesh_lines(&mesh).contains("secrets that an Envoy has are there no longer")
    });
    assert_eq!(get(plain, "/", &[]).0, 200, "Envoy keeps it nevertheless");
    mesh.entry("backend", "/backend", &[]);
    backend.wait_certificate(&BTreeSet::from([after]));
    wait_status(plain, 200);
    assert_no_trouble(&[&backend, &frontend]);
}
