//! JWT-SVIDs: fetched, written, and fetched again after half of their lifetime.

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use finial_identity::command::workload_api;
use finial_identity::process::private_file::{self, FileError};
use finial_identity::process::{Clock, Stop};
use finial_proto::workload::JwtsvidRequest;
use time::OffsetDateTime;
use tonic::Status;

use super::backoff::Backoff;
use super::config::JwtSvidOutput;
use super::content::{self, ContentError, Token};
use super::feed::{CallError, Trouble};
use super::health::{Statuses, Which, Written};

/// What is fetched, for logs and errors.
pub(super) const WHAT: &str = "JWT-SVID";
/// How long the agent may take to get a token signed.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest sleep at a time: a machine that was suspended must notice soon that time has passed.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// Why there is no token in its file.
#[derive(Debug, thiserror::Error)]
pub(super) enum TokenError {
    /// The agent gave none.
    #[error("{0}")]
    Call(#[from] CallError),
    /// It gave one that is of no use.
    #[error("{0}")]
    Content(#[from] ContentError),
    /// The file cannot be written.
    #[error("{0}")]
    File(#[from] FileError),
}

/// Asks for a token once.
pub(super) async fn fetch(
    socket: &Path,
    output: &JwtSvidOutput,
    hint: Option<&str>,
    now: OffsetDateTime,
) -> Result<Token, TokenError> {
    let call = async {
        let mut client = workload_api::connect(socket).await?;
        let request = JwtsvidRequest {
            audience: output.audiences.clone(),
            spiffe_id: String::new(),
        };
        Ok::<_, CallError>(client.fetch_jwtsvid(request).await?.into_inner())
    };
    let response = tokio::time::timeout(CALL_TIMEOUT, call)
        .await
        .map_err(|_elapsed| CallError::from(Status::deadline_exceeded("no answer in time")))??;
    Ok(content::token(response, &output.audiences, hint, now)?)
}

/// Writes a token to its file.
pub(super) async fn write(output: &JwtSvidOutput, token: Token) -> Result<(), FileError> {
    let file = output.file.clone();
    let written = move || private_file::write(&file.path, token.text.as_bytes(), file.mode);
    match tokio::task::spawn_blocking(written).await {
        Ok(outcome) => outcome,
        Err(error) => Err(FileError::Io {
            action: "write file",
            path: output.file.path.clone(),
            source: std::io::Error::other(error),
        }),
    }
}

/// Keeps one token fresh until `stop`.
pub(super) async fn keep_fresh(
    socket: &Path,
    output: JwtSvidOutput,
    hint: Option<String>,
    statuses: Statuses,
    clock: Clock,
    mut backoff: Backoff,
    stop: Stop,
) -> Result<(), Infallible> {
    let which = Which::Jwt(output.file.shown.clone());
    let mut trouble = Trouble::default();
    loop {
        let renewed = async {
            let token = fetch(socket, &output, hint.as_deref(), clock.now()).await?;
            let (spiffe_id, expires_at) = (token.spiffe_id.clone(), token.expires_at);
            write(&output, token).await?;
            tracing::info!(%spiffe_id, %expires_at, file = output.file.shown, "JWT-SVID is written");
            Ok::<_, TokenError>(expires_at)
        };
        let outcome = tokio::select! {
            () = stop.stopped() => return Ok(()),
            outcome = renewed => outcome,
        };
        let pause = match outcome {
            Ok(expires_at) => {
                backoff.reset();
                trouble.over(WHAT);
                statuses.set(&which, Written::Yes);
                half_of_life(expires_at, clock.now())
            }
            Err(TokenError::Call(error)) => {
                let pause = backoff.pause();
                trouble.report(WHAT, &error, pause);
                pause
            }
            Err(error) => {
                let pause = backoff.pause();
                statuses.set(&which, Written::Failed);
                tracing::error!(file = output.file.shown, %error, retry_in = pause.as_secs_f32(), "JWT-SVID cannot be written");
                pause
            }
        };
        tokio::select! {
            () = stop.stopped() => return Ok(()),
            () = sleep_by(&clock, pause) => {}
        }
    }
}

/// A second more than half of what is left, as spiffe-helper waits.
fn half_of_life(expires_at: OffsetDateTime, now: OffsetDateTime) -> Duration {
    let left = Duration::try_from(expires_at - now).unwrap_or_default();
    left / 2 + Duration::from_secs(1)
}

/// Sleeps by the clock on the wall, which continues while the machine is suspended.
async fn sleep_by(clock: &Clock, pause: Duration) {
    let until = clock.now() + pause;
    loop {
        let left = Duration::try_from(until - clock.now()).unwrap_or_default();
        // A clock that was set back must not make it longer.
        if left.is_zero() || left > pause {
            return;
        }
        tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2030-01-02 03:04:05 UTC);

    #[test]
    fn a_token_is_renewed_a_second_after_half_of_its_life() {
        let five_minutes = NOW + Duration::from_secs(300);
        assert_eq!(half_of_life(five_minutes, NOW), Duration::from_secs(151));
        assert_eq!(half_of_life(NOW, five_minutes), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_suspended_machine_wakes_up_late_by_one_sleep_at_most() {
        let clock = Clock::paused_at(NOW);
        let started = tokio::time::Instant::now();
        sleep_by(&clock, Duration::from_secs(100)).await;
        assert_eq!(started.elapsed().as_secs(), 100);
        let (moved, started) = (clock.clone(), tokio::time::Instant::now());
        tokio::join!(sleep_by(&clock, Duration::from_secs(3600)), async move {
            tokio::time::sleep(Duration::from_secs(10)).await;
            moved.shift(time::Duration::hours(2));
        });
        assert_eq!(started.elapsed().as_secs(), 30);
    }
}
