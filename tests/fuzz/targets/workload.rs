//! Entry points of the fuzzer into the agent's workload attestors that read what others wrote.

use finial_agent::config::CgroupPatterns;
use finial_agent::csi::mountinfo;
use finial_agent::socket_tree::PodRecord;
use finial_agent::workload::container::{
    ContainerRef, SeenIn, by_rule, in_cgroups, in_mounts, names_several, parse_cgroup_mounts, parse_cgroups,
};
use finial_agent::workload::docker::Container;
use finial_agent::workload::k8s::PodList;

/// A target's name, which is also the folder of its corpus, and what runs it.
pub type Target = (&'static str, fn(&[u8]));

/// All targets of this part.
pub const TARGETS: &[Target] = &[
    ("container", run_container),
    ("docker_answer", run_docker_answer),
    ("mountinfo", run_mountinfo),
    ("pod_record", run_pod_record),
    ("pod_list", run_pod_list),
];

/// `/proc/<pid>/cgroup`, `/proc/<pid>/mountinfo` and patterns of the operator's, separated by NUL bytes.
fn run_container(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.split('\0');
    let mut next = || parts.next().unwrap_or_default();
    let (groups, mounts, patterns) = (next(), next(), next());
    if let Ok(groups) = parse_cgroups(groups) {
        if let Ok(Some(found)) = in_cgroups(&groups) {
            check(&found);
            assert!(found.holds(&groups), "a container's process is in its container");
            assert!(groups.iter().any(|group| group.path.starts_with(&found.group)));
            if found.pod_uid.is_some() {
                assert!(names_several(&format!("{}/{}", found.group, another(&found.id))));
            }
        }
        let patterns: Vec<String> = patterns.lines().map(str::to_owned).collect();
        if let Ok(patterns) = CgroupPatterns::new(patterns)
            && let Ok(Some(found)) = by_rule(&groups, |path| patterns.id_in(path))
        {
            assert!(!found.id.is_empty() && !found.id.contains(['/', '?', '%', ' ']));
            assert!(found.group.ends_with(&found.id));
            assert!(found.holds(&groups));
        }
    }
    if let Ok(mounts) = parse_cgroup_mounts(mounts)
        && let Ok(Some(found)) = in_mounts(&mounts)
    {
        check(&found);
        assert_eq!(found.seen_in, SeenIn::Mount);
        assert!(mounts.iter().any(|mount| mount.starts_with(&found.group)));
    }
}

fn check(found: &ContainerRef) {
    assert_eq!(found.id.len(), 64);
    assert!(found.id.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let last = found.group.rsplit('/').next().unwrap_or_default();
    assert!(last.contains(&found.id), "{found:?}");
    if let Some(uid) = &found.pod_uid {
        assert_eq!(uid.len(), 36);
        assert!(uid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-'));
    }
}

/// An engine's answer about a container.
fn run_docker_answer(data: &[u8]) {
    let container = match Container::parse(data) {
        Ok(container) => container,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    assert!(container.pid() != Some(0));
    if let Ok(facts) = container.facts() {
        for fact in facts {
            assert_eq!(fact.kind(), "docker");
            let (name, _value) = fact.value().split_once(':').expect("a name before the value");
            assert!(["label", "env", "image_id", "image_config_digest"].contains(&name));
        }
    }
}

/// `/proc/self/mountinfo` as the CSI driver reads it.
fn run_mountinfo(data: &[u8]) {
    let Ok(mounts) = mountinfo::parse(data) else {
        return;
    };
    let lines = data.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    assert_eq!(mounts.len(), lines.count());
    for mount in &mounts {
        assert!(mountinfo::count_at(&mounts, &mount.point) > 0);
        assert!(mount.point.as_os_str().len() <= data.len());
    }
}

/// `pod.json`, which the driver writes and the agent reads.
fn run_pod_record(data: &[u8]) {
    let Ok(record) = PodRecord::parse(data) else {
        return;
    };
    for name in [
        &record.uid,
        &record.namespace,
        &record.name,
        &record.service_account,
    ] {
        assert!(!name.is_empty() && !name.contains(['/', ':', ' ', '\0']));
    }
    let again = record.to_json().expect("a record is JSON");
    assert_eq!(PodRecord::parse(&again).expect("its own text"), record);
}

/// A container that is surely not this one.
fn another(id: &str) -> String {
    let other = if id.starts_with('0') { "1" } else { "0" };
    other.repeat(64)
}

/// A kubelet's list of pods, then a container's id and a pod's UID, separated by NUL bytes.
fn run_pod_list(data: &[u8]) {
    let mut parts = data.split(|byte| *byte == 0);
    let mut next = || parts.next().unwrap_or_default();
    let (list, id, uid) = (
        next(),
        String::from_utf8_lossy(next()),
        String::from_utf8_lossy(next()),
    );
    match PodList::parse(list) {
        Ok(pods) => {
            let listed = pods.find(None, &id);
            if let Ok(Some((_pod, Some(_container)))) = pods.find(Some(&uid), &id) {
                assert!(
                    matches!(listed, Ok(Some((_, Some(_))))),
                    "what a pod lists is listed"
                );
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
