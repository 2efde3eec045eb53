//! Two Envoys under load while the agent is killed and authorities rotate: no request may fail.

use std::collections::BTreeSet;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use finial_tests::{free_port, wait_until};
use serde_json::Value;

use super::http::{application, get};
use super::{Envoy, LIMIT, Mesh};

/// How long, in seconds; a longer run has more requests and more certificates.
const SECONDS: &str = "FINIAL_TEST_SOAK_SECONDS";
/// Of the SVIDs, in seconds.
const LIFETIME: u64 = 10;
const CLIENTS: usize = 4;
/// Between two requests of a client. Each one makes a handshake of its own.
const PACE: Duration = Duration::from_millis(20);

/// One of those who send requests all the time.
#[derive(Debug)]
struct Client {
    stop: Sender<()>,
    load: JoinHandle<Load>,
}

/// What it did.
#[derive(Debug, Default)]
struct Load {
    requests: u64,
    slowest: Duration,
    failures: Vec<String>,
}

impl Client {
    fn start(port: u16, started: Instant) -> Self {
        let (stop, stopped) = channel::<()>();
        let load = std::thread::spawn(move || {
            let mut load = Load::default();
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(PACE) {
                let sent = Instant::now();
                let (status, body) = get(port, "/", &[]);
                load.requests += 1;
                load.slowest = load.slowest.max(sent.elapsed());
                if status != 200 {
                    load.failures
                        .push(format!("{:?}: {status} {body}", started.elapsed()));
                }
            }
            load
        });
        Self { stop, load }
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    KillAgent,
    Rotate,
}

/// What happens meanwhile, at equal distances.
const EVENTS: [Event; 7] = [
    Event::KillAgent,
    Event::KillAgent,
    Event::Rotate,
    Event::KillAgent,
    Event::KillAgent,
    Event::Rotate,
    Event::KillAgent,
];

#[test]
fn no_request_fails_while_the_agent_is_killed_and_authorities_rotate() {
    let Some(mut mesh) = Mesh::start("example.org") else {
        return;
    };
    let seconds: u64 = std::env::var(SECONDS).map_or(60, |text| text.parse().expect("seconds"));
    let (app, tls, plain) = (application(), free_port(), free_port());
    let lifetime = LIFETIME.to_string();
    mesh.entry("backend", "/backend", &["-x509SVIDTTL", &lifetime]);
    mesh.entry("frontend", "/frontend", &["-x509SVIDTTL", &lifetime]);
    let mut backend = mesh.envoy("backend", "ingress.yaml", &[(18443, tls), (18080, app)], &[]);
    let mut frontend = mesh.envoy("frontend", "egress.yaml", &[(18443, tls), (19080, plain)], &[]);
    backend.wait_ready();
    frontend.wait_ready();
    wait_until("the first answer", LIMIT, || get(plain, "/", &[]).0 == 200);

    let started = Instant::now();
    let clients: Vec<_> = (0..CLIENTS).map(|_| Client::start(plain, started)).collect();
    let (mut kills, mut rotations) = (0, 0);
    let mut serials = [BTreeSet::new(), BTreeSet::new()];
    let slot = Duration::from_secs(seconds) / u32::try_from(EVENTS.len() + 1).expect("few events");
    for number in 1..=EVENTS.len() + 1 {
        let moment = slot * u32::try_from(number).expect("few events");
        wait_until("the next event", Duration::from_secs(seconds) + LIMIT, || {
            for (seen, envoy) in serials.iter_mut().zip([&backend, &frontend]) {
                seen.extend(envoy.certificates().into_keys());
            }
            started.elapsed() >= moment
        });
        match EVENTS.get(number - 1) {
            Some(Event::KillAgent) => {
                mesh.stack.agent().kill_hard();
                mesh.stack.start_agent(&[]);
                kills += 1;
            }
            Some(Event::Rotate) => {
                rotate(
                    &mesh,
                    &[(&backend, "spiffe://example.org"), (&frontend, "ROOTCA")],
                );
                rotations += 1;
            }
            None => {}
        }
        // Certificates of before the event are used up, or the next one would hide what this one broke.
        for envoy in [&backend, &frontend] {
            let known = envoy.certificates().into_keys().collect();
            envoy.wait_certificate(&known);
        }
    }
    let (mut requests, mut slowest, mut failures) = (0, Duration::ZERO, Vec::new());
    for client in clients {
        drop(client.stop);
        let done = client.load.join().expect("the load ends");
        requests += done.requests;
        slowest = slowest.max(done.slowest);
        failures.extend(done.failures);
    }
    let [of_backend, of_frontend] = serials.map(|seen| seen.len());
    println!(
        "soak: {:?}, {requests} requests, {} failed, slowest {slowest:?}; {kills} kills, {rotations} rotations; \
         {of_backend} and {of_frontend} certificates",
        started.elapsed(),
        failures.len()
    );
    assert!(
        failures.is_empty(),
        "{} of {requests} failed: {failures:#?}",
        failures.len()
    );
    let renewals = usize::try_from(seconds / LIFETIME).expect("few renewals");
    assert!(of_backend >= renewals && of_frontend >= renewals);
    for envoy in [&backend, &frontend] {
        assert_eq!(envoy.trouble(), [""; 0]);
    }
}

/// The next X.509 authority takes over, and the former one is forgotten once nothing depends on it.
fn rotate(mesh: &Mesh, envoys: &[(&Envoy, &str)]) {
    let authority = |state: Value, field: &str| {
        let id = state[field]["authority_id"].as_str().map(str::to_owned);
        id.unwrap_or_else(|| panic!("no {field} in {state}"))
    };
    let x509 = |args: &[&str]| {
        let args = [&["localauthority", "x509"], args, &["-output", "json"]].concat();
        mesh.stack.server_cli_ok(&args).json()
    };
    let old = authority(x509(&["show"]), "active");
    let new = authority(x509(&["prepare"]), "prepared_authority");
    for (envoy, bundle) in envoys {
        envoy.wait_authorities(bundle, "example.org", 2);
    }
    let before: Vec<BTreeSet<String>> = envoys
        .iter()
        .map(|(envoy, _bundle)| envoy.certificates().into_keys().collect())
        .collect();
    x509(&["activate", "-authorityID", &new]);
    x509(&["taint", "-authorityID", &old]);
    for ((envoy, _bundle), known) in envoys.iter().zip(&before) {
        // The second new one was certainly asked for after the new authority became active.
        let mut known = known.clone();
        known.insert(envoy.wait_certificate(&known));
        envoy.wait_certificate(&known);
    }
    x509(&["revoke", "-authorityID", &old]);
    for (envoy, bundle) in envoys {
        envoy.wait_authorities(bundle, "example.org", 1);
    }
}
