//! Keeps the files up to date until stopped.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use finial_identity::process::private_file;
use finial_identity::process::{Clock, Stop, TaskError, TaskSet};
use finial_proto::workload::{JwtBundlesResponse, X509svidResponse};
use rustix::process::Signal;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::backoff::Backoff;
use super::command::{Ending, STOP_GRACE, Supervisor};
use super::config::{HelperConfig, X509Output};
use super::content::{self, ContentError, X509Files};
use super::feed::{self, JwtBundles, X509Svids};
use super::health::{self, Statuses, Which, Written};
use super::swap::{FileSet, SwapError};
use super::{pid_file, tokens, writer};

/// Between attempts to reach the agent, and to write files.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Between attempts to get a JWT-SVID, as in spiffe-helper.
const FIRST_TOKEN_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_TOKEN_PAUSE: Duration = Duration::from_secs(60);

/// Why the daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The port of the health checks cannot be listened on.
    #[error("health_checks: listen on port {port}")]
    Listen {
        /// The port.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
}

/// A daemon whose listener is open and whose files are not yet written.
#[derive(Debug)]
pub struct Daemon {
    tasks: TaskSet,
    ending: Ending,
    health_addr: Option<SocketAddr>,
}

/// Opens the listener and puts the tasks together. `is_first_process` says that orphans of other processes are ours to
/// collect. Must be called on the runtime that runs the daemon.
///
/// # Errors
/// [`BuildError`].
pub async fn build(config: HelperConfig, clock: Clock, is_first_process: bool) -> Result<Daemon, BuildError> {
    let listener = match &config.health_checks {
        None => None,
        Some(checks) => {
            let failed = |source| BuildError::Listen {
                port: checks.port,
                source,
            };
            let listener = listen(checks.port).await.map_err(failed)?;
            Some((listener, checks.clone()))
        }
    };
    let health_addr = listener
        .as_ref()
        .and_then(|(listener, _)| listener.local_addr().ok());
    let statuses = Statuses::new(&config);
    let mut daemon = Daemon {
        tasks: TaskSet::with_deadline(STOP_GRACE + Duration::from_secs(5)),
        ending: Ending::default(),
        health_addr,
    };
    daemon.keep_x509(&config, &statuses, &clock, is_first_process);
    daemon.keep_jwt_bundle(&config, &statuses);
    daemon.keep_jwt_svids(&config, &statuses, &clock);
    if let Some((listener, checks)) = listener {
        let stop = daemon.tasks.stop_signal();
        daemon
            .tasks
            .spawn("health", health::serve(listener, checks, statuses, stop));
    }
    Ok(daemon)
}

impl Daemon {
    /// Where probes are answered, when they are.
    pub fn health_addr(&self) -> Option<SocketAddr> {
        self.health_addr
    }

    /// Works until `shutdown` gives the signal that ends us, which is passed on to the command.
    ///
    /// # Errors
    /// What ended it, other than `shutdown`.
    pub async fn run(self, shutdown: impl Future<Output = Signal>) -> Result<(), TaskError> {
        let ending = self.ending;
        let shutdown = async {
            // Set once: there is one shutdown.
            let _first = ending.set(shutdown.await);
        };
        self.tasks.run_until_first_exit(shutdown).await
    }

    fn keep_x509(
        &mut self,
        config: &HelperConfig,
        statuses: &Statuses,
        clock: &Clock,
        is_first_process: bool,
    ) {
        let (renewed, renewals) = watch::channel(0);
        if config.command.is_some() || is_first_process {
            let supervisor = Supervisor::new(config.command.clone(), config.renew_signal, is_first_process);
            let stop = self.tasks.stop_signal();
            self.tasks.spawn(
                "command",
                supervisor.run(renewals.clone(), Arc::clone(&self.ending), stop),
            );
        }
        if let (Some(path), Some(signal)) = (&config.pid_file, config.renew_signal) {
            let stop = self.tasks.stop_signal();
            let pauses = pid_file::pauses(rand::random::<f64>);
            self.tasks.spawn(
                "pid-file",
                pid_file::signal_each_renewal(path.clone(), signal, renewals, pauses, stop),
            );
        }
        let Some(output) = config.x509.clone() else {
            return;
        };
        let (news, newest) = watch::channel(None);
        let (hint, now) = (config.hint.clone(), clock.clone());
        let accept = {
            let (output, statuses) = (output.clone(), statuses.clone());
            move |message: X509svidResponse| {
                let files = content::x509_files(&message, &output, hint.as_deref(), now.now());
                take(files, &news, &statuses, &Which::X509);
            }
        };
        let publish = publisher(&output, clock.clone());
        let written = move |files: &X509Files| {
            tracing::info!(spiffe_id = %files.spiffe_id, expires_at = %files.expires_at, "X.509-SVID is written");
            renewed.send_modify(|count| *count += 1);
        };
        let stop = self.tasks.stop_signal();
        self.tasks
            .spawn("x509-svid", follow::<X509Svids>(config, accept, stop.clone()));
        let place = (statuses.clone(), Which::X509);
        self.tasks.spawn(
            "x509-files",
            writer::write_newest(newest, publish, written, place, pauses(), stop),
        );
    }

