//! Keeps one family's UDP flows in line with its rules: a loop of its own, so that a long conntrack table holds up no rules.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::cluster::{Family, ServiceKey};
use crate::netlink::Host;
use crate::proxy::conntrack::Reconciler;
use crate::proxy::conntrack::flows::{FlowError, FlowTable};
use crate::proxy::conntrack::frontends::{FrontendChanges, ServiceFrontends};
use crate::proxy::conntrack::stale::LocalAddresses;
use crate::proxy::rules::inputs::Inputs;

use super::sync_log::V2;
use crate::observe::metrics::Metrics;

/// The first wait after a failed round; it doubles from there.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest wait after a failed round.
const LAST_RETRY: Duration = Duration::from_secs(60);
/// After a round, this many times its own length passes before the next: however long the table is and however fast backends change,
/// a fifth of one core at most goes into reading it.
const REST: u32 = 4;
/// And at least this: the kernel walks all of its hash table for a listing, which takes milliseconds also where it is empty.
const LEAST_REST: Duration = Duration::from_secs(1);

/// What changed in the rules, and the addresses that are this node's own.
#[derive(Clone, Debug)]
pub struct FlowChanges {
    /// Where UDP services are reached now, and their backends.
    pub changes: FrontendChanges,
    /// This node's addresses.
    pub local: Arc<LocalAddresses>,
}

/// What the loop has not heard of yet. It grows with the Services that changed, not with how often they did.
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

/// Tells the loop what the rules say about UDP, once they are written.
#[derive(Debug)]
pub struct FlowSender {
    changes: watch::Sender<PendingChanges>,
    /// Anything may have changed.
    everything: bool,
    /// Services with UDP ports, or that had some, that changed since the loop was last changes.
    services: BTreeSet<ServiceKey>,
}

/// A way to tell a loop, and where it hears of it. The first thing it is changes is everything.
#[must_use]
pub fn channel() -> (FlowSender, watch::Receiver<PendingChanges>) {
    let (changes, pending) = watch::channel(PendingChanges::default());
    (FlowSender { changes, everything: true, services: BTreeSet::new() }, pending)
}

impl FlowSender {
    /// These Services changed, and have or had UDP ports.
    pub fn touch(&mut self, services: &[ServiceKey]) {
        if !self.everything {
            self.services.extend(services.iter().cloned());
        }
    }

    /// Anything may have changed.
    pub fn touch_everything(&mut self) {
        self.everything = true;
        self.services = BTreeSet::new();
    }

    /// Tells what is new, if anything is: the rules of these inputs are written.
    pub fn tell(&mut self, host: &impl Host, inputs: &Inputs, family: Family) {
        let touched = std::mem::take(&mut self.services);
        let (snapshot, external_ips) = (&inputs.snapshot, inputs.settings.allow_external_ips);
        let changes = if std::mem::take(&mut self.everything) {
            FrontendChanges::all(snapshot, family, external_ips)
        } else if touched.is_empty() {
            return;
        } else {
            let reached = |key| ServiceFrontends::of_service(snapshot, &key, family, external_ips);
            FrontendChanges::of(touched.into_iter().map(|key| (key.clone(), reached(key))))
        };
        let local = host.addresses().unwrap_or_else(|error| {
            tracing::warn!("cannot list this host's addresses, so stale flows to NodePorts stay: {error}");
            Vec::new()
        });
        self.say(FlowChanges { changes, local: Arc::new(local.into_iter().collect()) });
    }

    /// Tells this.
    pub fn say(&self, changes: FlowChanges) {
        self.changes.send_modify(|pending| pending.add(changes));
    }
}

/// Runs until whoever tells it what changed is gone.
///
/// The first change after quiet is looked after at once. Those that come in during a round, or while the loop rests from one, are looked
/// after together.
pub async fn run(mut reconciler: Reconciler, table: impl FlowTable, metrics: Arc<Metrics>, mut pending: watch::Receiver<PendingChanges>) {
    let family = reconciler.family();
    let mut local = Arc::new(LocalAddresses::default());
    let mut retry = FIRST_RETRY;
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
        let rest = LEAST_REST.max(start.elapsed() * REST);
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
                retry = FIRST_RETRY;
                // A table that is never at rest is not read to its end; it may be calmer later.
                if reconciler.pending() { rest.max(retry) } else { rest }
            }
            Err(error) => {
                // The listing went well, and so did a part of the rest.
                if let FlowError::Delete { deleted, .. } = &error {
                    metrics.flows_cleaned(family, start.elapsed(), *deleted);
                }
                let pause = rest.max(retry);
                tracing::warn!("conntrack: {error}; next try in {} s", pause.as_secs());
                retry = (retry * 2).min(LAST_RETRY);
                pause
            }
        };
        not_before = Instant::now() + pause;
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::proxy::conntrack::flows::{ListEnd, Selection};
    use crate::proxy::conntrack::frontends::{Frontend, ServingEndpoints};
    use crate::proxy::conntrack::stale::Flow;

    /// A table in which nothing is stale, and what a listing of it takes. Clones count together.
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

    /// Endpoints that change 50 times a second make no more rounds than rest allows, and the last change gets one.
    #[tokio::test(start_paused = true)]
    async fn rounds_take_a_fifth_of_the_time_at_most() {
        const SECONDS: usize = 50;
        for (listing, period) in [(Duration::from_millis(500), 2500), (Duration::from_millis(2), 1002)] {
            let (table, (sender, pending)) = (LongTable(Arc::default(), listing), channel());
            let listings = || table.0.load(Ordering::Relaxed);
            let looping = tokio::spawn(run(Reconciler::new(Family::V4), table.clone(), Arc::default(), pending));
            sender.say(backend(0));
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!(listings(), 1, "the first is looked after at once");
            for change in 0..50 * SECONDS {
                sender.say(backend((change % 2) as u8 + 1));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let most = SECONDS * 1000 / period + 1;
            assert!((most - 1..=most).contains(&listings()), "{} listings", listings());
            tokio::time::sleep(Duration::from_secs(10)).await;
            let before = listings();
            assert!(before <= most + 1, "the last change got one");
            sender.say(backend(3));
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!(listings(), before + 1, "after quiet there is no wait");
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_eq!(listings(), before + 1);
            drop(sender);
            looping.await.expect("it ends with whoever tells it");
        }
    }
}
