//! X509-SVID.md: what the server signs, read with a parser of others, and whom it lets in.

use std::sync::Arc;

use finial_identity::peer::insecure_server_verifier;
use finial_identity::spiffe_id::TrustDomain;
use finial_identity::x509::{Certificate, PeerUsage, verify_chain};
use finial_proto::spire::api::server::svid::v1::MintX509svidRequest;
use finial_proto::spire::api::server::svid::v1::svid_client::SvidClient;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::Code;
use tonic::transport::Channel;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::fixture::{FOREIGN_ADMIN, Fixture, WEB, now, shared};
use crate::wire::{Identity, call, tls, unix};

/// §2, §3.1, §4: every kind of leaf, also when the request asks for a CA and for no subject.
/// Covers X509-01, X509-04, X509-05, X509-11, X509-13, X509-14, X509-16, X509-17, X509-18, X509-19, X509-20.
#[tokio::test]
async fn e_27_e_28_e_29_every_signed_leaf_is_a_leaf_of_the_standard() {
    let fixture = shared();
    let svid = fixture.x509_svid(WEB).await;
    let mut server = server_svid_api(&fixture).await;
    let greedy = mint(&mut server, &csr(&["spiffe://example.org/minted"]))
        .await
        .expect("the ID is ours to sign");
    let server_leaf =
        Certificate::parse(&server_certificate(fixture.stack.port()).await).expect("a certificate");
    let bundle = |_: &TrustDomain| Some(svid.bundle.clone());
    for (leaf, path) in [
        (&svid.chain[0], WEB),
        (&greedy, "/minted"),
        (&server_leaf, "/spire/server"),
    ] {
        let id = verify_chain(std::slice::from_ref(leaf), &bundle, now(), PeerUsage::Any)
            .expect("of our authority");
        assert_eq!((id.trust_domain().as_str(), id.path()), ("example.org", path));

        let (rest, parsed) = X509Certificate::from_der(leaf.der()).expect("a certificate");
        assert!(rest.is_empty(), "{path}");
        let names = parsed
            .subject_alternative_name()
            .expect("readable")
            .expect("a subject alternative name");
        let uris: Vec<&str> = names
            .value
            .general_names
            .iter()
            .filter_map(|name| {
                if let GeneralName::URI(uri) = name {
                    Some(*uri)
                } else {
                    None
                }
            })
            .collect();
        assert_eq!(uris, [id.as_str()], "exactly one URI");
        assert!(
            names.critical || parsed.subject().iter().next().is_some(),
            "{path}: empty subject, SAN not critical"
        );

        let constraints = parsed
            .basic_constraints()
            .expect("readable")
            .expect("basic constraints are written");
        assert!(!constraints.value.ca, "{path}");
        let usage = parsed
            .key_usage()
            .expect("readable")
            .expect("key usage is written");
        assert!(usage.critical, "{path}");
        assert!(usage.value.digital_signature(), "{path}");
        assert!(!usage.value.key_cert_sign() && !usage.value.crl_sign(), "{path}");
        let purposes = parsed
            .extended_key_usage()
            .expect("readable")
            .expect("extended key usage is written")
            .value;
        assert!(purposes.server_auth && purposes.client_auth, "{path}");
    }
}

/// §3.2, §4.1, §4.3.
/// Covers X509-06, X509-07, X509-08, X509-10, X509-13, X509-14, X509-15, X509-18.
#[tokio::test]
async fn e_32_the_signing_certificate_is_one_of_the_standard() {
    let fixture = shared();
    for authority in fixture.x509_svid(WEB).await.bundle {
        assert_eq!(
            authority.uri_sans(),
            ["spiffe://example.org"],
            "the trust domain's ID without a path"
        );
        let (_, parsed) = X509Certificate::from_der(authority.der()).expect("a certificate");
        assert!(
            parsed
                .basic_constraints()
                .expect("readable")
                .expect("written")
                .value
                .ca
        );
        let usage = parsed
            .key_usage()
            .expect("readable")
            .expect("key usage is written");
        assert!(usage.critical);
        assert!(usage.value.key_cert_sign());
        assert!(
            !usage.value.digital_signature()
                && !usage.value.key_encipherment()
                && !usage.value.key_agreement()
        );
    }
}

