//! What OpenSSL thinks of what we issue.

use finial_tests::{Entry, Output, Peer, Stack, StackOptions};

/// Covers X509-01, X509-05, X509-10, X509-11, X509-13, X509-14, X509-15, X509-16, X509-17, X509-20.
#[test]
fn openssl_verifies_and_reads_what_the_server_signs() {
    let Some(openssl) = Peer::find("FINIAL_TEST_OPENSSL", "openssl", &["version"]) else {
        return;
    };
    for key_type in ["ec-p256", "ec-p384", "rsa-2048"] {
        let options = StackOptions {
            server: format!("ca_key_type = \"{key_type}\""),
            ..StackOptions::default()
        };
        let stack = Stack::start(options);
        stack.create_entry(&Entry::for_me("/web").with(&[
            "-dns",
            "web.example.org",
            "-dns",
            "alias.example.org",
        ]));
        stack.wait_identity("/web");
        let dir = stack.dir().display().to_string();
        stack.agent_cli_ok(&["api", "fetch", "x509", "-write", &dir]);
        let file = |name: &str| stack.dir().join(name).display().to_string();
        let run = |args: &[&str]| {
            let output = Output::of(openssl.command().args(args));
            let output = output.ok(format!("{key_type}: openssl {args:?}"));
            output.stdout + &output.stderr
        };

        for purpose in ["sslclient", "sslserver"] {
            let verdict = run(&[
                "verify",
                "-x509_strict",
                "-purpose",
                purpose,
                "-CAfile",
                &file("bundle.0.pem"),
                &file("svid.0.pem"),
            ]);
            assert!(verdict.contains("OK"), "{key_type}: {verdict}");
        }

        let leaf = run(&[
            "x509",
            "-noout",
            "-text",
            "-nameopt",
            "oneline",
            "-in",
            &file("svid.0.pem"),
        ]);
        let expected = [
            "Subject: C = US, O = SPIRE, CN = web.example.org",
            "X509v3 Key Usage: critical\n                Digital Signature, Key Encipherment, Key Agreement",
            "X509v3 Extended Key Usage: \n                TLS Web Server Authentication, TLS Web Client Authentication",
            "X509v3 Basic Constraints: critical\n                CA:FALSE",
            "URI:spiffe://example.org/web, DNS:web.example.org, DNS:alias.example.org",
            "X509v3 Subject Key Identifier",
            "X509v3 Authority Key Identifier",
        ];
        let names_in_other_order = "DNS:web.example.org, DNS:alias.example.org, URI:spiffe://example.org/web";
        for fact in expected {
            let found =
                leaf.contains(fact) || (fact.starts_with("URI:") && leaf.contains(names_in_other_order));
            assert!(found, "{key_type}: {fact:?} is not in\n{leaf}");
        }
        assert_eq!(
            leaf.matches("URI:").count(),
            1,
            "{key_type}: exactly one URI\n{leaf}"
        );

        let authority = run(&["x509", "-noout", "-text", "-in", &file("bundle.0.pem")]);
        for fact in [
            "X509v3 Key Usage: critical\n                Certificate Sign, CRL Sign",
            "X509v3 Basic Constraints: critical\n                CA:TRUE",
            "URI:spiffe://example.org\n",
        ] {
            assert!(
                authority.contains(fact),
                "{key_type}: {fact:?} is not in\n{authority}"
            );
        }

        let from_key = run(&["pkey", "-pubout", "-in", &file("svid.0.key")]);
        let from_leaf = run(&["x509", "-noout", "-pubkey", "-in", &file("svid.0.pem")]);
        assert_eq!(from_key, from_leaf, "{key_type}: the key is the certificate's");
    }
}
