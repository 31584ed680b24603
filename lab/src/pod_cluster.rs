//! Nodes on one switch, each with a sepal daemon, an API server for all of them, and a host outside the cluster.
//!
//! ```text
//!   node-1 .1   node-2 .2   ...        API server .254
//!      │           │                        │
//!   ───┴───────────┴── switch, 192.168.77.0/24, fd77::/64 ──┬──
//!                                                           │
//!                              outside .200, 203.0.113.10, 2001:db8::10
//! ```

use std::cell::{Cell, RefCell};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use sepal_apiserver::ApiServer;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http::get;
use crate::netns::{LIMIT, NAMESPACE_FLAGS, Netns, Running};
use crate::pod::{Pod, serve};

/// Addresses of the servers outside the cluster.
pub(crate) const OUTSIDE: [&str; 2] = ["203.0.113.10", "2001:db8::10"];
/// The pod networks, IPv4 first.
pub const NETWORKS: [&str; 2] = ["10.244.0.0/16", "fd10:244::/32"];
const API: &str = "192.168.77.254:6443";
const HEALTH: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10256);
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);

/// The IP families of a pod network. The nodes always have both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// Only IPv4.
    V4,
    /// Only IPv6.
    V6,
    /// Both.
    Dual,
}

impl Families {
    /// Returns the values of these families, IPv4 first.
    pub fn of<T>(self, v4: T, v6: T) -> Vec<T> {
        match self {
            Self::V4 => vec![v4],
            Self::V6 => vec![v6],
            Self::Dual => vec![v4, v6],
        }
    }
}

/// The configuration of a [`PodCluster`].
#[derive(Clone, Debug)]
pub struct Layout {
    /// Number of nodes, at most 100.
    pub nodes: u8,
    /// The families of the pod network.
    pub families: Families,
    /// `Backend` in net-conf.json.
    pub backend: Value,
    /// Whether the Nodes have podCIDRs.
    pub assigned: bool,
}

impl Layout {
    /// Returns a layout of nodes with podCIDRs and VXLAN.
    pub fn vxlan(nodes: u8, families: Families) -> Self {
        Self { nodes, families, backend: json!({"Type": "vxlan"}), assigned: true }
    }

    /// Returns the content of net-conf.json.
    pub fn net_conf(&self) -> Value {
        let (v4, v6) = (self.families != Families::V6, self.families != Families::V4);
        json!({"EnableIPv4": v4, "EnableIPv6": v6, "Network": NETWORKS[0], "IPv6Network": NETWORKS[1], "Backend": self.backend})
    }

    /// Returns the initial Node object of a node.
    pub fn node(&self, number: u8) -> Value {
        let cidrs =
            if self.assigned { self.families.of(format!("10.244.{number}.0/24"), format!("fd10:244:{number}::/64")) } else { vec![] };
        let address = |ip: String| json!({"type": "InternalIP", "address": ip});
        let mut node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name(number), "uid": format!("uid-{number}"), "creationTimestamp": format!("2026-01-01T00:00:{number:02}Z")},
            "spec": {}, "status": {"addresses": [address(format!("192.168.77.{number}")), address(format!("fd77::{number}"))]},
        });
        if let Some(first) = cidrs.first() {
            node["spec"] = json!({"podCIDR": first, "podCIDRs": cidrs});
        }
        node
    }
}

fn name(number: u8) -> String {
    format!("node-{number}")
}

/// A cluster of nodes in network namespaces.
#[derive(Debug)]
pub struct PodCluster {
    /// The configuration.
    pub layout: Layout,
    /// The API server.
    pub server: ApiServer,
    /// The host outside the cluster, behind the nodes' default route. It runs the same servers as a pod.
    pub outside: Pod,
    /// The nodes in the order of their numbers. The first number is 1.
    pub nodes: Vec<PodNode>,
    /// The switch that connects the nodes. The API server listens in this namespace.
    pub switch: Netns,
    _folder: TempDir,
}

