use super::*;

const A: &str = "6469646e742065787065637420616e796f6e6520746f20726561642074686973";
const B: &str = "cd3eb4e1fc2f5a7c6b5bbbd8bd1c8bc1b0ea3e6d9cb0c5e6f0a4f5ae5ab7d8b1";
const POD: &str = "72f7f152-440c-66ac-9084-e0fc1d8a910c";

fn cgroups(text: &str) -> Result<Option<ContainerRef>, ContainerError> {
    in_cgroups(&parse_cgroups(text)?)
}

fn mounts(text: &str) -> Result<Option<ContainerRef>, ContainerError> {
    in_mounts(&parse_cgroup_mounts(text)?)
}

/// What is found in a line of cgroup v2 with this path: id, pod, group.
fn found(path: &str) -> Option<(String, Option<String>, String)> {
    let found = cgroups(&format!("0::{path}\n")).unwrap()?;
    assert_eq!(found.seen_in, SeenIn::Cgroup(String::new()));
    Some((found.id, found.pod_uid, found.group))
}

#[test]
fn names_of_all_runtimes_are_read() {
    let pod_ = POD.replace('-', "_");
    for (path, pod) in [
        // Docker with its own driver and with systemd's, and on a node that is a container.
        (format!("/docker/{A}"), None),
        (format!("/system.slice/docker-{A}.scope"), None),
        (format!("/docker/{B}/docker/{A}"), None),
        // Podman: root's, a user's, one within a service of systemd.
        (format!("/libpod_parent/libpod-{A}"), None),
        (format!("/machine.slice/libpod-{A}.scope"), None),
        (
            format!("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope"),
            None,
        ),
        (format!("/system.slice/web.service/libpod-payload-{A}"), None),
        // Kubernetes: containerd and CRI-O, either driver.
        (format!("/kubepods/besteffort/pod{POD}/{A}"), Some(POD)),
        (format!("/kubepods/pod{POD}/{A}"), Some(POD)),
        (
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{pod_}.slice/cri-containerd-{A}.scope"
            ),
            Some(POD),
        ),
        (
            format!("/kubepods.slice/kubepods-pod{pod_}.slice/crio-{A}.scope"),
            Some(POD),
        ),
        (
            format!("/system.slice/containerd.service/kubepods-pod{pod_}.slice:cri-containerd:{A}"),
            Some(POD),
        ),
        (
            format!("/kubepods-besteffort-pod{pod_}.slice:cri-containerd:{A}"),
            Some(POD),
        ),
        (format!("/ecs/0410de86-1d1d-4a3a-b1d5-0ef1cd2f2bd5/{A}"), None),
        // Seen from within another namespace.
        (format!("/../{A}"), None),
        (format!("/../../pod{POD}/{A}"), Some(POD)),
    ] {
        let (id, pod_uid, group) = found(&path).unwrap_or_else(|| panic!("{path}"));
        assert_eq!(
            (id.as_str(), pod_uid.as_deref(), group.as_str()),
            (A, pod, path.as_str())
        );
    }
}

#[test]
fn what_stands_below_the_container_is_no_part_of_its_group() {
    for (below, group) in [
        (
            format!("/machine.slice/libpod-{A}.scope/container"),
            format!("/machine.slice/libpod-{A}.scope"),
        ),
        (
            format!("/docker/{A}/system.slice/web.service"),
            format!("/docker/{A}"),
        ),
        (format!("/docker/{A} (deleted)"), format!("/docker/{A} (deleted)")),
    ] {
        assert_eq!(found(&below), Some((A.to_owned(), None, group)));
    }
}

#[test]
fn what_only_resembles_an_id_is_none() {
    for path in [
        "/".to_owned(),
        String::new(),
        "/system.slice/ssh.service".to_owned(),
        "/process_api/9e84fd635c74a1413bec1735e19faf18".to_owned(),
        format!("/docker/{}", &A[1..]),
        format!("/docker/{A}0"),
        format!("/docker/x{A}"),
        format!("/docker/_{A}"),
        format!("/docker/{}g", &A[1..]),
        format!("/docker/{}é{}", &A[..32], &A[32..]),
    ] {
        assert_eq!(found(&path), None, "{path}");
    }
    // Not ASCII around it, and an upper-case id.
    assert!(found(&format!("/é{A}é")).is_some());
    assert!(found(&format!("/docker/{}", A.to_uppercase())).is_some());
}

