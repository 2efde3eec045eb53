//! The workload attestor `unix`: the user, the groups and, on request, the program of a process.
//!
//! Facts: `uid`, `gid` (effective), `user`, `group`, `supplementary_gid`, `supplementary_group`, and with
//! `discover_workload_path` also `path` and `sha256`. `path` is the program's path in the workload's mount
//! namespace: a container chooses it freely, and a deleted program ends in ` (deleted)`. Names come only
//! from `/etc/passwd` and `/etc/group`; without a name there, only the number is a fact.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use finial_identity::process::Clock;
use finial_identity::selector::Selector;

use super::program_hash::ProgramHashes;
use super::user_database::NameFile;
use super::{AttestorError, FileId, Process, WorkloadAttestor, off_thread};
use crate::config::UnixSettings;

const NAME: &str = "unix";

/// Attests by what `/proc` says.
#[derive(Debug)]
pub struct UnixAttestor {
    settings: UnixSettings,
    users: Arc<NameFile>,
    groups: Arc<NameFile>,
    hashes: ProgramHashes,
}

impl UnixAttestor {
    /// An attestor that finds `etc/passwd` and `etc/group` below `root`, usually `/`. The clock tells which files
    /// were changed so recently that their hash is not to be remembered.
    pub fn new(settings: UnixSettings, root: &Path, clock: Clock) -> Self {
        Self {
            settings,
            users: Arc::new(NameFile::at(root.join("etc/passwd"))),
            groups: Arc::new(NameFile::at(root.join("etc/group"))),
            hashes: ProgramHashes::new(clock),
        }
    }

    /// What is done for processes of pods counts for their pods and not for their users, if so, as where pods are attested.
    #[must_use]
    pub fn telling_pods(self, tells_pods: bool) -> Self {
        Self {
            hashes: self.hashes.telling_pods(tells_pods),
            ..self
        }
    }
}

#[async_trait]
impl WorkloadAttestor for UnixAttestor {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn attest(&self, process: &Arc<Process>) -> Result<Vec<Selector>, AttestorError> {
        let settings = self.settings;
        if !settings.discover_workload_path
            && let (Some(users), Some(groups)) = (self.users.unchanged(), self.groups.unchanged())
        {
            // The kernel tells a process's ids without waiting for the process or for a file. Another thread would
            // cost more than the answer.
            let (_uid, facts) = ids(process, &users, &groups)?;
            return Ok(facts);
        }
        let (users, groups) = (Arc::clone(&self.users), Arc::clone(&self.groups));
        let who = Arc::clone(process);
        let (uid, mut facts) = off_thread(move || {
            let users = users.names().map_err(AttestorError::io("read users"))?;
            let groups = groups.names().map_err(AttestorError::io("read groups"))?;
            let (uid, mut facts) = ids(&who, &users, &groups)?;
            if settings.discover_workload_path {
                facts.extend(path(&who)?);
            }
            Ok((uid, facts))
        })
        .await?;
        if settings.discover_workload_path && settings.workload_size_limit >= 0 {
            let limit = settings.workload_size_limit.unsigned_abs();
            let hash = self.hashes.sha256(process, uid, limit).await?;
            facts.push(fact("sha256", hash)?);
        }
        Ok(facts)
    }
}

/// The effective user id, and the facts about user and groups.
fn ids(
    process: &Process,
    users: &HashMap<u32, String>,
    groups: &HashMap<u32, String>,
) -> Result<(u32, Vec<Selector>), AttestorError> {
    let ids = process
        .procfs()
        .ids(process.pid())
        .map_err(AttestorError::io("read process status"))?;
    if let Some(connected_as) = process.ids_at_connect()
        && (connected_as.uid, connected_as.gid) != (ids.uid, ids.gid)
    {
        return Err(AttestorError::IdsChanged {
            connected_as,
            uid: ids.uid,
            gid: ids.gid,
        });
    }
    let mut facts = vec![fact("uid", ids.uid)?, fact("gid", ids.gid)?];
    if let Some(name) = users.get(&ids.uid) {
        facts.push(fact("user", name)?);
    }
    if let Some(name) = groups.get(&ids.gid) {
        facts.push(fact("group", name)?);
    }
    for gid in ids.groups {
        facts.push(fact("supplementary_gid", gid)?);
        if let Some(name) = groups.get(&gid) {
            facts.push(fact("supplementary_group", name)?);
        }
    }
    Ok((ids.uid, facts))
}

