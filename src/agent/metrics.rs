//! What sepal counts of its own doings, under `sepal_*`.

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::cluster::Family;

/// Labels of what is counted per IP family.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfFamily {
    ip_family: &'static str,
}

/// Labels of repairs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Repair {
    ip_family: &'static str,
    /// What had changed: `service`, `chain`, `jump` or `stranger`.
    kind: &'static str,
}

/// Labels of finished syncs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    ip_family: &'static str,
    /// `written`, `nothing` or `failed`.
    outcome: &'static str,
}

/// The metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Chains written.
    chains_written: Labelled<OfFamily, Counter>,
    /// Chains deleted.
    chains_deleted: Labelled<OfFamily, Counter>,
    /// Single lines put into or taken out of shared chains.
    edits: Labelled<OfFamily, Counter>,
    /// Syncs by outcome.
    syncs: Labelled<Outcome, Counter>,
    /// Time for rules and plan.
    planning: Labelled<OfFamily, Histogram, fn() -> Histogram>,
    /// Time for reading and writing tables.
    applying: Labelled<OfFamily, Histogram, fn() -> Histogram>,
    /// What somebody else changed, and was put right.
    repairs: Labelled<Repair, Counter>,
    /// Service ports whose rules iptables refuses.
    quarantined: Labelled<OfFamily, Gauge>,
    /// Times another program held the xtables lock for too long.
    lock_timeouts: Labelled<OfFamily, Counter>,
    /// Time from what happened in the cluster to rules that follow it; kube-proxy's own metric (spec section 10).
    programming: Labelled<OfFamily, Histogram, fn() -> Histogram>,
}

/// As kube-proxy's sync durations: 1 ms to 16 s.
fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

/// As kube-proxy's network programming durations, in seconds: 0.25, 0.5, 1 to 59, then in steps of 5 and 30.
fn programming_durations() -> Histogram {
    let seconds = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30)).map(f64::from);
    Histogram::new([0.25, 0.5].into_iter().chain(seconds))
}

const fn label(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            chains_written: Labelled::default(),
            chains_deleted: Labelled::default(),
            edits: Labelled::default(),
            syncs: Labelled::default(),
            planning: Labelled::new_with_constructor(durations),
            applying: Labelled::new_with_constructor(durations),
            repairs: Labelled::default(),
            quarantined: Labelled::default(),
            lock_timeouts: Labelled::default(),
            programming: Labelled::new_with_constructor(programming_durations),
        };
        let registry = &mut metrics.registry;
        registry.register("sepal_chains_written", "Chains written", metrics.chains_written.clone());
        registry.register("sepal_chains_deleted", "Chains deleted", metrics.chains_deleted.clone());
        registry.register("sepal_dispatch_edits", "Single lines put into or taken out of shared chains", metrics.edits.clone());
        registry.register("sepal_syncs", "Syncs, by what came of them", metrics.syncs.clone());
        registry.register("sepal_plan_duration_seconds", "Time for computing rules and the plan of a sync", metrics.planning.clone());
        registry.register("sepal_apply_duration_seconds", "Time for reading and writing the tables of a sync", metrics.applying.clone());
        registry.register("sepal_drift_repairs", "Rules that somebody else had changed, by what they belong to", metrics.repairs.clone());
        registry.register("sepal_quarantined_service_ports", "Service ports whose rules iptables refuses", metrics.quarantined.clone());
        registry.register(
            "sepal_xtables_lock_timeouts",
            "Syncs put off because another program held the xtables lock",
            metrics.lock_timeouts.clone(),
        );
        registry.register(
            "kubeproxy_network_programming_duration_seconds",
            "[ALPHA] In Cluster Network Programming Latency in seconds",
            metrics.programming.clone(),
        );
        metrics
    }
}

impl Metrics {
    /// A sync wrote this; if nothing, nothing had to be written.
    pub fn synced(&self, family: Family, synced: &super::family::Synced) {
        let of = OfFamily { ip_family: label(family) };
        self.chains_written.get_or_create(&of).inc_by(synced.extent.chains as u64);
        self.chains_deleted.get_or_create(&of).inc_by(synced.extent.deleted as u64);
        self.edits.get_or_create(&of).inc_by(synced.extent.edits as u64);
        self.planning.get_or_create(&of).observe(synced.planning.as_secs_f64());
        self.applying.get_or_create(&of).observe(synced.applying.as_secs_f64());
        self.outcome(family, if synced.extent.transactions > 0 { "written" } else { "nothing" });
    }

    /// Rules follow what happened in the cluster so many seconds ago.
    pub fn programmed(&self, family: Family, seconds: f64) {
        self.programming.get_or_create(&OfFamily { ip_family: label(family) }).observe(seconds);
    }

    /// A sync failed.
    pub fn failed(&self, family: Family) {
        self.outcome(family, "failed");
    }

    fn outcome(&self, family: Family, outcome: &'static str) {
        self.syncs.get_or_create(&Outcome { ip_family: label(family), outcome }).inc();
    }

    /// Another program held the xtables lock for too long.
    pub fn locked_out(&self, family: Family) {
        self.lock_timeouts.get_or_create(&OfFamily { ip_family: label(family) }).inc();
    }

    /// So many things of a kind had been changed by somebody else.
    pub fn repaired(&self, family: Family, kind: &'static str, count: usize) {
        self.repairs.get_or_create(&Repair { ip_family: label(family), kind }).inc_by(count as u64);
    }

    /// So many service ports are in quarantine.
    pub fn quarantined(&self, family: Family, count: usize) {
        self.quarantined.get_or_create(&OfFamily { ip_family: label(family) }).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Everything in the text format of Prometheus.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String does not fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::family::Synced;

    #[test]
    fn what_happens_is_counted() {
        let metrics = Metrics::default();
        let mut synced = Synced::default();
        metrics.synced(Family::V4, &synced);
        synced.extent.chains = 3;
        synced.extent.transactions = 1;
        metrics.synced(Family::V4, &synced);
        metrics.repaired(Family::V6, "jump", 2);
        metrics.quarantined(Family::V4, 1);
        metrics.programmed(Family::V4, 0.3);
        let text = metrics.text();
        for line in [
            "sepal_chains_written_total{ip_family=\"IPv4\"} 3",
            "sepal_syncs_total{ip_family=\"IPv4\",outcome=\"nothing\"} 1",
            "sepal_syncs_total{ip_family=\"IPv4\",outcome=\"written\"} 1",
            "sepal_drift_repairs_total{ip_family=\"IPv6\",kind=\"jump\"} 2",
            "sepal_quarantined_service_ports{ip_family=\"IPv4\"} 1",
            "sepal_apply_duration_seconds_count{ip_family=\"IPv4\"} 2",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"0.5\",ip_family=\"IPv4\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "no line {line} in\n{text}");
        }
    }
}
