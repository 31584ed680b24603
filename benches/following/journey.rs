//! From an empty node through all kinds of changes to a restart.

use std::time::{Duration, Instant};

use sepal::table::plan::Variant;
use sepal_apiserver::ApiServer;
use sepal_lab::figures::{Rows, quantile};
use sepal_lab::servers::{SERVERS, address, serve_endpoints, wait_for};
use sepal_lab::{Cluster, Netns};
use serde_json::Value;

use crate::daemon::{Sepal, serve};
use crate::floor::Floor;

/// Single changes that are timed, and whose CPU is counted: this many, or what there is time for.
const CHANGES: usize = 200;
const TIME: Duration = Duration::from_secs(90);
/// The service whose endpoints are moved between two servers.
const MOVED: usize = 7;
/// One in so many changes is timed on the floor, too.
const FLOOR_EVERY: usize = 5;
/// Services that are added and removed, one after the other.
const ADDED: usize = 10;
/// Services that change at once.
const MANY: usize = 1000;

/// Everything: start, changes, memory, restart.
pub(crate) fn whole(cluster: Cluster, variant: Variant, rows: &mut Rows<'_>) {
    let (mut floor, filled) = Floor::fill(cluster, variant);
    let node = Netns::new();
    with_servers(&node);
    let server = serve(&node, cluster.objects().collect());
    let start = Instant::now();
    let sepal = Sepal::start(&node, &server, variant);
    sepal.logs("chains written");
    rows.ratio("start to everything written", start.elapsed().as_secs_f64(), filled, "s");
    std::thread::sleep(Duration::from_secs(3));
    rows.figure("peak memory of the start", sepal.memory("VmHWM"), "MB");

    one_by_one(&node, &server, &sepal, &mut floor, rows);
    coming_and_going(cluster, &node, &server, &sepal, &mut floor, rows);
    many_at_once(cluster, &node, &server, &mut floor, rows);
    std::thread::sleep(Duration::from_secs(2));
    rows.figure("peak memory in all", sepal.memory("VmHWM"), "MB");
    rows.figure("settled memory", sepal.memory("VmRSS"), "MB");

    drop(sepal);
    let saved = floor.save();
    let start = Instant::now();
    let sepal = Sepal::start(&node, &server, variant);
    sepal.logs("as they should be");
    rows.ratio("restart, to known unchanged", start.elapsed().as_secs_f64(), saved, "s");
    std::thread::sleep(Duration::from_secs(1));
    rows.figure("peak memory of the restart", sepal.memory("VmHWM"), "MB");
    drop(sepal);
    if variant == Variant::Nft {
        udp(cluster, variant, rows);
    }
}

/// Only a change of one endpoint: whether it costs more in a larger cluster.
pub(crate) fn single_changes(cluster: Cluster, variant: Variant, rows: &mut Rows<'_>) {
    let (mut floor, _) = Floor::fill(cluster, variant);
    let node = Netns::new();
    with_servers(&node);
    let server = serve(&node, cluster.objects().collect());
    let sepal = Sepal::start(&node, &server, variant);
    sepal.logs("chains written");
    // Counters of rules are read for the first time.
    std::thread::sleep(Duration::from_secs(12));
    one_by_one(&node, &server, &sepal, &mut floor, rows);
}

fn one_by_one(node: &Netns, server: &ApiServer, sepal: &Sepal, floor: &mut Floor, rows: &mut Rows<'_>) {
    let slices = SERVERS.map(|ip| Cluster::slice(MOVED, &[ip.to_string()]));
    let move_to = |which: usize| server.put(slices[which].clone()).expect("a slice");
    move_to(0);
    wait_for(node, address(MOVED), SERVERS[0]);
    floor.change(&slices[..1]);
    let (mut times, mut floors) = (Vec::new(), Vec::new());
    let mut cpu = sepal.cpu();
    let mut spent = 0.0;
    let first = Instant::now();
    for change in (1..=CHANGES).take_while(|change| *change <= FLOOR_EVERY || first.elapsed() < TIME) {
        let start = Instant::now();
        move_to(change % 2);
        wait_for(node, address(MOVED), SERVERS[change % 2]);
        times.push(start.elapsed().as_secs_f64() * 1e3);
        std::thread::sleep(Duration::from_millis(30).max(start.elapsed()));
        if change % FLOOR_EVERY == 0 {
            spent += sepal.cpu() - cpu;
            let next = (floors.len() + 1) % 2;
            floors.push(floor.change(&slices[next..=next]) * 1e3);
            cpu = sepal.cpu();
        }
    }
    spent += sepal.cpu() - cpu;
    let floor = quantile(&mut floors, 0.5);
    rows.ratio("one endpoint changed, p50 to the first connection", quantile(&mut times, 0.5), floor, "ms");
    rows.ratio("the same, p90", quantile(&mut times, 0.9), quantile(&mut floors, 0.9), "ms");
    rows.figure("CPU of one change", spent / times.len() as f64, "ms");
}

