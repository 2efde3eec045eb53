//! Which part of the tree of control groups is the kubelet's, by names. Pure.
//!
//! Below its root (`--cgroup-root`, by default the top of the tree) a kubelet makes the group `kubepods`, in that
//! `besteffort` and `burstable`, and within the three the groups of pods. With systemd each name begins with those of
//! the groups around it and ends in `.slice`. The same names elsewhere are somebody else's, as of a user or a service
//! that may make groups in a part of the tree that was delegated to it.

use super::super::container::{Cgroup, ContainerRef, SeenIn, is_kubepods};

/// Groups of a kubelet that `kubepods` has for the classes of pods.
const CLASSES: [&str; 2] = ["besteffort", "burstable"];

/// Whether a kubelet may have made the group of this container. `own` are the groups of the agent: where it is in a pod
/// itself, the root of that pod's kubelet is the only one that counts. Seen from elsewhere a node may be a container,
/// so that any other group may be a root, except those that are delegated.
pub(super) fn may_be_kubelets(place: &ContainerRef, own: &[Cgroup]) -> bool {
    let group = place.group.as_str();
    let root = root_of(group);
    if group.split('/').any(is_of_user) {
        return false;
    }
    let own = own.iter().find(|own| is_seen_in(place, own));
    if let Some(own_root) = own.and_then(|own| root_of(&own.path)) {
        return root == Some(own_root);
    }
    match (from_within(group), root) {
        (Some(rest), _) => rest
            .split_once('/')
            .is_none_or(|(first, _)| is_kubelets_name(first)),
        (None, Some(root)) => !is_of_service(root, group),
        // A kubelet that has no groups for pods (`--cgroups-per-qos=false`).
        (None, None) => place.pod_uid.is_none() && !group.split('/').any(|part| part.ends_with(".service")),
    }
}

/// What stands before `kubepods`.
fn root_of(group: &str) -> Option<&str> {
    let mut at = 0;
    for part in group.split('/') {
        if is_kubepods(part) {
            return group.get(..at);
        }
        at += part.len() + 1;
    }
    None
}

/// What a path says beyond the way up, if it is seen from within another group: an agent with a cgroup namespace of its
/// own sees the tree from its own group, and does not see how that is called.
fn from_within(group: &str) -> Option<&str> {
    let mut rest = group.strip_prefix("/../")?;
    while let Some(further) = rest.strip_prefix("../") {
        rest = further;
    }
    Some(rest)
}

fn is_kubelets_name(part: &str) -> bool {
    let is_uid = |uid: &str| uid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    is_kubepods(part) || CLASSES.contains(&part) || part.strip_prefix("pod").is_some_and(is_uid)
}

/// Whether the root is within what systemd may have delegated to a service. The runtime's own service alone has groups
/// of pods, all in one name, where it does not use systemd and the kubelet does.
fn is_of_service(root: &str, group: &str) -> bool {
    let (outer, last) = root.trim_end_matches('/').rsplit_once('/').unwrap_or_default();
    let is_service = |part: &str| part.ends_with(".service");
    let below = group.get(root.len()..).unwrap_or_default();
    let is_runtimes = below.contains(".slice:") && !below.contains('/');
    outer.split('/').any(is_service) || (is_service(last) && !is_runtimes)
}

/// Whether systemd delegates what has this name to a user.
fn is_of_user(part: &str) -> bool {
    part == "user.slice" || (part.starts_with("user-") && part.ends_with(".slice"))
}

fn is_seen_in(place: &ContainerRef, own: &Cgroup) -> bool {
    matches!(&place.seen_in, SeenIn::Cgroup(controllers) if *controllers == own.controllers)
}

#[cfg(test)]
mod tests {
    use super::super::super::container::{in_cgroups, parse_cgroups};
    use super::*;

    const ID: &str = "6469646e742065787065637420616e796f6e6520746f20726561642074686973";
    const NODE: &str = "cd3eb4e1fc2f5a7c6b5bbbd8bd1c8bc1b0ea3e6d9cb0c5e6f0a4f5ae5ab7d8b1";
    const POD: &str = "72f7f152-440c-66ac-9084-e0fc1d8a910c";
    const OTHER: &str = "a2830d0d-b0f0-4ff0-81b5-0ee4e299cf80";

    fn is_pods(group: &str, own: &str) -> bool {
        let own = parse_cgroups(own).unwrap();
        let place = in_cgroups(&parse_cgroups(&format!("0::{group}\n")).unwrap()).unwrap();
        may_be_kubelets(&place.unwrap(), &own)
    }

