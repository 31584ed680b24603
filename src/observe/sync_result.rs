//! What one sync of the rules did.

use super::latency::Spent;
use crate::cluster::ServicePortName;
use crate::table::plan::Extent;
use crate::table::rule_counts::RuleCounts;
use std::collections::BTreeSet;
/// What a sync did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// What was written, if anything had to be.
    pub extent: Extent,
    /// Service ports there are.
    pub service_ports: usize,
    /// The live tables were read first.
    pub read: bool,
    /// Service ports that iptables refused in the course of this.
    pub refused: Vec<Refusal>,
    /// The pod network's rules were among those that are in force now.
    pub pod_rules: bool,
    /// Service ports that are still to be written: there were so many refusals that this is done in several syncs.
    pub unfinished: usize,
    /// Service ports whose rules were written.
    pub written: BTreeSet<ServicePortName>,
    /// What it spent its time with.
    pub spent: Spent,
}

/// What every sync comes to, also one that fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempt {
    /// Everything was computed anew, or the live tables were read: what kube-proxy calls a full sync.
    pub full: bool,
    /// Rules that iptables-restore took.
    pub written: RuleCounts,
    /// How often iptables-restore failed.
    pub failures: usize,
    /// How often it failed before the sync became a full one.
    pub partial_failures: usize,
    /// Transactions that it was given, taken or not.
    pub transactions: usize,
    /// It failed while it was to list rules whose counters end.
    pub unlisted: bool,
}

/// A service port whose rules iptables refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Whose rules.
    pub name: ServicePortName,
    /// What iptables said.
    pub cause: String,
}
