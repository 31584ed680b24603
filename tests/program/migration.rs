//! Migration from kube-proxy and flannel, and back, with clients that notice a single lost answer or connection (docs/migration.md). The rules
//! and links of those programs are written as they write them, and the pods' traffic never stops.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sepal::cluster::Family;
use sepal_lab::http::get;
use sepal_lab::{Families, Layout, NAMESPACE_FLAGS, Pod, PodCluster, PodNode, Prober, Running, Session, wait_until};
use serde_json::{Value, json};

use crate::SEPAL;
use crate::predecessors;

const CLUSTER_IP: &str = "10.96.0.53";
const NODE_PORT: u16 = 30053;
const NODES: [u8; 3] = [1, 2, 3];

/// Three nodes with the state of kube-proxy and flannel, with pods, a Service and its clients.
struct Migration {
    cluster: PodCluster,
    pods: Vec<Pod>,
    variant: &'static str,
    probers: Vec<Prober>,
    sessions: Vec<Session>,
    folder: tempfile::TempDir,
}

/// The MAC address of a node's VXLAN link.
fn mac(number: u8) -> String {
    format!("ce:11:22:33:44:{number:02x}")
}

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "dns", "namespace": "kube-system"},
        "spec": {
            "type": "NodePort", "clusterIP": CLUSTER_IP, "clusterIPs": [CLUSTER_IP], "ipFamilies": ["IPv4"],
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": NODE_PORT},
                {"name": "echo", "port": 7, "protocol": "TCP", "nodePort": NODE_PORT + 1},
            ],
        },
    })
}

fn slice(endpoints: &[&Pod]) -> Value {
    let endpoint = |pod: &&Pod| json!({"addresses": [pod.ips[0]], "conditions": {"ready": true, "serving": true, "terminating": false}});
    let [udp, tcp] = [endpoints[0].udp(endpoints[0].ips[0]), endpoints[0].echo(endpoints[0].ips[0])].map(|address| address.port());
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "dns-1", "namespace": "kube-system", "labels": {"kubernetes.io/service-name": "dns"}},
        "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        "ports": [{"name": "dns", "port": udp, "protocol": "UDP"}, {"name": "echo", "port": tcp, "protocol": "TCP"}],
    })
}

