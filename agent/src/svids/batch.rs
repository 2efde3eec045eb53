//! X509-SVIDs signed together: keys and requests are made here, sent in one call, and what comes back is checked.

use std::sync::Arc;

use finial_identity::key::PrivateKey;
use finial_identity::x509::{Certificate, X509Svid};
use time::OffsetDateTime;

use super::cache::usable_until;
use super::keys::{KeyPool, Order, SvidRequest};
use crate::upstream::{SignOutcome, SignRequest, Upstream, UpstreamError};

/// What came of a batch.
#[derive(Debug)]
pub(super) struct BatchOutcome {
    pub(super) wanted: Vec<SvidRequest>,
    pub(super) answer: Result<Vec<(Arc<PrivateKey>, SignOutcome)>, BatchError>,
}

/// Why nothing of a batch was signed.
#[derive(Debug, thiserror::Error)]
pub(super) enum BatchError {
    /// Keys or requests could not be made here; the server was not asked.
    #[error("certificate requests could not be made: {0}")]
    Orders(String),
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
}

/// Makes keys and requests, and has them signed.
pub(super) async fn sign_batch(
    upstream: Upstream,
    keys: Arc<KeyPool>,
    wanted: Vec<SvidRequest>,
) -> BatchOutcome {
    let orders = if keys.is_cheap() && wanted.len() <= INLINE_ORDERS {
        keys.order(wanted.clone())
    } else {
        // Many keys, or expensive ones, must not hold up the sockets.
        let many = wanted.clone();
        let made = tokio::task::spawn_blocking(move || keys.order(many)).await;
        match made {
            Ok(orders) => orders,
            Err(error) => {
                let answer = Err(BatchError::Orders(error.to_string()));
                return BatchOutcome { wanted, answer };
            }
        }
    };
    let answer = match orders {
        Ok(orders) => send_orders(&upstream, orders).await.map_err(BatchError::from),
        Err(error) => Err(BatchError::Orders(error.to_string())),
    };
    BatchOutcome { wanted, answer }
}

async fn send_orders(
    upstream: &Upstream,
    orders: Vec<Order>,
) -> Result<Vec<(Arc<PrivateKey>, SignOutcome)>, UpstreamError> {
    let (keys, requests): (Vec<_>, Vec<_>) = orders
        .into_iter()
        .map(|order| {
            let request = SignRequest {
                entry_id: order.wanted.entry_id,
                csr_der: order.csr_der,
            };
            (order.key, request)
        })
        .unzip();
    let outcomes = upstream.sign_x509_batch(requests).await?;
    Ok(keys.into_iter().zip(outcomes).collect())
}

/// Checks what the server signed: an SVID of the wanted identity, for our key, valid now.
pub(super) fn usable_svid(
    wanted: &SvidRequest,
    chain: Vec<Certificate>,
    key: Arc<PrivateKey>,
    now: OffsetDateTime,
) -> Result<X509Svid, String> {
    let svid = X509Svid::new(chain, key).map_err(|error| format!("unusable SVID: {error}"))?;
    if *svid.spiffe_id() != wanted.spiffe_id {
        return Err(format!(
            "SVID is for {}, not for {}",
            svid.spiffe_id(),
            wanted.spiffe_id
        ));
    }
    if usable_until(svid.leaf()) <= now {
        return Err(format!("SVID expires at {}", svid.leaf().not_after()));
    }
    Ok(svid)
}

/// Keys and requests made on the spot: about a millisecond.
const INLINE_ORDERS: usize = 16;
