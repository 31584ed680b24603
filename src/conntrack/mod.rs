//! Stale UDP flows: conntrack entries that keep sending a Service's traffic where it should no longer go.
//!
//! Rules decide where a flow goes once, at its first packet; after that, its conntrack entry does. A UDP client that goes on from the
//! same port never makes a new flow, so an entry that leads to a pod that is gone has to be deleted (spec section 8). This is a
//! reconciler of its own: rules are written first, then whatever flows contradict the cluster are deleted, and what failed is owed
//! until it is done. [`frontends`] is what there should be, [`stale`] is the judgement, both pure; [`flows`] is the table.

pub mod flows;
pub mod frontends;
#[cfg(any(test, feature = "test-kernel"))]
pub mod record;
pub mod stale;
mod wire;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cluster::Family;

use flows::{End, FlowError, FlowTable};
use frontends::{Changes, Frontends};
use stale::LocalAddresses;

/// Stale flows that are held in memory at once, 9 MB of them.
const MOST_AT_ONCE: usize = 65_536;

/// Listings in one round, at most; enough for four million stale flows. What is left is owed.
const MOST_LISTINGS: usize = 64;

/// Keeps one family's UDP flows in line with the cluster.
#[derive(Debug)]
pub struct Reconciler {
    family: Family,
    /// What the rules say; nothing before the first [`Self::note`]. Shared with the listing under way.
    frontends: Option<Arc<Frontends>>,
    owed: bool,
}

/// What a round did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cleaned {
    /// UDP flows of the family that were looked at.
    pub listed: usize,
    /// Stale flows that were deleted, or gone by themselves meanwhile.
    pub deleted: usize,
    /// The table was read to its end undisturbed. If not, another round is owed.
    pub whole: bool,
    /// Time for all of it.
    pub took: Duration,
}

impl Reconciler {
    /// A reconciler that knows nothing yet.
    #[must_use]
    pub const fn new(family: Family) -> Self {
        Self { family, frontends: None, owed: false }
    }

    /// The family.
    #[must_use]
    pub const fn family(&self) -> Family {
        self.family
    }

    /// Takes what changed about the frontends that the rules have, all of them the first time; says whether a round is owed.
    ///
    /// One is owed at the start, for whatever went stale while nobody looked; later whenever a frontend lost a backend, went away with
    /// its backends, or has some for the first time; and as long as the last round has not come to a good end. A frontend that
    /// went away is remembered until then.
    pub fn note(&mut self, changes: Changes) -> bool {
        let first = self.frontends.is_none();
        // No listing is under way, so nothing is copied.
        let frontends = Arc::make_mut(self.frontends.get_or_insert_default());
        let may_be_stale = frontends.take(changes);
        self.owed |= if first { !frontends.is_empty() } else { may_be_stale };
        if !self.owed {
            frontends.forget_gone();
        }
        self.owed
    }

    /// Whether a round is owed.
    #[must_use]
    pub const fn owed(&self) -> bool {
        self.owed
    }

    /// Deletes all stale flows, if a round is owed; `None` if not. To be called once the rules have been written: a flow that starts
    /// between the two would go by the old ones.
    ///
    /// `local` are the addresses at which node ports answer.
    ///
    /// # Errors
    /// Flows cannot be listed or deleted; the round stays owed.
    pub async fn round(&mut self, table: &impl FlowTable, local: &Arc<LocalAddresses>) -> Result<Option<Cleaned>, FlowError> {
        let Some(frontends) = self.frontends.as_mut().filter(|_| self.owed) else { return Ok(None) };
        let start = Instant::now();
        let mut cleaned = Cleaned { listed: 0, deleted: 0, whole: false, took: Duration::ZERO };
        for _ in 0..MOST_LISTINGS {
            let (judge, local) = (Arc::clone(frontends), Arc::clone(local));
            let selection = table.select(self.family, MOST_AT_ONCE, move |flow| stale::stale(flow, &judge, &local)).await?;
            cleaned.listed += selection.listed;
            if !selection.flows.is_empty() {
                cleaned.deleted += table.delete(selection.flows).await?;
            }
            if selection.end != End::Full {
                cleaned.whole = selection.end == End::Whole;
                break;
            }
        }
        if cleaned.whole {
            Arc::make_mut(frontends).forget_gone();
            self.owed = false;
        }
        cleaned.took = start.elapsed();
        Ok(Some(cleaned))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conntrack::frontends::Place;
    use crate::conntrack::frontends::tests::change;
    use crate::conntrack::record::{FakeFlows, Fault};
    use crate::conntrack::stale::tests::{at, flow};

    const SERVICE: &str = "10.96.0.10:53";
    const ONE: &str = "10.0.0.1:53";
    const TWO: &str = "10.0.0.2:53";

    /// One Service with these backends.
    fn with(backends: &[&str]) -> Changes {
        let backends: Vec<_> = backends.iter().map(|backend| at(backend)).collect();
        change("dns", &[(Place::Address(at(SERVICE)), &backends)])
    }

    /// It is gone, or was never there.
    fn without() -> Changes {
        change("dns", &[])
    }

    fn round(reconciler: &mut Reconciler, table: &FakeFlows) -> Result<Option<(usize, usize)>, FlowError> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let cleaned = runtime.block_on(reconciler.round(table, &Arc::default()));
        cleaned.map(|cleaned| cleaned.map(|cleaned| (cleaned.listed, cleaned.deleted)))
    }

