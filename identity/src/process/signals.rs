//! Signals to a long-running program.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::log::LogControl;

/// The signals of a program that runs until it is told to end: none is lost or ends it otherwise from here on.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    reload: Signal,
    reopen: Signal,
}

impl Signals {
    /// Begins to listen.
    ///
    /// # Errors
    /// When signals cannot be listened for.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            reload: signal(SignalKind::user_defined1())?,
            reopen: signal(SignalKind::user_defined2())?,
        })
    }

    /// Completes with the first SIGINT or SIGTERM. Until then SIGUSR1 calls `reload`, and SIGUSR2 opens the log file
    /// anew.
    pub async fn told_to_end(mut self, log: LogControl, mut reload: impl AsyncFnMut()) {
        loop {
            tokio::select! {
                () = received(&mut self.interrupt) => return,
                () = received(&mut self.terminate) => return,
                () = received(&mut self.reload) => tokio::select! {
                    () = received(&mut self.interrupt) => return,
                    () = received(&mut self.terminate) => return,
                    () = reload() => {}
                },
                () = received(&mut self.reopen) => match log.reopen() {
                    Ok(_has_file) => tracing::info!("log file reopened"),
                    Err(error) => tracing::error!(%error, "log file cannot be reopened"),
                },
            }
        }
    }
}

async fn received(signal: &mut Signal) {
    if signal.recv().await.is_none() {
        std::future::pending::<()>().await;
    }
}
