//! sepal's own metrics, under `sepal_*`.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;

use crate::cluster::Family;
use crate::iptables::detect::Found;
use crate::observe::latency::AppliedChange;
use crate::observe::sync_result::{SyncAttempt, SyncResult};
use crate::table::Table;
use crate::table::rule_counts::RuleTotals;

use super::declare::metrics;
use super::labels::{Count, Durations, FamilyLabel, Seconds, TableLabels, sync_durations};

/// The labels of rules that another program changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct DriftLabels {
    ip_family: &'static str,
    /// What was changed: `service`, `chain`, `jump` or `stranger`.
    kind: &'static str,
}

/// The labels of finished syncs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OutcomeLabels {
    ip_family: &'static str,
    /// `written`, `nothing` or `failed`.
    outcome: &'static str,
}

/// The labels of the times that changes wait.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct WaitLabels {
    ip_family: &'static str,
    cause: &'static str,
}

/// The labels of the iptables in use.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct IptablesLabels {
    reason: String,
    variant: &'static str,
    version: String,
}

/// The label of sepal's version.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct VersionLabel {
    version: &'static str,
}

metrics! {
    /// sepal's own metrics.
    SepalMetrics {
        build: Labelled<VersionLabel, Count> = version(),
            "sepal_build_info", "The version of sepal that runs, always 1";
        iptables: Labelled<IptablesLabels, Count>,
            "sepal_iptables_info", "The iptables variant in use and why it was chosen, always 1";
        chains_written: Labelled<FamilyLabel, Counter>,
            "sepal_chains_written", "Chains written";
        chains_deleted: Labelled<FamilyLabel, Counter>,
            "sepal_chains_deleted", "Chains deleted";
        chains_skipped: Labelled<FamilyLabel, Counter>,
            "sepal_chains_skipped", "Chains that a sync did not have to write";
        rules_written: Labelled<TableLabels, Counter>,
            "sepal_rules_written", "Rules written";
        rules_skipped: Labelled<TableLabels, Counter>,
            "sepal_rules_skipped", "Rules that a sync did not have to write";
        edits: Labelled<FamilyLabel, Counter>,
            "sepal_dispatch_edits", "Single rules inserted into or deleted from shared chains";
        syncs: Labelled<OutcomeLabels, Counter>,
            "sepal_syncs", "Syncs by outcome: written, nothing or failed";
        planning: Durations = Durations::new_with_constructor(sync_durations),
            "sepal_plan_duration_seconds", "Time that a sync takes to compute the rules and what to write";
        applying: Durations = Durations::new_with_constructor(sync_durations),
            "sepal_apply_duration_seconds", "Time that a sync takes to read and write tables";
        changes: Durations<WaitLabels> = Durations::new_with_constructor(sync_durations),
            "sepal_change_wait_seconds", "Time that a change of a Service waits until its rules are in force, by cause; the sum over all causes is the total time";
        repairs: Labelled<DriftLabels, Counter>,
            "sepal_drift_repairs", "Rules that another program changed and sepal repaired, by kind";
        difference: Labelled<DriftLabels, Count>,
            "sepal_live_difference", "Rules that the last audit of the live tables found changed by another program: service ports, fixed chains, jumps, and rules or chains that sepal did not write";
        quarantined: Labelled<FamilyLabel, Count>,
            "sepal_quarantined_service_ports", "Service ports whose rules iptables refuses";
        lock_timeouts: Labelled<FamilyLabel, Counter>,
            "sepal_xtables_lock_timeouts", "Syncs put off because another program held the xtables lock";
        lock_wait: Labelled<FamilyLabel, Counter<f64, AtomicU64>>,
            "sepal_xtables_lock_wait_seconds", "Time spent waiting for the xtables lock without getting it";
        sync_budget: Seconds,
            "sepal_sync_budget_seconds", "Run time that syncs can use before they are spaced; negative while they wait; 0 if there is no budget";
        waiting: Count,
            "sepal_updates_waiting", "Most updates that waited at once before the last sync";
        services: Count,
            "sepal_services", "Services in the snapshot of the cluster";
        slices: Count,
            "sepal_endpoint_slices", "EndpointSlices in the snapshot of the cluster";
        service_ports: Labelled<FamilyLabel, Count>,
            "sepal_service_ports", "Service ports with rules";
        endpoints: Labelled<FamilyLabel, Count>,
            "sepal_endpoints", "Endpoints of all service ports, in any state";
        snapshot_bytes: Count,
            "sepal_snapshot_bytes", "Memory of the snapshot of the cluster, estimated from lengths";
        outline_bytes: Labelled<FamilyLabel, Count>,
            "sepal_outline_bytes", "Memory of the acknowledged rules, estimated from lengths";
    }
}

