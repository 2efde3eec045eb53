//! Which pod and which container a process is in, and which facts follow from that.

use super::*;
use crate::workload::ContainerError;

#[tokio::test]
async fn a_container_is_known_by_itself_and_its_pod() {
    let kubelet = Fake::new(vec![Ok(list(&[imitation(), web()]))]);
    let attestor = attestor(&kubelet, |_| {});
    let of_app = [
        "container-name:app",
        "container-image:r/app:1",
        "container-image:r/app@sha256:aa",
    ];
    let app = [of_web(), of_app.to_vec()].concat();
    assert_eq!(facts(&attestor, &in_web(A)).await.unwrap(), set(&app));
    let of_init = [
        "container-name:init",
        "container-image:r/init:3",
        "container-image:r/init@sha256:cc",
    ];
    let init = [of_web(), of_init.to_vec()].concat();
    assert_eq!(facts(&attestor, &in_web(B)).await.unwrap(), set(&init));
    // Some runtimes name no pod.
    let crio = format!("/kubepods.slice/crio-{A}.scope");
    assert_eq!(facts(&attestor, &crio).await.unwrap(), set(&app));
}

#[tokio::test]
async fn an_ephemeral_container_has_its_own_name_and_its_pods_facts() {
    let mut pod = web();
    pod["status"]["ephemeralContainerStatuses"] =
        json!([{"name": "debug", "image": "r/sh", "containerID": format!("cri-o://{C}")}]);
    let kubelet = Fake::new(vec![Ok(list(&[pod]))]);
    let expected = [of_web(), vec!["container-name:debug", "container-image:r/sh"]].concat();
    let found = facts(&attestor(&kubelet, |_| {}), &in_web(C)).await.unwrap();
    assert_eq!(found, set(&expected));
}

#[tokio::test]
async fn a_process_in_no_pod_is_known_to_have_no_facts() {
    let kubelet = Fake::new(vec![Ok(list(&[web()]))]);
    let attestor = attestor(&kubelet, |_| {});
    for path in [
        "/".to_owned(),
        "/user.slice/user-1000.slice/session-1.scope".to_owned(),
        format!("/system.slice/docker-{A}.scope"),
        format!("/machine.slice/libpod-{A}.scope"),
    ] {
        assert_eq!(facts(&attestor, &path).await.unwrap(), BTreeSet::new(), "{path}");
    }
    assert_eq!(kubelet.asked(), 0);
}

/// A pod that shares the node's pid namespace is what its own group says, whatever else it sees.
#[tokio::test]
async fn a_pod_in_the_nodes_pid_namespace_is_attested_by_its_own_group() {
    let mut spy = web();
    spy["metadata"] = json!({"name": "spy", "namespace": "kube-system", "uid": OTHER});
    spy["spec"]["hostPID"] = json!(true);
    spy["status"] =
        json!({"containerStatuses": [{"name": "spy", "containerID": format!("containerd://{C}")}]});
    let kubelet = Fake::new(vec![Ok(list(&[web(), spy]))]);
    let attestor = attestor(&kubelet, |_| {});
    let found = facts(&attestor, &format!("/kubepods/pod{OTHER}/{C}"))
        .await
        .unwrap();
    assert!(
        found.contains("k8s:pod-name:spy") && !found.contains("k8s:pod-name:web-7"),
        "{found:?}"
    );
}

/// Of a static pod the kubelet's own UID is shown; name, namespace and account can be copied from another.
#[tokio::test]
async fn a_static_pod_that_imitates_another_has_another_uid() {
    let kubelet = Fake::new(vec![Ok(list(&[web(), imitation()]))]);
    let attestor = attestor(&kubelet, |_| {});
    let path = format!("/kubepods/besteffort/pod0b1c2d3e4f5061728394a5b6c7d8e9f0/{C}");
    let found = facts(&attestor, &path).await.unwrap();
    assert!(
        found.contains("k8s:pod-uid:0b1c2d3e4f5061728394a5b6c7d8e9f0"),
        "{found:?}"
    );
    assert!(!found.contains(&format!("k8s:pod-uid:{WEB}")), "{found:?}");
}