impl Migration {
    fn new(variant: &'static str) -> Self {
        let cluster = PodCluster::new(Path::new(SEPAL), Layout::vxlan(3, Families::V4));
        for number in NODES {
            cluster.change_node(number, |node| {
                node["metadata"]["annotations"] = json!({
                    "flannel.alpha.coreos.com/backend-data": format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac(number)),
                    "flannel.alpha.coreos.com/backend-type": "vxlan", "flannel.alpha.coreos.com/kube-subnet-manager": "true",
                    "flannel.alpha.coreos.com/public-ip": format!("192.168.77.{number}"),
                });
            });
        }
        let folder = tempfile::tempdir().expect("a folder");
        let mut migration = Self { cluster, pods: Vec::new(), variant, probers: Vec::new(), sessions: Vec::new(), folder };
        for number in NODES {
            migration.flannel(number, true);
        }
        // Two pods on the first node, and one on each of the others; the latter are the endpoints.
        migration.pods = [0, 0, 1, 2].map(|at: usize| migration.cluster.nodes[at].attach()).into();
        migration.put(service());
        migration.put(slice(&[&migration.pods[2], &migration.pods[3]]));
        for number in NODES {
            migration.kube_proxy(number);
        }
        migration.watch();
        migration
    }

    fn put(&self, object: Value) {
        self.cluster.server.put(object).expect("the API server takes it");
    }

    fn node(&self, number: u8) -> &PodNode {
        &self.cluster.nodes[usize::from(number - 1)]
    }

    /// Does what flannel does at its start; `first` also creates its link and its subnet.env.
    fn flannel(&self, number: u8, first: bool) {
        let node = self.node(number);
        if first {
            node.netns.run(&format!(
                "ip link add flannel.1 address {} type vxlan id 1 dev eth0 local 192.168.77.{number} dstport 8472 nolearning
                 ip addr add 10.244.{number}.0/32 dev flannel.1; ip link set flannel.1 mtu 1450 up; sysctl -qw net.ipv6.conf.flannel/1.accept_ra=0",
                mac(number)
            ));
            let file = node.subnet_file();
            fs::create_dir_all(file.parent().expect("a folder")).expect("writable");
            let text =
                format!("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.{number}.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n");
            fs::write(file, text).expect("writable");
        }
        let subnet = format!("10.244.{number}.0/24");
        predecessors::flannels_rules(&node.netns, self.variant, Family::V4, ["10.244.0.0/16", &subnet, "224.0.0.0/4"]);
        for peer in NODES.iter().filter(|peer| **peer != number) {
            node.netns.run(&format!(
                "ip neigh replace 10.244.{peer}.0 lladdr {mac} dev flannel.1 nud permanent
                 bridge fdb replace {mac} dev flannel.1 dst 192.168.77.{peer} self permanent
                 ip route replace 10.244.{peer}.0/24 via 10.244.{peer}.0 dev flannel.1 onlink",
                mac = mac(*peer)
            ));
        }
    }

    /// Does what a full sync of kube-proxy does.
    fn kube_proxy(&self, number: u8) {
        let node = self.node(number);
        for (family, flag) in [(Family::V4, "ipv4"), (Family::V6, "ipv6")] {
            let mut command = node.netns.command(SEPAL);
            command.args(["--dry-run", "--ip-family", flag, "--master", &self.cluster.server.url(), "--hostname-override", &node.name]);
            let printed = command.stderr(Stdio::null()).output().expect("it runs").stdout;
            predecessors::kube_proxy(&node.netns, self.variant, family, &String::from_utf8(printed).expect("text"));
        }
    }

    /// Starts the clients: probers, which use a new connection for each request, and sessions, which keep one connection.
    fn watch(&mut self) {
        let address = |ip: &str, port| SocketAddr::new(ip.parse::<IpAddr>().expect("an address"), port);
        let [first, second, third, fourth] = self.pods.as_slice() else { unreachable!("there are four") };
        let ip = first.ips[0];
        let outside = &self.cluster.outside;
        self.probers = vec![
            Prober::start(&first.netns, address(CLUSTER_IP, 53)),
            Prober::start(&fourth.netns, address(CLUSTER_IP, 53)),
            Prober::start(&self.node(1).netns, address(CLUSTER_IP, 53)),
            Prober::start(&outside.netns, address("192.168.77.1", NODE_PORT)),
            Prober::start(&first.netns, third.udp(ip)),
            Prober::start(&fourth.netns, second.udp(ip)),
            Prober::start(&first.netns, second.udp(ip)),
            self.to_the_outside(),
        ];
        self.sessions = vec![
            Session::start(&first.netns, address(CLUSTER_IP, 7)),
            Session::start(&outside.netns, address("192.168.77.1", NODE_PORT + 1)),
            Session::start(&third.netns, first.echo(ip)),
            Session::start(&second.netns, outside.echo(ip)),
        ];
        self.assert_nothing_lost("before");
    }

    /// The prober from a pod to the outside: the last of the probers.
    fn to_the_outside(&self) -> Prober {
        Prober::start(&self.pods[1].netns, self.cluster.outside.udp(self.pods[0].ips[0]))
    }

    /// flannel starts again on a node. At each start it flushes its chains and then fills them. New connections to the outside in these
    /// milliseconds are not masqueraded, so this prober pauses. Open connections are not affected.
    fn flannel_comes_back(&mut self, number: u8) {
        drop(self.probers.pop());
        self.flannel(number, false);
        self.probers.push(self.to_the_outside());
    }

    fn assert_nothing_lost(&self, when: &str) {
        // Each client sends more requests. A session that has ended sends none, and its fault is reported below.
        for prober in &self.probers {
            prober.wait_for_requests(10);
        }
        for session in &self.sessions {
            let before = session.exchanged();
            wait_until(&format!("a connection exchanges data {when}"), || session.exchanged() > before || session.fault().is_some());
        }
        let lost: Vec<usize> = self.probers.iter().map(Prober::lost).collect();
        assert_eq!(lost, vec![0; lost.len()], "answers lost {when}");
        let faults: Vec<String> = self.sessions.iter().filter_map(Session::fault).collect();
        assert_eq!(faults, Vec::<String>::new(), "connections lost {when}");
    }

    /// State that must not change: rules in order, the tunnel with its index, the bridge, neighbours, FDB entries, subnet.env.
    fn lasting(&self, number: u8) -> String {
        let node = self.node(number);
        let variant = self.variant;
        let kernel = node.netns.run(&format!(
            "for family in ip ip6; do for table in nat filter mangle; do
                ${{family}}tables-{variant}-save -t $table | sed -n '/^-A/p; /^:[KF]/p' | sed 's/ \\[.*//'; done; done
             ip -o link show flannel.1 | sed 's/ state.*//'; ip -o link show cni0 | sed 's/ state.*//'; ip -d link show flannel.1 | grep vxlan
             ip neigh show dev flannel.1 nud permanent | sort; bridge fdb show dev flannel.1 | sort"
        ));
        kernel + &node.subnet_env()
    }

    /// The same state, sorted by line.
    fn rules(&self, number: u8) -> Vec<String> {
        let mut lines: Vec<String> = self.lasting(number).lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    }

    /// The program under another name.
    fn named(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        if !path.exists() {
            symlink(SEPAL, &path).expect("writable");
        }
        path
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn started(&self, mut command: Command) -> Running {
        let log = fs::File::create(self.log()).expect("writable");
        Running(command.stdin(Stdio::null()).stderr(log).spawn().expect("it starts"))
    }

    fn annotations(&self, number: u8) -> Value {
        self.cluster.node(number)["metadata"]["annotations"].clone()
    }
}

