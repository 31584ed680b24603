//! Links, addresses, routes, neighbours and FDB entries in the real kernel.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use nix::errno::Errno;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use sepal::netlink::entry::{EntryChange, FdbEntry, LinkChange, Live, Neighbour, OUR_PROTOCOL, Route, RouteKind};
use sepal::netlink::fake_network::FakeNetwork;
use sepal::netlink::link::{Link, LinkId, LinkKind, LinkNames, Scope, Vxlan};
use sepal::netlink::mac::Mac;
use sepal::netlink::monitor::{KernelEvent, Monitor};
use sepal::netlink::{Cause, Kernel, NetlinkError, NetworkKernel};
use sepal_lab::Netns;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const V4: Vxlan = Vxlan { local: Some(IpAddr::V4(Ipv4Addr::new(192, 168, 77, 1))), ..Vxlan::new(1, 0) };
const V6: Vxlan = Vxlan { local: Some(IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1))), ..V4 };
/// Set for the run of this test without capabilities.
const BARE: &str = "SEPAL_TEST_WITHOUT_CAPABILITIES";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn net(text: &str) -> IpNetwork {
    text.parse().expect("a network")
}

/// A node with one interface and a default route.
fn node() -> Netns {
    let node = Netns::new();
    node.run(
        "ip link add eth0 type veth peer name far; ip link set eth0 up; ip link set far up
         ip addr add 192.168.77.1/24 dev eth0; ip -6 addr add fd77::1/64 dev eth0 nodad
         ip route add default via 192.168.77.254; ip -6 route add default via fd77::fe",
    );
    node
}

/// Runs a function within a namespace.
fn within<T: Send + 'static>(node: &Netns, work: impl FnOnce() -> T + Send + 'static) -> T {
    node.run_thread(work)
}

fn live(node: &Netns) -> Live {
    within(node, || Kernel.dump()).expect("it is root's to see")
}

fn link(node: &Netns, name: &str) -> Link {
    live(node).links.into_iter().find(|link| link.name == name).unwrap_or_else(|| panic!("no {name}"))
}

fn make(node: &Netns, change: LinkChange) -> Result<(), NetlinkError> {
    within(node, move || Kernel.change_link(&change))
}

fn change(node: &Netns, changes: Vec<EntryChange>) -> Vec<Result<(), NetlinkError>> {
    within(node, move || Kernel.change_entries(&changes, &LinkNames::default()))
}

/// Applies changes that must all succeed.
fn apply(node: &Netns, changes: Vec<EntryChange>) {
    for (wanted, outcome) in changes.clone().into_iter().zip(change(node, changes)) {
        outcome.unwrap_or_else(|error| panic!("{wanted:?}: {error}"));
    }
}

/// Makes a VXLAN link over eth0 and sets it up.
fn vxlan(node: &Netns, name: &str, vxlan: Vxlan, mtu: u32) -> Link {
    let vxlan = Vxlan { underlay: Some(link(node, "eth0").index), ..vxlan };
    make(node, LinkChange::CreateVxlan { name: name.to_owned(), vxlan, mac: MAC, mtu }).expect("made");
    let made = link(node, name);
    make(node, LinkChange::Up(made.id())).expect("up");
    made
}

/// The three entries of a peer: route, neighbour and FDB entry.
fn peer(link: u32, subnet: &str, host: &str, number: u32) -> [EntryChange; 3] {
    let destination = net(subnet);
    let [_, a, b, c] = number.to_be_bytes();
    let mac = Mac([2, 1, 0, a, b, c]);
    [
        EntryChange::Neighbour(Neighbour { link, ip: destination.ip(), mac, permanent: true }),
        EntryChange::Fdb(FdbEntry { link, mac, host: ip(host), permanent: true }),
        EntryChange::Route(Route {
            destination,
            gateway: Some(destination.ip()),
            link: Some(link),
            onlink: true,
            kind: RouteKind::Unicast,
            source: None,
            protocol: OUR_PROTOCOL,
            metric: if destination.is_ipv6() { 1024 } else { 0 },
        }),
    ]
}

