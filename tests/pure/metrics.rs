//! The metrics: kube-proxy's by name, type, label and help text, and the values after certain events.

use std::sync::Arc;
use std::time::Duration;

use sepal::cluster::families::PerFamily;
use sepal::cluster::pod_rules::{PodRanges, PodRules};
use sepal::cluster::{Family, ServiceKey};
use sepal::kubernetes::events::Events;
use sepal::kubernetes::{self, ChangeTime, Kind, ObjectId, convert};
use sepal::netlink::nfacct::Packets;
use sepal::netlink::record::FakeHost;
use sepal::observe::health::SharedHealth;
use sepal::observe::metrics::{Format, Metrics};
use sepal::observe::readiness::{Part, Readiness, show};
use sepal::proxy::conntrack::Reconciler;
use sepal::proxy::conntrack::frontends::{Frontend, FrontendChanges, ServiceFrontends, ServingEndpoints};
use sepal::proxy::conntrack::record::{self, FakeFlows};
use sepal::proxy::conntrack::stale::{Flow, Tuple, UDP};
use sepal::proxy::sync::flow_loop;
use sepal::proxy::sync::proxy_loop::ProxyLoop;
use sepal::proxy::sync::report::Report;
use sepal::proxy::sync::update::Update;
use sepal::table::plan::Variant;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::block_on;
use crate::common;
use crate::plain::{service, slice};
use crate::simulator::{BothFamilies, Fault};

/// A running loop for both families.
struct Lab {
    metrics: Arc<Metrics>,
    tables: BothFamilies,
    updates: mpsc::Sender<Update>,
    readiness: Readiness,
    health: SharedHealth,
}

/// Runs a loop for both families beside a script that sends it updates.
fn with_loop(metrics: &Arc<Metrics>, script: impl AsyncFnOnce(Lab)) {
    block_on(async {
        let tables = BothFamilies::new(Variant::Legacy);
        let readiness = Readiness::new(Family::ALL.into_iter().flat_map(|family| [Part::Proxy(family), Part::PodRules(family)]));
        metrics.show_parts(&readiness);
        let health = SharedHealth::new(Duration::from_secs(30));
        let report = Report::new(Arc::clone(metrics), health.clone(), Events::none());
        let report = report.with_readiness(readiness.clone());
        let mut inputs = common::inputs("").expect("nothing");
        inputs.settings.min_sync_period = Some(Duration::from_secs(1));
        let proxy = ProxyLoop::new(tables.clone(), FakeHost::default(), true, inputs, report);
        let proxy = proxy.with_family(Family::V4, None).with_family(Family::V6, None);
        let (updates, receiver) = mpsc::channel(64);
        let lab = Lab { metrics: Arc::clone(metrics), tables, updates, readiness, health };
        tokio::join!(proxy.run(receiver), script(lab));
    });
}

impl Lab {
    /// Completes all lists, so that the first sync may run.
    async fn complete(&self) {
        for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
            self.updates.send(Update::Cluster(kubernetes::ClusterUpdate::Complete(kind))).await.expect("taken");
        }
    }

    async fn tell(&self, kind: Kind, object: &Value) {
        let id = ObjectId::of(kind, object);
        let converted = convert::object(&id, object);
        self.updates
            .send(Update::Cluster(kubernetes::ClusterUpdate::Change(converted.change, ChangeTime::now(converted.trigger))))
            .await
            .expect("taken");
    }

    /// Lets time pass; the loop does what is due.
    async fn pass(&self, milliseconds: u64) {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    }

    /// The value of a series, if it is exposed.
    fn value(&self, series: &str) -> Option<String> {
        value(&self.metrics, series)
    }

    #[track_caller]
    fn shows(&self, series: &str, wanted: &str) {
        assert_eq!(self.value(series).as_deref(), Some(wanted), "{series}");
    }
}

fn value(metrics: &Metrics, series: &str) -> Option<String> {
    let text = metrics.text(Format::Classic).1;
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ').map(str::to_owned))
}

const BOTH: &str = "ip_family";