fn coming_and_going(cluster: Cluster, node: &Netns, server: &ApiServer, sepal: &Sepal, floor: &mut Floor, rows: &mut Rows<'_>) {
    let new = cluster.services + 1;
    let (service, slice) = (Cluster::service(new), Cluster::slice(new, &[SERVERS[0].to_string()]));
    let (mut added, mut removed, mut floor_added, mut floor_removed) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ADDED {
        let start = Instant::now();
        server.load(vec![service.clone(), slice.clone()]).expect("objects");
        wait_for(node, address(new), SERVERS[0]);
        added.push(start.elapsed().as_secs_f64() * 1e3);
        std::thread::sleep(Duration::from_secs(1));
        sepal.forget_log();
        let start = Instant::now();
        server.remove("services", &format!("bench/{}", Cluster::name(new)));
        sepal.logs("deleted");
        removed.push(start.elapsed().as_secs_f64() * 1e3);
        server.remove("endpointslices", &format!("bench/{}-x7k2p", Cluster::name(new)));
        std::thread::sleep(Duration::from_secs(1));
        floor_added.push(floor.change(&[service.clone(), slice.clone()]) * 1e3);
        floor_removed.push(floor.remove(&service, &slice) * 1e3);
    }
    rows.ratio("a service added, p50 to the first connection", quantile(&mut added, 0.5), quantile(&mut floor_added, 0.5), "ms");
    rows.ratio("a service removed, p50 to written", quantile(&mut removed, 0.5), quantile(&mut floor_removed, 0.5), "ms");
}

fn many_at_once(cluster: Cluster, node: &Netns, server: &ApiServer, floor: &mut Floor, rows: &mut Rows<'_>) {
    let last = MOVED + MANY.min(cluster.services - MOVED - 1);
    let mut slices: Vec<Value> = (MOVED + 1..last).map(|i| Cluster::slice(i, &[Cluster::endpoint_ip(i, 200)])).collect();
    // In the order of names the last, so that all others have been written when it is.
    slices.push(Cluster::slice(last, &[SERVERS[1].to_string()]));
    let start = Instant::now();
    server.load(slices.clone()).expect("slices");
    wait_for(node, address(last), SERVERS[1]);
    let took = start.elapsed().as_secs_f64();
    rows.ratio("1000 endpoints changed at once, to the first connection to the last", took, floor.change(&slices), "s");
}

/// The same services over UDP: a change of one endpoint makes sepal look after its flows, too.
fn udp(cluster: Cluster, variant: Variant, rows: &mut Rows<'_>) {
    const CHANGES: usize = 50;
    let node = Netns::new();
    let server = serve(&node, cluster.objects().map(over_udp).collect());
    let sepal = Sepal::start(&node, &server, variant);
    sepal.logs("chains written");
    std::thread::sleep(Duration::from_secs(3));
    let cpu = sepal.cpu();
    for change in 0..CHANGES {
        sepal.forget_log();
        server.put(over_udp(Cluster::slice(MOVED, &[SERVERS[change % 2].to_string()]))).expect("a slice");
        sepal.logs("chains written");
        std::thread::sleep(Duration::from_millis(200));
    }
    rows.figure("CPU of one change, all services UDP", (sepal.cpu() - cpu) / CHANGES as f64, "ms");
    rows.figure("peak memory, all services UDP", sepal.memory("VmHWM"), "MB");
}

fn over_udp(mut object: Value) -> Value {
    for ports in ["/spec/ports", "/ports"] {
        for port in object.pointer_mut(ports).and_then(Value::as_array_mut).into_iter().flatten() {
            port["protocol"] = "UDP".into();
        }
    }
    object
}

/// Servers behind Services, and a way for packets to those that are not there.
fn with_servers(node: &Netns) {
    node.run(
        "ip link add beyond type veth peer name horizon; ip link set beyond up; ip link set horizon up; ip route add default dev beyond",
    );
    serve_endpoints(node);
}
