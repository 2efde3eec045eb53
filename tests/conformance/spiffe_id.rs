//! SPIFFE-ID.md, as far as it needs the program; what an ID may look like is tested where it is parsed.

use finial_identity::spiffe_id::TrustDomain;
use finial_identity::x509::{Certificate, PeerUsage, verify_chain};
use finial_proto::spire::api::server::entry::v1::BatchCreateEntryRequest;
use finial_proto::spire::api::server::entry::v1::entry_client::EntryClient;
use finial_proto::spire::api::types;
use serde_json::json;
use tonic::Code;

use crate::fixture::{Foreign, WEB, now, shared, token_part};
use crate::wire::unix;

/// §2.1, §2.2: what the parser refuses, the server neither registers nor repairs.
/// Covers ID-02, ID-03, ID-04, ID-05, ID-06, ID-07, ID-08, ID-09, ID-11, ID-12, ID-13, ID-14, ID-15.
#[tokio::test]
async fn the_server_registers_no_malformed_id() {
    let fixture = shared();
    let path = |path: &str| ("example.org".to_owned(), path.to_owned());
    let name = |name: &str| (name.to_owned(), "/a".to_owned());
    let mut bad: Vec<(String, String)> = [
        "/", "//a", "/a//b", "/a/", "/a/../b", "/./a", "/..", "/a%20b", "/%61", "a",
    ]
    .into_iter()
    .chain([
        "/a?", "/a?x=1", "/a#f", "/é", "/a b", "/a\t", "/a\n", "/a\0", " /a", "/a:b", "/a@b", "/a~b", "/a+b",
        "/a*b", "/a\\b",
    ])
    .map(path)
    .collect();
    let names = [
        "",
        "Example.org",
        "user@example.org",
        "example.org:443",
        "[::1]",
        "ex%61mple.org",
        "example.org?",
        "éxample.org",
        " example.org",
    ];
    bad.extend(names.into_iter().map(name));
    let parent = Some(types::Spiffeid {
        trust_domain: "example.org".into(),
        path: "/parent".into(),
    });
    let entry = |(trust_domain, path): &(String, String)| types::Entry {
        spiffe_id: Some(types::Spiffeid {
            trust_domain: trust_domain.clone(),
            path: path.clone(),
        }),
        parent_id: parent.clone(),
        selectors: vec![types::Selector {
            r#type: "unix".into(),
            value: "uid:1".into(),
        }],
        ..types::Entry::default()
    };
    let request = |ids: &[(String, String)]| BatchCreateEntryRequest {
        entries: ids.iter().map(entry).collect(),
        output_mask: None,
    };
    let mut entries = EntryClient::new(
        unix(fixture.stack.server_socket())
            .await
            .expect("the private socket"),
    );
    let results = entries
        .batch_create_entry(request(&bad))
        .await
        .expect("items fail one by one")
        .into_inner()
        .results;
    assert_eq!(results.len(), bad.len());
    for (id, result) in bad.iter().zip(results) {
        let code = result.status.expect("each item has a status").code;
        assert_eq!(
            (code, result.entry),
            (Code::InvalidArgument as i32, None),
            "{id:?}"
        );
    }

    let good = ["/...", "/.a/..b", "/A", "/a_b-c.D"].map(path);
    for result in entries
        .batch_create_entry(request(&good))
        .await
        .expect("well-formed IDs")
        .into_inner()
        .results
    {
        assert_eq!(
            result.status.expect("each item has a status").code,
            Code::Ok as i32
        );
    }
}

/// §2.3. Covers the whole way: registered, shown, signed into both formats, streamed, validated.
/// Covers ID-17, ID-18.
#[tokio::test]
async fn e_19_an_id_of_2048_bytes_works_end_to_end() {
    let fixture = shared();
    let (stack, id) = (&fixture.stack, &fixture.longest_id);
    assert_eq!(id.len(), 2048);
    let shown = stack.server_cli_ok(&["entry", "show", "-spiffeID", id]).stdout;
    assert!(shown.contains("Found 1 entry"), "{shown}");

    let path = id.trim_start_matches("spiffe://example.org");
    let svid = fixture.x509_svid(path).await;
    assert_eq!(svid.chain[0].uri_sans(), [id.as_str()]);
    let token = fixture
        .jwt_svids(&["db"], id)
        .await
        .expect("a token")
        .remove(0)
        .svid;
    assert_eq!(token_part(&token, 1)["sub"], id.as_str());
    assert_eq!(
        &fixture.validate("db", &token).await.expect("our own token").0,
        id
    );

    let longer = format!("{id}a");
    for args in [
        &[
            "entry",
            "create",
            "-parentID",
            "spiffe://example.org/p",
            "-selector",
            "unix:uid:1",
            "-spiffeID",
            &longer,
        ][..],
        &["x509", "mint", "-spiffeID", &longer],
        &["jwt", "mint", "-audience", "db", "-spiffeID", &longer],
    ] {
        assert!(
            !stack.server_cli(args).status.success(),
            "2049 bytes: {:?}",
            &args[..2]
        );
    }
}