/// §2, §3.1: neither a registration nor a request gives a leaf without path, with two URIs, or of somebody else.
/// Covers X509-01, X509-04.
#[tokio::test]
async fn e_22_e_23_e_24_the_server_signs_no_other_leaf() {
    let fixture = shared();
    let mut server = server_svid_api(&fixture).await;
    mint(&mut server, &csr(&["spiffe://example.org/a"]))
        .await
        .expect("a right request");
    for uris in [
        &["spiffe://example.org"][..],
        &["spiffe://example.org/"],
        &["spiffe://example.org/a%2Fb"],
        &["https://example.org/a"],
        &["spiffe://b.test/a"],
        &["spiffe://example.org/a", "https://example.org"],
        &["spiffe://example.org/a", "spiffe://example.org/a"],
        &[],
    ] {
        let status = mint(&mut server, &csr(uris)).await.expect_err("a wrong request");
        assert_eq!(status, Code::InvalidArgument, "{uris:?}");
    }
    let args = [
        "entry",
        "create",
        "-parentID",
        "spiffe://example.org/p",
        "-selector",
        "unix:uid:1",
        "-spiffeID",
    ];
    let output = fixture
        .stack
        .server_cli(&[&args[..], &["spiffe://example.org"]].concat());
    assert!(
        !output.status.success(),
        "a registration without a path: {}",
        output.stdout
    );
}

/// §5: the running server as validator of TLS clients.
/// Covers X509-21, X509-22.
#[tokio::test]
async fn e_30_the_server_lets_in_leaves_of_their_own_authority_only() {
    let fixture = shared();
    let svid = fixture.x509_svid(WEB).await;
    let port = fixture.stack.port();
    let ours = Identity {
        chain: svid
            .chain
            .iter()
            .map(|certificate| certificate.der().clone())
            .collect(),
        key: rustls::pki_types::PrivatePkcs8KeyDer::from(svid.key.pkcs8_der().to_vec()).into(),
    };
    enter(port, ours).await.expect("an SVID of the server's own");
    let foreign = &fixture.foreign;
    enter(port, foreign.leaf(FOREIGN_ADMIN))
        .await
        .expect("a foreign SVID that the configuration names");
    let strangers = [
        (
            "our ID, signed by another authority whose bundle is held",
            "spiffe://example.org/ns/prod/sa/web",
        ),
        (
            "the ID of our server, signed by another authority",
            "spiffe://example.org/spire/server",
        ),
        (
            "a foreign ID that the configuration does not name",
            "spiffe://b.test/x",
        ),
        ("a trust domain without bundle", "spiffe://c.test/x"),
        ("an ID without a path", "spiffe://b.test"),
        ("another scheme", "https://example.org/ns/prod/sa/web"),
    ]
    .map(|(what, uri)| (what, foreign.leaf(uri)));
    let mut authority = foreign.leaf("spiffe://b.test/x");
    authority.chain = vec![foreign.authority().der().clone()];
    authority.key = foreign.authority_key();
    for (what, identity) in strangers
        .into_iter()
        .chain([("a signing certificate", authority)])
    {
        assert!(enter(port, identity).await.is_err(), "{what} was let in");
    }
}

/// Calls what anybody with an accepted connection may call.
async fn enter(port: u16, identity: Identity) -> anyhow::Result<Vec<u8>> {
    let channel = tls(port, Some(identity)).await?;
    Ok(call(
        &channel,
        "/spire.api.server.bundle.v1.Bundle/GetBundle",
        Vec::new(),
    )
    .await?)
}

async fn server_svid_api(fixture: &Fixture) -> SvidClient<Channel> {
    SvidClient::new(
        unix(fixture.stack.server_socket())
            .await
            .expect("the private socket"),
    )
}

/// A request that asks for a CA and names no subject.
fn csr(uris: &[&str]) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.subject_alt_names = uris
        .iter()
        .map(|uri| SanType::URI((*uri).try_into().expect("ASCII")))
        .collect();
    let key = KeyPair::generate().expect("a key");
    params.serialize_request(&key).expect("a request").der().to_vec()
}

async fn mint(server: &mut SvidClient<Channel>, csr: &[u8]) -> Result<Certificate, Code> {
    let request = MintX509svidRequest {
        csr: csr.to_vec(),
        ttl: 0,
    };
    let answer = server
        .mint_x509svid(request)
        .await
        .map_err(|status| status.code())?
        .into_inner();
    let chain = answer.svid.expect("an SVID").cert_chain;
    Ok(Certificate::parse(&chain[0]).expect("a certificate"))
}

/// What the server shows to TLS clients, which must have its key.
async fn server_certificate(port: u16) -> Vec<u8> {
    let id = TrustDomain::parse("example.org").expect("a name").server_id();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider's versions")
        .dangerous()
        .with_custom_certificate_verifier(insecure_server_verifier(id))
        .with_no_client_auth();
    let stream = TcpStream::connect(("127.0.0.1", port))
        .await
        .expect("the server listens");
    let name = "ignored.example".try_into().expect("a name");
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .expect("the server has its own ID");
    stream
        .get_ref()
        .1
        .peer_certificates()
        .expect("the server shows one")[0]
        .to_vec()
}
