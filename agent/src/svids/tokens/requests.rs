//! Requests for tokens that are under way.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::future::{Shared, WeakShared};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{JwtError, Signed, Token};

pub(super) type Answer<T> = Result<Arc<Token<T>>, JwtError>;
pub(super) type Running<T> = Pin<Box<dyn Future<Output = Answer<T>> + Send>>;

/// A request under way that others may join.
pub(super) struct Joinable<T: Signed> {
    pub(super) id: u64,
    pub(super) answer: WeakShared<Running<T>>,
    pub(super) started: Instant,
    pub(super) has_failed: watch::Receiver<bool>,
}

/// A request that one takes part in.
pub(super) struct Request<T: Signed> {
    pub(super) answer: Shared<Running<T>>,
    pub(super) started: Instant,
    /// Whether an attempt has failed already.
    pub(super) has_failed: watch::Receiver<bool>,
}
