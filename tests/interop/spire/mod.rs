//! The original server, agent and commands, where `SPIRE_BIN_DIR` names a folder with `spire-server` and `spire-agent`.
//! They are on no package registry, so these tests are skipped without the folder even where all peers are required.

mod bench;
mod federation;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use finial_identity::key::PrivateKey;
use finial_identity::x509::Certificate;
use finial_tests::{Entry, Output, Program, Stack, StackOptions, finial, free_port, wait_until};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(60);

/// Where the original programs are; says loudly when they are not.
fn binaries() -> Option<PathBuf> {
    let dir = std::env::var_os("SPIRE_BIN_DIR").map(PathBuf::from);
    let found = dir.filter(|dir| dir.join("spire-server").is_file() && dir.join("spire-agent").is_file());
    if found.is_none() {
        finial_tests::skipped("SPIRE_BIN_DIR names no folder with spire-server and spire-agent");
    }
    found
}

/// Runs a program to its end; it must exit 0. Gives what it printed.
fn run(program: &Path, args: &[&str]) -> String {
    let output = Output::of(Command::new(program).args(args));
    output.ok(format!("{} {args:?}", program.display())).stdout
}

/// The original server and our agent.
struct Mixed {
    dir: TempDir,
    binaries: PathBuf,
    agent: Option<Program>,
    _server: Program,
}

