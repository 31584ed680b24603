//! A fake conntrack table for tests.

use std::cell::{Cell, RefCell};

use nix::errno::Errno;

use crate::cluster::Family;

use super::flows::{FlowError, FlowTable, ListEnd, Selection};
use super::stale::{Flow, UDP};

/// A conntrack table in memory. Its calls fail if a fault is set.
#[derive(Debug, Default)]
pub struct FakeFlows {
    /// The flows, of any protocol and family.
    pub flows: RefCell<Vec<Flow>>,
    /// The fault of all following calls.
    pub fault: Cell<Option<Fault>>,
    /// The number of listings.
    pub listings: Cell<usize>,
}

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Listings fail.
    List,
    /// Listings are interrupted after the first flow.
    Interrupt,
    /// Only the first flow is deleted.
    Delete,
}

impl FakeFlows {
    /// A table with these flows.
    pub fn new(flows: impl IntoIterator<Item = Flow>) -> Self {
        Self { flows: RefCell::new(flows.into_iter().collect()), ..Self::default() }
    }
}

impl FlowTable for FakeFlows {
    async fn select(
        &self,
        family: Family,
        most: usize,
        is_selected: impl Fn(&Flow) -> bool + Send + 'static,
    ) -> Result<Selection, FlowError> {
        self.listings.set(self.listings.get() + 1);
        let (seen, whole) = match self.fault.get() {
            Some(Fault::List) => return Err(FlowError::Permission("list conntrack entries")),
            Some(Fault::Interrupt) => (1, ListEnd::Interrupted),
            Some(Fault::Delete) | None => (usize::MAX, ListEnd::Complete),
        };
        let flows = self.flows.borrow();
        let listed: Vec<&Flow> =
            flows.iter().filter(|flow| flow.protocol == UDP && Family::of(flow.original.source.ip()) == family).take(seen).collect();
        let mut found: Vec<Flow> = listed.iter().copied().filter(|flow| is_selected(flow)).copied().collect();
        let end = if found.len() > most { ListEnd::Full } else { whole };
        found.truncate(most);
        Ok(Selection { flows: found, listed: listed.len(), end })
    }

    async fn delete(&self, flows: Vec<Flow>) -> Result<usize, FlowError> {
        let able = if self.fault.get() == Some(Fault::Delete) { 1 } else { flows.len() };
        let (done, left) = flows.split_at(able.min(flows.len()));
        self.flows.borrow_mut().retain(|flow| !done.contains(flow));
        match left.first() {
            None => Ok(done.len()),
            Some(first) => {
                Err(FlowError::Delete { failed: left.len(), deleted: done.len(), first: Box::new(*first), cause: Errno::EBUSY.into() })
            }
        }
    }
}
