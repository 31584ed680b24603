//! What sepal counts of its own doings, under `sepal_*`.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;

use crate::cluster::{Family, Snapshot};
use crate::iptables::detect::Found;
use crate::observe::latency::Followed;
use crate::observe::sync_result::{Attempt, Synced};
use crate::table::Table;
use crate::table::rule_counts::RuleTotals;

use super::kubeproxy::durations;
use super::text::Catalogue;
use super::{Count, Durations, OfFamily, OfTable};

/// Labels of what somebody else changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Foreign {
    ip_family: &'static str,
    /// What was changed: `service`, `chain`, `jump` or `stranger`.
    kind: &'static str,
}

/// Labels of finished syncs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    ip_family: &'static str,
    /// `written`, `nothing` or `failed`.
    outcome: &'static str,
}

/// Labels of what changes wait for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCause {
    ip_family: &'static str,
    cause: &'static str,
}

/// Labels of the iptables in use.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Iptables {
    reason: String,
    variant: &'static str,
    version: String,
}

/// Labels of the program.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: &'static str,
}

/// The metrics.
#[derive(Debug)]
pub(super) struct Own {
    build: Labelled<Build, Count>,
    iptables: Labelled<Iptables, Count>,
    chains_written: Labelled<OfFamily, Counter>,
    chains_deleted: Labelled<OfFamily, Counter>,
    chains_skipped: Labelled<OfFamily, Counter>,
    rules_written: Labelled<OfTable, Counter>,
    rules_skipped: Labelled<OfTable, Counter>,
    edits: Labelled<OfFamily, Counter>,
    syncs: Labelled<Outcome, Counter>,
    planning: Durations,
    applying: Durations,
    changes: Durations<OfCause>,
    repairs: Labelled<Foreign, Counter>,
    difference: Labelled<Foreign, Count>,
    quarantined: Labelled<OfFamily, Count>,
    lock_timeouts: Labelled<OfFamily, Counter>,
    lock_wait: Labelled<OfFamily, Counter<f64, AtomicU64>>,
    waiting: Count,
    services: Count,
    slices: Count,
    service_ports: Labelled<OfFamily, Count>,
    endpoints: Labelled<OfFamily, Count>,
    snapshot_bytes: Count,
    outline_bytes: Labelled<OfFamily, Count>,
}

impl Default for Own {
    fn default() -> Self {
        let build = Labelled::default();
        Labelled::<Build, Count>::get_or_create(&build, &Build { version: env!("CARGO_PKG_VERSION") }).set(1);
        Self {
            build,
            iptables: Labelled::default(),
            chains_written: Labelled::default(),
            chains_deleted: Labelled::default(),
            chains_skipped: Labelled::default(),
            rules_written: Labelled::default(),
            rules_skipped: Labelled::default(),
            edits: Labelled::default(),
            syncs: Labelled::default(),
            planning: Durations::new_with_constructor(durations),
            applying: Durations::new_with_constructor(durations),
            changes: Durations::new_with_constructor(durations),
            repairs: Labelled::default(),
            difference: Labelled::default(),
            quarantined: Labelled::default(),
            lock_timeouts: Labelled::default(),
            lock_wait: Labelled::default(),
            waiting: Count::default(),
            services: Count::default(),
            slices: Count::default(),
            service_ports: Labelled::default(),
            endpoints: Labelled::default(),
            snapshot_bytes: Count::default(),
            outline_bytes: Labelled::default(),
        }
    }
}

