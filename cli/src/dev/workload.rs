//! What a workload does over the Workload API.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use finial_identity::command::dial::{status, unix_channel};
use finial_identity::command::workload_api::{self, WorkloadClient};
use finial_identity::spiffe_id::SpiffeId;
use finial_proto::workload::{JwtsvidRequest, X509svid, X509svidRequest};
use tonic::{Code, Status};

/// How long a new entry may take to reach the agent.
const LIMIT: Duration = Duration::from_secs(20);

/// Between two looks, as long as there is no identity for this process.
const PAUSE: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub struct Workload {
    client: WorkloadClient,
}

impl Workload {
    pub async fn connect(socket: PathBuf) -> anyhow::Result<Self> {
        Ok(Workload {
            client: workload_api::client(unix_channel(socket).await?),
        })
    }

    /// Waits until this process has the identity `id`.
    pub async fn x509_svid(&mut self, id: &SpiffeId) -> anyhow::Result<X509svid> {
        tokio::time::timeout(LIMIT, self.watch_for(id))
            .await
            .with_context(|| format!("{id} did not arrive within {LIMIT:?}"))?
    }

    /// A token of the identity `id` for one audience.
    pub async fn jwt_svid(&mut self, id: &SpiffeId, audience: &str) -> anyhow::Result<String> {
        let message = JwtsvidRequest {
            audience: vec![audience.to_owned()],
            spiffe_id: id.to_string(),
        };
        let answer = self.client.fetch_jwtsvid(message).await;
        let answer = answer
            .map_err(|error| status("fetch a JWT-SVID", &error))?
            .into_inner();
        let svid = answer
            .svids
            .into_iter()
            .next()
            .context("the agent sent no JWT-SVID")?;
        Ok(svid.svid)
    }

    async fn watch_for(&mut self, id: &SpiffeId) -> anyhow::Result<X509svid> {
        loop {
            match self.next_with(id).await {
                Ok(svid) => return Ok(svid),
                Err(ended) if matches!(ended.code(), Code::PermissionDenied | Code::Unavailable) => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(ended) => return Err(status("fetch X.509-SVIDs", &ended)),
            }
        }
    }

    /// Reads one stream until it brings `id` or ends.
    async fn next_with(&mut self, id: &SpiffeId) -> Result<X509svid, Status> {
        let mut updates = self.client.fetch_x509svid(X509svidRequest {}).await?.into_inner();
        while let Some(update) = updates.message().await? {
            if let Some(svid) = update
                .svids
                .into_iter()
                .find(|svid| svid.spiffe_id == id.as_str())
            {
                return Ok(svid);
            }
        }
        Err(Status::unavailable("the stream ended"))
    }
}
