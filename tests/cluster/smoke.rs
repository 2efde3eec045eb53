//! A precondition of the other suites of this folder: the cluster is a real one.

use std::process::{Command, Stdio};

use finial_tests::{Output, wait_for};
use serde_json::{Value, json};

use crate::cluster::{Cluster, READY};

#[test]
fn every_node_is_ready_and_runs_pods_that_reach_each_other_by_name() {
    let Some(cluster) = Cluster::shared() else { return };
    let space = cluster.namespace("smoke-pods");
    for node in cluster.nodes() {
        let status = cluster.get(&["node", &node]);
        let ready = &status["status"]["conditions"]
            .as_array()
            .expect("a node has conditions")
            .iter()
            .find(|condition| condition["type"] == "Ready")
            .expect("a node says whether it is ready")["status"];
        assert_eq!(ready, "True", "{node}");
        cluster.apply(&pod(&space, &format!("on-{node}"), &node));
    }
    cluster.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: {space}}}\n\
         spec: {{selector: {{app: on-node-a}}, ports: [{{port: 80, targetPort: 8080}}]}}"
    ));
    for node in cluster.nodes() {
        cluster.wait_pod(&space, &format!("on-{node}"));
    }
    for node in cluster.nodes() {
        let fetch = "timeout 5 wget -q -O - http://web/name";
        let answer = wait_for("the service to answer", READY, || {
            let answer = cluster.kubectl(&[
                "-n",
                &space,
                "exec",
                &format!("on-{node}"),
                "--",
                "sh",
                "-c",
                fetch,
            ]);
            anyhow::ensure!(answer.status.success(), "{}", answer.stderr);
            Ok(answer.stdout)
        });
        assert_eq!(answer.trim(), "on-node-a", "asked from {node}");
    }
}

#[test]
fn a_process_of_a_pod_is_known_by_its_cgroup() {
    let Some(cluster) = Cluster::shared() else { return };
    let space = cluster.namespace("smoke-cgroup");
    cluster.apply(&pod(&space, "web", "node-a"));
    cluster.wait_pod(&space, "web");
    let object = cluster.get(&["-n", &space, "pod", "web"]);
    let uid = text(&object["metadata"]["uid"]);
    let container =
        text(&object["status"]["containerStatuses"][0]["containerID"]).replace("containerd://", "");
    // As a process of the node sees it, which is in no pod.
    let script = format!("grep -l {container} /proc/[0-9]*/cgroup | head -n 1 | xargs cat");
    let lines = Output::of(cluster.enter_node("node-a", "sh").args(["-c", &script])).stdout;
    let memory = lines
        .lines()
        .find(|line| line.contains(":memory:"))
        .unwrap_or_else(|| panic!("no memory cgroup: {lines}"));
    assert!(
        memory.ends_with(&format!(":/kubepods/besteffort/pod{uid}/{container}")),
        "{memory}"
    );
}

#[test]
fn a_projected_token_is_good_for_its_audience_alone() {
    let Some(cluster) = Cluster::shared() else { return };
    let space = cluster.namespace("smoke-token");
    cluster.apply(&pod(&space, "web", "node-a"));
    cluster.wait_pod(&space, "web");
    let token = cluster.shell(&space, "web", "cat /token/token");
    let review = |audience: &str| {
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [audience]},
        });
        cluster.create(&review)["status"].clone()
    };
    let status = review("our-server");
    assert_eq!(status["authenticated"], true, "{status}");
    assert_eq!(
        status["user"]["username"],
        format!("system:serviceaccount:{space}:default")
    );
    assert_eq!(
        status["user"]["extra"]["authentication.kubernetes.io/pod-name"],
        json!(["web"])
    );
    let refused = review("another-server");
    assert_ne!(refused["authenticated"], true, "{refused}");
}

#[test]
fn a_kubelet_lists_its_pods_to_who_may_ask() {
    let Some(cluster) = Cluster::shared() else { return };
    let space = cluster.namespace("smoke-kubelet");
    cluster.apply(&format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {{name: {space}}}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: system:kubelet-api-admin}}\n\
         subjects: [{{kind: ServiceAccount, name: default, namespace: {space}}}]"
    ));
    // The first one's kubelet is the one for which the cluster's authority vouches.
    let node = cluster.nodes().swap_remove(0);
    cluster.apply(&pod(&space, "web", &node));
    cluster.wait_pod(&space, "web");
    let own = cluster.shell(
        &space,
        "web",
        "cat /var/run/secrets/kubernetes.io/serviceaccount/token",
    );
    let other = cluster.shell(&space, "web", "cat /token/token");

    let (status, body) = kubelet_pods(cluster, &node, &own);
    assert_eq!(status, 200, "{body}");
    let pods: Value = serde_json::from_str(&body).expect("the kubelet answers with JSON");
    let labels: Vec<_> = pods["items"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|pod| pod["metadata"]["namespace"] == space.as_str())
        .map(|pod| text(&pod["metadata"]["labels"]["app"]))
        .collect();
    assert_eq!(labels, ["web"]);
    assert_eq!(
        kubelet_pods(cluster, &node, &other).0,
        401,
        "a token for another audience"
    );
    assert_eq!(kubelet_pods(cluster, &node, "").0, 401, "no token");
}

