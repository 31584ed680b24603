//! `sepal-lab scale`: one real node in a large simulated cluster. It runs the service proxy and the pod network, and this module measures
//! what the start and changes cost. The benchmarks measure the same figures for each part alone and compare them with a floor.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use sepal_apiserver::ApiServer;

use crate::cluster::Cluster;
use crate::figures::{Rows, Table, quantile, read_cpu_ms, read_memory_mb};
use crate::http;
use crate::netns::{NAMESPACE_FLAGS, Netns, Running, wait_until, wait_until_within};
use crate::peers::{new_host, node_object, with_heartbeat};
use crate::servers::{SERVERS, serve_endpoints, service_address, wait_for_server};

const HEALTH: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10256);
/// Number of timed changes of each kind.
const CHANGES: usize = 30;
/// Number of heartbeats over which CPU time is measured.
const HEARTBEATS: usize = 2_000;
/// Time over which the CPU time of an idle daemon is measured.
const IDLE_TIME: Duration = Duration::from_secs(10);
/// Index of the Service whose endpoint is moved between two servers.
const MOVED: usize = 0;

/// The size of the simulated cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Number of peers. At least as many as are changed.
    pub nodes: usize,
    /// Number of ClusterIP Services, at least one.
    pub services: usize,
    /// Number of endpoints per Service.
    pub endpoints: usize,
}

/// Runs the measurement, prints each figure at once, and returns the table.
///
/// # Panics
/// If the node cannot be set up, or a change does not arrive within minutes.
pub fn run(sepal: &Path, size: Size) -> String {
    assert!(size.nodes >= CHANGES && size.services > 0, "scale needs at least {CHANGES} nodes and one Service");
    let mut table = Table::new(&["nodes", "services"]);
    let label = [size.nodes.to_string(), format!("{}x{}", size.services, size.endpoints)];
    measure(sepal, size, &mut table.rows(&label));
    table.text()
}

fn measure(sepal: &Path, size: Size, rows: &mut Rows<'_>) {
    let host = new_host();
    serve_endpoints(&host);
    let cluster = Cluster::new(size.services, size.endpoints);
    let services = cluster.objects().filter(|object| object["kind"] != "Node");
    let objects = (0..=size.nodes).map(|number| node_object(number, 0)).chain(services).collect();
    let server = host.run_thread(move || {
        ApiServer::serve_objects(TcpListener::bind("127.0.0.1:0").expect("a free port"), objects).expect("the API server starts")
    });
    let folder = tempfile::tempdir().expect("a temporary folder");

    let begin = Instant::now();
    let running = start(sepal, &host, &server.url(), folder.path());
    // nsenter executes sepal in its own process, so this is sepal's process id.
    let process = running.0.id();
    let ready = || http::get(&host, HEALTH, "/readyz").is_ok_and(|answer| answer.status == 200);
    wait_until_within(Duration::from_secs(900), "everything is programmed", ready);
    rows.figure("start to everything programmed", begin.elapsed().as_secs_f64(), "s");
    rows.figure("peak memory of the start", read_memory_mb(process, "VmHWM"), "MB");
    sleep(Duration::from_secs(5));
    rows.figure("settled memory", read_memory_mb(process, "VmRSS"), "MB");

    let before = read_cpu_ms(process);
    let mut times = move_endpoints(&host, &server);
    rows.figure("one endpoint changed, p50 to the first connection", quantile(&mut times, 0.5), "ms");
    rows.figure("the same, p90", quantile(&mut times, 0.9), "ms");
    rows.figure("CPU of one such change", (read_cpu_ms(process) - before) / CHANGES as f64, "ms");
    let before = read_cpu_ms(process);
    let mut times = change_peers(&host, &server, size.nodes / CHANGES);
    rows.figure("one peer changed, p50 from the API to the kernel", quantile(&mut times, 0.5), "ms");
    rows.figure("the same, p90", quantile(&mut times, 0.9), "ms");
    rows.figure("CPU of one such change", (read_cpu_ms(process) - before) / CHANGES as f64, "ms");

    let before = read_cpu_ms(process);
    for beat in 0..HEARTBEATS {
        let peer = 1 + beat % size.nodes;
        let changed = peer.is_multiple_of(size.nodes / CHANGES) && peer / (size.nodes / CHANGES) <= CHANGES;
        server.put(with_heartbeat(node_object(peer, usize::from(changed)), beat)).expect("the API server accepts the Node");
    }
    sleep(Duration::from_secs(2));
    rows.figure("CPU of 1000 heartbeats of Nodes", (read_cpu_ms(process) - before) / (HEARTBEATS as f64 / 1e3), "ms");
    let before = read_cpu_ms(process);
    sleep(IDLE_TIME);
    rows.figure("CPU of a second in which nothing happens", (read_cpu_ms(process) - before) / IDLE_TIME.as_secs_f64(), "ms");
    rows.figure("peak memory in all", read_memory_mb(process, "VmHWM"), "MB");
}

