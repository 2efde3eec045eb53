//! The delegated identity API as a node program uses it: this process is the delegate.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use finial_identity::x509::Certificate;
use finial_proto::spire::api::agent::delegatedidentity::v1::delegated_identity_client::DelegatedIdentityClient;
use finial_proto::spire::api::agent::delegatedidentity::v1::{
    FetchJwtsviDsRequest, SubscribeToJwtBundlesRequest, SubscribeToX509BundlesRequest,
    SubscribeToX509sviDsRequest, SubscribeToX509sviDsResponse,
};
use finial_proto::spire::api::types::Selector;
use finial_tests::Entry;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::admin::WithAdmin;
use crate::wire::unix;

const PATIENCE: Duration = Duration::from_secs(30);
pub const SLEEP: &str = "/bin/sleep";

/// A program that is not this one, and ends with the test.
pub struct Sleeper(Child);

impl Sleeper {
    pub fn start() -> Self {
        let mut command = Command::new(SLEEP);
        command.arg("600").stdin(Stdio::null()).stdout(Stdio::null());
        Sleeper(command.spawn().expect("sleep starts"))
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).expect("a pid")
    }

    pub fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.end();
    }
}

#[tokio::test]
async fn a_delegate_gets_what_selectors_and_pids_have_and_others_get_nothing() {
    let with = WithAdmin::start();
    let stack = &with.stack;
    let client = DelegatedIdentityClient::new(unix(with.socket()).await.expect("the admin socket"));

    let denied = by_selector(&client, "k8s:ns:shop")
        .await
        .expect_err("no delegate yet");
    assert_eq!(told(&denied), (Code::PermissionDenied, "no identity issued"));
    let unlisted = stack.create_entry(&this_program("/unlisted"));
    let denied = until(&client, |denied| denied.message() != "no identity issued").await;
    assert_eq!(
        told(&denied.expect_err("not listed")),
        (
            Code::PermissionDenied,
            "caller not configured as an authorized delegate"
        )
    );

    stack.create_entry(&Entry {
        path: "/shop",
        selectors: vec!["k8s:ns:shop".to_owned()],
        extra: Vec::new(),
    });
    let delegate = stack.create_entry(&this_program("/delegate"));
    stack.delete_entry(&unlisted);
    let mut shop = until(&client, |_| false).await.expect("a delegate now");
    let message = until_paths(&mut shop, &["/shop"]).await;
    let svid = message.x509_svids[0].x509_svid.clone().expect("an SVID");
    let leaf = Certificate::parse(&svid.cert_chain[0]).expect("a certificate");
    assert_eq!(leaf.spiffe_id().expect("a SPIFFE ID").as_str(), stack.id("/shop"));
    assert_eq!(leaf.not_after().unix_timestamp(), svid.expires_at);

    stack.create_entry(&Entry {
        path: "/shop2",
        selectors: vec!["k8s:ns:shop".to_owned()],
        extra: Vec::new(),
    });
    until_paths(&mut shop, &["/shop", "/shop2"]).await;

    let mut sleeper = Sleeper::start();
    let program = std::fs::canonicalize(SLEEP).expect("sleep is there");
    stack.create_entry(&Entry {
        path: "/sleeper",
        selectors: vec![format!("unix:path:{}", program.display())],
        extra: Vec::new(),
    });
    let request = SubscribeToX509sviDsRequest {
        selectors: Vec::new(),
        pid: sleeper.pid(),
    };
    let mut of_pid = client
        .clone()
        .subscribe_to_x509svi_ds(request)
        .await
        .expect("a stream for the pid")
        .into_inner();
    until_paths(&mut of_pid, &["/sleeper"]).await;
    let request = FetchJwtsviDsRequest {
        audience: vec!["db".to_owned()],
        selectors: Vec::new(),
        pid: sleeper.pid(),
    };
    let tokens = client.clone().fetch_jwtsvi_ds(request).await.expect("a token");
    let tokens = tokens.into_inner().svids;
    assert_eq!(tokens.len(), 1);
    assert_eq!(tokens[0].id.as_ref().expect("an ID").path, "/sleeper");
    assert!(tokens[0].expires_at > tokens[0].issued_at);
    sleeper.end();
    let ended = next(&mut of_pid).await.expect_err("the process has ended");
    assert_eq!(ended.code(), Code::NotFound, "{ended}");

    let own = "spiffe://example.org";
    let mut x509 = client
        .clone()
        .subscribe_to_x509_bundles(SubscribeToX509BundlesRequest {})
        .await
        .expect("X.509 bundles")
        .into_inner();
    let certificates = next(&mut x509).await.expect("X.509 bundles").ca_certificates;
    assert!(Certificate::parse_many(&certificates[own]).is_ok_and(|found| !found.is_empty()));
    let mut jwt = client
        .clone()
        .subscribe_to_jwt_bundles(SubscribeToJwtBundlesRequest {})
        .await
        .expect("JWT bundles")
        .into_inner();
    let keys = next(&mut jwt).await.expect("JWT bundles").bundles;
    let keys: serde_json::Value = serde_json::from_slice(&keys[own]).expect("a JWK Set");
    assert!(
        keys["keys"].as_array().is_some_and(|keys| !keys.is_empty()),
        "{keys}"
    );

    stack.delete_entry(&delegate);
    for denied in [
        next(&mut shop).await.map(drop),
        next(&mut x509).await.map(drop),
        next(&mut jwt).await.map(drop),
    ] {
        let denied = denied.expect_err("no delegate any more");
        assert_eq!(told(&denied), (Code::PermissionDenied, "no identity issued"));
    }
}

