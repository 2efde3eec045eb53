//! Pods with Envoy side by side, as docs/kubernetes.md says: the sample of the documentation with the socket of the CSI
//! volume, everything at Pod Security level `restricted`.

use finial_tests::{Peer, wait_for};
use serde_json::json;

use crate::clients::{Clients, IMAGE as CLIENTS};
use crate::cluster::{Cluster, READY};
use crate::installation::{Installation, TRUST_DOMAIN};
use crate::workload::{SOCKET, Workload};

const IMAGE: &str = "local.test/envoy:1";
const SAMPLE: &str = include_str!("../../docs/samples/envoy.yaml");
/// Answers with the name that Envoy vouches for.
const APPLICATION: &str = "
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = (self.headers.get('x-forwarded-client-cert') or '').encode()
        self.send_response(200)
        self.send_header('content-length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer(('127.0.0.1', 8080), Handler).serve_forever()
";
/// Prints status and body of a page.
const GET: &str = "
import sys, urllib.error, urllib.request
try:
    answer = urllib.request.urlopen(sys.argv[1], timeout=5)
except urllib.error.HTTPError as error:
    answer = error
print(answer.status)
print(answer.read().decode())
";
/// Sends requests until Envoy has another certificate, and a few with that; prints whether it has one, how many were
/// sent and how many failed.
const REQUESTS: &str = "
import time, urllib.request
def get(url):
    return urllib.request.urlopen(url, timeout=5).read().decode()
def serials():
    return [line for line in get('http://127.0.0.1:15000/certs').splitlines() if 'serial_number' in line]
sent, failed = 0, 0
def request():
    global sent, failed
    sent += 1
    try:
        get('http://127.0.0.1:15001/')
    except Exception as error:
        print(error)
        failed += 1
first, until = serials(), time.monotonic() + 120
while serials() == first and time.monotonic() < until:
    request()
for _ in range(5):
    request()
print(serials() != first, sent, failed)
";

/// A namespace whose pods have the identity that their label `app` names, each with an Envoy and an application.
struct Mesh {
    cluster: &'static Cluster,
    space: String,
    python: &'static str,
}

impl Mesh {
    fn start() -> Option<Self> {
        let installation = Installation::shared()?;
        let cluster = installation.cluster();
        let python = Clients::shared(cluster)?.python();
        bring_envoy(cluster)?;
        let space = cluster.namespace("envoy");
        installation.rule(
            &space,
            json!({
                "spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/{{ .PodMeta.Labels.app }}",
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": space}},
                "ttl": "20s",
            }),
        );
        cluster.apply(
            &json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": "backend", "namespace": space},
                "spec": {"selector": {"app": "backend"}, "ports": [{"port": 25443, "targetPort": 15443}]},
            })
            .to_string(),
        );
        let service = cluster.get(&["-n", &space, "service", "backend"]);
        let address = service["spec"]["clusterIP"]
            .as_str()
            .expect("a service has an address");
        cluster.apply(
            &json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "envoy", "namespace": space},
                "data": {"envoy.yaml": bootstrap(address)},
            })
            .to_string(),
        );
        Some(Mesh {
            cluster,
            space,
            python,
        })
    }

    /// The volume of the Workload API is in Envoy's container alone.
    fn pod(&self, app: &str, node: &str) {
        let envoy = json!({
            "name": "envoy",
            "image": IMAGE,
            "command": ["envoy", "-c", "/etc/envoy/envoy.yaml", "--disable-hot-restart", "--concurrency", "1"],
            "readinessProbe": {
                "exec": {"command": ["wget", "-q", "-O", "-", "http://127.0.0.1:15000/ready"]},
                "periodSeconds": 1,
            },
            "volumeMounts": [
                {"name": "spiffe-workload-api", "mountPath": "/spiffe-workload-api", "readOnly": true},
                {"name": "config", "mountPath": "/etc/envoy"},
            ],
        });
        let pod = Workload::new(&self.space, app)
            .label("app", app)
            .node(node)
            .main("image", json!(CLIENTS))
            .main("volumeMounts", json!([]))
            .main("command", json!([self.python, "-c", APPLICATION]))
            .container(envoy)
            .restricted()
            .volume(json!({"name": "config", "configMap": {"name": "envoy"}}));
        self.cluster.apply(&pod.manifest());
    }

    /// What a Python program in the application's container of a pod prints; the pod's containers share the network.
    fn python(&self, app: &str, program: &str, arguments: &[&str]) -> String {
        let exec = [
            "-n",
            &self.space,
            "exec",
            app,
            "-c",
            "main",
            "--",
            self.python,
            "-c",
            program,
        ];
        let output = self.cluster.kubectl(&[&exec[..], arguments].concat());
        format!("{}{}", output.stdout, output.stderr)
    }

    /// A page of the pod's Envoy.
    fn admin(&self, app: &str, page: &str) -> String {
        wait_for("a page of Envoy", READY, || {
            let printed = self.python(app, GET, &[&format!("http://127.0.0.1:15000/{page}")]);
            let body = printed.strip_prefix("200\n");
            Ok(body.ok_or_else(|| anyhow::anyhow!("{printed}"))?.to_owned())
        })
    }

    /// What the backend's application answers to a pod's, which asks by plain HTTP.
    fn ask(&self, app: &str) -> String {
        self.python(app, GET, &["http://127.0.0.1:15001/"])
    }

    /// The sum of Envoy's counters whose names match.
    fn counted(&self, app: &str, names: &str) -> u64 {
        let printed = self.admin(app, &format!("stats?filter={names}"));
        let values: Vec<u64> = printed
            .lines()
            .filter_map(|line| line.rsplit_once(": ")?.1.parse().ok())
            .collect();
        assert!(!values.is_empty(), "{app} has no counter {names}: {printed}");
        values.iter().sum()
    }
}