impl PodCluster {
    /// Creates the cluster. It does not start the program on the nodes yet.
    pub fn new(program: &Path, layout: Layout) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder for the nodes' files");
        let switch = Netns::new();
        switch.run(
            "ip link add br0 type bridge mcast_snooping 0; ip link set br0 up
             ip addr add 192.168.77.254/24 dev br0; ip addr add fd77::254/64 dev br0 nodad",
        );
        let server =
            switch.run_thread(|| ApiServer::serve(TcpListener::bind(API).expect("the port is free")).expect("the API server starts"));
        server.load((1..=layout.nodes).map(|number| layout.node(number)).collect()).expect("the API server accepts the Nodes");
        let outside = Netns::new();
        plug(&switch, &outside, "outside", 200);
        outside.run(&format!("ip addr add {}/32 dev lo; ip addr add {}/128 dev lo nodad", OUTSIDE[0], OUTSIDE[1]));
        let outside = Pod { netns: outside, ips: OUTSIDE.map(|ip| ip.parse().expect("an address")).into() };
        serve(&outside.netns, &outside.ips);
        let node = |number| PodNode::new(program, number, &switch, folder.path(), &server.url(), &layout);
        let nodes = (1..=layout.nodes).map(node).collect();
        Self { layout, server, outside, nodes, switch, _folder: folder }
    }

    /// Starts the program on every node with these additional flags, and waits until all are ready.
    pub fn start(&self, flags: &[&str]) {
        self.nodes.iter().for_each(|node| node.start(flags));
        self.nodes.iter().for_each(PodNode::wait_ready);
    }

    /// Changes the Node object of a node.
    pub fn change_node(&self, number: u8, change: impl FnOnce(&mut Value)) {
        let mut node = self.node(number);
        change(&mut node);
        self.server.put(node).expect("the API server accepts the Node");
    }

    /// Returns the current Node object of a node.
    pub fn node(&self, number: u8) -> Value {
        self.server.get("nodes", &name(number)).expect("the Node exists")
    }
}

/// Connects a namespace with the switch. The number is the last part of its addresses.
fn plug(switch: &Netns, netns: &Netns, port: &str, number: u8) {
    // The addresses are unique, so duplicate address detection would only cost time.
    netns.run("sysctl -qw net.ipv6.conf.default.accept_dad=0");
    switch.link(port, netns, "eth0");
    switch.run(&format!("ip link set {port} master br0"));
    netns.run(&format!("ip addr add 192.168.77.{number}/24 dev eth0; ip addr add fd77::{number}/64 dev eth0 nodad"));
}

/// A node and the program on it.
#[derive(Debug)]
pub struct PodNode {
    /// The node's network namespace.
    pub netns: Netns,
    /// The node's name.
    pub name: String,
    number: u8,
    folder: PathBuf,
    program: PathBuf,
    master: String,
    running: RefCell<Option<Running>>,
    flags: RefCell<Vec<String>>,
    pods: Cell<u8>,
}

impl PodNode {
    fn new(program: &Path, number: u8, switch: &Netns, folder: &Path, master: &str, layout: &Layout) -> Self {
        let netns = Netns::new();
        plug(switch, &netns, &name(number), number);
        netns.run(
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
             ip route add default via 192.168.77.200; ip -6 route add default via fd77::200",
        );
        let folder = folder.join(name(number));
        fs::create_dir(&folder).expect("the folder can be created");
        let node = Self {
            netns,
            name: name(number),
            number,
            folder,
            program: program.to_owned(),
            master: master.to_owned(),
            running: RefCell::default(),
            flags: RefCell::default(),
            pods: Cell::new(0),
        };
        node.configure(&layout.net_conf());
        node
    }

    /// Returns the path of one of the node's files.
    pub(crate) fn file(&self, name: &str) -> String {
        self.folder.join(name).to_string_lossy().into_owned()
    }

    /// Returns the path of the program under test.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// Replaces net-conf.json atomically.
    pub fn configure(&self, net_conf: &Value) {
        fs::write(self.file("net-conf.new"), net_conf.to_string()).expect("writable");
        fs::rename(self.file("net-conf.new"), self.file("net-conf.json")).expect("writable");
    }

    /// Starts the program with these additional flags.
    pub fn start(&self, flags: &[&str]) {
        *self.flags.borrow_mut() = flags.iter().map(|flag| (*flag).to_owned()).collect();
        self.start_again();
    }

    /// Starts the program with the same flags as before.
    pub fn start_again(&self) {
        let log = fs::File::options().create(true).append(true).open(self.file("log")).expect("writable");
        let mut command = self.netns.command(&self.program.to_string_lossy());
        command
            .args(["--pod-network", "--ip-masq", "--iptables-variant=nft", "--master", &self.master, "--hostname-override", &self.name])
            .args(["--net-config-path", &self.file("net-conf.json"), "--subnet-file", &self.subnet_file().to_string_lossy()])
            .arg(format!("--healthz-bind-address={HEALTH}"))
            .arg(format!("--metrics-bind-address={METRICS}"))
            .args(NAMESPACE_FLAGS)
            .args(&*self.flags.borrow())
            .stdin(Stdio::null())
            .stderr(log);
        *self.running.borrow_mut() = Some(Running(command.spawn().expect("the program starts")));
    }

    /// Ends the program by SIGTERM and returns its exit status. Returns `None` if it was not running.
    pub fn stop(&self) -> Option<i32> {
        self.running.take().and_then(Running::terminate)
    }

    /// Ends the program by SIGKILL if it is running.
    pub fn kill(&self) {
        drop(self.running.take());
    }

    /// Returns the process id of the program if it is running.
    pub(crate) fn process(&self) -> Option<u32> {
        // nsenter executes the program in its own process, so both have one process id.
        self.running.borrow().as_ref().map(|running| running.0.id())
    }

