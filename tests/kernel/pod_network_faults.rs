//! Faults of the pod network are repaired soon and disturb only the traffic that they concern.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use sepal_lab::{Families, Layout, Pod, PodCluster, PodNode, Prober, wait_until_within};
use serde_json::{Value, json};

use crate::SEPAL;

/// Time limit for reactions to a change. It is shorter than the 30 s between two audits, which would apply the change, too.
const SOON: Duration = Duration::from_secs(25);

/// Three nodes, four pods, and continuous traffic between them.
struct Lab {
    cluster: PodCluster,
    pods: [Pod; 4],
    probers: Vec<(&'static str, Prober)>,
}

/// Between two pods of the first node.
const LOCAL: &str = "within the first node";
/// From the first node to the second.
const V4: &str = "IPv4 to the second node";
/// From the first node to the second, over IPv6.
const V6: &str = "IPv6 to the second node";
/// From the second node to the third.
const OTHERS: &str = "between other nodes";

impl Lab {
    fn new() -> Self {
        let cluster = PodCluster::new(Path::new(SEPAL), Layout::vxlan(3, Families::Dual));
        cluster.start(&["--proxy=false"]);
        let [first, second, third] = [0, 1, 2].map(|at: usize| &cluster.nodes[at]);
        let pods = [first.attach(), first.attach(), second.attach(), third.attach()];
        let [v4, v6] = [pods[0].ips[0], pods[0].ips[1]];
        let probers = vec![
            (LOCAL, Prober::start(&pods[0].netns, pods[1].udp(v4))),
            (V4, Prober::start(&pods[0].netns, pods[2].udp(v4))),
            (V6, Prober::start(&pods[0].netns, pods[2].udp(v6))),
            (OTHERS, Prober::start(&pods[2].netns, pods[3].udp(v4))),
        ];
        let lab = Self { cluster, pods, probers };
        lab.assert_undisturbed("the start", &[V4, V6]);
        lab
    }

    fn first(&self) -> &PodNode {
        &self.cluster.nodes[0]
    }

    /// Asserts that these probers, and those between unaffected pods, have lost no packet since the last call.
    fn assert_undisturbed(&self, event: &str, spared: &[&str]) {
        for (name, prober) in &self.probers {
            let lost = prober.lost();
            let must_not = [LOCAL, OTHERS].contains(name) || spared.contains(name);
            assert!(!must_not || lost == 0, "{event}: {lost} packets lost {name}");
        }
    }

