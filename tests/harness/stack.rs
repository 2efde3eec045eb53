//! A server and an agent in one temporary directory, run as an operator would run them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::program::{Output, Program, finial, free_port, run, run_ok};
use crate::wait::wait_until;

const READY: Duration = Duration::from_secs(60);

/// What differs from the defaults; every string is a piece of configuration in HCL.
#[derive(Debug, Clone)]
pub struct StackOptions {
    pub trust_domain: String,
    pub x509_svid_ttl: String,
    pub jwt_svid_ttl: String,
    pub ca_ttl: String,
    /// Lines inside `server { }`.
    pub server: String,
    /// Lines inside `agent { }`.
    pub agent: String,
    /// Blocks beside `server { }`.
    pub server_blocks: String,
    /// Blocks beside `agent { }`.
    pub agent_blocks: String,
    /// `plugin_data` of the `unix` workload attestor.
    pub unix_attestor: String,
    /// `plugin_data_file` of it instead.
    pub unix_attestor_file: Option<PathBuf>,
    /// The agent's `NodeAttestor` block.
    pub node_attestor: String,
    /// Lines inside the agent's `plugins { }`.
    pub agent_plugins: String,
    /// Variables of the server's environment.
    pub server_env: Vec<(String, String)>,
    /// Variables of the agent's environment.
    pub agent_env: Vec<(String, String)>,
}

impl Default for StackOptions {
    fn default() -> Self {
        StackOptions {
            trust_domain: "example.org".into(),
            x509_svid_ttl: "1h".into(),
            jwt_svid_ttl: "5m".into(),
            ca_ttl: "24h".into(),
            server: String::new(),
            agent: String::new(),
            server_blocks: String::new(),
            agent_blocks: String::new(),
            unix_attestor: String::new(),
            unix_attestor_file: None,
            node_attestor: r#"NodeAttestor "join_token" { plugin_data {} }"#.into(),
            agent_plugins: String::new(),
            server_env: Vec::new(),
            agent_env: Vec::new(),
        }
    }
}

impl StackOptions {
    /// `server.conf` of a server that keeps everything in a directory and listens on a port of loopback.
    pub fn server_configuration(&self, dir: &Path, port: u16) -> String {
        let dir = dir.display();
        format!(
            r#"server {{
  trust_domain = "{td}"
  bind_address = "127.0.0.1"
  bind_port = {port}
  socket_path = "{dir}/server.sock"
  data_dir = "{dir}/server"
  ca_ttl = "{ca_ttl}"
  default_x509_svid_ttl = "{x509}"
  default_jwt_svid_ttl = "{jwt}"
  log_level = "DEBUG"
  ratelimit {{ attestation = false }}
  {extra}
}}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "{dir}/server/datastore.sqlite3" }} }}
  KeyManager "disk" {{ plugin_data {{ keys_path = "{dir}/server/keys.json" }} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
}}
{blocks}
"#,
            blocks = self.server_blocks,
            td = self.trust_domain,
            ca_ttl = self.ca_ttl,
            x509 = self.x509_svid_ttl,
            jwt = self.jwt_svid_ttl,
            extra = self.server,
        )
    }

    /// `agent.conf` of an agent of that server, in the same directory.
    pub fn agent_configuration(&self, dir: &Path, port: u16) -> String {
        let dir = dir.display();
        let unix = match &self.unix_attestor_file {
            Some(file) => format!("plugin_data_file = \"{}\"", file.display()),
            None => format!("plugin_data {{ {} }}", self.unix_attestor),
        };
        format!(
            r#"agent {{
  trust_domain = "{td}"
  server_address = "127.0.0.1"
  server_port = {port}
  socket_path = "{dir}/agent.sock"
  data_dir = "{dir}/agent"
  trust_bundle_path = "{dir}/bundle.pem"
  log_level = "DEBUG"
  {extra}
}}
plugins {{
  KeyManager "disk" {{ plugin_data {{ directory = "{dir}/agent" }} }}
  {node_attestor}
  WorkloadAttestor "unix" {{ {unix} }}
  {plugins}
}}
{blocks}
"#,
            blocks = self.agent_blocks,
            td = self.trust_domain,
            extra = self.agent,
            node_attestor = self.node_attestor,
            plugins = self.agent_plugins,
        )
    }
}

/// A registration entry below the stack's agent; the default selector is the calling user's uid.
#[derive(Debug, Clone)]
pub struct Entry<'a> {
    pub path: &'a str,
    pub selectors: Vec<String>,
    pub extra: Vec<String>,
}

