//! `sepal cleanup --pod-network` after the daemon or flannel, with iptables of both variants.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use sepal_apiserver::ApiServer;
use sepal_lab::http::get;
use sepal_lab::{Cluster, NAMESPACE_FLAGS, Netns, Running, wait_until};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::SEPAL;

const VARIANTS: [&str; 2] = ["nft", "legacy"];
const NET_CONF: &str =
    r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd10:244::/32","Backend":{"Type":"vxlan","DirectRouting":true}}"#;

/// A Node of the pod network. The first is this one, the second is in the same subnet, others are behind a router.
fn node_object(n: u8) -> Value {
    let annotation = |name: &str| format!("flannel.alpha.coreos.com/{name}");
    let mac = |family: u8| format!("{{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:0{family}:0{n}\"}}");
    let (v4, v6) = if n < 3 { (format!("192.168.0.{n}"), format!("fd00::{n}")) } else { (format!("192.168.9.{n}"), format!("fd09::{n}")) };
    let annotations = if n == 1 {
        // An annotation of the operator, and one of another program.
        json!({annotation("public-ip-overwrite"): v4, "node.alpha.kubernetes.io/ttl": "0"})
    } else {
        json!({
            annotation("kube-subnet-manager"): "true", annotation("backend-type"): "vxlan",
            annotation("backend-data"): mac(4), annotation("backend-v6-data"): mac(6),
            annotation("public-ip"): v4, annotation("public-ipv6"): v6,
        })
    };
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": format!("n{n}"), "uid": format!("uid-{n}"), "annotations": annotations},
        "spec": {"podCIDR": format!("10.244.{n}.0/24"), "podCIDRs": [format!("10.244.{n}.0/24"), format!("fd10:244:{n}::/64")]},
        "status": {"addresses": [{"type": "InternalIP", "address": v4}, {"type": "InternalIP", "address": v6}]},
    })
}

fn lease(n: u8) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {
            "name": format!("sepal-10-244-{n}-0-24"), "namespace": "kube-system",
            "labels": {"app.kubernetes.io/managed-by": "sepal", "sepal.dev/network": "pods"},
        },
        "spec": {"holderIdentity": format!("n{n}_uid-{n}"), "leaseDurationSeconds": 86400, "renewTime": "2026-01-01T00:00:00.000000Z"},
    })
}

/// A node with an API server, and with links and routes of other programs.
struct Lab {
    node: Netns,
    server: ApiServer,
    folder: TempDir,
    variant: &'static str,
}

