//! The pod network of a node among thousands, in network namespaces: from the start to every peer's entries, from one changed Node to the
//! kernel, and the memory for it. The floor is the same entries written by one `ip -batch` and one `bridge -batch` in the same run.
//!
//! - `SEPAL_BENCH_PEERS=5000,20000` chooses the numbers of peers.
//! - `SEPAL_BENCH_KEEP=benches/README.md` puts the figures into the table of that file, in place of those it has.

#![allow(
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    missing_docs,
    reason = "an instrument: it starts programs, waits, and prints"
)]

#[path = "../common/mod.rs"]
mod common;

use std::fmt::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use sepal::netlink::monitor::{Event, Monitor};
use sepal_apiserver::ApiServer;
use sepal_lab::{Netns, Running};
use serde_json::{Value, json};
use tempfile::TempDir;

use common::table::{Rows, Table};

const SEPAL: &str = env!("CARGO_BIN_EXE_sepal");
/// Times that a start is measured; the median counts.
const STARTS: usize = 3;
/// Peers that are changed one after the other.
const CHANGES: usize = 60;
/// Heartbeats that are sent for the CPU time of one.
const HEARTBEATS: usize = 5_000;

fn main() {
    let mut table = Table::new(&["peers"]);
    let peers = std::env::var("SEPAL_BENCH_PEERS").unwrap_or_else(|_| "5000".into());
    for peers in peers.split(',').filter(|peers| !peers.is_empty()) {
        measure(peers.parse().expect("a number"), &mut table.of(&[peers.to_owned()]));
        table.keep();
    }
    println!("\n{}", table.text());
}

/// A node as the API has it: ten kilobytes, most of which nobody needs.
fn node(number: usize, generation: usize) -> Value {
    let [high, low] = [number / 256, number % 256];
    let name = if number == 0 { "bench".to_owned() } else { format!("node-{number}") };
    let images: Vec<Value> = (0..30)
        .map(|i| json!({"names": [format!("registry.example.com/team/image-{i}@sha256:{:064x}", i + number), format!("registry.example.com/team/image-{i}:v1.{number}")], "sizeBytes": 100_000_000 + i}))
        .collect();
    let mut annotations = json!({"node.alpha.kubernetes.io/ttl": "0", "volumes.kubernetes.io/controller-managed-attach-detach": "true"});
    if number > 0 {
        annotations["flannel.alpha.coreos.com/kube-subnet-manager"] = json!("true");
        annotations["flannel.alpha.coreos.com/backend-type"] = json!("vxlan");
        annotations["flannel.alpha.coreos.com/backend-data"] = json!(format!("{{\"VNI\":1,\"VtepMAC\":\"{}\"}}", mac(number, generation)));
        annotations["flannel.alpha.coreos.com/public-ip"] = json!(format!("172.16.{high}.{low}"));
    }
    let managed = |manager: &str| json!({"manager": manager, "operation": "Update", "fieldsV1": {"f:metadata": {"f:annotations": {"f:x": "y".repeat(900)}}}});
    let subnet = format!("10.{}.{low}.0/24", 1 + high);
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": name, "uid": format!("uid-{number}"), "creationTimestamp": "2026-01-01T00:00:00Z", "annotations": annotations,
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"},
            "managedFields": [managed("kubelet"), managed("kube-controller-manager"), managed("flanneld")],
        },
        "spec": {"podCIDR": subnet, "podCIDRs": [subnet]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": if number == 0 { "192.168.77.1".into() } else { format!("172.16.{high}.{low}") }}],
            "capacity": {"cpu": "64", "memory": "263000000Ki", "pods": "110"}, "images": images,
            "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:00Z", "message": "kubelet is posting ready status"}],
        },
    })
}

fn mac(number: usize, generation: usize) -> String {
    format!("02:00:{:02x}:{:02x}:{:02x}:{:02x}", generation, number >> 16, (number >> 8) & 255, number & 255)
}

/// A namespace with one interface to other nodes.
fn host() -> Netns {
    let host = Netns::new();
    host.run(
        "ip link add eth0 type veth peer name beyond; ip link set eth0 up; ip link set beyond up
         ip addr add 192.168.77.1/24 dev eth0; ip route add default via 192.168.77.254",
    );
    host
}

/// What the same entries cost when they are written at once by the usual tools, in s.
fn floor(peers: usize, folder: &Path) -> f64 {
    let host = host();
    host.run(
        "ip link add flannel.1 type vxlan id 1 dev eth0 local 192.168.77.1 dstport 8472 nolearning; ip addr add 10.1.0.0/32 dev flannel.1
         ip link set flannel.1 up",
    );
    let (mut entries, mut forwards) = (String::new(), String::new());
    for number in 1..=peers {
        let [high, low] = [number / 256, number % 256];
        let (base, mac) = (format!("10.{}.{low}.0", 1 + high), mac(number, 0));
        let _ = writeln!(entries, "neigh replace {base} lladdr {mac} dev flannel.1 nud permanent");
        let _ = writeln!(entries, "route replace {base}/24 via {base} dev flannel.1 onlink proto 83");
        let _ = writeln!(forwards, "fdb replace {mac} dev flannel.1 dst 172.16.{high}.{low} self permanent");
    }
    let files = [folder.join("entries"), folder.join("forwards")];
    std::fs::write(&files[0], entries).expect("writable");
    std::fs::write(&files[1], forwards).expect("writable");
    let start = Instant::now();
    host.run(&format!("bridge -batch {}; ip -batch {}", files[1].display(), files[0].display()));
    let took = start.elapsed().as_secs_f64();
    assert_eq!(routes(&host), peers);
    took
}

