//! From the API server to the kernel, end to end, in a network namespace: what sepal needs, and what a bare iptables-restore (or
//! iptables-save) of the same content needs in the same run. Prints a table; figures that depend on the machine are only worth their ratio.
//!
//! `SEPAL_BENCH=1000x10,10000x3` chooses the clusters (services x endpoints), `SEPAL_BENCH_VARIANTS=nft` the variants.

#![allow(
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    missing_docs,
    reason = "an instrument: it starts programs, waits, and prints"
)]

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use sepal::agent::facts::described_facts;
use sepal::cluster::Family;
use sepal::config::settings::{Asked, HostFacts};
use sepal::netlink::record::FakeHost;
use sepal::rules::Renderer;
use sepal::rules::inputs::Inputs;
use sepal::source::manifests::Manifests;
use sepal::table::acknowledged::Acknowledged;
use sepal::table::desired::{Desired, Refresh};
use sepal::table::plan::Variant;
use sepal::table::planner::{self, Wanted};
use sepal_apiserver::ApiServer;
use sepal_lab::{Cluster, IN_NAMESPACE, Netns};

const SEPAL: &str = env!("CARGO_BIN_EXE_sepal");
/// Single changes that are timed, and whose CPU is counted.
const CHANGES: usize = 200;
/// The service whose endpoints are moved between two servers.
const MOVED: usize = 7;
/// The addresses of those servers.
const SERVERS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 255, 0, 1), Ipv4Addr::new(10, 255, 0, 2)];

fn main() {
    let clusters = std::env::var("SEPAL_BENCH").unwrap_or_else(|_| "1000x10,10000x3".into());
    let variants = std::env::var("SEPAL_BENCH_VARIANTS").unwrap_or_else(|_| "nft,legacy".into());
    let mut table = String::from("| cluster | variant | what | sepal | floor | ratio |\n|---|---|---|---|---|---|\n");
    for cluster in clusters.split(',') {
        let (services, endpoints) = cluster.split_once('x').expect("SERVICESxENDPOINTS");
        let cluster = Cluster { services: services.parse().expect("a number"), endpoints: endpoints.parse().expect("a number") };
        for variant in [Variant::Nft, Variant::Legacy].into_iter().filter(|variant| variants.contains(variant.as_str())) {
            for row in measure(cluster, variant) {
                let floor = row.floor.map_or("-".into(), |floor| format!("{floor:.3} {}", row.unit));
                let ratio = row.floor.map_or("-".into(), |floor| format!("{:.2}", row.sepal / floor));
                let line = format!(
                    "| {}x{} | {variant} | {} | {:.3} {} | {floor} | {ratio} |\n",
                    cluster.services, cluster.endpoints, row.what, row.sepal, row.unit
                );
                print!("{line}");
                table += &line;
            }
        }
    }
    println!("\n{table}");
}

struct Row {
    what: &'static str,
    sepal: f64,
    floor: Option<f64>,
    unit: &'static str,
}

/// A running sepal and what it logs.
struct Sepal {
    child: Child,
    log: Receiver<String>,
}

impl Sepal {
    fn start(node: &Netns, server: &ApiServer, variant: Variant) -> Self {
        let kubeconfig = std::env::temp_dir().join(format!("sepal-bench-{}", std::process::id()));
        std::fs::write(&kubeconfig, server.kubeconfig()).expect("writable");
        let mut command = node.command(SEPAL);
        // Without audits, whose share of the time is bounded by itself: what is measured is the cost of changes.
        command
            .arg("run")
            .args(IN_NAMESPACE)
            .args(["--hostname-override=bench", "--iptables-sync-period=1h", "--iptables-variant", variant.as_str()])
            .env("KUBECONFIG", kubeconfig);
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("sepal starts");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (sender, log) = channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, log }
    }

    /// Waits until it logs this of IPv4.
    fn logs(&self, text: &str) {
        let limit = Instant::now() + Duration::from_secs(600);
        loop {
            let line = self.log.recv_timeout(limit - Instant::now()).expect("it is said in time");
            if line.contains("ipv4: ") && line.contains(text) {
                return;
            }
        }
    }

    /// A figure of `/proc/PID/status`, in MB.
    fn memory(&self, name: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with(name)).expect("the kernel says so");
        line.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).expect("a number") / 1024.0
    }

    /// CPU time of the process itself, without its children's, in ms.
    fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/schedstat", self.child.id())).expect("it runs");
        stat.split_whitespace().next().and_then(|ns| ns.parse::<f64>().ok()).expect("a number") / 1e6
    }
}