fn undo(change: EntryChange) -> EntryChange {
    match change {
        EntryChange::Route(route) | EntryChange::NoRoute(route) => EntryChange::NoRoute(route),
        EntryChange::Neighbour(neighbour) | EntryChange::NoNeighbour(neighbour) => EntryChange::NoNeighbour(neighbour),
        EntryChange::Fdb(entry) | EntryChange::NoFdb(entry) => EntryChange::NoFdb(entry),
    }
}

/// A kernel's entries as the changes that would make them; of routes only ours.
fn entries(live: &Live) -> BTreeSet<String> {
    let routes = live.routes.iter().filter(|route| route.protocol == OUR_PROTOCOL).map(|route| EntryChange::Route(*route));
    let neighbours = live.neighbours.iter().map(|neighbour| EntryChange::Neighbour(*neighbour));
    let fdb = live.fdb.iter().map(|entry| EntryChange::Fdb(*entry));
    routes.chain(neighbours).chain(fdb).map(|change| format!("{change:?}")).collect()
}

fn words(changes: &[EntryChange]) -> BTreeSet<String> {
    changes.iter().map(|change| format!("{change:?}")).collect()
}

#[test]
fn vxlan_links_are_as_they_were_asked_for() {
    let node = node();
    let eth0 = link(&node, "eth0").index;
    let wanted = [
        ("flannel.1", Vxlan { underlay: Some(eth0), ..V4 }, 1450),
        ("flannel-v6.1", Vxlan { underlay: Some(eth0), ..V6 }, 1430),
        ("odd.2", Vxlan { vni: 0x00ff_ffff, port: 4789, learning: true, gbp: true, reports_misses: true, checksum: false, ..V4 }, 1300),
    ];
    for (name, vxlan, mtu) in wanted {
        make(&node, LinkChange::CreateVxlan { name: name.to_owned(), vxlan, mac: MAC, mtu }).expect("made");
        let made = link(&node, name);
        let port = if vxlan.port == 0 { 8472 } else { vxlan.port };
        assert_eq!((made.mac, made.mtu, made.up, made.master), (Some(MAC), mtu, false, None));
        assert_eq!(made.kind, LinkKind::Vxlan(Vxlan { port, ..vxlan }));
        assert_eq!(node.run(&format!("cat /proc/sys/net/ipv6/conf/{name}/accept_ra")), "0\n");
    }
    // As flannel makes it [flannel 5.2].
    let shown = node.run("ip -d link show flannel.1");
    let attributes = "vxlan id 1 local 192.168.77.1 dev eth0 srcport 0 0 dstport 8472 nolearning ttl auto ageing 300 udpcsum \
                      noudp6zerocsumtx noudp6zerocsumrx";
    assert!(shown.contains(attributes), "{shown}");
    assert_eq!(link(&node, "lo").kind, LinkKind::Loopback);
    assert_eq!(link(&node, "eth0").kind, LinkKind::Other("veth".to_owned()));

    let again = LinkChange::CreateVxlan { name: "flannel.1".to_owned(), vxlan: V4, mac: MAC, mtu: 1450 };
    assert_eq!(make(&node, again.clone()).expect_err("there is one").cause.errno(), Some(Errno::EEXIST));
    let made = link(&node, "flannel.1");
    make(&node, LinkChange::Delete(made.id())).expect("gone");
    make(&node, LinkChange::Delete(made.id())).expect("gone already");
    make(&node, again).expect("made again");
    let long = LinkChange::CreateVxlan { name: "flannel.16777215".to_owned(), vxlan: V4, mac: MAC, mtu: 1450 };
    assert!(matches!(make(&node, long).expect_err("16 bytes").cause, Cause::Other(_)));
    let unfit = LinkChange::CreateVxlan { name: "flannel.2".to_owned(), vxlan: Vxlan { vni: 1 << 24, ..V4 }, mac: MAC, mtu: 1450 };
    let error = make(&node, unfit).expect_err("too large").to_string();
    assert!(error.contains("flannel.2") && error.contains("16777216"), "{error}");
}

