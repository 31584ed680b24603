//! Deletes stale UDP flows: conntrack entries that send a Service's traffic to an endpoint that does not serve any more.
//!
//! Rules decide the endpoint of a flow at its first packet. After that, the conntrack entry does. A UDP client that keeps its port never
//! starts a new flow, so an entry for a deleted pod has to be deleted, too [kube-proxy 8]. The [`Reconciler`] runs after the rules are
//! written, and stays pending until it succeeds. [`frontends`] is the desired state and [`stale`] compares a flow with it; both are pure.
//! [`flows`] lists and deletes the kernel's entries.

pub mod flows;
pub mod frontends;
#[cfg(any(test, feature = "test-kernel"))]
pub mod record;
pub mod stale;
mod wire;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cluster::Family;

use flows::{FlowError, FlowTable, ListEnd};
use frontends::{FrontendChanges, Frontends};
use stale::LocalAddresses;

/// The largest number of stale flows in memory. They take 9 MB.
const MOST_AT_ONCE: usize = 65_536;

/// The largest number of listings in one reconciliation. They are enough for four million stale flows; the next reconciliation deletes the
/// rest.
const MOST_LISTINGS: usize = 64;

/// Finds and deletes the stale UDP flows of one family.
#[derive(Debug)]
pub struct Reconciler {
    family: Family,
    /// The frontends that the rules have; `None` before the first [`Self::update`]. Shared with the running listing.
    frontends: Option<Arc<Frontends>>,
    pending: bool,
}

/// The result of a reconciliation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowCleanup {
    /// The number of UDP flows that were listed.
    pub listed: usize,
    /// The number of stale flows that were deleted or have expired.
    pub deleted: usize,
    /// True if the table was listed completely. If not, the reconciler stays pending.
    pub complete: bool,
    /// The duration.
    pub took: Duration,
}

impl Reconciler {
    /// A reconciler without frontends.
    #[must_use]
    pub const fn new(family: Family) -> Self {
        Self { family, frontends: None, pending: false }
    }

    /// The family.
    #[must_use]
    pub const fn family(&self) -> Family {
        self.family
    }

    /// Applies the changes of the frontends that the rules have; the first time, these are all frontends. Returns true if a reconciliation
    /// is pending.
    ///
    /// A reconciliation is pending after the start, because flows may have become stale while sepal was stopped. Later, it becomes pending
    /// when a frontend loses an endpoint, is deleted, or gets its first endpoint. It stays pending until it succeeds. Until then, deleted
    /// frontends are kept.
    pub fn update(&mut self, changes: FrontendChanges) -> bool {
        let first = self.frontends.is_none();
        // No listing runs and shares the frontends, so `make_mut` copies nothing.
        let frontends = Arc::make_mut(self.frontends.get_or_insert_default());
        let may_be_stale = frontends.apply(changes);
        self.pending |= if first { !frontends.is_empty() } else { may_be_stale };
        if !self.pending {
            frontends.forget_deleted();
        }
        self.pending
    }

    /// True if a reconciliation is pending.
    #[must_use]
    pub const fn pending(&self) -> bool {
        self.pending
    }

    /// Deletes all stale flows; does nothing and returns `None` if no reconciliation is pending. Call it after the rules are written,
    /// because flows that start before that use the old rules.
    ///
    /// `local` are the addresses on which node ports are reachable.
    ///
    /// # Errors
    /// Flows cannot be listed or deleted. The reconciliation stays pending.
    pub async fn reconcile(&mut self, table: &impl FlowTable, local: &Arc<LocalAddresses>) -> Result<Option<FlowCleanup>, FlowError> {
        let Some(frontends) = self.frontends.as_mut().filter(|_| self.pending) else { return Ok(None) };
        let start = Instant::now();
        let mut cleaned = FlowCleanup { listed: 0, deleted: 0, complete: false, took: Duration::ZERO };
        for _ in 0..MOST_LISTINGS {
            let (desired, local) = (Arc::clone(frontends), Arc::clone(local));
            let selection = table.select(self.family, MOST_AT_ONCE, move |flow| stale::is_stale(flow, &desired, &local)).await?;
            cleaned.listed += selection.listed;
            if !selection.flows.is_empty() {
                cleaned.deleted += table.delete(selection.flows).await?;
            }
            if selection.end != ListEnd::Full {
                cleaned.complete = selection.end == ListEnd::Complete;
                break;
            }
        }
        if cleaned.complete {
            Arc::make_mut(frontends).forget_deleted();
            self.pending = false;
        }
        cleaned.took = start.elapsed();
        Ok(Some(cleaned))
    }
}

#[cfg(test)]
mod tests {
    use super::frontends::Frontend;
    use super::frontends::tests::change;
    use super::record::{FakeFlows, Fault};
    use super::stale::tests::{at, flow};
    use super::*;

    const SERVICE: &str = "10.96.0.10:53";
    const ONE: &str = "10.0.0.1:53";
    const TWO: &str = "10.0.0.2:53";

    /// One Service with these endpoints.
    fn with(backends: &[&str]) -> FrontendChanges {
        let backends: Vec<_> = backends.iter().map(|backend| at(backend)).collect();
        change("dns", &[(Frontend::Address(at(SERVICE)), &backends)])
    }

    /// The Service does not exist.
    fn without() -> FrontendChanges {
        change("dns", &[])
    }

