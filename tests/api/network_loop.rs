//! The pod network's loop with a kernel in memory: its changes, and its retries after the kernel refuses one.

use std::collections::HashSet;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use nix::errno::Errno;
use sepal::netlink::entry::{EntryChange, LinkChange, OUR_PROTOCOL, Route, RouteKind};
use sepal::netlink::fake_network::{FakeNetwork, KernelCall};
use sepal::netlink::link::{LinkAddress, Scope};
use sepal::observe::readiness::{Part, PartState, all_ready, show};
use sepal::pod_network::annotations::Prefix;
use sepal::pod_network::node::{NetworkNode, NodeText};
use sepal::pod_network::sync::nodes::NodeUpdate;
use serde_json::json;

use crate::network_node::{Loop, UNDERLAY, changes, host, node, node_at, wait_until};

#[tokio::test]
async fn a_start_makes_everything_and_the_next_one_nothing() {
    let network = Loop::start(Arc::new(FakeNetwork::new(host())));
    network.tell_all((1..=20).map(|n| node(n, n))).await;
    assert!((2..=20).all(|n| network.reaches(n)));
    let calls = network.kernel.take_calls();
    assert!(matches!(calls.first(), Some(KernelCall::Dump)), "nothing is changed before it is looked at");
    assert_eq!(changes(&calls).len(), 3 + 3 * 19, "a link, its address, up; three entries for each of the others");
    assert!(network.pod_rules.borrow().as_ref().is_some_and(|rules| rules.ranges.v4.is_some()));
    let env = std::fs::read_to_string(network.folder.path().join("subnet.env")).expect("it is there");
    assert_eq!(env, "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n");
    let conflist = std::fs::read_to_string(network.folder.path().join("net.d/10-sepal.conflist")).expect("it is there");
    let conflist: serde_json::Value = serde_json::from_str(&conflist).expect("it is JSON");
    assert_eq!(conflist["plugins"][0]["subnetFile"], network.folder.path().join("subnet.env").display().to_string());

    network.task.abort();
    let again = Loop::start(Arc::clone(&network.kernel));
    again.tell_all((1..=20).map(|n| node(n, n))).await;
    let calls = again.kernel.take_calls();
    assert_eq!(changes(&calls), Vec::<&KernelCall>::new(), "all of it was there");
}

/// flannel's configuration file sorts before sepal's and is reported. So is another network's file that appears later.
#[tokio::test]
async fn the_configuration_that_runtimes_use_is_reported() {
    let network = Loop::start(Arc::new(FakeNetwork::new(host())));
    let net_d = network.folder.path().join("net.d");
    let list = |plugin: &str| {
        let subnet_file = network.folder.path().join("subnet.env");
        json!({"name": "cbr0", "plugins": [{"type": plugin, "subnetFile": subnet_file}, {"type": "portmap"}]}).to_string()
    };
    std::fs::create_dir(&net_d).expect("writable");
    std::fs::write(net_d.join("10-flannel.conflist"), list("flannel")).expect("writable");
    network.tell_all((1..=2).map(|n| node(n, n))).await;
    let state = || network.readiness.states().get(&Part::CniConfig).cloned().expect("it is a part");
    let told =
        || network.happenings.list().into_iter().filter(|told| told.what == "CNIConfigNotUsed").map(|told| told.text).collect::<Vec<_>>();
    let used = |file: &str| format!("container runtimes use {}/{file} (network cbr0, plugins: ", net_d.display());
    wait_until("flannel's is used", || matches!(state(), PartState::Noted(what) if what.starts_with(&used("10-flannel.conflist")))).await;
    assert!(all_ready(&network.readiness.states()), "pods get this node's network");
    let shown = show(&network.readiness.states());
    assert!(shown.contains("[+]cni-config ok: container runtimes use "), "{shown}");
    assert!(shown.contains("What to do: move 10-flannel.conflist out of the folder when the flannel DaemonSet"), "{shown}");
    assert_eq!(told().len(), 1, "an Event is sent once");
    // The file of another network.
    std::fs::write(net_d.join("05-calico.conflist"), list("calico")).expect("writable");
    wait_until(
        "that of another network is used",
        || matches!(state(), PartState::Degraded(why) if why.contains("pods do not get sepal's network")),
    )
    .await;
    assert!(!all_ready(&network.readiness.states()));
    assert_eq!(told().len(), 2);
    std::fs::remove_file(net_d.join("05-calico.conflist")).expect("it is there");
    wait_until("flannel's is used again", || matches!(state(), PartState::Noted(_))).await;
    // The file is removed, and a conflist with sepal under another name is added.
    std::fs::rename(net_d.join("10-flannel.conflist"), net_d.join("10-flannel.conflist.before-sepal")).expect("it is there");
    wait_until("sepal's is used", || state() == PartState::Ready).await;
    std::fs::write(net_d.join("00-own.conflist"), list("sepal")).expect("writable");
    std::fs::write(net_d.join("05-broken.conf"), "{").expect("writable");
    std::fs::write(net_d.join("99-last.conf"), list("calico")).expect("writable");
    std::fs::remove_file(net_d.join("10-sepal.conflist")).expect("it is there");
    wait_until("sepal's is written again", || net_d.join("10-sepal.conflist").exists()).await;
    assert_eq!(state(), PartState::Ready);
    std::fs::remove_file(net_d.join("00-own.conflist")).expect("it is there");
    wait_until("an invalid one is reported", || matches!(state(), PartState::Noted(what) if what.contains("05-broken.conf is not valid")))
        .await;
}