impl Drop for Sepal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn measure(cluster: Cluster, variant: Variant) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut row = |what, sepal: f64, floor: Option<f64>, unit| rows.push(Row { what, sepal, floor, unit });

    let (cold, inputs, facts) = cold_input(cluster, variant);
    let floor_node = Netns::new();
    let floor = restore(&floor_node, variant, &cold);

    let node = Netns::new();
    serve_endpoints(&node);
    let objects: Vec<_> = cluster.objects().collect();
    let server =
        node.within(move || ApiServer::serve_objects(TcpListener::bind("127.0.0.1:0").expect("a free port"), objects).expect("it serves"));
    let start = Instant::now();
    let sepal = Sepal::start(&node, &server, variant);
    sepal.logs("chains written");
    row("start to everything written", start.elapsed().as_secs_f64(), Some(floor), "s");
    std::thread::sleep(Duration::from_secs(3));
    row("peak memory after the start", sepal.memory("VmHWM"), None, "MB");

    // One endpoint changed.
    let to = SocketAddr::new(Cluster::cluster_ip(MOVED).parse().expect("an address"), 80);
    let move_to = |server: &ApiServer, which: usize| server.put(Cluster::slice(MOVED, &[SERVERS[which].to_string()])).expect("a slice");
    move_to(&server, 0);
    wait_for(&node, to, SERVERS[0]);
    let cpu = sepal.cpu();
    let mut times = Vec::new();
    for change in 1..=CHANGES {
        move_to(&server, change % 2);
        let start = Instant::now();
        wait_for(&node, to, SERVERS[change % 2]);
        times.push(start.elapsed().as_secs_f64() * 1e3);
        std::thread::sleep(Duration::from_millis(30).max(start.elapsed()));
    }
    let cpu = (sepal.cpu() - cpu) / CHANGES as f64;
    let mut floors: Vec<f64> = (0..20).map(|i| restore(&floor_node, variant, &one_service(&inputs, &facts, i)) * 1e3).collect();
    row("one endpoint changed, p50 to the first connection", quantile(&mut times, 0.5), Some(quantile(&mut floors, 0.5)), "ms");
    row("the same, p90", quantile(&mut times, 0.9), Some(quantile(&mut floors, 0.5)), "ms");
    row("CPU of one change", cpu, None, "ms");

    // A service added and removed.
    let new = cluster.services + 1;
    let mut times = Vec::new();
    let mut removals = Vec::new();
    for _ in 0..10 {
        while sepal.log.try_recv().is_ok() {}
        let start = Instant::now();
        server.load(vec![Cluster::service(new), Cluster::slice(new, &[SERVERS[0].to_string()])]).expect("objects");
        wait_for(&node, SocketAddr::new(Cluster::cluster_ip(new).parse().expect("an address"), 80), SERVERS[0]);
        times.push(start.elapsed().as_secs_f64() * 1e3);
        std::thread::sleep(Duration::from_secs(1));
        while sepal.log.try_recv().is_ok() {}
        let start = Instant::now();
        server.remove("services", &format!("bench/{}", Cluster::name(new)));
        sepal.logs("deleted");
        removals.push(start.elapsed().as_secs_f64() * 1e3);
        server.remove("endpointslices", &format!("bench/{}-x7k2p", Cluster::name(new)));
        std::thread::sleep(Duration::from_secs(1));
    }
    row("a service added, p50 to the first connection", quantile(&mut times, 0.5), None, "ms");
    row("a service removed, p50 to written", quantile(&mut removals, 0.5), None, "ms");

    // Many at once.
    let many = 1000.min(cluster.services - MOVED - 1);
    let slices: Vec<_> = (0..many).map(|i| Cluster::slice(MOVED + 1 + i, &[Cluster::endpoint_ip(MOVED + 1 + i, 200)])).collect();
    let start = Instant::now();
    server.load(slices).expect("slices");
    move_to(&server, (CHANGES + 1) % 2);
    wait_for(&node, to, SERVERS[(CHANGES + 1) % 2]);
    row("1000 endpoints changed at once", start.elapsed().as_secs_f64(), Some(floor), "s, beside the floor of everything");
    std::thread::sleep(Duration::from_secs(2));
    row("peak memory in all", sepal.memory("VmHWM"), None, "MB");
    row("settled memory", sepal.memory("VmRSS"), None, "MB");

    // Restart with nothing changed.
    drop(sepal);
    let saving = Instant::now();
    for table in ["nat", "filter"] {
        node.run(&format!("iptables-{variant}-save -t {table} > /dev/null"));
    }
    let floor = saving.elapsed().as_secs_f64();
    let start = Instant::now();
    let sepal = Sepal::start(&node, &server, variant);
    sepal.logs("as they should be");
    row("restart, to known unchanged", start.elapsed().as_secs_f64(), Some(floor), "s");
    std::thread::sleep(Duration::from_secs(1));
    row("peak memory of the restart", sepal.memory("VmHWM"), None, "MB");
    rows
}

