//! kube-proxy's own metrics in iptables mode [kube-proxy 10], with its names, types, labels, help texts and buckets.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::histogram::Histogram;

use crate::cluster::Family;
use crate::netlink::nfacct::PacketCounters;
use crate::observe::sync_result::SyncAttempt;
use crate::table::Table;
use crate::table::rule_counts::RuleTotals;

use super::declare::metrics;
use super::labels::{Count, Durations, FamilyLabel, Seconds, TableLabels, sync_durations};
use super::text::encode_one;

/// The labels of Services whose traffic policy leaves them no endpoint on this node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct PolicyLabels {
    ip_family: &'static str,
    /// `internal` or `external`.
    traffic_policy: &'static str,
}

/// The label of HTTP answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CodeLabel {
    code: u16,
}

metrics! {
    /// kube-proxy's metrics. A field is named as its metric, without the common prefix.
    KubeProxyMetrics {
        duration: Durations = Durations::new_with_constructor(sync_durations),
            "kubeproxy_sync_proxy_rules_duration_seconds", "[ALPHA] SyncProxyRules latency in seconds";
        full_duration: Durations = Durations::new_with_constructor(sync_durations),
            "kubeproxy_sync_full_proxy_rules_duration_seconds", "[ALPHA] SyncProxyRules latency in seconds for full resyncs";
        partial_duration: Durations = Durations::new_with_constructor(sync_durations),
            "kubeproxy_sync_partial_proxy_rules_duration_seconds", "[ALPHA] SyncProxyRules latency in seconds for partial resyncs";
        last_timestamp: Labelled<FamilyLabel, Seconds>,
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds", "[ALPHA] The last time proxy rules were successfully synced";
        last_queued_timestamp: Labelled<FamilyLabel, Seconds>,
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "[ALPHA] The last time a sync of proxy rules was queued";
        network_programming: Durations = Durations::new_with_constructor(programming_durations),
            "kubeproxy_network_programming_duration_seconds", "[ALPHA] In Cluster Network Programming Latency in seconds";
        endpoint_changes_pending: Count,
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending", "[ALPHA] Pending proxy rules Endpoint changes";
        endpoint_changes: Counter,
            "kubeproxy_sync_proxy_rules_endpoint_changes", "[ALPHA] Cumulative proxy rules Endpoint changes";
        service_changes_pending: Count,
            "kubeproxy_sync_proxy_rules_service_changes_pending", "[ALPHA] Pending proxy rules Service changes";
        service_changes: Counter,
            "kubeproxy_sync_proxy_rules_service_changes", "[ALPHA] Cumulative proxy rules Service changes";
        iptables_total: Labelled<TableLabels, Count>,
            "kubeproxy_sync_proxy_rules_iptables_total", "[ALPHA] Total number of iptables rules owned by kube-proxy";
        iptables_last: Labelled<TableLabels, Count>,
            "kubeproxy_sync_proxy_rules_iptables_last", "[ALPHA] Number of iptables rules written by kube-proxy in last sync";
        restore_failures: Labelled<FamilyLabel, Counter>,
            "kubeproxy_sync_proxy_rules_iptables_restore_failures", "[ALPHA] Cumulative proxy iptables restore failures";
        partial_restore_failures: Labelled<FamilyLabel, Counter>,
            "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures", "[ALPHA] Cumulative proxy iptables partial restore failures";
        no_local_endpoints: Labelled<PolicyLabels, Count>,
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total", "[ALPHA] Number of services with a Local traffic policy and no endpoints";
        healthz: Labelled<CodeLabel, Counter>,
            "kubeproxy_proxy_healthz", "[ALPHA] Cumulative proxy healthz HTTP status";
        livez: Labelled<CodeLabel, Counter>,
            "kubeproxy_proxy_livez", "[ALPHA] Cumulative proxy livez HTTP status";
        conntrack_duration: Durations = Durations::new_with_constructor(sync_durations),
            "kubeproxy_conntrack_reconciler_sync_duration_seconds", "[ALPHA] ReconcileConntrackFlowsLatency latency in seconds";
        conntrack_deleted: Labelled<FamilyLabel, Counter>,
            "kubeproxy_conntrack_reconciler_deleted_entries", "[ALPHA] Cumulative conntrack flows deleted by conntrack reconciler";
    }
}