fn routes(host: &Netns) -> usize {
    host.run("ip route show proto 83 | wc -l").trim().parse().expect("a number")
}

fn start(host: &Netns, url: &str, folder: &Path) -> Running {
    std::fs::write(folder.join("net-conf.json"), r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#).expect("writable");
    let path = |name: &str| folder.join(name).display().to_string();
    let mut command = host.command(SEPAL);
    command
        .args(["--pod-network", "--proxy=false", "--ip-masq", "--hostname-override=bench"])
        .arg(format!("--master={url}"))
        .arg(format!("--net-config-path={}", path("net-conf.json")))
        .arg(format!("--subnet-file={}", path("subnet.env")));
    Running(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("sepal starts"))
}

/// Waits for the file that says that every peer has its entries.
fn programmed(folder: &Path) {
    let limit = Instant::now() + Duration::from_secs(300);
    while !folder.join("subnet.env").exists() {
        assert!(Instant::now() < limit, "the peers are programmed in time");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Tells when FDB entries change, from now on.
fn watch(host: &Netns) -> Receiver<Instant> {
    let (sender, changes) = channel();
    let (ready, listening) = channel();
    drop(host.start(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut monitor = Monitor::open().expect("a socket");
            ready.send(()).expect("somebody waits");
            while let Ok(events) = monitor.next().await {
                let new = |event: &Event| matches!(event, Event::Fdb { gone: false, .. });
                if events.iter().any(new) && sender.send(Instant::now()).is_err() {
                    return;
                }
            }
        });
    }));
    listening.recv().expect("it listens");
    changes
}

fn measure(peers: usize, rows: &mut Rows<'_>) {
    let host = host();
    let listener = host.within(|| TcpListener::bind("127.0.0.1:0").expect("a port"));
    let server = ApiServer::serve_objects(listener, (0..=peers).map(|number| node(number, 0)).collect()).expect("it serves");
    let folder = TempDir::new().expect("a folder");
    let (mut starts, mut floors) = (Vec::new(), Vec::new());
    let mut running = None;
    for _ in 0..STARTS {
        floors.push(floor(peers, folder.path()));
        drop(running.take());
        host.run("ip link del flannel.1 2>/dev/null || true");
        let _ = std::fs::remove_file(folder.path().join("subnet.env"));
        let begin = Instant::now();
        running = Some(start(&host, &server.url(), folder.path()));
        programmed(folder.path());
        starts.push(begin.elapsed().as_secs_f64());
        assert_eq!(routes(&host), peers);
    }
    let running = running.expect("it was started");
    // nsenter has become the program.
    let process = running.0.id();
    rows.ratio("start to all programmed", common::quantile(&mut starts, 0.5), common::quantile(&mut floors, 0.5), "s");
    rows.figure("peak memory of the start", common::memory(process, "VmHWM"), "MB");

    // What the start has set off comes to rest first.
    thread::sleep(Duration::from_secs(5));
    rows.figure("settled memory", common::memory(process, "VmRSS"), "MB");
    let changes = watch(&host);
    let mut times = Vec::new();
    let before = common::cpu(process);
    for number in 1..=CHANGES {
        let begin = Instant::now();
        server.put(node(number * (peers / CHANGES), 1)).expect("a Node");
        let there = changes.recv_timeout(Duration::from_secs(20)).expect("it is written");
        times.push((there - begin).as_secs_f64() * 1e3);
        thread::sleep(Duration::from_millis(37));
        changes.try_iter().for_each(drop);
    }
    rows.figure("one peer changed, from the API to the kernel, p50", common::quantile(&mut times, 0.5), "ms");
    rows.figure("the same, p99", common::quantile(&mut times, 0.99), "ms");
    rows.figure("CPU of one change", (common::cpu(process) - before) / CHANGES as f64, "ms");
    let before = common::cpu(process);
    for number in 0..HEARTBEATS {
        let mut beat = node(1 + number % peers, usize::from((1 + number % peers).is_multiple_of(peers / CHANGES)));
        beat["status"]["conditions"][0]["lastHeartbeatTime"] = json!(format!("2026-01-01T00:{:02}:{:02}Z", number / 60 % 60, number % 60));
        server.put(beat).expect("a Node");
    }
    thread::sleep(Duration::from_secs(2));
    rows.figure("CPU of 1000 heartbeats of Nodes", (common::cpu(process) - before) / (HEARTBEATS as f64 / 1e3), "ms");
    rows.figure("peak memory in all", common::memory(process, "VmHWM"), "MB");
}