#[test]
fn links_are_changed_in_place() {
    let node = node();
    let made = vxlan(&node, "flannel.1", V4, 1450);
    let id = || made.id();
    let mac = Mac([2, 0, 0, 0, 0, 2]);
    make(&node, LinkChange::Mtu(id(), 1350)).expect("set");
    make(&node, LinkChange::Mac(id(), mac)).expect("set");
    for _ in 0..2 {
        make(&node, LinkChange::AddAddress(id(), net("10.244.1.0/32"))).expect("added");
        make(&node, LinkChange::AddAddress(id(), net("10.250.1.1/24"))).expect("added");
        make(&node, LinkChange::AddAddress(id(), net("fd00:1::/128"))).expect("added");
    }
    let now = link(&node, "flannel.1");
    assert_eq!((now.mtu, now.mac, now.up, &now.kind), (1350, Some(mac), true, &made.kind));
    let global: Vec<_> = now.addresses.iter().filter(|address| address.scope == Scope::Universe).collect();
    assert_eq!(
        global.iter().map(|address| address.net).collect::<Vec<_>>(),
        [net("10.244.1.0/32"), net("10.250.1.1/24"), net("fd00:1::/128")]
    );
    assert!(global.iter().all(|address| address.permanent && !address.temporary && !address.deprecated));
    assert!(now.addresses.iter().any(|address| address.scope == Scope::Link));
    let shown = node.run("ip -o -4 addr show dev flannel.1");
    assert!(shown.contains("inet 10.244.1.0/32 scope global") && shown.contains("10.250.1.1/24 brd 10.250.1.255 scope global"), "{shown}");
    for _ in 0..2 {
        for address in ["10.244.1.0/32", "10.250.1.1/24", "fd00:1::/128"] {
            make(&node, LinkChange::DeleteAddress(id(), net(address))).expect("gone");
        }
    }
    assert!(link(&node, "flannel.1").addresses.iter().all(|address| address.scope == Scope::Link));
    let error = make(&node, LinkChange::Mtu(LinkId { index: 9999, name: "flannel.9".into() }, 1400)).expect_err("no such link");
    assert_eq!(error.to_string(), "cannot set the MTU of link flannel.9 to 1400: No such device");
}

#[test]
fn checksum_offload_is_switched() {
    let node = node();
    let made = vxlan(&node, "flannel.1", V4, 1450);
    for on in [false, true, true, false] {
        make(&node, LinkChange::ChecksumOffload(made.id(), on)).expect("switched");
        assert_eq!(offloads(&node, made.index), on);
    }
    let error =
        make(&node, LinkChange::ChecksumOffload(LinkId { index: 9999, name: "flannel.9".into() }, false)).expect_err("no such link");
    assert!(error.to_string().starts_with("cannot switch checksum offload off for link flannel.9: No such device"), "{error}");
    // The kernel does not switch the loopback's.
    let fixed = make(&node, LinkChange::ChecksumOffload(link(&node, "lo").id(), false)).expect_err("fixed");
    assert!(matches!(fixed.cause, Cause::Other(_)), "{fixed}");
}

/// Whether a link's transmit checksum offload is on, read by ethtool's netlink messages.
fn offloads(node: &Netns, index: u32) -> bool {
    use sepal::netlink::socket::{Connection, Request};
    within(node, move || {
        let mut connection = Connection::generic().expect("a socket");
        let family = Request { kind: 0x10, flags: 0, body: [&[3, 1, 0, 0, 12, 0, 2, 0][..], b"ethtool\0"].concat() };
        let family = connection.get(&family, |_, body| body.windows(6).find(|window| window[..4] == [6, 0, 1, 0]).map(|id| [id[4], id[5]]));
        let kind = u16::from_ne_bytes(*family.expect("there is ethtool").first().expect("it has a number"));
        // FEATURES_GET, with a header that names the link.
        let body = [&[11, 1, 0, 0, 12, 0, 1, 128, 8, 0, 1, 0][..], &index.to_ne_bytes()].concat();
        let answers = connection.get(&Request { kind, flags: 0, body }, |_, body| Some(body.to_vec())).expect("an answer");
        // The active features are the fourth attribute; each bit in it has a name.
        let mut rest = &answers[0][4..];
        loop {
            let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
            if u16::from_ne_bytes([rest[2], rest[3]]) & 0x3fff == 4 {
                let name = b"tx-checksum-ip-generic\0";
                return rest[..length].windows(name.len()).any(|window| window == name);
            }
            rest = &rest[length.next_multiple_of(4)..];
        }
    })
}

