//! A trust bundle from another Workload API on this machine (SPIFFE Workload API §5.2.2).

use std::path::Path;
use std::time::Duration;

use finial_identity::command::workload_api;
use finial_identity::spiffe_id::TrustDomain;
use finial_identity::x509::Certificate;
use finial_proto::workload::X509BundlesRequest;

use super::MAX_BUNDLE;

/// The X.509 authorities of `trust_domain` in the first message of `FetchX509Bundles`.
pub(super) async fn fetch(socket: &Path, trust_domain: &TrustDomain) -> Result<Vec<Certificate>, String> {
    let answer = tokio::time::timeout(TIMEOUT, first_message(socket, trust_domain)).await;
    answer.unwrap_or_else(|_elapsed| Err(format!("no answer within {} s", TIMEOUT.as_secs())))
}

async fn first_message(socket: &Path, trust_domain: &TrustDomain) -> Result<Vec<Certificate>, String> {
    let connected = workload_api::connect(socket).await;
    let client = connected.map_err(|error| format!("connect: {error}"))?;
    let mut client = client.max_decoding_message_size(MAX_BUNDLE);
    let refused = |status: tonic::Status| format!("answered {:?}: {}", status.code(), status.message());
    let mut stream = client
        .fetch_x509_bundles(X509BundlesRequest {})
        .await
        .map_err(refused)?
        .into_inner();
    let message = stream.message().await.map_err(refused)?;
    let message = message.ok_or("ended without an answer")?;
    let wanted = trust_domain.id();
    let found = message
        .bundles
        .iter()
        // Implementations differ in whether they write the name or the ID.
        .find(|(name, _der)| name.as_str() == wanted.as_str() || name.as_str() == trust_domain.as_str());
    let (_name, der) = found.ok_or_else(|| format!("has no bundle of {wanted}"))?;
    Certificate::parse_many(der).map_err(|error| error.to_string())
}

/// As SPIRE's agents have it.
const TIMEOUT: Duration = Duration::from_secs(60);
