//! Rules counted: how many there should be, kept up to date service port by service port.

use super::rules::lines;
use std::ops::AddAssign;

use super::chain_names::ChainName;
use super::rules::Fixed;
use crate::cluster::ServicePortName;

use super::Table;
use super::outline::Outline;
use super::rule::Digest;

/// How many rules, by table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleCounts {
    /// In `filter`.
    pub filter: usize,
    /// In `nat`.
    pub nat: usize,
}

impl RuleCounts {
    /// How many in one table.
    #[must_use]
    pub const fn of(&self, table: Table) -> usize {
        match table {
            Table::Filter => self.filter,
            Table::Nat => self.nat,
        }
    }

    /// Counts more rules of one table.
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

/// Service ports with endpoints, but none on this node where their policy is Local (spec section 6.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WithoutLocalCounts {
    /// By `internalTrafficPolicy`.
    pub internal: usize,
    /// By `externalTrafficPolicy`.
    pub external: usize,
}

/// What the desired rules of a family come to.
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
    /// Service ports that serve nobody here for want of an endpoint on this node.
    pub without_local: WithoutLocalCounts,
    /// Memory that outlines take, in bytes: from the lengths of what they hold, without what the allocator adds.
    pub bytes: usize,
}

/// What one service port in outline takes besides its texts and chains: itself with its two counts, and its place in the map.
const OUTLINE_BYTES: usize = size_of::<Outline>() + 3 * size_of::<usize>() + size_of::<ServicePortName>();

impl RuleTotals {
    /// Counts a service port.
    pub(super) fn add(&mut self, outline: &Outline) {
        let of = Self::of(outline);
        self.rules += of.rules;
        self.chains += of.chains;
        self.service_ports += 1;
        self.without_local.internal += of.without_local.internal;
        self.without_local.external += of.without_local.external;
        self.bytes += of.bytes;
    }

    /// Counts a service port no longer.
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

    /// Counts what does not belong to a service port.
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

    /// With its two counts an outline, in its `Rc`, still takes the 80 bytes that the allocator gave it before.
    #[test]
    fn counting_costs_no_memory() {
        assert!(size_of::<Outline>() + 2 * size_of::<usize>() <= 72);
    }
}
