//! The pod network on several nodes: traffic between pods, and the published state byte for byte.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use sepal_lab::pod_cluster::NETWORKS;
use sepal_lab::traffic::{ping_whole, send, tcp};
use sepal_lab::{Families, Layout, Pod, PodCluster, PodNode, Prober, wait_until_within};
use serde_json::{Value, json};

use crate::SEPAL;

/// Flannel's prefix of annotations.
const PREFIX: &str = "flannel.alpha.coreos.com";
/// Time limit for reactions to a change. It is shorter than the 30 s between two audits, which would apply the change, too.
const SOON: Duration = Duration::from_secs(25);

fn cluster(layout: Layout) -> PodCluster {
    PodCluster::new(Path::new(SEPAL), layout)
}

/// The client address that a server sees.
fn seen(from: &sepal_lab::Netns, to: SocketAddr, what: &str) -> String {
    tcp(from, to).unwrap_or_else(|error| panic!("{what}, to {to}: {error}"))
}

/// A cluster with four pods: two on the first node, and one on each of the others.
fn with_pods(layout: Layout, flags: &[&str]) -> (PodCluster, [Pod; 4]) {
    let cluster = cluster(layout);
    cluster.start(flags);
    let [first, second, third] = [0, 1, 2].map(|at: usize| &cluster.nodes[at]);
    let pods = [first.attach(), first.attach(), second.attach(), third.attach()];
    (cluster, pods)
}

/// All pods and nodes reach all pods, with the expected source address.
fn packets_get_where_they_should(cluster: &PodCluster, pods: &[Pod], mtu: u32) {
    let [first, second, ..] = cluster.nodes.as_slice() else { unreachable!("there are three") };
    for ip in pods[0].ips.clone() {
        let base = |number| if ip.is_ipv4() { format!("10.244.{number}.0") } else { format!("fd10:244:{number}::") };
        for (at, from) in pods.iter().enumerate() {
            for to in pods.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, pod)| pod) {
                assert_eq!(seen(&from.netns, to.tcp(ip), "pod to pod"), from.ip_like(ip).to_string(), "its own address");
            }
            let node = &cluster.nodes[at.saturating_sub(1)];
            let outside = seen(&from.netns, cluster.outside.tcp(ip), "pod to outside");
            assert_eq!(outside, node.ip_like(ip).to_string(), "the node's address");
        }
        assert_eq!(seen(&first.netns, pods[2].tcp(ip), "host to remote pod"), base(1), "the VXLAN link's address");
        assert_eq!(seen(&second.netns, pods[0].tcp(ip), "host to remote pod"), base(2), "the VXLAN link's address");
        seen(&first.netns, pods[0].tcp(ip), "host to own pod");

        let overhead = if ip.is_ipv4() { 28 } else { 48 };
        let to = pods[2].ip_like(ip);
        assert!(ping_whole(&pods[0].netns, to, mtu - overhead), "{to}: the largest packet gets through");
        assert!(!ping_whole(&pods[0].netns, to, mtu - overhead + 1), "{to}: one byte more does not");
        pods[0].netns.run(&format!("ping -n -c 1 -W 5 -s {} {to}", mtu - overhead + 1));

        let pieces = || cluster.nodes.iter().map(fragments).sum::<u64>();
        let before = pieces();
        send(&pods[0].netns, pods[2].sink(ip), 4 << 20).expect("what arrives is what was sent");
        send(&pods[3].netns, pods[1].sink(ip), 4 << 20).expect("what arrives is what was sent");
        send(&pods[0].netns, pods[1].sink(ip), 1 << 20).expect("what arrives is what was sent");
        assert_eq!(pieces(), before, "no outer packet is too large for its way");
    }
}

/// The number of packets that a node has fragmented.
fn fragments(node: &PodNode) -> u64 {
    let text = node.netns.run("nstat -asz IpFragCreates Ip6FragCreates");
    let counters: Vec<u64> = text.lines().filter_map(|line| line.strip_prefix("Ip")?.split_whitespace().nth(1)?.parse().ok()).collect();
    assert_eq!(counters.len(), 2, "{text}");
    counters.iter().sum()
}

