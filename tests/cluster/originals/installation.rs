//! A server of ours as the chart installs it, with the original controller-manager beside it in its pod and none of our
//! own derivation or agents.

use std::path::Path;
use std::sync::OnceLock;

use finial_tests::{Output, finial};

use super::seen::{Seen, seen};
use super::{NAME, TRUST_DOMAIN, manager, original};
use crate::cluster::Cluster;

/// Namespaces of the server and of what attests to it.
pub(super) const SERVER: &str = "originals-server";
pub(super) const SYSTEM: &str = "originals-system";
/// The image with the original programs.
pub(super) const IMAGE: &str = "local.test/originals:1";

/// See the module's text.
pub(super) struct Installation {
    cluster: &'static Cluster,
}

impl Installation {
    /// The one that the tests share. `None` with a printed reason where the programs are not.
    pub(super) fn shared(cluster: &'static Cluster) -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Installation>> = OnceLock::new();
        SHARED.get_or_init(|| Installation::install(cluster)).as_ref()
    }

    fn install(cluster: &'static Cluster) -> Option<Self> {
        let manager = original("spire-controller-manager")?;
        let agent = original("spire-agent")?;
        let program = |source: &Path, target: &str| format!("{}:{target}", source.display());
        let busybox = cluster.busybox().display().to_string();
        cluster.import_image(
            IMAGE,
            &[
                "--program",
                &program(&manager, "/opt/spire/bin/spire-controller-manager"),
                "--program",
                &program(&agent, "/opt/spire/bin/spire-agent"),
                "--busybox",
                &busybox,
            ],
        );
        cluster.import_image(
            "local.test/finial:originals",
            &[
                "--program",
                &program(finial(), "/usr/bin/finial"),
                "--busybox",
                &busybox,
                "--entrypoint",
                "/usr/bin/finial",
                "--user",
                "1000",
            ],
        );
        cluster.namespace(SERVER);
        cluster.namespace(SYSTEM);
        cluster.apply(&manager::objects());
        let values = cluster.dir().join("originals.yaml");
        std::fs::write(&values, values_of()).expect("values are written");
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/finial");
        let chart = chart.canonicalize().expect("the chart").display().to_string();
        let values = values.display().to_string();
        let installed = cluster.helm(&[
            "install",
            NAME,
            &chart,
            "--namespace",
            NAME,
            "--values",
            &values,
            "--timeout",
            "180",
        ])?;
        let installation = Installation { cluster };
        assert!(
            installed.status.success(),
            "{}\n{}",
            installed.stderr,
            installation.describe()
        );
        Some(installation)
    }

    /// A command of ours in the server's container; it must exit 0.
    pub(super) fn server(&self, args: &[&str]) -> String {
        let mut all = vec![
            "-n",
            SERVER,
            "exec",
            "originals-server-0",
            "-c",
            "server",
            "--",
            "finial",
            "server",
        ];
        all.extend(args);
        self.cluster.kubectl_ok(&all)
    }

    /// The same with something to read.
    pub(super) fn server_with_input(&self, args: &[&str], input: &str) -> Output {
        let mut command = self.cluster.enter("kubectl");
        command
            .args([
                "-n",
                SERVER,
                "exec",
                "-i",
                "originals-server-0",
                "-c",
                "server",
                "--",
                "finial",
                "server",
            ])
            .args(args);
        Output::with_input(&mut command, input)
    }

    /// What the original controller-manager has made.
    pub(super) fn entries(&self) -> Vec<Seen> {
        seen(
            &self.server(&["entry", "show", "-output", "json"]),
            &format!("{NAME}."),
        )
    }

    /// What the original controller-manager has logged.
    pub(super) fn manager_log(&self) -> String {
        let logs = [
            "-n",
            SERVER,
            "logs",
            "originals-server-0",
            "-c",
            "controller-manager",
        ];
        self.cluster.kubectl(&logs).stdout
    }

    /// For people: why it does not come up.
    fn describe(&self) -> String {
        let pods = self.cluster.kubectl(&["-n", SERVER, "describe", "pods"]).stdout;
        let server = self
            .cluster
            .kubectl(&["-n", SERVER, "logs", "originals-server-0", "-c", "server"]);
        format!("{pods}\n{}\n{}", server.stdout, self.manager_log())
    }
}

fn values_of() -> String {
    format!(
        r#"
global:
  spire:
    trustDomain: {TRUST_DOMAIN}
    clusterName: {NAME}
    namespaces:
      create: false
      server: {{name: {SERVER}}}
      system: {{name: {SYSTEM}}}
image: {{registry: local.test, repository: finial, tag: originals, pullPolicy: Never}}
spire-server:
  persistence: {{type: emptyDir}}
  logLevel: debug
  controllerManager: {{enabled: false}}
  # The original's agents use their nodes' networks, and these nodes have no podCIDR.
  nodeAttestor: {{k8sPSAT: {{verifyClientIP: false}}}}
  extraVolumes:
  - {{name: controller-manager, configMap: {{name: controller-manager}}}}
  - {{name: scratch, emptyDir: {{}}}}
  extraContainers:
  - name: controller-manager
    image: {IMAGE}
    imagePullPolicy: Never
    command: [/opt/spire/bin/spire-controller-manager, -config=/etc/controller-manager/config.yaml]
    env: [{{name: TMPDIR, value: /scratch}}]
    securityContext: {{allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {{drop: [ALL]}}}}
    readinessProbe: {{httpGet: {{path: /readyz, port: 8083}}, periodSeconds: 1}}
    volumeMounts:
    - {{name: controller-manager, mountPath: /etc/controller-manager, readOnly: true}}
    - {{name: scratch, mountPath: /scratch}}
spire-agent:
  # The original's agents are in place of these.
  nodeSelector: {{originals: never}}
spiffe-csi-driver: {{enabled: false}}
"#
    )
}