    /// Breaks something on the first node and waits until its state is as before.
    fn repaired(&self, script: &str, spared: &[&str]) {
        let node = self.first();
        let before = node.state();
        let start = Instant::now();
        node.netns.run(script);
        let mut now = node.state();
        while now != before {
            assert!(start.elapsed() < SOON, "{script}: not repaired:\n{}\n{}", difference(&before, &now), node.log());
            thread::sleep(Duration::from_millis(20));
            now = node.state();
        }
        // These requests show losses that the repair itself may cause.
        for (_, prober) in &self.probers {
            prober.wait_for_requests(5);
        }
        assert_eq!(difference(&before, &node.state()), "", "{script}: it stays repaired");
        self.assert_undisturbed(script, spared);
        for (name, prober) in &self.probers {
            wait_until_within(SOON, &format!("{script}: there is traffic again {name}"), || {
                prober.wait_for_requests(2);
                prober.lost() == 0
            });
        }
    }
}

/// The missing and the added lines.
fn difference(before: &str, now: &str) -> String {
    let (before, now): (BTreeSet<&str>, BTreeSet<&str>) = (before.lines().collect(), now.lines().collect());
    let missing = before.difference(&now).map(|line| format!("-{line}\n"));
    missing.chain(now.difference(&before).map(|line| format!("+{line}\n"))).collect()
}

/// The program's counters of repairs, by kind.
fn repairs(node: &PodNode) -> BTreeSet<String> {
    let kind = |line: &str| Some(line.strip_prefix("sepal_network_repairs_total{kind=\"")?.split('"').next()?.to_owned());
    node.metrics().lines().filter_map(kind).collect()
}

#[test]
fn broken_links_are_repaired() {
    let lab = Lab::new();
    let mac = lab.first().netns.run("ip -o link show flannel.1 | sed 's,.*link/ether ,,; s/ .*//'");
    // Repeats until the command wins against the repair.
    let anew = |id: u32, mac: &str| {
        format!(
            "until ip -batch - <<END
             link del flannel.1
             link add flannel.1 address {mac} mtu 1450 type vxlan id {id} local 192.168.77.1 dev eth0 dstport 8472 nolearning
             addr add 10.244.1.0/32 dev flannel.1
             link set flannel.1 up\nEND\n do true; done"
        )
    };
    for (script, spared) in [
        ("ip link del flannel.1".to_owned(), &[V6][..]),
        ("ip link del flannel-v6.1".into(), &[V4]),
        (anew(7, mac.trim()), &[V6]),
        (anew(1, "02:00:00:00:00:77"), &[V6]),
        (anew(1, mac.trim()), &[V6]),
        ("ip link set flannel.1 address 02:00:00:00:00:78".into(), &[V6]),
        ("ip link set flannel.1 mtu 1300; ip link set flannel-v6.1 mtu 1300".into(), &[V4, V6]),
        ("ip link set flannel.1 down".into(), &[V6]),
        ("ip link set flannel-v6.1 down".into(), &[V4]),
        ("ip addr flush dev flannel.1".into(), &[V6]),
        ("ip -6 addr flush dev flannel-v6.1 scope global".into(), &[V4]),
        ("ip addr add 10.244.77.1/32 dev flannel.1".into(), &[V4, V6]),
    ] {
        lab.repaired(&script, spared);
    }
    let wanted = ["address", "link", "mac", "mtu", "neighbour", "route"].map(str::to_owned);
    assert_eq!(repairs(lab.first()), wanted.into());
}

#[test]
fn broken_entries_files_and_rules_are_repaired() {
    let lab = Lab::new();
    let file = lab.first().subnet_file().display().to_string();
    let macs = "mac=$(ip neigh show 10.244.3.0 dev flannel.1 | sed 's/.*lladdr //; s/ .*//')
                mac6=$(ip neigh show fd10:244:3:: dev flannel-v6.1 | sed 's/.*lladdr //; s/ .*//')";
    for script in [
        "ip route del 10.244.3.0/24; ip -6 route del fd10:244:3::/64",
        "ip route replace 10.244.3.0/24 via 10.244.2.0 dev flannel.1 onlink proto 83",
        "ip -6 route replace fd10:244:3::/64 via fd10:244:2:: dev flannel-v6.1 onlink proto 83",
        "ip neigh del 10.244.3.0 dev flannel.1; ip neigh del fd10:244:3:: dev flannel-v6.1",
        "ip neigh replace 10.244.3.0 lladdr 02:00:00:00:00:79 dev flannel.1 nud permanent
         ip neigh replace fd10:244:3:: lladdr 02:00:00:00:00:79 dev flannel-v6.1 nud permanent",
        &format!("{macs}; bridge fdb del $mac dev flannel.1; bridge fdb del $mac6 dev flannel-v6.1"),
        &format!("{macs}; bridge fdb replace $mac dev flannel.1 dst 192.168.77.99; bridge fdb replace $mac6 dev flannel-v6.1 dst fd77::99"),
        "bridge fdb add 02:00:00:00:00:80 dev flannel.1 dst 192.168.77.99",
        &format!("rm {file}"),
        &format!("rm -r $(dirname {file})"),
        &format!("echo FLANNEL_MTU=9000 > {file}"),
        // All in one change: audits are rate-limited, so a second change would be found later.
        "iptables-nft -F FLANNEL-FWD; iptables-nft -t nat -F POSTROUTING; iptables-nft -t nat -D FLANNEL-POSTRTG 1
         ip6tables-nft -F FORWARD; ip6tables-nft -t nat -F; ip6tables-nft -t nat -X FLANNEL-POSTRTG",
    ] {
        lab.repaired(script, &[V4, V6]);
    }
    // Routes of other programs that replace ours, precede ours, or are beside ours.
    for script in [
        "ip route replace 10.244.3.0/24 via 192.168.77.200 dev eth0; ip -6 route replace fd10:244:3::/64 via fd77::200 dev eth0",
        "ip route replace 10.244.3.0/24 via 192.168.77.200 dev eth0 proto static
         ip -6 route replace fd10:244:3::/64 via fd77::200 dev eth0 proto static",
        "ip route replace 10.244.3.0/24 dev eth0 proto bird; ip -6 route replace fd10:244:3::/64 dev eth0 proto bird",
        "ip route replace 10.244.3.0/24 nexthop via 192.168.77.200 nexthop via 192.168.77.201
         ip -6 route replace fd10:244:3::/64 proto static nexthop via fd77::200 nexthop via fd77::201",
        "ip route replace blackhole 10.244.3.0/24; ip -6 route replace blackhole fd10:244:3::/64",
        "ip route replace unreachable 10.244.3.0/24 proto static; ip -6 route replace unreachable fd10:244:3::/64 proto static",
        "ip route replace prohibit 10.244.3.0/24; ip -6 route replace prohibit fd10:244:3::/64",
        "ip route prepend 10.244.3.0/24 via 192.168.77.202 dev eth0 proto static
         ip -6 route prepend fd10:244:3::/64 via fd77::202 dev eth0 proto static",
        "ip route prepend unreachable 10.244.3.0/24; ip route append 10.244.3.0/24 via 192.168.77.203 dev eth0
         ip -6 route append fd10:244:3::/64 via fd77::203 dev eth0",
    ] {
        lab.repaired(script, &[V4, V6]);
    }
    let log = lab.first().log();
    for line in [
        "another program changed the route to 10.244.3.0/24 (pods of node node-3): `10.244.3.0/24 via 192.168.77.200 dev eth0 proto boot` is replaced",
        "another program changed the route to fd10:244:3::/64 (pods of node node-3): `fd10:244:3::/64 via fd77::200 dev eth0 metric 1024 proto boot` is replaced",
        "`unreachable 10.244.3.0/24 proto static` is replaced",
        "`10.244.3.0/24 via 192.168.77.202 dev eth0 proto static` is replaced",
    ] {
        assert!(log.contains(line), "{line}\n{log}");
    }
    lab.repaired("ip route flush proto 83; ip -6 route flush proto 83", &[]);
    let wanted = ["fdb", "neighbour", "route", "subnet_file"].map(str::to_owned);
    assert_eq!(repairs(lab.first()), wanted.into());
}

/// Routes to destinations of no peer stay, and so do routes that the kernel prefers to ours.
#[test]
fn routes_of_others_stay() {
    let lab = Lab::new();
    let first = lab.first();
    let foreign = ["198.51.100.0/24 via 192.168.77.200 dev eth0 proto static", "10.244.99.0/24 via 192.168.77.200 dev eth0"];
    for route in foreign {
        first.netns.run(&format!("ip route add {route}"));
    }
    first.netns.run("ip -6 route add fd10:244:99::/64 via fd77::200 dev eth0 proto static");
    let with_them = first.state();
    lab.repaired("ip link del flannel.1; ip route flush proto 83", &[V6]);
    for route in foreign {
        assert!(with_them.contains(route) && first.state().contains(route), "{route}");
    }

    // Routes that the kernel prefers to ours are reported and stay.
    let preferred = ["fd10:244:3::/64 via fd77::200 dev eth0 proto static metric 100", "10.244.3.128/25 via 192.168.77.200 dev eth0"];
    first.netns.run(&format!("ip -6 route add {}; ip route add {}", preferred[0], preferred[1]));
    for words in [
        "the kernel prefers the route `fd10:244:3::/64 via fd77::200 dev eth0 metric 100 proto static` of another program to ours to fd10:244:3::/64 \
         (pods of node node-3), because it has a lower metric",
        "the kernel prefers the route `10.244.3.128/25 via 192.168.77.200 dev eth0 proto boot` of another program to ours to 10.244.3.0/24 \
         (pods of node node-3), because it is more specific",
    ] {
        wait_until_within(SOON, words, || first.log().contains(words));
    }
    let state = first.state();
    assert!(preferred.iter().all(|route| state.contains(route)), "{state}");
    lab.assert_undisturbed("a route that is preferred", &[V4, V6]);
    // Also if ours must be written again while a route over another link covers its gateway.
    first.netns.run("ip -6 route add fd10:244:3::/64 via fd77::200 dev eth0 metric 2048; ip -6 route del fd10:244:3::/64 proto 83");
    wait_until_within(SOON, "our route is back", || {
        first.state().contains("fd10:244:3::/64 via fd10:244:3:: dev flannel-v6.1 proto 83 metric 1024")
    });
    first.netns.run("ip -6 route del fd10:244:3::/64 metric 2048");
    first.netns.run(&format!("ip -6 route del {}; ip route del {}", preferred[0], preferred[1]));
    assert_eq!(difference(&with_them, &first.state()), "");
}

/// Foreign routes at the start, and a program that keeps writing them.
#[test]
fn foreign_routes_are_replaced_at_the_start_and_a_program_that_goes_on_is_named() {
    let layout = Layout { backend: json!({"Type": "host-gw"}), ..Layout::vxlan(3, Families::Dual) };
    let cluster = PodCluster::new(Path::new(SEPAL), layout);
    cluster.start(&["--proxy=false"]);
    let first = &cluster.nodes[0];
    let before = first.state();
    let foreign = "ip route replace 10.244.2.0/24 via 192.168.77.254 dev eth0; ip -6 route replace fd10:244:2::/64 via fd77::254 dev eth0";
    assert_eq!(first.stop(), Some(0));
    first.netns.run(foreign);
    assert_ne!(first.state(), before);
    first.start_again();
    first.wait_ready();
    assert_eq!(difference(&before, &first.state()), "");
    let has_event = |reason: &str| {
        let is_it = |event: &Value| event["reason"] == json!(reason) && event["regarding"]["name"] == json!("node-1");
        cluster.server.list("events.events.k8s.io").iter().any(is_it)
    };
    wait_until_within(SOON, "an Event reports it", || has_event("RouteReplaced"));

    // The other program writes its routes again as soon as they are replaced.
    let start = Instant::now();
    let mut written = 0;
    while !has_event("RouteContested") {
        assert!(start.elapsed() < Duration::from_secs(60), "it goes on for ever:\n{}", first.log());
        if !first.netns.run("ip route show 10.244.2.0/24").contains("192.168.77.254") {
            written += 1;
            first.netns.run(foreign);
        }
        thread::sleep(Duration::from_millis(20));
    }
    let log = first.log();
    assert!(written > 2 && log.contains("writes the route to 10.244.2.0/24 (pods of node node-2) again and again"), "{written}\n{log}");
    assert!(!log.contains("the route to 10.244.3.0/24"), "only those routes are named");
    // The other program stops: our routes are back at once.
    first.netns.run("ip route del 10.244.2.0/24; ip -6 route del fd10:244:2::/64");
    wait_until_within(SOON, "the state is as before", || first.state() == before);
}

/// A node that exists only in the API.
#[derive(Clone)]
struct Ghost {
    macs: [&'static str; 2],
    ips: [&'static str; 2],
    /// The third number of both its subnets.
    subnets: [u8; 2],
    managed: bool,
}

impl Ghost {
    fn object(&self) -> Value {
        let data = |mac: &str| json!({"VNI": 1, "VtepMAC": mac}).to_string();
        let cidrs = [format!("10.244.{}.0/24", self.subnets[0]), format!("fd10:244:{}::/64", self.subnets[1])];
        let mut annotations = json!({
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/backend-data": data(self.macs[0]), "flannel.alpha.coreos.com/backend-v6-data": data(self.macs[1]),
            "flannel.alpha.coreos.com/public-ip": self.ips[0], "flannel.alpha.coreos.com/public-ipv6": self.ips[1],
        });
        if self.managed {
            annotations["flannel.alpha.coreos.com/kube-subnet-manager"] = json!("true");
        }
        json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "ghost", "annotations": annotations},
            "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
        })
    }