impl<'a> Entry<'a> {
    /// An entry for every process of this user.
    pub fn for_me(path: &'a str) -> Self {
        Entry {
            path,
            selectors: vec![format!("unix:uid:{}", rustix::process::getuid().as_raw())],
            extra: Vec::new(),
        }
    }

    /// Adds further command-line flags of `entry create`.
    pub fn with(mut self, flags: &[&str]) -> Self {
        self.extra.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self
    }
}

/// See the module's text. Dropping it kills both processes and removes the directory.
#[derive(Debug)]
pub struct Stack {
    dir: TempDir,
    port: u16,
    options: StackOptions,
    server: Option<Program>,
    agent: Option<Program>,
}

impl Stack {
    /// Server and agent, both answering.
    pub fn start(options: StackOptions) -> Self {
        let mut stack = Self::server_only(options);
        let token = stack.join_token();
        stack.write_bundle();
        stack.start_agent(&["-joinToken", &token]);
        stack.wait_agent();
        stack
    }

    /// Only the server, answering.
    pub fn server_only(options: StackOptions) -> Self {
        let mut stack = Self::configured(options);
        stack.start_server();
        stack.wait_server();
        stack
    }

    /// A directory with `server.conf` and `agent.conf`, for a server and an agent that somebody else runs.
    pub fn configured(options: StackOptions) -> Self {
        let dir = TempDir::with_prefix("finial-").expect("a temporary directory");
        let port = free_port();
        let stack = Stack {
            dir,
            port,
            options,
            server: None,
            agent: None,
        };
        stack.write_configuration();
        stack
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn trust_domain(&self) -> &str {
        &self.options.trust_domain
    }

    pub fn id(&self, path: &str) -> String {
        format!("spiffe://{}{path}", self.options.trust_domain)
    }

    pub fn server_socket(&self) -> PathBuf {
        self.dir().join("server.sock")
    }

    pub fn agent_socket(&self) -> PathBuf {
        self.dir().join("agent.sock")
    }

    /// The value for `SPIFFE_ENDPOINT_SOCKET`.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.agent_socket().display())
    }

    pub fn server(&mut self) -> &mut Program {
        self.server.as_mut().expect("the server was started")
    }

    /// What the agent has printed since it was started last.
    pub fn agent_lines(&self) -> Vec<String> {
        self.agent.as_ref().expect("the agent was started").lines()
    }

    pub fn agent(&mut self) -> &mut Program {
        self.agent.as_mut().expect("the agent was started")
    }

    /// `finial server …` against this stack's private socket.
    pub fn server_cli(&self, args: &[&str]) -> Output {
        run(self.server_args(args))
    }

    /// [`Stack::server_cli`], which must exit 0.
    pub fn server_cli_ok(&self, args: &[&str]) -> Output {
        run_ok(self.server_args(args))
    }

    /// `finial agent …` against this stack's Workload API.
    pub fn agent_cli(&self, args: &[&str]) -> Output {
        run(self.agent_args(args))
    }

    /// [`Stack::agent_cli`], which must exit 0.
    pub fn agent_cli_ok(&self, args: &[&str]) -> Output {
        run_ok(self.agent_args(args))
    }

    /// The ID of the one attested agent.
    pub fn agent_id(&self) -> String {
        let agents = self.server_cli_ok(&["agent", "list", "-output", "json"]).json();
        let id = &agents["agents"][0]["id"];
        format!(
            "spiffe://{}{}",
            id["trust_domain"].as_str().expect("an attested agent"),
            id["path"].as_str().expect("an attested agent has a path")
        )
    }

    /// The serial number of the one attested agent's SVID, in decimal: of the last one that the server has seen.
    pub fn agent_serial(&self) -> String {
        let agents = self.server_cli_ok(&["agent", "list", "-output", "json"]).json();
        let serial = &agents["agents"][0]["x509svid_serial_number"];
        serial.as_str().expect("a serial number").to_owned()
    }

    /// The id of the X.509 authority that is `active`, `prepared` or `old`; empty where there is none.
    pub fn authority_id(&self, state: &str) -> String {
        let shown = self.server_cli_ok(&["localauthority", "x509", "show", "-output", "json"]);
        let id = shown.json()[state]["authority_id"].as_str().map(str::to_owned);
        id.unwrap_or_default()
    }

