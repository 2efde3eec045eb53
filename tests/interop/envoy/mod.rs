//! Envoy, unchanged, with certificates and bundles from the real agent.
//!
//! Every Envoy runs under a different path, which is its selector: so they have different identities although
//! one user runs them all. The bootstraps in this folder are valid files for the uses that Envoys have of
//! SPIRE: mTLS in and out, federation, tokens and external authorization; a test replaces ports and paths in them.

mod authorizer;
mod http;
mod refusals;
mod scenarios;
mod soak;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use finial_tests::{Entry, Peer, Program, Stack, StackOptions, free_port, wait_for, wait_until};
use serde_json::Value;

use self::http::get;
use crate::clients::source;

/// For what takes moments when all is well.
const LIMIT: Duration = Duration::from_secs(30);
/// The socket that the bootstraps name.
const SOCKET: &str = "/run/finial/agent/api.sock";

/// A stack and the Envoys that take their secrets from its agent.
#[derive(Debug)]
struct Mesh {
    stack: Stack,
    envoy: PathBuf,
}

/// One running Envoy.
#[derive(Debug)]
struct Envoy {
    program: Program,
    admin: u16,
}

impl Mesh {
    /// `None` when there is no Envoy here.
    fn start(trust_domain: &str) -> Option<Self> {
        let envoy = Peer::find("FINIAL_TEST_ENVOY", "envoy", &["--version"])?.program();
        let stack = Stack::start(StackOptions {
            trust_domain: trust_domain.to_owned(),
            unix_attestor: "discover_workload_path = true workload_size_limit = -1".to_owned(),
            ..StackOptions::default()
        });
        Some(Self { stack, envoy })
    }

    /// Gives the Envoys called `name` the identity `path`, and tells the entry's id.
    fn entry(&self, name: &str, path: &str, flags: &[&str]) -> String {
        let entry = Entry {
            path,
            selectors: vec![format!("unix:path:{}", self.program(name).display())],
            extra: Vec::new(),
        };
        self.stack.create_entry(&entry.with(flags))
    }

    /// Starts an Envoy from a bootstrap of this folder, or from one with a `/` in its name. `ports` and `edits`
    /// replace what the bootstrap says; each must be there.
    fn envoy(&self, name: &str, bootstrap: &str, ports: &[(u16, u16)], edits: &[(&str, &str)]) -> Envoy {
        let program = self.program(name);
        if !program.exists() {
            // The same file by another name; a copy where that cannot be.
            std::fs::hard_link(&self.envoy, &program)
                .or_else(|_other_filesystem| std::fs::copy(&self.envoy, &program).map(drop))
                .expect("a program of its own");
        }
        let mut text = std::fs::read_to_string(file_of(bootstrap)).expect("a bootstrap");
        let admin = free_port();
        let admin_port = |port: u16| format!("port_value: {port}}}}}}}\nstatic_resources");
        let mut admin_ports = [19901, 19902, 19903, 15000].into_iter().map(admin_port);
        let old = admin_ports
            .find(|old| text.contains(old))
            .expect("an admin address");
        let mut replace = |old: &str, new: &str| {
            assert!(text.contains(old), "{bootstrap} has no {old}");
            text = text.replace(old, new);
        };
        replace(&old, &admin_port(admin));
        if bootstrap != "jwt.yaml" {
            replace(SOCKET, &self.stack.agent_socket().display().to_string());
        }
        for (old, new) in ports {
            replace(&format!("port_value: {old}}}"), &format!("port_value: {new}}}"));
        }
        for (old, new) in edits {
            replace(old, new);
        }
        let file = self.stack.dir().join(format!("{name}-{admin}.yaml"));
        std::fs::write(&file, text).expect("the bootstrap is written");
        let mut command = Command::new(program);
        command
            .arg("-c")
            .arg(file)
            .args(["--disable-hot-restart", "--concurrency", "1", "-l", "info"]);
        Envoy {
            program: Program::start(name, &mut command),
            admin,
        }
    }

    fn program(&self, name: &str) -> PathBuf {
        self.stack.dir().join(format!("envoy-{name}"))
    }
}

