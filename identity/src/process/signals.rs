//! Signals to a long-running program.

use std::future::Future;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::log::LogControl;

/// Completes with the first SIGINT or SIGTERM. Until then SIGUSR2 opens the log file again, and SIGUSR1, which has plugins
/// read their files again in SPIRE, is taken without effect.
///
/// # Errors
/// When signals cannot be listened for.
pub fn told_to_end(log: LogControl) -> io::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut reload = signal(SignalKind::user_defined1())?;
    let mut reopen = signal(SignalKind::user_defined2())?;
    Ok(async move {
        loop {
            tokio::select! {
                () = received(&mut interrupt) => return,
                () = received(&mut terminate) => return,
                () = received(&mut reload) => tracing::info!("no plugin reads its data from a file"),
                () = received(&mut reopen) => match log.reopen() {
                    Ok(_has_file) => tracing::info!("log file reopened"),
                    Err(error) => tracing::error!(%error, "log file cannot be reopened"),
                },
            }
        }
    })
}

async fn received(signal: &mut Signal) {
    if signal.recv().await.is_none() {
        std::future::pending::<()>().await;
    }
}