impl Mixed {
    /// `server` and `node_attestor` are lines inside the server's block and the attestor's data at the server.
    fn start(binaries: PathBuf, server: &str, attestor: &str, at_server: &str) -> (Self, u16) {
        let dir = TempDir::with_prefix("finial-spire-").expect("a temporary directory");
        let port = free_port();
        let root = dir.path().display();
        let config = format!(
            r#"server {{
  trust_domain = "example.org"
  bind_address = "127.0.0.1"
  bind_port = {port}
  socket_path = "{root}/server.sock"
  data_dir = "{root}/server"
  log_level = "DEBUG"
  {server}
}}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "{root}/server/datastore.sqlite3" }} }}
  KeyManager "memory" {{ plugin_data {{}} }}
  NodeAttestor "{attestor}" {{ plugin_data {{ {at_server} }} }}
}}
"#
        );
        std::fs::write(dir.path().join("server.conf"), config).expect("server.conf is written");
        let mut command = Command::new(binaries.join("spire-server"));
        command
            .args(["run", "-config"])
            .arg(dir.path().join("server.conf"));
        let server = Program::start("spire-server", &mut command);
        let mixed = Self {
            dir,
            binaries,
            agent: None,
            _server: server,
        };
        let socket = mixed.server_socket();
        let healthy = || {
            let mut command = Command::new(mixed.binaries.join("spire-server"));
            let output = Output::of(command.args(["healthcheck", "-socketPath", &socket]));
            output.status.success()
        };
        wait_until("the original server to be healthy", LIMIT, healthy);
        let bundle = mixed.server(&["bundle", "show", "-format", "pem"]);
        std::fs::write(mixed.dir.path().join("bundle.pem"), bundle).expect("the bundle is written");
        (mixed, port)
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn server_socket(&self) -> String {
        self.path("server.sock")
    }

    /// A command of the original server.
    fn server(&self, args: &[&str]) -> String {
        let socket = self.server_socket();
        let args: Vec<&str> = args.iter().copied().chain(["-socketPath", &socket]).collect();
        run(&self.binaries.join("spire-server"), &args)
    }

    /// A command of ours, on our agent's socket.
    fn agent(&self, args: &[&str]) -> String {
        let socket = self.path("agent.sock");
        let all: Vec<&str> = std::iter::once("agent")
            .chain(args.iter().copied())
            .chain(["-socketPath", &socket])
            .collect();
        finial_tests::run(all).stdout
    }

    fn start_agent(&mut self, port: u16, attestor: &str, data: &str, args: &[&str]) {
        let root = self.dir.path().display();
        let config = format!(
            r#"agent {{
  trust_domain = "example.org"
  server_address = "127.0.0.1"
  server_port = {port}
  socket_path = "{root}/agent.sock"
  data_dir = "{root}/agent"
  trust_bundle_path = "{root}/bundle.pem"
  log_level = "DEBUG"
  experimental {{ sync_interval = "1s" }}
}}
plugins {{
  KeyManager "disk" {{ plugin_data {{ directory = "{root}/agent" }} }}
  NodeAttestor "{attestor}" {{ plugin_data {{ {data} }} }}
  WorkloadAttestor "unix" {{ plugin_data {{}} }}
}}
"#
        );
        std::fs::write(self.dir.path().join("agent.conf"), config).expect("agent.conf is written");
        let mut command = Command::new(finial());
        command
            .args(["agent", "run", "-config"])
            .arg(self.dir.path().join("agent.conf"))
            .args(args);
        self.agent = Some(Program::start("agent", &mut command));
        wait_until("our agent to be healthy", LIMIT, || {
            self.agent(&["healthcheck"]).contains("Agent is healthy")
        });
    }

    /// The one attested agent, as the original server tells it.
    fn attested(&self) -> serde_json::Value {
        let text = self.server(&["agent", "list", "-output", "json"]);
        let list: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(list["agents"].as_array().map(Vec::len), Some(1), "{text}");
        list["agents"][0].clone()
    }

    fn agent_id(&self) -> String {
        let path = self.attested()["id"]["path"].as_str().expect("a path").to_owned();
        format!("spiffe://example.org{path}")
    }

    fn create_entry(&self, path: &str) {
        let (id, parent) = (format!("spiffe://example.org{path}"), self.agent_id());
        let selector = format!("unix:uid:{}", rustix::process::getuid().as_raw());
        self.server(&[
            "entry",
            "create",
            "-spiffeID",
            &id,
            "-parentID",
            &parent,
            "-selector",
            &selector,
        ]);
    }

    fn wait_identity(&self, path: &str) {
        let id = format!("spiffe://example.org{path}");
        wait_until(&format!("the identity {id}"), LIMIT, || {
            self.agent(&["api", "fetch", "x509"]).contains(&id)
        });
    }

    /// The leaf that a workload of this user gets now.
    fn leaf(&self) -> Certificate {
        self.fetch("svid.0.pem").remove(0)
    }

    /// The authorities that it is told to trust now.
    fn authorities(&self) -> Vec<Certificate> {
        self.fetch("bundle.0.pem")
    }

    fn fetch(&self, file: &str) -> Vec<Certificate> {
        let dir = self.path("written");
        std::fs::create_dir_all(&dir).expect("a directory");
        self.agent(&["api", "fetch", "x509", "-write", &dir]);
        let text = std::fs::read_to_string(Path::new(&dir).join(file)).expect("a file");
        Certificate::from_pem(&text).expect("PEM")
    }
}

