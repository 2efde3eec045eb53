//! The attestors that the configuration names, and what becomes of them when a file with their data changes.

use std::path::Path;
use std::sync::Arc;

use finial_identity::process::Clock;
use finial_identity::settings::{ConfigError, DataFile, Variables};
use tokio::sync::watch;

use super::{
    AttestorSet, DockerAttestor, K8sAttestor, PodLookup, SystemdAttestor, UnixAttestor, WorkloadAttestation,
    WorkloadAttestor,
};
use crate::config::WorkloadAttestors;

/// Makes the attestors, and makes them anew.
#[derive(Clone, Debug)]
pub struct ConfiguredAttestors {
    settings: WorkloadAttestors,
    clock: Clock,
    set: watch::Sender<Arc<AttestorSet>>,
}

impl ConfiguredAttestors {
    /// The attestors of the configuration, and what asks them.
    pub fn new(settings: WorkloadAttestors, clock: Clock) -> (Self, WorkloadAttestation) {
        let set = assemble(&settings, &clock, None);
        let (attestation, set) = WorkloadAttestation::of(set);
        let configured = Self { settings, clock, set };
        (configured, attestation)
    }

    /// Whether any attestor's data is in a file.
    pub fn has_files(&self) -> bool {
        !self.settings.files.is_empty()
    }

    /// Reads the files with attestors' data again (`plugin_data_file`). An attestor whose data changed is replaced:
    /// calls that come afterwards are put to the new one. With a file that cannot be used its attestor stays as it is.
    /// The log says what became of each.
    pub async fn read_again(&mut self, env: Variables<'_>) {
        let former = self.settings.clone();
        for (name, file) in &former.files {
            let path = file.path().display();
            match self.read_one(name, file, env).await {
                Ok(true) => tracing::info!(attestor = name, %path, "workload attestor reconfigured"),
                Ok(false) => {
                    tracing::info!(attestor = name, %path, "data of workload attestor has not changed")
                }
                Err(error) => tracing::error!(
                    attestor = name, %path, %error,
                    "data of workload attestor cannot be used, its former settings stay"
                ),
            }
        }
        if self.settings != former {
            let next = assemble(
                &self.settings,
                &self.clock,
                Some((&former, &self.set.borrow().clone())),
            );
            self.set.send_replace(Arc::new(next));
        }
    }

    /// Tells whether anything changed.
    async fn read_one(
        &mut self,
        name: &'static str,
        file: &DataFile,
        env: Variables<'_>,
    ) -> Result<bool, ReadError> {
        let reader = file.clone();
        let text = tokio::task::spawn_blocking(move || reader.read_text()).await;
        let text = text.map_err(|_stopped| ReadError::CutOff)??;
        let mut warnings = Vec::new();
        let next = self.settings.with_data(name, file, &text, env, &mut warnings)?;
        if next == self.settings {
            return Ok(false);
        }
        for warning in warnings {
            tracing::warn!(configuration = %warning, "configuration has a part that deserves attention");
        }
        self.settings = next;
        Ok(true)
    }
}

/// Why a file could not be read again.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("reading was cut off")]
    CutOff,
}