#[test]
fn what_only_resembles_a_pod_uid_is_none() {
    for pod in [
        format!("kubepod{POD}"),
        format!("pod{POD}0"),
        format!("pod{}", &POD[1..]),
        format!("pod{}", POD.replacen('-', "x", 1)),
        format!("pod-{POD}"),
        "pod".to_owned(),
        "podéééééééééééééééééé".to_owned(),
    ] {
        let path = format!("/{pod}/{A}");
        assert_eq!(found(&path), Some((A.to_owned(), None, path)));
    }
    assert_eq!(found(&format!("/pod{POD}")), None, "a pod alone is no container");
}

#[test]
fn hierarchies_agree_or_there_is_no_answer() {
    let v1 = format!("9:name=systemd:/docker/{A}\n8:pids:/docker/{A}\n4:memory:/docker/{A}\n0::/\n");
    let container = cgroups(&v1).unwrap().unwrap();
    assert_eq!(container.id, A);
    assert_eq!(container.seen_in, SeenIn::Cgroup("name=systemd".to_owned()));
    let two = format!("2:pids:/docker/{A}\n1:cpu:/docker/{B}\n");
    assert_eq!(cgroups(&two), Err(ContainerError::SeveralIds(A.into(), B.into())));
    let other = POD.replace('7', "8");
    let pods = format!("2:pids:/pod{POD}/{A}\n1:cpu:/pod{other}/{A}\n");
    assert_eq!(
        cgroups(&pods),
        Err(ContainerError::SeveralPods(POD.into(), other))
    );
    let ids = format!("2:pids:/pod{POD}/{A}\n1:cpu:/pod{POD}/{B}\n");
    assert_eq!(cgroups(&ids), Err(ContainerError::SeveralIds(A.into(), B.into())));
}

#[test]
fn a_group_with_a_pod_counts_more_than_one_without() {
    let node = format!("0::/docker/{B}/system.slice/containerd.service\n");
    let pod = format!("1:cpuset:/docker/{B}/kubepods/besteffort/pod{POD}/{A}\n");
    for text in [format!("{node}{pod}"), format!("{pod}{node}")] {
        let container = cgroups(&text).unwrap().unwrap();
        assert_eq!(
            (container.id.as_str(), container.pod_uid.as_deref()),
            (A, Some(POD))
        );
        assert_eq!(container.seen_in, SeenIn::Cgroup("cpuset".to_owned()));
    }
}

#[test]
fn a_malformed_line_is_an_error_not_fewer_facts() {
    for text in ["nonsense\n", "x::/\n", "0:/\n", "\u{fffd}:a:/\n"] {
        assert!(
            matches!(
                cgroups(text),
                Err(ContainerError::Malformed { file: "cgroup", .. })
            ),
            "{text}"
        );
    }
    for text in [
        "1 2 0:3 / /mnt rw cgroup2 cgroup rw\n",
        "1 2 0:3 / rw - cgroup2 cgroup rw\n",
        "1 2 0:3 / /mnt rw -\n",
        "1 2 0:3 / /mnt rw -  cgroup2 rw\n",
    ] {
        assert!(
            matches!(
                mounts(text),
                Err(ContainerError::Malformed {
                    file: "mountinfo",
                    ..
                })
            ),
            "{text}"
        );
    }
}

