//! Whole agents, with a server of their own.
#![allow(clippy::disallowed_methods)] // Tests lay out files by hand.

mod join_token;
mod labels;
mod serving;

use std::path::Path;

use finial_identity::process::log::LogOptions;
use finial_identity::spiffe_id::TrustDomain;

use super::*;
use crate::config::{BootstrapSource, BundleFormat, Essentials, JoinToken, Keys};
use crate::telemetry::{LogFormat, LogLevel};
use crate::test_server::TestServer;

struct Setup {
    server: TestServer,
    dir: tempfile::TempDir,
}

impl Setup {
    fn new() -> Self {
        let (server, dir) = (TestServer::start(), tempfile::tempdir().unwrap());
        let bundle = server.state().bundle.to_pem();
        std::fs::write(dir.path().join("bundle.pem"), bundle).unwrap();
        std::fs::write(dir.path().join("token"), "token\n").unwrap();
        Self { server, dir }
    }

    fn essentials(&self) -> Essentials {
        let path = |name: &str| self.dir.path().join(name);
        Essentials {
            trust_domain: TrustDomain::parse("example.org").unwrap(),
            server_address: self.server.address.ip().to_string(),
            server_port: self.server.address.port(),
            bootstrap: BootstrapSource::File {
                path: path("bundle.pem"),
                format: BundleFormat::Pem,
            },
            data_dir: path("agent"),
            socket_path: path("agent/public/api.sock"),
            keys: Keys::Disk(path("agent")),
            join_token: Some(JoinToken::File(path("token"))),
        }
    }

    async fn build(&self) -> Bound {
        build(Config::embedded(self.essentials()), Clock::system(), log())
            .await
            .unwrap()
    }

    /// An agent of a cluster, with these further keys and this key manager.
    fn of_a_cluster(&self, keys: &str, key_manager: &str) -> Config {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let text = format!(
            r#"agent {{
                trust_domain = "example.org" server_address = "{}" server_port = {}
                trust_bundle_path = "{}" data_dir = "{}" socket_path = "{}" {keys}
            }}
            plugins {{
                KeyManager {key_manager}
                NodeAttestor "k8s_psat" {{ plugin_data {{ cluster = "demo" token_path = "{}" }} }}
                WorkloadAttestor "unix" {{}}
            }}"#,
            self.server.address.ip(),
            self.server.address.port(),
            path("bundle.pem"),
            path("agent"),
            path("agent/public/api.sock"),
            path("token"),
        );
        Config::parse(&text, Path::new("agent.conf"), &Default::default()).unwrap()
    }
}

/// Runs an agent for as long as something is done with it.
async fn during(agent: Bound, work: impl Future<Output = ()>) {
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let working = async {
        work.await;
        drop(stop);
    };
    let (outcome, ()) = tokio::join!(agent.run(async { drop(stopped.await) }), working);
    outcome.unwrap();
}

/// Runs an agent until it serves.
async fn run(config: Config) {
    let agent = build(config, Clock::system(), log()).await.unwrap();
    let mut state = agent.state();
    during(agent, async {
        state.wait_for(NodeState::is_serving).await.unwrap();
    })
    .await;
}

fn log() -> LogControl {
    let options = LogOptions {
        level: LogLevel::Info,
        format: LogFormat::Text,
        file: None,
        source_location: false,
        clock: Clock::system(),
    };
    finial_identity::process::log::build(options).unwrap().1
}
