//! Every command and every object of docs/kubernetes.md, in the order of the page, in a cluster with nothing but what
//! the page takes for granted: Kubernetes, Helm, a volume, the image, a namespace `shop`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use finial_tests::{Output, Peer, wait_for};

use crate::cluster::{Cluster, READY};
use crate::installation::{SYSTEM_NAMESPACE, WORKLOAD_IMAGE};
use crate::turns::{Turn, end, uid};

/// What a reader does with the page.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// An indented line, or words between backticks, that begin with the name of a program.
    Command(String),
    /// A fenced block of YAML.
    Object(String),
}

#[test]
fn every_command_and_every_object_of_the_page_does_what_it_says() {
    let steps = steps(&std::fs::read_to_string(repository().join("docs/kubernetes.md")).expect("the page"));
    let Some(turn) = Turn::take() else { return };
    let cluster = turn.installation.cluster();
    // From the beginning.
    let gone = turn
        .installation
        .helm(&["uninstall", "finial"])
        .expect("it was installed by the engine");
    assert!(gone.status.success(), "{}", gone.stderr);
    let Some(shell) = Shell::new(cluster) else { return };
    cluster.namespace("shop");

    let mut volume_users = String::new();
    for step in steps {
        let command = match step {
            // A piece of Envoy's configuration; the whole of it is docs/samples/envoy.yaml, which has a test.
            Step::Object(yaml) if yaml.starts_with("clusters:") => continue,
            // Values of several clusters, with which several.rs installs the chart.
            Step::Object(yaml)
                if ["global:", "spire-server:"]
                    .iter()
                    .any(|top| yaml.starts_with(top)) =>
            {
                continue;
            }
            Step::Object(yaml) => {
                apply(cluster, &yaml);
                continue;
            }
            Step::Command(command) => command,
        };
        if command.starts_with("finial agent api fetch") {
            wait_for("the page's pod to have its identity", READY, || {
                let args = ["-n", "shop", "exec", "backend", "--", "sh", "-c", &command];
                let fetched = cluster.kubectl(&args);
                anyhow::ensure!(
                    fetched.stdout.contains("spiffe://example.org/backend\n"),
                    "{}{}",
                    fetched.stdout,
                    fetched.stderr
                );
                Ok(())
            });
            continue;
        }
        if command.starts_with("helm uninstall") {
            assert_eq!(
                volume_users, "shop/backend\n",
                "the pods that the page's command lists"
            );
            cluster.kubectl_ok(&["-n", "shop", "delete", "pod", "backend", "--timeout=60s"]);
        }
        let command = match command.contains("<uid>") {
            true => command.replace("<uid>", &uid(cluster, &["-n", "shop", "pod", "backend"])),
            false => command,
        };
        let expected = EXPECTED.iter().filter(|(part, _)| command.contains(part));
        let expected: Vec<&str> = expected.map(|(_, text)| *text).collect();
        // What only looks may look before there is something to see.
        let limit = if command.starts_with("kubectl") {
            READY
        } else {
            Duration::ZERO
        };
        let printed = wait_for(&command, limit, || {
            let done = shell.run(&command);
            let says = expected.iter().all(|text| done.stdout.contains(text));
            anyhow::ensure!(says && done.status.success(), "{}{}", done.stdout, done.stderr);
            Ok(done.stdout)
        });
        if command.starts_with("kubectl get pods -A") {
            volume_users = printed;
        }
    }
    let left = cluster.kubectl_ok(&["get", "namespaces", "-o", "name"]);
    assert!(!left.contains(SYSTEM_NAMESPACE), "{left}");
    end(cluster, "shop");
}

/// What commands print, by a part of them.
const EXPECTED: &[(&str, &str)] = &[
    ("rollout status statefulset", "roll"),
    ("rollout status daemonset", "successfully rolled out"),
    ("helm test", "spiffe://example.org/ns/finial/sa/default"),
    ("server agent list", "Found 2 attested agents"),
    ("entry show -selector", "spiffe://example.org/backend"),
    ("bundle show", "\"spiffe_sequence\""),
    ("get clusterfederatedtrustdomain partner", "reason: "),
    ("get clusterspiffeid backend -o yaml", "namespacesSelected: 1"),
    ("get clusterspiffeids -o yaml", "podsSelected: 1"),
    ("describe pod backend", "csi.spiffe.io"),
    (
        "finial why shop/backend",
        "the pod has spiffe://example.org/backend",
    ),
    ("-podUID", "Verdict    : has an identity"),
    ("helm upgrade --install", "\"deployed\""),
    ("helm rollback", "\"deployed\""),
];

