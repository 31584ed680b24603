//! The program under the name flanneld: its flags, environment and health endpoints, without the service proxy.

use std::os::unix::fs::symlink;
use std::process::{Command, Output, Stdio};

use sepal_lab::{Netns, Running, http, wait_until};
use serde_json::{Value, json};

use crate::SEPAL;
use crate::api_node::ApiNode;

const NET_CONF: &str = r#"{"Network":"10.244.0.0/16","EnableNFTables":false,"Backend":{"Type":"vxlan"}}"#;

/// A node with the program under flanneld's name.
struct Node {
    node: ApiNode,
}

impl std::ops::Deref for Node {
    type Target = ApiNode;

    fn deref(&self) -> &ApiNode {
        &self.node
    }
}

impl Node {
    fn new(objects: Vec<Value>) -> Self {
        let netns = Netns::new();
        netns.run(
            "ip link add eth0 type veth peer name beyond; ip link set eth0 up; ip link set beyond up; ip addr add 192.168.77.1/24 dev eth0; ip route add default via 192.168.77.254",
        );
        let node = ApiNode::new(netns, objects);
        symlink(SEPAL, node.path("flanneld")).expect("a link");
        std::fs::write(node.path("net-conf.json"), NET_CONF).expect("writable");
        Self { node }
    }

    /// flanneld with the shipped manifest's arguments.
    fn flanneld(&self, environment: &[(&str, &str)]) -> Command {
        let mut command = self.netns.command(&self.path("flanneld"));
        command.args(["--ip-masq", "--kube-subnet-mgr", "--healthz-port=8081"]).arg(format!("--kube-api-url={}", self.server.url()));
        command.arg(format!("--net-config-path={}", self.path("net-conf.json"))).arg(format!("-subnet-file={}", self.path("subnet.env")));
        for name in ["NODE_NAME", "POD_NAME", "POD_NAMESPACE"] {
            command.env_remove(name);
        }
        command.envs(environment.iter().copied());
        command
    }

    fn answers(&self, path: &str, code: u16, body: &str) -> bool {
        let address = "127.0.0.1:8081".parse().expect("an address");
        http::get(&self.netns, address, path).is_ok_and(|answer| (answer.status, answer.body.as_str()) == (code, body))
    }
}

fn node(name: &str, pod_cidrs: &[&str]) -> Value {
    let spec = if pod_cidrs.is_empty() { json!({}) } else { json!({"podCIDR": pod_cidrs[0], "podCIDRs": pod_cidrs}) };
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "uid": format!("uid-{name}")}, "spec": spec,
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.77.1"}]},
    })
}

fn pod(node: Option<&str>) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "kube-flannel-ds-abcde", "namespace": "kube-flannel"},
        "spec": node.map_or(json!({}), |node| json!({"nodeName": node})),
    })
}

#[test]
fn it_takes_flanneld_s_place() {
    let node = Node::new(vec![node("n1", &["10.244.1.0/24"]), pod(Some("n1"))]);
    let pod = [("POD_NAME", "kube-flannel-ds-abcde"), ("POD_NAMESPACE", "kube-flannel")];
    let running = Running(node.flanneld(&pod).stderr(Stdio::null()).spawn().expect("it starts"));
    wait_until("it is ready", || node.answers("/readyz", 200, "flanneld is ready"));
    assert!(node.answers("/healthz", 200, "flanneld is running"));
    assert!(node.answers("/livez", 404, "404 page not found\n"), "it has no other path");
    let env = std::fs::read_to_string(node.path("subnet.env")).expect("it is there");
    assert_eq!(env, "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n");
    let rules = node.netns.run("iptables-save");
    assert!(rules.contains("-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG"), "{rules}");
    assert!(!rules.contains("KUBE-"), "no rules of a service proxy and no canary: {rules}");
    let listening = node.netns.run("ss -Hltn");
    assert_eq!(listening.matches("0.0.0.0:8081").count() + listening.matches("*:8081").count(), 1, "{listening}");
    assert!(!listening.contains(":10256") && !listening.contains(":10249"), "{listening}");
    let annotations = node.server.get("nodes", "n1").expect("a Node")["metadata"]["annotations"].clone();
    assert_eq!(annotations["flannel.alpha.coreos.com/public-ip"], "192.168.77.1");
    assert_eq!(annotations["flannel.alpha.coreos.com/kube-subnet-manager"], "true");

    // At its end it changes nothing, and at the next start it changes nothing.
    let links = node.netns.run("ip -o link show flannel.1");
    assert_eq!(running.terminate(), Some(0));
    assert_eq!(node.netns.run("ip -o link show flannel.1"), links);
    assert_eq!(node.netns.run("iptables-save -t nat | grep -c FLANNEL-POSTRTG"), "8\n");
    let _again = Running(node.flanneld(&[("NODE_NAME", "n1")]).stderr(Stdio::null()).spawn().expect("it starts"));
    wait_until("it is ready", || node.answers("/readyz", 200, "flanneld is ready"));
    assert_eq!(node.netns.run("ip -o link show flannel.1"), links);
}

