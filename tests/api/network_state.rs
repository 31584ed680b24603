//! The pod network's loop with a kernel in memory: a subnet is lost, or another program writes our routes.

use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use sepal::cluster::families::PerFamily;
use sepal::netlink::entry::{Live, OUR_PROTOCOL, Route, RouteKind};
use sepal::netlink::fake_network::{FakeNetwork, KernelCall};
use sepal::netlink::link::{Link, LinkAddress, LinkKind, Scope};
use sepal::observe::readiness::{Part, PartState};
use sepal::pod_network::annotations::Prefix;
use sepal::pod_network::claim::{LeaseStatus, LostLease};
use sepal::pod_network::node::{NetworkNode, NodeText};
use sepal::pod_network::sync::nodes::NodeUpdate;
use sepal::pod_network::sync::subnets::SubnetProvider;
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::network_node::{Loop, PATIENCE, UNDERLAY, VXLAN, changes, host, node, wait_until};

const SUBNET_ENV: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";

fn net(text: &str) -> IpNetwork {
    text.parse().expect("a CIDR")
}

/// This node's Node with these podCIDRs.
fn own(pod_cidrs: &[&str]) -> NodeUpdate {
    own_with_uid("u", pod_cidrs)
}

/// This node's Node with a `metadata.uid`.
fn own_with_uid(uid: &str, pod_cidrs: &[&str]) -> NodeUpdate {
    let text = NodeText { name: "node-1", uid, pod_cidrs: pod_cidrs.to_vec(), internal_ips: vec!["192.0.2.1"], ..NodeText::default() };
    NodeUpdate::Changed(Box::new(NetworkNode::new(&text, &Prefix::default())))
}

/// A host with a bridge for pods.
fn host_with_bridge() -> Live {
    let mut live = host();
    let address = LinkAddress { net: net("10.244.1.1/24"), scope: Scope::Universe, permanent: true, temporary: false, deprecated: false };
    let bridge =
        Link { index: 9, name: "cni0".into(), kind: LinkKind::Bridge, addresses: vec![address], mtu: 1450, ..live.links[0].clone() };
    live.links.push(bridge);
    live
}

/// The kernel state that a node with subnet 10.244.1.0/24 and peers 2 and 3 leaves.
async fn used() -> Arc<FakeNetwork> {
    let network = Loop::start(Arc::new(FakeNetwork::new(host_with_bridge())));
    network.tell_all((1..=3).map(|n| node(n, n))).await;
    assert_eq!(network.subnet_env().as_deref(), Some(SUBNET_ENV));
    network.task.abort();
    drop(network.kernel.take_calls());
    Arc::clone(&network.kernel)
}

fn addresses(kernel: &FakeNetwork, link: &str) -> Vec<String> {
    let live = kernel.live();
    let of = live.links.iter().filter(|found| found.name == link).flat_map(|link| &link.addresses);
    of.map(|address| address.net.to_string()).collect()
}

fn has_routes(kernel: &FakeNetwork) -> bool {
    kernel.live().routes.iter().any(|route| route.protocol == OUR_PROTOCOL)
}