fn at_port(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn from_kube_proxy_and_back(variant: &'static str) {
    let migration = Migration::new(variant);
    let node = migration.node(1);
    let before = migration.lasting(1);
    let mut command = node.netns.command(&migration.named("kube-proxy").display().to_string());
    command.args(["--master", &migration.cluster.server.url(), "--hostname-override", "node-1"]).args(NAMESPACE_FLAGS);
    let running = migration.started(command);
    let log = || fs::read_to_string(migration.log()).expect("readable");
    wait_until("both families are known", || log().matches("the live tables match the desired rules").count() == 2);
    wait_until("it is healthy", || get(&node.netns, at_port(10256), "/healthz").is_ok_and(|answer| answer.status == 200));
    migration.assert_nothing_lost("when sepal took kube-proxy's place");
    assert_eq!(migration.lasting(1), before, "nothing is written, nothing is moved\n{}", log());
    let metrics = get(&node.netns, at_port(10249), "/metrics").expect("an answer").body;
    let written: Vec<&str> = metrics.lines().filter(|line| line.starts_with("sepal_chains_written_total")).collect();
    assert!(!written.is_empty() && written.iter().all(|line| line.ends_with(" 0")), "{written:?}");

    // sepal writes rules: an endpoint is removed, and its open connections continue.
    let gone = migration.pods[3].ips[0].to_string();
    migration.put(slice(&[&migration.pods[2]]));
    wait_until("the endpoint is gone", || !migration.lasting(1).contains(&format!("{gone}:")));
    migration.put(slice(&[&migration.pods[2], &migration.pods[3]]));
    wait_until("the endpoint is back", || migration.lasting(1).contains(&format!("{gone}:")));
    migration.assert_nothing_lost("while sepal writes changes");

    assert_eq!(running.terminate(), Some(0));
    let left = migration.rules(1);
    migration.kube_proxy(1);
    migration.assert_nothing_lost("when kube-proxy came back");
    assert_eq!(migration.rules(1), left, "kube-proxy finds what it would write");
}

#[test]
fn from_kube_proxy_and_back_nft() {
    from_kube_proxy_and_back("nft");
}

#[test]
fn from_kube_proxy_and_back_legacy() {
    from_kube_proxy_and_back("legacy");
}

#[test]
fn from_flannel_and_back() {
    let mut migration = Migration::new("nft");
    let node = migration.node(1);
    let (before, annotations) = (migration.lasting(1), migration.annotations(1));
    let mut command = node.netns.command(&migration.named("flanneld").display().to_string());
    let conf = node.subnet_file().parent().and_then(Path::parent).and_then(Path::parent).expect("folders").join("net-conf.json");
    command.args(["--ip-masq", "--kube-subnet-mgr", "--healthz-port=8081", &format!("--kube-api-url={}", migration.cluster.server.url())]);
    command.arg(format!("--net-config-path={}", conf.display())).arg(format!("--subnet-file={}", node.subnet_file().display()));
    let running = migration.started({
        command.env("NODE_NAME", "node-1");
        command
    });
    wait_until("it is ready", || get(&node.netns, at_port(8081), "/readyz").is_ok_and(|answer| answer.status == 200));
    migration.assert_nothing_lost("when sepal took flannel's place");
    assert_eq!(migration.lasting(1), before, "nothing is written, nothing is made anew");
    assert_eq!(migration.annotations(1), annotations);
    let routes = |migration: &Migration| migration.node(1).netns.run("ip route show dev flannel.1 | sort");
    let ours = "10.244.2.0/24 via 10.244.2.0 proto 83 onlink \n10.244.3.0/24 via 10.244.3.0 proto 83 onlink \n";
    assert_eq!(routes(&migration), ours, "the routes are ours now");

    // sepal writes changes.
    let mut fourth = migration.cluster.layout.node(4);
    fourth["metadata"]["annotations"] = migration.annotations(3);
    fourth["metadata"]["annotations"]["flannel.alpha.coreos.com/backend-data"] = json!(format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac(4)));
    fourth["metadata"]["annotations"]["flannel.alpha.coreos.com/public-ip"] = json!("192.168.77.4");
    migration.put(fourth);
    wait_until("the new node has a route", || routes(&migration).contains("10.244.4.0/24"));
    assert!(migration.cluster.server.remove("nodes", "node-4"));
    wait_until("the subnet is lost", || routes(&migration) == ours);

    assert_eq!(running.terminate(), Some(0));
    migration.flannel_comes_back(1);
    migration.assert_nothing_lost("when flannel came back");
    assert_eq!(migration.lasting(1), before);
    let theirs = ours.replace("proto 83 ", "");
    assert_eq!(routes(&migration), theirs, "and the routes are flannel's");
}

