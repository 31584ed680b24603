//! Measures the start, changes of every kind and the restart of one sepal.

use std::time::{Duration, Instant};

use sepal::table::plan::Variant;
use sepal_apiserver::ApiServer;
use sepal_lab::figures::{Rows, quantile};
use sepal_lab::servers::{SERVERS, serve_endpoints, service_address, wait_for_server};
use sepal_lab::{Cluster, Netns};
use serde_json::Value;

use crate::daemon::{Sepal, start_api_server};
use crate::floor::Floor;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Number of timed single changes, if [`TIME_LIMIT`] is enough for them.
    pub(crate) changes: usize,
    /// The time after a start until sepal has read the rule counters for the first time.
    pub(crate) settle: Duration,
}

impl Effort {
    /// The effort for figures that are published.
    pub(crate) const FULL: Self = Self { changes: 60, settle: Duration::from_secs(12) };
}

/// Time limit for the single changes.
const TIME_LIMIT: Duration = Duration::from_secs(90);
/// Index of the Service whose endpoint is moved between two servers.
const MOVED: usize = 7;
/// Number of changes per change that is also timed on the floor.
const FLOOR_EVERY: usize = 5;
/// Number of Services that are added and removed, one after the other.
const ADDED: usize = 10;
/// Number of Services that change at once.
const MANY: usize = 1000;

/// Measures the start, changes, memory and the restart.
pub(crate) fn measure_all(cluster: Cluster, variant: Variant, rows: &mut Rows<'_>) {
    let (mut floor, filled) = Floor::fill(cluster, variant);
    let node = Netns::new();
    prepare_node(&node);
    let server = start_api_server(&node, cluster.objects().collect());
    let start = Instant::now();
    let sepal = Sepal::start(&node, &server, variant);
    sepal.wait_for_log("chains written");
    rows.ratio("start to everything written", start.elapsed().as_secs_f64(), filled, "s");
    std::thread::sleep(Duration::from_secs(3));
    rows.figure("peak memory of the start", sepal.read_memory_mb("VmHWM"), "MB");

    change_single_endpoints(&node, &server, &sepal, &mut floor, Effort::FULL, rows);
    add_and_remove_services(cluster, &node, &server, &sepal, &mut floor, rows);
    change_many_endpoints(cluster, &node, &server, &mut floor, rows);
    std::thread::sleep(Duration::from_secs(2));
    rows.figure("peak memory in all", sepal.read_memory_mb("VmHWM"), "MB");
    rows.figure("settled memory", sepal.read_memory_mb("VmRSS"), "MB");

    drop(sepal);
    let saved = floor.save(cluster);
    let start = Instant::now();
    let sepal = Sepal::start(&node, &server, variant);
    sepal.wait_for_log("match the desired rules");
    rows.ratio("restart, to known unchanged", start.elapsed().as_secs_f64(), saved, "s");
    std::thread::sleep(Duration::from_secs(1));
    rows.figure("peak memory of the restart", sepal.read_memory_mb("VmHWM"), "MB");
    drop(sepal);
    if variant == Variant::Nft {
        measure_udp(cluster, variant, rows);
    }
}

