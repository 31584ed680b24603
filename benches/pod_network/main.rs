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

use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use sepal::netlink::monitor::{Event, Monitor};
use sepal_apiserver::ApiServer;
use sepal_lab::figures::{self, Rows, Table};
use sepal_lab::peers::{beating, floor, host, node, routes};
use sepal_lab::{Netns, Running};
use tempfile::TempDir;

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
    rows.ratio("start to all programmed", figures::quantile(&mut starts, 0.5), figures::quantile(&mut floors, 0.5), "s");
    rows.figure("peak memory of the start", figures::memory(process, "VmHWM"), "MB");

    // What the start has set off comes to rest first.
    thread::sleep(Duration::from_secs(5));
    rows.figure("settled memory", figures::memory(process, "VmRSS"), "MB");
    let changes = watch(&host);
    let mut times = Vec::new();
    let before = figures::cpu(process);
    for number in 1..=CHANGES {
        let begin = Instant::now();
        server.put(node(number * (peers / CHANGES), 1)).expect("a Node");
        let there = changes.recv_timeout(Duration::from_secs(20)).expect("it is written");
        times.push((there - begin).as_secs_f64() * 1e3);
        thread::sleep(Duration::from_millis(37));
        changes.try_iter().for_each(drop);
    }
    rows.figure("one peer changed, from the API to the kernel, p50", figures::quantile(&mut times, 0.5), "ms");
    rows.figure("the same, p99", figures::quantile(&mut times, 0.99), "ms");
    rows.figure("CPU of one change", (figures::cpu(process) - before) / CHANGES as f64, "ms");
    let before = figures::cpu(process);
    for number in 0..HEARTBEATS {
        let peer = 1 + number % peers;
        server.put(beating(node(peer, usize::from(peer.is_multiple_of(peers / CHANGES))), number)).expect("a Node");
    }
    thread::sleep(Duration::from_secs(2));
    rows.figure("CPU of 1000 heartbeats of Nodes", (figures::cpu(process) - before) / (HEARTBEATS as f64 / 1e3), "ms");
    rows.figure("peak memory in all", figures::memory(process, "VmHWM"), "MB");
}