/// The input that fills empty tables in the best shape there is, and what it was made of.
fn cold_input(cluster: Cluster, variant: Variant) -> (String, Inputs, HostFacts) {
    let mut manifests = Manifests::default();
    manifests.add("cluster", &cluster.manifest()).expect("well formed");
    let inputs = manifests.into_inputs(&Asked { host_name: "bench".into(), ..Asked::default() });
    let facts = described_facts(&inputs, &FakeHost::default(), true).expect("facts");
    let mut desired = Desired::default();
    let counter = Renderer::new(&inputs, &facts, Family::V4);
    desired.count(&counter, Refresh::All);
    let renderer = counter.for_size(desired.endpoints());
    let all = desired.refresh(&renderer, Refresh::All);
    let wanted = Wanted { services: desired.services(), fixed: &desired.fixed, spared: &[] };
    let text = planner::plan(&wanted, &Acknowledged::default(), &all, variant, planner::CHAINS_PER_TRANSACTION).text(&renderer);
    (text, inputs, facts)
}

/// The input that rewrites one service's chains.
fn one_service(inputs: &Inputs, facts: &HostFacts, index: usize) -> String {
    let renderer = Renderer::new(inputs, facts, Family::V4);
    let (key, _) = inputs.snapshot.services().nth(index).expect("a service");
    let mut text = String::from("*nat\n");
    for rules in renderer.service(key) {
        for (chain, _) in rules.chains() {
            let _ = writeln!(text, ":{chain} - [0:0]");
        }
        text.extend(rules.chains().map(|(_, rules)| rules));
    }
    text + "COMMIT\n"
}

/// How long a bare iptables-restore takes with this input, in seconds.
fn restore(node: &Netns, variant: Variant, input: &str) -> f64 {
    let path = std::env::temp_dir().join(format!("sepal-bench-input-{}", std::process::id()));
    File::create(&path).and_then(|mut file| file.write_all(input.as_bytes())).expect("writable");
    let mut command = node.command(&format!("iptables-{variant}-restore"));
    command.args(["-w", "5", "--noflush", "--counters"]).stdin(File::open(&path).expect("readable"));
    let start = Instant::now();
    assert!(command.status().expect("it starts").success(), "iptables-restore takes its input");
    start.elapsed().as_secs_f64()
}

/// Servers on addresses of the node's own; each says which it is.
fn serve_endpoints(node: &Netns) {
    node.run(
        "ip link add beyond type veth peer name horizon; ip link set beyond up; ip link set horizon up; ip route add default dev beyond",
    );
    for ip in SERVERS {
        node.run(&format!("ip addr add {ip}/32 dev lo"));
        let listener = node.within(move || TcpListener::bind((ip, 8080)).expect("free"));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = { stream }.write_all(ip.to_string().as_bytes());
            }
        });
    }
}

/// Connects until the server that answers is this one.
fn wait_for(node: &Netns, to: SocketAddr, server: Ipv4Addr) {
    let wanted = server.to_string();
    node.within(move || {
        let limit = Instant::now() + Duration::from_secs(120);
        loop {
            let mut said = String::new();
            if let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_millis(20)) {
                let _ = stream.read_to_string(&mut said);
            }
            if said == wanted {
                return;
            }
            assert!(Instant::now() < limit, "the change never arrives");
        }
    });
}

fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let place = (0..values.len()).find(|place| (place + 1) as f64 >= part * values.len() as f64);
    values[place.expect("there are values")]
}
