//! Moving over from kube-proxy and flannel, and back, with clients that notice a single lost answer or connection (docs/migration.md). What
//! those programs leave on a node is put there as they write it; the pods' traffic goes on all the time.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use sepal::cluster::Family;
use sepal_lab::http::get;
use sepal_lab::{Families, IN_NAMESPACE, Layout, Pod, PodCluster, PodNode, Prober, Running, Session, eventually};
use serde_json::{Value, json};

use crate::SEPAL;
use crate::predecessors;

const CLUSTER_IP: &str = "10.96.0.53";
const NODE_PORT: u16 = 30053;
const NODES: [u8; 3] = [1, 2, 3];

/// Three nodes as kube-proxy and flannel left them, with pods, a Service and its clients.
struct Moving {
    cluster: PodCluster,
    pods: Vec<Pod>,
    variant: &'static str,
    probers: Vec<Prober>,
    sessions: Vec<Session>,
    folder: tempfile::TempDir,
}

/// The hardware address of a node's VXLAN link.
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

impl Moving {
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
        let mut moving = Self { cluster, pods: Vec::new(), variant, probers: Vec::new(), sessions: Vec::new(), folder };
        for number in NODES {
            moving.flannel(number, true);
        }
        // Two on the first node, one on each of the others, which are the endpoints.
        moving.pods = [0, 0, 1, 2].map(|at: usize| moving.cluster.nodes[at].attach()).into();
        moving.put(service());
        moving.put(slice(&[&moving.pods[2], &moving.pods[3]]));
        for number in NODES {
            moving.kube_proxy(number);
        }
        moving.watch();
        moving
    }

    fn put(&self, object: Value) {
        self.cluster.server.put(object).expect("the API server takes it");
    }

    fn node(&self, number: u8) -> &PodNode {
        &self.cluster.nodes[usize::from(number - 1)]
    }

    /// What flannel does at its start; with `first`, on a node where it never was.
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

    /// A full sync of kube-proxy.
    fn kube_proxy(&self, number: u8) {
        let node = self.node(number);
        for (family, flag) in [(Family::V4, "ipv4"), (Family::V6, "ipv6")] {
            let mut command = node.netns.command(SEPAL);
            command.args(["--dry-run", "--ip-family", flag, "--master", &self.cluster.server.url(), "--hostname-override", &node.name]);
            let printed = command.stderr(Stdio::null()).output().expect("it runs").stdout;
            predecessors::kube_proxy(&node.netns, self.variant, family, &String::from_utf8(printed).expect("text"));
        }
    }

    /// Starts the clients: each question is a new connection, each session one that lasts.
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
        self.nobody_has_lost_anything("before");
    }

    /// New connections from a pod to the outside: the last of the clients.
    fn to_the_outside(&self) -> Prober {
        Prober::start(&self.pods[1].netns, self.cluster.outside.udp(self.pods[0].ips[0]))
    }

    /// flannel starts again on a node. It empties its chains and then fills them, as at each of its starts: what is begun towards the outside
    /// in those milliseconds is not masqueraded, whoever was there before. Nobody begins anything there then; what is open goes on.
    fn flannel_comes_back(&mut self, number: u8) {
        drop(self.probers.pop());
        self.flannel(number, false);
        self.probers.push(self.to_the_outside());
    }

    fn nobody_has_lost_anything(&self, when: &str) {
        let before: Vec<u64> = self.sessions.iter().map(Session::exchanged).collect();
        sleep(Duration::from_millis(400));
        let lost: Vec<usize> = self.probers.iter().map(Prober::lost).collect();
        assert_eq!(lost, vec![0; lost.len()], "answers lost {when}");
        let faults: Vec<String> = self.sessions.iter().filter_map(Session::fault).collect();
        assert_eq!(faults, Vec::<String>::new(), "connections lost {when}");
        for (session, before) in self.sessions.iter().zip(before) {
            assert!(session.exchanged() > before, "a connection stands still {when}");
        }
    }

    /// Rules in their order, and everything else that must not be made anew: the tunnel with its number, the bridge, subnet.env.
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

    /// Rules without their order.
    fn rules(&self, number: u8) -> Vec<String> {
        let mut lines: Vec<String> = self.lasting(number).lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    }

    /// The program by another name.
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
    let moving = Moving::new(variant);
    let node = moving.node(1);
    let before = moving.lasting(1);
    let mut command = node.netns.command(&moving.named("kube-proxy").display().to_string());
    command.args(["--master", &moving.cluster.server.url(), "--hostname-override", "node-1"]).args(IN_NAMESPACE);
    let running = moving.started(command);
    let log = || fs::read_to_string(moving.log()).expect("readable");
    eventually("both families are known", || log().matches("the live tables are as they should be").count() == 2);
    eventually("it is healthy", || get(&node.netns, at_port(10256), "/healthz").is_ok_and(|answer| answer.status == 200));
    moving.nobody_has_lost_anything("when sepal took kube-proxy's place");
    assert_eq!(moving.lasting(1), before, "nothing is written, nothing is moved\n{}", log());
    let metrics = get(&node.netns, at_port(10249), "/metrics").expect("an answer").body;
    let written: Vec<&str> = metrics.lines().filter(|line| line.starts_with("sepal_chains_written_total")).collect();
    assert!(!written.is_empty() && written.iter().all(|line| line.ends_with(" 0")), "{written:?}");

    // From here on it acts: an endpoint goes, which goes on to serve those whom it serves.
    let gone = moving.pods[3].ips[0].to_string();
    moving.put(slice(&[&moving.pods[2]]));
    eventually("the endpoint is gone", || !moving.lasting(1).contains(&format!("{gone}:")));
    moving.put(slice(&[&moving.pods[2], &moving.pods[3]]));
    eventually("the endpoint is back", || moving.lasting(1).contains(&format!("{gone}:")));
    moving.nobody_has_lost_anything("while it acts");

    assert_eq!(running.terminate(), Some(0));
    let left = moving.rules(1);
    moving.kube_proxy(1);
    moving.nobody_has_lost_anything("when kube-proxy came back");
    assert_eq!(moving.rules(1), left, "kube-proxy finds what it would write");
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
    let mut moving = Moving::new("nft");
    let node = moving.node(1);
    let (before, annotations) = (moving.lasting(1), moving.annotations(1));
    let mut command = node.netns.command(&moving.named("flanneld").display().to_string());
    let conf = node.subnet_file().parent().and_then(Path::parent).and_then(Path::parent).expect("folders").join("net-conf.json");
    command.args(["--ip-masq", "--kube-subnet-mgr", "--healthz-port=8081", &format!("--kube-api-url={}", moving.cluster.server.url())]);
    command.arg(format!("--net-config-path={}", conf.display())).arg(format!("--subnet-file={}", node.subnet_file().display()));
    let running = moving.started({
        command.env("NODE_NAME", "node-1");
        command
    });
    eventually("it is ready", || get(&node.netns, at_port(8081), "/readyz").is_ok_and(|answer| answer.status == 200));
    moving.nobody_has_lost_anything("when sepal took flannel's place");
    assert_eq!(moving.lasting(1), before, "nothing is written, nothing is made anew");
    assert_eq!(moving.annotations(1), annotations);
    let routes = |moving: &Moving| moving.node(1).netns.run("ip route show dev flannel.1 | sort");
    let ours = "10.244.2.0/24 via 10.244.2.0 proto 83 onlink \n10.244.3.0/24 via 10.244.3.0 proto 83 onlink \n";
    assert_eq!(routes(&moving), ours, "the routes are ours now");

    // From here on it acts.
    let mut fourth = moving.cluster.layout.node(4);
    fourth["metadata"]["annotations"] = moving.annotations(3);
    fourth["metadata"]["annotations"]["flannel.alpha.coreos.com/backend-data"] = json!(format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac(4)));
    fourth["metadata"]["annotations"]["flannel.alpha.coreos.com/public-ip"] = json!("192.168.77.4");
    moving.put(fourth);
    eventually("the new node has a route", || routes(&moving).contains("10.244.4.0/24"));
    assert!(moving.cluster.server.remove("nodes", "node-4"));
    eventually("and loses it", || routes(&moving) == ours);

    assert_eq!(running.terminate(), Some(0));
    moving.flannel_comes_back(1);
    moving.nobody_has_lost_anything("when flannel came back");
    assert_eq!(moving.lasting(1), before);
    let theirs = ours.replace("proto 83 ", "");
    assert_eq!(routes(&moving), theirs, "and the routes are flannel's");
}