/// The program's path. One that is no text cannot be written as a selector, so no entry can name it.
fn path(process: &Process) -> Result<Option<Selector>, AttestorError> {
    let link = process.procfs().folder(process.pid()).join("exe");
    let target = std::fs::read_link(link).map_err(AttestorError::io("read path of program"))?;
    let program = process.procfs().program(process.pid());
    same_program(process, program.map_err(AttestorError::io("identify program"))?)?;
    target.to_str().map(|path| fact("path", path)).transpose()
}

/// What is told of the program must be about the one that connected.
pub(super) fn same_program(process: &Process, program: FileId) -> Result<(), AttestorError> {
    if process.program_at_connect() == Some(program) {
        Ok(())
    } else {
        Err(AttestorError::ProgramChanged(process.pid()))
    }
}

fn fact(name: &str, value: impl std::fmt::Display) -> Result<Selector, AttestorError> {
    Ok(Selector::new(NAME, &format!("{name}:{value}"))?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)] // Tests lay out files by hand.
    use std::collections::BTreeSet;
    use std::process::{Child, Command, Stdio};

    use futures_util::FutureExt as _;

    use super::*;
    use crate::workload::{ConnectedAs, ProcFs};

    struct Workload {
        child: Child,
        process: Arc<Process>,
        root: tempfile::TempDir,
    }

    impl Workload {
        fn start() -> Self {
            let child = Command::new("cat")
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            let process = Process::open(i64::from(child.id()), &ProcFs::default()).unwrap();
            let root = tempfile::tempdir().unwrap();
            std::fs::create_dir(root.path().join("etc")).unwrap();
            Self {
                child,
                process: Arc::new(process),
                root,
            }
        }

        async fn attest(&self, settings: UnixSettings) -> Result<BTreeSet<String>, AttestorError> {
            let attestor = UnixAttestor::new(settings, self.root.path(), Clock::system());
            let facts = attestor.attest(&self.process).await?;
            Ok(facts.iter().map(ToString::to_string).collect())
        }

        fn program(&self) -> std::path::PathBuf {
            std::fs::read_link(format!("/proc/{}/exe", self.child.id())).unwrap()
        }
    }

    impl Drop for Workload {
        fn drop(&mut self) {
            let _dead = self.child.kill();
            let _reaped = self.child.wait();
        }
    }

    const WITH_PATH: UnixSettings = UnixSettings {
        discover_workload_path: true,
        workload_size_limit: 0,
    };

    #[tokio::test]
    async fn tells_ids_and_the_names_that_are_known() {
        let workload = Workload::start();
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        std::fs::write(
            workload.root.path().join("etc/passwd"),
            format!("me:x:{uid}:1::/:\n"),
        )
        .unwrap();
        std::fs::write(workload.root.path().join("etc/group"), format!("us:x:{gid}:\n")).unwrap();
        let facts = workload.attest(UnixSettings::default()).await.unwrap();
        for expected in [
            format!("unix:uid:{uid}"),
            format!("unix:gid:{gid}"),
            "unix:user:me".to_owned(),
            "unix:group:us".to_owned(),
        ] {
            assert!(facts.contains(&expected), "{expected} not in {facts:?}");
        }
        assert!(
            !facts
                .iter()
                .any(|fact| fact.starts_with("unix:path") || fact.starts_with("unix:sha256"))
        );
    }

    #[tokio::test]
    async fn nobody_is_waited_for_once_the_names_are_known() {
        let workload = Workload::start();
        std::fs::write(workload.root.path().join("etc/passwd"), "me:x:1::/:\n").unwrap();
        let attestor = UnixAttestor::new(UnixSettings::default(), workload.root.path(), Clock::system());
        let at_once = |attestor: &UnixAttestor| attestor.attest(&workload.process).now_or_never();
        let first = attestor.attest(&workload.process).await.unwrap();
        assert_eq!(at_once(&attestor).unwrap().unwrap(), first);
        std::fs::write(workload.root.path().join("etc/group"), "us:x:1\n").unwrap();
        assert!(attestor.groups.unchanged().is_none(), "it is read anew");
        let told = attestor.attest(&workload.process).await.unwrap();
        assert_eq!(at_once(&attestor).unwrap().unwrap(), told);
    }

    #[tokio::test]
    async fn supplementary_groups_are_told_by_number_and_name() {
        let dir = tempfile::tempdir().unwrap();
        let pid = std::process::id();
        let folder = dir.path().join(pid.to_string());
        std::fs::create_dir_all(dir.path().join("etc")).unwrap();
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(
            folder.join("status"),
            "Uid:\t1 2 3 4\nGid:\t5 6 7 8\nGroups:\t27 99 \n",
        )
        .unwrap();
        std::fs::copy("/proc/self/stat", folder.join("stat")).unwrap();
        std::fs::write(dir.path().join("etc/group"), "sudo:x:27:\n").unwrap();
        let process = Process::open(i64::from(pid), &ProcFs::at(dir.path())).unwrap();
        let attestor = UnixAttestor::new(UnixSettings::default(), dir.path(), Clock::system());
        let facts: Vec<String> = attestor
            .attest(&Arc::new(process))
            .await
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        let expected = [
            "unix:uid:2",
            "unix:gid:6",
            "unix:supplementary_gid:27",
            "unix:supplementary_group:sudo",
            "unix:supplementary_gid:99",
        ];
        assert_eq!(facts, expected);
    }

    #[tokio::test]
    async fn a_process_that_acts_as_another_than_connected_fails_the_attestor() {
        let mut workload = Workload::start();
        let pid = i64::from(workload.child.id());
        let (uid, gid) = (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        );
        for (ids, allowed) in [
            ((uid, gid), true),
            ((uid ^ 1, gid), false),
            ((uid, gid ^ 1), false),
        ] {
            let process = Process::open(pid, &ProcFs::default()).unwrap();
            let (uid, gid) = ids;
            workload.process = Arc::new(process.connected_as(ConnectedAs { uid, gid }));
            let answer = workload.attest(UnixSettings::default()).await;
            assert!(
                matches!(&answer, Err(AttestorError::IdsChanged { .. })) != allowed
                    && answer.is_ok() == allowed,
                "{answer:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_process_that_executed_another_program_fails_path_and_hash() {
        let mut child = Command::new("sh")
            .args(["-c", "read line; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let ourselves = std::fs::read_link("/proc/self/exe").unwrap();
        let exe = format!("/proc/{}/exe", child.id());
        while std::fs::read_link(&exe).unwrap() == ourselves {
            tokio::task::yield_now().await;
        }
        let before = std::fs::read_link(&exe).unwrap();
        let process = Process::open(i64::from(child.id()), &ProcFs::default()).unwrap();
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"go\n").unwrap();
        while std::fs::read_link(&exe).unwrap() == before {
            tokio::task::yield_now().await;
        }
        let process = Arc::new(process);
        let refused = |answer: Result<(), AttestorError>| {
            assert!(
                matches!(answer, Err(AttestorError::ProgramChanged(_))),
                "{answer:?}"
            );
        };
        refused(path(&process).map(|_| ()));
        let hashes = ProgramHashes::new(Clock::system());
        refused(hashes.sha256(&process, 0, 0).await.map(|_| ()));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn numbers_without_a_name_have_none() {
        let facts = Workload::start().attest(UnixSettings::default()).await.unwrap();
        assert!(
            !facts
                .iter()
                .any(|fact| fact.starts_with("unix:user:") || fact.starts_with("unix:group:"))
        );
    }

    #[tokio::test]
    async fn path_and_hash_are_those_of_the_running_program() {
        let workload = Workload::start();
        let program = workload.program();
        let facts = workload.attest(WITH_PATH).await.unwrap();
        assert!(
            facts.contains(&format!("unix:path:{}", program.display())),
            "{facts:?}"
        );
        let digest = ring::digest::digest(&ring::digest::SHA256, &std::fs::read(program).unwrap());
        let digest = data_encoding::HEXLOWER.encode(digest.as_ref());
        assert!(facts.contains(&format!("unix:sha256:{digest}")), "{facts:?}");
    }

    #[tokio::test]
    async fn a_negative_limit_means_no_hash() {
        let settings = UnixSettings {
            workload_size_limit: -1,
            ..WITH_PATH
        };
        let facts = Workload::start().attest(settings).await.unwrap();
        assert!(facts.iter().any(|fact| fact.starts_with("unix:path:")));
        assert!(!facts.iter().any(|fact| fact.starts_with("unix:sha256:")));
    }

    #[tokio::test]
    async fn a_program_over_the_limit_fails_the_attestor() {
        let workload = Workload::start();
        let size = std::fs::metadata(workload.program()).unwrap().len();
        let limited = |limit: u64| UnixSettings {
            workload_size_limit: i64::try_from(limit).unwrap(),
            ..WITH_PATH
        };
        let error = workload.attest(limited(size - 1)).await.unwrap_err();
        assert!(matches!(error, AttestorError::ProgramTooLarge { .. }), "{error}");
        assert!(workload.attest(limited(size)).await.is_ok());
    }

    #[tokio::test]
    async fn users_that_cannot_be_read_fail_the_attestor() {
        let workload = Workload::start();
        std::fs::create_dir(workload.root.path().join("etc/passwd")).unwrap();
        let error = workload.attest(UnixSettings::default()).await.unwrap_err();
        assert!(matches!(error, AttestorError::Io { .. }), "{error}");
    }
}