/// The attestors with these settings; those whose settings are as they were are kept, with what they remember.
fn assemble(
    settings: &WorkloadAttestors,
    clock: &Clock,
    former: Option<(&WorkloadAttestors, &Arc<AttestorSet>)>,
) -> AttestorSet {
    let kept = |name: &str, is_same: &dyn Fn(&WorkloadAttestors) -> bool| {
        let (_same, set) = former.filter(|(former, _set)| is_same(former))?;
        set.attestors
            .iter()
            .find(|attestor| attestor.name() == name)
            .cloned()
    };
    let mut set = AttestorSet::default();
    if let Some(unix) = settings.unix {
        let made = || {
            let attestor = UnixAttestor::new(unix, Path::new("/"), clock.clone());
            Arc::new(attestor.telling_pods(settings.k8s.is_some())) as Arc<dyn WorkloadAttestor>
        };
        let kept = kept("unix", &|former| former.unix == settings.unix);
        set.attestors.push(kept.unwrap_or_else(made));
    }
    if let Some(docker) = &settings.docker {
        let made = || Arc::new(DockerAttestor::new(docker.clone())) as Arc<dyn WorkloadAttestor>;
        let kept = kept("docker", &|former| former.docker == settings.docker);
        set.attestors.push(kept.unwrap_or_else(made));
    }
    if let Some(k8s) = &settings.k8s {
        let same = kept("k8s", &|former| former.k8s == settings.k8s);
        let of_kubelet = former.and_then(|(_settings, set)| set.pod_lookup.clone());
        match same.zip(of_kubelet) {
            Some((attestor, of_kubelet)) => {
                set.attestors.push(attestor);
                set.pod_lookup = Some(of_kubelet);
            }
            None => {
                let made = Arc::new(K8sAttestor::new(k8s.clone()));
                set.attestors.push(Arc::clone(&made) as Arc<dyn WorkloadAttestor>);
                set.pod_lookup = Some(made as Arc<dyn PodLookup>);
            }
        }
    }
    if settings.systemd {
        let made = || Arc::new(SystemdAttestor::new()) as Arc<dyn WorkloadAttestor>;
        set.attestors
            .push(kept("systemd", &|_former| true).unwrap_or_else(made));
    }
    set
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "tests lay out files by hand")]

    use super::*;
    use crate::config::{Config, Flags};
    use crate::workload::{ProcFs, Process};

    /// What the agent finds out about this process, as far as it depends on the data of `unix`.
    async fn has_path(attestation: &WorkloadAttestation) -> bool {
        let pid = i64::from(std::process::id());
        let process = Arc::new(Process::open(pid, &ProcFs::default()).unwrap());
        let facts = attestation.attest(&process).await.unwrap();
        facts.iter().any(|fact| fact.value().starts_with("path:"))
    }

    fn config(path: &Path) -> Config {
        let text = format!(
            r#"agent {{ trust_domain = "example.org" server_address = "a" server_port = 1 trust_bundle_path = "/b" }}
            plugins {{
                KeyManager "memory" {{}}
                NodeAttestor "join_token" {{}}
                WorkloadAttestor "unix" {{ plugin_data_file = "{}" }}
                WorkloadAttestor "systemd" {{}}
            }}"#,
            path.display()
        );
        Config::parse(&text, Path::new("agent.conf"), &Flags::default()).unwrap()
    }

    #[tokio::test]
    async fn what_changed_in_a_file_counts_once_it_is_read_again_and_a_bad_file_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("unix.conf");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write("discover_workload_path = false");
        let settings = config(&path).workload_attestors().clone();
        let (mut configured, attestation) = ConfiguredAttestors::new(settings, Clock::system());
        // What the sessions hold is a clone that was made before.
        let attestation = attestation.clone();
        // Systemd may not run here; what counts is whether it is the same attestor.
        let named = |name: &str| {
            let set = attestation.set();
            let found = set.attestors.iter().find(|attestor| attestor.name() == name);
            Arc::clone(found.unwrap())
        };
        let (unix, systemd) = (named("unix"), named("systemd"));
        let env = |_name: &str| None;
        assert!(configured.has_files());

        write("discover_workload_path = true");
        assert!(
            Arc::ptr_eq(&named("unix"), &unix),
            "nothing is read until told to"
        );
        configured.read_again(&env).await;
        let next = named("unix");
        assert!(!Arc::ptr_eq(&next, &unix) && Arc::ptr_eq(&named("systemd"), &systemd));
        let only = WorkloadAttestation::new(vec![Arc::clone(&next)], std::time::Duration::from_secs(5));
        assert!(has_path(&only).await);
        configured.read_again(&env).await;
        assert!(Arc::ptr_eq(&named("unix"), &next), "the same data is no change");
        for bad in ["discover_workload_path = 7", "discover_path = true", "{"] {
            write(bad);
            configured.read_again(&env).await;
            assert!(Arc::ptr_eq(&named("unix"), &next), "{bad}");
        }
        std::fs::remove_file(&path).unwrap();
        configured.read_again(&env).await;
        assert!(Arc::ptr_eq(&named("unix"), &next));
        write("");
        configured.read_again(&env).await;
        let only = WorkloadAttestation::new(vec![named("unix")], std::time::Duration::from_secs(5));
        assert!(!has_path(&only).await, "an empty file is the defaults");
    }
}