/// Both at once, one node after the other, and back: at any time the cluster holds nodes of both kinds.
#[test]
fn node_by_node_and_back() {
    let mut moving = Moving::new("nft");
    let before = NODES.map(|number| moving.lasting(number));
    for number in NODES {
        let node = moving.node(number);
        node.start(&[]);
        node.wait_ready();
        moving.nobody_has_lost_anything(&format!("when node-{number} moved over"));
        assert_eq!(moving.lasting(number), before[usize::from(number - 1)], "nothing is written on node-{number}\n{}", node.log());
    }
    // All of them act.
    let gone = format!("{}:", moving.pods[3].ips[0]);
    moving.put(slice(&[&moving.pods[2]]));
    eventually("the endpoint is gone everywhere", || NODES.iter().all(|number| !moving.lasting(*number).contains(&gone)));
    moving.put(slice(&[&moving.pods[2], &moving.pods[3]]));
    eventually("the endpoint is back everywhere", || NODES.iter().all(|number| moving.lasting(*number).contains(&gone)));
    moving.nobody_has_lost_anything("while all act");
    for number in NODES {
        assert_eq!(moving.node(number).stop(), Some(0));
        let left = moving.rules(number);
        moving.flannel_comes_back(number);
        moving.kube_proxy(number);
        moving.nobody_has_lost_anything(&format!("when node-{number} moved back"));
        assert_eq!(moving.rules(number), left, "what comes back finds what it would write on node-{number}");
    }
}

/// The clients do notice.
#[test]
fn a_lost_connection_is_noticed() {
    let moving = Moving::new("nft");
    moving.node(1).netns.run("ip route del 10.244.2.0/24; sleep 0.2; ip route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink");
    sleep(Duration::from_millis(100));
    assert!(moving.probers.iter().map(Prober::lost).sum::<usize>() > 0);
    // A connection whose packets are refused ends.
    moving.node(1).netns.run("iptables-nft -I FORWARD -p tcp -j REJECT --reject-with tcp-reset; sleep 0.3; iptables-nft -D FORWARD 1");
    eventually("sessions have ended", || moving.sessions.iter().filter(|session| session.fault().is_some()).count() > 1);
}
