//! What is signed, and what is not.

use super::*;

#[tokio::test(start_paused = true)]
async fn an_entry_decides_all_but_the_key() {
    let world = World::new();
    let manager = world.start().await.unwrap();
    let key = PrivateKey::generate(KeyType::EcP256).unwrap();
    let entry = entry(|parts| {
        parts.x509_svid_ttl = 600;
        parts.dns_names = vec!["db.example.org".to_owned(), "db".to_owned()];
    });
    let request = X509Request::for_entry(&entry, key.public_key().clone());
    let chain = manager.sign_x509(&request).unwrap();
    let [leaf] = chain.as_slice() else {
        panic!("a self-signed root is not handed out")
    };
    assert_eq!(leaf.uri_sans(), ["spiffe://example.org/db"]);
    assert_eq!(leaf.dns_names(), ["db.example.org", "db"]);
    assert_eq!(leaf.subject_text(), "CN=db.example.org,O=SPIRE,C=US");
    assert_eq!(leaf.public_key(), key.public_key());
    assert_eq!(leaf.not_before(), T0 - time::Duration::seconds(10));
    assert_eq!(leaf.not_after(), T0 + time::Duration::seconds(600));
}

#[tokio::test(start_paused = true)]
async fn lifetimes_follow_the_kind_and_end_with_the_authority() {
    let world = World::new();
    let agent_ttl = Some(2 * HOUR);
    let manager = world
        .start_as(AuthorityConfig {
            agent_ttl,
            ..config()
        })
        .await
        .unwrap();
    let key = PrivateKey::generate(KeyType::EcP256).unwrap();
    let end = |request: &X509Request| manager.sign_x509(request).unwrap()[0].not_after() - T0;
    let agent = request(&key, X509Subject::Agent(id("/spire/agent/x")));
    let downstream = request(&key, X509Subject::DownstreamCa);
    assert_eq!(end(&workload(&key)), time::Duration::HOUR);
    assert_eq!(end(&agent), time::Duration::hours(2));
    assert_eq!(end(&downstream), time::Duration::DAY);
    let long = X509Request {
        ttl: Some(1000 * HOUR),
        ..workload(&key)
    };
    assert_eq!(end(&long), time::Duration::DAY);
    let endless = X509Request {
        ttl: Some(Duration::MAX),
        ..workload(&key)
    };
    assert_eq!(end(&endless), time::Duration::DAY);

    let token = manager
        .sign_jwt(&JwtRequest {
            ttl: Some(1000 * HOUR),
            ..token_request(&["a"])
        })
        .unwrap();
    assert_eq!(token.expires_at - T0, time::Duration::DAY);
    assert_eq!(token.issued_at, T0);
}