#[tokio::test]
async fn a_node_without_pod_cidr_withdraws_its_subnet() {
    let kernel = used().await;
    // The podCIDR was removed while the daemon was down.
    let network = Loop::start_after(Arc::clone(&kernel), SUBNET_ENV);
    network.tell(own(&[])).await;
    network.tell(node(2, 2)).await;
    network.tell(NodeUpdate::Complete).await;
    wait_until("subnet.env is deleted", || network.subnet_env().is_none()).await;
    wait_until("the condition reports it", || network.condition() == (json!("True"), json!("PodCIDRMissing"))).await;
    assert!(!has_routes(&kernel) && !kernel.live().links.iter().any(|link| link.name == "flannel.1"));
    assert_eq!(addresses(&kernel, "cni0"), ["10.244.1.1/24"], "no other node has the subnet: pods that run keep their gateway");
    wait_until("an Event reports it", || {
        network.has_event("SubnetWithdrawn", "this node lost its subnet 10.244.1.0/24, and no pod can start")
    })
    .await;
    assert!(network.has_event("SubnetWithdrawn", "delete these pods"));
    let rules = network.pod_rules.borrow().clone().expect("rules are known");
    assert!(rules.ranges.is_empty(), "no rules of the former subnet stay");
    // Another node gets it: packets to that node's pods must not go to the bridge.
    let text = NodeText { name: "node-7", uid: "u7", pod_cidrs: vec!["10.244.1.0/24"], ..NodeText::default() };
    network.tell(NodeUpdate::Changed(Box::new(NetworkNode::new(&text, &Prefix::default())))).await;
    network.look();
    wait_until("the bridge loses its address", || addresses(&kernel, "cni0").is_empty()).await;

    // The node gets a podCIDR again while the daemon runs.
    network.tell(own(&["10.244.5.0/24"])).await;
    network.ready().await;
    assert_eq!(addresses(&kernel, "flannel.1"), ["10.244.5.0/32"]);
    assert!(network.reaches(2) && network.subnet_env().expect("there").contains("FLANNEL_SUBNET=10.244.5.1/24"));
    wait_until("the condition reports it", || network.condition().0 == json!("False")).await;
    // The node loses it while the daemon runs.
    network.tell(own(&[])).await;
    wait_until("subnet.env is deleted", || network.subnet_env().is_none()).await;
    wait_until("the links are deleted", || !kernel.live().links.iter().any(|link| link.name == "flannel.1")).await;
    wait_until("the condition reports it at once", || network.condition().0 == json!("True")).await;
}

#[tokio::test]
async fn another_pod_cidr_takes_the_place_of_the_former_one() {
    let kernel = used().await;
    let network = Loop::start_after(Arc::clone(&kernel), SUBNET_ENV);
    network.tell(node(2, 2)).await;
    network.tell(own(&["10.244.5.0/24"])).await;
    network.tell(NodeUpdate::Complete).await;
    wait_until("the new one is named", || network.subnet_env().is_some_and(|env| env.contains("FLANNEL_SUBNET=10.244.5.1/24"))).await;
    assert_eq!(addresses(&kernel, "flannel.1"), ["10.244.5.0/32"]);
    assert_eq!(addresses(&kernel, "cni0"), Vec::<String>::new(), "the CNI plugin can give it another one");
    wait_until("an Event reports it", || {
        network.has_event("SubnetChanged", "the subnet of this node changed from 10.244.1.0/24 to 10.244.5.0/24")
    })
    .await;
    // While the daemon runs.
    network.tell(own(&["10.244.6.0/24"])).await;
    wait_until("the next one is named", || network.subnet_env().is_some_and(|env| env.contains("FLANNEL_SUBNET=10.244.6.1/24"))).await;
    assert_eq!(addresses(&kernel, "flannel.1"), ["10.244.6.0/32"]);
}

/// subnet.env is deleted before the kernel is changed, and also if the kernel cannot be changed.
#[tokio::test]
async fn subnet_env_goes_first() {
    for pod_cidrs in [&[][..], &["10.244.5.0/24"]] {
        let kernel = used().await;
        kernel.fail(usize::MAX, nix::errno::Errno::ENOMEM, |call| matches!(call, KernelCall::Dump));
        let network = Loop::start_after(Arc::clone(&kernel), SUBNET_ENV);
        network.tell(own(pod_cidrs)).await;
        network.tell(NodeUpdate::Complete).await;
        wait_until("subnet.env is deleted", || network.subnet_env().is_none()).await;
        assert_eq!(changes(&kernel.take_calls()), Vec::<&KernelCall>::new());
    }
    // The external interface is gone, too.
    let kernel = used().await;
    kernel.meddle(|live| live.links.iter_mut().filter(|link| link.index == UNDERLAY).for_each(|link| link.addresses.clear()));
    let network = Loop::start_after(Arc::clone(&kernel), SUBNET_ENV);
    network.tell(own(&[])).await;
    network.tell(NodeUpdate::Complete).await;
    wait_until("everything is deleted", || {
        network.subnet_env().is_none() && !has_routes(&kernel) && !kernel.live().links.iter().any(|link| link.name == "flannel.1")
    })
    .await;
}

