//! Another server and agent in a temporary directory, for benchmarks that start and stop programs.

use std::ffi::OsString;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use finial_identity::process::private_file::{self, FileMode};
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::meter::Meter;
use super::workload::OpenStream;
use crate::dev::operator::Operator;

const TRUST_DOMAIN: &str = "bench.test";
const NODE: &str = "/bench/node";
const WORKLOAD: &str = "/bench/workload";

/// How long a program may take to answer, and to stop.
const LIMIT: Duration = Duration::from_secs(60);

/// Between two attempts to reach a program that starts.
const PAUSE: Duration = Duration::from_micros(500);

/// The commands of one implementation, which takes SPIRE's configuration.
#[derive(Debug, Clone)]
pub struct Implementation {
    /// What the report calls it.
    pub name: String,
    server: Vec<OsString>,
    agent: Vec<OsString>,
    dev: Option<OsString>,
    /// Bytes of its program files.
    pub binary_bytes: u64,
}

impl Implementation {
    /// This program.
    ///
    /// # Errors
    /// When its own file is not found.
    pub fn own() -> anyhow::Result<Self> {
        let path = std::env::current_exe().context("find the own program")?;
        let own = Self::at(&path)?;
        Ok(Implementation {
            name: "this program".to_owned(),
            ..own
        })
    }

    /// Another build of this program; or, for a directory, `spire-server` and `spire-agent` in it.
    ///
    /// # Errors
    /// When the files are not there.
    pub fn at(path: &Path) -> anyhow::Result<Self> {
        let size = |path: &Path| {
            let about =
                std::fs::metadata(path).with_context(|| format!("find the program {}", path.display()));
            about.map(|about| about.len())
        };
        let name = path.display().to_string();
        if path.is_dir() {
            let (server, agent) = (path.join("spire-server"), path.join("spire-agent"));
            return Ok(Implementation {
                name,
                binary_bytes: size(&server)? + size(&agent)?,
                server: vec![server.into()],
                agent: vec![agent.into()],
                dev: None,
            });
        }
        Ok(Implementation {
            name,
            binary_bytes: size(path)?,
            server: vec![path.into(), "server".into()],
            agent: vec![path.into(), "agent".into()],
            dev: Some(path.into()),
        })
    }

    /// Runs `dev --once` in an empty directory to its end; false when there is no such command.
    ///
    /// # Errors
    /// When it fails.
    pub fn dev_once(&self) -> anyhow::Result<bool> {
        let Some(program) = &self.dev else {
            return Ok(false);
        };
        let directory = TempDir::with_prefix("finial-bench-").context("make a temporary directory")?;
        let status = Command::new(program)
            .args(["dev", "--once", "--dir"])
            .arg(directory.path().join("dev"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .context("start dev")?;
        ensure!(status.success(), "dev --once: {status}");
        Ok(true)
    }
}

/// A server and an agent of one implementation. Dropping it kills them and removes what they kept.
#[derive(Debug)]
pub struct Programs {
    server: Option<Running>,
    agent: Option<Running>,
    implementation: Implementation,
    directory: TempDir,
}

#[derive(Debug)]
struct Running(Child);

impl Programs {
    /// Writes the configuration; starts nothing.
    ///
    /// # Errors
    /// When the directory can not be made.
    pub fn prepare(implementation: &Implementation) -> anyhow::Result<Self> {
        let directory = TempDir::with_prefix("finial-bench-").context("make a temporary directory")?;
        // Free now; that another program takes it before the server does is a failed start, no wrong number.
        let port = TcpListener::bind(("127.0.0.1", 0))
            .and_then(|listener| listener.local_addr())
            .context("find a free port")?
            .port();
        let programs = Programs {
            server: None,
            agent: None,
            implementation: implementation.clone(),
            directory,
        };
        programs.write(
            "server.conf",
            &server_configuration(programs.directory.path(), port),
        )?;
        programs.write(
            "agent.conf",
            &agent_configuration(programs.directory.path(), port),
        )?;
        for data in ["server", "agent"] {
            std::fs::create_dir(programs.directory.path().join(data)).context("make a directory")?;
        }
        Ok(programs)
    }

    /// Starts the server and waits until it answers.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub async fn start_server(&mut self) -> anyhow::Result<()> {
        let implementation = &self.implementation.server;
        self.server = Some(self.run(implementation, "server.conf", &[])?);
        self.operator().await.map(drop)
    }

    /// What an operator does before the agent comes: the bundle, an entry for this process, a join token.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn register(&self) -> anyhow::Result<String> {
        let operator = self.operator().await?;
        operator.save_bundle(&self.path("bundle.pem")).await?;
        let trust_domain = TrustDomain::parse(TRUST_DOMAIN).context("parse the trust domain")?;
        let [node, workload] = [NODE, WORKLOAD].map(|path| SpiffeId::new(&trust_domain, path));
        let (node, workload) = (
            node.context("the node's ID")?,
            workload.context("the workload's ID")?,
        );
        let uid = rustix::process::getuid().as_raw();
        operator
            .ensure_entry(&workload, &node, &format!("unix:uid:{uid}"))
            .await?;
        operator.join_token(&node).await
    }