/// The first address of the interface is for management; the default route uses the network of the second one.
#[test]
fn iface_can_reach_takes_the_kernel_s_source_address() {
    let node = Node::new(vec![node("n1", &["10.244.1.0/24"])]);
    node.netns.run(
        "ip addr flush dev eth0; ip addr add 10.98.0.1/24 dev eth0; ip addr add 192.168.77.1/24 dev eth0; ip route add default via 192.168.77.254",
    );
    let annotation = || {
        let node = node.server.get("nodes", "n1").expect("a Node");
        node["metadata"]["annotations"]["flannel.alpha.coreos.com/public-ip"].as_str().unwrap_or_default().to_owned()
    };
    // Each run leaves its address on the Node, so that the next one has to change it.
    for (target, source) in [("198.51.100.8", "192.168.77.1"), ("10.98.0.200", "10.98.0.1"), ("192.168.77.9", "192.168.77.1")] {
        let mut command = node.flanneld(&[("NODE_NAME", "n1")]);
        command.arg(format!("--iface-can-reach={target}")).stderr(Stdio::null());
        let _running = Running(command.spawn().expect("it starts"));
        wait_until("the source address is published", || annotation() == source);
        wait_until("the VTEP sends from it", || node.netns.run("ip -d link show flannel.1 || :").contains(&format!(" local {source} ")));
    }
}

/// The Node's address is on another interface than the default route. An empty `--iface` selects the default route's.
#[test]
fn an_empty_iface_means_the_default_route_s() {
    let mut own = node("n1", &["10.244.1.0/24"]);
    own["status"]["addresses"][0]["address"] = json!("10.98.0.1");
    let node = Node::new(vec![own]);
    node.netns.run(
        "ip link add eth1 type veth peer name beyond1; ip link set eth1 up; ip link set beyond1 up; ip addr add 10.98.0.1/24 dev eth1",
    );
    let public_ip =
        || node.server.get("nodes", "n1").expect("a Node")["metadata"]["annotations"]["flannel.alpha.coreos.com/public-ip"].clone();
    for (flags, want) in
        [(&["--iface="][..], "192.168.77.1"), (&["--iface=eth1"], "10.98.0.1"), (&["--iface=eth9", "--iface-regex="], "192.168.77.1")]
    {
        let mut command = node.flanneld(&[("NODE_NAME", "n1")]);
        let _running = Running(command.args(flags).stderr(Stdio::null()).spawn().expect("it starts"));
        wait_until("the address is published", || public_ip() == want);
    }
}

#[test]
fn the_health_server_s_host_may_be_a_name_or_empty() {
    let node = Node::new(vec![node("n1", &["10.244.1.0/24"])]);
    for (host, listening) in [("--healthz-ip=localhost", "127.0.0.1:8081"), ("--healthz-ip=", "*:8081")] {
        let mut command = node.flanneld(&[("NODE_NAME", "n1")]);
        let _running = Running(command.arg(host).stderr(Stdio::null()).spawn().expect("it starts"));
        wait_until("it answers", || node.answers("/healthz", 200, "flanneld is running"));
        let sockets = node.netns.run("ss -Hltn");
        assert!(sockets.contains(listening), "{host}: {sockets}");
    }
}