#[test]
fn mounts_of_groups_are_read_and_others_are_not() {
    let text = format!(
        "96 89 0:45 / /sys/fs/cgroup rw,relatime - tmpfs cgroup rw,size=1024k\n\
         119 206 0:68 / /local rw,relatime - tmpfs  rw,size=8192k\n\
         90 89 8:1 /docker/{B} /data rw,relatime shared:1 master:2 - ext4 /dev/sda1 rw\n\
         97 96 0:37 /docker/{A} /sys/fs/cgroup/systemd ro,nosuid shared:9 - cgroup cgroup rw,name=systemd\n\
         98 96 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    );
    let container = mounts(&text).unwrap().unwrap();
    assert_eq!((container.id.as_str(), &container.seen_in), (A, &SeenIn::Mount));
    assert_eq!(container.group, format!("/docker/{A}"));
    let escaped = format!("1 2 0:3 /a\\040{A} /mnt rw - cgroup2 cgroup rw\n");
    assert_eq!(mounts(&escaped).unwrap().unwrap().group, format!("/a {A}"));
    assert_eq!(unescape("a\\134\\9\\04"), "a\\\\9\\04");
}

#[test]
fn only_the_containers_own_group_holds_its_first_process() {
    let group = |controllers: &str, path: &str| Cgroup {
        controllers: controllers.to_owned(),
        path: path.to_owned(),
    };
    let own = format!("/machine.slice/libpod-{A}.scope");
    let container = cgroups(&format!("0::{own}/container\n")).unwrap().unwrap();
    assert!(container.holds(&[group("", &own)]));
    assert!(container.holds(&[group("cpu", "/"), group("", &format!("{own}/init.scope"))]));
    for (controllers, path) in [
        ("", format!("/user.slice/user-1000.slice/libpod-{A}.scope")),
        ("", format!("{own}x")),
        ("", "/".to_owned()),
        ("cpu", own.clone()),
    ] {
        assert!(
            !container.holds(&[group(controllers, &path)]),
            "{controllers} {path}"
        );
    }
    let mounted = in_mounts(std::slice::from_ref(&own)).unwrap().unwrap();
    assert!(!mounted.holds(&[group("", &own)]), "a mount proves no membership");
}

#[test]
fn a_rule_of_the_operators_finds_what_it_says() {
    let groups = parse_cgroups("2:cpu:/my.slice/web-1/x\n1:pids:/my.slice/web-1\n0::/\n").unwrap();
    let id = |path: &str| path.starts_with("/my.slice/").then_some(10..15);
    let container = by_rule(&groups, id).unwrap().unwrap();
    assert_eq!(
        (container.id.as_str(), container.group.as_str()),
        ("web-1", "/my.slice/web-1")
    );
    assert_eq!(by_rule(&groups, |_| None), Ok(None));
    let slash = by_rule(&groups, |path| path.starts_with("/my.slice/").then_some(9..15));
    assert!(matches!(slash, Err(ContainerError::NoId(_))), "{slash:?}");
    let contradiction = by_rule(&groups, |path| {
        (path.len() > 14).then_some(1..if path.len() > 16 { 9 } else { 8 })
    });
    assert!(
        matches!(contradiction, Err(ContainerError::SeveralIds(..))),
        "{contradiction:?}"
    );
    for bad in ["", "..", ".x", "-x", "a b", "a?b", "a%2f"] {
        assert!(!is_name(bad), "{bad:?}");
    }
}

#[test]
fn a_group_within_a_container_that_is_named_after_another_is_told() {
    let other_pod = "a2830d0d-b0f0-4ff0-81b5-0ee4e299cf80";
    for (path, several) in [
        (format!("/kubepods/besteffort/pod{POD}/{A}"), false),
        (format!("/docker/{B}/kubepods/besteffort/pod{POD}/{A}"), false),
        (
            format!(
                "/kubepods.slice/kubepods-pod{}.slice/crio-{A}.scope/crio-{A}",
                POD.replace('-', "_")
            ),
            false,
        ),
        (
            format!("/system.slice/containerd.service/kubepods-pod{POD}.slice:cri-containerd:{A}"),
            false,
        ),
        (format!("/docker/{A}/docker/{B}"), false),
        // A container made these below its own group.
        (
            format!("/kubepods/pod{POD}/{A}/kubepods/pod{other_pod}/{B}"),
            true,
        ),
        (format!("/kubepods/pod{POD}/{A}/{B}"), true),
        (format!("/kubepods/pod{POD}/{A}/kubepods/pod{other_pod}"), true),
        (format!("/kubepods/pod{POD}/{A}/docker/{B}"), true),
        // The kubelet's own UID of a static pod has no dashes.
        (
            format!("/kubepods/pod0b1c2d3e4f5061728394a5b6c7d8e9f0/{A}/pod{POD}/{B}"),
            true,
        ),
    ] {
        assert_eq!(names_several(&path), several, "{path}");
    }
}