#[test]
fn our_agent_joins_the_original_server_polls_renews_and_follows_its_authorities() {
    let Some(binaries) = binaries() else { return };
    let server = "agent_ttl = \"40s\" default_x509_svid_ttl = \"10m\" ca_ttl = \"1h\"";
    let (mut mixed, port) = Mixed::start(binaries, server, "join_token", "");
    let token = mixed.server(&["token", "generate", "-output", "json"]);
    let token: serde_json::Value = serde_json::from_str(&token).expect("JSON");
    let token = token["value"].as_str().expect("a token").to_owned();
    mixed.start_agent(port, "join_token", "", &["-joinToken", &token]);
    mixed.create_entry("/web");
    mixed.wait_identity("/web");
    let first_serial = mixed.attested()["x509svid_serial_number"].clone();

    // A JWT-SVID from there validates here.
    let jwt = mixed.agent(&["api", "fetch", "jwt", "-audience", "test", "-output", "json"]);
    let jwt: serde_json::Value = serde_json::from_str(&jwt).expect("JSON");
    let token = jwt[0]["svids"][0]["svid"].as_str().expect("a token").to_owned();
    let valid = mixed.agent(&["api", "validate", "jwt", "-audience", "test", "-svid", &token]);
    assert!(valid.contains("SVID is valid."), "{valid}");

    // Half of 40 seconds later the agent has renewed.
    wait_until("the agent to renew", LIMIT, || {
        mixed.attested()["x509svid_serial_number"] != first_serial
    });

    // Another authority takes over; what the tainted one signed is replaced long before it is due.
    let before = mixed.leaf();
    let prepared = mixed.server(&["localauthority", "x509", "prepare", "-output", "json"]);
    let prepared: serde_json::Value = serde_json::from_str(&prepared).expect("JSON");
    let id = prepared["prepared_authority"]["authority_id"]
        .as_str()
        .expect("an id")
        .to_owned();
    mixed.server(&["localauthority", "x509", "activate", "-authorityID", &id]);
    let shown = mixed.server(&["localauthority", "x509", "show", "-output", "json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    let old = shown["old"]["authority_id"]
        .as_str()
        .expect("an old authority")
        .to_owned();
    mixed.server(&["localauthority", "x509", "taint", "-authorityID", &old]);
    wait_until("the tainted SVID to be replaced", LIMIT, || {
        let leaf = mixed.leaf();
        leaf != before && leaf.authority_key_id() != before.authority_key_id()
    });
    // The agent's own SVID has to be from the new authority before the old one may go.
    let tainted_serial = mixed.attested()["x509svid_serial_number"].clone();
    wait_until("the agent to leave the tainted authority", LIMIT, || {
        mixed.attested()["x509svid_serial_number"] != tainted_serial
    });
    let has_old = || {
        let authorities = mixed.authorities();
        let mut keys = authorities.iter().map(Certificate::subject_key_id);
        keys.any(|key| key == before.authority_key_id())
    };
    assert!(has_old(), "a tainted authority is still trusted");
    mixed.server(&["localauthority", "x509", "revoke", "-authorityID", &old]);
    wait_until("workloads to trust the revoked authority no more", LIMIT, || {
        !has_old()
    });
    mixed.create_entry("/after");
    mixed.wait_identity("/after");
}

fn pem(der: &[u8]) -> String {
    Certificate::parse(der).expect("a certificate").to_pem()
}

#[test]
fn our_agent_attests_to_the_original_server_with_a_certificate() {
    let Some(binaries) = binaries() else { return };
    let pki = TempDir::with_prefix("finial-pop-").expect("a temporary directory");
    let path = |name: &str| pki.path().join(name).display().to_string();
    let mut ca = CertificateParams::new(Vec::<String>::new()).expect("parameters");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    ca.distinguished_name.push(DnType::CommonName, "nodes");
    let ca_key = KeyPair::generate().expect("a key");
    let ca_certificate = ca.self_signed(&ca_key).expect("a certificate");
    let issuer = Issuer::from_params(&ca, &ca_key);
    std::fs::write(path("ca.pem"), pem(ca_certificate.der())).expect("a file");
    for (name, algorithm) in [
        ("p256", &rcgen::PKCS_ECDSA_P256_SHA256),
        ("p384", &rcgen::PKCS_ECDSA_P384_SHA384),
    ] {
        let mut node = CertificateParams::new(Vec::<String>::new()).expect("parameters");
        node.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        node.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate_for(algorithm).expect("a key");
        let certificate = node.signed_by(&key, &issuer).expect("a certificate");
        std::fs::write(path("node.pem"), pem(certificate.der())).expect("a file");
        let key = PrivateKey::from_pkcs8_der(&key.serialize_der()).expect("a key");
        std::fs::write(path("node.key"), key.to_pem().as_bytes()).expect("a file");
        let at_server = format!("ca_bundle_path = \"{}\"", path("ca.pem"));
        let (mut mixed, port) = Mixed::start(binaries.clone(), "agent_ttl = \"40s\"", "x509pop", &at_server);
        let data = format!(
            "private_key_path = \"{}\" certificate_path = \"{}\"",
            path("node.key"),
            path("node.pem")
        );
        mixed.start_agent(port, "x509pop", &data, &[]);
        assert!(
            mixed.agent_id().contains("/spire/agent/x509pop/"),
            "{}",
            mixed.agent_id()
        );
        mixed.create_entry("/web");
        mixed.wait_identity("/web");
        // It attests again rather than renew.
        let first = mixed.attested()["x509svid_serial_number"].clone();
        wait_until("the agent to attest again", LIMIT, || {
            mixed.attested()["x509svid_serial_number"] != first
        });
        mixed.create_entry("/later");
        mixed.wait_identity("/later");
    }
}

#[test]
fn the_original_commands_work_on_our_socket() {
    let Some(binaries) = binaries() else { return };
    let stack = Stack::start(StackOptions::default());
    stack.create_entry(&Entry::for_me("/web"));
    stack.wait_identity("/web");
    let socket = stack.agent_socket().display().to_string();
    let agent = |args: &[&str]| {
        let args: Vec<&str> = args.iter().copied().chain(["-socketPath", &socket]).collect();
        run(&binaries.join("spire-agent"), &args)
    };
    assert!(agent(&["healthcheck"]).contains("Agent is healthy"));
    let fetched = agent(&["api", "fetch", "x509"]);
    assert!(
        fetched.contains("Received 1 svid") && fetched.contains(&stack.id("/web")),
        "{fetched}"
    );
    let fetched = agent(&["api", "fetch", "jwt", "-audience", "test", "-output", "json"]);
    let fetched: serde_json::Value = serde_json::from_str(&fetched).expect("JSON");
    let token = fetched[0]["svids"][0]["svid"]
        .as_str()
        .expect("a token")
        .to_owned();
    let valid = agent(&["api", "validate", "jwt", "-audience", "test", "-svid", &token]);
    assert!(valid.contains("SVID is valid."), "{valid}");

    let mut command = Command::new(binaries.join("spire-agent"));
    command.args(["api", "watch", "-socketPath", &socket]);
    let mut watch = Program::start("spire-agent api watch", &mut command);
    watch.wait_for_line(&stack.id("/web"), LIMIT);
    stack.create_entry(&Entry::for_me("/second"));
    watch.wait_for_line(&stack.id("/second"), LIMIT);

    // The original server's commands on our server's socket.
    let socket = stack.server_socket().display().to_string();
    let shown = run(
        &binaries.join("spire-server"),
        &["entry", "show", "-socketPath", &socket],
    );
    assert!(
        shown.contains("Found 2 entries") && shown.contains(&stack.id("/second")),
        "{shown}"
    );
    run(
        &binaries.join("spire-server"),
        &["healthcheck", "-socketPath", &socket],
    );
}

#[test]
fn the_original_agent_joins_our_server() {
    let Some(binaries) = binaries() else { return };
    let stack = Stack::server_only(StackOptions::default());
    stack.write_bundle();
    let dir = stack.dir().display().to_string();
    let config = format!(
        r#"agent {{
  trust_domain = "example.org"
  server_address = "127.0.0.1"
  server_port = {port}
  socket_path = "{dir}/public/agent.sock"
  data_dir = "{dir}/original"
  trust_bundle_path = "{dir}/bundle.pem"
}}
plugins {{
  KeyManager "memory" {{ plugin_data {{}} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  WorkloadAttestor "unix" {{ plugin_data {{}} }}
}}
"#,
        port = stack.port()
    );
    let path = stack.dir().join("original.conf");
    std::fs::write(&path, config).expect("the configuration is written");
    let token = stack.join_token();
    let mut command = Command::new(binaries.join("spire-agent"));
    command.args(["run", "-joinToken", &token, "-config"]).arg(&path);
    let _agent = Program::start("spire-agent", &mut command);
    let listed = || {
        stack
            .server_cli(&["agent", "list"])
            .stdout
            .contains("Found 1 attested agent")
    };
    wait_until("the original agent to attest", LIMIT, listed);
    stack.create_entry(&Entry::for_me("/web"));
    let socket = format!("{dir}/public/agent.sock");
    wait_until("the original agent to serve", LIMIT, || {
        let fetched = finial_tests::run(["agent", "api", "fetch", "x509", "-socketPath", &socket]);
        fetched.stdout.contains(&stack.id("/web"))
    });
}
