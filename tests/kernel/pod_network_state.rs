//! A node that loses its subnet reports it, gives no address of it to pods, and deletes it from the kernel.

use std::path::Path;
use std::time::Duration;

use sepal_lab::traffic::tcp;
use sepal_lab::{Families, Layout, PodCluster, PodNode, wait_until, wait_until_within};
use serde_json::{Value, json};

use crate::SEPAL;

/// Time limit for reactions to a change. It is shorter than the 30 s between two audits, which would apply the change, too.
const SOON: Duration = Duration::from_secs(25);

fn condition(cluster: &PodCluster, number: u8) -> (Value, Value) {
    let condition = cluster.node(number)["status"]["conditions"][0].clone();
    (condition["status"].clone(), condition["reason"].clone())
}

fn has_event(cluster: &PodCluster, reason: &str, words: &str) -> bool {
    let is_it = |event: &Value| {
        event["reason"] == json!(reason)
            && event["regarding"]["name"] == json!("node-1")
            && event["note"].as_str().is_some_and(|note| note.contains(words))
    };
    cluster.server.list("events.events.k8s.io").iter().any(is_it)
}

fn links(node: &PodNode) -> String {
    node.netns.run("ip -o addr show | sed 's/^[0-9]*: //'")
}

fn fails_to_connect(node: &PodNode, id: &str) {
    let error = node.connect(id).expect_err("there is no subnet").to_string();
    assert!(error.contains("failed to load flannel 'subnet.env' file") && error.contains("no such file"), "{error}");
}

fn set_pod_cidrs(cluster: &PodCluster, cidrs: &[&str]) {
    cluster.change_node(1, |node| {
        node["spec"] = if cidrs.is_empty() { json!({}) } else { json!({"podCIDR": cidrs[0], "podCIDRs": cidrs}) };
    });
}

#[test]
fn the_pod_cidr_changes_or_goes_while_the_daemon_is_down_and_while_it_runs() {
    let cluster = PodCluster::new(Path::new(SEPAL), Layout::vxlan(2, Families::Dual));
    let [first, second] = cluster.nodes.as_slice() else { unreachable!("there are two") };
    first.start(&["--proxy=false", "--cni-conf-dir", &first.conf_dir()]);
    second.start(&["--proxy=false"]);
    cluster.nodes.iter().for_each(PodNode::wait_ready);
    let other = second.attach();
    let connect = |id: &str| {
        let pod = first.connect(id).expect("it is connected");
        for ip in &pod.ips {
            wait_until_within(SOON, "it reaches the other node", || {
                tcp(&pod.netns, other.tcp(*ip)).is_ok_and(|seen| seen == ip.to_string())
            });
        }
        pod
    };
    let former = connect("a");
    let mut before = ["10.244.1.0/24", "fd10:244:1::/64"];
    for (number, is_down) in [(5, true), (6, false)] {
        let cidrs = [format!("10.244.{number}.0/24"), format!("fd10:244:{number}::/64")];
        let now = [cidrs[0].as_str(), cidrs[1].as_str()];
        if is_down {
            assert_eq!(first.stop(), Some(0));
        }
        set_pod_cidrs(&cluster, &now);
        if is_down {
            first.start_again();
        }
        let named = format!("FLANNEL_SUBNET=10.244.{number}.1/24");
        wait_until_within(SOON, "subnet.env names the new subnet", || first.subnet_env().contains(&named));
        let words = format!("the subnet of this node changed from {} and {} to {} and {}", before[0], before[1], now[0], now[1]);
        wait_until_within(SOON, &words, || first.log().contains(&words));
        let links = links(first);
        let is_there = |what: String| links.contains(&what);
        assert!(
            is_there(format!("flannel.1    inet 10.244.{number}.0/32"))
                && is_there(format!("flannel-v6.1    inet6 fd10:244:{number}::/128")),
            "{links}"
        );
        assert!(!is_there("10.244.1.".into()) && !is_there("fd10:244:1:".into()), "{links}");
        // The CNI plugin sets the bridge's new address.
        let pod = connect(&format!("pod-{number}"));
        assert!(pod.ips[0].to_string().starts_with(&format!("10.244.{number}.")), "{:?}", pod.ips);
        before = if number == 5 { ["10.244.5.0/24", "fd10:244:5::/64"] } else { before };
    }
    let words = "the subnet of this node changed from 10.244.1.0/24 and fd10:244:1::/64 to 10.244.5.0/24";
    wait_until_within(SOON, "an Event reports it", || has_event(&cluster, "SubnetChanged", words));
    assert!(former.ips[0].to_string().starts_with("10.244.1."));

    for is_down in [true, false] {
        let state = |node: &PodNode| (links(node), node.netns.run("ip route; ip -6 route"));
        if is_down {
            first.kill();
        }
        set_pod_cidrs(&cluster, &[]);
        if is_down {
            first.start_again();
        }
        wait_until_within(SOON, "subnet.env is deleted", || first.subnet_env().is_empty());
        wait_until_within(SOON, "links and routes are deleted", || {
            let (links, routes) = state(first);
            !links.contains("flannel") && !routes.contains("proto 83")
        });
        fails_to_connect(first, "b");
        wait_until_within(SOON, "the condition reports it", || condition(&cluster, 1) == (json!("True"), json!("PodCIDRMissing")));
        let (status, parts) = first.readiness().expect("it stays up");
        assert!(status == 503 && parts.contains("[-]subnet ") && parts.contains("pod cidr not assigned"), "{parts}");
        // The same podCIDRs are assigned again: running pods have kept their gateway.
        let gateway = "cni0    inet 10.244.6.1/24";
        assert!(links(first).contains(gateway), "{}", links(first));
        set_pod_cidrs(&cluster, &["10.244.6.0/24", "fd10:244:6::/64"]);
        first.wait_ready();
        connect(if is_down { "c" } else { "d" });
        wait_until_within(SOON, "the condition reports it", || condition(&cluster, 1).0 == json!("False"));
    }
    let words = "this node lost its subnet 10.244.6.0/24 and fd10:244:6::/64, and no pod can start";
    wait_until_within(SOON, "an Event reports it", || has_event(&cluster, "SubnetWithdrawn", words));
}

