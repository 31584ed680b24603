//! kube-proxy's own metrics in iptables mode (spec section 10): its names, types, labels, help texts and buckets.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use crate::cluster::Family;
use crate::netlink::nfacct::PacketCounters;
use crate::observe::sync_result::Attempt;
use crate::table::Table;
use crate::table::rule_counts::RuleTotals;

use super::text::{Catalogue, one};
use super::{Count, Durations, OfFamily, OfTable};

/// Labels of what has no endpoint on this node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPolicy {
    ip_family: &'static str,
    /// `internal` or `external`.
    traffic_policy: &'static str,
}

/// Labels of answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCode {
    code: u16,
}

/// A gauge of seconds.
type Seconds = Gauge<f64, AtomicU64>;

/// The metrics; each field is named as its metric, without what all have in common.
#[derive(Debug)]
pub(super) struct KubeProxy {
    duration: Durations,
    full_duration: Durations,
    partial_duration: Durations,
    last_timestamp: Labelled<OfFamily, Seconds>,
    last_queued_timestamp: Labelled<OfFamily, Seconds>,
    network_programming: Durations,
    endpoint_changes_pending: Count,
    endpoint_changes: Counter,
    service_changes_pending: Count,
    service_changes: Counter,
    iptables_total: Labelled<OfTable, Count>,
    iptables_last: Labelled<OfTable, Count>,
    restore_failures: Labelled<OfFamily, Counter>,
    partial_restore_failures: Labelled<OfFamily, Counter>,
    no_local_endpoints: Labelled<OfPolicy, Count>,
    healthz: Labelled<OfCode, Counter>,
    livez: Labelled<OfCode, Counter>,
    conntrack_duration: Durations,
    conntrack_deleted: Labelled<OfFamily, Counter>,
}

/// 1 ms, 2 ms and so on to 16.384 s.
pub(super) fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

/// In seconds: 0.25, 0.5, 1 to 59, then in steps of 5 and 30.
fn programming_durations() -> Histogram {
    let seconds = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30)).map(f64::from);
    Histogram::new([0.25, 0.5].into_iter().chain(seconds))
}

impl Default for KubeProxy {
    fn default() -> Self {
        Self {
            duration: Durations::new_with_constructor(durations),
            full_duration: Durations::new_with_constructor(durations),
            partial_duration: Durations::new_with_constructor(durations),
            last_timestamp: Labelled::default(),
            last_queued_timestamp: Labelled::default(),
            network_programming: Durations::new_with_constructor(programming_durations),
            endpoint_changes_pending: Count::default(),
            endpoint_changes: Counter::default(),
            service_changes_pending: Count::default(),
            service_changes: Counter::default(),
            iptables_total: Labelled::default(),
            iptables_last: Labelled::default(),
            restore_failures: Labelled::default(),
            partial_restore_failures: Labelled::default(),
            no_local_endpoints: Labelled::default(),
            healthz: Labelled::default(),
            livez: Labelled::default(),
            conntrack_duration: Durations::new_with_constructor(durations),
            conntrack_deleted: Labelled::default(),
        }
    }
}

