//! Node objects of thousands of peers around one real node, and the time that iproute2 needs to write their entries.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use crate::netns::Netns;

/// Returns a Node object of ten kilobytes, as the API server sends it. Number 0 is the real node, `bench`. Another `generation` gives the
/// node's VTEP another MAC address.
pub fn node_object(number: usize, generation: usize) -> Value {
    let [high, low] = [number / 256, number % 256];
    let name = if number == 0 { "bench".to_owned() } else { format!("node-{number}") };
    let images: Vec<Value> = (0..30)
        .map(|i| json!({"names": [format!("registry.example.com/team/image-{i}@sha256:{:064x}", i + number), format!("registry.example.com/team/image-{i}:v1.{number}")], "sizeBytes": 100_000_000 + i}))
        .collect();
    let mut annotations = json!({"node.alpha.kubernetes.io/ttl": "0", "volumes.kubernetes.io/controller-managed-attach-detach": "true"});
    if number > 0 {
        annotations["flannel.alpha.coreos.com/kube-subnet-manager"] = json!("true");
        annotations["flannel.alpha.coreos.com/backend-type"] = json!("vxlan");
        annotations["flannel.alpha.coreos.com/backend-data"] = json!(format!("{{\"VNI\":1,\"VtepMAC\":\"{}\"}}", mac(number, generation)));
        annotations["flannel.alpha.coreos.com/public-ip"] = json!(format!("172.16.{high}.{low}"));
    }
    let managed = |manager: &str| json!({"manager": manager, "operation": "Update", "fieldsV1": {"f:metadata": {"f:annotations": {"f:x": "y".repeat(900)}}}});
    let subnet = format!("10.{}.{low}.0/24", 1 + high);
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": name, "uid": format!("uid-{number}"), "creationTimestamp": "2026-01-01T00:00:00Z", "annotations": annotations,
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"},
            "managedFields": [managed("kubelet"), managed("kube-controller-manager"), managed("flanneld")],
        },
        "spec": {"podCIDR": subnet, "podCIDRs": [subnet]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": if number == 0 { "192.168.77.1".into() } else { format!("172.16.{high}.{low}") }}],
            "capacity": {"cpu": "64", "memory": "263000000Ki", "pods": "110"}, "images": images,
            "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:00Z", "message": "kubelet is posting ready status"}],
        },
    })
}

fn mac(number: usize, generation: usize) -> String {
    format!("02:00:{:02x}:{:02x}:{:02x}:{:02x}", generation, number >> 16, (number >> 8) & 255, number & 255)
}

/// Creates the namespace of the real node, with one interface to the other nodes.
pub fn new_host() -> Netns {
    let host = Netns::new();
    host.run(
        "ip link add eth0 type veth peer name beyond; ip link set eth0 up; ip link set beyond up
         ip addr add 192.168.77.1/24 dev eth0; ip route add default via 192.168.77.254",
    );
    host
}

/// Writes the entries of all peers with one `bridge -batch` and one `ip -batch`. Returns the time in s.
pub fn time_iproute2(peers: usize, folder: &Path) -> f64 {
    let host = new_host();
    host.run(
        "ip link add flannel.1 type vxlan id 1 dev eth0 local 192.168.77.1 dstport 8472 nolearning; ip addr add 10.1.0.0/32 dev flannel.1
         ip link set flannel.1 up",
    );
    let (mut ip_commands, mut bridge_commands) = (String::new(), String::new());
    for number in 1..=peers {
        let [high, low] = [number / 256, number % 256];
        let (base, mac) = (format!("10.{}.{low}.0", 1 + high), mac(number, 0));
        let _ = writeln!(ip_commands, "neigh replace {base} lladdr {mac} dev flannel.1 nud permanent");
        let _ = writeln!(ip_commands, "route replace {base}/24 via {base} dev flannel.1 onlink proto 83");
        let _ = writeln!(bridge_commands, "fdb replace {mac} dev flannel.1 dst 172.16.{high}.{low} self permanent");
    }
    let [ip_file, bridge_file] = ["ip", "bridge"].map(|name| folder.join(name));
    std::fs::write(&ip_file, ip_commands).expect("writable");
    std::fs::write(&bridge_file, bridge_commands).expect("writable");
    let start = Instant::now();
    host.run(&format!("bridge -batch {}; ip -batch {}", bridge_file.display(), ip_file.display()));
    let took = start.elapsed().as_secs_f64();
    assert_eq!(count_routes(&host), peers);
    took
}

/// Returns how many routes with sepal's route protocol a node has.
pub fn count_routes(host: &Netns) -> usize {
    host.run("ip route show proto 83 | wc -l").trim().parse().expect("a number")
}

/// Sets the heartbeat time of a Node object.
pub fn with_heartbeat(mut node: Value, beat: usize) -> Value {
    node["status"]["conditions"][0]["lastHeartbeatTime"] = json!(format!("2026-01-01T00:{:02}:{:02}Z", beat / 60 % 60, beat % 60));
    node
}