    /// Pods of kubelets with either driver, below these roots.
    fn below(root: &str, pod: &str) -> [String; 3] {
        let pod_ = pod.replace('-', "_");
        [
            format!("{root}/kubepods/pod{pod}/{ID}"),
            format!("{root}/kubepods/besteffort/pod{pod}/{ID}"),
            format!(
                "{root}/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{pod_}.slice/crio-{ID}.scope"
            ),
        ]
    }

    #[test]
    fn an_agent_beside_the_kubelet_knows_no_root_and_takes_none_that_is_delegated() {
        let pod_ = POD.replace('-', "_");
        let agents = ["", "0::/system.slice/finial-agent.service\n", "0::/\n"];
        let roots = [
            String::new(),
            "/node".to_owned(),
            format!("/docker/{NODE}"),
            format!("/system.slice/docker-{NODE}.scope"),
        ];
        let mixed = format!("kubepods-besteffort-pod{pod_}.slice:cri-containerd:{ID}");
        let kubelets = roots.iter().flat_map(|root| below(root, POD)).chain([
            format!("/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{pod_}.slice/cri-containerd-{ID}.scope"),
            format!("/system.slice/containerd.service/{mixed}"),
            format!("/{mixed}"),
            format!("/kubepods/pod0b1c2d3e4f5061728394a5b6c7d8e9f0/{ID}"),
            format!("/system.slice/crio-{ID}.scope"),
        ]);
        let delegated = [
            "/user.slice",
            "/user.slice/user-1000.slice/user@1000.service",
            "/system.slice/build.service",
            "/system.slice/build.service/any",
        ];
        let forged = delegated.iter().flat_map(|root| below(root, POD)).chain([
            format!("/system.slice/build.service/x/{mixed}"),
            format!("/system.slice/build.service/pod{POD}/{ID}"),
            format!("/system.slice/build.service/crio-{ID}.scope"),
            format!("/any/pod{POD}/{ID}"),
            format!("/pod{POD}/{ID}"),
        ]);
        let (kubelets, forged) = (kubelets.collect::<Vec<_>>(), forged.collect::<Vec<_>>());
        for own in agents {
            for group in &kubelets {
                assert!(is_pods(group, own), "{group} {own}");
            }
            for group in &forged {
                assert!(!is_pods(group, own), "{group} {own}");
            }
        }
    }

    #[test]
    fn an_agent_in_a_pod_takes_pods_below_the_same_root_alone() {
        for root in ["", "/node", "/system.slice/node.service"] {
            for own in below(root, OTHER) {
                let own = format!("0::{own}\n");
                for group in below(root, POD) {
                    assert!(is_pods(&group, &own), "{group} {own}");
                }
                let elsewhere = [
                    "/any".to_owned(),
                    format!("/docker/{NODE}"),
                    format!("{root}/any"),
                ];
                for group in elsewhere.iter().flat_map(|root| below(root, POD)) {
                    assert!(!is_pods(&group, &own), "{group} {own}");
                }
                assert!(!is_pods(&format!("/system.slice/crio-{ID}.scope"), &own));
            }
        }
        // Another hierarchy says nothing of this one.
        let own = format!("4:memory:/node/kubepods/pod{OTHER}/{ID}\n0::/\n");
        assert!(is_pods(&format!("/kubepods/pod{POD}/{ID}"), &own));
    }

    #[test]
    fn an_agent_with_a_cgroup_namespace_of_its_own_sees_the_names_beside_it() {
        let pod_ = POD.replace('-', "_");
        for (group, expected) in [
            (format!("/../../pod{POD}/{ID}"), true),
            (format!("/../../../pod{POD}/{ID}"), true),
            (format!("/../../../burstable/pod{POD}/{ID}"), true),
            (format!("/../../../../kubepods/besteffort/pod{POD}/{ID}"), true),
            (
                format!("/../../kubepods-pod{pod_}.slice/cri-containerd-{ID}.scope"),
                true,
            ),
            (
                format!(
                    "/../../../kubepods-burstable.slice/kubepods-burstable-pod{pod_}.slice/crio-{ID}.scope"
                ),
                true,
            ),
            (format!("/../cri-containerd-{ID}.scope"), true),
            (format!("/../../../../any/kubepods/pod{POD}/{ID}"), false),
            (
                format!("/../../../../docker/{NODE}/kubepods/pod{POD}/{ID}"),
                false,
            ),
            (
                format!("/../../../../system.slice/build.service/pod{POD}/{ID}"),
                false,
            ),
            (format!("/../../../../user.slice/kubepods/pod{POD}/{ID}"), false),
            (format!("/../../../../system.slice/crio-{ID}.scope"), false),
            (format!("/../../../../podman/pod{POD}/{ID}"), false),
            // Made below the agent's own group.
            (format!("/pod{POD}/{ID}"), false),
        ] {
            assert_eq!(is_pods(&group, "0::/\n"), expected, "{group}");
        }
    }
}
