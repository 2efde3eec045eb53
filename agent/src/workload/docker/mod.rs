//! The workload attestor `docker`: what Docker or Podman was told about the container that a process is in.
//!
//! Facts: `label`, `env`, `image_id`, `image_config_digest`. The container is found by the names of the process's
//! control groups, and the engine that made it is asked; for a user's own Podman that is the user's engine. Such a user
//! chooses the names and labels of its containers, so its engine is asked only when the operator trusts that user, and
//! its answer also has the fact `podman_user:<uid>`. A name is not enough: whoever may make control groups, such as a
//! user in the part of the tree that systemd delegates, may name one after another user's container. So the container's
//! first process, which the engine names, must be in the same group; and a process that only has a container's group
//! mounted must share the mounts of its first process.
//!
//! A process in no container, in one that the engine does not have, or in one of a user who is not trusted, has no such
//! facts. If the engine cannot be reached, or its answer cannot be parsed, attestation fails.

mod answer;
mod engine;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use finial_identity::selector::Selector;
use tokio::sync::Semaphore;

pub use self::answer::{AnswerError, Container};
use self::engine::Engine;
use super::container::{ContainerRef, SeenIn, by_rule, in_cgroups, in_mounts, parse_cgroup_mounts};
use super::permits::Permits;
use super::{AttestorError, Process, WorkloadAttestor, cgroups, off_thread};
use crate::config::DockerSettings;

const NAME: &str = "docker";

/// How many requests are under way at the same time.
const MAX_REQUESTS: usize = 16;
/// How many of them are to a user's own engine, which may be as slow as that user likes.
const MAX_USER_REQUESTS: usize = 4;
/// For how many users who are not trusted this is logged, once each.
const MAX_TOLD: usize = 1024;

/// Attests by what a container engine knows.
#[derive(Debug)]
pub struct DockerAttestor {
    settings: Arc<DockerSettings>,
    requests: Semaphore,
    /// By the user whose engine is asked, whoever calls: that user decides how slow it is. No pod has such an engine.
    user_requests: Permits<u32>,
    /// Users who are not trusted, as far as that has been logged.
    told: Mutex<HashSet<u32>>,
}

/// Whom to ask about a container.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    socket: PathBuf,
    /// The user whose engine it is; `None` for one of the system.
    owner: Option<u32>,
}

impl DockerAttestor {
    /// An attestor that connects to engines when it is asked; none needs to run before.
    pub fn new(settings: DockerSettings) -> Self {
        Self {
            settings: Arc::new(settings),
            requests: Semaphore::new(MAX_REQUESTS),
            user_requests: Permits::default(),
            told: Mutex::default(),
        }
    }

    /// Whether the engine is one of the system, or of a user whom the operator trusts.
    fn believes(&self, source: &Source) -> bool {
        let Some(uid) = source
            .owner
            .filter(|uid| !self.settings.trusted_users.contains(*uid))
        else {
            return true;
        };
        // A list that a panic left half-changed only tells a user twice.
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() < MAX_TOLD && told.insert(uid) {
            tracing::warn!(
                uid,
                "workload in a container of a user's own Podman gets no docker: selectors; \
                 rootless_podman.trusted_uids names the users whose Podman is believed"
            );
        }
        false
    }

    async fn inspect(&self, id: &str, source: &Source) -> Result<Option<Container>, AttestorError> {
        let engine = Engine {
            socket: &source.socket,
            owner: source.owner,
            api_version: self.settings.api_version.as_deref(),
        };
        // A user's slow engine must not use up what the others need.
        let (_shared, _own) = match source.owner {
            None => (self.requests.acquire().await.ok(), None),
            Some(uid) => (
                None,
                Some(self.user_requests.acquire(uid, MAX_USER_REQUESTS).await),
            ),
        };
        let answer = engine.inspect(id).await;
        answer.map_err(AttestorError::service(format!(
            "ask {} about container {id}",
            source.socket.display()
        )))
    }
}