    /// Starts the agent; with a token when it is new.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_agent(&mut self, token: Option<&str>) -> anyhow::Result<()> {
        let token = token.map(|token| ["-joinToken", token]);
        let more = token.as_ref().map_or(&[][..], |token| &token[..]);
        self.agent = Some(self.run(&self.implementation.agent, "agent.conf", more)?);
        Ok(())
    }

    /// Waits until a process of this user gets its X.509-SVID.
    ///
    /// # Errors
    /// When that takes too long.
    pub async fn first_svid(&self) -> anyhow::Result<()> {
        let socket = self.path("agent.sock");
        let attempts = async {
            while OpenStream::open(&socket).await.is_err() {
                sleep(PAUSE).await;
            }
        };
        timeout(LIMIT, attempts).await.context("no SVID arrived")
    }

    /// Memory of the server and of the agent.
    ///
    /// # Errors
    /// When one of them ended.
    pub fn meters(&self) -> anyhow::Result<(Meter, Meter)> {
        let of = |program: &Option<Running>| {
            let program = program.as_ref().context("the program was not started")?;
            Meter::of(program.0.id())
        };
        Ok((of(&self.server)?, of(&self.agent)?))
    }

    /// Ends the agent, as an operator does.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn stop_agent(&mut self) -> anyhow::Result<()> {
        stop(self.agent.take()).await
    }

    /// Ends both.
    ///
    /// # Errors
    /// When one does not end in time.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        self.stop_agent().await?;
        stop(self.server.take()).await
    }

    async fn operator(&self) -> anyhow::Result<Operator> {
        let socket = self.path("server.sock");
        let attempts = async {
            loop {
                match Operator::connect(socket.clone()).await {
                    Ok(operator) => return operator,
                    Err(_) => sleep(PAUSE).await,
                }
            }
        };
        timeout(LIMIT, attempts)
            .await
            .context("the server does not answer")
    }

    fn run(&self, program: &[OsString], configuration: &str, more: &[&str]) -> anyhow::Result<Running> {
        let (program, arguments) = program.split_first().context("the program has a name")?;
        let child = Command::new(program)
            .args(arguments)
            .args(["run", "-config"])
            .arg(self.path(configuration))
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        Ok(Running(child))
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        private_file::write(&self.path(name), text.as_bytes(), FileMode::new(0o600))?;
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn stop(program: Option<Running>) -> anyhow::Result<()> {
    let Some(mut program) = program else {
        return Ok(());
    };
    let pid = i32::try_from(program.0.id()).ok().and_then(Pid::from_raw);
    kill_process(pid.context("a program without a pid")?, Signal::TERM).context("stop a program")?;
    let ended = async {
        while program.0.try_wait().context("wait for a program")?.is_none() {
            sleep(PAUSE).await;
        }
        anyhow::Ok(())
    };
    timeout(LIMIT, ended).await.context("a program does not stop")?
}

fn server_configuration(directory: &Path, port: u16) -> String {
    let directory = directory.display();
    format!(
        r#"server {{
  trust_domain = "{TRUST_DOMAIN}"
  bind_address = "127.0.0.1"
  bind_port = {port}
  socket_path = "{directory}/server.sock"
  data_dir = "{directory}/server"
  log_level = "WARN"
  ratelimit {{ attestation = false signing = false }}
}}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "{directory}/server/datastore.sqlite3" }} }}
  KeyManager "disk" {{ plugin_data {{ keys_path = "{directory}/server/keys.json" }} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
}}
"#
    )
}

fn agent_configuration(directory: &Path, port: u16) -> String {
    let directory = directory.display();
    format!(
        r#"agent {{
  trust_domain = "{TRUST_DOMAIN}"
  server_address = "127.0.0.1"
  server_port = {port}
  socket_path = "{directory}/agent.sock"
  data_dir = "{directory}/agent"
  trust_bundle_path = "{directory}/bundle.pem"
  log_level = "WARN"
}}
plugins {{
  KeyManager "disk" {{ plugin_data {{ directory = "{directory}/agent" }} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  WorkloadAttestor "unix" {{ plugin_data {{}} }}
}}
"#
    )
}
