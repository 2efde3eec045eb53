//! Who may call what: every row of the table, for every class of caller, against the running server.

use std::collections::BTreeMap;

use finial_tests::rpcs::{WHO_MAY_CALL, rows};
use finial_tests::{Entry, Stack, StackOptions};
use tonic::Code;
use tonic::transport::Channel;

use crate::wire::{Identity, call, tls, unix};

#[tokio::test]
async fn every_rpc_refuses_whom_the_table_does_not_name() {
    let stack = Stack::start(StackOptions::default());
    let workload = minted(&stack, "/plain", &[]);
    let admin = minted(&stack, "/administrator", &["-admin"]);
    let downstream = minted(&stack, "/downstream", &["-downstream"]);
    let agent = second_agent(&stack).await;

    let mut callers: BTreeMap<&str, Channel> = BTreeMap::new();
    callers.insert(
        "local",
        unix(stack.server_socket()).await.expect("the private socket"),
    );
    callers.insert(
        "nobody",
        tls(stack.port(), None).await.expect("TLS without a certificate"),
    );
    for (class, identity) in [
        ("workload", workload),
        ("admin", admin),
        ("downstream", downstream),
        ("agent", agent),
    ] {
        callers.insert(
            class,
            tls(stack.port(), Some(identity))
                .await
                .expect("TLS with a certificate"),
        );
    }

    let mut checked = 0;
    let mut wrong = Vec::new();
    for (method, classes) in rows(WHO_MAY_CALL) {
        for (class, channel) in &callers {
            // Ban, delete and state changes with an empty message fail on their arguments; none takes effect.
            let allowed = classes.contains(&"any") || classes.contains(class);
            let outcome = call(channel, method, Vec::new()).await;
            let refused = outcome.as_ref().is_err_and(|status| {
                status.code() == Code::PermissionDenied
                    && status.message() == format!("authorization denied for method {method}")
            });
            // Services that the TCP listener does not have at all answer Unimplemented there.
            let absent = outcome
                .as_ref()
                .is_err_and(|status| status.code() == Code::Unimplemented)
                && *class != "local";
            let local_only = classes == ["local"];
            let right = match allowed {
                true => !refused,
                false => refused || (local_only && absent),
            };
            if !right {
                wrong.push(format!("{method} by {class}: allowed {allowed}, got {outcome:?}"));
            }
            checked += 1;
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {checked} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(
        checked > 300,
        "only {checked} pairs of caller and method were tried"
    );
}

#[tokio::test]
async fn an_rpc_that_no_table_knows_is_refused() {
    let stack = Stack::server_only(StackOptions::default());
    let channel = tls(stack.port(), None).await.expect("TLS without a certificate");
    for method in [
        "/spire.api.server.entry.v1.Entry/Unknown",
        "/unknown.Service/Call",
    ] {
        let status = call(&channel, method, Vec::new())
            .await
            .expect_err("an unknown method");
        assert!(
            matches!(status.code(), Code::PermissionDenied | Code::Unimplemented),
            "{method}: {status:?}"
        );
    }
}

/// An SVID for `path`, minted by the operator, with an entry that carries `flags`.
fn minted(stack: &Stack, path: &str, flags: &[&str]) -> Identity {
    stack.create_entry(&Entry::for_me(path).with(flags));
    let dir = stack.dir().join(path.trim_start_matches('/'));
    std::fs::create_dir(&dir).expect("a directory for the minted SVID");
    let dir_text = dir.display().to_string();
    stack.server_cli_ok(&["x509", "mint", "-spiffeID", &stack.id(path), "-write", &dir_text]);
    Identity::from_files(&dir)
}

/// Attests by a join token over the wire, as an agent of any make would.
async fn second_agent(stack: &Stack) -> Identity {
    use finial_identity::key::{KeyType, PrivateKey};
    use finial_identity::x509::{Csr, CsrSubject};
    use finial_proto::spire::api::server::agent::v1::attest_agent_request::{Params, Step};
    use finial_proto::spire::api::server::agent::v1::{
        AgentX509svidParams, AttestAgentRequest, attest_agent_response,
    };
    use finial_proto::spire::api::types::AttestationData;
    use prost::Message;

    let token = stack.join_token();
    let key = PrivateKey::generate(KeyType::EcP256).expect("a key");
    let csr = Csr::build(&key, CsrSubject::spire(), None, &[]).expect("a CSR");
    let request = AttestAgentRequest {
        step: Some(Step::Params(Params {
            data: Some(AttestationData {
                r#type: "join_token".into(),
                payload: token.into_bytes(),
            }),
            params: Some(AgentX509svidParams { csr }),
        })),
    };
    let channel = tls(stack.port(), None).await.expect("TLS without a certificate");
    let method = "/spire.api.server.agent.v1.Agent/AttestAgent";
    let answer = call(&channel, method, request.encode_to_vec())
        .await
        .expect("attestation by join token");
    let answer = finial_proto::spire::api::server::agent::v1::AttestAgentResponse::decode(&answer[..])
        .expect("an attestation response");
    let Some(attest_agent_response::Step::Result(result)) = answer.step else {
        panic!("no result")
    };
    let chain = result
        .svid
        .expect("an SVID")
        .cert_chain
        .into_iter()
        .map(Into::into)
        .collect();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.pkcs8_der().to_vec()).into();
    Identity { chain, key }
}