    /// The kernel entries that every node has for it.
    fn entries(&self) -> BTreeSet<String> {
        let ([mac, mac6], [ip, ip6], [subnet, subnet6]) = (self.macs, self.ips, self.subnets);
        let all = [
            format!("flannel.1 10.244.{subnet}.0 lladdr {mac} PERMANENT"),
            format!("flannel.1 {mac} dst {ip} self permanent"),
            format!("10.244.{subnet}.0/24 via 10.244.{subnet}.0 dev flannel.1 proto 83 onlink"),
            format!("flannel-v6.1 fd10:244:{subnet6}:: lladdr {mac6} PERMANENT"),
            format!("flannel-v6.1 {mac6} dst {ip6} self permanent"),
            format!("fd10:244:{subnet6}::/64 via fd10:244:{subnet6}:: dev flannel-v6.1 proto 83 metric 1024 onlink pref medium"),
        ];
        if self.managed { all.into() } else { BTreeSet::new() }
    }
}

/// Every change of a peer, in one family and in both, while the daemon runs and while it is stopped.
#[test]
fn peers_come_change_and_go() {
    let lab = Lab::new();
    let first = lab.first();
    let before = first.state();
    let known: BTreeSet<&str> = before.lines().collect();
    let entries = || first.state().lines().filter(|line| !known.contains(line)).map(str::to_owned).collect::<BTreeSet<String>>();
    let holds = |what: &str, wanted: &BTreeSet<String>| {
        let start = Instant::now();
        while entries() != *wanted {
            assert!(start.elapsed() < SOON, "{what}: {wanted:#?}\nis wanted, and there is\n{:#?}\n{}", entries(), first.log());
            thread::sleep(Duration::from_millis(20));
        }
        assert!(known.is_subset(&first.state().lines().collect()), "{what}: others keep theirs");
        lab.assert_undisturbed(what, &[V4, V6]);
    };
    let ghost = Ghost {
        macs: ["02:00:00:00:09:04", "02:00:00:00:09:06"],
        ips: ["192.168.77.109", "fd77::109"],
        subnets: [109, 109],
        managed: true,
    };
    let steps = [
        ("a new one", ghost.clone()),
        ("its IPv4 MAC", Ghost { macs: ["02:00:00:00:0a:04", "02:00:00:00:09:06"], ..ghost.clone() }),
        ("its IPv6 MAC", Ghost { macs: ["02:00:00:00:0a:04", "02:00:00:00:0a:06"], ..ghost.clone() }),
        ("its IPv4 address", Ghost { ips: ["192.168.77.110", "fd77::109"], ..ghost.clone() }),
        ("its IPv6 address", Ghost { ips: ["192.168.77.110", "fd77::110"], ..ghost.clone() }),
        ("its IPv4 subnet", Ghost { subnets: [110, 109], ..ghost.clone() }),
        ("its IPv6 subnet", Ghost { subnets: [110, 110], ..ghost.clone() }),
        ("its part in the network", Ghost { managed: false, ..ghost.clone() }),
        ("back in the network", ghost.clone()),
    ];
    for (what, ghost) in &steps {
        lab.cluster.server.put(ghost.object()).expect("a Node");
        holds(what, &ghost.entries());
    }
    // The same while the daemon is stopped.
    for (what, ghost) in &steps {
        assert_eq!(first.stop(), Some(0));
        lab.cluster.server.put(ghost.object()).expect("a Node");
        first.start_again();
        first.wait_ready();
        holds(&format!("{what}, while stopped"), &ghost.entries());
    }
    first.kill();
    assert!(lab.cluster.server.remove("nodes", "ghost"));
    first.start_again();
    first.wait_ready();
    holds("gone while stopped", &BTreeSet::new());
    lab.cluster.server.put(ghost.object()).expect("a Node");
    holds("a new one", &ghost.entries());
    assert!(lab.cluster.server.remove("nodes", "ghost"));
    holds("gone", &BTreeSet::new());
    assert_eq!(difference(&before, &first.state()), "");
}