/// An entry for this very program.
pub fn this_program(path: &str) -> Entry<'_> {
    let program = std::env::current_exe()
        .and_then(std::fs::canonicalize)
        .expect("this program");
    let mut entry = Entry::for_me(path);
    entry.selectors.push(format!("unix:path:{}", program.display()));
    entry
}

async fn by_selector(
    client: &DelegatedIdentityClient<Channel>,
    selector: &str,
) -> Result<Streaming<SubscribeToX509sviDsResponse>, Status> {
    let (kind, value) = selector.split_once(':').expect("a selector");
    let request = SubscribeToX509sviDsRequest {
        selectors: vec![Selector {
            r#type: kind.to_owned(),
            value: value.to_owned(),
        }],
        pid: 0,
    };
    let answer = client.clone().subscribe_to_x509svi_ds(request).await;
    answer.map(tonic::Response::into_inner)
}

/// Asks for the shop until it is given, or refused as wanted: entries take a moment to arrive.
async fn until(
    client: &DelegatedIdentityClient<Channel>,
    refused: impl Fn(&Status) -> bool,
) -> Result<Streaming<SubscribeToX509sviDsResponse>, Status> {
    let ask = async {
        loop {
            match by_selector(client, "k8s:ns:shop").await {
                Err(status) if !refused(&status) => tokio::task::yield_now().await,
                outcome => return outcome,
            }
        }
    };
    tokio::time::timeout(PATIENCE, ask)
        .await
        .expect("an answer in time")
}

/// The first message with the SVIDs of exactly these identities.
async fn until_paths(
    stream: &mut Streaming<SubscribeToX509sviDsResponse>,
    wanted: &[&str],
) -> SubscribeToX509sviDsResponse {
    loop {
        let message = next(stream).await.expect("a message");
        let mut paths: Vec<_> = message
            .x509_svids
            .iter()
            .filter_map(|svid| Some(svid.x509_svid.as_ref()?.id.as_ref()?.path.as_str()))
            .collect();
        paths.sort_unstable();
        if paths == wanted {
            return message;
        }
    }
}

async fn next<T>(stream: &mut Streaming<T>) -> Result<T, Status> {
    let message = tokio::time::timeout(PATIENCE, stream.message()).await;
    message
        .expect("a message in time")
        .map(|message| message.expect("streams never end with OK"))
}

fn told(status: &Status) -> (Code, &str) {
    (status.code(), status.message())
}
