//! Data that other nodes publish is validated, and missing permissions or a missing podCIDR disable only what needs them.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use sepal_lab::traffic::udp;
use sepal_lab::{Families, Layout, Pod, PodCluster, PodNode, Prober, wait_until, wait_until_within};
use serde_json::{Value, json};

use crate::SEPAL;

const PREFIX: &str = "flannel.alpha.coreos.com";
/// Time limit for reactions to a change. It is shorter than the 30 s between two audits, which would apply the change, too.
const SOON: Duration = Duration::from_secs(25);
/// The limit for the retry after a missing permission. The retry comes within 15 s; on a busy machine its work takes longer.
const TRIED_AGAIN: Duration = Duration::from_secs(40);

fn cluster(layout: Layout) -> PodCluster {
    PodCluster::new(Path::new(SEPAL), layout)
}

/// The notes of the Events about an object with this reason.
fn events(cluster: &PodCluster, about: &str, reason: &str) -> Vec<String> {
    let all = cluster.server.list("events.events.k8s.io");
    let fitting = all.iter().filter(|event| event["regarding"]["name"] == json!(about) && event["reason"] == json!(reason));
    fitting.map(|event| event["note"].as_str().unwrap_or_default().to_owned()).collect()
}

/// The condition NetworkUnavailable of a node: its status and its reason.
fn unavailable(cluster: &PodCluster, number: u8) -> String {
    let node = cluster.node(number);
    let conditions = node["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = conditions.iter().find(|condition| condition["type"] == json!("NetworkUnavailable"));
    found.map(|condition| format!("{} {}", condition["status"], condition["reason"]).replace('"', "")).unwrap_or_default()
}

/// A valid Node that exists only in the API.
fn ghost(name: &str, number: u8) -> Value {
    let cidr = format!("10.244.{number}.0/24");
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "annotations": {
            format!("{PREFIX}/backend-type"): "vxlan",
            format!("{PREFIX}/backend-data"): format!("{{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:00:{number:02x}\"}}"),
            format!("{PREFIX}/public-ip"): format!("192.168.77.{number}"),
            format!("{PREFIX}/kube-subnet-manager"): "true",
        }},
        "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
    })
}

fn with_cidr(mut node: Value, cidr: &str) -> Value {
    node["spec"] = json!({"podCIDR": cidr, "podCIDRs": [cidr]});
    node
}

fn with_annotation(mut node: Value, name: &str, value: &str) -> Value {
    node["metadata"]["annotations"][format!("{PREFIX}/{name}")] = json!(value);
    node
}

/// Two nodes with a pod each.
fn pair(families: Families, flags: &[&str]) -> (PodCluster, [Pod; 2]) {
    let cluster = cluster(Layout::vxlan(2, families));
    cluster.start(flags);
    let pods = [0, 1].map(|at: usize| cluster.nodes[at].attach());
    (cluster, pods)
}