/// The service proxy waits for a podCIDR (detectLocalMode NodeCIDR). Meanwhile the stale subnet.env is deleted.
#[test]
fn a_service_proxy_that_waits_for_a_pod_cidr_does_not_keep_subnet_env() {
    let cluster = PodCluster::new(Path::new(SEPAL), Layout::vxlan(1, Families::V4));
    let first = &cluster.nodes[0];
    first.start(&["--detect-local-mode=NodeCIDR"]);
    first.wait_ready();
    assert!(!first.subnet_env().is_empty());
    first.kill();
    set_pod_cidrs(&cluster, &[]);
    first.start_again();
    wait_until_within(SOON, "subnet.env is deleted", || first.subnet_env().is_empty());
    wait_until_within(SOON, "the condition reports it", || condition(&cluster, 1) == (json!("True"), json!("PodCIDRMissing")));
    set_pod_cidrs(&cluster, &["10.244.5.0/24"]);
    first.wait_ready();
    assert!(first.subnet_env().contains("FLANNEL_SUBNET=10.244.5.1/24"));
}

/// The API server does not answer when the daemon starts: everything stays, because it may still be this node's.
#[test]
fn an_api_server_that_is_away_takes_nothing_away() {
    let cluster = PodCluster::new(Path::new(SEPAL), Layout::vxlan(2, Families::V4));
    let first = &cluster.nodes[0];
    first.start(&["--proxy=false", "--cni-conf-dir", &first.conf_dir()]);
    first.wait_ready();
    let before = first.state();
    assert_eq!(first.stop(), Some(0));
    cluster.switch.run("ip addr del 192.168.77.254/24 dev br0");
    first.start_again();
    let words = "[-]subnet not yet";
    wait_until(words, || first.readiness().is_some_and(|(_, parts)| parts.contains(words)));
    assert_eq!(first.state(), before);
    first.connect("a").expect("pods still come");
    cluster.switch.run("ip addr add 192.168.77.254/24 dev br0");
    first.wait_ready();
    assert!(first.subnet_env().contains("FLANNEL_SUBNET=10.244.1.1/24"));
}

#[test]
fn a_lease_that_went_to_another_node_takes_subnet_env_along() {
    let layout = Layout { assigned: false, ..Layout::vxlan(2, Families::Dual) };
    let mut conf = layout.net_conf();
    // One IPv4 subnet and many IPv6 subnets.
    (conf["SubnetMin"], conf["SubnetMax"]) = (json!("10.244.5.0"), json!("10.244.5.0"));
    let cluster = PodCluster::new(Path::new(SEPAL), layout);
    let first = &cluster.nodes[0];
    first.configure(&conf);
    first.start(&["--proxy=false", "--subnet-source=lease", "--cni-conf-dir", &first.conf_dir()]);
    first.wait_ready();
    first.connect("a").expect("it is connected");
    let lease = || cluster.server.get("leases", "kube-system/sepal-10-244-5-0-24").expect("it is leased");
    // While the node is down its lease expires, and another node takes the subnet.
    first.kill();
    let mut taken = lease();
    taken["spec"]["holderIdentity"] = json!("node-2_uid-2");
    cluster.server.put(taken).expect("a Lease");
    first.start_again();
    wait_until_within(SOON, "subnet.env is deleted", || first.subnet_env().is_empty());
    wait_until_within(SOON, "the IPv4 link and the bridge's address are deleted", || !links(first).contains("10.244.5."));
    assert!(links(first).contains("flannel-v6.1    inet6 fd10:244:"), "IPv6 is still leased: {}", links(first));
    fails_to_connect(first, "b");
    wait_until_within(SOON, "the condition reports it", || condition(&cluster, 1) == (json!("True"), json!("SubnetLost")));
    let (status, parts) = first.readiness().expect("it stays up");
    assert!(
        status == 503 && parts.contains("the lease of subnet 10.244.5.0/24 is lost: node-2_uid-2 has it now; out of subnets"),
        "{parts}"
    );
    for (reason, words) in [("SubnetLost", "node-2_uid-2 has it now"), ("SubnetWithdrawn", "this node lost its subnet 10.244.5.0/24")] {
        wait_until_within(SOON, reason, || has_event(&cluster, reason, words));
    }
    let public_ip = || cluster.node(1)["metadata"]["annotations"].get("flannel.alpha.coreos.com/public-ip").cloned();
    wait_until_within(SOON, "its Node does not ask for packets to that subnet", || public_ip().is_none());
    // The lease is released, and the node takes it.
    assert!(cluster.server.remove("leases", "kube-system/sepal-10-244-5-0-24"));
    first.wait_ready();
    assert!(first.subnet_env().contains("FLANNEL_SUBNET=10.244.5.1/24"));
    first.connect("c").expect("it is connected");
}
