//! Keeps one family's UDP flows in line with its rules: a loop of its own, so that a long conntrack table holds up no rules.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::conntrack::Reconciler;
use crate::conntrack::flows::{FlowError, FlowTable};
use crate::conntrack::frontends::Frontends;
use crate::conntrack::stale::LocalAddresses;

use super::metrics::Metrics;

/// The first wait after a failed round; it doubles from there.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest wait after a failed round.
const LAST_RETRY: Duration = Duration::from_secs(60);

/// What the rules say about UDP, and the addresses that are this node's own.
#[derive(Clone, Debug)]
pub struct Acknowledged {
    /// Where UDP services are reached, and their backends.
    pub frontends: Frontends,
    /// This node's addresses.
    pub local: Arc<LocalAddresses>,
}

/// Runs until the sender of what was acknowledged is gone.
pub async fn run(
    mut reconciler: Reconciler,
    table: impl FlowTable,
    metrics: Arc<Metrics>,
    mut news: watch::Receiver<Option<Acknowledged>>,
) {
    let family = reconciler.family();
    let mut local = Arc::new(LocalAddresses::default());
    let mut retry = FIRST_RETRY;
    loop {
        if reconciler.owed() {
            let start = Instant::now();
            match reconciler.round(&table, &local).await {
                Ok(Some(cleaned)) => {
                    metrics.flows_cleaned(family, cleaned.took, cleaned.deleted);
                    if cleaned.deleted > 0 {
                        tracing::info!(
                            "conntrack: {} stale UDP flows of {} deleted in {} ms",
                            cleaned.deleted,
                            cleaned.listed,
                            cleaned.took.as_millis()
                        );
                    }
                    retry = FIRST_RETRY;
                }
                Ok(None) => {}
                Err(error) => {
                    // The listing went well, and so did a part of the rest.
                    if let FlowError::Delete { deleted, .. } = &error {
                        metrics.flows_cleaned(family, start.elapsed(), *deleted);
                    }
                    tracing::warn!("conntrack: {error}; next try in {} s", retry.as_secs());
                }
            }
        }
        let pause = if reconciler.owed() { retry } else { Duration::MAX };
        tokio::select! {
            changed = news.changed() => match changed {
                Ok(()) => {
                    if let Some(acknowledged) = news.borrow_and_update().clone() {
                        local = acknowledged.local;
                        reconciler.note(acknowledged.frontends);
                    }
                }
                Err(_) => return,
            },
            () = tokio::time::sleep(pause) => retry = (retry * 2).min(LAST_RETRY),
        }
    }
}