/// The version metric, with the value 1.
fn version() -> Labelled<VersionLabel, Count> {
    let version = Labelled::<VersionLabel, Count>::default();
    version.get_or_create(&VersionLabel { version: env!("CARGO_PKG_VERSION") }).set(1);
    version
}

impl SepalMetrics {
    /// A sync succeeded or failed.
    pub(super) fn attempted(&self, family: Family, attempt: &SyncAttempt, totals: &RuleTotals) {
        for table in Table::ALL {
            let (of, written) = (TableLabels::new(family, table), attempt.written.of(table));
            self.rules_written.get_or_create(&of).inc_by(written as u64);
            self.rules_skipped.get_or_create(&of).inc_by(totals.rules.of(table).saturating_sub(written) as u64);
        }
        let of = FamilyLabel::new(family);
        self.service_ports.get_or_create(&of).set(totals.service_ports as u64);
        self.endpoints.get_or_create(&of).set(totals.endpoints as u64);
        self.outline_bytes.get_or_create(&of).set(totals.bytes as u64);
    }

    /// A sync succeeded.
    pub(super) fn synced(&self, family: Family, synced: &SyncResult, totals: &RuleTotals) {
        let of = FamilyLabel::new(family);
        self.chains_written.get_or_create(&of).inc_by(synced.extent.chains as u64);
        self.chains_deleted.get_or_create(&of).inc_by(synced.extent.deleted as u64);
        self.chains_skipped.get_or_create(&of).inc_by(totals.chains.saturating_sub(synced.extent.chains) as u64);
        self.edits.get_or_create(&of).inc_by(synced.extent.edits as u64);
        self.planning.get_or_create(&of).observe(synced.spent.planning().as_secs_f64());
        self.applying.get_or_create(&of).observe(synced.spent.applying().as_secs_f64());
        self.outcome(family, if synced.extent.transactions > 0 { "written" } else { "nothing" });
    }

    /// The rules of a changed Service are in force.
    pub(super) fn change_applied(&self, change: &AppliedChange) {
        let ip_family = FamilyLabel::new(change.family).ip_family;
        for (cause, wait) in change.waits() {
            self.changes.get_or_create(&WaitLabels { ip_family, cause: cause.as_str() }).observe(wait.as_secs_f64());
        }
    }

    pub(super) fn outcome(&self, family: Family, outcome: &'static str) {
        self.syncs.get_or_create(&OutcomeLabels { ip_family: FamilyLabel::new(family).ip_family, outcome }).inc();
    }

    pub(super) fn lock_timed_out(&self, family: Family, seconds: u64) {
        self.lock_timeouts.get_or_create(&FamilyLabel::new(family)).inc();
        self.lock_wait.get_or_create(&FamilyLabel::new(family)).inc_by(seconds as f64);
    }

    pub(super) fn audited(&self, family: Family, kind: &'static str, count: usize) {
        let of = DriftLabels { ip_family: FamilyLabel::new(family).ip_family, kind };
        self.difference.get_or_create(&of).set(count as u64);
        self.repairs.get_or_create(&of).inc_by(count as u64);
    }

    pub(super) fn quarantined(&self, family: Family, count: usize) {
        self.quarantined.get_or_create(&FamilyLabel::new(family)).set(count as u64);
    }

    pub(super) fn iptables_in_use(&self, found: &Found) {
        let labels = IptablesLabels { reason: found.reason.clone(), variant: found.variant.as_str(), version: found.version.clone() };
        self.iptables.get_or_create(&labels).set(1);
    }
}
