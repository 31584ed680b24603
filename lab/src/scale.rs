//! `sepal-lab scale`: the rest of a large cluster simulated around one real node, which runs everything: what its start costs, and what
//! changes cost then. The figures are those of the benches; there each half is measured alone and beside its floor.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use sepal_apiserver::ApiServer;

use crate::figures::{Rows, Table, cpu, memory, quantile};
use crate::peers::{beating, host, node};
use crate::servers::{SERVERS, address, serve_endpoints, wait_for};
use crate::{Cluster, IN_NAMESPACE, Netns, Running, eventually_within, http};

const HEALTH: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10256);
/// Changes of each kind that are timed.
const CHANGES: usize = 30;
/// Heartbeats that are sent for the CPU time of one.
const HEARTBEATS: usize = 2_000;
/// How long nothing happens for the CPU time of doing nothing.
const REST: Duration = Duration::from_secs(10);
/// The service whose endpoints are moved between two servers.
const MOVED: usize = 0;

/// How large the cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Nodes beside the real one; at least as many as are changed.
    pub nodes: usize,
    /// ClusterIP Services; at least one.
    pub services: usize,
    /// Endpoints of each.
    pub endpoints: usize,
}

/// Measures; prints each figure when it is known, and gives the table.
///
/// # Panics
/// The node cannot be set up, or a change does not arrive within minutes.
pub fn run(sepal: &Path, size: Size) -> String {
    assert!(size.nodes >= CHANGES && size.services > 0, "{CHANGES} nodes and a service at least");
    let mut table = Table::new(&["nodes", "services"]);
    let of = [size.nodes.to_string(), format!("{}x{}", size.services, size.endpoints)];
    measure(sepal, size, &mut table.of(&of));
    table.text()
}

fn measure(sepal: &Path, size: Size, rows: &mut Rows<'_>) {
    let host = host();
    serve_endpoints(&host);
    let cluster = Cluster { services: size.services, endpoints: size.endpoints };
    let services = cluster.objects().filter(|object| object["kind"] != "Node");
    let objects = (0..=size.nodes).map(|number| node(number, 0)).chain(services).collect();
    let server =
        host.within(move || ApiServer::serve_objects(TcpListener::bind("127.0.0.1:0").expect("a free port"), objects).expect("it serves"));
    let folder = tempfile::tempdir().expect("a folder");

    let begin = Instant::now();
    let running = start(sepal, &host, &server.url(), folder.path());
    // nsenter has become the program.
    let process = running.0.id();
    let ready = || http::get(&host, HEALTH, "/readyz").is_ok_and(|answer| answer.status == 200);
    eventually_within(Duration::from_secs(900), "everything is programmed", ready);
    rows.figure("start to everything programmed", begin.elapsed().as_secs_f64(), "s");
    rows.figure("peak memory of the start", memory(process, "VmHWM"), "MB");
    sleep(Duration::from_secs(5));
    rows.figure("settled memory", memory(process, "VmRSS"), "MB");

    let before = cpu(process);
    let mut times = moved_endpoints(&host, &server);
    rows.figure("one endpoint changed, p50 to the first connection", quantile(&mut times, 0.5), "ms");
    rows.figure("the same, p90", quantile(&mut times, 0.9), "ms");
    rows.figure("CPU of one such change", (cpu(process) - before) / CHANGES as f64, "ms");
    let before = cpu(process);
    let mut times = changed_peers(&host, &server, size.nodes / CHANGES);
    rows.figure("one peer changed, p50 from the API to the kernel", quantile(&mut times, 0.5), "ms");
    rows.figure("the same, p90", quantile(&mut times, 0.9), "ms");
    rows.figure("CPU of one such change", (cpu(process) - before) / CHANGES as f64, "ms");

    let before = cpu(process);
    for beat in 0..HEARTBEATS {
        let peer = 1 + beat % size.nodes;
        let changed = peer.is_multiple_of(size.nodes / CHANGES) && peer / (size.nodes / CHANGES) <= CHANGES;
        server.put(beating(node(peer, usize::from(changed)), beat)).expect("a Node");
    }
    sleep(Duration::from_secs(2));
    rows.figure("CPU of 1000 heartbeats of Nodes", (cpu(process) - before) / (HEARTBEATS as f64 / 1e3), "ms");
    let before = cpu(process);
    sleep(REST);
    rows.figure("CPU of a second in which nothing happens", (cpu(process) - before) / REST.as_secs_f64(), "ms");
    rows.figure("peak memory in all", memory(process, "VmHWM"), "MB");
}

fn start(sepal: &Path, host: &Netns, url: &str, folder: &Path) -> Running {
    std::fs::write(folder.join("net-conf.json"), r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#).expect("writable");
    let path = |name: &str| folder.join(name).display().to_string();
    let mut command = host.command(&sepal.display().to_string());
    command
        .args(["--pod-network", "--ip-masq", "--iptables-variant=nft", "--hostname-override=bench", "--master", url])
        .args(IN_NAMESPACE)
        .arg(format!("--healthz-bind-address={HEALTH}"))
        .arg(format!("--net-config-path={}", path("net-conf.json")))
        .arg(format!("--subnet-file={}", path("subnet.env")));
    Running(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("sepal starts"))
}

/// Times, in ms, from a changed slice to the first connection to the endpoint that is in it.
fn moved_endpoints(host: &Netns, server: &ApiServer) -> Vec<f64> {
    let change = |number: usize| {
        let to = SERVERS[number % 2];
        let begin = Instant::now();
        server.put(Cluster::slice(MOVED, &[to.to_string()])).expect("a slice");
        wait_for(host, address(MOVED), to);
        let took = begin.elapsed().as_secs_f64() * 1e3;
        sleep(Duration::from_millis(100));
        took
    };
    (0..CHANGES).map(change).collect()
}

/// Times, in ms, from a changed Node to its entry in the kernel; every `step`th node is changed.
fn changed_peers(host: &Netns, server: &ApiServer, step: usize) -> Vec<f64> {
    let (mut monitor, entries) = watch(host);
    let change = |number: usize| {
        let begin = Instant::now();
        server.put(node(number * step, 1)).expect("a Node");
        let there = entries.recv_timeout(Duration::from_secs(60)).expect("it is written");
        sleep(Duration::from_millis(37));
        entries.try_iter().for_each(drop);
        (there - begin).as_secs_f64() * 1e3
    };
    let times = (1..=CHANGES).map(change).collect();
    let _ = monitor.0.kill();
    times
}

/// Tells when FDB entries come, from now on.
fn watch(host: &Netns) -> (Running, Receiver<Instant>) {
    let mut child = host.command("bridge").args(["monitor", "fdb"]).stdout(Stdio::piped()).spawn().expect("bridge (iproute2) is there");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let (sender, entries) = channel();
    thread::spawn(move || {
        let new = lines.map_while(Result::ok).filter(|line| !line.starts_with("Deleted") && line.contains("flannel.1"));
        for _ in new {
            if sender.send(Instant::now()).is_err() {
                return;
            }
        }
    });
    // It has no way to say that it listens.
    sleep(Duration::from_millis(300));
    (Running(child), entries)
}
