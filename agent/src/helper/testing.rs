//! A Workload API that says what the test tells it to.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use finial_identity::bundle::JwtAuthority;
use finial_identity::jwt;
use finial_identity::key::{KeyType, PrivateKey};
use finial_identity::process::{Clock, TaskSet};
use finial_identity::x509::X509Svid;
use finial_proto::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use finial_proto::workload::{
    JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, WitBundlesRequest, WitBundlesResponse, WitsvidRequest, WitsvidResponse,
    X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest, X509svidResponse,
};
use futures_util::Stream;
use futures_util::StreamExt as _;
use serde_json::json;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tonic::{Request, Response, Status};

use super::config::{Flags, HelperConfig};
use crate::test_pki::Authority;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A configuration with the three files of the X.509-SVID in `dir`, and `extra`.
pub(super) fn config(dir: &str, extra: &str) -> HelperConfig {
    let text = format!(
        "cert_dir = {dir:?} svid_file_name = \"svid.pem\" svid_key_file_name = \"key.pem\"
         svid_bundle_file_name = \"ca.pem\"\n{extra}"
    );
    parse(&text)
}

pub(super) fn parse(text: &str) -> HelperConfig {
    let flags = Flags {
        config: "helper.conf".into(),
        agent_address: None,
        daemon_mode: None,
    };
    HelperConfig::parse(text, &flags, &|_| None).unwrap()
}

/// Waits for what other processes and tasks do.
pub(super) async fn eventually(mut holds: impl FnMut() -> bool, describe: impl Fn() -> String) {
    let waited = tokio::time::timeout(Duration::from_secs(30), async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "still does not hold: {}", describe());
}

/// What the fake answers.
#[derive(Debug)]
struct Script {
    x509: watch::Sender<Result<X509svidResponse, Status>>,
    jwt_bundles: watch::Sender<Result<JwtBundlesResponse, Status>>,
    /// The life of tokens in seconds, or the refusal.
    jwt: Mutex<Result<i64, Status>>,
    asked_audiences: Mutex<Vec<Vec<String>>>,
    jwt_key: PrivateKey,
}

/// A directory with the agent's socket, `agent.sock`, and one for files, `certs`.
#[derive(Debug)]
pub(super) struct FakeAgent {
    pub(super) authority: Authority,
    script: Arc<Script>,
    tasks: Option<TaskSet>,
    dir: tempfile::TempDir,
}

impl FakeAgent {
    /// Denies everything at first.
    pub(super) fn start() -> Self {
        let denied = Status::permission_denied("no identity issued");
        let script = Script {
            x509: watch::Sender::new(Err(denied.clone())),
            jwt_bundles: watch::Sender::new(Err(denied.clone())),
            jwt: Mutex::new(Err(denied)),
            asked_audiences: Mutex::default(),
            jwt_key: PrivateKey::generate(KeyType::EcP256).unwrap(),
        };
        let mut agent = Self {
            authority: Authority::new("example.org"),
            script: Arc::new(script),
            tasks: None,
            dir: tempfile::tempdir().unwrap(),
        };
        std::fs::create_dir(agent.certs()).unwrap();
        agent.listen();
        agent
    }

    pub(super) fn listen(&mut self) {
        let listener = UnixListener::bind(self.socket()).unwrap();
        let service = SpiffeWorkloadApiServer::with_interceptor(
            FakeApi(Arc::clone(&self.script)),
            |request: Request<()>| match request.metadata().get("workload.spiffe.io") {
                Some(value) if value == "true" => Ok(request),
                _ => Err(Status::invalid_argument("security header missing from request")),
            },
        );
        let serve = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(UnixListenerStream::new(listener));
        let mut tasks = TaskSet::new();
        tasks.spawn("fake-agent", serve);
        self.tasks = Some(tasks);
    }