#[test]
fn nodes_that_make_no_sense_are_refused_and_cost_only_themselves() {
    let (cluster, pods) = pair(Families::V4, &["--proxy=false"]);
    let first = &cluster.nodes[0];
    let prober = Prober::start(&pods[0].netns, pods[1].udp(pods[1].ips[0]));
    let before = first.state();
    let own_mac = cluster.node(1)["metadata"]["annotations"][format!("{PREFIX}/backend-data")].as_str().expect("a text").to_owned();
    let wrong = [
        (with_cidr(ghost("outside", 101), "10.245.1.0/24"), "its pod CIDR 10.245.1.0/24 is not inside the network 10.244.0.0/16"),
        (with_cidr(ghost("whole", 102), "10.244.0.0/16"), "its pod CIDR is all of the network 10.244.0.0/16"),
        (with_cidr(ghost("over-ours", 103), "10.244.1.128/25"), "its pod CIDR 10.244.1.128/25 overlaps this node's 10.244.1.0/24"),
        (
            with_cidr(ghost("over-theirs", 104), "10.244.2.0/23"),
            "its pod CIDR 10.244.2.0/23 overlaps 10.244.2.0/24 of node node-2, which keeps it",
        ),
        (
            with_annotation(ghost("our-address", 105), "public-ip", "192.168.77.1"),
            "it publishes 192.168.77.1, which is this node's address",
        ),
        (
            with_annotation(ghost("their-address", 106), "public-ip", "192.168.77.2"),
            "it publishes 192.168.77.2, as node node-2 does, which keeps it",
        ),
        (with_annotation(ghost("our-mac", 107), "backend-data", &own_mac), "its VXLAN link has the hardware address"),
        (with_annotation(ghost("no-json", 108), "backend-data", "{"), "annotation backend-data is \"{\""),
        (with_annotation(ghost("no-address", 109), "public-ip", "10.0.0.1/8"), "annotation public-ip is \"10.0.0.1/8\""),
    ];
    cluster.server.load(wrong.iter().map(|(node, _)| node.clone()).collect()).expect("Nodes");
    // A valid Node that comes after them is programmed.
    cluster.server.put(ghost("good", 120)).expect("a Node");
    let of_good = [
        "10.244.120.0/24 via 10.244.120.0 dev flannel.1 proto 83 onlink",
        "flannel.1 02:00:00:00:00:78 dst 192.168.77.120 self permanent",
        "flannel.1 10.244.120.0 lladdr 02:00:00:00:00:78 PERMANENT",
    ];
    let more = || {
        let known: BTreeSet<&str> = before.lines().collect();
        first.state().lines().filter(|line| !known.contains(line)).map(str::to_owned).collect::<BTreeSet<_>>()
    };
    wait_until_within(SOON, "the good one is programmed", || more() == of_good.map(str::to_owned).into());
    assert!(before.lines().all(|line| first.state().contains(line)), "what was there stays");

    let count = |reason: &str| format!("sepal_network_peers_refused{{reason=\"{reason}\"}} ");
    for (reason, number) in [("outside_network", 2), ("overlap", 2), ("same_address", 2), ("same_mac", 1), ("annotation", 2)] {
        wait_until_within(SOON, &format!("{number} are refused: {reason}"), || {
            first.metrics().lines().find_map(|line| line.strip_prefix(&count(reason))) == Some(&*number.to_string())
        });
    }
    for (node, why) in &wrong {
        let name = node["metadata"]["name"].as_str().expect("a name");
        let start = format!("refused: node {name} (ipv4): {why}");
        wait_until_within(SOON, &start, || first.log().contains(&start));
        assert_eq!(first.log().matches(&start).count(), 1, "{start}\n{}", first.log());
        wait_until_within(SOON, "an Event reports it", || {
            events(&cluster, name, "PeerRefused").iter().any(|note| note.starts_with(&format!("node {name} (ipv4): {why}")))
        });
    }
    // A refusal is logged once, whatever else changes, and it ends when the Node becomes valid.
    cluster.server.put(with_annotation(ghost("good", 120), "public-ip", "192.168.77.121")).expect("a Node");
    cluster.server.put(ghost("no-json", 108)).expect("a Node");
    wait_until_within(SOON, "a Node that is valid again is programmed", || {
        more().contains("10.244.108.0/24 via 10.244.108.0 dev flannel.1 proto 83 onlink")
            && more().contains("flannel.1 02:00:00:00:00:78 dst 192.168.77.121 self permanent")
    });
    wait_until_within(SOON, "the end of the refusal is logged", || first.log().contains("node no-json (ipv4) is not refused any more"));
    assert_eq!(first.log().matches("refused: node ").count(), wrong.len(), "{}", first.log());
    for node in cluster.server.list("nodes") {
        let name = node["metadata"]["name"].as_str().expect("a name");
        assert!(name.starts_with("node-") || cluster.server.remove("nodes", name));
    }
    wait_until_within(SOON, "nothing of them is left", || first.state() == before);
    let is_refused = |line: &str| line.starts_with("sepal_network_peers_refused{") && !line.ends_with(" 0");
    wait_until_within(SOON, "no node is refused", || {
        let metrics = first.metrics();
        metrics.contains("sepal_network_peers_refused{") && !metrics.lines().any(is_refused)
    });
    assert_eq!(prober.lost(), 0, "between the others traffic never stopped");
}

/// A peer whose annotations become invalid is removed at once.
#[test]
fn a_peer_that_turns_bad_goes() {
    let (cluster, _pods) = pair(Families::Dual, &["--proxy=false"]);
    let first = &cluster.nodes[0];
    let before = first.state();
    assert_eq!(cluster.nodes[1].stop(), Some(0));
    let good = cluster.node(2);
    let bad = with_annotation(good.clone(), "backend-v6-data", "nonsense");
    cluster.server.put(bad).expect("a Node");
    let of_peer = |family: &str| first.state().lines().filter(|line| line.contains(family)).count();
    wait_until_within(SOON, "its IPv6 entries are deleted, and its IPv4 entries stay", || {
        (of_peer("10.244.2.0"), of_peer("fd10:244:2::")) == (2, 0) && first.log().contains("refused: node node-2 (ipv6): annotation")
    });
    cluster.server.put(good).expect("a Node");
    wait_until_within(SOON, "its IPv6 entries are back", || first.state() == before);
}