/// §3.1: the trust domain's authority is a self-signed certificate with the trust domain's own ID.
/// Covers ID-24, ID-25, ID-26, ID-27, ID-28.
#[tokio::test]
async fn the_trust_domain_has_an_authority_with_an_svid_of_its_own() {
    let fixture = shared();
    let svid = fixture.x509_svid(WEB).await;
    assert!(!svid.bundle.is_empty());
    for authority in &svid.bundle {
        assert_eq!(authority.uri_sans(), ["spiffe://example.org"]);
        authority
            .check_signature(authority.public_key())
            .expect("signed by itself");
    }
    let id = verify_chain(
        &svid.chain,
        &|_: &TrustDomain| Some(svid.bundle.clone()),
        now(),
        PeerUsage::Any,
    );
    assert_eq!(id.expect("the authority signed it").path(), WEB);
}

/// §3.2: nobody can exchange the ID or the key and keep the signature.
/// Covers ID-29, ID-30.
#[tokio::test]
async fn id_and_key_are_inside_what_is_signed() {
    let fixture = shared();
    let svid = fixture.x509_svid(WEB).await;
    let verify = |leaf: Certificate| {
        let bundle = |_: &TrustDomain| Some(svid.bundle.clone());
        verify_chain(
            &[&[leaf], &svid.chain[1..]].concat(),
            &bundle,
            now(),
            PeerUsage::Any,
        )
    };
    let leaf = &svid.chain[0];
    verify(leaf.clone()).expect("untouched");
    let other_key =
        finial_identity::key::PrivateKey::generate(finial_identity::key::KeyType::EcP256).expect("a key");
    let id = b"/ns/prod/sa/web";
    for (what, old, new) in [
        ("the ID", &id[..], &b"/ns/prod/sa/wab"[..]),
        (
            "the key",
            leaf.public_key().spki_der(),
            other_key.public_key().spki_der(),
        ),
    ] {
        let mut der = leaf.der().to_vec();
        let at = der
            .windows(old.len())
            .position(|window| window == old)
            .expect("the certificate holds it");
        assert_eq!(old.len(), new.len(), "{what}");
        der[at..at + old.len()].copy_from_slice(new);
        let forged = Certificate::parse(&der).expect("still a certificate");
        assert!(verify(forged).is_err(), "{what} was exchanged");
    }

    let web = fixture
        .jwt_svids(&["db"], &fixture.stack.id(WEB))
        .await
        .expect("a token")
        .remove(0)
        .svid;
    let other = fixture
        .jwt_svids(&["db"], &fixture.longest_id)
        .await
        .expect("a token")
        .remove(0)
        .svid;
    let part = |token: &str, index: usize| token.split('.').nth(index).expect("three parts").to_owned();
    let forged = format!("{}.{}.{}", part(&web, 0), part(&other, 1), part(&web, 2));
    fixture.validate("db", &web).await.expect("untouched");
    fixture
        .validate("db", &forged)
        .await
        .expect_err("the claims of another token");
}

/// §3.3: whatever is no JWT-SVID is none, however well it is signed.
/// Covers ID-31.
#[tokio::test]
async fn other_documents_than_svids_do_not_count() {
    let fixture = shared();
    let foreign = &fixture.foreign;
    fixture
        .validate("db", &foreign.token(&Foreign::header(), &Foreign::claims()))
        .await
        .expect("a JWT-SVID counts");
    let other_types = ["wit+jwt", "at+jwt", "dpop+jwt"].map(|kind| {
        foreign.token(
            &json!({"alg": "ES256", "kid": "foreign", "typ": kind}),
            &Foreign::claims(),
        )
    });
    let leaf = fixture.x509_svid(WEB).await.chain[0].to_pem();
    let texts = [
        leaf.as_str(),
        "v4.public.eyJzdWIiOiJhIn0",
        "<saml:Assertion/>",
        "spiffe://b.test/x",
    ];
    for document in other_types.iter().map(String::as_str).chain(texts) {
        let status = fixture
            .validate("db", document)
            .await
            .expect_err("not a JWT-SVID");
        assert_eq!(status.code(), Code::InvalidArgument, "{document}: {status:?}");
    }
}