    /// Waits until every part of the program is ready.
    pub fn wait_ready(&self) {
        let start = Instant::now();
        while self.readiness().is_none_or(|(status, _)| status != 200) {
            let readiness = || self.readiness().map_or_else(|| "no answer".into(), |(_, text)| text);
            assert!(start.elapsed() < LIMIT, "{} is not ready:\n{}\n{}", self.name, readiness(), self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Returns the status and text of `/readyz?verbose`. Returns `None` if there is no answer.
    pub fn readiness(&self) -> Option<(u16, String)> {
        get(&self.netns, HEALTH, "/readyz?verbose").ok().map(|answer| (answer.status, answer.body))
    }

    /// Returns the metrics, or an empty text if there is no answer.
    pub fn metrics(&self) -> String {
        get(&self.netns, METRICS, "/metrics").map(|answer| answer.body).unwrap_or_default()
    }

    /// Returns everything that the program has logged, also before a restart.
    pub fn log(&self) -> String {
        fs::read_to_string(self.file("log")).unwrap_or_default()
    }

    /// Returns the path of subnet.env.
    pub fn subnet_file(&self) -> PathBuf {
        self.folder.join("run/flannel/subnet.env")
    }

    /// Returns the content of subnet.env, or an empty text if the file does not exist.
    pub fn subnet_env(&self) -> String {
        fs::read_to_string(self.subnet_file()).unwrap_or_default()
    }

    /// Returns the kernel state of the pod network and the content of subnet.env as a text that can be compared. Link indexes are left out.
    pub fn state(&self) -> String {
        let kernel = self.netns.run(
            "for link in $(ip -o link show type vxlan | sed 's/^[0-9]*: //; s/[:@].*//' | sort); do
                ip -d link show $link | sed 's/^[0-9]*: //; s/ qdisc [a-z]*//; s/ numtxqueues.*//; s/ qlen [0-9]*//'
                ip -o addr show $link scope global | sed 's/^[0-9]*: //'
                ip neigh show dev $link nud permanent | sed \"s/^/$link /\" | sort; bridge fdb show dev $link | sed \"s/^/$link /\" | sort
             done
             ip route | sort; ip -6 route | grep -v '^fe80' | sort
             for tool in iptables ip6tables; do $tool-nft-save | grep -e '^\\*' -e FLANNEL || true; done",
        );
        kernel.lines().map(|line| format!("{}\n", line.trim_end())).collect::<String>() + &self.subnet_env()
    }

    /// Creates a pod and connects it to the node's bridge as subnet.env says, without the plugin. The first pod creates the bridge.
    pub fn attach(&self) -> Pod {
        let env = self.subnet_env();
        let value = |key: &str| env.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let mtu = value("FLANNEL_MTU").expect("subnet.env contains the MTU");
        let gateways: Vec<&str> = ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"].into_iter().filter_map(value).collect();
        let networks: Vec<&str> = ["FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"].into_iter().filter_map(value).collect();
        let count = self.pods.get() + 1;
        self.pods.set(count);
        if count == 1 {
            self.netns.run(&format!("ip link add cni0 type bridge; ip link set cni0 mtu {mtu} up"));
            for gateway in &gateways {
                let options = if gateway.contains(':') { "nodad" } else { "brd +" };
                self.netns.run(&format!("ip addr add {gateway} {options} dev cni0"));
            }
        }
        let (netns, port) = (Netns::new(), format!("veth{count}"));
        netns.run("sysctl -qw net.ipv6.conf.default.accept_dad=0");
        self.netns.link(&port, &netns, "eth0");
        self.netns.run(&format!("ip link set {port} mtu {mtu} master cni0; bridge link set dev {port} hairpin on"));
        netns.run(&format!("ip link set eth0 mtu {mtu}"));
        let mut ips = Vec::new();
        for (gateway, network) in gateways.iter().zip(networks) {
            // The gateway has the subnet's first address. Pods have the next ones.
            let (first, length) = gateway.split_once('/').expect("an address and a length");
            let ip = match first.parse().expect("an address") {
                IpAddr::V4(ip) => IpAddr::V4((u32::from(ip) + u32::from(count)).into()),
                IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) + u128::from(count)).into()),
            };
            netns.run(&format!(
                "ip addr add {ip}/{length} dev eth0 {}; ip route add default via {first}; ip route add {network} via {first}",
                if ip.is_ipv6() { "nodad" } else { "" },
            ));
            ips.push(ip);
        }
        serve(&netns, &ips);
        Pod { netns, ips }
    }

    /// Returns the node's own address in the family of `other`.
    pub fn ip_like(&self, other: IpAddr) -> IpAddr {
        let number = self.number;
        let ip = if other.is_ipv4() { format!("192.168.77.{number}") } else { format!("fd77::{number}") };
        ip.parse().expect("an address")
    }
}