#[test]
fn entries_come_are_replaced_and_go() {
    let node = node();
    let [v4, v6] = [("flannel.1", V4, 1450), ("flannel-v6.1", V6, 1430)].map(|(name, with, mtu)| vxlan(&node, name, with, mtu).index);
    let blackhole = |subnet: &str| {
        let metric = if subnet.contains(':') { 1024 } else { 0 };
        let destination = net(subnet);
        EntryChange::Route(Route {
            destination,
            gateway: None,
            link: None,
            onlink: false,
            kind: RouteKind::Blackhole,
            source: None,
            protocol: OUR_PROTOCOL,
            metric,
        })
    };
    let first: Vec<_> =
        [peer(v4, "10.244.2.0/24", "192.168.77.2", 2), peer(v6, "fd00:2::/64", "fd77::2", 2)].into_iter().flatten().collect();
    let first = [first, vec![blackhole("10.244.1.0/24"), blackhole("fd00:1::/64")]].concat();
    for _ in 0..2 {
        apply(&node, first.clone());
        assert_eq!(entries(&live(&node)), words(&first));
    }
    let shown = node.run("ip route show 10.244.2.0/24; ip neigh show dev flannel.1 nud permanent; bridge fdb show dev flannel.1");
    assert_eq!(
        shown,
        "10.244.2.0/24 via 10.244.2.0 dev flannel.1 proto 83 onlink \n10.244.2.0 lladdr 02:01:00:00:00:02 PERMANENT \n\
         02:01:00:00:00:02 dst 192.168.77.2 self permanent\n"
    );

    // The peer moves: another MAC address of the neighbour, another host of the FDB entry, another gateway of the route.
    let direct = |subnet: &str, gateway: &str| {
        let EntryChange::Route(route) = blackhole(subnet) else { panic!("a route") };
        EntryChange::Route(Route { gateway: Some(ip(gateway)), link: Some(link(&node, "eth0").index), kind: RouteKind::Unicast, ..route })
    };
    let [EntryChange::Neighbour(neighbour), EntryChange::Fdb(entry), _] = peer(v4, "10.244.2.0/24", "192.168.77.2", 2) else {
        panic!("a peer")
    };
    let moved = vec![
        EntryChange::Neighbour(Neighbour { mac: Mac([2, 9, 9, 9, 9, 9]), ..neighbour }),
        EntryChange::Fdb(FdbEntry { host: ip("192.168.77.3"), ..entry }),
        direct("10.244.2.0/24", "192.168.77.2"),
        direct("fd00:2::/64", "fd77::2"),
    ];
    apply(&node, moved.clone());
    let now = [moved, peer(v6, "fd00:2::/64", "fd77::2", 2)[..2].to_vec(), first[6..].to_vec()].concat();
    assert_eq!(entries(&live(&node)), words(&now));

    // And back: for IPv6 the route that is replaced covers the new gateway [flannel 6].
    apply(&node, first.clone());
    assert_eq!(entries(&live(&node)), words(&first));

    // Routes of other programs stay, for every destination.
    node.run("ip route add 10.244.9.0/24 via 192.168.77.9; ip -6 route add fd00:9::/64 via fd77::9");
    let others: Vec<_> = ["10.244.9.0/24", "fd00:9::/64"]
        .into_iter()
        .flat_map(|subnet| [undo(blackhole(subnet)), undo(direct(subnet, "fd77::8"))])
        .collect();
    apply(&node, others);
    assert_eq!(
        node.run("ip route show 10.244.9.0/24; ip -6 route show fd00:9::/64 | cut -d' ' -f1-3"),
        "10.244.9.0/24 via 192.168.77.9 dev eth0 \nfd00:9::/64 via fd77::9\n"
    );

    let gone: Vec<_> = first.iter().copied().map(undo).collect();
    for _ in 0..2 {
        apply(&node, gone.clone());
        assert_eq!(entries(&live(&node)), BTreeSet::new());
    }
    let names = LinkNames::new(&live(&node).links);
    make(&node, LinkChange::Delete(link(&node, "flannel.1").id())).expect("gone");
    apply(&node, gone);
    let outcomes = within(&node, move || Kernel.change_entries(&first, &names));
    let failed: Vec<bool> = outcomes.iter().map(Result::is_err).collect();
    assert_eq!(failed, [true, true, true, false, false, false, false, false], "one that fails holds up no other");
    let error = outcomes[2].as_ref().expect_err("no link").to_string();
    assert!(error.starts_with("cannot set route 10.244.2.0/24 via 10.244.2.0 dev flannel.1: No such device"), "{error}");
}