/// The first node's annotations, subnet.env, links and entries equal flanneld's, byte for byte.
fn flannel_would_say_the_same(cluster: &PodCluster, mtu: u32) {
    let families = cluster.layout.families;
    let first = &cluster.nodes[0];
    let macs =
        families.of("flannel.1", "flannel-v6.1").into_iter().map(|link| mac_of(&first.netns.run(&format!("ip -o link show {link}"))));
    let data: Vec<String> = macs.map(|mac| format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#)).collect();
    let names = families.of(("backend-data", "public-ip"), ("backend-v6-data", "public-ipv6"));
    let ips = families.of("192.168.77.1", "fd77::1");
    let mut wanted = json!({});
    for (((data_name, ip_name), data), ip) in names.into_iter().zip(data).zip(ips) {
        wanted[format!("{PREFIX}/{data_name}")] = json!(data);
        wanted[format!("{PREFIX}/{ip_name}")] = json!(ip);
    }
    wanted[format!("{PREFIX}/backend-type")] = json!("vxlan");
    wanted[format!("{PREFIX}/kube-subnet-manager")] = json!("true");
    let node = cluster.node(1);
    assert_eq!(node["metadata"]["annotations"], wanted);

    // The bodies of both patches.
    let log = cluster.server.log();
    let mut patches = log.iter().filter(|entry| entry.path.starts_with("/api/v1/nodes/node-1") && entry.method == "PATCH");
    let annotations = patches.next().expect("one patch writes annotations");
    let condition = patches.next().expect("another one the condition");
    assert_eq!(patches.next(), None, "and no other one anything");
    for patch in [annotations, condition] {
        assert_eq!(patch.path.split('?').next(), Some("/api/v1/nodes/node-1/status"));
        assert_eq!((&*patch.content_type, patch.code), ("application/strategic-merge-patch+json", 200));
    }
    assert_eq!(annotations.patch, json!({"metadata": {"annotations": wanted}}).to_string());
    let told = &node["status"]["conditions"][0];
    let time = told["lastHeartbeatTime"].as_str().expect("a time");
    assert!(time.len() == 20 && time.ends_with('Z'), "{time}");
    assert_eq!(
        condition.patch,
        format!(
            "{{\"status\":{{\"conditions\":[{{\"type\":\"NetworkUnavailable\",\"status\":\"False\",\"lastHeartbeatTime\":\"{time}\",\
             \"lastTransitionTime\":\"{time}\",\"reason\":\"FlannelIsUp\",\"message\":\"Flannel is running on this node\"}}]}}}}"
        )
    );

    let pairs = families.of(
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n",
        "FLANNEL_IPV6_NETWORK=fd10:244::/32\nFLANNEL_IPV6_SUBNET=fd10:244:1::1/64\n",
    );
    assert_eq!(first.subnet_env(), format!("{}FLANNEL_MTU={mtu}\nFLANNEL_IPMASQ=true\n", pairs.concat()));
    let mode = first.netns.run(&format!("stat -c %a {}", first.subnet_file().display()));
    assert_eq!(mode, "644\n");

    let of_family = families
        .of(("iptables-nft", NETWORKS[0], "10.244.1.0/24", "224.0.0.0/4"), ("ip6tables-nft", NETWORKS[1], "fd10:244:1::/64", "ff00::/8"));
    for (tool, network, subnet, multicast) in of_family {
        let rules = first.netns.run(&format!("for table in nat filter; do {tool}-save -t $table | grep -e '^-A.*FLANNEL'; done"));
        let masq = "-m comment --comment \"flanneld masq\" -j";
        let forward = "-m comment --comment \"flanneld forward\" -j";
        let wanted = [
            format!("-A POSTROUTING {masq} FLANNEL-POSTRTG"),
            format!("-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {masq} RETURN"),
            format!("-A FLANNEL-POSTRTG -s {subnet} -d {network} {masq} RETURN"),
            format!("-A FLANNEL-POSTRTG -s {network} -d {subnet} {masq} RETURN"),
            format!("-A FLANNEL-POSTRTG ! -s {network} -d {subnet} {masq} RETURN"),
            format!("-A FLANNEL-POSTRTG -s {network} ! -d {multicast} {masq} MASQUERADE --random-fully"),
            format!("-A FLANNEL-POSTRTG ! -s {network} -d {network} {masq} MASQUERADE --random-fully"),
            format!("-A FORWARD {forward} FLANNEL-FWD"),
            format!("-A FLANNEL-FWD -s {network} {forward} ACCEPT"),
            format!("-A FLANNEL-FWD -d {network} {forward} ACCEPT"),
        ];
        assert_eq!(rules.lines().collect::<Vec<_>>(), wanted);
    }
}

/// A pod's request to a Service reaches another node's pod with the client's own address; the host's request is masqueraded.
fn services_reach_remote_pods(cluster: &PodCluster, pods: &[Pod]) {
    for ip in &pods[2].ips {
        let (name, cluster_ip, family, base) =
            if ip.is_ipv4() { ("v4", "10.96.0.80", "IPv4", "10.244.1.0") } else { ("v6", "fd96::80", "IPv6", "fd10:244:1::") };
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": name},
            "spec": {"clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "ipFamilies": [family], "ports": [{"port": 80, "protocol": "TCP"}]},
        });
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"namespace": "default", "name": name, "labels": {"kubernetes.io/service-name": name}},
            "endpoints": [{"addresses": [ip], "nodeName": "node-2", "conditions": {"ready": true}}],
            "ports": [{"name": "", "port": pods[2].tcp(*ip).port(), "protocol": "TCP"}],
        });
        cluster.server.load(vec![service, slice]).expect("a Service");
        let at = SocketAddr::new(cluster_ip.parse().expect("an address"), 80);
        wait_until_within(SOON, "the Service answers a pod", || tcp(&pods[0].netns, at).is_ok());
        assert_eq!(seen(&pods[0].netns, at, "pod to ClusterIP"), pods[0].ip_like(*ip).to_string());
        assert_eq!(seen(&cluster.nodes[0].netns, at, "host to ClusterIP"), base, "the VXLAN link's address");
    }
}

