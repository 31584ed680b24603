//! Deletes stale UDP flows of one family after each change of its rules. It is a loop of its own, so that a long conntrack table does not
//! delay rules.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::cluster::{Family, ServiceKey};
use crate::duty_cycle::DutyCycle;
use crate::netlink::Host;
use crate::observe::metrics::Metrics;
use crate::proxy::conntrack::Reconciler;
use crate::proxy::conntrack::flows::{FlowError, FlowTable};
use crate::proxy::conntrack::frontends::{FrontendChanges, ServiceFrontends};
use crate::proxy::conntrack::stale::LocalAddresses;
use crate::proxy::rules::inputs::Inputs;

use super::sync_log::V2;

/// The first wait after a failed pass. It doubles with each failure.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest wait after a failed pass.
const LAST_RETRY: Duration = Duration::from_secs(60);
/// After a pass, the loop rests for four times the pass's duration, so reading the conntrack table takes at most a fifth of one core. It
/// rests for at least a second: the kernel walks its whole hash table for each listing, which takes milliseconds even if the table is
/// empty.
const CYCLE: DutyCycle = DutyCycle::new(4, Duration::from_secs(1));

/// Changed UDP frontends, and the addresses of this node.
#[derive(Clone, Debug)]
pub struct FlowChanges {
    /// The changed frontends of UDP Services and their endpoints.
    pub changes: FrontendChanges,
    /// This node's addresses.
    pub local: Arc<LocalAddresses>,
}

/// Changes that the loop has not received yet. Several changes of one Service are merged, so the size is limited by the number of
/// Services.
#[derive(Debug, Default)]
pub struct PendingChanges(Mutex<Option<FlowChanges>>);

impl PendingChanges {
    fn add(&mut self, changes: FlowChanges) {
        let pending = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(pending) = pending {
            pending.changes.add(changes.changes);
            pending.local = changes.local;
        } else {
            *pending = Some(changes);
        }
    }

    fn take(&self) -> Option<FlowChanges> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Collects changed Services and sends their UDP frontends to the loop once their rules are written.
#[derive(Debug)]
pub struct FlowSender {
    pending: watch::Sender<PendingChanges>,
    /// Any Service may have changed.
    everything: bool,
    /// Services that changed since the last send and that have, or had, UDP ports.
    services: BTreeSet<ServiceKey>,
}

/// Returns the sender and the receiver of changes. The first send covers all Services.
#[must_use]
pub fn channel() -> (FlowSender, watch::Receiver<PendingChanges>) {
    let (pending, receiver) = watch::channel(PendingChanges::default());
    (FlowSender { pending, everything: true, services: BTreeSet::new() }, receiver)
}

impl FlowSender {
    /// Notes that these Services changed. They have, or had, UDP ports.
    pub fn touch(&mut self, services: &[ServiceKey]) {
        if !self.everything {
            self.services.extend(services.iter().cloned());
        }
    }

    /// Notes that any Service may have changed.
    pub fn touch_everything(&mut self) {
        self.everything = true;
        self.services = BTreeSet::new();
    }

    /// Sends the noted changes, if any. Called when the rules of these inputs are written.
    pub(crate) fn send_touched(&mut self, host: &impl Host, inputs: &Inputs, family: Family) {
        let touched = std::mem::take(&mut self.services);
        let (snapshot, external_ips) = (&inputs.snapshot, inputs.settings.allow_external_ips);
        let changes = if std::mem::take(&mut self.everything) {
            FrontendChanges::all(snapshot, family, external_ips)
        } else if touched.is_empty() {
            return;
        } else {
            let frontends = |key| ServiceFrontends::of_service(snapshot, &key, family, external_ips);
            FrontendChanges::of(touched.into_iter().map(|key| (key.clone(), frontends(key))))
        };
        let local = host.addresses().unwrap_or_else(|error| {
            tracing::warn!("cannot list this host's addresses, so stale flows to NodePorts are not deleted: {error}");
            Vec::new()
        });
        self.send(FlowChanges { changes, local: Arc::new(local.into_iter().collect()) });
    }