impl Own {
    #[rustfmt::skip]
    pub(super) fn register(&self, catalogue: &mut Catalogue) {
        catalogue.add("sepal_build_info", "The program that runs, always 1", self.build.clone());
        catalogue.add("sepal_iptables_info", "The iptables in use and why that one, always 1", self.iptables.clone());
        catalogue.add("sepal_chains_written", "Chains written", self.chains_written.clone());
        catalogue.add("sepal_chains_deleted", "Chains deleted", self.chains_deleted.clone());
        catalogue.add("sepal_chains_skipped", "Chains that a sync left as they were", self.chains_skipped.clone());
        catalogue.add("sepal_rules_written", "Rules written", self.rules_written.clone());
        catalogue.add("sepal_rules_skipped", "Rules that a sync left as they were", self.rules_skipped.clone());
        catalogue.add("sepal_dispatch_edits", "Single lines put into or taken out of shared chains", self.edits.clone());
        catalogue.add("sepal_syncs", "Syncs, by what came of them", self.syncs.clone());
        catalogue.add("sepal_plan_duration_seconds", "Time for computing rules and the plan of a sync", self.planning.clone());
        catalogue.add("sepal_apply_duration_seconds", "Time for reading and writing the tables of a sync", self.applying.clone());
        catalogue.add("sepal_change_wait_seconds", "What changes of Services waited for until their rules were in force, by cause; all causes together are how long they took", self.changes.clone());
        catalogue.add("sepal_drift_repairs", "Rules that somebody else had changed, by what they belong to", self.repairs.clone());
        catalogue.add("sepal_live_difference", "What the last look at the live tables found changed by somebody else: service ports, fixed chains, jumps, and rules or chains that are nobody's", self.difference.clone());
        catalogue.add("sepal_quarantined_service_ports", "Service ports whose rules iptables refuses", self.quarantined.clone());
        catalogue.add("sepal_xtables_lock_timeouts", "Syncs put off because another program held the xtables lock", self.lock_timeouts.clone());
        catalogue.add("sepal_xtables_lock_wait_seconds", "Time that was waited in vain for the xtables lock", self.lock_wait.clone());
        catalogue.add("sepal_updates_waiting", "The most updates that waited at once before the last sync", self.waiting.clone());
        catalogue.add("sepal_services", "Services known", self.services.clone());
        catalogue.add("sepal_endpoint_slices", "EndpointSlices known", self.slices.clone());
        catalogue.add("sepal_service_ports", "Service ports with rules", self.service_ports.clone());
        catalogue.add("sepal_endpoints", "Endpoints of all service ports, in any state", self.endpoints.clone());
        catalogue.add("sepal_snapshot_bytes", "Memory for what is known of the cluster, estimated from lengths", self.snapshot_bytes.clone());
        catalogue.add("sepal_outline_bytes", "Memory for what is known of the rules, estimated from lengths", self.outline_bytes.clone());
    }

    /// A sync ended, well or not.
    pub(super) fn attempted(&self, family: Family, attempt: &Attempt, totals: &RuleTotals) {
        for table in Table::ALL {
            let (of, written) = (OfTable::new(family, table), attempt.written.of(table));
            self.rules_written.get_or_create(&of).inc_by(written as u64);
            self.rules_skipped.get_or_create(&of).inc_by(totals.rules.of(table).saturating_sub(written) as u64);
        }
        let of = OfFamily::new(family);
        self.service_ports.get_or_create(&of).set(totals.service_ports as u64);
        self.endpoints.get_or_create(&of).set(totals.endpoints as u64);
        self.outline_bytes.get_or_create(&of).set(totals.bytes as u64);
    }

    /// A sync ended well.
    pub(super) fn synced(&self, family: Family, synced: &Synced, totals: &RuleTotals) {
        let of = OfFamily::new(family);
        self.chains_written.get_or_create(&of).inc_by(synced.extent.chains as u64);
        self.chains_deleted.get_or_create(&of).inc_by(synced.extent.deleted as u64);
        self.chains_skipped.get_or_create(&of).inc_by(totals.chains.saturating_sub(synced.extent.chains) as u64);
        self.edits.get_or_create(&of).inc_by(synced.extent.edits as u64);
        self.planning.get_or_create(&of).observe(synced.spent.planning().as_secs_f64());
        self.applying.get_or_create(&of).observe(synced.spent.applying().as_secs_f64());
        self.outcome(family, if synced.extent.transactions > 0 { "written" } else { "nothing" });
    }

    /// A change is in force.
    pub(super) fn followed(&self, change: &Followed) {
        let ip_family = OfFamily::new(change.family).ip_family;
        for (cause, wait) in change.waits() {
            self.changes.get_or_create(&OfCause { ip_family, cause: cause.as_str() }).observe(wait.as_secs_f64());
        }
    }

    pub(super) fn outcome(&self, family: Family, outcome: &'static str) {
        self.syncs.get_or_create(&Outcome { ip_family: OfFamily::new(family).ip_family, outcome }).inc();
    }

    pub(super) fn locked_out(&self, family: Family, seconds: u64) {
        self.lock_timeouts.get_or_create(&OfFamily::new(family)).inc();
        self.lock_wait.get_or_create(&OfFamily::new(family)).inc_by(seconds as f64);
    }

    pub(super) fn audited(&self, family: Family, kind: &'static str, count: usize) {
        let of = Foreign { ip_family: OfFamily::new(family).ip_family, kind };
        self.difference.get_or_create(&of).set(count as u64);
        self.repairs.get_or_create(&of).inc_by(count as u64);
    }

    pub(super) fn quarantined(&self, family: Family, count: usize) {
        self.quarantined.get_or_create(&OfFamily::new(family)).set(count as u64);
    }

    pub(super) fn waiting(&self, updates: usize) {
        self.waiting.set(updates as u64);
    }

    pub(super) fn knows(&self, snapshot: &Snapshot) {
        self.services.set(snapshot.service_count() as u64);
        self.slices.set(snapshot.slice_count() as u64);
        self.snapshot_bytes.set(snapshot.bytes() as u64);
    }

    pub(super) fn iptables(&self, found: &Found) {
        let labels = Iptables { reason: found.reason.clone(), variant: found.variant.as_str(), version: found.version.clone() };
        self.iptables.get_or_create(&labels).set(1);
    }
}
