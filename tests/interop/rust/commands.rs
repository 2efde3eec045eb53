//! The commands of `../../session.rs`.

use std::sync::Arc;

use anyhow::{Context, bail};
use finial_identity::x509::Certificate;
use serde_json::{Value, json};
use spiffe::transport::TransportError;
use spiffe::x509_source::{MetricsErrorKind, MetricsRecorder};
use spiffe::{JwtSvid, WorkloadApiClient, WorkloadApiError, X509Context, X509Source, X509SourceBuilder};

/// Answers until standard input ends.
pub async fn answer() -> anyhow::Result<()> {
    let client = WorkloadApiClient::connect_env().await?;
    let (sender, mut lines) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        let mut read = std::io::stdin().lines().map_while(Result::ok);
        read.all(|line| sender.send(line).is_ok())
    });
    while let Some(line) = lines.recv().await {
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut answer = match one(&client, &words).await {
            Ok(fields) => fields,
            Err(error) => json!({ "error": failure(&error) }),
        };
        answer["reply"] = words.first().copied().unwrap_or_default().into();
        println!("{answer}");
    }
    Ok(())
}

async fn one(client: &WorkloadApiClient, words: &[&str]) -> anyhow::Result<Value> {
    Ok(match words {
        ["x509"] => summary(&client.fetch_x509_context().await?)?,
        ["watch"] => {
            let source = X509SourceBuilder::new()
                .metrics(Arc::new(Reconnects))
                .build()
                .await?;
            tokio::spawn(watch(source));
            json!({})
        }
        ["jwt", audience] => {
            let svid = client.fetch_jwt_svid([audience], None).await?;
            json!({ "ids": [svid.spiffe_id().to_string()], "token": svid.token() })
        }
        ["verify", token, audience] => {
            let bundles = client.fetch_jwt_bundles().await?;
            subject(&JwtSvid::parse_and_validate(token, &bundles, &[audience])?)
        }
        ["validate", token, audience] => subject(&client.validate_jwt_token(audience, token).await?),
        others => bail!("unknown command {others:?}"),
    })
}

/// Tells of every state of the source, the first one too.
async fn watch(source: X509Source) {
    let mut updates = source.updated();
    loop {
        let state = source.state();
        let event = match (state.context(), state.withdrawal()) {
            (_, Some(reason)) => tagged("ended", failure_of(reason)),
            (Ok(context), None) => match summary(&context) {
                Ok(fields) => tagged("update", fields),
                Err(error) => tagged("given up", json!({ "message": format!("{error:#}") })),
            },
            (Err(error), None) => tagged("given up", json!({ "message": error.to_string() })),
        };
        println!("{event}");
        if let Err(error) = updates.changed().await {
            let event = tagged("given up", json!({ "message": error.to_string() }));
            println!("{event}");
            return;
        }
    }
}

/// The source opens a stream again by itself and tells its metrics so.
struct Reconnects;

impl MetricsRecorder for Reconnects {
    fn record_update(&self) {}

    fn record_reconnect(&self) {
        println!("{}", json!({ "event": "reconnect" }));
    }

    fn record_error(&self, _kind: MetricsErrorKind) {}
}

fn tagged(event: &str, mut fields: Value) -> Value {
    fields["event"] = event.into();
    fields
}

fn summary(context: &X509Context) -> anyhow::Result<Value> {
    let first = context.default_svid().context("no SVID")?;
    let own = context
        .bundle_set()
        .get(first.spiffe_id().trust_domain())
        .context("no bundle")?;
    let ids: Vec<String> = context
        .svids()
        .iter()
        .map(|svid| svid.spiffe_id().to_string())
        .collect();
    let leaf = Certificate::parse(first.leaf().as_bytes())?;
    Ok(json!({ "ids": ids, "serial": leaf.serial_hex(), "authorities": own.authorities().len() }))
}

fn subject(svid: &JwtSvid) -> Value {
    json!({ "ids": [svid.spiffe_id().to_string()] })
}

fn failure(error: &anyhow::Error) -> Value {
    match error.downcast_ref::<WorkloadApiError>() {
        Some(error) => failure_of(error),
        None => json!({ "code": "", "message": format!("{error:#}") }),
    }
}

fn failure_of(error: &WorkloadApiError) -> Value {
    let (code, message) = match error {
        // The crate keeps its own words for this one and no others; the server's words chose it.
        WorkloadApiError::NoIdentityIssued => ("PermissionDenied".to_owned(), error.to_string()),
        WorkloadApiError::PermissionDenied(message) => ("PermissionDenied".to_owned(), message.clone()),
        WorkloadApiError::Transport(TransportError::Status(status)) => {
            (format!("{:?}", status.code()), status.message().to_owned())
        }
        other => (String::new(), other.to_string()),
    };
    json!({ "code": code, "message": message })
}