#[test]
fn a_mount_made_in_a_pod_is_seen_on_its_node() {
    let Some(cluster) = Cluster::shared() else { return };
    let space = cluster.namespace("smoke-mount");
    cluster.apply(&format!(
        r#"apiVersion: v1
kind: Pod
metadata: {{name: mounter, namespace: {space}}}
spec:
  nodeName: node-a
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: local.test/busybox:1
    imagePullPolicy: Never
    command: [sh, -c, "mkdir -p /shared/{space} && mount -t tmpfs seen /shared/{space} && touch /shared/{space}/file && exec sleep 3600"]
    securityContext: {{privileged: true}}
    readinessProbe: {{exec: {{command: [test, -e, /shared/{space}/file]}}, periodSeconds: 1}}
    volumeMounts: [{{name: shared, mountPath: /shared, mountPropagation: Bidirectional}}]
  volumes: [{{name: shared, hostPath: {{path: /var/lib/shared, type: DirectoryOrCreate}}}}]
"#
    ));
    cluster.wait_pod(&space, "mounter");
    let file = format!("/var/lib/shared/{space}/file");
    let on_node = Output::of(cluster.enter_node("node-a", "test").args(["-e", &file]));
    assert!(on_node.status.success(), "the node does not see the pod's mount");
    // And the machine does not.
    assert!(!std::path::Path::new(&file).exists());
}

#[test]
fn an_image_made_of_a_program_here_runs_in_a_pod() {
    let Some(cluster) = Cluster::shared() else { return };
    let space = cluster.namespace("smoke-image");
    let program = format!("{}:/bin/hello", cluster.busybox().display());
    let digest = cluster.import_image(
        "local.test/hello:1",
        &[
            "--program",
            &program,
            "--link",
            "hello:/bin/sleep",
            "--entrypoint",
            "/bin/sleep",
            "--user",
            "1000",
        ],
    );
    cluster.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: hello, namespace: {space}}}\n\
         spec: {{terminationGracePeriodSeconds: 1, containers: [{{name: main, image: 'local.test/hello:1', \
         imagePullPolicy: Never, args: ['3600'], securityContext: {{runAsNonRoot: true}}}}]}}"
    ));
    cluster.wait_pod(&space, "hello");
    let object = cluster.get(&["-n", &space, "pod", "hello"]);
    assert_eq!(text(&object["status"]["containerStatuses"][0]["imageID"]), digest);
}

/// The cluster is no way out: of the machine's network nothing is to be seen, in pods or on nodes.
#[test]
fn nothing_of_a_cluster_reaches_the_machines_network() {
    let Some(cluster) = Cluster::shared() else { return };
    for node in cluster.nodes() {
        let routes = Output::of(cluster.enter_node(&node, "ip").args(["-o", "route", "show"])).stdout;
        assert!(!routes.is_empty() && !routes.contains("default"), "{routes}");
        let links = Output::of(cluster.enter_node(&node, "ip").args(["-o", "link", "show"])).stdout;
        for link in links.lines() {
            let name = link.split(": ").nth(1).expect("a link has a name");
            let name = name.split('@').next().expect("a name has a beginning");
            let ours = ["lo", "node0", "cni0", "eth0"].contains(&name) || name.starts_with("veth");
            // A kernel may put its idle tunnels into each namespace.
            assert!(ours || link.contains("state DOWN"), "{link}");
        }
    }
}

/// A pod that serves its own name by HTTP and has a token for the audience `our-server`.
fn pod(namespace: &str, name: &str, node: &str) -> String {
    format!(
        r#"apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: local.test/busybox:1
    imagePullPolicy: Never
    command: [sh, -c, "mkdir /tmp/www && echo {name} >/tmp/www/name && exec httpd -f -p 8080 -h /tmp/www"]
    readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}
    volumeMounts: [{{name: token, mountPath: /token, readOnly: true}}]
  volumes:
  - name: token
    projected: {{sources: [{{serviceAccountToken: {{path: token, audience: our-server, expirationSeconds: 600}}}}]}}
"#
    )
}

/// GET /pods of a node's kubelet, asked from that node: HTTP status and body.
fn kubelet_pods(cluster: &Cluster, node: &str, token: &str) -> (u16, String) {
    let script = "import ssl, sys, urllib.error, urllib.request\n\
        context = ssl.create_default_context(cafile=sys.argv[1])\n\
        headers = {'Authorization': 'Bearer ' + sys.argv[2]} if sys.argv[2] else {}\n\
        request = urllib.request.Request('https://127.0.0.1:10250/pods', headers=headers)\n\
        try:\n answer = urllib.request.urlopen(request, context=context, timeout=10)\n\
        except urllib.error.HTTPError as error:\n answer = error\n\
        print(answer.status)\nprint(answer.read().decode())";
    let mut command: Command = cluster.enter_node(node, "python3");
    command
        .args(["-c", script])
        .arg(cluster.dir().join("pki/ca.crt"))
        .arg(token);
    command.stderr(Stdio::inherit());
    let output = Output::of(&mut command);
    let (status, body) = output
        .stdout
        .split_once('\n')
        .unwrap_or_else(|| panic!("no answer: {}", output.stderr));
    (status.parse().expect("a status is a number"), body.to_owned())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}