    /// Sends changes.
    pub fn send(&self, changes: FlowChanges) {
        self.pending.send_modify(|pending| pending.add(changes));
    }
}

/// Runs until the sender is dropped.
///
/// The first change after a quiet time starts a pass at once. Changes that arrive during a pass or during the rest after it are handled
/// together in the next pass.
pub async fn run(mut reconciler: Reconciler, table: impl FlowTable, metrics: Arc<Metrics>, mut pending: watch::Receiver<PendingChanges>) {
    let family = reconciler.family();
    let mut local = Arc::new(LocalAddresses::default());
    let mut retries = backoff();
    let mut not_before = Instant::now();
    loop {
        tokio::select! {
            changed = pending.changed() => match changed {
                Ok(()) => {
                    if let Some(changes) = pending.borrow_and_update().take() {
                        local = changes.local;
                        reconciler.update(changes.changes);
                    }
                    continue;
                }
                Err(_) => return,
            },
            () = sleep_until(not_before), if reconciler.pending() => {}
        }
        let start = Instant::now();
        let outcome = reconciler.reconcile(&table, &local).await;
        let rest = CYCLE.rest(start.elapsed());
        let pause = match outcome {
            Ok(cleaned) => {
                if let Some(cleaned) = cleaned {
                    metrics.flows_cleaned(family, cleaned.took, cleaned.deleted);
                    if cleaned.deleted > 0 {
                        tracing::debug!(
                            target: V2,
                            "conntrack: {} stale UDP flows of {} deleted in {} ms",
                            cleaned.deleted,
                            cleaned.listed,
                            cleaned.took.as_millis()
                        );
                    }
                }
                retries = backoff();
                rest
            }
            Err(error) => {
                // The listing succeeded, and some flows were deleted.
                if let FlowError::Delete { deleted, .. } = &error {
                    metrics.flows_cleaned(family, start.elapsed(), *deleted);
                }
                let pause = rest.max(retries.next().unwrap_or(LAST_RETRY));
                tracing::warn!("conntrack: {error}; next try in {} s", pause.as_secs());
                pause
            }
        };
        not_before = Instant::now() + pause;
    }
}

/// The waits after failed passes.
fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::new().with_min_delay(FIRST_RETRY).with_max_delay(LAST_RETRY).with_factor(2.0).without_max_times().build()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::proxy::conntrack::flows::{ListEnd, Selection};
    use crate::proxy::conntrack::frontends::{Frontend, ServingEndpoints};
    use crate::proxy::conntrack::stale::Flow;

    /// A table without stale flows. It counts its listings, each of which takes the given time. Clones share the count.
    #[derive(Clone)]
    struct LongTable(Arc<AtomicUsize>, Duration);

    impl FlowTable for LongTable {
        async fn select(&self, _: Family, _: usize, _: impl Fn(&Flow) -> bool + Send + 'static) -> Result<Selection, FlowError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(self.1).await;
            Ok(Selection { flows: Vec::new(), listed: 100_000, end: ListEnd::Complete })
        }

        async fn delete(&self, flows: Vec<Flow>) -> Result<usize, FlowError> {
            Ok(flows.len())
        }
    }

    fn backend(last: u8) -> FlowChanges {
        let mut reached = ServiceFrontends::default();
        let backend = SocketAddr::from(([10, 0, 0, last], 53));
        reached.add(Frontend::NodePort(30053), &ServingEndpoints::new([backend]));
        let key = ServiceKey { namespace: "ns".into(), name: "dns".into() };
        FlowChanges { changes: FrontendChanges::of([(key, reached)]), local: Arc::default() }
    }

    /// If endpoints change 50 times a second, the rest limits the number of passes. The last change still gets a pass.
    #[tokio::test(start_paused = true)]
    async fn passes_take_at_most_a_fifth_of_the_time() {
        const SECONDS: usize = 50;
        for (listing, period) in [(Duration::from_millis(500), 2500), (Duration::from_millis(2), 1002)] {
            let (table, (sender, pending)) = (LongTable(Arc::default(), listing), channel());
            let listings = || table.0.load(Ordering::Relaxed);
            let looping = tokio::spawn(run(Reconciler::new(Family::V4), table.clone(), Arc::default(), pending));
            sender.send(backend(0));
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!(listings(), 1, "the first change starts a pass at once");
            for change in 0..50 * SECONDS {
                sender.send(backend((change % 2) as u8 + 1));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let most = SECONDS * 1000 / period + 1;
            assert!((most - 1..=most).contains(&listings()), "{} listings", listings());
            tokio::time::sleep(Duration::from_secs(10)).await;
            let before = listings();
            assert!(before <= most + 1, "the last change got a pass");
            sender.send(backend(3));
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!(listings(), before + 1, "after a quiet time there is no wait");
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_eq!(listings(), before + 1);
            drop(sender);
            looping.await.expect("the loop ends when the sender is dropped");
        }
    }
}
