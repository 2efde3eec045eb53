//! A way for the test's own process to the server, and tokens such as kubelets ask for: to attest as an agent of any make.

use std::path::{Path, PathBuf};

use finial_identity::key::{KeyType, PrivateKey};
use finial_identity::x509::{Csr, CsrSubject};
use finial_proto::spire::api::server::agent::v1 as agent;
use finial_proto::spire::api::types::AttestationData;
use finial_tests::Program;
use prost::Message;
use serde_json::{Value, json};
use tonic::Status;

use crate::cluster::{Cluster, READY};
use crate::installation::SERVER_NAMESPACE;
use crate::wire::{Identity, call, tls_unix};

/// The audience that the chart's server wants.
pub const AUDIENCE: &str = "spire-server";
/// For scripts of Python: what is received by one socket goes to the other.
pub const PUMP: &str = "
import socket, threading
def pump(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    for side in (source, target):
        try:
            side.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
def pump_both(one, other):
    threading.Thread(target=pump, args=(one, other), daemon=True).start()
    pump(other, one)
";
/// Lets a socket of the machine lead to an address of the cluster.
const DOOR: &str = "
import sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print('open', flush=True)
while True:
    caller = listener.accept()[0]
    server = socket.create_connection((sys.argv[2], 8081))
    threading.Thread(target=pump_both, args=(caller, server), daemon=True).start()
";

/// A way for this process to the server, which sees a process of node-b.
pub struct Door {
    _program: Program,
    socket: PathBuf,
}

impl Door {
    pub fn open(cluster: &Cluster, name: &str) -> Self {
        let pod = cluster.get(&["-n", SERVER_NAMESPACE, "pod", "finial-server-0"]);
        let socket = cluster.dir().join(name);
        let mut command = cluster.enter_node("node-b", "python3");
        command
            .args(["-c", &[PUMP, DOOR].concat()])
            .arg(&socket)
            .arg(text(&pod["status"]["podIP"]));
        let mut program = Program::start("door", &mut command);
        program.wait_for_line("open", READY);
        Door {
            _program: program,
            socket,
        }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Attests as an agent of any make would, with a service account token, as one of the cluster of this name.
    pub async fn attest(&self, cluster: &str, token: &str) -> Result<Identity, Status> {
        let key = PrivateKey::generate(KeyType::EcP256).expect("a key");
        let csr = Csr::build(&key, CsrSubject::spire(), None, &[]).expect("a CSR");
        let payload = json!({"cluster": cluster, "token": token}).to_string();
        let request = agent::AttestAgentRequest {
            step: Some(agent::attest_agent_request::Step::Params(
                agent::attest_agent_request::Params {
                    data: Some(AttestationData {
                        r#type: "k8s_psat".into(),
                        payload: payload.into_bytes(),
                    }),
                    params: Some(agent::AgentX509svidParams { csr }),
                },
            )),
        };
        let channel = tls_unix(self.socket.clone(), None)
            .await
            .expect("the server answers");
        let method = "/spire.api.server.agent.v1.Agent/AttestAgent";
        let answer = call(&channel, method, request.encode_to_vec()).await?;
        let answer = agent::AttestAgentResponse::decode(&answer[..]).expect("an attestation response");
        let Some(agent::attest_agent_response::Step::Result(result)) = answer.step else {
            panic!("no result")
        };
        let chain = result.svid.expect("an SVID").cert_chain;
        Ok(Identity {
            chain: chain.into_iter().map(Into::into).collect(),
            key: rustls::pki_types::PrivatePkcs8KeyDer::from(key.pkcs8_der().to_vec()).into(),
        })
    }
}

/// A token as the kubelet asks for it, for a service account, and for a pod if it is to be bound to one. `kubectl` is that
/// of the cluster; no audience is the API server itself.
pub fn token(
    kubectl: impl FnOnce(&[&str]) -> String,
    account: (&str, &str),
    audience: Option<&str>,
    pod: Option<&Value>,
) -> String {
    let (namespace, name) = account;
    let bound = pod.map(|pod| {
        let (name, uid) = (&pod["metadata"]["name"], &pod["metadata"]["uid"]);
        json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid})
    });
    let audiences: Vec<&str> = audience.into_iter().collect();
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"audiences": audiences, "boundObjectRef": bound},
    });
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), request.to_string()).expect("the request is written");
    let file = file.path().display().to_string();
    let answer = kubectl(&["create", "--raw", &path, "-f", &file]);
    let answer: Value = serde_json::from_str(&answer).expect("the API server answers with JSON");
    text(&answer["status"]["token"]).to_owned()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}