impl KubeProxy {
    #[rustfmt::skip]
    pub(super) fn register(&self, catalogue: &mut Catalogue) {
        catalogue.add("kubeproxy_sync_proxy_rules_duration_seconds", "[ALPHA] SyncProxyRules latency in seconds", self.duration.clone());
        catalogue.add("kubeproxy_sync_full_proxy_rules_duration_seconds", "[ALPHA] SyncProxyRules latency in seconds for full resyncs", self.full_duration.clone());
        catalogue.add("kubeproxy_sync_partial_proxy_rules_duration_seconds", "[ALPHA] SyncProxyRules latency in seconds for partial resyncs", self.partial_duration.clone());
        catalogue.add("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "[ALPHA] The last time proxy rules were successfully synced", self.last_timestamp.clone());
        catalogue.add("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "[ALPHA] The last time a sync of proxy rules was queued", self.last_queued_timestamp.clone());
        catalogue.add("kubeproxy_network_programming_duration_seconds", "[ALPHA] In Cluster Network Programming Latency in seconds", self.network_programming.clone());
        catalogue.add("kubeproxy_sync_proxy_rules_endpoint_changes_pending", "[ALPHA] Pending proxy rules Endpoint changes", self.endpoint_changes_pending.clone());
        catalogue.add("kubeproxy_sync_proxy_rules_endpoint_changes", "[ALPHA] Cumulative proxy rules Endpoint changes", self.endpoint_changes.clone());
        catalogue.add("kubeproxy_sync_proxy_rules_service_changes_pending", "[ALPHA] Pending proxy rules Service changes", self.service_changes_pending.clone());
        catalogue.add("kubeproxy_sync_proxy_rules_service_changes", "[ALPHA] Cumulative proxy rules Service changes", self.service_changes.clone());
        catalogue.add("kubeproxy_sync_proxy_rules_iptables_total", "[ALPHA] Total number of iptables rules owned by kube-proxy", self.iptables_total.clone());
        catalogue.add("kubeproxy_sync_proxy_rules_iptables_last", "[ALPHA] Number of iptables rules written by kube-proxy in last sync", self.iptables_last.clone());
        catalogue.add("kubeproxy_sync_proxy_rules_iptables_restore_failures", "[ALPHA] Cumulative proxy iptables restore failures", self.restore_failures.clone());
        catalogue.add("kubeproxy_sync_proxy_rules_iptables_partial_restore_failures", "[ALPHA] Cumulative proxy iptables partial restore failures", self.partial_restore_failures.clone());
        catalogue.add("kubeproxy_sync_proxy_rules_no_local_endpoints_total", "[ALPHA] Number of services with a Local traffic policy and no endpoints", self.no_local_endpoints.clone());
        catalogue.add("kubeproxy_proxy_healthz", "[ALPHA] Cumulative proxy healthz HTTP status", self.healthz.clone());
        catalogue.add("kubeproxy_proxy_livez", "[ALPHA] Cumulative proxy livez HTTP status", self.livez.clone());
        catalogue.add("kubeproxy_conntrack_reconciler_sync_duration_seconds", "[ALPHA] ReconcileConntrackFlowsLatency latency in seconds", self.conntrack_duration.clone());
        catalogue.add("kubeproxy_conntrack_reconciler_deleted_entries", "[ALPHA] Cumulative conntrack flows deleted by conntrack reconciler", self.conntrack_deleted.clone());
    }

    /// A sync ended, well or not.
    pub(super) fn attempted(&self, family: Family, attempt: &Attempt, totals: &RuleTotals, took: Duration) {
        let of = OfFamily::new(family);
        let of_kind = if attempt.full { &self.full_duration } else { &self.partial_duration };
        for durations in [&self.duration, of_kind] {
            durations.get_or_create(&of).observe(took.as_secs_f64());
        }
        for table in Table::ALL {
            let of_table = OfTable::new(family, table);
            self.iptables_total.get_or_create(&of_table).set(totals.rules.of(table) as u64);
            self.iptables_last.get_or_create(&of_table).set(attempt.written.of(table) as u64);
        }
        for (counter, count) in [(&self.restore_failures, attempt.failures), (&self.partial_restore_failures, attempt.partial_failures)] {
            counter.get_or_create(&of).inc_by(count as u64);
        }
        // What has no first use yet is there all the same: who looks for a name after one sync finds it.
        for unused in [&self.full_duration, &self.partial_duration, &self.network_programming, &self.conntrack_duration] {
            drop(unused.get_or_create(&of));
        }
        drop(self.conntrack_deleted.get_or_create(&of));
    }

    /// Rules were looked at and are as they should be, which is as good as a sync.
    pub(super) fn confirmed(&self, family: Family) {
        self.last_timestamp.get_or_create(&OfFamily::new(family)).set(now());
    }

    /// A sync ended well.
    pub(super) fn synced(&self, family: Family, totals: &RuleTotals) {
        self.last_timestamp.get_or_create(&OfFamily::new(family)).set(now());
        for (traffic_policy, count) in [("internal", totals.without_local.internal), ("external", totals.without_local.external)] {
            let of = OfPolicy { ip_family: OfFamily::new(family).ip_family, traffic_policy };
            self.no_local_endpoints.get_or_create(&of).set(count as u64);
        }
    }

    pub(super) fn queued(&self, family: Family) {
        self.last_queued_timestamp.get_or_create(&OfFamily::new(family)).set(now());
    }

    pub(super) fn programmed(&self, family: Family, seconds: f64) {
        self.network_programming.get_or_create(&OfFamily::new(family)).observe(seconds);
    }

    pub(super) fn service_events(&self, events: usize, pending: usize) {
        self.service_changes.inc_by(events as u64);
        self.service_changes_pending.set(pending as u64);
    }

    pub(super) fn slice_events(&self, events: usize, accepted: usize) {
        self.endpoint_changes.inc_by(events as u64);
        self.endpoint_changes_pending.inc_by(accepted as u64);
    }

    pub(super) fn checked_out(&self) {
        self.service_changes_pending.set(0);
        self.endpoint_changes_pending.set(0);
    }

    pub(super) fn healthz(&self, code: u16) {
        self.healthz.get_or_create(&OfCode { code }).inc();
    }

    pub(super) fn livez(&self, code: u16) {
        self.livez.get_or_create(&OfCode { code }).inc();
    }

    pub(super) fn flows_cleaned(&self, family: Family, took: Duration, deleted: usize) {
        let of = OfFamily::new(family);
        self.conntrack_duration.get_or_create(&of).observe(took.as_secs_f64());
        self.conntrack_deleted.get_or_create(&of).inc_by(deleted as u64);
    }
}

/// Seconds since 1970: what these metrics show is a time of day.
fn now() -> f64 {
    Timestamp::now().as_duration().as_secs_f64()
}

/// The kernel's packet counters, read whenever somebody asks for the metrics.
#[derive(Debug)]
pub(super) struct AtScrape<C>(pub(super) C);

impl<C: PacketCounters> Collector for AtScrape<C> {
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
                one(&mut encoder, name, help, &ConstCounter::new(value))?;
            }
        }
        Ok(())
    }
}
