//! How a command finds and reaches the Unix socket of a running program.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::ArgMatches;
use clap::parser::ValueSource;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::Code;
pub use tonic::transport::Channel;
use tonic::transport::{Endpoint, Uri};

use super::Console;
use super::flags::value;

/// A Unix socket of one of the programs: its default path and the variables that move it.
#[derive(Debug, Clone, Copy)]
pub struct Socket {
    /// Where SPIRE's program listens by default.
    pub default: &'static str,
    /// The variables that move it; `None` for a socket that only `-socketPath` moves.
    pub variables: Option<Variables>,
}

/// The environment variables that name a socket.
#[derive(Debug, Clone, Copy)]
pub struct Variables {
    /// Variable with the path.
    pub path: &'static str,
    /// Variable with a path in which `%i` is replaced by the instance.
    pub template: &'static str,
}

/// The server's private socket.
pub const SERVER: Socket = Socket {
    default: "/tmp/spire-server/private/api.sock",
    variables: Some(Variables {
        path: "SPIRE_SERVER_PRIVATE_SOCKET",
        template: "SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE",
    }),
};

/// The agent's Workload API.
pub const AGENT: Socket = Socket {
    default: "/tmp/spire-agent/public/api.sock",
    variables: Some(Variables {
        path: "SPIRE_AGENT_PUBLIC_SOCKET",
        template: "SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE",
    }),
};

/// The agent's admin socket, which no variable names, as in SPIRE.
pub const AGENT_ADMIN: Socket = Socket {
    default: "/tmp/spire-agent/private/admin.sock",
    variables: None,
};

/// Lists of many entries are longer than the 4 MiB that gRPC takes by default.
pub const LARGEST_ANSWER: usize = 256 << 20;

impl Socket {
    /// First match: `-socketPath`, `-instance`, the plain variable, the default.
    ///
    /// # Errors
    /// When `-instance` is given and the template variable is missing or lacks `%i`.
    pub fn path(&self, matches: &ArgMatches, console: &Console<'_>) -> anyhow::Result<PathBuf> {
        let given = value(matches, "socketPath").unwrap_or(self.default);
        if given != self.default {
            return Ok(given.into());
        }
        self.path_by_variables(matches, console)
    }

    /// [`Socket::path`] of a command whose `-socketPath` was not given.
    ///
    /// # Errors
    /// As [`Socket::path`].
    fn path_by_variables(&self, matches: &ArgMatches, console: &Console<'_>) -> anyhow::Result<PathBuf> {
        let given = self.default;
        let Some(variables) = self.variables else {
            return Ok(given.into());
        };
        if let Some(instance) = value(matches, "instance") {
            let template = (console.variable)(variables.template)
                .with_context(|| format!("-instance needs the variable {}", variables.template))?;
            anyhow::ensure!(
                template.contains("%i"),
                "{} lacks %i: {template:?}",
                variables.template
            );
            return Ok(template.replace("%i", instance).into());
        }
        let moved = (console.variable)(variables.path).filter(|path| !path.is_empty());
        Ok(moved.unwrap_or_else(|| given.to_owned()).into())
    }

    /// A plaintext channel over the socket that the flags and variables name.
    ///
    /// # Errors
    /// When nobody listens there; the text names the path.
    pub async fn channel(&self, matches: &ArgMatches, console: &Console<'_>) -> anyhow::Result<Channel> {
        unix_channel(self.path(matches, console)?).await
    }

    /// [`Socket::channel`] of a command whose `-socketPath` is about another program and was not given.
    ///
    /// # Errors
    /// As [`Socket::channel`].
    pub async fn channel_by_variables(
        &self,
        matches: &ArgMatches,
        console: &Console<'_>,
    ) -> anyhow::Result<Channel> {
        unix_channel(self.path_by_variables(matches, console)?).await
    }
}

/// What was typed after `-socketPath`, in a command whose default of it does not hold for all that it can be asked.
pub fn typed_path(matches: &ArgMatches) -> Option<PathBuf> {
    let is_typed = matches.value_source("socketPath") == Some(ValueSource::CommandLine);
    value(matches, "socketPath")
        .filter(|_| is_typed)
        .map(PathBuf::from)
}

/// A plaintext channel over the Unix socket at `path`.
///
/// # Errors
/// When nobody listens there; the text names the path.
pub async fn unix_channel(path: PathBuf) -> anyhow::Result<Channel> {
    let shown = path.display();
    connect(&path)
        .await
        .with_context(|| format!("connection error: is the program running, and is its socket at {shown}"))
}

/// Connects to the Unix socket at `path`.
///
/// # Errors
/// When nobody listens there.
pub async fn connect(path: &Path) -> Result<Channel, tonic::transport::Error> {
    let path: Arc<Path> = Arc::from(path);
    let connector = tower::service_fn(move |_: Uri| {
        let path = Arc::clone(&path);
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // HTTP/2 wants an authority; on a Unix socket it means nothing, and not every server takes a path for one.
    Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
}

/// What an operator reads of a failed call.
pub fn status(what: &str, status: &tonic::Status) -> anyhow::Error {
    let code = match status.code() {
        Code::Cancelled => "Canceled".to_owned(), // as Go spells it
        code => format!("{code:?}"),
    };
    let reference = reference(status)
        .map(|code| format!(" (reference {code})"))
        .unwrap_or_default();
    anyhow::anyhow!(
        "{what}: rpc error: code = {code} desc = {}{reference}",
        status.message()
    )
}

/// The code by which an operator looks a refusal up, if the agent gave one.
pub fn reference(status: &tonic::Status) -> Option<&str> {
    status.metadata().get(REFERENCE)?.to_str().ok()
}

/// The trailer with the code by which an operator looks a refusal up (`finial why -reference`).
const REFERENCE: &str = "finial-reference";