impl Envoy {
    /// Waits until it serves. It does so without secrets too, once it has waited for them in vain, so the counters
    /// of [`Envoy::trouble`] belong to it.
    fn wait_ready(&mut self) {
        wait_until("Envoy to be live", LIMIT, || {
            assert!(self.program.is_running(), "{}", self.program.lines().join("\n"));
            get(self.admin, "/ready", &[]).0 == 200
        });
    }

    /// Serial numbers and SPIFFE IDs of its certificates.
    fn certificates(&self) -> BTreeMap<String, String> {
        let (status, body) = get(self.admin, "/certs", &[]);
        if status != 200 {
            return BTreeMap::new();
        }
        let certs: Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"));
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        list(&certs["certificates"])
            .iter()
            .flat_map(|certificate| list(&certificate["cert_chain"]))
            .map(|certificate| {
                let id = &certificate["subject_alt_names"][0]["uri"];
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                (text(&certificate["serial_number"]), text(id))
            })
            .collect()
    }

    /// Waits until it has exactly one certificate that is not among `known`, and gives its serial number.
    fn wait_certificate(&self, known: &BTreeSet<String>) -> String {
        wait_for("a new certificate", LIMIT, || {
            let serials: Vec<String> = self.certificates().into_keys().collect();
            match serials.as_slice() {
                [one] if !known.contains(one) => Ok(one.clone()),
                others => anyhow::bail!("{others:?}"),
            }
        })
    }

    /// How many authorities of each trust domain are in its secret of this name.
    fn authorities(&self, secret: &str) -> BTreeMap<String, usize> {
        let (_status, body) = get(self.admin, "/config_dump", &[]);
        let dump: Value = serde_json::from_str(&body).unwrap_or_default();
        let mut found = BTreeMap::new();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let secrets = list(&dump["configs"]);
        let secrets = secrets
            .iter()
            .flat_map(|config| list(&config["dynamic_active_secrets"]));
        for one in secrets.filter(|one| one["name"] == secret) {
            let context = &one["secret"]["validation_context"];
            for domain in list(&context["custom_validator_config"]["typed_config"]["trust_domains"]) {
                let bundle = domain["trust_bundle"]["inline_bytes"]
                    .as_str()
                    .unwrap_or_default();
                let pem = data_encoding::BASE64
                    .decode(bundle.as_bytes())
                    .unwrap_or_default();
                let count = String::from_utf8_lossy(&pem).matches("BEGIN CERTIFICATE").count();
                found.insert(domain["name"].as_str().unwrap_or_default().to_owned(), count);
            }
        }
        found
    }

    /// Waits until its secret of this name has so many authorities of the trust domain.
    fn wait_authorities(&self, secret: &str, trust_domain: &str, count: usize) {
        wait_for("authorities at Envoy", LIMIT, || {
            let found = self.authorities(secret);
            let is_there = found.get(trust_domain).copied().unwrap_or_default() == count;
            is_there.then_some(()).ok_or_else(|| anyhow::anyhow!("{found:?}"))
        });
    }

    /// Secrets that it refused, or that came too late for its start.
    fn trouble(&self) -> Vec<String> {
        let of_stats = self.counters("sds.*(update_rejected|init_fetch_timeout)");
        of_stats
            .into_iter()
            .filter(|line| !line.ends_with(": 0"))
            .collect()
    }

    /// Lines of its statistics whose names match.
    fn counters(&self, filter: &str) -> Vec<String> {
        let filter = filter
            .replace('|', "%7C")
            .replace('(', "%28")
            .replace(')', "%29")
            .replace('*', "%2A");
        let (status, body) = get(self.admin, &format!("/stats?filter={filter}"), &[]);
        assert_eq!(status, 200, "{body}");
        body.lines().map(str::to_owned).collect()
    }
}

fn file_of(bootstrap: &str) -> PathBuf {
    if bootstrap.contains('/') {
        bootstrap.into()
    } else {
        source(&format!("envoy/{bootstrap}")).into()
    }
}

/// The sidecar of the documentation.
fn sample() -> String {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.join("../docs/samples/envoy.yaml").display().to_string()
}