#[test]
fn ways_are_found() {
    let node = node();
    let eth0 = link(&node, "eth0").index;
    let find = |to: &str| {
        let to = ip(to);
        within(&node, move || Kernel.route_to(to))
    };
    for (to, gateway, source) in [
        ("192.168.77.9", None, "192.168.77.1"),
        ("8.8.8.8", Some("192.168.77.254"), "192.168.77.1"),
        ("fd77::9", None, "fd77::1"),
        ("2001:db8::1", Some("fd77::fe"), "fd77::1"),
    ] {
        let way = find(to).expect("a way");
        assert_eq!((way.link, way.gateway, way.source), (Some(eth0), gateway.map(ip), Some(ip(source))), "{to}");
        assert_eq!(way.destination, IpNetwork::from(ip(to)));
    }
    assert_eq!(find("192.168.77.1").expect("itself").link, Some(1));
    node.run("ip route del default; ip -6 route del default");
    let error = find("8.8.8.8").expect_err("no route").to_string();
    assert!(error.starts_with("cannot find the route to 8.8.8.8: Network is unreachable"), "{error}");
    let mine = live(&node).routes;
    assert!(mine.iter().any(|route| route.destination == net("192.168.77.0/24") && route.source == Some(ip("192.168.77.1"))), "{mine:?}");
}

#[test]
fn a_fresh_namespace_has_a_loopback_and_nothing_else() {
    let node = Netns::new();
    let live = live(&node);
    assert_eq!(live.links.iter().map(|link| (link.index, link.name.as_str())).collect::<Vec<_>>(), [(1, "lo")]);
    assert_eq!(live.links[0].addresses.iter().map(|address| address.scope).collect::<Vec<_>>(), [Scope::Host; 2]);
    assert_eq!((entries(&live), live.routes.iter().filter(|route| route.destination.is_ipv4()).count()), (BTreeSet::new(), 0));
}

/// 20,000 peers of both families; their events overflow a monitor that is not read.
#[test]
fn tens_of_thousands_of_entries_are_programmed_in_batches() {
    let node = node();
    let [v4, v6] = [("flannel.1", V4, 1450), ("flannel-v6.1", V6, 1430)].map(|(name, with, mtu)| vxlan(&node, name, with, mtu).index);
    let changes: Vec<EntryChange> = (0..10_000_u32)
        .flat_map(|n| {
            let (a, b) = (n / 250, n % 250);
            let v4 = peer(v4, &format!("10.{a}.{b}.0/24"), &format!("172.16.{a}.{b}"), n);
            [v4, peer(v6, &format!("fd00:0:{a:x}:{b:x}::/64"), &format!("fd77::{n:x}"), n)]
        })
        .flatten()
        .collect();
    let all = Arc::new(changes);
    let work = all.clone();
    node.run_thread(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut monitor = Monitor::open().expect("root may listen");
            for (change, outcome) in work.iter().zip(Kernel.change_entries(&work, &LinkNames::default())) {
                outcome.unwrap_or_else(|error| panic!("{change:?}: {error}"));
            }
            let limit = Duration::from_secs(60);
            let lost = tokio::time::timeout(limit, async { while !monitor.next().await.expect("events").contains(&KernelEvent::Lost) {} });
            lost.await.expect("more events than fit");
        });
    });
    assert_eq!(entries(&live(&node)), words(&all));
    apply(&node, all.iter().copied().map(undo).collect());
    assert_eq!(entries(&live(&node)), BTreeSet::new());
}

#[test]
fn changes_are_told_as_they_come() {
    let node = node();
    let eth0 = link(&node, "eth0").index;
    node.run_thread(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(watch(eth0));
    });
}