/// A node gets another address: it is published, and packets are sent there.
#[test]
fn a_nodes_own_address_changes() {
    let lab = Lab::new();
    let third = &lab.cluster.nodes[2];
    let [v4, v6] = [lab.pods[0].ips[0], lab.pods[0].ips[1]];
    for (change, was, is) in [
        ("ip -6 addr add fd77::103/64 dev eth0 nodad; ip -6 addr del fd77::3/64 dev eth0", "fd77::3", "fd77::103"),
        (
            "ip addr del 192.168.77.3/24 dev eth0; ip addr add 192.168.77.103/24 dev eth0; ip route replace default via 192.168.77.200",
            "192.168.77.3",
            "192.168.77.103",
        ),
    ] {
        third.netns.run(change);
        lab.cluster.change_node(3, |node| {
            let addresses = node["status"]["addresses"].as_array_mut().expect("addresses");
            addresses.iter_mut().filter(|address| address["address"] == json!(was)).for_each(|address| address["address"] = json!(is));
        });
        let start = Instant::now();
        let names = format!(" dst {is} self permanent");
        let links = |node: &PodNode| node.netns.run("ip -d link show type vxlan");
        while !(lab.first().state().contains(&names) && links(third).contains(&format!("local {is} "))) {
            assert!(start.elapsed() < SOON, "{is} is not used:\n{}\n{}", lab.first().state(), third.log());
            thread::sleep(Duration::from_millis(20));
        }
        for ip in [v4, v6] {
            wait_until_within(SOON, "packets go there", || sepal_lab::traffic::udp(&lab.pods[0].netns, lab.pods[3].udp(ip)).is_ok());
            wait_until_within(SOON, "the change back is followed", || {
                sepal_lab::traffic::udp(&lab.pods[3].netns, lab.pods[1].udp(ip)).is_ok()
            });
        }
    }
    for (name, prober) in &lab.probers {
        assert!(*name == OTHERS || prober.lost() == 0, "{name}");
    }
}