/// Measures what depends on the size of the cluster: the start, memory, one change, the restart, and audits.
pub(crate) fn measure_size(cluster: Cluster, variant: Variant, effort: Effort, rows: &mut Rows<'_>) {
    let (mut floor, filled) = Floor::fill(cluster, variant);
    let node = Netns::new();
    prepare_node(&node);
    let server = start_api_server(&node, cluster.objects().collect());
    let start = Instant::now();
    let sepal = Sepal::start(&node, &server, variant);
    sepal.wait_for_families(cluster, "chains written");
    let started = start.elapsed().as_secs_f64();
    rows.ratio("start to everything written", started, filled, "s");
    if let Some(whole) = floor.fill_with_whole_dispatch(cluster) {
        rows.ratio("the same, all dispatch lines in one COMMIT on the floor", started, whole, "s");
    }
    rows.figure("CPU of the start, without iptables", sepal.read_cpu_ms() / 1e3, "s");
    std::thread::sleep(effort.settle);
    rows.figure("peak memory of the start", sepal.read_memory_mb("VmHWM"), "MB");
    rows.figure("settled memory", sepal.read_memory_mb("VmRSS"), "MB");
    change_single_endpoints(&node, &server, &sepal, &mut floor, effort, rows);
    drop(sepal);

    let saved = floor.save(cluster);
    let start = Instant::now();
    let sepal = Sepal::start(&node, &server, variant);
    sepal.wait_for_families(cluster, "match the desired rules");
    rows.ratio("restart, to known unchanged", start.elapsed().as_secs_f64(), saved, "s");
    std::thread::sleep(effort.settle);
    rows.figure("peak memory of the restart", sepal.read_memory_mb("VmHWM"), "MB");

    // Another program changes nf_tables: an audit reads the tables. On legacy, audits follow the sync period.
    if variant == Variant::Nft {
        let cpu = sepal.read_cpu_with_children_ms();
        node.run("iptables-nft -t nat -D KUBE-MARK-MASQ 1");
        let start = Instant::now();
        sepal.wait_for_families(Cluster::new(1, 1), "chains written");
        rows.ratio("a rule deleted by another program, to its repair", start.elapsed().as_secs_f64(), saved, "s");
        rows.figure("the same, CPU of sepal and iptables", (sepal.read_cpu_with_children_ms() - cpu) / 1e3, "s");
    }
}

/// Measures one changed endpoint of a Service with many endpoints. Its service chain has a rule with another probability for each endpoint.
pub(crate) fn measure_wide_service(cluster: Cluster, variant: Variant, rows: &mut Rows<'_>) {
    const CHANGES: usize = 20;
    let (mut floor, filled) = Floor::fill(cluster, variant);
    let node = Netns::new();
    prepare_node(&node);
    let server = start_api_server(&node, cluster.objects().collect());
    let start = Instant::now();
    let sepal = Sepal::start(&node, &server, variant);
    sepal.wait_for_log("chains written");
    rows.ratio("start to everything written", start.elapsed().as_secs_f64(), filled, "s");
    let (mut times, mut floors) = (Vec::new(), Vec::new());
    for change in 0..CHANGES {
        // The last slice loses its last endpoint or gets it back.
        let last = cluster.objects().filter(|object| object["kind"] == "EndpointSlice").last().expect("a slice");
        let mut slice = last;
        if change % 2 == 0 {
            slice["endpoints"].as_array_mut().expect("endpoints").pop();
        }
        std::thread::sleep(Duration::from_secs(2));
        sepal.clear_log();
        let start = Instant::now();
        server.put(slice.clone()).expect("the API server accepts the EndpointSlice");
        sepal.wait_for_log("chains written");
        times.push(start.elapsed().as_secs_f64() * 1e3);
        floors.push(floor.change(&[slice]) * 1e3);
    }
    rows.ratio("one endpoint changed, p50 to written", quantile(&mut times, 0.5), quantile(&mut floors, 0.5), "ms");
    rows.figure("peak memory in all", sepal.read_memory_mb("VmHWM"), "MB");
}

/// Measures only changes of one endpoint, to compare clusters of different sizes.
pub(crate) fn measure_single_changes(cluster: Cluster, variant: Variant, rows: &mut Rows<'_>) {
    let (mut floor, _) = Floor::fill(cluster, variant);
    let node = Netns::new();
    prepare_node(&node);
    let server = start_api_server(&node, cluster.objects().collect());
    let sepal = Sepal::start(&node, &server, variant);
    sepal.wait_for_log("chains written");
    // Wait until sepal has read the rule counters for the first time.
    std::thread::sleep(Effort::FULL.settle);
    change_single_endpoints(&node, &server, &sepal, &mut floor, Effort::FULL, rows);
}

