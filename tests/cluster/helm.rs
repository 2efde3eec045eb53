//! Releases of a chart that is as small as a chart can be, by Helm's own engine: a precondition of the tests of a real
//! chart.

use std::path::PathBuf;

use finial_tests::Output;
use serde_json::Value;

use crate::cluster::Cluster;

#[test]
fn a_release_is_installed_tested_upgraded_rolled_back_and_uninstalled() {
    let Some(cluster) = Cluster::shared() else { return };
    let space = cluster.namespace("helm-release");
    let chart = chart(cluster).display().to_string();
    let helm = |args: &[&str]| {
        let mut all = args.to_vec();
        all.extend(["--namespace", &space]);
        cluster.helm(&all)
    };
    let word = || {
        cluster.kubectl_ok(&[
            "-n",
            &space,
            "get",
            "configmap",
            "web",
            "-o",
            "jsonpath={.data.word}",
        ])
    };

    let Some(installed) = helm(&["install", "web", &chart]) else {
        return;
    };
    assert_eq!(json(&installed)["status"], "deployed");
    assert_eq!(word(), "one");
    // It waited until the pods were ready.
    let ready = cluster.get(&["-n", &space, "deployment", "web"])["status"]["readyReplicas"].clone();
    assert_eq!(ready, 1);
    let tested = json(&helm(&["test", "web"]).expect("found before"));
    let logs = tested["logs"].as_str().expect("a test's pods print");
    assert!(logs.contains("tested one"), "{logs}");

    let values = cluster.dir().join("values.yaml");
    std::fs::write(&values, "word: two\n").expect("a values file is written");
    let values = values.display().to_string();
    let upgraded = helm(&["upgrade", "web", &chart, "--values", &values, "--set", "other=3"]);
    assert_eq!(json(&upgraded.expect("found before"))["revision"], 2);
    assert_eq!(word(), "two");
    let back = helm(&["rollback", "web"]).expect("found before");
    assert_eq!(json(&back)["revision"], 3);
    assert_eq!(word(), "one");

    let bad = helm(&["upgrade", "web", &chart, "--set", "word=bad"]).expect("found before");
    assert!(bad.status.success(), "{}", bad.stderr);
    let failed = helm(&["test", "web"]).expect("found before");
    assert!(!failed.status.success(), "a test that fails passed");

    json(&helm(&["uninstall", "web"]).expect("found before"));
    let left = cluster.get(&[
        "-n",
        &space,
        "configmap,deployment",
        "--field-selector",
        "metadata.name=web",
    ]);
    assert_eq!(left["items"].as_array().map(Vec::len), Some(0), "{left}");
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", output.stderr);
    output.json()
}

/// Writes the chart to where the cluster sees it.
fn chart(cluster: &Cluster) -> PathBuf {
    let chart = cluster.dir().join("chart");
    let files = [
        (
            "Chart.yaml",
            "{apiVersion: v2, name: trivial, version: 0.1.0, kubeVersion: '>=1.20.0-0'}",
        ),
        ("values.yaml", "word: one"),
        (
            "templates/all.yaml",
            r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: {{ .Release.Name }}}
data: {word: {{ .Values.word | quote }}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: {{ .Release.Name }}}
spec:
  selector: {matchLabels: {app: {{ .Release.Name }}}}
  template:
    metadata: {labels: {app: {{ .Release.Name }}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: main, image: "local.test/busybox:1", imagePullPolicy: Never, command: [sleep, "3600"]}
---
apiVersion: v1
kind: Pod
metadata:
  name: {{ .Release.Name }}-test
  annotations: {helm.sh/hook: test}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: local.test/busybox:1
    imagePullPolicy: Never
    command: [sh, -c, "echo tested {{ .Values.word }}; test {{ .Values.word }} != bad"]
"#,
        ),
    ];
    std::fs::create_dir_all(chart.join("templates")).expect("the chart's folder is made");
    for (name, text) in files {
        std::fs::write(chart.join(name), text).expect("a file of the chart is written");
    }
    chart
}