#[test]
fn pods_with_envoy_know_each_other_by_mutual_tls_refuse_a_third_and_rotate_without_a_failed_request() {
    let Some(mesh) = Mesh::start() else { return };
    let pods = [
        ("frontend", "node-a"),
        ("backend", "node-b"),
        ("stranger", "node-a"),
    ];
    for (app, node) in pods {
        mesh.pod(app, node);
    }
    for (app, _node) in pods {
        mesh.cluster.wait_pod(&mesh.space, app);
    }

    let frontend = format!("spiffe://{TRUST_DOMAIN}/frontend");
    let seen = wait_for("an answer of the backend", READY, || {
        let answer = mesh.ask("frontend");
        anyhow::ensure!(answer.contains("URI="), "{answer}");
        Ok(answer)
    });
    assert!(seen.contains(&format!("URI={frontend}")), "{seen}");

    let refused = "listener.*fail_verify_san";
    let certificates = mesh.admin("stranger", "certs");
    let own = format!("spiffe://{TRUST_DOMAIN}/stranger");
    assert!(certificates.contains(&own), "{certificates}");
    assert_eq!(mesh.counted("backend", refused), 0);
    let answer = mesh.ask("stranger");
    assert!(answer.contains("503"), "the stranger got: {answer}");
    assert!(mesh.counted("backend", refused) > 0);

    let counted = mesh.python("frontend", REQUESTS, &[]);
    let [renewed, sent, failed] = counted.split_whitespace().collect::<Vec<_>>()[..] else {
        panic!("requests failed: {counted}");
    };
    assert_eq!((renewed, failed), ("True", "0"), "of {sent} requests");
    for (app, _node) in pods {
        assert_eq!(mesh.counted(app, "sds.*update_rejected"), 0, "{app}");
    }
}

/// The documentation's sidecar, in a pod: with the volume's socket, and a backend that is a service. Each request makes
/// a connection of its own.
fn bootstrap(backend: &str) -> String {
    let mut text = SAMPLE.to_owned();
    let edits = [
        ("/run/finial/agent/api.sock", SOCKET.to_owned()),
        (
            "{address: 127.0.0.1, port_value: 25443}",
            format!("{{address: {backend}, port_value: 25443}}"),
        ),
        ("connect_timeout: 2s\n", CONNECTION_EACH.to_owned()),
    ];
    for (old, new) in edits {
        assert_eq!(text.matches(old).count(), 1, "{old}");
        text = text.replace(old, &new);
    }
    text
}

const CONNECTION_EACH: &str = r#"connect_timeout: 2s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        common_http_protocol_options: {max_requests_per_connection: 1}
        explicit_http_config: {http_protocol_options: {}}
"#;

fn bring_envoy(cluster: &Cluster) -> Option<()> {
    let envoy = Peer::find("FINIAL_TEST_ENVOY", "envoy", &["--version"])?.program();
    let envoy = format!("{}:/usr/bin/envoy", envoy.display());
    let busybox = cluster.busybox().display().to_string();
    cluster.import_image(IMAGE, &["--program", &envoy, "--busybox", &busybox]);
    Some(())
}