    fn keep_jwt_bundle(&mut self, config: &HelperConfig, statuses: &Statuses) {
        let Some(file) = config.jwt_bundle.clone() else {
            return;
        };
        let which = Which::Jwt(file.shown.clone());
        let (news, newest) = watch::channel(None);
        let accept = {
            let (statuses, which) = (statuses.clone(), which.clone());
            move |message: JwtBundlesResponse| {
                take(content::jwt_bundle_json(&message), &news, &statuses, &which);
            }
        };
        let shown = file.shown.clone();
        let written = move |_: &String| tracing::info!(file = shown, "JWT bundle is written");
        let write = move |text: &String| private_file::write(&file.path, text.as_bytes(), file.mode);
        let stop = self.tasks.stop_signal();
        self.tasks
            .spawn("jwt-bundle", follow::<JwtBundles>(config, accept, stop.clone()));
        let place = (statuses.clone(), which);
        self.tasks.spawn(
            "jwt-bundle-file",
            writer::write_newest(newest, write, written, place, pauses(), stop),
        );
    }

    fn keep_jwt_svids(&mut self, config: &HelperConfig, statuses: &Statuses, clock: &Clock) {
        for output in &config.jwt_svids {
            let (socket, output) = (config.socket.clone(), output.clone());
            let (hint, statuses, clock) = (config.hint.clone(), statuses.clone(), clock.clone());
            let backoff = Backoff::new(FIRST_TOKEN_PAUSE, LONGEST_TOKEN_PAUSE, rand::random::<f64>);
            let stop = self.tasks.stop_signal();
            self.tasks.spawn("jwt-svid", async move {
                tokens::keep_fresh(&socket, output, hint, statuses, clock, backoff, stop).await
            });
        }
    }
}

/// Puts the three files in place as one step.
pub(super) fn publisher(
    output: &X509Output,
    clock: Clock,
) -> impl Fn(&X509Files) -> Result<(), SwapError> + Send + Sync + 'static {
    let set = FileSet::new(&[&output.svid, &output.key, &output.bundle]);
    move |files| {
        let contents = [
            files.svid_pem.as_bytes(),
            files.key_pem.as_bytes(),
            files.bundle_pem.as_bytes(),
        ];
        set.publish(&contents, clock.now())
    }
}

/// Passes content to the writer. Content that cannot be used is logged, and the files are kept.
fn take<T>(
    content: Result<T, ContentError>,
    news: &watch::Sender<Option<Arc<T>>>,
    statuses: &Statuses,
    which: &Which,
) {
    match content {
        Ok(content) => {
            news.send_replace(Some(Arc::new(content)));
        }
        Err(error) => {
            statuses.set(which, Written::Failed);
            tracing::error!(file = %which, %error, "answer of the agent cannot be used; files that are there stay as they are");
        }
    }
}

fn follow<F: feed::Feed>(
    config: &HelperConfig,
    accept: impl FnMut(F::Message) + Send + 'static,
    stop: Stop,
) -> impl Future<Output = Result<(), Infallible>> + Send + 'static {
    let socket: Arc<Path> = Arc::from(config.socket.as_path());
    async move { feed::follow::<F>(&socket, accept, pauses(), stop).await }
}

fn pauses() -> Backoff {
    Backoff::new(FIRST_PAUSE, LONGEST_PAUSE, rand::random::<f64>)
}

/// All addresses of the machine, as spiffe-helper listens; those of IPv4 alone where there is no IPv6.
async fn listen(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
        }
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests;