    /// Ends it with all its connections, as a crash would.
    pub(super) fn crash(&mut self) {
        self.tasks = None;
        std::fs::remove_file(self.socket()).unwrap();
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    pub(super) fn certs(&self) -> PathBuf {
        self.dir.path().join("certs")
    }

    /// The [`config`] for this agent.
    pub(super) fn config(&self, extra: &str) -> HelperConfig {
        let address = format!("agent_address = {:?}\n{extra}", self.socket());
        config(self.certs().to_str().unwrap(), &address)
    }

    pub(super) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.certs().join(name)).unwrap_or_default()
    }

    /// Sends an SVID of `path` and gives it.
    pub(super) fn send(&self, path: &str) -> X509Svid {
        let svid = self.authority.svid(path);
        self.answer(Ok(self.response(&svid)));
        svid
    }

    pub(super) fn response(&self, svid: &X509Svid) -> X509svidResponse {
        X509svidResponse {
            svids: vec![message(svid, &self.authority, "")],
            ..X509svidResponse::default()
        }
    }

    pub(super) fn answer(&self, answer: Result<X509svidResponse, Status>) {
        let _former = self.script.x509.send_replace(answer);
    }

    /// From now on the agent has JWT keys, and tokens that live so long.
    pub(super) fn grant_jwt(&self, seconds: i64) {
        let mut bundle = self.authority.bundle();
        bundle.jwt_authorities = vec![JwtAuthority {
            key_id: "key-1".to_owned(),
            public_key: self.script.jwt_key.public_key().clone(),
            expires_at: 0,
            tainted: false,
        }];
        let bundles = [(
            "spiffe://example.org".to_owned(),
            bundle.to_jwks().into_bytes().into(),
        )];
        let _former = self.script.jwt_bundles.send_replace(Ok(JwtBundlesResponse {
            bundles: bundles.into(),
        }));
        *self.script.jwt.lock().unwrap() = Ok(seconds);
    }

    pub(super) fn refuse_jwt(&self, status: Status) {
        *self.script.jwt.lock().unwrap() = Err(status);
    }

    /// The audiences of each request for a token.
    pub(super) fn asked_audiences(&self) -> Vec<Vec<String>> {
        self.script.asked_audiences.lock().unwrap().clone()
    }
}

/// An SVID as the Workload API sends it.
pub(super) fn message(svid: &X509Svid, authority: &Authority, hint: &str) -> X509svid {
    X509svid {
        spiffe_id: svid.spiffe_id().to_string(),
        x509_svid: svid.chain_der_concat().into(),
        x509_svid_key: svid.pkcs8_der().to_vec().into(),
        bundle: authority.bundle().x509_der_concat().into(),
        hint: hint.to_owned(),
    }
}

/// A token that ends `seconds` from now.
pub(super) fn token(key: &PrivateKey, audience: &[String], seconds: i64) -> String {
    let now = Clock::system().unix();
    let claims = json!({"sub": "spiffe://example.org/a", "aud": audience, "iat": now, "exp": now + seconds});
    jwt::sign(key, "key-1", claims.as_object().unwrap()).unwrap()
}

/// Whether the three files are of this SVID.
pub(super) fn holds(certs: &Path, svid: &X509Svid) -> bool {
    let read = |name: &str| std::fs::read_to_string(certs.join(name)).unwrap_or_default();
    read("svid.pem") == svid.chain_pem()
        && read("key.pem") == *svid.key().to_pem()
        && !read("ca.pem").is_empty()
}

struct FakeApi(Arc<Script>);

/// What a watch holds and will hold, until a refusal.
fn stream<T: Clone + Send + Sync + 'static>(
    answers: &watch::Sender<Result<T, Status>>,
) -> Result<Response<Answers<T>>, Status> {
    let receiver = answers.subscribe();
    if let Err(status) = &*receiver.borrow() {
        return Err(status.clone());
    }
    Ok(Response::new(WatchStream::new(receiver).boxed()))
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for FakeApi {
    type FetchX509SVIDStream = Answers<X509svidResponse>;
    type FetchX509BundlesStream = Answers<X509BundlesResponse>;
    type FetchJWTBundlesStream = Answers<JwtBundlesResponse>;
    type FetchWITSVIDStream = Answers<WitsvidResponse>;
    type FetchWITBundlesStream = Answers<WitBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        _request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        stream(&self.0.x509)
    }

    async fn fetch_jwt_bundles(
        &self,
        _request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        stream(&self.0.jwt_bundles)
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        let audience = request.into_inner().audience;
        self.0.asked_audiences.lock().unwrap().push(audience.clone());
        let seconds = self.0.jwt.lock().unwrap().clone()?;
        let svid = Jwtsvid {
            spiffe_id: "spiffe://example.org/a".to_owned(),
            svid: token(&self.0.jwt_key, &audience, seconds),
            hint: String::new(),
        };
        Ok(Response::new(JwtsvidResponse { svids: vec![svid] }))
    }

    async fn fetch_x509_bundles(
        &self,
        _request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn validate_jwtsvid(
        &self,
        _request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn fetch_witsvid(
        &self,
        _request: Request<WitsvidRequest>,
    ) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn fetch_wit_bundles(
        &self,
        _request: Request<WitBundlesRequest>,
    ) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}
