//! Nodes on one switch, each with the daemon that is tried, an API server that all of them reach, and the world outside behind a router.
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

use crate::IN_NAMESPACE;
use crate::http::get;
use crate::netns::{Netns, Running};
use crate::pod::{Pod, serve};

/// Addresses of the server outside.
pub const OUTSIDE: [&str; 2] = ["203.0.113.10", "2001:db8::10"];
/// The pod networks.
pub const NETWORKS: [&str; 2] = ["10.244.0.0/16", "fd10:244::/32"];
const API: &str = "192.168.77.254:6443";
const HEALTH: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10256);
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);

/// The families of a pod network. The nodes themselves always have both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
    /// Both.
    Dual,
}

impl Families {
    /// What there is of each of them, IPv4 first.
    pub fn of<T>(self, v4: T, v6: T) -> Vec<T> {
        match self {
            Self::V4 => vec![v4],
            Self::V6 => vec![v6],
            Self::Dual => vec![v4, v6],
        }
    }
}

/// What a cluster looks like.
#[derive(Clone, Debug)]
pub struct Layout {
    /// How many nodes: at most 100.
    pub nodes: u8,
    /// The families of the pod network.
    pub families: Families,
    /// `Backend` in net-conf.json.
    pub backend: Value,
    /// The Nodes have their podCIDRs.
    pub assigned: bool,
}

impl Layout {
    /// Nodes with podCIDRs and VXLAN.
    pub fn vxlan(nodes: u8, families: Families) -> Self {
        Self { nodes, families, backend: json!({"Type": "vxlan"}), assigned: true }
    }

    /// net-conf.json.
    pub fn net_conf(&self) -> Value {
        let (v4, v6) = (self.families != Families::V6, self.families != Families::V4);
        json!({"EnableIPv4": v4, "EnableIPv6": v6, "Network": NETWORKS[0], "IPv6Network": NETWORKS[1], "Backend": self.backend})
    }

    /// The Node object of a node.
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

/// The cluster.
#[derive(Debug)]
pub struct PodCluster {
    /// What it looks like.
    pub layout: Layout,
    /// The API server.
    pub server: ApiServer,
    /// Behind the nodes' default route. Servers as in pods.
    pub outside: Pod,
    /// The nodes, in the order of their numbers, which begin with 1.
    pub nodes: Vec<PodNode>,
    /// Connects the nodes; the API server listens in it.
    pub switch: Netns,
    _folder: TempDir,
}

impl PodCluster {
    /// Makes the cluster. The program that is tried is not started yet.
    pub fn new(program: &Path, layout: Layout) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the nodes' files");
        let switch = Netns::new();
        switch.run(
            "ip link add br0 type bridge mcast_snooping 0; ip link set br0 up
             ip addr add 192.168.77.254/24 dev br0; ip addr add fd77::254/64 dev br0 nodad",
        );
        let server = switch.within(|| ApiServer::serve(TcpListener::bind(API).expect("free")).expect("the API server starts"));
        server.load((1..=layout.nodes).map(|number| layout.node(number)).collect()).expect("Nodes");
        let outside = Netns::new();
        plug(&switch, &outside, "outside", 200);
        outside.run(&format!("ip addr add {}/32 dev lo; ip addr add {}/128 dev lo nodad", OUTSIDE[0], OUTSIDE[1]));
        let outside = Pod { netns: outside, ips: OUTSIDE.map(|ip| ip.parse().expect("an address")).into() };
        serve(&outside.netns, &outside.ips);
        let node = |number| PodNode::new(program, number, &switch, folder.path(), &server.url(), &layout);
        let nodes = (1..=layout.nodes).map(node).collect();
        Self { layout, server, outside, nodes, switch, _folder: folder }
    }

    /// Starts the program on every node, with these flags besides, and waits until all are ready.
    pub fn start(&self, flags: &[&str]) {
        self.nodes.iter().for_each(|node| node.start(flags));
        self.nodes.iter().for_each(PodNode::wait_ready);
    }

    /// Changes an object, if there is one: a Node by its number.
    pub fn change_node(&self, number: u8, change: impl FnOnce(&mut Value)) {
        let mut node = self.node(number);
        change(&mut node);
        self.server.put(node).expect("a Node");
    }

    /// The Node object of a node as it is now.
    pub fn node(&self, number: u8) -> Value {
        self.server.get("nodes", &name(number)).expect("there is a Node")
    }
}