/// The commands and objects of a page, in order.
fn steps(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut fenced: Option<String> = None;
    let mut is_elsewhere = false;
    let mut goes_on = false;
    for line in page.lines() {
        if is_elsewhere {
            is_elsewhere = line != "```";
            continue;
        }
        if let Some(block) = &mut fenced {
            if line == "```" {
                steps.push(Step::Object(fenced.take().expect("just looked at")));
            } else {
                block.push_str(line);
                block.push('\n');
            }
            continue;
        }
        // What is typed where no cluster is, for there is no Docker here; and what several.rs types.
        if line == "```console" {
            is_elsewhere = true;
            continue;
        }
        if line.starts_with("```") {
            assert_eq!(
                line, "```yaml",
                "the page has blocks of a kind that this test does not know"
            );
            fenced = Some(String::new());
            continue;
        }
        let Some(command) = line.strip_prefix("    ") else {
            assert!(!goes_on, "a command goes on after {line:?}");
            // Tables name commands that exist elsewhere; in the text a command can be run.
            if !line.starts_with('|') {
                let spans = line.split('`').skip(1).step_by(2);
                steps.extend(
                    spans
                        .filter(|span| is_command(span))
                        .map(|span| Step::Command(span.to_owned())),
                );
            }
            continue;
        };
        let (text, more) = match command.strip_suffix('\\') {
            Some(text) => (text, true),
            None => (command, false),
        };
        match steps.last_mut() {
            Some(Step::Command(begun)) if goes_on => begun.push_str(text.trim_start()),
            _ => steps.push(Step::Command(text.to_owned())),
        }
        goes_on = more;
    }
    assert!(
        fenced.is_none() && !goes_on && !is_elsewhere,
        "the page ends within a block"
    );
    steps
}

fn is_command(span: &str) -> bool {
    let mut words = span.split(' ');
    ["kubectl", "helm", "finial"].contains(&words.next().unwrap_or_default()) && words.count() > 1
}

/// Applies an object of the page. A pod gets an image that the cluster has, and something to do; else it is as written.
fn apply(cluster: &Cluster, yaml: &str) {
    let file = cluster.dir().join("page.yaml");
    std::fs::write(&file, yaml).expect("the object is written");
    let file = file.display().to_string();
    if !yaml.contains("kind: Pod\n") {
        cluster.kubectl_ok(&["apply", "-f", &file]);
        return;
    }
    let shown = cluster.kubectl_ok(&["create", "--dry-run=client", "-o", "json", "-f", &file]);
    let mut pod: serde_json::Value = serde_json::from_str(&shown).expect("kubectl prints JSON");
    for container in pod["spec"]["containers"]
        .as_array_mut()
        .expect("a pod has containers")
    {
        container["image"] = WORKLOAD_IMAGE.into();
        container["imagePullPolicy"] = "Never".into();
        container["command"] = ["sleep", "86400"].into_iter().collect();
    }
    pod["spec"]["terminationGracePeriodSeconds"] = 1.into();
    cluster.apply(&pod.to_string());
    let (space, name) = (&pod["metadata"]["namespace"], &pod["metadata"]["name"]);
    cluster.wait_pod(
        space.as_str().expect("a namespace"),
        name.as_str().expect("a name"),
    );
}

/// Where the page's commands are typed: the repository, with `kubectl` and a `helm` that is Helm's engine.
struct Shell<'a> {
    cluster: &'a Cluster,
    programs: PathBuf,
}

impl<'a> Shell<'a> {
    fn new(cluster: &'a Cluster) -> Option<Self> {
        let engine = Peer::find(
            "FINIAL_TEST_HELM_PYTHON",
            "python3",
            &["-c", "import helm_python"],
        )?;
        let programs = cluster.dir().join("bin");
        std::fs::create_dir_all(&programs).expect("a folder for programs");
        let helm = programs.join("helm");
        let script = format!(
            "#!/bin/sh\nexec {} {}/tests/cluster/helm.py \"$@\"\n",
            engine.program().display(),
            repository().display()
        );
        std::fs::write(&helm, script).expect("the script is written");
        let made = Output::of(std::process::Command::new("chmod").arg("0755").arg(&helm));
        assert!(made.status.success());
        Some(Self { cluster, programs })
    }

    fn run(&self, command: &str) -> Output {
        let script = format!(
            "set -e; cd {}; PATH={}:$PATH; {command}",
            repository().display(),
            self.programs.display()
        );
        Output::of(self.cluster.enter("bash").args(["-o", "pipefail", "-c", &script]))
    }
}

fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests
        .parent()
        .expect("the tests are in the repository")
        .to_owned()
}

#[test]
fn commands_are_found_in_blocks_and_in_the_text() {
    let page = "text `kubectl get x` and `helm`\n\n    helm a \\\n      --b\n    kubectl c\n\n```console\n$ docker build .\n```\n\n```yaml\nkind: Pod\n```\n| `kubectl no row` |\n";
    let command = |text: &str| Step::Command(text.to_owned());
    assert_eq!(
        steps(page),
        [
            command("kubectl get x"),
            command("helm a --b"),
            command("kubectl c"),
            Step::Object("kind: Pod\n".to_owned()),
        ]
    );
}
