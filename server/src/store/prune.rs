//! Deletes what nobody can use any more: join tokens that have expired, and nodes when the configuration says so.
//! Entries that have expired are the registry's business.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use finial_identity::process::{Clock, Stop};

use super::{Store, StoreError};
use crate::config::PruneAgents;

/// Prunes join tokens every five minutes a day after they expired, and nodes every hour when asked to, until stopped.
///
/// # Errors
/// None: a failure is logged, and the next round comes.
pub async fn run(
    store: Arc<dyn Store>,
    clock: Clock,
    agents: Option<PruneAgents>,
    stop: Stop,
) -> Result<(), Infallible> {
    let mut round = 0_u32;
    loop {
        tokio::select! {
            () = stop.stopped() => return Ok(()),
            () = tokio::time::sleep(EVERY) => {}
        }
        let now = clock.now();
        report("join tokens", store.prune_join_tokens(now - TOKENS_AFTER).await);
        round = round.wrapping_add(1);
        if let Some(prune) = agents.filter(|_| round.is_multiple_of(AGENTS_EACH)) {
            let before = time::Duration::try_from(prune.expired_for)
                .ok()
                .and_then(|expired_for| now.checked_sub(expired_for));
            if let Some(before) = before {
                report(
                    "agents",
                    store.prune_agents(before, prune.tofu, prune.batch_size).await,
                );
            }
        }
    }
}

fn report(what: &'static str, pruned: Result<usize, StoreError>) {
    match pruned {
        Ok(0) => {}
        Ok(count) => tracing::info!(what, count, "pruned what had expired"),
        Err(error) => tracing::warn!(what, %error, "failed to prune what has expired"),
    }
}

const EVERY: Duration = Duration::from_secs(5 * 60);
/// In how many rounds the nodes' turn comes once.
const AGENTS_EACH: u32 = 12;
const TOKENS_AFTER: time::Duration = time::Duration::days(1);
