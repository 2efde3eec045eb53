//! The input of every benchmark: sockets, process IDs, and the entries that it may create.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Arg, ArgMatches, Command};
use finial_identity::command::dial::AGENT;
use finial_identity::command::flags::text;
use finial_proto::spire::api::types::Entry;

use super::fleet::Mark;
use super::meter::Meter;
use super::registrations::Registrations;
use super::target::{self, Target};
use super::workload::{OpenStream, leaf_of, mark_of};

/// One run of one benchmark, against the programs of one column.
#[derive(Debug)]
pub struct Run<'a> {
    matches: &'a ArgMatches,
    target: Option<&'a Target>,
    registrations: Option<Registrations>,
}

/// Who the calling process is to the agent under test.
#[derive(Debug)]
pub struct Identity {
    /// The SPIFFE ID that the benchmark looks at.
    pub spiffe_id: String,
    /// The entry behind it, when this run made it.
    pub entry: Option<Entry>,
    /// What a stream begins with.
    pub stream: OpenStream,
}

impl<'a> Run<'a> {
    /// Connects to the server when its socket is named.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn start(matches: &'a ArgMatches, target: Option<&'a Target>) -> anyhow::Result<Self> {
        let server = target.and_then(|target| Some((target, target.server_socket.as_ref()?)));
        let registrations = match server {
            Some((target, socket)) => Some(Registrations::connect(socket, target.parent.as_deref()).await?),
            None => None,
        };
        Ok(Run {
            matches,
            target,
            registrations,
        })
    }

    /// A number that has a default.
    pub fn count(&self, name: &str) -> usize {
        let number = self.matches.get_one::<u64>(name).copied().unwrap_or_default();
        usize::try_from(number).unwrap_or(usize::MAX)
    }

    /// A number of seconds that has a default.
    pub fn seconds(&self, name: &str) -> Duration {
        Duration::from_secs(self.matches.get_one::<u64>(name).copied().unwrap_or_default())
    }

    /// The flags.
    pub fn matches(&self) -> &'a ArgMatches {
        self.matches
    }

    /// The Workload API under test.
    pub fn socket(&self) -> PathBuf {
        let socket = self.target.map(|target| target.socket.clone());
        socket.unwrap_or_else(|| AGENT.default.into())
    }

    /// The process behind the Workload API: the one that was named, else the one that listens.
    ///
    /// # Errors
    /// When there is none.
    pub async fn agent_meter(&self) -> anyhow::Result<Meter> {
        match self.target.and_then(|target| target.pid) {
            Some(pid) => Meter::of(pid),
            None => Meter::of_listener(&self.socket()).await,
        }
    }

    /// The process behind the server's socket, when that is named.
    ///
    /// # Errors
    /// When there is none.
    pub async fn server_meter(&self) -> anyhow::Result<Option<Meter>> {
        match self.target.and_then(|target| target.server_socket.as_ref()) {
            Some(socket) => Meter::of_listener(socket).await.map(Some),
            None => Ok(None),
        }
    }

    /// Whether it is about programs that were started already.
    pub fn has_target(&self) -> bool {
        self.target.is_some()
    }

    /// What may be registered at the server, when its socket is named.
    pub fn registrations(&self) -> Option<&Registrations> {
        self.registrations.as_ref()
    }

    /// What may be registered at the server.
    ///
    /// # Errors
    /// When its socket is not named.
    pub fn server(&self) -> anyhow::Result<&Registrations> {
        self.registrations.as_ref().context(
            "this benchmark changes entries: name the server's private socket with -serverSocketPath",
        )
    }

    /// The identity of this process: of an entry made for this run when the server's socket is named, else the first
    /// that the agent gives.
    ///
    /// # Errors
    /// When the agent gives none.
    pub async fn identity(&self) -> anyhow::Result<Identity> {
        let socket = self.socket();
        if let Some(server) = &self.registrations {
            let entry = server.create_one(server.entry("workload")).await?;
            let spiffe_id = server.id("workload");
            let stream = OpenStream::with_identity(&socket, &spiffe_id).await?;
            return Ok(Identity {
                spiffe_id,
                entry: Some(entry),
                stream,
            });
        }
        let stream = OpenStream::open(&socket).await.with_context(|| {
            let uid = rustix::process::getuid().as_raw();
            format!(
                "no identity for this process: make an entry for unix:uid:{uid}, or name -serverSocketPath"
            )
        })?;
        let first = stream.first.svids.first().context("the agent sent no SVID")?;
        Ok(Identity {
            spiffe_id: first.spiffe_id.clone(),
            entry: None,
            stream,
        })
    }

    /// Takes away what was registered.
    ///
    /// # Errors
    /// When the server does not do it.
    pub async fn clean_up(&self) -> anyhow::Result<()> {
        match &self.registrations {
            Some(registrations) => registrations.clean_up().await,
            None => Ok(()),
        }
    }
}

impl Identity {
    /// What a fleet looks at: the leaf of this identity.
    pub fn mark(&self) -> Mark {
        let id = self.spiffe_id.clone();
        std::sync::Arc::new(move |message| leaf_of(message, &id).map_or(0, mark_of))
    }
}

/// A benchmark, with the flags that all have.
pub fn benchmark(name: &'static str, about: &'static str) -> Command {
    Command::new(name)
        .about(about)
        .arg(
            text("output", "Form of what is printed")
                .value_parser(["pretty", "json"])
                .default_value("pretty"),
        )
        .arg(number("timeout", "Seconds after which the run is given up", 86_400).default_value("900"))
}

/// A benchmark of a Workload API, with the flags that name the programs.
pub fn of_socket(name: &'static str, about: &'static str) -> Command {
    target::with_flags(benchmark(name, about))
}

/// A number of at least 1 and at most `most`.
pub fn number(name: &'static str, help: &'static str, most: u64) -> Arg {
    text(name, help).value_parser(clap::value_parser!(u64).range(1..=most))
}

/// A number of at most `most`.
pub fn number_or_none(name: &'static str, help: &'static str, most: u64) -> Arg {
    text(name, help).value_parser(clap::value_parser!(u64).range(0..=most))
}