#[test]
fn ipv4_beside_another_proxy() {
    let (cluster, pods) = with_pods(Layout::vxlan(3, Families::V4), &["--proxy=false"]);
    packets_get_where_they_should(&cluster, &pods, 1450);
    flannel_would_say_the_same(&cluster, 1450);
    assert!(!cluster.nodes[0].netns.run("iptables-nft-save").contains("KUBE-"), "the service proxy is another program's");
}

#[test]
fn both_families_with_the_proxy() {
    let (cluster, pods) = with_pods(Layout::vxlan(3, Families::Dual), &[]);
    packets_get_where_they_should(&cluster, &pods, 1430);
    services_reach_remote_pods(&cluster, &pods);
    flannel_would_say_the_same(&cluster, 1430);
}

#[test]
fn ipv6_alone() {
    let (cluster, pods) = with_pods(Layout::vxlan(3, Families::V6), &["--proxy=false"]);
    packets_get_where_they_should(&cluster, &pods, 1430);
    flannel_would_say_the_same(&cluster, 1430);
}

/// The daemon is terminated or killed and started again: no packet is lost, and nothing is written.
#[test]
fn restarts_lose_no_packet() {
    let (cluster, pods) = with_pods(Layout::vxlan(3, Families::Dual), &[]);
    let first = &cluster.nodes[0];
    let ips = pods[0].ips.clone();
    let there = ips.iter().map(|ip| Prober::start(&pods[0].netns, pods[2].udp(*ip)));
    let back = ips.iter().map(|ip| Prober::start(&pods[3].netns, pods[0].udp(*ip)));
    let outside = ips.iter().map(|ip| Prober::start(&pods[1].netns, cluster.outside.udp(*ip)));
    let probers: Vec<Prober> = there.chain(back).chain(outside).collect();
    let lost = || {
        for prober in &probers {
            prober.wait_for_requests(10);
        }
        probers.iter().map(Prober::lost).collect::<Vec<_>>()
    };
    assert_eq!(lost(), [0; 6], "before");
    let before = first.state();
    assert_eq!(first.stop(), Some(0), "SIGTERM is a good end");
    assert_eq!(first.state(), before, "and leaves everything");
    assert_eq!(lost(), [0; 6], "stopped");
    for end in ["SIGTERM", "SIGKILL"] {
        if end == "SIGKILL" {
            first.kill();
        }
        let generation = first.netns.run("ip -o link show flannel.1");
        first.start_again();
        first.wait_ready();
        assert_eq!(lost(), [0; 6], "started again after {end}");
        assert_eq!(first.state(), before, "{end}");
        assert_eq!(first.netns.run("ip -o link show flannel.1"), generation, "{end}: the link is the same one");
    }
    let asked: Vec<usize> = probers.iter().map(Prober::asked).collect();
    assert!(asked.iter().all(|asked| *asked > 30), "they did ask: {asked:?}");
}

/// The hardware address in the output of `ip link`.
fn mac_of(text: &str) -> String {
    text.rsplit("link/ether ").next().and_then(|rest| rest.split_whitespace().next()).expect("a hardware address").to_owned()
}