/// Waits for an event; fails the test if it does not come.
async fn told(monitor: &mut Monitor, wanted: impl Fn(&KernelEvent) -> bool) {
    let wait = async { while !monitor.next().await.expect("events").iter().any(&wanted) {} };
    tokio::time::timeout(Duration::from_secs(60), wait).await.expect("it is reported");
}

async fn watch(eth0: u32) {
    let mut monitor = Monitor::open().expect("root may listen");
    let with = Vxlan { underlay: Some(eth0), ..V4 };
    let change_link = |change: LinkChange| Kernel.change_link(&change).expect("done");
    let change_entry = |change: EntryChange| {
        Kernel.change_entries(&[change], &LinkNames::default()).into_iter().for_each(|outcome| outcome.expect("done"));
    };
    change_link(LinkChange::CreateVxlan { name: "flannel.1".to_owned(), vxlan: with, mac: MAC, mtu: 1450 });
    told(&mut monitor, |event| matches!(event, KernelEvent::Link { name, gone: false, .. } if name == "flannel.1")).await;
    let links = Kernel.links().expect("listed");
    let made = links.iter().find(|link| link.name == "flannel.1").expect("made");
    let (ours, id) = (made.index, || made.id());
    change_link(LinkChange::Up(id()));
    change_link(LinkChange::AddAddress(id(), net("10.244.1.0/32")));
    told(&mut monitor, |event| *event == KernelEvent::Address { link: ours, gone: false }).await;
    change_link(LinkChange::DeleteAddress(id(), net("10.244.1.0/32")));
    told(&mut monitor, |event| *event == KernelEvent::Address { link: ours, gone: true }).await;
    for change in peer(ours, "10.244.2.0/24", "192.168.77.2", 2) {
        for (change, gone) in [(change, false), (undo(change), true)] {
            change_entry(change);
            told(&mut monitor, |event| match change {
                EntryChange::Route(_) | EntryChange::NoRoute(_) => {
                    *event == KernelEvent::Route { link: Some(ours), protocol: OUR_PROTOCOL, gone } && event.concerns(&[])
                }
                EntryChange::Fdb(_) | EntryChange::NoFdb(_) => *event == KernelEvent::Fdb { link: ours, gone },
                // A deleted neighbour may first be reported as failed.
                _ => matches!(event, KernelEvent::Neighbour { link, .. } if *link == ours),
            })
            .await;
        }
    }
    change_link(LinkChange::Delete(id()));
    told(&mut monitor, |event| matches!(event, KernelEvent::Link { index, gone: true, .. } if *index == ours)).await;
}