fn change_single_endpoints(node: &Netns, server: &ApiServer, sepal: &Sepal, floor: &mut Floor, effort: Effort, rows: &mut Rows<'_>) {
    let slices = SERVERS.map(|ip| Cluster::slice(MOVED, &[ip.to_string()]));
    let move_to = |index: usize| server.put(slices[index].clone()).expect("the API server accepts the EndpointSlice");
    move_to(0);
    wait_for_server(node, service_address(MOVED), SERVERS[0]);
    floor.change(&slices[..1]);
    let (mut times, mut floors) = (Vec::new(), Vec::new());
    let mut cpu = sepal.read_cpu_ms();
    let mut spent = 0.0;
    let first = Instant::now();
    for change in (1..=effort.changes).take_while(|change| *change <= FLOOR_EVERY || first.elapsed() < TIME_LIMIT) {
        let start = Instant::now();
        move_to(change % 2);
        wait_for_server(node, service_address(MOVED), SERVERS[change % 2]);
        times.push(start.elapsed().as_secs_f64() * 1e3);
        // The changes are isolated: the CPU budget for syncs (`--sync-cpu-percent`) is full again.
        std::thread::sleep(Duration::from_millis(30).max(start.elapsed() * 10));
        if change % FLOOR_EVERY == 0 {
            spent += sepal.read_cpu_ms() - cpu;
            let next = (floors.len() + 1) % 2;
            floors.push(floor.change(&slices[next..=next]) * 1e3);
            cpu = sepal.read_cpu_ms();
        }
    }
    spent += sepal.read_cpu_ms() - cpu;
    let floor = quantile(&mut floors, 0.5);
    rows.ratio("one endpoint changed, p50 to the first connection", quantile(&mut times, 0.5), floor, "ms");
    rows.ratio("the same, p90", quantile(&mut times, 0.9), quantile(&mut floors, 0.9), "ms");
    rows.figure("CPU of one change", spent / times.len() as f64, "ms");
}

/// Changes 50 endpoints a second for 20 s, and measures CPU time, and how long one more change takes in that load.
pub(crate) fn measure_churn(cluster: Cluster, variant: Variant, rows: &mut Rows<'_>) {
    const SECONDS: usize = 20;
    const PER_SECOND: usize = 50;
    let node = Netns::new();
    prepare_node(&node);
    let server = start_api_server(&node, cluster.objects().collect());
    let sepal = Sepal::start(&node, &server, variant);
    sepal.wait_for_log("chains written");
    // Wait until the first sync is paid for, and sepal has read the rule counters for the first time.
    std::thread::sleep(Duration::from_secs(12));
    let (start, cpu) = (Instant::now(), sepal.read_cpu_with_children_ms());
    let mut times = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for change in 0..SECONDS * PER_SECOND {
                let service = (MOVED + 1 + change) % cluster.services;
                if service != MOVED {
                    let ip = Cluster::endpoint_ip(service, 100 + change / cluster.services % 100);
                    server.put(Cluster::slice(service, &[ip])).expect("the API server accepts the EndpointSlice");
                }
                let due = start + Duration::from_secs(1) * (change as u32 + 1) / PER_SECOND as u32;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        });
        for change in 0.. {
            if start.elapsed() > Duration::from_secs(SECONDS as u64 - 1) {
                break;
            }
            let begin = Instant::now();
            server.put(Cluster::slice(MOVED, &[SERVERS[change % 2].to_string()])).expect("the API server accepts the EndpointSlice");
            wait_for_server(&node, service_address(MOVED), SERVERS[change % 2]);
            times.push(begin.elapsed().as_secs_f64() * 1e3);
            // Irregular pauses, so that the changes do not follow the rhythm of the syncs.
            std::thread::sleep(Duration::from_millis(150 + (change as u64 * 37) % 200));
        }
    });
    let spent = sepal.read_cpu_with_children_ms() - cpu;
    rows.figure("50 changes a second for 20 s, CPU of sepal and iptables", spent / 1e3, "s");
    rows.figure("the same, one more change, p50 to the first connection", quantile(&mut times, 0.5), "ms");
    rows.figure("the same, p90", quantile(&mut times, 0.9), "ms");
}