/// Connects a namespace with the switch, under a number that becomes its addresses.
fn plug(switch: &Netns, netns: &Netns, port: &str, number: u8) {
    // Nobody else can have these addresses, so nobody is asked for them.
    netns.run("sysctl -qw net.ipv6.conf.default.accept_dad=0");
    switch.link(port, netns, "eth0");
    switch.run(&format!("ip link set {port} master br0"));
    netns.run(&format!("ip addr add 192.168.77.{number}/24 dev eth0; ip addr add fd77::{number}/64 dev eth0 nodad"));
}

/// A node, and the program on it.
#[derive(Debug)]
pub struct PodNode {
    /// The node itself.
    pub netns: Netns,
    /// Its name.
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
        fs::create_dir(&folder).expect("a folder for a node's files");
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

    /// A path among the node's files.
    pub(crate) fn file(&self, name: &str) -> String {
        self.folder.join(name).to_string_lossy().into_owned()
    }

    /// The program that is tried.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// Writes net-conf.json, at once.
    pub fn configure(&self, net_conf: &Value) {
        fs::write(self.file("net-conf.new"), net_conf.to_string()).expect("writable");
        fs::rename(self.file("net-conf.new"), self.file("net-conf.json")).expect("writable");
    }

    /// Starts the program, with these flags besides.
    pub fn start(&self, flags: &[&str]) {
        *self.flags.borrow_mut() = flags.iter().map(|flag| (*flag).to_owned()).collect();
        self.start_again();
    }

    /// Starts the program with the flags that it had.
    pub fn start_again(&self) {
        let log = fs::File::options().create(true).append(true).open(self.file("log")).expect("writable");
        let mut command = self.netns.command(&self.program.to_string_lossy());
        command
            .args(["--pod-network", "--ip-masq", "--iptables-variant=nft", "--master", &self.master, "--hostname-override", &self.name])
            .args(["--net-config-path", &self.file("net-conf.json"), "--subnet-file", &self.subnet_file().to_string_lossy()])
            .arg(format!("--healthz-bind-address={HEALTH}"))
            .arg(format!("--metrics-bind-address={METRICS}"))
            .args(IN_NAMESPACE)
            .args(&*self.flags.borrow())
            .stdin(Stdio::null())
            .stderr(log);
        *self.running.borrow_mut() = Some(Running(command.spawn().expect("the program starts")));
    }

    /// Ends the program by SIGTERM and gives its exit status, if it runs.
    pub fn stop(&self) -> Option<i32> {
        self.running.take().and_then(Running::terminate)
    }

    /// Ends the program by SIGKILL, if it runs.
    pub fn kill(&self) {
        drop(self.running.take());
    }

    /// The program's process, if it runs.
    pub fn process(&self) -> Option<u32> {
        // nsenter has become the program.
        self.running.borrow().as_ref().map(|running| running.0.id())
    }

    /// Waits until every part of the program is ready.
    pub fn wait_ready(&self) {
        let start = Instant::now();
        while self.readiness().is_none_or(|(status, _)| status != 200) {
            let stands = || self.readiness().map_or_else(|| "nobody answers".into(), |(_, text)| text);
            assert!(start.elapsed() < Duration::from_secs(20), "{} is not ready:\n{}\n{}", self.name, stands(), self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Status and text of `/readyz?verbose`; `None` if nobody answers.
    pub fn readiness(&self) -> Option<(u16, String)> {
        get(&self.netns, HEALTH, "/readyz?verbose").ok().map(|answer| (answer.status, answer.body))
    }

    /// The metrics, empty if nobody answers.
    pub fn metrics(&self) -> String {
        get(&self.netns, METRICS, "/metrics").map(|answer| answer.body).unwrap_or_default()
    }

    /// Everything that the program has said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.file("log")).unwrap_or_default()
    }

    /// Where the program writes subnet.env.
    pub fn subnet_file(&self) -> PathBuf {
        self.folder.join("run/flannel/subnet.env")
    }

    /// subnet.env, empty if it is not there.
    pub fn subnet_env(&self) -> String {
        fs::read_to_string(self.subnet_file()).unwrap_or_default()
    }

    /// What the kernel holds for the pod network, and subnet.env: a text to compare. Numbers of links are not in it.
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

    /// Attaches a pod to the node's bridge, which is made with the first one, as subnet.env says.
    pub fn attach(&self) -> Pod {
        let env = self.subnet_env();
        let value = |key: &str| env.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let mtu = value("FLANNEL_MTU").expect("subnet.env tells the MTU");
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
            // The gateway is the subnet's first address; pods have the next ones.
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

    /// The node's own address of the family of another one.
    pub fn ip_like(&self, other: IpAddr) -> IpAddr {
        let number = self.number;
        let ip = if other.is_ipv4() { format!("192.168.77.{number}") } else { format!("fd77::{number}") };
        ip.parse().expect("an address")
    }
}