    /// Creates an entry below the agent and gives its id.
    pub fn create_entry(&self, entry: &Entry<'_>) -> String {
        self.create_entry_below(&self.agent_id(), entry)
    }

    /// The same below the parent with this ID.
    pub fn create_entry_below(&self, parent: &str, entry: &Entry<'_>) -> String {
        let spiffe_id = self.id(entry.path);
        let mut args = vec![
            "entry",
            "create",
            "-output",
            "json",
            "-spiffeID",
            &spiffe_id,
            "-parentID",
            parent,
        ];
        for selector in &entry.selectors {
            args.extend(["-selector", selector]);
        }
        args.extend(entry.extra.iter().map(String::as_str));
        let created = self.server_cli_ok(&args).json();
        created["results"][0]["entry"]["id"]
            .as_str()
            .expect("a created entry has an id")
            .to_owned()
    }

    pub fn delete_entry(&self, id: &str) {
        self.server_cli_ok(&["entry", "delete", "-entryID", id]);
    }

    pub fn join_token(&self) -> String {
        let token = self
            .server_cli_ok(&["token", "generate", "-output", "json"])
            .json();
        token["value"]
            .as_str()
            .expect("a join token has a value")
            .to_owned()
    }

    /// Writes the server's bundle to where the agent's configuration expects it.
    pub fn write_bundle(&self) {
        let bundle = self.server_cli_ok(&["bundle", "show", "-format", "pem"]).stdout;
        std::fs::write(self.dir().join("bundle.pem"), bundle).expect("the bundle file is written");
    }

    pub fn start_server(&mut self) {
        let config = self.dir().join("server.conf");
        let mut command = Command::new(finial());
        command.args(["server", "run", "-config"]).arg(config);
        command.envs(self.options.server_env.iter().cloned());
        self.server = Some(Program::start("server", &mut command));
    }

    pub fn wait_server(&mut self) {
        let args = self.server_args(&["healthcheck"]);
        let server = self.server.as_mut().expect("the server was started");
        wait_until("the server to be healthy", READY, || {
            assert!(
                server.is_running(),
                "the server ended:\n{}",
                server.lines().join("\n")
            );
            run(&args).status.success()
        });
    }

    pub fn start_agent(&mut self, args: &[&str]) {
        let config = self.dir().join("agent.conf");
        let mut command = Command::new(finial());
        command.args(["agent", "run", "-config"]).arg(config).args(args);
        command.envs(self.options.agent_env.iter().cloned());
        self.agent = Some(Program::start("agent", &mut command));
    }

    /// Starts the agent again with a new join token, which it takes.
    pub fn attest_anew(&mut self) {
        let token = self.join_token();
        assert!(self.agent().terminate().success());
        self.start_agent(&["-joinToken", &token]);
        self.agent().wait_for_line("agent attested", READY);
        self.wait_agent();
    }

    pub fn wait_agent(&mut self) {
        let args = self.agent_args(&["healthcheck"]);
        let agent = self.agent.as_mut().expect("the agent was started");
        wait_until("the agent to be healthy", READY, || {
            assert!(
                agent.is_running(),
                "the agent ended:\n{}",
                agent.lines().join("\n")
            );
            run(&args).status.success()
        });
    }

    /// Waits until a process of this user gets `path` as an identity.
    pub fn wait_identity(&self, path: &str) {
        let id = self.id(path);
        wait_until(&format!("the identity {id}"), READY, || {
            self.agent_cli(&["api", "fetch", "x509"]).stdout.contains(&id)
        });
    }

    fn server_args(&self, args: &[&str]) -> Vec<String> {
        with_socket("server", args, &self.server_socket())
    }

    fn agent_args(&self, args: &[&str]) -> Vec<String> {
        with_socket("agent", args, &self.agent_socket())
    }

    fn write_configuration(&self) {
        let server = self.options.server_configuration(self.dir(), self.port);
        let agent = self.options.agent_configuration(self.dir(), self.port);
        std::fs::write(self.dir().join("server.conf"), server).expect("server.conf is written");
        std::fs::write(self.dir().join("agent.conf"), agent).expect("agent.conf is written");
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // The agent first, so that it does not report a lost server.
        self.agent = None;
        self.server = None;
    }
}

fn with_socket(program: &str, args: &[&str], socket: &Path) -> Vec<String> {
    let mut all: Vec<String> = std::iter::once(program)
        .chain(args.iter().copied())
        .map(str::to_owned)
        .collect();
    all.extend(["-socketPath".to_owned(), socket.display().to_string()]);
    all
}
