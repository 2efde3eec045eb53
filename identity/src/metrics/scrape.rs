//! Answers Prometheus.

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::{Exposition, Polled, Recorder, runtime};

type Poll = Box<dyn Fn(&mut Polled) + Send + Sync>;

/// The content type of the text format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a scrape returns.
pub struct Scrape {
    exposition: Exposition,
    recorder: &'static Recorder,
    polls: Vec<Poll>,
}

impl Scrape {
    /// Shows what `recorder` knows, and the process's memory.
    pub fn new(exposition: Exposition, recorder: &'static Recorder) -> Self {
        Self {
            exposition,
            recorder,
            polls: vec![Box::new(runtime::poll)],
        }
    }

    /// Also what `poll` looks up, at each scrape again.
    #[must_use]
    pub fn polled(mut self, poll: impl Fn(&mut Polled) + Send + Sync + 'static) -> Self {
        self.polls.push(Box::new(poll));
        self
    }

    /// All metrics as text.
    pub fn render(&self) -> String {
        let mut polled = Polled::default();
        for poll in &self.polls {
            poll(&mut polled);
        }
        self.exposition.render(self.recorder, polled)
    }

    /// The metrics at every path, as SPIRE has them.
    pub fn routes(self) -> Router {
        let scrape = Arc::new(self);
        Router::new().fallback(move |method: Method| {
            let scrape = Arc::clone(&scrape);
            async move { scrape.answer(&method) }
        })
    }

    fn answer(&self, method: &Method) -> Response {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return StatusCode::METHOD_NOT_ALLOWED.into_response();
        }
        ([(header::CONTENT_TYPE, TEXT)], self.render()).into_response()
    }
}

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scrape")
            .field("exposition", &self.exposition)
            .finish_non_exhaustive()
    }
}