#[tokio::test]
async fn other_nodes_take_the_short_way() {
    let network = Loop::start(Arc::new(FakeNetwork::new(host())));
    network.tell_all((1..=20).map(|n| node(n, n))).await;
    drop(network.kernel.take_calls());
    // The MAC address changes: the neighbour and a new FDB entry are written, and the old FDB entry is deleted.
    network.tell(node(7, 77)).await;
    wait_until("it is known by its new address", || network.reaches(7) && network.kernel.live().fdb.len() == 19).await;
    network.tell(NodeUpdate::Deleted("node-8".into())).await;
    wait_until("it is gone", || network.kernel.live().fdb.len() == 18).await;
    assert_eq!(network.way(8), None);
    network.tell(node(21, 21)).await;
    wait_until("it is there", || network.reaches(21)).await;
    let calls = network.kernel.take_calls();
    assert!(!calls.contains(&KernelCall::Dump), "{calls:?}");
    assert_eq!(changes(&calls).len(), 3 + 3 + 3);
    // A Node that is missing in a new list is deleted.
    let known: HashSet<Box<str>> = (1..=5).map(|n| format!("node-{n}").into()).collect();
    network.tell(NodeUpdate::Listed(known)).await;
    wait_until("only those of the list are left", || network.kernel.live().fdb.len() == 4).await;
    assert!(network.metric("sepal_network_peers{state=\"desired\"} 4"));
}