/// Annotations are read as Go reads JSON: keys in any case, the last of two equal keys, every notation of a MAC address.
#[test]
fn a_peer_s_annotations_are_read_as_go_reads_them() {
    let peer = |number: u8, data: &str| {
        let mut peer = node(&format!("n{number}"), &[&format!("10.244.{number}.0/24")]);
        peer["metadata"]["annotations"] = json!({
            "flannel.alpha.coreos.com/kube-subnet-manager": "true",
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/backend-data": data,
            "flannel.alpha.coreos.com/public-ip": format!("192.168.77.{number}"),
        });
        peer
    };
    let peers = [
        peer(2, r#"{"VNI":1,"VtepMAC":"26-22-24-FA-1A-02"}"#),
        peer(3, r#"{"VNI":1,"VtepMAC":"2622.24fa.1a03"}"#),
        peer(4, r#"{"vni":1,"vtepmac":"26:22:24:fa:1a:04"}"#),
        peer(5, r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:01","VtepMac":"26:22:24:fa:1a:05"}"#),
    ];
    let node = Node::new(peers.into_iter().chain([node("n1", &["10.244.1.0/24"])]).collect());
    std::fs::write(node.path("net-conf.json"), r#"{"network":"10.0.0.0/8","NETWORK":"10.244.0.0/16","backend":{"type":"vxlan"}}"#)
        .expect("writable");
    let _running = Running(node.flanneld(&[("NODE_NAME", "n1")]).stderr(Stdio::null()).spawn().expect("it starts"));
    wait_until("every peer has its entry", || {
        let fdb = node.netns.run("bridge fdb show dev flannel.1 || :");
        (2..=5).all(|number| fdb.contains(&format!("26:22:24:fa:1a:0{number} dst 192.168.77.{number} ")))
    });
}

fn last_words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim_end().lines().last().unwrap_or_default().to_owned()
}

#[test]
fn what_cannot_work_is_said_in_flannels_words() {
    let node = Node::new(vec![]);
    let output = node.flanneld(&[]).output().expect("it starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(last_words(&output).contains("Failed to create SubnetManager: env variables POD_NAME and POD_NAMESPACE must be set"));
    let output = node.flanneld(&[("NODE_NAME", "n1")]).arg("-bogus").output().expect("it starts");
    assert_eq!(output.status.code(), Some(0), "as Go's flags end");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "flag provided but not defined: -bogus\nSee 'flanneld --help'.\n");
    std::fs::write(node.path("net-conf.json"), r#"{"Network":"10.244.0.0/16","Backend":{"Type":"wireguard"}}"#).expect("writable");
    let output = node.flanneld(&[("NODE_NAME", "n1")]).output().expect("it starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(last_words(&output).contains("unknown backend type: wireguard. Backend.Type has to be vxlan or host-gw"), "{output:?}");
}

/// Reading the Pod is forbidden: the error names the missing rule of the role, and the request is repeated.
#[test]
fn a_pod_that_must_not_be_read_ends_nothing() {
    let node = Node::new(vec![node("n1", &["10.244.1.0/24"]), pod(Some("n1"))]);
    node.server.deny("get", "pods");
    let log = node.path("log");
    let pod = [("POD_NAME", "kube-flannel-ds-abcde"), ("POD_NAMESPACE", "kube-flannel")];
    let file = std::fs::File::create(&log).expect("writable");
    let _running = Running(node.flanneld(&pod).stderr(file).spawn().expect("it starts"));
    let said = |what: &str| std::fs::read_to_string(&log).expect("readable").contains(what);
    wait_until("it is logged", || {
        said("Failed to create SubnetManager: error retrieving pod spec for 'kube-flannel/kube-flannel-ds-abcde': pods")
            && said("{apiGroups: [\"\"], resources: [\"pods\"], verbs: [\"get\"]}")
    });
    node.server.allow_all();
    wait_until("it is ready", || node.answers("/readyz", 200, "flanneld is ready"));
}
