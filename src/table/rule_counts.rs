//! Counts the desired rules. The totals are updated for each service port that changes.

use std::ops::AddAssign;

use crate::cluster::ServicePortName;

use super::Table;
use super::chain_names::ChainName;
use super::outline::Outline;
use super::rule::Digest;
use super::rules::{Fixed, lines};

/// The number of rules in each table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleCounts {
    /// In `filter`.
    pub filter: usize,
    /// In `nat`.
    pub nat: usize,
}

impl RuleCounts {
    /// The number of rules in one table.
    #[must_use]
    pub const fn of(&self, table: Table) -> usize {
        match table {
            Table::Filter => self.filter,
            Table::Nat => self.nat,
        }
    }

    /// Adds rules of one table.
    pub const fn add(&mut self, table: Table, count: usize) {
        match table {
            Table::Filter => self.filter += count,
            Table::Nat => self.nat += count,
        }
    }
}

impl AddAssign for RuleCounts {
    fn add_assign(&mut self, other: Self) {
        self.filter += other.filter;
        self.nat += other.nat;
    }
}

/// The number of service ports whose policy is Local and whose endpoints are all on other nodes [kube-proxy 6.5].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WithoutLocalCounts {
    /// By `internalTrafficPolicy`.
    pub internal: usize,
    /// By `externalTrafficPolicy`.
    pub external: usize,
}

/// The totals of the desired rules of a family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleTotals {
    /// Rules.
    pub rules: RuleCounts,
    /// Chains.
    pub chains: usize,
    /// Service ports.
    pub service_ports: usize,
    /// Endpoints of all service ports, in any state.
    pub endpoints: usize,
    /// Service ports whose traffic is dropped because this node has no endpoint.
    pub without_local: WithoutLocalCounts,
    /// The memory of all outlines in bytes, without the overhead of the allocator.
    pub bytes: usize,
}

/// The memory of one outline without its texts and chains: the outline, the two counts of its `Rc`, and its entry in the map.
const OUTLINE_BYTES: usize = size_of::<Outline>() + 3 * size_of::<usize>() + size_of::<ServicePortName>();

impl RuleTotals {
    /// Adds a service port.
    pub(super) fn add(&mut self, outline: &Outline) {
        let of = Self::of(outline);
        self.rules += of.rules;
        self.chains += of.chains;
        self.service_ports += 1;
        self.without_local.internal += of.without_local.internal;
        self.without_local.external += of.without_local.external;
        self.bytes += of.bytes;
    }

    /// Subtracts a service port.
    pub(super) fn remove(&mut self, outline: &Outline) {
        let of = Self::of(outline);
        self.rules.filter -= of.rules.filter;
        self.rules.nat -= of.rules.nat;
        self.chains -= of.chains;
        self.service_ports -= 1;
        self.without_local.internal -= of.without_local.internal;
        self.without_local.external -= of.without_local.external;
        self.bytes -= of.bytes;
    }

    /// Adds the chains and rules that belong to no service port.
    pub(super) fn add_fixed(&mut self, fixed: &Fixed) {
        for (table, chains) in [(Table::Filter, &fixed.filter), (Table::Nat, &fixed.nat)] {
            self.chains += chains.len();
            self.rules.add(table, chains.iter().map(|chain| lines(&chain.rules)).sum());
        }
        self.rules.nat += lines(&fixed.nat_tail);
    }

    fn of(outline: &Outline) -> Self {
        let text = outline.nat.len() + outline.filter.len();
        Self {
            rules: RuleCounts { filter: lines(&outline.filter), nat: lines(&outline.nat) + outline.rules as usize },
            chains: outline.chains.len(),
            service_ports: 1,
            endpoints: 0,
            without_local: WithoutLocalCounts {
                internal: outline.without_local.internal.into(),
                external: outline.without_local.external.into(),
            },
            bytes: OUTLINE_BYTES + outline.chains.len() * size_of::<(ChainName, Digest)>() + text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With the two counts of its `Rc`, an outline fits into the 80-byte blocks of the allocator.
    #[test]
    fn an_outline_fits_into_80_bytes() {
        assert!(size_of::<Outline>() + 2 * size_of::<usize>() <= 72);
    }
}