/// A histogram with these buckets, in seconds: 0.25, 0.5, 1 to 59, then in steps of 5 and 30.
fn programming_durations() -> Histogram {
    let seconds = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30)).map(f64::from);
    Histogram::new([0.25, 0.5].into_iter().chain(seconds))
}

impl KubeProxyMetrics {
    /// A sync succeeded or failed.
    pub(super) fn attempted(&self, family: Family, attempt: &SyncAttempt, totals: &RuleTotals, took: Duration) {
        let of = FamilyLabel::new(family);
        let of_kind = if attempt.full { &self.full_duration } else { &self.partial_duration };
        for durations in [&self.duration, of_kind] {
            durations.get_or_create(&of).observe(took.as_secs_f64());
        }
        for table in Table::ALL {
            let of_table = TableLabels::new(family, table);
            self.iptables_total.get_or_create(&of_table).set(totals.rules.of(table) as u64);
            self.iptables_last.get_or_create(&of_table).set(attempt.written.of(table) as u64);
        }
        for (counter, count) in [(&self.restore_failures, attempt.failures), (&self.partial_restore_failures, attempt.partial_failures)] {
            counter.get_or_create(&of).inc_by(count as u64);
        }
        // A labelled metric is exported from its first use on. After one sync all of these are exported.
        for unused in [&self.full_duration, &self.partial_duration, &self.network_programming, &self.conntrack_duration] {
            drop(unused.get_or_create(&of));
        }
        drop(self.conntrack_deleted.get_or_create(&of));
    }

    /// The live rules were read and need no change. That counts as a successful sync.
    pub(super) fn confirmed(&self, family: Family) {
        self.last_timestamp.get_or_create(&FamilyLabel::new(family)).set(now());
    }

    /// A sync succeeded.
    pub(super) fn synced(&self, family: Family, totals: &RuleTotals) {
        self.last_timestamp.get_or_create(&FamilyLabel::new(family)).set(now());
        for (traffic_policy, count) in [("internal", totals.without_local.internal), ("external", totals.without_local.external)] {
            let of = PolicyLabels { ip_family: FamilyLabel::new(family).ip_family, traffic_policy };
            self.no_local_endpoints.get_or_create(&of).set(count as u64);
        }
    }

    pub(super) fn queued(&self, family: Family) {
        self.last_queued_timestamp.get_or_create(&FamilyLabel::new(family)).set(now());
    }

    pub(super) fn programmed(&self, family: Family, seconds: f64) {
        self.network_programming.get_or_create(&FamilyLabel::new(family)).observe(seconds);
    }

    pub(super) fn healthz(&self, code: u16) {
        self.healthz.get_or_create(&CodeLabel { code }).inc();
    }

    pub(super) fn livez(&self, code: u16) {
        self.livez.get_or_create(&CodeLabel { code }).inc();
    }

    pub(super) fn flows_cleaned(&self, family: Family, took: Duration, deleted: usize) {
        let of = FamilyLabel::new(family);
        self.conntrack_duration.get_or_create(&of).observe(took.as_secs_f64());
        self.conntrack_deleted.get_or_create(&of).inc_by(deleted as u64);
    }
}

/// The time of day in seconds since 1970.
fn now() -> f64 {
    Timestamp::now().as_duration().as_secs_f64()
}

/// The kernel's packet counters. They are read at each scrape.
#[derive(Debug)]
pub(super) struct PacketCounterCollector<C>(pub(super) C);

impl<C: PacketCounters> Collector for PacketCounterCollector<C> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let packets = self.0.packets();
        let counters = [
            (
                "kubeproxy_iptables_ct_state_invalid_dropped_packets",
                "[ALPHA] packets dropped by iptables to work around conntrack problems",
                packets.ct_state_invalid,
            ),
            (
                "kubeproxy_iptables_localhost_nodeports_accepted_packets",
                "[ALPHA] Number of packets accepted on nodeports of loopback interface",
                packets.localhost_node_ports,
            ),
        ];
        for (name, help, value) in counters {
            if let Some(value) = value {
                encode_one(&mut encoder, name, help, &ConstCounter::new(value))?;
            }
        }
        Ok(())
    }
}