/// The kubelet registers a deleted Node again, and kube-controller-manager assigns its podCIDR a moment later.
#[tokio::test]
async fn a_node_that_is_registered_again_keeps_its_subnet_until_another_node_has_it() {
    let network = Loop::start(Arc::new(FakeNetwork::new(host_with_bridge())));
    network.tell_all((1..=3).map(|n| node(n, n))).await;
    for uid in ["second", "third"] {
        network.tell(NodeUpdate::Deleted("node-1".into())).await;
        network.tell(own_with_uid(uid, &[])).await;
        wait_until("readiness names the cause", || {
            matches!(network.readiness.states().get(&Part::Subnet), Some(PartState::Starting(why) | PartState::Degraded(why)) if why.contains("pod cidr not assigned"))
        })
        .await;
        network.look();
        assert_eq!(network.subnet_env().as_deref(), Some(SUBNET_ENV));
        assert!(network.reaches(2) && network.reaches(3));
        if uid == "second" {
            network.tell(own_with_uid(uid, &["10.244.1.0/24"])).await;
            network.ready().await;
        }
    }
    let text = NodeText { name: "node-7", uid: "u7", pod_cidrs: vec!["10.244.1.0/24"], ..NodeText::default() };
    network.tell(NodeUpdate::Changed(Box::new(NetworkNode::new(&text, &Prefix::default())))).await;
    network.look();
    wait_until("subnet.env is deleted", || network.subnet_env().is_none()).await;
    wait_until("an Event reports it", || network.has_event("SubnetWithdrawn", "this node lost its subnet 10.244.1.0/24")).await;
}

/// Rules and annotations of a lost subnet are deleted, also without the external interface.
#[tokio::test]
async fn rules_of_a_lost_subnet_go_without_an_interface() {
    let kernel = Arc::new(FakeNetwork::new(host_with_bridge()));
    let network = Loop::start(Arc::clone(&kernel));
    network.tell_all([own(&["10.244.1.0/24"]), node(2, 2)]).await;
    network.ready().await;
    assert!(network.pod_rules.borrow().as_ref().is_some_and(|rules| !rules.ranges.is_empty()));
    kernel.meddle(|live| live.links.iter_mut().filter(|link| link.index == UNDERLAY).for_each(|link| link.addresses.clear()));
    network.tell(own(&[])).await;
    wait_until("subnet.env is deleted", || network.subnet_env().is_none()).await;
    wait_until("the rules are deleted", || network.pod_rules.borrow().as_ref().is_some_and(|rules| rules.ranges.is_empty())).await;
}

/// Missing information deletes nothing.
#[tokio::test]
async fn an_outage_takes_nothing_away() {
    let kernel = used().await;
    let before = kernel.live();
    // This node's Node is not in the list; others are.
    let network = Loop::start_after(Arc::clone(&kernel), SUBNET_ENV);
    network.tell(node(2, 2)).await;
    network.tell(NodeUpdate::Complete).await;
    let starting = |network: &Loop, words: &str| matches!(network.readiness.states().get(&Part::Subnet), Some(PartState::Starting(why)) if why.contains(words));
    wait_until("the missing part is shown", || starting(&network, "there is no Node")).await;
    assert_eq!((network.subnet_env().as_deref(), &kernel.live()), (Some(SUBNET_ENV), &before));
    network.task.abort();
    // net-conf.json is invalid.
    let folder = TempDir::new().expect("a folder");
    std::fs::write(folder.path().join("subnet.env"), SUBNET_ENV).expect("writable");
    let conf = VXLAN.replace("10.244.0.0", "10.99.0.0");
    let network = Loop::start_in(folder, Arc::clone(&kernel), &conf, SubnetProvider::Node);
    network.tell(own(&["10.244.1.0/24"])).await;
    network.tell(NodeUpdate::Complete).await;
    wait_until("the error is shown", || starting(&network, "doesn't contain")).await;
    assert_eq!((network.subnet_env().as_deref(), &kernel.live()), (Some(SUBNET_ENV), &before));
    network.task.abort();
    // Leases are not known yet: the API server does not answer.
    let (standing, network) = leasing(Arc::clone(&kernel), LeaseStatus::default());
    network.tell(own(&[])).await;
    network.tell(NodeUpdate::Complete).await;
    wait_until("the wait is shown", || starting(&network, "subnet is being taken")).await;
    assert_eq!((network.subnet_env().as_deref(), &kernel.live()), (Some(SUBNET_ENV), &before));
    // It could not be renewed, and no other node is known to have it.
    standing.send_replace(LeaseStatus::Lapsed(net("10.244.1.0/24")));
    network.ready().await;
    assert_eq!(network.subnet_env().as_deref(), Some(SUBNET_ENV));
}