impl Lab {
    fn new(variant: &'static str) -> Self {
        let node = Netns::new();
        node.run(&format!(
            "ip link add eth0 type veth peer name other; ip link set eth0 up; ip link set other up
             ip addr add 192.168.0.1/24 dev eth0; ip addr add fd00::1/64 dev eth0 nodad
             ip route add default via 192.168.0.254; ip -6 route add default via fd00::fe
             ip link add cni0 type bridge; ip link set cni0 up; ip addr add 10.244.1.1/24 dev cni0; ip addr add fd10:244:1::1/64 dev cni0 nodad
             ip route add 10.99.0.0/16 via 192.168.0.77
             ip link add flannel.77 type vxlan id 77 dstport 4789; ip addr add 10.77.1.0/32 dev flannel.77; ip link set flannel.77 up
             iptables-{variant} -t nat -N DOCKER; iptables-{variant} -t nat -A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE
             iptables-{variant} -A FORWARD -i docker0 -j ACCEPT; ip6tables-{variant} -A FORWARD -i docker0 -j ACCEPT"
        ));
        let objects = Cluster::new(2, 2).objects().chain((1..=4).map(node_object)).chain([lease(1), lease(2)]).collect();
        let server = node.run_thread(move || ApiServer::serve_loaded(TcpListener::bind("127.0.0.1:0").expect("a free port"), objects));
        let lab = Self { node, server: server.expect("it serves"), folder: tempfile::tempdir().expect("a folder"), variant };
        fs::write(lab.path("kubeconfig"), lab.server.kubeconfig()).expect("writable");
        fs::write(lab.path("net-conf.json"), NET_CONF).expect("writable");
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn flag(&self, name: &str, file: &str) -> String {
        format!("--{name}={}", self.path(file).display())
    }

    fn sepal(&self, arguments: &[&str]) -> Command {
        let mut command = self.node.command(SEPAL);
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs the daemon until everything is programmed.
    fn program(&self) {
        let mut command = self.sepal(&["run", "--pod-network", "--ip-masq", "--ip-blackhole-route", "--hostname-override=n1"]);
        command.args(NAMESPACE_FLAGS).args(["--iptables-variant", self.variant, "--iface=eth0"]);
        let files = [self.flag("kubeconfig", "kubeconfig"), self.flag("net-config-path", "net-conf.json"), self.subnet_file()];
        let running = Running(command.args(files).spawn().expect("sepal starts"));
        let ready = || get(&self.node, SocketAddr::from(([127, 0, 0, 1], 10256)), "/readyz").is_ok_and(|answer| answer.status == 200);
        wait_until("the node is ready", ready);
        assert_eq!(running.terminate(), Some(0));
    }

    fn subnet_file(&self) -> String {
        self.flag("subnet-file", "run/subnet.env")
    }

    /// Exit status and log of a clean-up.
    fn cleanup(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = self.sepal(&["cleanup"]).args(arguments).env_remove("NODE_NAME").output().expect("sepal starts");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Exit status and log of a clean-up of the pod network.
    fn cleanup_network(&self, more: &[&str]) -> (Option<i32>, String) {
        let files = [self.subnet_file(), self.flag("net-config-path", "none.json")];
        self.cleanup(&[&["--pod-network", &files[0], &files[1]], more].concat())
    }

    /// Links, addresses and routes.
    fn kernel(&self) -> String {
        self.node.run(
            "ip -o link | sed 's/^[0-9]*: //; s/@[^:]*//' | cut -d: -f1 | sort; ip -o addr | awk '{print $2, $4}' | grep -v fe80 | sort
             ip route; ip -6 route | grep -v '^fe80' | sed 's/ pref medium//; s/ linkdown//'",
        )
    }

    /// All chains and rules of both families, without counters.
    fn tables(&self) -> String {
        let save = |program| format!("{program}-{}-save | sed -e '/^#/d' -e 's/ \\[.*//'", self.variant);
        self.node.run(&format!("{}; {}", save("iptables"), save("ip6tables")))
    }

    fn annotations(&self) -> Value {
        self.server.get("nodes", "n1").expect("it is there")["metadata"]["annotations"].clone()
    }
}

/// Everything of the pod network is deleted. The service proxy's rules, other programs' links and routes, and the operator's annotations stay.
/// A second run has nothing to do.
#[test]
fn everything_of_the_pod_network_goes_and_nothing_else() {
    for variant in VARIANTS {
        let lab = Lab::new(variant);
        let before = lab.kernel();
        lab.program();
        let (kernel, tables) = (lab.kernel(), lab.tables());
        for what in [
            "flannel.1 10.244.1.0/32",
            "flannel-v6.1 fd10:244:1::/128",
            "10.244.2.0/24 via 192.168.0.2 dev eth0 proto 83",
            "10.244.3.0/24 via 10.244.3.0 dev flannel.1 proto 83 onlink",
            "blackhole 10.244.1.0/24 proto 83",
            "fd10:244:4::/64 via fd10:244:4:: dev flannel-v6.1 proto 83",
        ] {
            assert!(kernel.contains(what), "no {what} in\n{kernel}");
        }
        assert_eq!(tables.matches("-j FLANNEL-POSTRTG").count() + tables.matches("-j FLANNEL-FWD").count(), 4, "{tables}");
        assert!(tables.contains("-j KUBE-SERVICES") && lab.annotations()["flannel.alpha.coreos.com/backend-type"] == "vxlan");

        // Without a flag only the service proxy's rules are deleted.
        let (status, log) = lab.cleanup(&["--iptables-variant", variant]);
        assert_eq!(status, Some(0), "{log}");
        assert_eq!(lab.kernel(), kernel);
        let without = lab.tables();
        assert!(!without.contains("KUBE-SERVICES") && without.contains("FLANNEL-POSTRTG"), "{without}");
        assert!(lab.path("run/subnet.env").exists());
        lab.program();
        let tables = lab.tables();

        let api = [lab.flag("kubeconfig", "kubeconfig"), "--node-name=n1".to_owned()];
        let (status, log) = lab.cleanup_network(&[&api[0], &api[1]]);
        assert_eq!(status, Some(0), "{variant}: {log}");
        for line in [
            "2 jumps and 2 chains deleted from iptables",
            "link flannel.1 deleted",
            "link flannel-v6.1 deleted",
            "4 routes deleted",
            "subnet.env deleted",
            "annotations of Node n1 deleted",
            "Leases of node n1 released: 10.244.1.0/24",
            "link flannel.77 stays",
        ] {
            assert!(log.contains(line), "{variant}: no {line:?} in {log}");
        }
        assert_eq!(lab.kernel(), before, "{variant}");
        let without: String = tables.lines().filter(|line| !line.contains("FLANNEL")).map(|line| format!("{line}\n")).collect();
        assert_eq!(lab.tables(), without, "{variant}");
        assert!(!lab.path("run/subnet.env").exists());
        let left = json!({"flannel.alpha.coreos.com/public-ip-overwrite": "192.168.0.1", "node.alpha.kubernetes.io/ttl": "0"});
        assert_eq!(lab.annotations(), left);
        let leases: Vec<Value> = lab.server.list("leases").iter().map(|lease| lease["metadata"]["name"].clone()).collect();
        assert_eq!(leases, ["sepal-10-244-2-0-24"]);

        let (status, log) = lab.cleanup_network(&[&api[0], &api[1]]);
        assert_eq!(status, Some(0), "{variant}: {log}");
        assert!(!log.contains(" deleted from ") && !log.contains("released") && !log.contains("ERROR"), "{variant}: {log}");
        assert_eq!((lab.kernel(), lab.tables()), (before, without), "{variant}");
    }
}

/// flannel's links, routes and rules are deleted, too, although sepal never ran on the node.
#[test]
fn what_flannel_has_left_goes_too() {
    let lab = Lab::new("nft");
    let before = lab.kernel();
    lab.node.run(
        "ip link add flannel.1 type vxlan id 1 dev eth0 local 192.168.0.1 dstport 8472 nolearning
         ip addr add 10.244.1.0/32 dev flannel.1; ip link set flannel.1 up
         ip route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink
         ip route add blackhole 10.244.1.0/24 metric 9; ip route add blackhole 10.244.9.0/24",
    );
    fs::create_dir(lab.path("run")).expect("writable");
    let env = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    fs::write(lab.path("run/subnet.env"), env).expect("writable");
    let (status, log) = lab.cleanup_network(&[]);
    assert_eq!(status, Some(0), "{log}");
    assert!(log.contains("annotations and Leases stay (--kubeconfig, --master, --node-name)"), "{log}");
    lab.node.run("ip route delete blackhole 10.244.9.0/24");
    assert_eq!(lab.kernel(), before);
}

/// A step that fails is reported, and all others are done: the API refuses or does not answer.
#[test]
fn one_failure_holds_up_nothing_else() {
    let lab = Lab::new("nft");
    let before = lab.kernel();
    lab.program();
    lab.server.deny("patch", "nodes/status");
    lab.server.deny("list", "leases");
    let api = [lab.flag("kubeconfig", "kubeconfig"), "--node-name=n1".to_owned()];
    let (status, log) = lab.cleanup_network(&[&api[0], &api[1]]);
    assert_eq!(status, Some(1), "{log}");
    for line in [
        "cannot write annotations of Node n1: ",
        "the verb patch on nodes/status is missing",
        "If node n1 has a Lease, it stays until it expires",
        "encountered an error while tearing down the pod network",
    ] {
        assert!(log.contains(line), "no {line:?} in {log}");
    }
    assert_eq!(lab.kernel(), before);
    assert!(!lab.tables().contains("FLANNEL") && !lab.path("run/subnet.env").exists());

    lab.server.allow_all();
    let (status, log) = lab.cleanup_network(&[&api[0], "--node-name=unheard-of"]);
    assert_eq!(status, Some(0), "{log}");
    assert!(log.contains("there is no Node unheard-of"), "{log}");
    let (status, log) = lab.cleanup_network(&["--master=http://127.0.0.1:1", "--node-name=n1"]);
    assert_eq!(status, Some(1), "{log}");
    assert!(log.contains("annotations of Node n1: "), "{log}");
}

#[test]
fn its_flags_need_the_pod_network() {
    let output = Command::new(SEPAL).args(["cleanup", "--subnet-file=x"]).output().expect("sepal starts");
    assert_ne!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--pod-network"));
}
