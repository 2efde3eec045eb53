//! Signing.

use std::sync::Arc;

use finial_identity::jwt;
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::x509::{Csr, CsrSubject, X509Svid};
use finial_proto::spire::api::server::svid::v1 as pb;
use finial_proto::spire::api::server::svid::v1::svid_client::SvidClient;
use finial_proto::spire::api::types;
use tonic::{Code, Status};

use crate::app::testing::{TestServer, certificates, csr, entry_below, new_key};

/// An SVID that the server minted for the path.
pub(super) async fn minted(server: &TestServer, path: &str) -> Arc<X509Svid> {
    let key = new_key();
    let id = SpiffeId::new(&server.trust_domain, path).unwrap();
    let csr = Csr::build(&*key, CsrSubject::spire(), Some(&id), &[]).unwrap();
    let svid = mint(server, csr, 0).await.unwrap();
    Arc::new(X509Svid::new(certificates(&svid), key).unwrap())
}

async fn mint(server: &TestServer, csr: Vec<u8>, ttl: i32) -> Result<types::X509svid, Status> {
    let answer = SvidClient::new(server.local().await)
        .mint_x509svid(pb::MintX509svidRequest { csr, ttl })
        .await?;
    Ok(answer.into_inner().svid.unwrap())
}

#[tokio::test]
async fn mints_what_a_csr_asks_for_and_refuses_what_it_must_not() {
    let server = TestServer::start().await;
    let key = new_key();
    let build = |id: Option<&str>, dns: &[&str]| {
        let id = id.map(|id| SpiffeId::parse(id).unwrap());
        let dns: Vec<String> = dns.iter().map(|name| (*name).to_owned()).collect();
        Csr::build(&*key, CsrSubject::spire(), id.as_ref(), &dns).unwrap()
    };
    let svid = mint(
        &server,
        build(Some("spiffe://example.org/web"), &["a.example.org"]),
        60,
    )
    .await
    .unwrap();
    let leaf = certificates(&svid).remove(0);
    assert_eq!(leaf.uri_sans(), ["spiffe://example.org/web"]);
    assert_eq!(leaf.dns_names(), ["a.example.org"]);
    assert_eq!(leaf.public_key(), finial_identity::key::Signer::public_key(&*key));
    assert_eq!(svid.expires_at, leaf.not_after().unix_timestamp());
    let lifetime = (leaf.not_after() - server.clock.now()).whole_seconds();
    assert!((50..=60).contains(&lifetime), "{lifetime}");

    for (what, csr) in [
        ("nothing", Vec::new()),
        ("garbage", b"garbage".to_vec()),
        ("no ID", build(None, &[])),
        (
            "reserved ID",
            build(Some("spiffe://example.org/spire/agent/a/b"), &[]),
        ),
        ("foreign ID", build(Some("spiffe://other.org/web"), &[])),
        ("ID without a path", build(Some("spiffe://example.org"), &[])),
        (
            "wildcard over another name",
            build(
                Some("spiffe://example.org/web"),
                &["*.example.org", "a.example.org"],
            ),
        ),
    ] {
        let refused = mint(&server, csr, 0).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{what}: {refused:?}");
    }
    let refused = mint(&server, build(Some("spiffe://example.org/web"), &[]), -1)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_csr_whose_signature_is_wrong_is_not_signed() {
    let server = TestServer::start().await;
    let id = SpiffeId::parse("spiffe://example.org/web").unwrap();
    let mut csr = Csr::build(&*new_key(), CsrSubject::spire(), Some(&id), &[]).unwrap();
    *csr.last_mut().unwrap() ^= 1;
    let refused = mint(&server, csr, 0).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn an_agent_gets_svids_of_its_entries_only_and_item_by_item() {
    let server = TestServer::start().await;
    let agent = server.attest().await;
    let own = server
        .entry(types::Entry {
            x509_svid_ttl: 120,
            dns_names: vec!["a.example.org".to_owned()],
            ..entry_below(server.id(agent.id.path()), server.id("/web"))
        })
        .await;
    let other = server
        .entry(entry_below(server.id("/elsewhere"), server.id("/db")))
        .await;
    let mut client = SvidClient::new(server.as_agent(&agent).await);
    let key = new_key();
    // What the CSR asks for besides its key counts for nothing.
    let foreign = SpiffeId::parse("spiffe://example.org/admin").unwrap();
    let greedy = Csr::build(&*key, CsrSubject::spire(), Some(&foreign), &[]).unwrap();
    let param = |entry_id: &str, csr: Vec<u8>| pb::NewX509svidParams {
        entry_id: entry_id.to_owned(),
        csr,
    };
    let request = pb::BatchNewX509svidRequest {
        params: vec![
            param(&own.id, greedy),
            param(&other.id, csr(&key)),
            param("unknown", csr(&key)),
            param("", csr(&key)),
            param(&own.id, Vec::new()),
            param(&own.id, b"garbage".to_vec()),
        ],
    };
    let results = client
        .batch_new_x509svid(request)
        .await
        .unwrap()
        .into_inner()
        .results;
    let codes: Vec<i32> = results.iter().map(|r| r.status.as_ref().unwrap().code).collect();
    assert_eq!(codes, [0, 5, 5, 3, 3, 3]);
    assert_eq!(
        results[1].status.as_ref().unwrap().message,
        "entry not found or not authorized"
    );
    let svid = results[0].svid.as_ref().unwrap();
    let leaf = certificates(svid).remove(0);
    assert_eq!(leaf.uri_sans(), ["spiffe://example.org/web"]);
    assert_eq!(leaf.dns_names(), ["a.example.org"]);
    assert_eq!(
        (svid.hint.as_str(), svid.id.as_ref().unwrap().path.as_str()),
        ("", "/web")
    );

    let refused = client
        .batch_new_x509svid(pb::BatchNewX509svidRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_batch_above_the_burst_is_refused_outright() {
    let server = TestServer::start().await;
    let agent = server.attest().await;
    let mut client = SvidClient::new(server.as_agent(&agent).await);
    let request = pb::BatchNewX509svidRequest {
        params: vec![pb::NewX509svidParams::default(); 501],
    };
    let refused = client.batch_new_x509svid(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn jwt_svids_carry_the_audience_and_times_of_their_entry() {
    let server = TestServer::start().await;
    let agent = server.attest().await;
    let entry = server
        .entry(types::Entry {
            jwt_svid_ttl: 60,
            ..entry_below(server.id(agent.id.path()), server.id("/web"))
        })
        .await;
    let mut client = SvidClient::new(server.as_agent(&agent).await);
    let request = |entry_id: &str, audience: &[&str]| pb::NewJwtsvidRequest {
        entry_id: entry_id.to_owned(),
        audience: audience.iter().map(|name| (*name).to_owned()).collect(),
    };
    let svid = client
        .new_jwtsvid(request(&entry.id, &["db", ""]))
        .await
        .unwrap()
        .into_inner()
        .svid
        .unwrap();
    assert_eq!(svid.expires_at - svid.issued_at, 60);
    assert_eq!(svid.id.as_ref().unwrap().path, "/web");
    let read = jwt::parse_unverified(&svid.token).unwrap();
    assert_eq!(read.claims["aud"], serde_json::json!(["db"]));
    assert_eq!(read.claims["sub"], "spiffe://example.org/web");

    for (request, code) in [
        (request("unknown", &["db"]), Code::NotFound),
        (request(&entry.id, &[]), Code::InvalidArgument),
        (request(&entry.id, &[""]), Code::InvalidArgument),
    ] {
        let refused = client.new_jwtsvid(request.clone()).await.unwrap_err();
        assert_eq!(refused.code(), code, "{request:?}");
    }
}

#[tokio::test]
async fn jwt_calls_are_unimplemented_when_switched_off() {
    let server = TestServer::start_with(|config| {
        config.with_authority(|authority| authority.disable_jwt_svids = true)
    })
    .await;
    let mut client = SvidClient::new(server.local().await);
    let refused = client
        .mint_jwtsvid(pb::MintJwtsvidRequest {
            id: Some(server.id("/web")),
            audience: vec!["db".to_owned()],
            ttl: 0,
        })
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
}

#[tokio::test]
async fn wit_svids_answer_as_spire_without_its_flag() {
    let server = TestServer::start().await;
    let refused = SvidClient::new(server.local().await)
        .mint_witsvid(pb::MintWitsvidRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    let agent = server.attest().await;
    let results = SvidClient::new(server.as_agent(&agent).await)
        .batch_new_witsvid(pb::BatchNewWitsvidRequest {
            params: vec![pb::NewWitsvidParams::default()],
        })
        .await
        .unwrap()
        .into_inner()
        .results;
    assert_eq!(results[0].status.as_ref().unwrap().code, Code::Internal as i32);
}
