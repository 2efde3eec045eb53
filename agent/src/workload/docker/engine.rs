//! Asks an engine about a container: one request of HTTP over its Unix socket, bounded in size and time.

use std::io;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::answer::{AnswerError, Container, is_no_such_container};

/// Most bytes of an answer. Variables of a container have 128 KiB each at most, and few have many.
const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// How long an engine has for an answer.
pub(super) const ANSWER_TIME: Duration = Duration::from_secs(10);

/// How much of an error response is reported.
const MAX_REFUSAL: usize = 200;

/// An engine that is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Engine<'a> {
    /// Its socket.
    pub(super) socket: &'a Path,
    /// Whose process must be listening there, if that matters.
    pub(super) owner: Option<u32>,
    /// The version of the API, or its newest.
    pub(super) api_version: Option<&'a str>,
}

/// Why there is no answer from an engine about a container.
#[derive(Debug, thiserror::Error)]
pub(super) enum EngineError {
    #[error("connect: {0}")]
    Connect(#[source] io::Error),
    #[error("socket belongs to another user: uid {0}")]
    Owner(u32),
    #[error("http: {0}")]
    Http(#[from] hyper::Error),
    #[error("request: {0}")]
    Request(#[from] http::Error),
    #[error("read answer: {0}")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("answered {status}: {text}")]
    Refused { status: StatusCode, text: String },
    #[error("{0}")]
    Answer(#[from] AnswerError),
    #[error("no answer within {} s", ANSWER_TIME.as_secs())]
    TimedOut,
}

impl Engine<'_> {
    /// The container with this id, which must mean nothing more within a URL; `None` when the engine has none.
    pub(super) async fn inspect(&self, id: &str) -> Result<Option<Container>, EngineError> {
        let version = self
            .api_version
            .map(|version| format!("/v{version}"))
            .unwrap_or_default();
        let path = format!("{version}/containers/{id}/json");
        let asked = tokio::time::timeout(ANSWER_TIME, self.fetch(&path)).await;
        let (status, answer) = asked.map_err(|_elapsed| EngineError::TimedOut)??;
        match status {
            StatusCode::OK => Ok(Some(Container::parse(&answer)?)),
            StatusCode::NOT_FOUND if is_no_such_container(&answer) => Ok(None),
            status => Err(EngineError::Refused {
                status,
                text: String::from_utf8_lossy(&answer)
                    .trim()
                    .chars()
                    .take(MAX_REFUSAL)
                    .collect(),
            }),
        }
    }

    async fn fetch(&self, path: &str) -> Result<(StatusCode, Bytes), EngineError> {
        let stream = UnixStream::connect(self.socket)
            .await
            .map_err(EngineError::Connect)?;
        if let Some(owner) = self.owner {
            let uid = stream.peer_cred().map_err(EngineError::Connect)?.uid();
            if uid != owner {
                return Err(EngineError::Owner(uid));
            }
        }
        let request = Request::get(path)
            .header(header::HOST, "docker")
            .body(Empty::<Bytes>::new())?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect();
            Ok((status, body.await.map_err(EngineError::Body)?.to_bytes()))
        };
        match select(pin!(exchange), pin!(connection)).await {
            Either::Left((answer, _)) => answer,
            // The engine closed it; what it sent before is still to be read.
            Either::Right((_closed, exchange)) => exchange.await,
        }
    }
}
