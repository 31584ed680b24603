//! Measures the pod network of one node among thousands of peers, in network namespaces: the start until every peer has its entries, the
//! change of one Node until it is in the kernel, and memory. The floor is one `ip -batch` and one `bridge -batch` of the same entries in the
//! same run.
//!
//! - `SEPAL_BENCH_PEERS=5000,20000` sets the numbers of peers.
//! - `SEPAL_BENCH_KEEP=benches/README.md` writes the figures into the table of that file.

#![allow(
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    missing_docs,
    reason = "a measuring tool: it starts programs, waits, and prints"
)]

use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use sepal::netlink::monitor::{KernelEvent, Monitor};
use sepal_apiserver::ApiServer;
use sepal_lab::figures::{self, Rows, Table};
use sepal_lab::peers::{count_routes, new_host, node_object, time_iproute2, with_heartbeat};
use sepal_lab::{Netns, Running};
use tempfile::TempDir;

const SEPAL: &str = env!("CARGO_BIN_EXE_sepal");
/// Number of measured starts. The median counts.
const STARTS: usize = 3;
/// Number of peers that are changed, one after the other.
const CHANGES: usize = 60;
/// Number of heartbeats over which CPU time is measured.
const HEARTBEATS: usize = 5_000;

fn main() {
    let mut table = Table::new(&["peers"]);
    let peers = std::env::var("SEPAL_BENCH_PEERS").unwrap_or_else(|_| "5000".into());
    for peers in peers.split(',').filter(|peers| !peers.is_empty()) {
        measure(peers.parse().expect("a number"), &mut table.rows(&[peers.to_owned()]));
        table.update_file();
    }
    println!("\n{}", table.text());
}

/// Starts sepal with only the pod network.
fn start_sepal(host: &Netns, url: &str, folder: &Path) -> Running {
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

/// Waits for subnet.env, which sepal writes when every peer has its entries.
fn wait_for_subnet_env(folder: &Path) {
    let limit = Instant::now() + Duration::from_secs(300);
    while !folder.join("subnet.env").exists() {
        assert!(Instant::now() < limit, "sepal writes subnet.env in time");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Watches the FDB. The channel receives the time of each added or changed entry.
fn watch_fdb(host: &Netns) -> Receiver<Instant> {
    let (sender, changes) = channel();
    let (ready, listening) = channel();
    drop(host.spawn_thread(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("the runtime starts");
        runtime.block_on(async {
            let mut monitor = Monitor::open().expect("the netlink socket opens");
            ready.send(()).expect("the caller waits");
            while let Ok(events) = monitor.next().await {
                let new = |event: &KernelEvent| matches!(event, KernelEvent::Fdb { gone: false, .. });
                if events.iter().any(new) && sender.send(Instant::now()).is_err() {
                    return;
                }
            }
        });
    }));
    listening.recv().expect("the thread listens");
    changes
}

fn measure(peers: usize, rows: &mut Rows<'_>) {
    let host = new_host();
    let listener = host.run_thread(|| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    let server =
        ApiServer::serve_objects(listener, (0..=peers).map(|number| node_object(number, 0)).collect()).expect("the API server starts");
    let folder = TempDir::new().expect("a temporary folder");
    let (mut starts, mut floors) = (Vec::new(), Vec::new());
    let mut running = None;
    for _ in 0..STARTS {
        floors.push(time_iproute2(peers, folder.path()));
        drop(running.take());
        host.run("ip link del flannel.1 2>/dev/null || true");
        let _ = std::fs::remove_file(folder.path().join("subnet.env"));
        let begin = Instant::now();
        running = Some(start_sepal(&host, &server.url(), folder.path()));
        wait_for_subnet_env(folder.path());
        starts.push(begin.elapsed().as_secs_f64());
        assert_eq!(count_routes(&host), peers);
    }
    let running = running.expect("sepal was started");
    // nsenter executes sepal in its own process, so this is sepal's process id.
    let process = running.0.id();
    rows.ratio("start to all programmed", figures::quantile(&mut starts, 0.5), figures::quantile(&mut floors, 0.5), "s");
    rows.figure("peak memory of the start", figures::read_memory_mb(process, "VmHWM"), "MB");

    // Wait until the work of the start is done.
    thread::sleep(Duration::from_secs(5));
    rows.figure("settled memory", figures::read_memory_mb(process, "VmRSS"), "MB");
    let changes = watch_fdb(&host);
    let mut times = Vec::new();
    let before = figures::read_cpu_ms(process);
    for number in 1..=CHANGES {
        let begin = Instant::now();
        server.put(node_object(number * (peers / CHANGES), 1)).expect("the API server accepts the Node");
        let written = changes.recv_timeout(Duration::from_secs(20)).expect("the entry is written");
        times.push((written - begin).as_secs_f64() * 1e3);
        thread::sleep(Duration::from_millis(37));
        changes.try_iter().for_each(drop);
    }
    rows.figure("one peer changed, from the API to the kernel, p50", figures::quantile(&mut times, 0.5), "ms");
    rows.figure("the same, p99", figures::quantile(&mut times, 0.99), "ms");
    rows.figure("CPU of one change", (figures::read_cpu_ms(process) - before) / CHANGES as f64, "ms");
    let before = figures::read_cpu_ms(process);
    for number in 0..HEARTBEATS {
        let peer = 1 + number % peers;
        let generation = usize::from(peer.is_multiple_of(peers / CHANGES));
        server.put(with_heartbeat(node_object(peer, generation), number)).expect("the API server accepts the Node");
    }
    thread::sleep(Duration::from_secs(2));
    rows.figure("CPU of 1000 heartbeats of Nodes", (figures::read_cpu_ms(process) - before) / (HEARTBEATS as f64 / 1e3), "ms");
    rows.figure("peak memory in all", figures::read_memory_mb(process, "VmHWM"), "MB");
}