/// Both programs are replaced, one node after the other, and back; meanwhile the cluster has nodes of both kinds.
#[test]
fn node_by_node_and_back() {
    let mut migration = Migration::new("nft");
    let before = NODES.map(|number| migration.lasting(number));
    for number in NODES {
        let node = migration.node(number);
        node.start(&[]);
        node.wait_ready();
        migration.assert_nothing_lost(&format!("when node-{number} moved over"));
        assert_eq!(migration.lasting(number), before[usize::from(number - 1)], "nothing is written on node-{number}\n{}", node.log());
    }
    // sepal writes changes on all nodes.
    let gone = format!("{}:", migration.pods[3].ips[0]);
    migration.put(slice(&[&migration.pods[2]]));
    wait_until("the endpoint is gone everywhere", || NODES.iter().all(|number| !migration.lasting(*number).contains(&gone)));
    migration.put(slice(&[&migration.pods[2], &migration.pods[3]]));
    wait_until("the endpoint is back everywhere", || NODES.iter().all(|number| migration.lasting(*number).contains(&gone)));
    migration.assert_nothing_lost("while all nodes write changes");
    for number in NODES {
        assert_eq!(migration.node(number).stop(), Some(0));
        let left = migration.rules(number);
        migration.flannel_comes_back(number);
        migration.kube_proxy(number);
        migration.assert_nothing_lost(&format!("when node-{number} moved back"));
        assert_eq!(migration.rules(number), left, "what comes back finds what it would write on node-{number}");
    }
}

/// The clients notice a loss.
#[test]
fn a_lost_connection_is_noticed() {
    let migration = Migration::new("nft");
    let node = &migration.node(1).netns;
    node.run("ip route del 10.244.2.0/24");
    wait_until("answers are lost", || migration.probers.iter().map(Prober::lost).sum::<usize>() > 0);
    node.run("ip route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink");
    // A session whose packets are refused reports a fault.
    node.run("iptables-nft -I FORWARD -p tcp -j REJECT --reject-with tcp-reset");
    wait_until("sessions have ended", || migration.sessions.iter().filter(|session| session.fault().is_some()).count() > 1);
}