/// This node's Node is deleted, and another Node gets its podCIDR.
#[tokio::test]
async fn a_deleted_node_whose_pod_cidr_another_node_has_withdraws_its_subnet() {
    let thief = || {
        let text = NodeText { name: "node-7", uid: "u7", pod_cidrs: vec!["10.244.1.0/24"], ..NodeText::default() };
        NodeUpdate::Changed(Box::new(NetworkNode::new(&text, &Prefix::default())))
    };
    for is_down in [true, false] {
        let kernel = used().await;
        let network = Loop::start_after(Arc::clone(&kernel), SUBNET_ENV);
        if !is_down {
            network.tell_all([own(&["10.244.1.0/24"]), node(2, 2)]).await;
            network.tell(NodeUpdate::Deleted("node-1".into())).await;
            network.tell(node(3, 33)).await;
            wait_until("peers are followed", || network.reaches(3)).await;
            assert_eq!(network.subnet_env().as_deref(), Some(SUBNET_ENV), "nothing goes until another Node has it");
        }
        for update in [node(2, 2), thief(), NodeUpdate::Complete] {
            network.tell(update).await;
        }
        wait_until("subnet.env is deleted", || network.subnet_env().is_none()).await;
        wait_until("everything is deleted", || {
            !has_routes(&kernel)
                && !kernel.live().links.iter().any(|link| link.name == "flannel.1")
                && addresses(&kernel, "cni0").is_empty()
        })
        .await;
        let words = "there is no Node node-1, and Node node-7 has its podCIDR 10.244.1.0/24 now";
        wait_until("an Event reports it", || network.has_event("SubnetWithdrawn", words)).await;
        network.tell(own(&["10.244.8.0/24"])).await;
        network.ready().await;
        assert!(network.reaches(2) && network.subnet_env().expect("there").contains("FLANNEL_SUBNET=10.244.8.1/24"));
    }
}

/// Routes over the external interface are deleted, too.
#[tokio::test]
async fn direct_routes_go_with_the_subnet() {
    let mut live = host();
    let near = Route {
        destination: net("192.0.2.0/24"),
        gateway: None,
        link: Some(UNDERLAY),
        onlink: false,
        kind: RouteKind::Unicast,
        source: None,
        protocol: 2,
        metric: 0,
    };
    live.routes = vec![near];
    let conf = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#;
    let network = Loop::start_with(Arc::new(FakeNetwork::new(live)), conf);
    network.tell_all((1..=3).map(|n| crate::network_node::node_at(n, n, "host-gw", &format!("192.0.2.{n}")))).await;
    wait_until("there are routes", || has_routes(&network.kernel)).await;
    network.tell(own_with_uid("node-1", &[])).await;
    wait_until("they are deleted", || network.subnet_env().is_none() && !has_routes(&network.kernel)).await;
    assert!(network.kernel.live().routes.contains(&near));
}

fn leasing(kernel: Arc<FakeNetwork>, first: LeaseStatus) -> (watch::Sender<LeaseStatus>, Loop) {
    let folder = TempDir::new().expect("a folder");
    std::fs::write(folder.path().join("subnet.env"), SUBNET_ENV).expect("writable");
    let (standing, standings) = watch::channel(first);
    let source = SubnetProvider::Leases { statuses: PerFamily { v4: Some(standings), v6: None }, node: watch::Sender::new(None) };
    (standing, Loop::start_in(folder, kernel, VXLAN, source))
}

