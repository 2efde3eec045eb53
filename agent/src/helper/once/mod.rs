//! Writes the files once, for jobs and init containers.

use std::io;
use std::path::Path;
use std::time::Duration;

use finial_identity::process::Clock;
use finial_identity::process::private_file::{self, FileError};
use tokio::time::Instant;

use super::backoff::Backoff;
use super::config::{HelperConfig, JwtSvidOutput, OutputFile, X509Output};
use super::content::{self, ContentError};
use super::daemon::publisher;
use super::feed::{self, CallError, Feed, JwtBundles, X509Svids};
use super::swap::SwapError;
use super::tokens::{self, TokenError};

/// Between attempts: short, because another program waits for the files.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Why a file is not written.
#[derive(Debug, thiserror::Error)]
pub enum OnceError {
    /// It did not come in time; `cause` is what the last attempt said.
    #[error("no {what} within {limit:?}: {cause}")]
    Late {
        /// What was fetched.
        what: &'static str,
        /// How long it was tried.
        limit: Duration,
        /// Of the last attempt.
        cause: String,
    },
    /// The agent says that it can never have that.
    #[error("{what}: {cause}")]
    Refused {
        /// What was fetched.
        what: &'static str,
        /// What the agent says.
        cause: String,
    },
    /// A file cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The files of the X.509-SVID cannot be put in place.
    #[error("X.509-SVID: {0}")]
    Swap(String),
}

/// What an attempt came to that brought nothing.
enum Attempt {
    Final(OnceError),
    TryAgain(String),
}

/// Fetches and writes everything that is configured; each thing is tried until `limit` is over, forever with none.
///
/// # Errors
/// [`OnceError`] of the first that failed.
pub async fn once(config: &HelperConfig, clock: &Clock, limit: Option<Duration>) -> Result<(), OnceError> {
    let start = Instant::now();
    let until = Until { start, limit };
    if let Some(output) = &config.x509 {
        until
            .tried(X509Svids::WHAT, async || write_x509(config, output, clock).await)
            .await?;
    }
    if let Some(file) = &config.jwt_bundle {
        until
            .tried(JwtBundles::WHAT, async || {
                write_jwt_bundle(&config.socket, file).await
            })
            .await?;
    }
    for output in &config.jwt_svids {
        until
            .tried(tokens::WHAT, async || write_token(config, output, clock).await)
            .await?;
    }
    Ok(())
}

async fn write_x509(config: &HelperConfig, output: &X509Output, clock: &Clock) -> Result<(), Attempt> {
    let answer = feed::first::<X509Svids>(&config.socket)
        .await
        .map_err(|error| refused(X509Svids::WHAT, &error))?;
    let files = content::x509_files(&answer, output, config.hint.as_deref(), clock.now())?;
    let publish = publisher(output, clock.clone());
    let (spiffe_id, expires_at) = (files.spiffe_id.clone(), files.expires_at);
    blocking(move || publish(&files).map_err(|error: SwapError| OnceError::Swap(error.to_string()))).await?;
    tracing::info!(%spiffe_id, %expires_at, "X.509-SVID is written");
    Ok(())
}

async fn write_jwt_bundle(socket: &Path, file: &OutputFile) -> Result<(), Attempt> {
    let answer = feed::first::<JwtBundles>(socket)
        .await
        .map_err(|error| refused(JwtBundles::WHAT, &error))?;
    let text = content::jwt_bundle_json(&answer)?;
    let target = file.clone();
    blocking(move || Ok(private_file::write(&target.path, text.as_bytes(), target.mode)?)).await?;
    tracing::info!(file = file.shown, "JWT bundle is written");
    Ok(())
}

async fn write_token(config: &HelperConfig, output: &JwtSvidOutput, clock: &Clock) -> Result<(), Attempt> {
    let token = match tokens::fetch(&config.socket, output, config.hint.as_deref(), clock.now()).await {
        Ok(token) => token,
        Err(TokenError::Call(error)) => return Err(refused(tokens::WHAT, &error)),
        Err(TokenError::Content(error)) => return Err(error.into()),
        Err(TokenError::File(error)) => return Err(Attempt::Final(error.into())),
    };
    let (spiffe_id, expires_at) = (token.spiffe_id.clone(), token.expires_at);
    let written = tokens::write(output, token).await;
    written.map_err(|error| Attempt::Final(error.into()))?;
    tracing::info!(%spiffe_id, %expires_at, file = output.file.shown, "JWT-SVID is written");
    Ok(())
}

async fn blocking(write: impl FnOnce() -> Result<(), OnceError> + Send + 'static) -> Result<(), Attempt> {
    let done = tokio::task::spawn_blocking(write).await;
    let failed = |error| OnceError::Swap(io::Error::other(error).to_string());
    done.unwrap_or_else(|error| Err(failed(error)))
        .map_err(Attempt::Final)
}

fn refused(what: &'static str, error: &CallError) -> Attempt {
    if error.is_final() {
        Attempt::Final(OnceError::Refused {
            what,
            cause: error.to_string(),
        })
    } else {
        Attempt::TryAgain(error.to_string())
    }
}

impl From<ContentError> for Attempt {
    fn from(error: ContentError) -> Self {
        Self::TryAgain(error.to_string())
    }
}

/// When to give up.
struct Until {
    start: Instant,
    limit: Option<Duration>,
}

impl Until {
    /// Attempts until one brings something, says that none ever will, or time is over.
    async fn tried(
        &self,
        what: &'static str,
        attempt: impl AsyncFn() -> Result<(), Attempt>,
    ) -> Result<(), OnceError> {
        let mut cause = "agent does not answer".to_owned();
        let attempts = async {
            let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE, rand::random::<f64>);
            loop {
                match attempt().await {
                    Ok(()) => return Ok(()),
                    Err(Attempt::Final(error)) => return Err(error),
                    Err(Attempt::TryAgain(reason)) => {
                        if reason != cause {
                            tracing::warn!(what, error = reason, "nothing to write yet");
                            cause = reason;
                        }
                        tokio::time::sleep(backoff.pause()).await;
                    }
                }
            }
        };
        let Some(limit) = self.limit else {
            return attempts.await;
        };
        match tokio::time::timeout_at(self.start + limit, attempts).await {
            Ok(outcome) => outcome,
            Err(_elapsed) => Err(OnceError::Late { what, limit, cause }),
        }
    }
}

#[cfg(test)]
mod tests;