/// All of [kube-proxy 10]: name, type, labels, help text.
#[rustfmt::skip]
const METRICS: [(&str, &str, &str, &str); 21] = [
    ("kubeproxy_sync_proxy_rules_duration_seconds", "histogram", BOTH, "SyncProxyRules latency in seconds"),
    ("kubeproxy_sync_full_proxy_rules_duration_seconds", "histogram", BOTH, "SyncProxyRules latency in seconds for full resyncs"),
    ("kubeproxy_sync_partial_proxy_rules_duration_seconds", "histogram", BOTH, "SyncProxyRules latency in seconds for partial resyncs"),
    ("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "gauge", BOTH, "The last time proxy rules were successfully synced"),
    ("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "gauge", BOTH, "The last time a sync of proxy rules was queued"),
    ("kubeproxy_network_programming_duration_seconds", "histogram", BOTH, "In Cluster Network Programming Latency in seconds"),
    ("kubeproxy_sync_proxy_rules_endpoint_changes_pending", "gauge", "", "Pending proxy rules Endpoint changes"),
    ("kubeproxy_sync_proxy_rules_endpoint_changes_total", "counter", "", "Cumulative proxy rules Endpoint changes"),
    ("kubeproxy_sync_proxy_rules_service_changes_pending", "gauge", "", "Pending proxy rules Service changes"),
    ("kubeproxy_sync_proxy_rules_service_changes_total", "counter", "", "Cumulative proxy rules Service changes"),
    ("kubeproxy_sync_proxy_rules_iptables_total", "gauge", "ip_family,table", "Total number of iptables rules owned by kube-proxy"),
    ("kubeproxy_sync_proxy_rules_iptables_last", "gauge", "ip_family,table", "Number of iptables rules written by kube-proxy in last sync"),
    ("kubeproxy_sync_proxy_rules_iptables_restore_failures_total", "counter", BOTH, "Cumulative proxy iptables restore failures"),
    ("kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total", "counter", BOTH, "Cumulative proxy iptables partial restore failures"),
    ("kubeproxy_sync_proxy_rules_no_local_endpoints_total", "gauge", "ip_family,traffic_policy", "Number of services with a Local traffic policy and no endpoints"),
    ("kubeproxy_proxy_healthz_total", "counter", "code", "Cumulative proxy healthz HTTP status"),
    ("kubeproxy_proxy_livez_total", "counter", "code", "Cumulative proxy livez HTTP status"),
    ("kubeproxy_conntrack_reconciler_sync_duration_seconds", "histogram", BOTH, "ReconcileConntrackFlowsLatency latency in seconds"),
    ("kubeproxy_conntrack_reconciler_deleted_entries_total", "counter", BOTH, "Cumulative conntrack flows deleted by conntrack reconciler"),
    ("kubeproxy_iptables_ct_state_invalid_dropped_packets_total", "counter", "", "packets dropped by iptables to work around conntrack problems"),
    ("kubeproxy_iptables_localhost_nodeports_accepted_packets_total", "counter", "", "Number of packets accepted on nodeports of loopback interface"),
];

/// The labels of a metric's samples, without a bucket's `le`.
fn labels(text: &str, name: &str, kind: &str) -> Option<String> {
    let sample = if kind == "histogram" { format!("{name}_count") } else { name.to_owned() };
    let rest = text.lines().find_map(|line| line.strip_prefix(&sample).filter(|rest| rest.starts_with([' ', '{'])))?;
    let Some(labels) = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) else { return Some(String::new()) };
    Some(labels.0.split(',').filter_map(|label| label.split_once('=')).map(|(name, _)| name).collect::<Vec<_>>().join(","))
}

/// The upper bounds of a histogram's buckets.
fn bounds(text: &str, name: &str) -> Vec<String> {
    let first = format!("{name}_bucket{{ip_family=\"IPv4\",le=\"");
    text.lines().filter_map(|line| Some(line.strip_prefix(&first)?.split_once('"')?.0.to_owned())).collect()
}

#[test]
fn every_metric_is_kube_proxys() {
    let metrics = Arc::new(Metrics::new(Packets { ct_state_invalid: Some(3), localhost_node_ports: Some(4) }));
    metrics.healthz(200);
    metrics.livez(503);
    flows(&metrics, 1, None);
    with_loop(&metrics, async |lab| {
        lab.tell(Kind::Service, &service("a", &json!({}))).await;
        lab.complete().await;
        lab.pass(10).await;
        lab.tables.of(Family::V4).faults.borrow_mut().push_back(Some(Fault::Locked));
        let mut changed = slice("a", "IPv4", &["10.61.1.1"]);
        let later = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(1);
        changed["metadata"]["annotations"] = json!({"endpoints.kubernetes.io/last-change-trigger-time": later.to_string()});
        lab.tell(Kind::EndpointSlice, &changed).await;
        lab.pass(10_000).await;
    });
    let (content_type, text) = metrics.text(Format::Classic);
    assert_eq!(content_type, "text/plain; version=0.0.4; charset=utf-8");
    for (name, kind, wanted, help) in METRICS {
        assert!(text.contains(&format!("# HELP {name} [ALPHA] {help}\n# TYPE {name} {kind}\n")), "{name} in\n{text}");
        assert_eq!(labels(&text, name, kind).as_deref(), Some(wanted), "{name} in\n{text}");
    }
    // No other metric has kube-proxy's prefix.
    let shown = text.lines().filter_map(|line| line.strip_prefix("# TYPE kubeproxy_")).count();
    assert_eq!(shown, METRICS.len());

    let powers = [
        "0.001", "0.002", "0.004", "0.008", "0.016", "0.032", "0.064", "0.128", "0.256", "0.512", "1.024", "2.048", "4.096", "8.192",
        "16.384", "+Inf",
    ];
    for (name, ..) in METRICS.iter().filter(|(name, kind, ..)| *kind == "histogram" && !name.contains("network_programming")) {
        assert_eq!(bounds(&text, name), powers, "{name}");
    }
    let mut programming = vec!["0.25".to_owned(), "0.5".into()];
    programming.extend((1..60).chain((60..=115).step_by(5)).chain((120..=300).step_by(30)).map(|second: u32| second.to_string()));
    programming.push("+Inf".into());
    assert_eq!(bounds(&text, "kubeproxy_network_programming_duration_seconds"), programming);

    let open = metrics.text(Format::OpenMetrics).1;
    assert!(
        open.contains("# TYPE kubeproxy_sync_proxy_rules_service_changes counter\nkubeproxy_sync_proxy_rules_service_changes_total 2\n"),
        "{open}"
    );
    assert!(open.contains("# TYPE kubeproxy_sync_proxy_rules_iptables_total gauge\n") && open.ends_with("# EOF\n"), "{open}");
}

/// At the start, metrics without labels are 0, and metrics with labels are absent. Counters that the kernel lacks are never exposed.
#[test]
fn before_anything_happens_there_are_zeros() {
    let text = Metrics::default().text(Format::Classic).1;
    for (name, kind, labels, _) in METRICS {
        let wanted = labels.is_empty() && !name.contains("packets");
        assert_eq!(text.contains(&format!("# TYPE {name} {kind}\n{name} 0\n")), wanted, "{name}");
        assert_eq!(text.contains(name), wanted, "{name}");
    }
    let one = Metrics::new(Packets { ct_state_invalid: Some(3), localhost_node_ports: None });
    assert_eq!(value(&one, "kubeproxy_iptables_ct_state_invalid_dropped_packets_total").as_deref(), Some("3"));
    assert!(!one.text(Format::Classic).1.contains("localhost_nodeports"));
}

/// Both families count each Service change; a slice is counted by its own family only. A change is pending until a sync includes it.
#[test]
fn changes_are_counted_as_two_proxies_count_them() {
    let metrics = Arc::new(Metrics::default());
    with_loop(&metrics, async |lab| {
        let endpoints = |what| format!("kubeproxy_sync_proxy_rules_endpoint_changes_{what}");
        let services = |what| format!("kubeproxy_sync_proxy_rules_service_changes_{what}");
        let queued = |family| format!("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{{ip_family=\"{family}\"}}");
        lab.pass(1).await;
        let start = [lab.value(&queued("IPv4")), lab.value(&queued("IPv6"))];
        assert!(start.iter().all(Option::is_some), "the loop's start counts as queued");

        lab.tell(Kind::Service, &service("a", &json!({}))).await;
        lab.tell(Kind::Service, &service("b", &json!({"clusterIPs": ["10.61.0.2"], "clusterIP": "10.61.0.2", "ipFamilies": ["IPv4"]})))
            .await;
        lab.tell(Kind::EndpointSlice, &slice("a", "IPv4", &["10.61.1.1"])).await;
        lab.tell(Kind::EndpointSlice, &slice("a", "IPv6", &["fd61::9"])).await;
        // The same slice again: an event, but no change.
        lab.tell(Kind::EndpointSlice, &slice("a", "IPv6", &["fd61::9"])).await;
        lab.tell(Kind::Service, &service("a", &json!({}))).await;
        // A slice of addressType FQDN has no family and is not counted.
        lab.tell(Kind::EndpointSlice, &slice("a", "FQDN", &["example.org"])).await;
        lab.pass(1).await;
        lab.shows(&services("total"), "6");
        lab.shows(&services("pending"), "2");
        lab.shows(&endpoints("total"), "3");
        lab.shows(&endpoints("pending"), "2");
        assert_eq!([lab.value(&queued("IPv4")), lab.value(&queued("IPv6"))], start, "nothing is asked for before all is known");

        lab.complete().await;
        lab.pass(1).await;
        lab.shows(&services("pending"), "0");
        lab.shows(&endpoints("pending"), "0");

        // A slice of IPv4 is deleted right after a sync: it waits for minSyncPeriod.
        let mut gone = slice("a", "IPv4", &[]);
        let id = ObjectId::of(Kind::EndpointSlice, &gone);
        lab.updates
            .send(Update::Cluster(kubernetes::ClusterUpdate::Change(convert::gone(&id), ChangeTime::now(None))))
            .await
            .expect("taken");
        lab.pass(1).await;
        lab.shows(&endpoints("total"), "4");
        lab.shows(&endpoints("pending"), "1");
        let then = [lab.value(&queued("IPv4")), lab.value(&queued("IPv6"))];
        assert!(then[0] > start[0] && then[1] == start[1], "only IPv4 was asked for a sync: {start:?} {then:?}");
        lab.pass(5000).await;
        lab.shows(&endpoints("pending"), "0");
        // A slice that is not known is deleted.
        gone["metadata"]["name"] = "unheard-of".into();
        let id = ObjectId::of(Kind::EndpointSlice, &gone);
        lab.updates
            .send(Update::Cluster(kubernetes::ClusterUpdate::Change(convert::gone(&id), ChangeTime::now(None))))
            .await
            .expect("taken");
        lab.pass(1).await;
        lab.shows(&endpoints("total"), "4");
        lab.shows("sepal_services", "2");
        lab.shows("sepal_endpoint_slices", "1");
        lab.shows("sepal_service_ports{ip_family=\"IPv4\"}", "2");
        lab.shows("sepal_service_ports{ip_family=\"IPv6\"}", "1");
        lab.shows("sepal_updates_waiting", "0");
    });
}

/// The wait of a change is measured per cause. Objects of the first list, and updates without a difference, are not measured.
#[test]
fn waits_of_changes_are_told_by_cause() {
    let metrics = Arc::new(Metrics::default());
    with_loop(&metrics, async |lab| {
        let wait = |what: &str, family: &str, cause: &str| {
            lab.value(&format!("sepal_change_wait_seconds_{what}{{ip_family=\"{family}\",cause=\"{cause}\"}}"))
        };
        lab.tell(Kind::Service, &service("a", &json!({}))).await;
        lab.tell(Kind::EndpointSlice, &slice("a", "IPv4", &["10.61.0.1"])).await;
        lab.complete().await;
        lab.pass(1).await;
        assert_eq!(wait("count", "IPv4", "coalesce"), None, "nothing of the start is a change");

        let tables = lab.tables.of(Family::V4);
        tables.takes.set(Duration::from_millis(30));
        tables.locked.set(Duration::from_millis(10));
        tables.faults.borrow_mut().push_back(Some(Fault::Locked));
        let mut changed = slice("a", "IPv4", &["10.61.0.2"]);
        changed["metadata"]["annotations"] =
            json!({"endpoints.kubernetes.io/last-change-trigger-time": (jiff::Timestamp::now() + Duration::from_secs(9)).to_string()});
        lab.tell(Kind::EndpointSlice, &changed).await;
        lab.pass(10_000).await;
        for cause in ["watch", "coalesce", "budget", "render", "read", "plan", "lock", "restore"] {
            assert_eq!(wait("count", "IPv4", cause).as_deref(), Some("1"), "{cause}");
            assert_eq!(wait("count", "IPv6", cause), None, "{cause}");
        }
        let sum = |cause| wait("sum", "IPv4", cause).and_then(|sum| sum.parse::<f64>().ok()).map(|sum| (sum * 1000.0).round());
        assert_eq!([sum("watch"), sum("lock"), sum("restore")], [Some(0.0), Some(10.0), Some(20.0)]);
        // The time until the first attempt, and from there to the second.
        assert!(sum("coalesce") >= Some(1000.0), "{:?}", sum("coalesce"));
        let list = lab.metrics.slowest().list(jiff::Timestamp::now());
        let [slowest] = list.as_slice() else { panic!("{list:?}") };
        assert_eq!((slowest.service.to_string(), slowest.family), ("ns/a".to_owned(), Family::V4));
    });
}

/// A family is ready after its first sync, and not ready while its last sync failed. The pod network's rules are ready after the first sync
/// that contains them.
#[test]
fn families_are_ready_when_their_rules_are_in_force() {
    let metrics = Arc::new(Metrics::default());
    with_loop(&metrics, async |lab| {
        let ready = |part: &str| lab.value(&format!("sepal_part_ready{{part=\"{part}\"}}")).expect("it is shown");
        lab.pass(1).await;
        assert_eq!([ready("proxy-ipv4"), ready("proxy-ipv6")], ["0", "0"]);
        lab.tables.of(Family::V4).faults.borrow_mut().push_back(Some(Fault::Locked));
        lab.complete().await;
        lab.pass(1).await;
        assert_eq!([ready("proxy-ipv4"), ready("proxy-ipv6")], ["0", "1"]);
        let shown = show(&lab.readiness.states());
        assert!(shown.starts_with("[-]proxy-ipv4 not yet: ") && shown.contains("xtables lock"), "{shown}");
        lab.pass(10_000).await;
        assert_eq!(ready("proxy-ipv4"), "1");
        assert_eq!(ready("pod-rules-ipv4"), "0", "nothing is known of the pod network");

        let mut inputs = common::inputs("").expect("nothing");
        let range =
            |network: &str, subnet: &str| PodRanges { network: network.parse().expect("one"), subnet: subnet.parse().expect("one") };
        let ranges = PerFamily { v4: Some(range("10.244.0.0/16", "10.244.1.0/24")), v6: None };
        inputs.pod_rules = Some(PodRules { ranges, masquerade: true, random_fully: true, forward: true });
        lab.updates.send(Update::Inputs(Box::new(inputs))).await.expect("taken");
        lab.pass(10_000).await;
        assert_eq!(ready("pod-rules-ipv4"), "1");

        lab.tables.of(Family::V4).faults.borrow_mut().push_back(Some(Fault::Locked));
        lab.tell(Kind::Service, &service("a", &json!({}))).await;
        lab.pass(1).await;
        let shown = show(&lab.readiness.states());
        assert!(shown.contains("[-]proxy-ipv4 failed: ") && shown.contains("[-]pod-rules-ipv4 failed: "), "{shown}");
        lab.pass(10_000).await;
        assert_eq!([ready("proxy-ipv4"), ready("pod-rules-ipv4"), ready("proxy-ipv6")], ["1", "1", "1"]);
    });
}

/// While lists are missing, `/livez` stays healthy, because a restart would not help. It fails when the first sync is due and does not
/// succeed.
#[test]
fn what_is_missing_before_the_first_sync_shows() {
    let metrics = Arc::new(Metrics::default());
    with_loop(&metrics, async |lab| {
        let health = || (lab.health.now().healthy(), lab.health.now().programmed());
        lab.updates
            .send(Update::Cluster(kubernetes::ClusterUpdate::Unknown(Kind::Service, "connection refused".into())))
            .await
            .expect("taken");
        lab.pass(10_000_000).await;
        let shown = show(&lab.readiness.states());
        assert!(shown.starts_with("[-]proxy-ipv4 not yet: no Services are known yet: connection refused\n"), "{shown}");
        assert_eq!(health(), (true, false));
        lab.tables.of(Family::V4).faults.borrow_mut().extend((0..100).map(|_| Some(Fault::Locked)));
        lab.complete().await;
        lab.pass(59_000).await;
        assert_eq!(health(), (true, false));
        lab.pass(2_000).await;
        assert_eq!(health(), (false, false), "a sync is due for two sync periods");
        lab.tables.of(Family::V4).faults.borrow_mut().clear();
        lab.pass(60_000).await;
        assert_eq!(health(), (true, true));
        // After the first sync, a message about a missing list changes nothing.
        lab.updates
            .send(Update::Cluster(kubernetes::ClusterUpdate::Unknown(Kind::Service, "connection refused".into())))
            .await
            .expect("taken");
        lab.pass(1_000).await;
        let shown = show(&lab.readiness.states());
        assert!(shown.starts_with("[+]proxy-ipv4 ok\n"), "{shown}");
    });
}

/// A failed restore is counted, and in addition as a partial one if the sync was a partial sync. Durations include failures; the last
/// timestamp does not.
#[test]
fn failures_are_counted() {
    let metrics = Arc::new(Metrics::default());
    with_loop(&metrics, async |lab| {
        let of = |name: &str| format!("kubeproxy_sync_{name}{{ip_family=\"IPv4\"}}");
        let (failures, partial) =
            (of("proxy_rules_iptables_restore_failures_total"), of("proxy_rules_iptables_partial_restore_failures_total"));
        let counts =
            ["proxy_rules_duration_seconds_count", "full_proxy_rules_duration_seconds_count", "partial_proxy_rules_duration_seconds_count"];
        let durations = |lab: &Lab| counts.map(|name| lab.value(&of(name)).map_or(0, |count| count.parse().expect("a number")));
        let success = of("proxy_rules_last_timestamp_seconds");

        lab.tables.of(Family::V4).faults.borrow_mut().push_back(Some(Fault::Locked));
        lab.tell(Kind::Service, &service("a", &json!({}))).await;
        lab.complete().await;
        lab.pass(1).await;
        lab.shows(&failures, "1");
        assert_eq!(lab.value(&partial).as_deref(), Some("0"), "the first sync is a full one");
        assert_eq!(lab.value(&success), None);
        assert_eq!(durations(&lab), [1, 1, 0]);
        lab.shows("sepal_xtables_lock_timeouts_total{ip_family=\"IPv4\"}", "1");
        lab.shows("kubeproxy_sync_proxy_rules_iptables_total{ip_family=\"IPv4\",table=\"nat\"}", "5");
        lab.shows("kubeproxy_sync_proxy_rules_iptables_last{ip_family=\"IPv4\",table=\"nat\"}", "0");
        lab.shows("kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family=\"IPv6\"}", "0");

        lab.pass(5000).await;
        assert_eq!(durations(&lab), [2, 2, 0]);
        let first = lab.value(&success);
        assert!(first.is_some());
        lab.shows("kubeproxy_sync_proxy_rules_iptables_last{ip_family=\"IPv4\",table=\"nat\"}", "5");

        lab.tables.of(Family::V4).faults.borrow_mut().push_back(Some(Fault::Locked));
        lab.tell(Kind::EndpointSlice, &slice("a", "IPv4", &["10.61.1.1"])).await;
        lab.pass(10).await;
        lab.shows(&failures, "2");
        lab.shows(&partial, "1");
        assert_eq!(lab.value(&success), first);
        lab.pass(5000).await;
        assert!(lab.value(&success) > first);
        // After an interrupted run the tables are read, so the next sync is a full sync.
        lab.tables.of(Family::V4).faults.borrow_mut().push_back(Some(Fault::KilledAfter(0)));
        lab.tell(Kind::EndpointSlice, &slice("a", "IPv4", &["10.61.1.2"])).await;
        let before = durations(&lab);
        lab.pass(5000).await;
        lab.shows(&failures, "3");
        lab.shows(&partial, "2");
        let after = durations(&lab);
        assert_eq!([after[0] - before[0], after[1] - before[1], after[2] - before[2]], [2, 1, 1]);
        // A single transaction that does not get the lock changes nothing: the next attempt is a partial sync again.
        lab.tables.of(Family::V4).faults.borrow_mut().push_back(Some(Fault::Locked));
        lab.tell(Kind::EndpointSlice, &slice("a", "IPv4", &["10.61.1.3"])).await;
        lab.pass(5000).await;
        lab.shows(&partial, "3");
        assert_eq!(durations(&lab), [after[0] + 2, after[1], after[2] + 2]);
        lab.shows("kubeproxy_sync_proxy_rules_iptables_last{ip_family=\"IPv4\",table=\"nat\"}", "3");
    });
}

/// A Service with a Local traffic policy and without local endpoints is counted once per family and policy (`TestNoEndpointsMetric`).
#[test]
fn services_without_local_endpoints_are_counted() {
    for (internal, external, addresses, wanted) in [
        ("Local", "Local", &["10.61.1.1"][..], ["1", "1"]),
        ("Local", "Cluster", &["10.61.1.1"], ["1", "0"]),
        ("Cluster", "Local", &["10.61.1.1"], ["0", "1"]),
        ("Cluster", "Cluster", &["10.61.1.1"], ["0", "0"]),
        ("Local", "Local", &[], ["0", "0"]),
    ] {
        let metrics = Arc::new(Metrics::default());
        with_loop(&metrics, async |lab| {
            let ports = json!([{"port": 80, "nodePort": 30001}]);
            let spec = json!({"type": "NodePort", "ports": ports, "internalTrafficPolicy": internal, "externalTrafficPolicy": external});
            lab.tell(Kind::Service, &service("a", &spec)).await;
            lab.tell(Kind::EndpointSlice, &slice("a", "IPv4", addresses)).await;
            lab.complete().await;
            lab.pass(1).await;
            for (policy, wanted) in ["internal", "external"].into_iter().zip(wanted) {
                let of = |family| {
                    format!("kubeproxy_sync_proxy_rules_no_local_endpoints_total{{ip_family=\"{family}\",traffic_policy=\"{policy}\"}}")
                };
                lab.shows(&of("IPv4"), wanted);
                lab.shows(&of("IPv6"), "0");
            }
            // A local endpoint is added.
            let mut here = slice("a", "IPv4", &["10.61.1.2"]);
            here["endpoints"][0]["nodeName"] = "host".into();
            lab.tell(Kind::EndpointSlice, &here).await;
            lab.pass(5000).await;
            for policy in ["internal", "external"] {
                lab.shows(
                    &format!("kubeproxy_sync_proxy_rules_no_local_endpoints_total{{ip_family=\"IPv4\",traffic_policy=\"{policy}\"}}"),
                    "0",
                );
            }
        });
    }
}

/// Reconciles a conntrack table with stale flows until it is clean.
fn flows(metrics: &Arc<Metrics>, count: u32, fault: Option<record::Fault>) {
    let at = |text: &str| text.parse().expect("an address");
    let (service, gone) = (at("10.96.0.10:53"), at("10.0.0.1:53"));
    let client = at("10.0.9.9:40000");
    let stale = Flow {
        protocol: UDP,
        original: Tuple { source: client, destination: service },
        reply: Tuple { source: gone, destination: client },
        zone: 0,
        id: None,
    };
    let table = FakeFlows::new((0..count).map(|id| Flow { id: Some(id), ..stale }));
    table.fault.set(fault);
    let mut reached = ServiceFrontends::default();
    reached.add(Frontend::Address(service), &ServingEndpoints::new([at("10.0.0.2:53")]));
    let key = ServiceKey { namespace: "kube-system".into(), name: "dns".into() };
    let (sender, pending) = flow_loop::channel();
    sender.send(flow_loop::FlowChanges { changes: FrontendChanges::of([(key, reached)]), local: Arc::default() });
    block_on(async {
        let run = flow_loop::run(Reconciler::new(Family::V4), table, Arc::clone(metrics), pending);
        let _ = tokio::time::timeout(Duration::from_secs(20), run).await;
    });
    drop(sender);
}

/// A reconciliation that cannot delete all stale flows is counted, too; one that cannot list them is not.
#[test]
fn deleted_flows_are_counted() {
    for (fault, rounds) in [(None, Some("1")), (Some(record::Fault::Delete), Some("2")), (Some(record::Fault::List), None)] {
        let metrics = Arc::new(Metrics::default());
        flows(&metrics, 2, fault);
        let shown = |name| value(&metrics, &format!("kubeproxy_conntrack_reconciler_{name}{{ip_family=\"IPv4\"}}"));
        assert_eq!(shown("sync_duration_seconds_count").as_deref(), rounds, "{fault:?}");
        assert_eq!(shown("deleted_entries_total").as_deref(), rounds.map(|_| "2"), "{fault:?}");
    }
}