#[tokio::test(start_paused = true)]
async fn ids_that_do_not_fit_are_refused() {
    let world = World::new();
    let manager = world.start().await.unwrap();
    let key = PrivateKey::generate(KeyType::EcP256).unwrap();
    let foreign = SpiffeId::parse("spiffe://other.org/db").unwrap();
    let named = |spiffe_id: SpiffeId, dns_names: Vec<String>| X509Subject::Workload {
        spiffe_id,
        dns_names,
        name: None,
    };
    for subject in [
        named(foreign.clone(), Vec::new()),
        named(trust_domain().id(), Vec::new()),
        named(trust_domain().server_id(), Vec::new()),
        named(id("/spire/agent/x"), Vec::new()),
        named(id("/db"), vec!["not a name".to_owned()]),
        X509Subject::Agent(id("/db")),
        X509Subject::Agent(SpiffeId::parse("spiffe://other.org/spire/agent/x").unwrap()),
    ] {
        let refused = manager.sign_x509(&request(&key, subject));
        assert!(
            matches!(refused, Err(AuthorityError::InvalidArgument(_))),
            "{refused:?}"
        );
    }
    for refused in [
        manager.sign_jwt(&JwtRequest {
            spiffe_id: foreign,
            ..token_request(&["a"])
        }),
        manager.sign_jwt(&token_request(&[])),
        manager.sign_jwt(&token_request(&["", ""])),
    ] {
        assert!(
            matches!(refused, Err(AuthorityError::InvalidArgument(_))),
            "{refused:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_says_what_its_entry_says() {
    let world = World::new();
    let jwt_issuer = Some("https://issuer.example".to_owned());
    let manager = world
        .start_as(AuthorityConfig {
            jwt_issuer,
            ..config()
        })
        .await
        .unwrap();
    let entry = entry(|parts| {
        parts.jwt_svid_ttl = 60;
        parts.jwt_svid_include_jti = true;
    });
    let signed = manager
        .sign_jwt(&JwtRequest::for_entry(
            &entry,
            vec![String::new(), "a".to_owned()],
        ))
        .unwrap();
    let parts: Vec<_> = signed.token.split('.').collect();
    let header = decode(parts[0]);
    let kid = manager.jwt_state().unwrap().active.authority_id;
    assert_eq!(
        header,
        serde_json::json!({"alg": "ES256", "kid": kid, "typ": "JWT"})
    );
    let mut claims = decode(parts[1]);
    assert!(claims.as_object_mut().unwrap().remove("jti").is_some());
    let now = T0.unix_timestamp();
    let expected = serde_json::json!({
        "sub": "spiffe://example.org/db", "aud": ["a"], "iat": now, "exp": now + 60, "iss": "https://issuer.example",
    });
    assert_eq!(claims, expected);
    assert!(!format!("{signed:?}").contains(parts[2]), "tokens are not shown");
}

#[tokio::test(start_paused = true)]
async fn every_key_type_signs() {
    for key_type in [KeyType::EcP384, KeyType::Rsa2048] {
        let world = World::new();
        let types = AuthorityConfig {
            ca_key_type: key_type,
            jwt_key_type: key_type,
            ..config()
        };
        let manager = world.start_as(types.clone()).await.unwrap();
        world.check_signing(&manager);
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        manager.sign_x509_off_thread(workload(&key)).await.unwrap();
        manager.sign_jwt_off_thread(token_request(&["a"])).await.unwrap();
        let own = manager.server_svid().borrow().as_ref().unwrap().key().key_type();
        assert_eq!(own, Some(key_type));
        let again = world.start_as(types).await.unwrap();
        assert_eq!(active(&again), active(&manager));
    }
}

#[tokio::test(start_paused = true)]
async fn a_downstream_ca_is_an_authority_of_the_trust_domain() {
    let world = World::new();
    let manager = world.start().await.unwrap();
    let key = PrivateKey::generate(KeyType::EcP256).unwrap();
    let chain = manager
        .sign_x509(&request(&key, X509Subject::DownstreamCa))
        .unwrap();
    finial_identity::x509::check_authority(&chain[0], &trust_domain()).unwrap();
    assert!(
        chain[0].subject_text().contains("OU=DOWNSTREAM-1"),
        "{}",
        chain[0].subject_text()
    );
    let root = world.bundle().x509_authorities[0].certificate.clone();
    assert_eq!(chain[0].authority_key_id(), root.subject_key_id());
    assert_eq!(chain[0].issuer_der(), root.subject_der());
}

#[tokio::test(start_paused = true)]
async fn a_root_is_named_after_its_serial_number_unless_configured() {
    let root = |config: AuthorityConfig| async move {
        let world = World::new();
        world.start_as(config).await.unwrap();
        world.bundle().x509_authorities[0].certificate.clone()
    };
    let certificate: Certificate = root(config()).await;
    let expected = format!("SERIALNUMBER={},O=SPIFFE,C=US", certificate.serial_decimal());
    assert_eq!(certificate.subject_text(), expected);
    assert_eq!(certificate.uri_sans(), ["spiffe://example.org"]);
    assert_eq!(certificate.authority_key_id(), None);
    let ca_subject = CaSubject {
        country: Vec::new(),
        organization: Vec::new(),
        common_name: "ca".to_owned(),
    };
    let certificate = root(AuthorityConfig {
        ca_subject,
        ..config()
    })
    .await;
    let expected = format!("SERIALNUMBER={},CN=ca", certificate.serial_decimal());
    assert_eq!(certificate.subject_text(), expected);
}
