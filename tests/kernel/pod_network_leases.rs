//! Nodes lease subnets: no two hold the same, and a node without one waits.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use sepal_lab::traffic::tcp;
use sepal_lab::{Families, Layout, Pod, PodCluster, PodNode, wait_until_within};
use serde_json::{Value, json};

use crate::SEPAL;

/// Time limit for reactions to a change. It is shorter than the 30 s between two audits, which would apply the change, too.
const SOON: Duration = Duration::from_secs(25);
const FLAGS: [&str; 2] = ["--proxy=false", "--subnet-source=lease"];

/// The subnet of a family in subnet.env, without the gateway's last part and the prefix length.
fn subnet(node: &PodNode, key: &str) -> String {
    let env = node.subnet_env();
    let gateway = env.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_else(|| panic!("no {key} in {env:?}"));
    let (first, length) = gateway.split_once('/').expect("an address and a length");
    let base = first.strip_suffix('1').expect("a subnet's first address");
    format!("{base}{}/{length}", if base.ends_with(':') { "" } else { "0" })
}

fn subnets(node: &PodNode) -> [String; 2] {
    ["FLANNEL_SUBNET=", "FLANNEL_IPV6_SUBNET="].map(|key| subnet(node, key))
}

/// Every pod reaches every other one.
fn all_reach_all(pods: &[Pod]) {
    for from in pods {
        for to in pods.iter().filter(|to| to.ips != from.ips) {
            for ip in &from.ips {
                assert_eq!(tcp(&from.netns, to.tcp(*ip)).expect("pod to pod"), ip.to_string());
            }
        }
    }
}

/// The holder in the Lease of a subnet.
fn holder(cluster: &PodCluster, subnet: &str) -> Value {
    let name = format!("kube-system/sepal-{}", subnet.replace(['.', '/'], "-"));
    cluster.server.get("leases", &name).map(|lease| lease["spec"]["holderIdentity"].clone()).unwrap_or_default()
}

#[test]
fn nodes_lease_subnets_and_wait_for_them() {
    let layout = Layout { assigned: false, ..Layout::vxlan(3, Families::Dual) };
    let mut conf = layout.net_conf();
    (conf["SubnetMin"], conf["SubnetMax"]) = (json!("10.244.5.0"), json!("10.244.6.0"));
    let cluster = PodCluster::new(Path::new(SEPAL), layout);
    let [first, second, third] = cluster.nodes.as_slice() else { unreachable!("there are three") };
    cluster.nodes.iter().for_each(|node| node.configure(&conf));
    for node in [first, second] {
        node.start(&FLAGS);
    }
    let mut pods: Vec<Pod> = [first, second]
        .map(|node| {
            node.wait_ready();
            node.attach()
        })
        .into();
    all_reach_all(&pods);
    let taken: BTreeSet<String> = [first, second].into_iter().flat_map(subnets).collect();
    assert!(taken.len() == 4 && taken.contains("10.244.5.0/24") && taken.contains("10.244.6.0/24"), "{taken:?}");
    for (number, node) in [(1, first), (2, second)] {
        assert_eq!(holder(&cluster, &subnets(node)[0]), json!(format!("node-{number}_uid-{number}")));
        wait_until_within(SOON, "the Node shows its subnets", || cluster.node(number)["spec"]["podCIDRs"] == json!(subnets(node)));
    }
    // A restarted node finds its own Lease.
    let before = first.state();
    first.kill();
    first.start_again();
    first.wait_ready();
    assert_eq!(first.state(), before);

    // The third node gets no subnet and reports it.
    third.start(&FLAGS);
    let condition = || cluster.node(3)["status"]["conditions"][0].clone();
    wait_until_within(SOON, "the condition reports it", || {
        (&condition()["status"], &condition()["reason"]) == (&json!("True"), &json!("OutOfSubnets"))
    });
    let shortage = "out of subnets: of the 2 /24 subnets from 10.244.5.0 to 10.244.6.0 2 are leased and 0 reserved for others";
    wait_until_within(SOON, "the log reports it", || third.log().contains(shortage));
    let told = |event: &Value| event["reason"] == json!("OutOfSubnets") && event["regarding"]["name"] == json!("node-3");
    wait_until_within(SOON, "an Event reports it", || cluster.server.list("events.events.k8s.io").iter().any(told));
    let (status, parts) = third.readiness().expect("it stays up");
    assert!(status == 503 && parts.contains("[-]subnet not yet: out of subnets"), "{parts}");
    assert_eq!((third.subnet_env(), cluster.node(3)["spec"].clone()), (String::new(), json!({})));

    // The third node takes the next subnet that is released.
    let released = subnets(second)[0].clone();
    assert_eq!(second.stop(), Some(0));
    let file = second.subnet_file().display().to_string();
    let url = cluster.server.url();
    second.netns.run(&format!("{SEPAL} cleanup --pod-network --master={url} --node-name=node-2 --subnet-file={file}"));
    drop(pods.pop());
    wait_until_within(SOON, "the third has it", || holder(&cluster, &released) == json!("node-3_uid-3"));
    third.wait_ready();
    assert_eq!(subnets(third)[0], released);
    wait_until_within(SOON, "the condition reports it", || condition()["status"] == json!("False"));
    pods.push(third.attach());
    wait_until_within(SOON, "the first node has the route", || tcp(&pods[0].netns, pods[1].tcp(pods[0].ips[0])).is_ok());
    all_reach_all(&pods);
}