fn add_and_remove_services(cluster: Cluster, node: &Netns, server: &ApiServer, sepal: &Sepal, floor: &mut Floor, rows: &mut Rows<'_>) {
    let new = cluster.services + 1;
    let (service, slice) = (Cluster::service(new), Cluster::slice(new, &[SERVERS[0].to_string()]));
    let (mut added, mut removed, mut floor_added, mut floor_removed) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ADDED {
        let start = Instant::now();
        server.load(vec![service.clone(), slice.clone()]).expect("the API server accepts the objects");
        wait_for_server(node, service_address(new), SERVERS[0]);
        added.push(start.elapsed().as_secs_f64() * 1e3);
        std::thread::sleep(Duration::from_secs(1));
        sepal.clear_log();
        let start = Instant::now();
        server.remove("services", &format!("bench/{}", Cluster::name(new)));
        sepal.wait_for_log("deleted");
        removed.push(start.elapsed().as_secs_f64() * 1e3);
        server.remove("endpointslices", &format!("bench/{}-x7k2p", Cluster::name(new)));
        std::thread::sleep(Duration::from_secs(1));
        floor_added.push(floor.change(&[service.clone(), slice.clone()]) * 1e3);
        floor_removed.push(floor.remove(&service, &slice) * 1e3);
    }
    rows.ratio("a service added, p50 to the first connection", quantile(&mut added, 0.5), quantile(&mut floor_added, 0.5), "ms");
    rows.ratio("a service removed, p50 to written", quantile(&mut removed, 0.5), quantile(&mut floor_removed, 0.5), "ms");
}

fn change_many_endpoints(cluster: Cluster, node: &Netns, server: &ApiServer, floor: &mut Floor, rows: &mut Rows<'_>) {
    let last = MOVED + MANY.min(cluster.services - MOVED - 1);
    let mut slices: Vec<Value> = (MOVED + 1..last).map(|i| Cluster::slice(i, &[Cluster::endpoint_ip(i, 200)])).collect();
    // This slice is the last one by name, so sepal has written all others when it has written this one.
    slices.push(Cluster::slice(last, &[SERVERS[1].to_string()]));
    let start = Instant::now();
    server.load(slices.clone()).expect("the API server accepts the EndpointSlices");
    wait_for_server(node, service_address(last), SERVERS[1]);
    let seconds = start.elapsed().as_secs_f64();
    rows.ratio("1000 endpoints changed at once, to the first connection to the last", seconds, floor.change(&slices), "s");
}

/// Measures endpoint changes of UDP Services. After such a change, sepal also deletes stale flows.
fn measure_udp(cluster: Cluster, variant: Variant, rows: &mut Rows<'_>) {
    const CHANGES: usize = 50;
    let node = Netns::new();
    let server = start_api_server(&node, cluster.objects().map(to_udp).collect());
    let sepal = Sepal::start(&node, &server, variant);
    sepal.wait_for_log("chains written");
    std::thread::sleep(Duration::from_secs(3));
    let cpu = sepal.read_cpu_ms();
    for change in 0..CHANGES {
        sepal.clear_log();
        server.put(to_udp(Cluster::slice(MOVED, &[SERVERS[change % 2].to_string()]))).expect("the API server accepts the EndpointSlice");
        sepal.wait_for_log("chains written");
        std::thread::sleep(Duration::from_millis(200));
    }
    rows.figure("CPU of one change, all services UDP", (sepal.read_cpu_ms() - cpu) / CHANGES as f64, "ms");
    rows.figure("peak memory, all services UDP", sepal.read_memory_mb("VmHWM"), "MB");
}

/// Changes the protocol of all ports to UDP.
fn to_udp(mut object: Value) -> Value {
    for ports in ["/spec/ports", "/ports"] {
        for port in object.pointer_mut(ports).and_then(Value::as_array_mut).into_iter().flatten() {
            port["protocol"] = "UDP".into();
        }
    }
    object
}

/// Starts the two servers on a node, and adds a default route so that packets to other endpoints are sent and lost.
fn prepare_node(node: &Netns) {
    node.run(
        "ip link add beyond type veth peer name horizon; ip link set beyond up; ip link set horizon up; ip route add default dev beyond",
    );
    serve_endpoints(node);
}