/// A refused Node is counted once, and only while it is refused, for a few changes and for many at once.
#[tokio::test]
async fn refusals_are_counted_the_same_by_either_way() {
    let mut live = host();
    let destination = "192.0.2.0/24".parse().expect("a CIDR");
    let near = Route {
        gateway: None,
        link: Some(UNDERLAY),
        onlink: false,
        kind: RouteKind::Unicast,
        source: None,
        protocol: 2,
        metric: 0,
        destination,
    };
    live.routes = vec![near];
    let network = Loop::start_with(Arc::new(FakeNetwork::new(live)), r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#);
    let at = |n: u8, net: &str| node_at(n, n, "host-gw", &format!("{net}.{n}"));
    network.tell_all([at(1, "192.0.2"), at(2, "192.0.2"), at(3, "198.51.100")]).await;
    let refused = |count: usize| network.metric(&format!("sepal_network_peers_refused{{reason=\"not_on_link\"}} {count}"));
    let routed = |n: u8| network.kernel.live().routes.iter().any(|route| route.destination.to_string() == format!("10.244.{n}.0/24"));
    wait_until("one is refused", || refused(1)).await;
    for n in 10..=110 {
        network.tell(at(n, "192.0.2")).await;
    }
    wait_until("many entries are written", || routed(110)).await;
    assert!(refused(1), "and it is still that one");
    network.tell(at(4, "198.51.100")).await;
    wait_until("another one is refused", || refused(2)).await;
    network.tell(at(3, "192.0.2")).await;
    wait_until("the first one is reached", || routed(3) && refused(1)).await;
}

#[tokio::test]
async fn a_peer_that_the_kernel_refuses_is_tried_again_alone() {
    let kernel = Arc::new(FakeNetwork::new(host()));
    let refused: IpNetwork = "10.244.3.0/24".parse().expect("a CIDR");
    kernel.fail(
        2,
        Errno::ENOBUFS,
        move |call| matches!(call, KernelCall::Entry(EntryChange::Route(route)) if route.destination == refused),
    );
    let network = Loop::start(kernel);
    network.tell_all((1..=20).map(|n| node(n, n))).await;
    assert!((2..=20).filter(|n| *n != 3).all(|n| network.reaches(n)), "the other peers are programmed");
    assert!(network.metric("sepal_network_peers{state=\"programmed\"} 18"));
    assert!(network.metric("sepal_network_netlink_errors_total{call=\"set route\"} 1"));
    // Changes of other peers are applied meanwhile.
    network.tell(node(4, 44)).await;
    wait_until("the other is written", || network.kernel.live().fdb.iter().any(|entry| entry.mac.to_string() == "02:00:00:00:00:2c")).await;
    wait_until("it is taken", || network.reaches(3)).await;
    wait_until("the refusal is counted", || network.metric("sepal_network_peers{state=\"programmed\"} 19")).await;
}

#[tokio::test]
async fn a_kernel_that_cannot_be_read_is_asked_again() {
    let kernel = Arc::new(FakeNetwork::new(host()));
    kernel.fail(2, Errno::ENOMEM, |call| matches!(call, KernelCall::Dump));
    kernel.fail(1, Errno::EPERM, |call| matches!(call, KernelCall::Link(LinkChange::CreateVxlan { .. })));
    let network = Loop::start(kernel);
    for n in 1..=3 {
        network.tell(node(n, n)).await;
    }
    network.tell(NodeUpdate::Complete).await;
    wait_until("it is reported", || {
        matches!(network.readiness.states().get(&Part::Links), Some(PartState::Starting(why)) if why.contains("cannot create VXLAN link flannel.1"))
    })
    .await;
    network.ready().await;
    assert!(network.reaches(2) && network.reaches(3));
}

#[tokio::test]
async fn until_nodes_are_listed_readiness_says_why_not() {
    let network = Loop::start(Arc::new(FakeNetwork::new(host())));
    network.tell(NodeUpdate::Unknown("connection refused".into())).await;
    wait_until("the reason is shown", || {
        network.readiness.states().get(&Part::Subnet) == Some(&PartState::starting("no Nodes are known yet: connection refused"))
    })
    .await;
    network.tell_all((1..=2).map(|n| node(n, n))).await;
    assert!(network.reaches(2));
}

#[tokio::test]
async fn a_family_that_the_kernel_lacks_holds_up_no_other() {
    let mut live = host();
    let net = "fd77::1/64".parse().expect("an address");
    live.links[0].addresses.push(LinkAddress { net, scope: Scope::Universe, permanent: true, temporary: false, deprecated: false });
    let kernel = Arc::new(FakeNetwork::new(live));
    kernel.fail(
        usize::MAX,
        Errno::EAFNOSUPPORT,
        |call| matches!(call, KernelCall::Link(LinkChange::CreateVxlan { name, .. }) if name == "flannel-v6.1"),
    );
    let conf = r#"{"EnableIPv6":true,"Network":"10.244.0.0/16","IPv6Network":"fd10:244::/32","Backend":{"Type":"vxlan"}}"#;
    let network = Loop::start_with(kernel, conf);
    let both = NodeText {
        name: "node-1",
        uid: "u",
        pod_cidrs: vec!["10.244.1.0/24", "fd10:244:1::/64"],
        internal_ips: vec!["192.0.2.1"],
        ..NodeText::default()
    };
    network.tell(NodeUpdate::Changed(Box::new(NetworkNode::new(&both, &Prefix::default())))).await;
    network.tell(node(2, 2)).await;
    network.tell(NodeUpdate::Complete).await;
    wait_until("the other family works", || network.reaches(2)).await;
    wait_until("it is reported", || {
        matches!(network.readiness.states().get(&Part::Links), Some(PartState::Starting(why)) if why.contains("Is that IP family switched off"))
    })
    .await;
    assert!(!network.folder.path().join("subnet.env").exists(), "pods would have half a network");
    assert!(!network.folder.path().join("net.d").exists(), "no pods may come");
}

/// Two foreign routes: one in the network that leads to no peer, and one to a subnet in which a link has an address.
#[tokio::test]
async fn entries_of_other_programs_stay() {
    let mut live = host();
    let theirs = Route {
        destination: "10.244.98.0/24".parse().expect("a CIDR"),
        gateway: Some([192, 0, 2, 99].into()),
        link: Some(UNDERLAY),
        onlink: false,
        kind: RouteKind::Unicast,
        source: None,
        protocol: 4,
        metric: 0,
    };
    let connected = Route { destination: "10.244.3.0/24".parse().expect("a CIDR"), gateway: None, protocol: 2, ..theirs };
    let stale = Route { destination: "10.244.99.0/24".parse().expect("a CIDR"), protocol: OUR_PROTOCOL, ..theirs };
    live.routes = vec![theirs, connected, stale];
    let network = Loop::start(Arc::new(FakeNetwork::new(live)));
    network.tell_all((1..=4).map(|n| node(n, n))).await;
    let others = || network.kernel.live().routes.iter().filter(|route| [theirs, connected].contains(route)).count();
    assert_eq!(others(), 2);
    assert!(!network.kernel.live().routes.contains(&stale), "what was ours goes");
    assert!(network.reaches(2) && network.reaches(4) && !network.reaches(3));
    wait_until("an Event names the link", || network.has_event("RouteInTheWay", "link eth0 has an address in 10.244.3.0/24")).await;
    // The same for a node that is added later, by an incremental change.
    network.tell(node(3, 33)).await;
    network.tell(node(5, 5)).await;
    wait_until("the next one is there", || network.reaches(5)).await;
    assert_eq!(others(), 2);
}

#[tokio::test]
async fn a_node_without_a_subnet_touches_nothing() {
    let network = Loop::start(Arc::new(FakeNetwork::new(host())));
    let bare = NodeText { name: "node-1", uid: "u", internal_ips: vec!["192.0.2.1"], ..NodeText::default() };
    network.tell(NodeUpdate::Changed(Box::new(NetworkNode::new(&bare, &Prefix::default())))).await;
    network.tell(node(2, 2)).await;
    network.tell(NodeUpdate::Complete).await;
    wait_until("the reason is shown", || {
        matches!(network.readiness.states().get(&Part::Subnet), Some(PartState::Starting(why)) if why.contains("--allocate-node-cidrs=true"))
    })
    .await;
    assert_eq!(changes(&network.kernel.take_calls()), Vec::<&KernelCall>::new());
    network.tell(node(1, 1)).await;
    network.ready().await;
    assert!(network.reaches(2));
    // Deleted and not yet registered again: what was there stays, and peers are followed.
    network.tell(NodeUpdate::Deleted("node-1".into())).await;
    network.tell(node(3, 3)).await;
    wait_until("peers are followed", || network.reaches(3)).await;
    assert!(network.reaches(2));
}