#[tokio::test]
async fn groups_that_contradict_each_other_or_the_list_are_refused() {
    let mut own = web();
    own["metadata"]["uid"] = json!(OTHER);
    own["status"] =
        json!({"containerStatuses": [{"name": "own", "containerID": format!("containerd://{C}")}]});
    let kubelet = Fake::new(vec![Ok(list(&[web(), own]))]);
    let attestor = attestor(&kubelet, |_| {});
    // The container of one pod below the name of another.
    let error = facts(&attestor, &format!("/kubepods/pod{OTHER}/{A}"))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("its cgroup in pod"), "{error}");
    // Groups that a container made in its own, a user in the part that is delegated to users, and a service in its own.
    for path in [
        format!("/kubepods/pod{OTHER}/{C}/kubepods/pod{WEB}/{A}"),
        format!("/kubepods/pod{OTHER}/{C}/{A}"),
        format!("/user.slice/user-1000.slice/user@1000.service/kubepods/pod{WEB}/{A}"),
        format!("/system.slice/build.service/kubepods/pod{WEB}/{A}"),
        format!("/any/pod{WEB}/{A}"),
    ] {
        let error = facts(&attestor, &path).await.unwrap_err();
        assert!(
            matches!(error, AttestorError::ForeignCgroup(_)),
            "{path}: {error}"
        );
    }
    // Hierarchies that differ.
    let (_dir, process) = process(&format!(
        "2:cpu:{}\n1:memory:/kubepods/pod{OTHER}/{C}\n",
        in_web(A)
    ));
    let error = attestor.attest(&process).await.unwrap_err();
    assert!(
        matches!(error, AttestorError::Container(ContainerError::SeveralPods(..))),
        "{error}"
    );
    // A list that has a container twice.
    let mut twin = web();
    twin["metadata"]["uid"] = json!(OTHER);
    let kubelet = Fake::new(vec![Ok(list(&[web(), twin]))]);
    let error = facts(&self::attestor(&kubelet, |_| {}), &in_web(A))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("several pods"), "{error}");
}

/// Knows one namespace, or none.
#[derive(Debug)]
struct OneNamespace(&'static str);

#[async_trait]
impl FetchNamespace for OneNamespace {
    async fn fetch(&self, name: &str) -> Result<Bytes, AskError> {
        if self.0 != name {
            return Err(AskError::Refused {
                status: StatusCode::FORBIDDEN,
                text: "no".to_owned(),
            });
        }
        let labels = json!({"team": "web", "kubernetes.io/metadata.name": name});
        let namespace = json!({"kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        Ok(namespace.to_string().into())
    }
}

#[tokio::test]
async fn labels_of_namespaces_are_facts_where_they_are_asked_for_and_missing_ones_leave_all_unknown() {
    let with = |known: &'static str| {
        let kubelet = Fake::new(vec![Ok(list(&[web()]))]);
        K8sAttestor::asking(
            Arc::new(K8sSettings::default()),
            kubelet,
            Some(Arc::new(OneNamespace(known))),
        )
    };
    let told = ["ns-label:kubernetes.io/metadata.name:shop", "ns-label:team:web"];
    let attestor = with("shop");
    let found = facts(&attestor, &in_web(A)).await.unwrap();
    assert!(found.is_superset(&set(&told)), "{found:?}");
    assert!(found.is_superset(&set(&of_web())), "{found:?}");
    let strings =
        |facts: Vec<Selector>| -> BTreeSet<String> { facts.iter().map(ToString::to_string).collect() };
    let pod = [of_web(), told.to_vec()].concat();
    assert_eq!(strings(attestor.by_uid(WEB).await.unwrap()), set(&pod));
    let listed = attestor
        .listed(&of_uid(WEB), Duration::ZERO)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(strings(listed.facts), set(&pod));
    // A process in no pod is in no namespace, so nobody is asked.
    assert_eq!(
        facts(&with("none"), "/user.slice").await.unwrap(),
        BTreeSet::new()
    );

    let attestor = with("other");
    let error = facts(&attestor, &in_web(A)).await.unwrap_err().to_string();
    assert!(
        error.contains("namespace shop") && error.contains("403"),
        "{error}"
    );
    assert!(attestor.by_uid(WEB).await.is_err());
    assert!(attestor.listed(&of_uid(WEB), Duration::ZERO).await.is_err());
}