/// Without the capability an error names it. The test runs itself again as root without capabilities.
#[test]
fn what_is_not_permitted_is_said() {
    if std::env::var_os(BARE).is_some() {
        let links = Kernel.links().expect("reading needs no capability");
        let eth0 = links.iter().find(|link| link.name == "eth0").expect("there is one");
        let outcomes = Kernel.change_entries(&peer(eth0.index, "10.244.2.0/24", "192.168.77.2", 2), &LinkNames::new(&links));
        let cure = "Operation not permitted. Run as root, or with the capability NET_ADMIN in this network namespace";
        for outcome in outcomes {
            let error = outcome.expect_err("not permitted").to_string();
            assert!(error.ends_with(cure) && error.contains(" dev eth0"), "{error}");
        }
        for change in [LinkChange::Up(eth0.id()), LinkChange::ChecksumOffload(eth0.id(), false)] {
            let error = Kernel.change_link(&change).expect_err("not permitted").to_string();
            assert!(error.ends_with(cure) && error.contains(" link eth0"), "{error}");
        }
        return;
    }
    let node = node();
    let this = std::env::current_exe().expect("it runs");
    let output = node
        .command("setpriv")
        .args(["--bounding-set=-all", "--inh-caps=-all", "--"])
        .arg(this)
        .args(["--exact", "netlink::what_is_not_permitted_is_said", "--nocapture"])
        .env(BARE, "1")
        .output()
        .expect("setpriv (util-linux) is there");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

/// An arbitrary change of entries with few addresses, so that changes often concern the same entry.
fn step(links: [u32; 2]) -> impl Strategy<Value = EntryChange> {
    let [v4, v6] = links;
    let any_link = prop_oneof![4 => Just(v4), 4 => Just(v6), 1 => Just(9999_u32)];
    let mac = (0..3_u8).prop_map(|n| Mac([2, 1, 0, 0, 0, n]));
    let neighbour = (any_link.clone(), any::<bool>(), 1..4_u8, mac.clone()).prop_map(|(link, six, n, mac)| {
        let ip = if six { Ipv6Addr::new(0xfd00, n.into(), 0, 0, 0, 0, 0, 0).into() } else { Ipv4Addr::new(10, 244, n, 0).into() };
        EntryChange::Neighbour(Neighbour { link, ip, mac, permanent: true })
    });
    let fdb = (any_link, any::<bool>(), 1..4_u8, mac).prop_map(|(link, six, n, mac)| {
        let host = if six { Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, n.into()).into() } else { Ipv4Addr::new(192, 168, 77, n).into() };
        EntryChange::Fdb(FdbEntry { link, mac, host, permanent: true })
    });
    let route = (any::<bool>(), 1..4_u8, 0..2_u8, prop_oneof![Just(0_u32), Just(77)], 0..6_u8, prop_oneof![Just(OUR_PROTOCOL), Just(84)])
        .prop_map(move |(six, n, host, metric, way, protocol)| {
            let (subnet, gateway, own): (IpNetwork, IpAddr, u32) = if six {
                let base = Ipv6Addr::new(0xfd00, n.into(), 0, 0, 0, 0, 0, 0);
                (net(&format!("{base}/64")), Ipv6Addr::new(0xfd00, n.into(), 0, 0, 0, 0, 0, host.into()).into(), v6)
            } else {
                (net(&format!("10.244.{n}.0/24")), Ipv4Addr::new(10, 244, n, host).into(), v4)
            };
            let blackhole = way == 0;
            let link = if way == 1 { 9999 } else { own };
            EntryChange::Route(Route {
                destination: subnet,
                gateway: (!blackhole).then_some(gateway),
                link: (!blackhole).then_some(link),
                onlink: !blackhole,
                kind: if blackhole { RouteKind::Blackhole } else { RouteKind::Unicast },
                source: None,
                protocol,
                metric,
            })
        });
    (prop_oneof![1 => neighbour, 1 => fdb, 2 => route], any::<bool>()).prop_map(|(change, goes)| if goes { undo(change) } else { change })
}

/// The fake kernel does what the real one does.
#[test]
fn the_fake_does_what_the_kernel_does() {
    let node = Arc::new(node());
    let links = [("flannel.1", V4, 1450), ("flannel-v6.1", V6, 1430)].map(|(name, with, mtu)| vxlan(&node, name, with, mtu).index);
    let empty = live(&node);
    let ours = |live: Live| Live {
        routes: live.routes.into_iter().filter(|route| [OUR_PROTOCOL, 84].contains(&route.protocol)).collect(),
        ..live
    };
    let all = |live: &Live| {
        let routes = live.routes.iter().map(|route| EntryChange::Route(*route));
        let neighbours = live.neighbours.iter().map(|neighbour| EntryChange::Neighbour(*neighbour));
        routes.chain(neighbours).chain(live.fdb.iter().map(|entry| EntryChange::Fdb(*entry))).collect::<Vec<_>>()
    };
    let mut runner = TestRunner::new(Config { cases: 60, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&proptest::collection::vec(proptest::collection::vec(step(links), 1..12), 1..8), |batches| {
        // Removes the entries of the previous case.
        apply(&node, all(&ours(live(&node))).into_iter().map(undo).collect());
        let fake = FakeNetwork::new(Live { routes: Vec::new(), neighbours: Vec::new(), fdb: Vec::new(), ..empty.clone() });
        for batch in batches {
            let errnos = |outcomes: Vec<Result<(), NetlinkError>>| {
                outcomes.into_iter().map(|outcome| outcome.err().map(|error| error.cause.errno())).collect::<Vec<_>>()
            };
            prop_assert_eq!(
                errnos(fake.change_entries(&batch, &LinkNames::default())),
                errnos(change(&node, batch.clone())),
                "{:?}",
                batch
            );
            let real = ours(live(&node));
            prop_assert_eq!(words(&all(&fake.live())), words(&all(&real)), "{:?}", batch);
        }
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}
