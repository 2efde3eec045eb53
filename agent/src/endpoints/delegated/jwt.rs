//! `FetchJWTSVIDs`: one token for each identity of a workload.

use std::future::pending;
use std::sync::Arc;

use finial_identity::wire;
use finial_proto::spire::api::agent::delegatedidentity::v1 as pb;
use finial_proto::spire::api::types;
use tonic::{Request, Status};

use super::answer::Identities;
use super::delegate::Delegate;
use super::target::Target;
use super::{Shared, not_synced};
use crate::endpoints::jwt_svids::{check_audience, obtain, signing_turns};
use crate::endpoints::session::denied;
use crate::svids::CachedEntry;

pub(super) async fn fetch(
    shared: &Arc<Shared>,
    request: Request<pb::FetchJwtsviDsRequest>,
) -> Result<pb::FetchJwtsviDsResponse, Status> {
    let mut delegate = Delegate::open(Arc::clone(shared), &request).await?;
    let pb::FetchJwtsviDsRequest {
        audience,
        selectors,
        pid,
    } = request.into_inner();
    check_audience(&audience)?;
    let target = Target::of(shared, delegate.admitted(), &selectors, pid).await?;
    let entries = identities(&mut delegate, &target).await?;
    signing_turns(delegate.admitted(), &shared.svids, &entries, &audience).await;
    let svids = obtain(&shared.svids, entries, &audience, |entry, signed| {
        types::Jwtsvid {
            token: signed.token.to_string(),
            id: Some(wire::spiffe_id_to_wire(&entry.spiffe_id)),
            expires_at: signed.expires_at.unix_timestamp(),
            issued_at: signed.issued_at.unix_timestamp(),
            hint: entry.hint.clone(),
        }
    });
    let svids = svids.await?;
    // Signing takes a while, in which much may end.
    delegate.snapshot().await?;
    target.check_alive()?;
    Ok(pb::FetchJwtsviDsResponse { svids })
}

async fn identities(delegate: &mut Delegate, target: &Target) -> Result<Vec<Arc<CachedEntry>>, Status> {
    loop {
        let snapshot = delegate.snapshot().await?;
        let identities = Identities::of(&snapshot, target.selectors());
        if !identities.is_empty() {
            return Ok(identities
                .entries()
                .iter()
                .map(|entry| Arc::clone(entry))
                .collect());
        }
        if snapshot.synced_at.is_some() {
            return Err(denied());
        }
        let until = delegate.sync_deadline().ok_or_else(not_synced)?;
        delegate.changed(Some(until), pending()).await?;
    }
}