/// The program keeps running, names the missing permission, and continues within 15 s after it is granted.
#[test]
fn missing_permissions_are_named_and_tried_again() {
    let cluster = cluster(Layout::vxlan(2, Families::V4));
    let first = &cluster.nodes[0];
    for (verb, resource) in [("list", "nodes"), ("watch", "nodes"), ("patch", "nodes/status")] {
        cluster.server.deny(verb, resource);
    }
    cluster.nodes.iter().for_each(|node| node.start(&["--proxy=false"]));
    wait_until_within(SOON, "the permission to read Nodes is named", || {
        first.log().contains("needs the verbs list and watch on nodes") && first.log().contains("is forbidden")
    });
    let (status, parts) = first.readiness().expect("it answers");
    assert!(status == 503 && parts.contains("[-]subnet not yet: no Nodes are known yet"), "{parts}");
    // Only reading is allowed: the network is set up and not published.
    cluster.server.allow_all();
    cluster.server.deny("patch", "nodes/status");
    wait_until_within(TRIED_AGAIN, "Nodes are read", || first.log().contains("add address 10.244.1.0/32"));
    let missing = "add to the rules of its role {apiGroups: [\"\"], resources: [\"nodes/status\"], verbs: [\"patch\"]}";
    wait_until_within(SOON, "the permission to write is named", || first.log().contains(missing));
    wait_until_within(SOON, "an Event reports it", || {
        events(&cluster, "node-1", "PermissionMissing").iter().any(|note| note.contains(missing))
    });
    let is_told =
        || first.readiness().is_some_and(|(status, parts)| status == 503 && parts.contains("[-]registration not yet: cannot write"));
    wait_until_within(SOON, "the node is not ready", is_told);
    let tries = || cluster.server.log().iter().filter(|entry| entry.path.contains("/node-1/status") && entry.code == 403).count();
    wait_until("it is tried again", || tries() >= 4);
    cluster.server.allow_all();
    wait_until_within(TRIED_AGAIN, "the permission is noticed", || first.readiness().is_some_and(|(status, _)| status == 200));
    assert_eq!(first.log().matches(missing).count(), 1, "it is said once:\n{}", first.log());
    cluster.nodes.iter().for_each(PodNode::wait_ready);

    // The permission is revoked while the daemon runs: the last known state stays, and traffic goes on.
    let pods = [first.attach(), cluster.nodes[1].attach()];
    let prober = Prober::start(&pods[0].netns, pods[1].udp(pods[1].ips[0]));
    let before = first.state();
    cluster.server.deny("list", "nodes");
    cluster.server.deny("watch", "nodes");
    let refusals = || cluster.server.log().iter().filter(|entry| entry.path.starts_with("/api/v1/nodes?") && entry.code == 403).count();
    let earlier = refusals();
    cluster.server.drop_watches();
    cluster.server.put(ghost("late", 120)).expect("a Node");
    wait_until("both nodes have tried again and again", || refusals() >= earlier + 8);
    assert_eq!(first.state(), before);
    cluster.server.allow_all();
    wait_until_within(TRIED_AGAIN, "the missed change is applied", || first.state().contains("10.244.120.0/24 via 10.244.120.0"));
    assert_eq!(prober.lost(), 0);
}

/// Without a podCIDR the program waits and reports why in the condition, an Event and `/readyz`.
#[test]
fn a_node_without_pod_cidr_waits_and_says_so() {
    let cluster = cluster(Layout { assigned: false, ..Layout::vxlan(2, Families::V4) });
    let [first, second] = cluster.nodes.as_slice() else { unreachable!("there are two") };
    first.start(&["--proxy=false"]);
    wait_until_within(SOON, "the condition reports it", || unavailable(&cluster, 1) == "True PodCIDRMissing");
    wait_until_within(SOON, "an Event names the flag that helps", || {
        events(&cluster, "node-1", "PodCIDRMissing").iter().any(|note| note.contains("--allocate-node-cidrs=true"))
    });
    let (status, parts) = first.readiness().expect("it answers");
    assert!(status == 503 && parts.contains("[-]subnet not yet: node \"node-1\" pod cidr not assigned"), "{parts}");
    assert_eq!((first.subnet_env(), cluster.node(1)["metadata"].get("annotations")), (String::new(), None));
    for number in [1, 2] {
        cluster.change_node(number, |node| *node = with_cidr(node.clone(), &format!("10.244.{number}.0/24")));
    }
    first.wait_ready();
    wait_until_within(SOON, "the condition reports that the network works", || unavailable(&cluster, 1) == "False FlannelIsUp");
    second.start(&["--proxy=false"]);
    second.wait_ready();
    let pods = [first.attach(), second.attach()];
    udp(&pods[0].netns, pods[1].udp(pods[1].ips[0])).expect("pod to pod");

    // A network that stops working is reported, but not during a short repair.
    first
        .netns
        .run("until ip -batch - <<END\nlink del flannel.1\nlink add other0 type vxlan id 1 dev eth0 dstport 8472\nEND\ndo true; done");
    let in_the_way = "link flannel.1 cannot be made: link other0 has VNI 1";
    wait_until_within(SOON, "the obstacle is reported", || first.readiness().is_some_and(|(_, parts)| parts.contains(in_the_way)));
    assert_eq!(unavailable(&cluster, 1), "False FlannelIsUp", "a repair may still succeed");
    wait_until("the condition reports that the network does not work", || unavailable(&cluster, 1) == "True LinksFailed");
    wait_until("an Event reports it", || events(&cluster, "node-1", "LinksFailed").iter().any(|note| note.contains(in_the_way)));
    first.netns.run("ip link del other0");
    wait_until_within(SOON, "the condition reports that the network works again", || unavailable(&cluster, 1) == "False FlannelIsUp");
    udp(&pods[0].netns, pods[1].udp(pods[1].ips[0])).expect("pod to pod");
}