    fn reconcile(reconciler: &mut Reconciler, table: &FakeFlows) -> Result<Option<(usize, usize)>, FlowError> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let cleaned = runtime.block_on(reconciler.reconcile(table, &Arc::default()));
        cleaned.map(|cleaned| cleaned.map(|cleaned| (cleaned.listed, cleaned.deleted)))
    }

    /// A reconciler with nothing pending.
    fn settled(changes: FrontendChanges) -> Reconciler {
        let mut reconciler = Reconciler::new(Family::V4);
        assert!(reconciler.update(changes), "pending at the start");
        reconcile(&mut reconciler, &FakeFlows::default()).expect("no fault");
        assert!(!reconciler.pending());
        reconciler
    }

    /// k/k#122740
    #[test]
    fn a_restart_without_change_lists_once_and_deletes_nothing() {
        let table = FakeFlows::new([flow(SERVICE, ONE), flow(SERVICE, TWO), flow("192.0.2.1:443", "192.0.2.1:443")]);
        let mut reconciler = Reconciler::new(Family::V4);
        assert!(reconciler.update(with(&[ONE, TWO])));
        assert_eq!(reconcile(&mut reconciler, &table).expect("no fault"), Some((3, 0)));
        assert!(!reconciler.update(with(&[ONE, TWO])));
        assert_eq!(reconcile(&mut reconciler, &table).expect("no fault"), None);
        assert_eq!(table.listings.get(), 1);
    }

    #[test]
    fn without_udp_services_nothing_is_listed() {
        let mut reconciler = Reconciler::new(Family::V4);
        assert!(!reconciler.update(without()));
        assert!(!reconciler.update(without()));
    }

    #[test]
    fn an_additional_endpoint_needs_no_reconciliation() {
        let mut reconciler = settled(with(&[ONE]));
        assert!(!reconciler.update(with(&[ONE, TWO])));
        assert!(reconciler.update(with(&[TWO])));
    }

    /// k/k#141371: a deleted frontend is kept until a reconciliation succeeds, over any number of failures and changes.
    #[test]
    fn a_failed_reconciliation_stays_pending_until_one_succeeds() {
        for fault in [Fault::List, Fault::Delete, Fault::Interrupt] {
            let mut reconciler = settled(with(&[ONE]));
            let table = FakeFlows::new([flow("192.0.2.1:443", "192.0.2.1:443"), flow(SERVICE, ONE), flow(SERVICE, TWO)]);
            assert!(reconciler.update(without()), "the Service is deleted");
            table.fault.set(Some(fault));
            assert_eq!(reconcile(&mut reconciler, &table).is_err(), fault != Fault::Interrupt);
            assert!(reconciler.pending(), "{fault:?}");
            assert!(reconciler.update(without()), "still pending: {fault:?}");
            table.fault.set(None);
            let left = table.flows.borrow().len() - 1;
            assert_eq!(reconcile(&mut reconciler, &table).expect("no fault"), Some((left + 1, left)), "{fault:?}");
            assert_eq!(table.flows.borrow().len(), 1);
            assert!(!reconciler.update(without()), "the frontend is forgotten");
            assert_eq!(reconcile(&mut reconciler, &table).expect("no fault"), None);
        }
    }

    #[test]
    fn flows_of_the_other_family_are_ignored() {
        let six = flow("[fd00::10]:53", "[fd01::1]:53");
        let source = at("[fd01::9]:40000");
        let six = stale::Flow { original: stale::Tuple { source, ..six.original }, ..six };
        let table = FakeFlows::new([six]);
        let mut reconciler = Reconciler::new(Family::V4);
        reconciler.update(with(&[ONE]));
        assert_eq!(reconcile(&mut reconciler, &table).expect("no fault"), Some((0, 0)));
    }

    #[test]
    fn more_flows_than_fit_are_deleted_in_several_listings() {
        let many = (0..=MOST_AT_ONCE).map(|n| stale::Flow { id: u32::try_from(n).ok(), ..flow(SERVICE, TWO) });
        let table = BigTable(std::cell::Cell::new(many.count()));
        let mut reconciler = Reconciler::new(Family::V4);
        reconciler.update(with(&[ONE]));
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let cleaned = runtime.block_on(reconciler.reconcile(&table, &Arc::default())).expect("no fault").expect("it was pending");
        assert_eq!((cleaned.deleted, cleaned.complete, table.0.get()), (MOST_AT_ONCE + 1, true, 0));
    }

    /// A table with this many stale flows.
    struct BigTable(std::cell::Cell<usize>);

    impl FlowTable for BigTable {
        async fn select(
            &self,
            _family: Family,
            most: usize,
            is_selected: impl Fn(&stale::Flow) -> bool + Send + 'static,
        ) -> Result<flows::Selection, FlowError> {
            let flow = flow(SERVICE, TWO);
            assert!(is_selected(&flow));
            let found = self.0.get().min(most);
            let end = if found < self.0.get() { ListEnd::Full } else { ListEnd::Complete };
            Ok(flows::Selection { flows: vec![flow; found], listed: found, end })
        }

        async fn delete(&self, flows: Vec<stale::Flow>) -> Result<usize, FlowError> {
            self.0.set(self.0.get() - flows.len());
            Ok(flows.len())
        }
    }
}