/// A running network follows the changes of net-conf.json that it can, without losing a packet.
#[test]
fn the_configuration_is_followed() {
    let (cluster, pods) = with_pods(Layout::vxlan(3, Families::Dual), &["--proxy=false"]);
    let probers: Vec<Prober> = pods[0].ips.iter().map(|ip| Prober::start(&pods[0].netns, pods[2].udp(*ip))).collect();
    let configure = |key: &str, value: Value| {
        let mut layout = cluster.layout.clone();
        layout.backend[key] = value;
        cluster.nodes.iter().for_each(|node| node.configure(&layout.net_conf()));
    };
    let first = &cluster.nodes[0];
    let before = first.state();
    let mtu = |link: &str| first.netns.run(&format!("ip -o link show {link} | sed 's/.* mtu //; s/ .*//'"));
    configure("MTU", json!(1400));
    wait_until_within(SOON, "the MTU is followed", || {
        [mtu("flannel.1"), mtu("flannel-v6.1"), mtu("cni0")] == ["1350\n", "1330\n", "1330\n"]
            && first.subnet_env().contains("FLANNEL_MTU=1330\n")
    });
    configure("MTU", Value::Null);
    wait_until_within(SOON, "the change back is followed", || mtu("cni0") == "1430\n" && first.state() == before);

    let routes = || first.netns.run("ip route show proto 83; ip -6 route show proto 83");
    let tunnelled = routes();
    configure("DirectRouting", json!(true));
    wait_until_within(SOON, "packets to neighbours go without VXLAN", || {
        let routes = routes();
        [2, 3].into_iter().all(|number| {
            routes.contains(&format!("10.244.{number}.0/24 via 192.168.77.{number} dev eth0"))
                && routes.contains(&format!("fd10:244:{number}::/64 via fd77::{number} dev eth0"))
        }) && !first.state().contains("PERMANENT")
    });
    for ip in pods[0].ips.clone() {
        assert_eq!(seen(&pods[0].netns, pods[2].tcp(ip), "pod to pod"), pods[0].ip_like(ip).to_string());
    }
    assert_eq!(probers[0].lost(), 0, "IPv4");
    configure("DirectRouting", json!(false));
    wait_until_within(SOON, "routes over the tunnel are back", || routes() == tunnelled && first.state() == before);
    assert_eq!(probers[0].lost(), 0, "IPv4");
    // The kernel accepts the IPv6 route over the tunnel only after the direct one is deleted.
    let lost = probers[1].lost();
    assert!(lost < 10, "{lost} of IPv6");

    configure("VNI", json!(9));
    wait_until_within(SOON, "a change that needs a restart is reported", || first.log().contains("VNI"));
    assert_eq!(first.state(), before);
}

/// The backend host-gw: routes without VXLAN.
#[test]
fn host_gw() {
    let layout = Layout { backend: json!({"Type": "host-gw"}), ..Layout::vxlan(2, Families::Dual) };
    let cluster = cluster(layout);
    cluster.start(&["--proxy=false"]);
    let [first, second] = cluster.nodes.as_slice() else { unreachable!("there are two") };
    let pods = [first.attach(), second.attach()];
    for ip in pods[0].ips.clone() {
        assert_eq!(seen(&pods[0].netns, pods[1].tcp(ip), "pod to pod"), pods[0].ip_like(ip).to_string());
        assert_eq!(seen(&pods[0].netns, cluster.outside.tcp(ip), "pod to outside"), first.ip_like(ip).to_string());
        assert!(ping_whole(&pods[0].netns, pods[1].ip_like(ip), if ip.is_ipv4() { 1472 } else { 1452 }), "all of 1500 bytes");
    }
    assert!(first.subnet_env().contains("FLANNEL_MTU=1500\n"));
    let annotations = &cluster.node(1)["metadata"]["annotations"];
    assert_eq!(
        (&annotations[format!("{PREFIX}/backend-type")], &annotations[format!("{PREFIX}/backend-data")]),
        (&json!("host-gw"), &json!("null"))
    );
    let before = first.state();
    assert!(before.contains("10.244.2.0/24 via 192.168.77.2 dev eth0 proto 83") && !before.contains("vxlan"), "{before}");
    first.netns.run("ip route del 10.244.2.0/24; ip -6 route replace fd10:244:2::/64 via fd77::200 proto 83");
    wait_until_within(SOON, "the routes are back", || first.state() == before);

    let behind_the_router = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "far", "annotations": {
            format!("{PREFIX}/kube-subnet-manager"): "true", format!("{PREFIX}/backend-type"): "host-gw",
            format!("{PREFIX}/public-ip"): "203.0.113.99", format!("{PREFIX}/public-ipv6"): "2001:db8::99",
        }},
        "spec": {"podCIDRs": ["10.244.99.0/24", "fd10:244:99::/64"]},
    });
    cluster.server.put(behind_the_router).expect("a Node");
    for (family, ip) in [("ipv4", "203.0.113.99"), ("ipv6", "2001:db8::99")] {
        let refused = format!("refused: node far ({family}): its address {ip} ");
        wait_until_within(SOON, "a node that is no neighbour is refused", || {
            first.log().lines().any(|line| line.contains(&refused) && line.contains("is not on a network of the external interface"))
        });
    }
    assert_eq!(first.state(), before);
}
