//! Two general JWT libraries validate our tokens and changed copies of them.

use std::process::Command;

use finial_tests::{Entry, Output, Stack, StackOptions};

use crate::clients::{Client, source};

#[test]
fn pyjwt_accepts_our_tokens_and_refuses_the_mutants() {
    let Some(_) = Client::python() else { return };
    let python = std::env::var_os("FINIAL_TEST_PYTHON").unwrap_or_else(|| "python3".into());
    judged_by("PyJWT", |jwks, audience, tokens| {
        let mut command = Command::new(&python);
        command.args([&source("python/jwt_check.py"), jwks, audience]);
        let output = Output::with_input(&mut command, &(tokens.join("\n") + "\n"));
        output.stdout.lines().map(str::to_owned).collect()
    });
}

#[test]
fn jsonwebtoken_accepts_our_tokens_and_refuses_the_mutants() {
    judged_by("jsonwebtoken", |jwks, audience, tokens| {
        let set: jsonwebtoken::jwk::JwkSet =
            serde_json::from_slice(&std::fs::read(jwks).expect("the JWKS file")).expect("a JWK set");
        tokens
            .iter()
            .map(|token| verdict(&set, audience, token))
            .collect()
    });
}

fn verdict(set: &jsonwebtoken::jwk::JwkSet, audience: &str, token: &str) -> String {
    let judge = || -> anyhow::Result<String> {
        let header = jsonwebtoken::decode_header(token)?;
        let kid = header.kid.ok_or_else(|| anyhow::anyhow!("no kid"))?;
        let jwk = set
            .find(&kid)
            .ok_or_else(|| anyhow::anyhow!("unknown kid {kid}"))?;
        let key = jsonwebtoken::DecodingKey::from_jwk(jwk)?;
        let family = match jwk.algorithm {
            jsonwebtoken::jwk::AlgorithmParameters::RSA(_) => jsonwebtoken::Algorithm::RS256,
            _ if header.alg == jsonwebtoken::Algorithm::ES384 => jsonwebtoken::Algorithm::ES384,
            _ => jsonwebtoken::Algorithm::ES256,
        };
        let mut validation = jsonwebtoken::Validation::new(family);
        validation.set_audience(&[audience]);
        validation.set_required_spec_claims(&["exp", "sub", "aud"]);
        let data = jsonwebtoken::decode::<serde_json::Value>(token, &key, &validation)?;
        Ok(data.claims["sub"].as_str().unwrap_or_default().to_owned())
    };
    match judge() {
        Ok(subject) => format!("accept {subject}"),
        Err(error) => format!("refuse {error}"),
    }
}

/// `judge` gets the path of a JWKS file, the audience and the tokens; it gives a verdict a line.
fn judged_by(library: &str, judge: impl Fn(&str, &str, &[String]) -> Vec<String>) {
    for key_type in ["ec-p256", "ec-p384", "rsa-2048"] {
        let options = StackOptions {
            server: format!("jwt_key_type = \"{key_type}\""),
            ..StackOptions::default()
        };
        let stack = Stack::start(options);
        stack.create_entry(&Entry::for_me("/me"));
        stack.wait_identity("/me");
        let fetched = stack
            .agent_cli_ok(&["api", "fetch", "jwt", "-audience", "db", "-output", "json"])
            .json();
        let token = fetched[0]["svids"][0]["svid"]
            .as_str()
            .expect("a token")
            .to_owned();
        let bundles = fetched[1]["bundles"].as_object().expect("bundles");
        let encoded = bundles["spiffe://example.org"].as_str().expect("a bundle");
        let jwks = stack.dir().join("jwks.json");
        std::fs::write(&jwks, base64(encoded)).expect("the JWKS file is written");

        let mut tokens = vec![token.clone()];
        tokens.extend(mutants(&token));
        let verdicts = judge(&jwks.display().to_string(), "db", &tokens);
        assert_eq!(
            verdicts.len(),
            tokens.len(),
            "{library}, {key_type}: {verdicts:?}"
        );
        assert_eq!(
            verdicts[0], "accept spiffe://example.org/me",
            "{library}, {key_type}"
        );
        for (token, verdict) in tokens.iter().zip(&verdicts).skip(1) {
            assert!(
                verdict.starts_with("refuse"),
                "{library}, {key_type} took a mutant: {verdict}: {token}"
            );
            let ours = stack.agent_cli(&["api", "validate", "jwt", "-audience", "db", "-svid", token]);
            assert_eq!(
                ours.status.code(),
                Some(1),
                "our own validator took a mutant: {token}"
            );
        }
        let foreign = judge(&jwks.display().to_string(), "another", &tokens[..1]);
        assert!(
            foreign[0].starts_with("refuse"),
            "{library}, {key_type}: a foreign audience was taken"
        );
    }
}

/// The token with one thing changed: algorithm, key, subject, expiry, signature, form.
fn mutants(token: &str) -> Vec<String> {
    let parts: Vec<&str> = token.split('.').collect();
    let part = |index: usize| -> serde_json::Value {
        serde_json::from_slice(&base64url(parts[index])).expect("header and claims are JSON")
    };
    let with = |index: usize, change: &dyn Fn(&mut serde_json::Value)| {
        let mut value = part(index);
        change(&mut value);
        let mut parts: Vec<String> = parts.iter().map(|part| (*part).to_owned()).collect();
        parts[index] = to_base64url(value.to_string().as_bytes());
        parts.join(".")
    };
    let mut signature = base64url(parts[2]);
    signature[10] ^= 1;
    vec![
        with(0, &|header| header["alg"] = "none".into()),
        with(0, &|header| header["alg"] = "HS256".into()),
        with(0, &|header| header["kid"] = "another".into()),
        with(1, &|claims| claims["sub"] = "spiffe://example.org/admin".into()),
        with(1, &|claims| claims["exp"] = 4_102_444_800_u64.into()),
        with(1, &|claims| claims["aud"] = "db".into()),
        format!("{}.{}.{}", parts[0], parts[1], to_base64url(&signature)),
        format!("{}.{}.", parts[0], parts[1]),
        format!("{}.{}", parts[0], parts[1]),
    ]
}

fn base64(text: &str) -> Vec<u8> {
    data_encoding::BASE64
        .decode(text.as_bytes())
        .expect("standard base64")
}

fn base64url(text: &str) -> Vec<u8> {
    data_encoding::BASE64URL_NOPAD
        .decode(text.as_bytes())
        .expect("unpadded base64url")
}

fn to_base64url(bytes: &[u8]) -> String {
    data_encoding::BASE64URL_NOPAD.encode(bytes)
}
