//! The result of one sync of the rules.

use std::collections::BTreeSet;

use super::latency::SyncPhases;
use crate::cluster::ServicePortName;
use crate::table::plan::Extent;
use crate::table::rule_counts::RuleCounts;

/// The result of a successful sync.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncResult {
    /// How much was written.
    pub extent: Extent,
    /// The number of service ports.
    pub service_ports: usize,
    /// The sync read the live tables first.
    pub read: bool,
    /// Service ports whose rules iptables refused during the sync.
    pub refused: Vec<RefusedPort>,
    /// The pod network's rules are in force.
    pub pod_rules: bool,
    /// The number of service ports that later syncs have to write, because iptables refused many.
    pub unfinished: usize,
    /// Service ports whose rules were written.
    pub written: BTreeSet<ServicePortName>,
    /// The time of each phase.
    pub spent: SyncPhases,
}

/// The counts of every sync, also of a failed one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyncAttempt {
    /// All rules were computed again, or the live tables were read. kube-proxy calls this a full sync.
    pub full: bool,
    /// Rules that iptables-restore accepted.
    pub written: RuleCounts,
    /// How often iptables-restore failed.
    pub failures: usize,
    /// How often iptables-restore failed before the sync became a full one.
    pub partial_failures: usize,
    /// Transactions that iptables-restore got, accepted or not.
    pub transactions: usize,
    /// iptables-restore failed in a transaction that had to list the final counters of deleted rules.
    pub unlisted: bool,
}

/// A service port whose rules iptables refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedPort {
    /// The service port.
    pub name: ServicePortName,
    /// The error of iptables.
    pub cause: String,
}