    /// A reconciler with nothing owed.
    fn settled(changes: Changes) -> Reconciler {
        let mut reconciler = Reconciler::new(Family::V4);
        assert!(reconciler.note(changes), "one round at the start");
        round(&mut reconciler, &FakeFlows::default()).expect("no fault");
        assert!(!reconciler.owed());
        reconciler
    }

    /// k/k#122740
    #[test]
    fn a_restart_without_change_deletes_nothing_and_looks_once() {
        let table = FakeFlows::new([flow(SERVICE, ONE), flow(SERVICE, TWO), flow("192.0.2.1:443", "192.0.2.1:443")]);
        let mut reconciler = Reconciler::new(Family::V4);
        assert!(reconciler.note(with(&[ONE, TWO])));
        assert_eq!(round(&mut reconciler, &table).expect("no fault"), Some((3, 0)));
        assert!(!reconciler.note(with(&[ONE, TWO])));
        assert_eq!(round(&mut reconciler, &table).expect("no fault"), None);
        assert_eq!(table.listings.get(), 1);
    }

    #[test]
    fn without_udp_services_nobody_looks() {
        let mut reconciler = Reconciler::new(Family::V4);
        assert!(!reconciler.note(without()));
        assert!(!reconciler.note(without()));
    }

    #[test]
    fn new_backends_beside_the_old_need_no_round() {
        let mut reconciler = settled(with(&[ONE]));
        assert!(!reconciler.note(with(&[ONE, TWO])));
        assert!(reconciler.note(with(&[TWO])));
    }

    /// k/k#141371: what went away is remembered until a round has succeeded, over any number of failures and changes.
    #[test]
    fn a_failed_round_is_owed_until_one_succeeds() {
        for fault in [Fault::List, Fault::Delete, Fault::Interrupt] {
            let mut reconciler = settled(with(&[ONE]));
            let table = FakeFlows::new([flow("192.0.2.1:443", "192.0.2.1:443"), flow(SERVICE, ONE), flow(SERVICE, TWO)]);
            assert!(reconciler.note(without()), "the Service is gone");
            table.fault.set(Some(fault));
            assert_eq!(round(&mut reconciler, &table).is_err(), fault != Fault::Interrupt);
            assert!(reconciler.owed(), "{fault:?}");
            assert!(reconciler.note(without()), "still owed: {fault:?}");
            table.fault.set(None);
            let left = table.flows.borrow().len() - 1;
            assert_eq!(round(&mut reconciler, &table).expect("no fault"), Some((left + 1, left)), "{fault:?}");
            assert_eq!(table.flows.borrow().len(), 1);
            assert!(!reconciler.note(without()), "and then it is forgotten");
            assert_eq!(round(&mut reconciler, &table).expect("no fault"), None);
        }
    }

    #[test]
    fn flows_of_the_other_family_are_another_reconcilers() {
        let six = flow("[fd00::10]:53", "[fd01::1]:53");
        let source = at("[fd01::9]:40000");
        let six = stale::Flow { original: stale::Tuple { source, ..six.original }, ..six };
        let table = FakeFlows::new([six]);
        let mut reconciler = Reconciler::new(Family::V4);
        reconciler.note(with(&[ONE]));
        assert_eq!(round(&mut reconciler, &table).expect("no fault"), Some((0, 0)));
    }

    #[test]
    fn more_than_fit_are_deleted_in_several_listings() {
        let many = (0..=MOST_AT_ONCE).map(|n| stale::Flow { id: u32::try_from(n).ok(), ..flow(SERVICE, TWO) });
        let table = BigTable(std::cell::Cell::new(many.count()));
        let mut reconciler = Reconciler::new(Family::V4);
        reconciler.note(with(&[ONE]));
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let cleaned = runtime.block_on(reconciler.round(&table, &Arc::default())).expect("no fault").expect("one was owed");
        assert_eq!((cleaned.deleted, cleaned.whole, table.0.get()), (MOST_AT_ONCE + 1, true, 0));
    }

    /// A table of so many stale flows.
    struct BigTable(std::cell::Cell<usize>);

    impl FlowTable for BigTable {
        async fn select(
            &self,
            _family: Family,
            most: usize,
            wanted: impl Fn(&stale::Flow) -> bool + Send + 'static,
        ) -> Result<flows::Selection, FlowError> {
            let flow = flow(SERVICE, TWO);
            assert!(wanted(&flow));
            let found = self.0.get().min(most);
            let end = if found < self.0.get() { End::Full } else { End::Whole };
            Ok(flows::Selection { flows: vec![flow; found], listed: found, end })
        }

        async fn delete(&self, flows: Vec<stale::Flow>) -> Result<usize, FlowError> {
            self.0.set(self.0.get() - flows.len());
            Ok(flows.len())
        }
    }
}
