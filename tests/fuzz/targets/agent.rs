//! Entry points of the fuzzer into `finial-agent`.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use finial_agent::config::{Config, Flags, UnixSettings};
use finial_agent::endpoints::broker::reference::{Reference, ReferenceType};
use finial_agent::helper::{self, HelperConfig};
use finial_agent::node::AgentStorage;
use finial_agent::workload::unix::UnixAttestor;
use finial_agent::workload::{ProcFs, Process, WorkloadAttestor as _};
use finial_identity::process::Clock;
use finial_proto::spiffe::broker::WorkloadReference;
use prost::Message as _;
use tokio::runtime::Runtime;

/// A target's name, which is also the folder of its corpus, and what runs it.
pub type Target = (&'static str, fn(&[u8]));

/// All targets of this part.
pub const TARGETS: &[Target] = &[
    ("agent_config", run_config),
    ("agent_data", run_data),
    ("broker_reference", run_broker_reference),
    ("helper_config", run_helper_config),
    ("workload_files", run_workload_files),
];

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime of one thread")
});

/// The configuration file, in the format that its first word fits.
fn run_config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let name = if text.starts_with("agent:") {
        "agent.yaml"
    } else {
        "agent.conf"
    };
    if let Err(error) = Config::parse(text, Path::new(name), &Flags::default()) {
        assert!(!error.to_string().is_empty());
    }
}

/// The configuration file of the helper, whose `cmd_args` have a syntax of their own.
fn run_helper_config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let name = if text.starts_with("agent_address:") {
        "helper.yaml"
    } else {
        "helper.conf"
    };
    let flags = helper::Flags {
        config: name.into(),
        agent_address: None,
        daemon_mode: None,
    };
    if let Err(error) = HelperConfig::parse(text, &flags, &|_| None) {
        assert!(!error.to_string().is_empty());
    }
}

/// The reference of a broker's request.
fn run_broker_reference(data: &[u8]) {
    let Ok(WorkloadReference {
        reference: Some(reference),
    }) = WorkloadReference::decode(data)
    else {
        return;
    };
    let kind = match ReferenceType::of(&reference) {
        Ok(kind) => kind,
        Err(error) => {
            assert!(!error.to_string().is_empty() && error.to_string().len() < 4096);
            return;
        }
    };
    assert_eq!(kind.url(), reference.type_url);
    match kind.parse(&reference.value) {
        Ok(read) => {
            assert_eq!(read.kind(), kind);
            match read {
                Reference::Pid(pid) => assert!(pid > 0),
                Reference::KubernetesObject(object) => {
                    assert!(object.key.is_some() || object.uid.is_some());
                    assert!(
                        (1..=63).contains(&object.plural.len()) && (1..=253).contains(&object.group.len())
                    );
                    if let Some(key) = object.key {
                        assert!((1..=253).contains(&key.name.len()));
                        assert!(key.namespace.is_none_or(|name| (1..=63).contains(&name.len())));
                    }
                }
            }
        }
        Err(error) => assert!(!error.to_string().is_empty() && error.to_string().len() < 4096),
    }
}

/// `agent-data.json`. What is read and written again is read as the same; what cannot be read is left alone.
fn run_data(data: &[u8]) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("agent-data.json");
    std::fs::write(&path, data).expect("a file in it");
    match AgentStorage::open(dir.path()) {
        Ok(storage) => {
            storage
                .update(|data| data.reattestable = !data.reattestable)
                .expect("the file can be written");
            storage
                .update(|data| data.reattestable = !data.reattestable)
                .expect("the file can be written");
            assert_eq!(
                AgentStorage::open(dir.path()).expect("a file of our own").data(),
                storage.data()
            );
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert_eq!(std::fs::read(&path).expect("it is still there"), data);
        }
    }
}

/// `/proc/<pid>/status`, `/proc/<pid>/stat`, `/etc/passwd` and `/etc/group`, separated by NUL bytes.
fn run_workload_files(data: &[u8]) {
    let mut parts = data.split(|byte| *byte == 0);
    let mut next = || parts.next().unwrap_or_default();
    let root = tempfile::tempdir().expect("a temporary directory");
    let own = root.path().join(std::process::id().to_string());
    let other = root.path().join("1");
    for folder in [&own, &other, &root.path().join("etc")] {
        std::fs::create_dir(folder).expect("a folder in it");
    }
    let write = |path: &Path, bytes: &[u8]| std::fs::write(path, bytes).expect("a file in it");
    write(&own.join("status"), next());
    write(&other.join("stat"), next());
    write(&root.path().join("etc/passwd"), next());
    write(&root.path().join("etc/group"), next());
    symlink("/proc/self/stat", own.join("stat")).expect("a link in it");

    let procfs = ProcFs::at(root.path());
    if let Ok(ticks) = procfs.start_ticks(1) {
        let _instant = procfs.instant_of(ticks);
    }
    RUNTIME.block_on(async {
        let process = Process::open(i64::from(std::process::id()), &procfs).expect("this very process");
        let attestor = UnixAttestor::new(UnixSettings::default(), root.path(), Clock::system());
        let (ids, facts) = (
            procfs.ids(process.pid()),
            attestor.attest(&Arc::new(process)).await,
        );
        assert_eq!(
            ids.is_ok(),
            facts.is_ok() || ids.is_ok() && has_long_name(data),
            "{facts:?}"
        );
        if let (Ok(ids), Ok(facts)) = (ids, facts) {
            assert_eq!(facts[0].to_string(), format!("unix:uid:{}", ids.uid));
            assert_eq!(facts[1].to_string(), format!("unix:gid:{}", ids.gid));
            let supplementary = facts
                .iter()
                .filter(|fact| fact.value().starts_with("supplementary_gid:"));
            assert_eq!(supplementary.count(), ids.groups.len());
            assert!(
                facts
                    .iter()
                    .filter(|fact| fact.value().starts_with("user:"))
                    .count()
                    <= 1
            );
            assert!(
                facts
                    .iter()
                    .filter(|fact| fact.value().starts_with("group:"))
                    .count()
                    <= 1
            );
        }
    });
}

/// A name that makes no selector fails the attestation.
fn has_long_name(data: &[u8]) -> bool {
    data.len() > 1024
}
