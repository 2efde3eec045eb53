//! The rules that clients rely on, over a real socket with a real client.

mod calls;
mod jwt_profile;
mod transport;
mod wit_profile;
mod x509_profile;

use std::sync::Arc;
use std::time::Duration;

use finial_identity::process::Clock;
use finial_proto::workload::{X509svidRequest, X509svidResponse};
use tonic::{Code, Status, Streaming};

use self::calls::Workload;
use super::messages::{Content, Messages};
use crate::endpoints::session::{Access, Session, Sessions};
use crate::endpoints::testing::{Foreign, Served, TRUST_DOMAIN, World};
use crate::svids::CachedEntry;

/// Far more than any answer of these tests takes.
const PATIENCE: Duration = Duration::from_secs(30);

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work)
        .await
        .expect("an answer in time")
}

async fn x509_stream(served: &Served) -> Streaming<X509svidResponse> {
    let mut client = served.client().await;
    in_time(client.fetch_x509svid(X509svidRequest {}))
        .await
        .unwrap()
        .into_inner()
}

async fn next<T>(stream: &mut Streaming<T>) -> Result<T, Status> {
    in_time(stream.message())
        .await
        .map(|message| message.expect("streams never end with OK"))
}

async fn x509_refusal(served: &Served) -> (Code, String) {
    let mut client = served.client().await;
    let answer = in_time(client.fetch_x509svid(X509svidRequest {})).await;
    let status = match answer {
        Err(status) => status,
        Ok(stream) => next(&mut stream.into_inner()).await.unwrap_err(),
    };
    (status.code(), status.message().to_owned())
}

fn ids(response: &X509svidResponse) -> Vec<&str> {
    let prefix = format!("spiffe://{TRUST_DOMAIN}/");
    let short = |id: &'_ str| id.len() - id.trim_start_matches(prefix.as_str()).len();
    response
        .svids
        .iter()
        .map(|svid| &svid.spiffe_id[short(&svid.spiffe_id)..])
        .collect()
}

fn sessions(world: &World) -> Sessions {
    Sessions::new(world.parts())
}
