//! WIT-SVIDs and the WIT profile of the Workload API, switched on and off (WIT-SVID, Workload API §7).

use std::collections::HashSet;
use std::time::Duration;

use finial_identity::bundle::Bundle;
use finial_identity::key::PublicKey;
use finial_identity::process::Clock;
use finial_identity::spiffe_id::TrustDomain;
use finial_identity::wit::{self, DEFAULT_SKEW};
use finial_proto::spire::api::server::localauthority::v1 as authorities;
use finial_proto::spire::api::server::localauthority::v1::local_authority_client::LocalAuthorityClient;
use finial_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use finial_proto::workload::{
    WitBundlesRequest, WitBundlesResponse, Witsvid, WitsvidRequest, WitsvidResponse,
};
use finial_tests::{Entry, Stack, StackOptions};
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use crate::wire::unix;

const FLAG: &str = "experimental { feature_flags = [\"wit-svid\"] }";
const LIMIT: Duration = Duration::from_secs(120);

fn switched_on() -> StackOptions {
    StackOptions {
        server: FLAG.to_owned(),
        agent: FLAG.to_owned(),
        ..StackOptions::default()
    }
}

async fn client(stack: &Stack) -> SpiffeWorkloadApiClient<Channel> {
    SpiffeWorkloadApiClient::new(unix(stack.agent_socket()).await.expect("the agent's socket"))
}

fn secured<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = "true".parse().expect("ASCII");
    request.metadata_mut().insert("workload.spiffe.io", value);
    request
}

async fn svids(stack: &Stack) -> Result<Streaming<WitsvidResponse>, Status> {
    let request = secured(WitsvidRequest::default());
    Ok(client(stack).await.fetch_witsvid(request).await?.into_inner())
}

async fn bundles(stack: &Stack) -> Result<Streaming<WitBundlesResponse>, Status> {
    let request = secured(WitBundlesRequest {});
    Ok(client(stack).await.fetch_wit_bundles(request).await?.into_inner())
}

async fn next<T>(stream: &mut Streaming<T>) -> T {
    let message = tokio::time::timeout(LIMIT, stream.message()).await;
    let message = message.expect("a message in time").expect("no error");
    message.expect("streams never end with OK")
}

/// The one SVID of this user, whose key it is and whom it names.
async fn only(stream: &mut Streaming<WitsvidResponse>) -> Witsvid {
    let mut response = next(stream).await;
    assert_eq!(response.svids.len(), 1, "one identity");
    response.svids.remove(0)
}

/// Checks a token against the bundle of the server and gives the id of the authority that signed it.
fn check(stack: &Stack, svid: &Witsvid) -> String {
    let document = stack
        .server_cli_ok(&["bundle", "show", "-format", "spiffe"])
        .stdout;
    let name = TrustDomain::parse(stack.trust_domain()).expect("a name");
    let bundle = Bundle::parse_spiffe_json(name, document.as_bytes()).expect("a bundle");
    let keys = |_: &TrustDomain| Some(bundle.wit_authorities.clone());
    let unproven = wit::validate(&svid.wit_svid, &keys, Clock::system().now(), DEFAULT_SKEW).expect("valid");
    let jwk: serde_json::Map<_, _> = serde_json::from_str(&svid.wit_svid_key).expect("a JWK");
    assert_eq!(
        &PublicKey::from_jwk(&jwk).expect("a key"),
        unproven.confirmation_key()
    );
    assert!(jwk.contains_key("d"), "the private key");
    wit::parse_unverified(&svid.wit_svid).expect("readable").kid
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_gets_wit_svids_that_rotate_and_follow_their_authority() {
    let stack = Stack::start(switched_on());
    stack.create_entry(&Entry::for_me("/me").with(&["-x509SVIDTTL", "20"]));
    stack.wait_identity("/me");
    let mut stream = svids(&stack).await.expect("a stream");
    let first = only(&mut stream).await;
    assert_eq!(first.spiffe_id, stack.id("/me"));
    let old = check(&stack, &first);
    let second = only(&mut stream).await;
    assert_eq!(check(&stack, &second), old);
    assert_ne!(
        first.wit_svid_key, second.wit_svid_key,
        "a new token has a new key"
    );

    let mut bundles = bundles(&stack).await.expect("a stream");
    let keys_of = |response: &WitBundlesResponse| -> HashSet<String> {
        let own = &response.bundles[&format!("spiffe://{}", stack.trust_domain())];
        let document: serde_json::Value = serde_json::from_str(own).expect("JSON");
        let keys = document["keys"].as_array().expect("a list").iter();
        keys.map(|key| key["kid"].as_str().expect("kid").to_owned())
            .collect()
    };
    assert_eq!(keys_of(&next(&mut bundles).await), HashSet::from([old.clone()]));
    let mut authority =
        LocalAuthorityClient::new(unix(stack.server_socket()).await.expect("the server's socket"));
    let prepared = authority
        .prepare_wit_authority(authorities::PrepareWitAuthorityRequest {})
        .await
        .expect("prepared")
        .into_inner()
        .prepared_authority
        .expect("an authority")
        .authority_id;
    let both = HashSet::from([old.clone(), prepared.clone()]);
    assert_eq!(keys_of(&next(&mut bundles).await), both, "before it signs");
    authority
        .activate_wit_authority(authorities::ActivateWitAuthorityRequest {
            authority_id: prepared.clone(),
        })
        .await
        .expect("activated");
    authority
        .taint_wit_authority(authorities::TaintWitAuthorityRequest {
            authority_id: old.clone(),
        })
        .await
        .expect("tainted");
    let mut svid = only(&mut stream).await;
    while check(&stack, &svid) != prepared {
        svid = only(&mut stream).await;
    }
    authority
        .revoke_wit_authority(authorities::RevokeWitAuthorityRequest { authority_id: old })
        .await
        .expect("revoked");
    let left = HashSet::from([prepared]);
    while keys_of(&next(&mut bundles).await) != left {}
}

#[tokio::test(flavor = "multi_thread")]
async fn switched_off_there_is_no_profile_and_no_wit_key_even_of_an_earlier_run() {
    let mut stack = Stack::start(StackOptions {
        server: FLAG.to_owned(),
        ..StackOptions::default()
    });
    stack.create_entry(&Entry::for_me("/me"));
    stack.wait_identity("/me");
    let show = |stack: &Stack| {
        stack
            .server_cli_ok(&["bundle", "show", "-format", "spiffe"])
            .stdout
    };
    assert!(show(&stack).contains("wit-svid"), "published where it is on");
    for refused in [svids(&stack).await.map(|_| ()), bundles(&stack).await.map(|_| ())] {
        assert_eq!(refused.expect_err("off at the agent").code(), Code::Unimplemented);
    }
    let path = stack.dir().join("server.conf");
    let text = std::fs::read_to_string(&path).expect("server.conf");
    std::fs::write(&path, text.replace(FLAG, "")).expect("server.conf is written");
    assert!(stack.server().terminate().success());
    stack.start_server();
    stack.wait_server();
    let document = show(&stack);
    assert!(
        document.contains("jwt-svid") && !document.contains("wit-svid"),
        "{document}"
    );
    let mut authority =
        LocalAuthorityClient::new(unix(stack.server_socket()).await.expect("the server's socket"));
    let refused = authority
        .get_wit_authority_state(authorities::GetWitAuthorityStateRequest {})
        .await
        .expect_err("off at the server");
    assert_eq!(refused.code(), Code::Unimplemented);
}
