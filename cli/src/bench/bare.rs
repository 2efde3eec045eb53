//! The reference of the benchmarks: a minimal server on the same gRPC library that only sends prepared bytes.
//!
//! It is a separate process, so that its memory and CPU time are read as those of the program under test. It stops
//! when its standard input ends, and pushes a new message to all streams for each byte that it reads there.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use clap::ArgMatches;
use finial_identity::command::flags::{required, text};
use finial_proto::workload as pb;
use finial_proto::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use prost::Message;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tokio_stream::{Empty, Stream, StreamExt};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::meter::Meter;
use super::workload::{OpenStream, mark_of};
use crate::runtime;

/// Name of the hidden command that runs the server.
pub const COMMAND: &str = "bare-server";

/// The only identity it knows.
pub const SPIFFE_ID: &str = "spiffe://bare.test/workload";

const START_LIMIT: Duration = Duration::from_secs(10);
const START_PAUSE: Duration = Duration::from_millis(2);

/// The running server; it ends with this value.
#[derive(Debug)]
pub struct Bare {
    child: Child,
    directory: TempDir,
}

impl Bare {
    /// Starts a server whose messages are as long as `sample`, and whose tokens have `token_bytes`.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub async fn start(sample: &pb::X509svidResponse, token_bytes: usize) -> anyhow::Result<Self> {
        let directory = TempDir::with_prefix("finial-bench-").context("make a temporary directory")?;
        let program = std::env::current_exe().context("find the own program")?;
        let child = Command::new(program)
            .args(["bench", COMMAND, "-socketPath"])
            .arg(directory.path().join(SOCKET))
            .args(["-messageBytes", &sample.encoded_len().to_string()])
            .args(["-tokenBytes", &token_bytes.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("start the bare server")?;
        let bare = Bare { child, directory };
        let socket = bare.socket();
        let answers = async {
            while OpenStream::open(&socket).await.is_err() {
                sleep(START_PAUSE).await;
            }
        };
        timeout(START_LIMIT, answers)
            .await
            .context("the bare server does not answer")?;
        Ok(bare)
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join(SOCKET)
    }

    /// Makes it send a new message to every stream.
    ///
    /// # Errors
    /// When it ended.
    pub fn push(&mut self) -> anyhow::Result<()> {
        let input = self
            .child
            .stdin
            .as_mut()
            .context("the bare server has no input")?;
        input
            .write_all(b"+")
            .and_then(|()| input.flush())
            .context("tell the bare server")
    }

    /// What it uses.
    ///
    /// # Errors
    /// When it ended.
    pub fn meter(&self) -> anyhow::Result<Meter> {
        Meter::of(self.child.id())
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const SOCKET: &str = "s";

/// The hidden command.
pub fn command() -> clap::Command {
    let size = |name, about| text(name, about).value_parser(clap::value_parser!(u32));
    clap::Command::new(COMMAND)
        .about("The limit that other benchmarks measure beside")
        .hide(true)
        .arg(text("socketPath", "Where to listen"))
        .arg(size("messageBytes", "Length of a message").default_value("2300"))
        .arg(size("tokenBytes", "Length of a token").default_value("450"))
}

/// Serves until standard input ends.
///
/// # Errors
/// When the socket can not be opened.
pub fn serve(matches: &ArgMatches) -> anyhow::Result<()> {
    let socket = PathBuf::from(required(matches, "socketPath", "the socket")?);
    let size = |name| matches.get_one::<u32>(name).copied().unwrap_or_default() as usize;
    let (message, token) = (size("messageBytes"), size("tokenBytes"));
    // One thread, as a node's agent has for its sockets.
    runtime::current_thread()?.block_on(listen(&socket, message, token))
}

async fn listen(socket: &Path, message_bytes: usize, token_bytes: usize) -> anyhow::Result<()> {
    let listener = UnixListener::bind(socket).with_context(|| format!("listen on {}", socket.display()))?;
    let (publish, messages) = watch::channel(message(message_bytes, 0));
    let (ended, stop) = tokio::sync::oneshot::channel::<()>();
    let reader = move || {
        let mut byte = [0];
        let mut version = 0_u8;
        while let Ok(1) = std::io::stdin().read(&mut byte) {
            version = version.wrapping_add(1);
            publish.send_replace(message(message_bytes, version));
        }
        drop(ended);
    };
    std::thread::Builder::new()
        .name("input".to_owned())
        .spawn(reader)
        .context("start a thread")?;
    let service = SpiffeWorkloadApiServer::new(Prepared {
        messages,
        token: "t".repeat(token_bytes),
    });
    let stopped = async {
        let _ = stop.await;
    };
    Server::builder()
        .add_service(service)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stopped)
        .await
        .context("serve")
}

/// About as many bytes as asked for, in the fields of an X.509-SVID; every version is another message.
pub fn message(bytes: usize, version: u8) -> pb::X509svidResponse {
    let mut svid = pb::X509svid {
        spiffe_id: SPIFFE_ID.to_owned(),
        ..Default::default()
    };
    // Tags and lengths take some bytes as well.
    let rest = bytes.saturating_sub(svid.encoded_len() + 16).max(2);
    svid.x509_svid = Bytes::from(vec![version; rest / 2]);
    svid.bundle = Bytes::from(vec![b'b'; rest - rest / 2]);
    pb::X509svidResponse {
        svids: vec![svid],
        ..Default::default()
    }
}

/// What a fleet on this server looks at.
pub fn mark(message: &pb::X509svidResponse) -> u64 {
    let leaf = super::workload::leaf_of(message, SPIFFE_ID);
    leaf.map_or(0, mark_of)
}

#[derive(Debug)]
struct Prepared {
    messages: watch::Receiver<pb::X509svidResponse>,
    token: String,
}

type Answers<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SpiffeWorkloadApi for Prepared {
    type FetchX509SVIDStream = Answers<pb::X509svidResponse>;
    type FetchX509BundlesStream = Empty<Result<pb::X509BundlesResponse, Status>>;
    type FetchJWTBundlesStream = Empty<Result<pb::JwtBundlesResponse, Status>>;
    type FetchWITSVIDStream = Empty<Result<pb::WitsvidResponse, Status>>;
    type FetchWITBundlesStream = Empty<Result<pb::WitBundlesResponse, Status>>;

    async fn fetch_x509svid(
        &self,
        _request: Request<pb::X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let messages = WatchStream::new(self.messages.clone()).map(Ok);
        Ok(Response::new(Box::pin(messages)))
    }

    async fn fetch_jwtsvid(
        &self,
        _request: Request<pb::JwtsvidRequest>,
    ) -> Result<Response<pb::JwtsvidResponse>, Status> {
        let svid = pb::Jwtsvid {
            spiffe_id: SPIFFE_ID.to_owned(),
            svid: self.token.clone(),
            hint: String::new(),
        };
        Ok(Response::new(pb::JwtsvidResponse { svids: vec![svid] }))
    }

    async fn fetch_x509_bundles(
        &self,
        _request: Request<pb::X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        Err(not_measured())
    }

    async fn fetch_jwt_bundles(
        &self,
        _request: Request<pb::JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        Err(not_measured())
    }

    async fn validate_jwtsvid(
        &self,
        _request: Request<pb::ValidateJwtsvidRequest>,
    ) -> Result<Response<pb::ValidateJwtsvidResponse>, Status> {
        Err(not_measured())
    }

    async fn fetch_witsvid(
        &self,
        _request: Request<pb::WitsvidRequest>,
    ) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        Err(not_measured())
    }

    async fn fetch_wit_bundles(
        &self,
        _request: Request<pb::WitBundlesRequest>,
    ) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        Err(not_measured())
    }
}

fn not_measured() -> Status {
    Status::unimplemented("only what is measured is served")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_as_long_as_asked_for_and_differ_by_version() {
        for bytes in [300, 2300, 200_000] {
            let length = message(bytes, 0).encoded_len();
            assert!(length.abs_diff(bytes) <= 16, "{length} for {bytes}");
        }
        assert_ne!(mark(&message(2300, 0)), mark(&message(2300, 1)));
        assert_ne!(mark(&message(0, 0)), mark(&message(0, 1)), "nothing is asked for");
    }
}