#[async_trait]
impl WorkloadAttestor for DockerAttestor {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn attest(&self, process: &Arc<Process>) -> Result<Vec<Selector>, AttestorError> {
        let (who, settings) = (Arc::clone(process), Arc::clone(&self.settings));
        let Some(place) = off_thread(move || locate(&who, &settings)).await? else {
            return Ok(Vec::new());
        };
        let source = source(&self.settings, &place);
        if !self.believes(&source) {
            return Ok(Vec::new());
        }
        let Some(container) = self.inspect(&place.id, &source).await? else {
            tracing::debug!(container = place.id, socket = %source.socket.display(), "engine has no such container");
            return Ok(Vec::new());
        };
        let action = format!("read answer about container {}", place.id);
        // A pattern of the operator's may find the short form of an id.
        if !container.id().starts_with(&place.id) {
            let text = format!("it is about another: {}", container.id());
            return Err(AttestorError::service(action)(text));
        }
        let mut facts = container.facts().map_err(AttestorError::service(action))?;
        if let Some(uid) = source.owner {
            facts.push(Selector::new(NAME, &format!("podman_user:{uid}"))?);
        }
        let who = Arc::clone(process);
        let is_inside = off_thread(move || is_inside(&who, &place, container.pid())).await?;
        Ok(if is_inside { facts } else { Vec::new() })
    }
}

/// The container that the names of control groups say the process is in.
fn locate(process: &Process, settings: &DockerSettings) -> Result<Option<ContainerRef>, AttestorError> {
    let groups = cgroups(process, process.pid())?;
    if settings.verbose {
        tracing::debug!(pid = process.pid(), ?groups, "cgroups of a workload");
    }
    if !settings.patterns.is_empty() {
        return Ok(by_rule(&groups, |path| settings.patterns.id_in(path))?);
    }
    if let Some(place) = in_cgroups(&groups)? {
        return Ok(Some(place));
    }
    let mounts = process
        .procfs()
        .mountinfo(process.pid())
        .map_err(AttestorError::io("read mounts of process"))?;
    let mounts = parse_cgroup_mounts(&mounts)?;
    if settings.verbose {
        tracing::debug!(pid = process.pid(), ?mounts, "cgroup mounts of a workload");
    }
    Ok(in_mounts(&mounts)?)
}

/// Whether the process is in the container whose first process is `first`. One that only has the container's
/// group mounted is not, unless it has the very mounts of the container.
///
/// # Errors
/// When its own group has the container's name and is not the container's.
fn is_inside(process: &Process, place: &ContainerRef, first: Option<u32>) -> Result<bool, AttestorError> {
    match (&place.seen_in, first) {
        (SeenIn::Mount, None) => Ok(false),
        (SeenIn::Mount, Some(first)) => {
            let namespace = |pid| process.procfs().mount_namespace(pid);
            let of_first = match namespace(first) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                namespace => namespace.map_err(AttestorError::io("read namespace of container"))?,
            };
            let own = namespace(process.pid()).map_err(AttestorError::io("read namespace of process"))?;
            Ok(own == of_first)
        }
        (SeenIn::Cgroup(_), first) => {
            let groups = first.map(|first| cgroups(process, first)).transpose()?;
            if groups.is_some_and(|groups| place.holds(&groups)) {
                Ok(true)
            } else {
                Err(AttestorError::ForeignCgroup(place.group.clone()))
            }
        }
    }
}

/// Podman's groups have names of their own, and those of a user's containers are in that user's slice.
fn source(settings: &DockerSettings, place: &ContainerRef) -> Source {
    if !place.group.contains("libpod-") && !place.group.contains("/libpod/") {
        return Source {
            socket: settings.docker_socket.clone(),
            owner: None,
        };
    }
    match user_of_slice(&place.group) {
        Some(uid) => Source {
            socket: settings.podman_user_socket.of(uid),
            owner: Some(uid),
        },
        None => Source {
            socket: settings.podman_socket.clone(),
            owner: None,
        },
    }
}

/// The user of the outermost `user-<uid>.slice`; what is further in, that user may have named.
fn user_of_slice(group: &str) -> Option<u32> {
    group.split('/').find_map(|part| {
        let digits = part.strip_prefix("user-")?.strip_suffix(".slice")?;
        (!digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit()))
            .then(|| digits.parse().ok())?
    })
}