fn start(sepal: &Path, host: &Netns, url: &str, folder: &Path) -> Running {
    std::fs::write(folder.join("net-conf.json"), r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#).expect("writable");
    let path = |name: &str| folder.join(name).display().to_string();
    let mut command = host.command(&sepal.display().to_string());
    command
        .args(["--pod-network", "--ip-masq", "--iptables-variant=nft", "--hostname-override=bench", "--master", url])
        .args(NAMESPACE_FLAGS)
        .arg(format!("--healthz-bind-address={HEALTH}"))
        .arg(format!("--net-config-path={}", path("net-conf.json")))
        .arg(format!("--subnet-file={}", path("subnet.env")));
    Running(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("sepal starts"))
}

/// Moves an endpoint between two servers. Returns the times, in ms, from the changed EndpointSlice to the first connection to the new
/// endpoint.
fn move_endpoints(host: &Netns, server: &ApiServer) -> Vec<f64> {
    let change = |number: usize| {
        let to = SERVERS[number % 2];
        let begin = Instant::now();
        server.put(Cluster::slice(MOVED, &[to.to_string()])).expect("the API server accepts the EndpointSlice");
        wait_for_server(host, service_address(MOVED), to);
        let milliseconds = begin.elapsed().as_secs_f64() * 1e3;
        sleep(Duration::from_millis(100));
        milliseconds
    };
    (0..CHANGES).map(change).collect()
}

/// Changes every `step`th Node. Returns the times, in ms, from the changed Node to its FDB entry in the kernel.
fn change_peers(host: &Netns, server: &ApiServer, step: usize) -> Vec<f64> {
    let (mut monitor, entries) = watch_fdb(host);
    let change = |number: usize| {
        let begin = Instant::now();
        server.put(node_object(number * step, 1)).expect("the API server accepts the Node");
        let written = entries.recv_timeout(Duration::from_secs(60)).expect("the entry is written");
        sleep(Duration::from_millis(37));
        entries.try_iter().for_each(drop);
        (written - begin).as_secs_f64() * 1e3
    };
    let times = (1..=CHANGES).map(change).collect();
    let _ = monitor.0.kill();
    times
}

/// Starts `bridge monitor`. The channel receives the time of each new FDB entry of flannel.1.
fn watch_fdb(host: &Netns) -> (Running, Receiver<Instant>) {
    let mut child = host.command("bridge").args(["monitor", "fdb"]).stdout(Stdio::piped()).spawn().expect("bridge (iproute2) is installed");
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
    // `bridge monitor` does not report when it is listening, but the kernel lists its socket with the groups that it receives.
    let process = child.id().to_string();
    let listens = |line: &str| {
        let mut words = line.split_whitespace().skip(2);
        words.next() == Some(&process) && words.next().is_some_and(|groups| groups.contains(|digit| digit != '0'))
    };
    wait_until("bridge monitor listens", || host.run("cat /proc/net/netlink").lines().any(listens));
    (Running(child), entries)
}