#[tokio::test]
async fn a_lost_lease_takes_everything_along() {
    let kernel = used().await;
    let loss = LostLease { subnet: net("10.244.1.0/24"), holder: Some("node-7_u7".into()) };
    let (standing, network) = leasing(Arc::clone(&kernel), LeaseStatus::Seeking { loss: Some(loss), shortage: None });
    for update in [node(1, 1), node(2, 2), NodeUpdate::Complete] {
        network.tell(update).await;
    }
    wait_until("subnet.env is deleted", || network.subnet_env().is_none()).await;
    wait_until("the condition reports it", || network.condition() == (json!("True"), json!("SubnetLost"))).await;
    assert!(!has_routes(&kernel) && !kernel.live().links.iter().any(|link| link.name == "flannel.1"));
    assert_eq!(addresses(&kernel, "cni0"), Vec::<String>::new(), "node-7 has these addresses");
    wait_until("an Event reports it", || network.has_event("SubnetWithdrawn", "node-7_u7 has it now")).await;
    let why = network.readiness.states().get(&Part::Subnet).cloned();
    assert!(matches!(&why, Some(PartState::Starting(why)) if why.contains("node-7_u7 has it now")), "{why:?}");
    // The Node still shows the podCIDR: other nodes must not send packets here.
    let is_withdrawn = || network.server.count("patch nodes/status") > 1;
    wait_until("its Node takes no part", is_withdrawn).await;
    standing.send_replace(LeaseStatus::Held(net("10.244.6.0/24")));
    network.ready().await;
    assert!(network.reaches(2) && network.subnet_env().expect("there").contains("FLANNEL_SUBNET=10.244.6.1/24"));
}

fn foreign(kind: RouteKind, protocol: u8) -> Route {
    let is_unicast = kind == RouteKind::Unicast;
    Route {
        destination: net("10.244.3.0/24"),
        gateway: is_unicast.then(|| [192, 0, 2, 99].into()),
        link: is_unicast.then_some(UNDERLAY),
        onlink: false,
        kind,
        source: None,
        protocol,
        metric: 0,
    }
}

#[tokio::test]
async fn a_foreign_route_in_place_of_ours_is_replaced_and_reported() {
    // At the start of the daemon.
    let mut live = host();
    live.routes = vec![foreign(RouteKind::Unicast, 3)];
    let network = Loop::start(Arc::new(FakeNetwork::new(live)));
    network.tell_all((1..=4).map(|n| node(n, n))).await;
    assert!((2..=4).all(|n| network.reaches(n)));
    let words = "the route to 10.244.3.0/24 (pods of node node-3): `10.244.3.0/24 via 192.0.2.99 dev eth0 proto boot` is replaced";
    wait_until("an Event reports it", || network.has_event("RouteReplaced", words)).await;
    // While the daemon runs, for every cause.
    for (kind, protocol) in [(RouteKind::Unicast, 186), (RouteKind::Blackhole, 4), (RouteKind::Unreachable, 3), (RouteKind::Prohibit, 3)] {
        network.kernel.meddle(|live| {
            live.routes.retain(|route| route.destination != net("10.244.3.0/24"));
            live.routes.push(foreign(kind, protocol));
        });
        network.look();
        wait_until("our route is back", || network.reaches(3)).await;
    }
    // An incremental change: the Node changes.
    network.kernel.meddle(|live| live.routes.push(foreign(RouteKind::Unicast, 4)));
    network.look();
    network.tell(node(3, 33)).await;
    wait_until("our route is back", || network.reaches(3)).await;
}

#[tokio::test]
async fn a_program_that_goes_on_is_named_and_left_alone_for_longer_and_longer() {
    let network = Loop::start(Arc::new(FakeNetwork::new(host())));
    network.tell_all((1..=4).map(|n| node(n, n))).await;
    let mut replaced = 0;
    let limit = Instant::now() + PATIENCE;
    while !network.has_event("RouteContested", "again and again") {
        assert!(Instant::now() < limit, "it goes on for ever: replaced {replaced} times");
        if network.reaches(3) {
            replaced += 1;
            network.kernel.meddle(|live| {
                live.routes.retain(|route| route.destination != net("10.244.3.0/24"));
                live.routes.push(foreign(RouteKind::Unicast, 4));
            });
        }
        network.look();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!network.reaches(3) && network.reaches(2) && network.reaches(4), "only that route is left alone");
    assert!(network.has_event("RouteContested", "replaced 3 times, and is left there for 10 s now"));
    // The other program stops: our route is back.
    network.kernel.meddle(|live| live.routes.retain(|route| route.destination != net("10.244.3.0/24")));
    network.look();
    wait_until("our route is back", || network.reaches(3)).await;
}
