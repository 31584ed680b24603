//! Traffic policies, session affinity, loopback node ports and stale UDP flows, with real packets.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use sepal::cluster::Family;
use sepal_lab::single_node::ENDPOINTS;
use sepal_lab::traffic::tcp;
use sepal_lab::{Netns, wait_until};

use crate::manifest_site::{self, Following};

const VARIANTS: [&str; 2] = ["nft", "legacy"];

/// The port at which every endpoint answers with its own address and the client's.
const PEER_PORT: u16 = 9090;

const LOCAL: &str = "alder-03";
const ELSEWHERE: &str = "birch-04";

/// An external traffic policy, and the nodes of the two endpoints.
struct Policy {
    name: &'static str,
    number: u16,
    external: &'static str,
    nodes: [&'static str; 2],
}

impl Policy {
    const fn node_port(&self) -> u16 {
        30_100 + self.number
    }
}

const POLICIES: [Policy; 3] = [
    Policy { name: "open", number: 21, external: "Cluster", nodes: [LOCAL, ELSEWHERE] },
    Policy { name: "near", number: 22, external: "Local", nodes: [LOCAL, ELSEWHERE] },
    Policy { name: "away", number: 23, external: "Local", nodes: [ELSEWHERE, ELSEWHERE] },
];

fn pick<T>(family: Family, v4: T, v6: T) -> T {
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}

/// A Service of type LoadBalancer with this policy, for one family.
fn service(policy: &Policy, family: Family) -> String {
    let Policy { name, number, external, nodes: [first, second] } = policy;
    let kind = pick(family, "IPv4", "IPv6");
    let (cluster_ip, balancer) = pick(
        family,
        (format!("10.111.0.{number}"), format!("203.0.113.{number}")),
        (format!("fd61:b::{number}"), format!("2001:db8::{number}")),
    );
    let [one, two] = pick(family, [ENDPOINTS[0], ENDPOINTS[1]], [ENDPOINTS[2], ENDPOINTS[3]]);
    let name = format!("{name}-{family}");
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  type: LoadBalancer\n  clusterIP: \"{cluster_ip}\"\n  \
         clusterIPs: [\"{cluster_ip}\"]\n  ipFamilies: [{kind}]\n  externalTrafficPolicy: {external}\n  \
         ports: [{{name: http, port: 80, protocol: TCP, nodePort: {node_port}}}]\nstatus: {{loadBalancer: {{ingress: [{{ip: \"{balancer}\"}}]}}}}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}-1, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: {kind}\n\
         ports: [{{name: http, port: {PEER_PORT}, protocol: TCP}}]\nendpoints:\n\
         - {{addresses: [\"{one}\"], nodeName: {first}}}\n- {{addresses: [\"{two}\"], nodeName: {second}}}\n",
        // A node port has both families, so each Service needs its own.
        node_port = 30_100 + number + pick(family, 0, 100),
    )
}

fn traffic() -> String {
    fs::read_to_string(manifest_site::traffic()).expect("readable")
}

/// Starts on every endpoint address a server that sends its own address and the one that it is asked from.
fn serve_peers(pods: &Netns) {
    for address in ENDPOINTS {
        let ip: IpAddr = address.parse().expect("an address");
        let server = pods.run_thread(move || TcpListener::bind((ip, PEER_PORT)).expect("free"));
        std::thread::spawn(move || {
            while let Ok((mut stream, peer)) = server.accept() {
                let _ = write!(stream, "{ip} {}", peer.ip());
            }
        });
    }
}

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), port)
}

/// The servers that answered and the clients that they saw. With 32 requests one of two endpoints is missed once in 10^9 runs.
fn answers(from: &Netns, to: SocketAddr) -> BTreeSet<(String, String)> {
    let answers = (0..32).map(|_| tcp(from, to).unwrap_or_else(|error| panic!("{to}: {error}")));
    answers.map(|said| said.split_once(' ').map(|(server, peer)| (server.to_owned(), peer.to_owned())).expect("two addresses")).collect()
}

fn seen(pairs: &[(&str, &str)]) -> BTreeSet<(String, String)> {
    pairs.iter().map(|(server, peer)| ((*server).to_owned(), (*peer).to_owned())).collect()
}

fn external_traffic_policies_hold(variant: &'static str) {
    let mut manifests = traffic();
    for family in Family::ALL {
        manifests.extend(POLICIES.map(|policy| service(&policy, family)));
    }
    let lab = Following::new(variant, &manifests);
    serve_peers(&lab.pods);
    lab.outside.run("ip -6 route replace fd61::13/128 dev eth0 src fd61::50");
    for family in Family::ALL {
        let [one, two] = pick(family, [ENDPOINTS[0], ENDPOINTS[1]], [ENDPOINTS[2], ENDPOINTS[3]]);
        let (outside, pod, node) =
            pick(family, ("192.168.61.50", "10.61.4.20", "10.61.3.1"), ("fd61::50", "fd61:a:0:4::20", "fd61:a:0:3::1"));
        let frontends = |policy: &Policy| {
            let number = policy.number;
            let balancer = pick(family, format!("203.0.113.{number}"), format!("2001:db8::{number}"));
            [at(pick(family, "192.168.61.13", "fd61::13"), policy.node_port() + pick(family, 0, 100)), at(&balancer, 80)]
        };
        let [open, near, away] = POLICIES;
        for to in frontends(&open) {
            assert_eq!(answers(&lab.outside, to), seen(&[(one, node), (two, node)]), "{variant} {to}: Cluster hides the client");
        }
        for to in frontends(&near) {
            assert_eq!(answers(&lab.outside, to), seen(&[(one, outside)]), "{variant} {to}: Local keeps it, and to this node");
        }
        for to in frontends(&away) {
            let dropped = tcp(&lab.outside, to).expect_err("nothing is local");
            assert_eq!(dropped.kind(), ErrorKind::TimedOut, "{variant} {to}: dropped, not refused: {dropped}");
        }
        // Traffic from within the cluster is internal, for every address of the Service.
        for policy in [&near, &away] {
            let cluster_ip = pick(family, format!("10.111.0.{}", policy.number), format!("fd61:b::{}", policy.number));
            let [_, balancer] = frontends(policy);
            for to in [at(&cluster_ip, 80), balancer] {
                assert_eq!(answers(&lab.client, to), seen(&[(one, pod), (two, pod)]), "{variant} {to}: {} from a pod", policy.name);
            }
            let from_node: BTreeSet<String> = answers(&lab.node, balancer).into_iter().map(|(server, _)| server).collect();
            assert_eq!(from_node, BTreeSet::from([one.to_owned(), two.to_owned()]), "{variant} {balancer}: {} from the node", policy.name);
        }
    }
}

#[test]
fn external_traffic_policies_hold_nft() {
    external_traffic_policies_hold("nft");
}

#[test]
fn external_traffic_policies_hold_legacy() {
    external_traffic_policies_hold("legacy");
}

/// Endpoints and other Services change: a client keeps its endpoint while that exists.
#[test]
fn affinity_holds_while_the_cluster_changes() {
    for variant in VARIANTS {
        let lab = Following::new(variant, &traffic());
        let sticky = at("10.111.0.12", 80);
        let first = tcp(&lab.outside, sticky).expect("it serves");
        let other = if first == ENDPOINTS[0] { ENDPOINTS[1] } else { ENDPOINTS[0] };
        let cluster = |gone: Option<&str>| {
            let (before, slice) = split_at_slice(&traffic(), "sticky-ipv4");
            let slice = gone.map_or_else(|| slice.clone(), |gone| without(&slice, gone));
            before + &slice
        };
        // A change of the endpoints changes the Service's chain, but not the endpoint's own chain, which stores its clients.
        for gone in [None, Some(other), None] {
            let mut manifests = cluster(gone);
            write!(manifests, "---\n{}", service(&POLICIES[0], Family::V4).trim_start_matches("---\n")).expect("memory");
            lab.change(&manifests);
            for _ in 0..16 {
                assert_eq!(tcp(&lab.outside, sticky).expect("it serves"), first, "{variant}: without {gone:?}");
            }
        }
        // When its endpoint is removed, the client gets another one and keeps it.
        lab.change(&cluster(Some(&first)));
        assert_eq!(tcp(&lab.outside, sticky).expect("one is left"), other, "{variant}");
        lab.change(&cluster(None));
        for _ in 0..16 {
            assert_eq!(tcp(&lab.outside, sticky).expect("it serves"), other, "{variant}: the new one is kept");
        }
    }
}

/// The text up to the slice of this name, and the slice with all after it.
fn split_at_slice(manifests: &str, name: &str) -> (String, String) {
    let at = manifests.find(&format!("metadata: {{name: {name},")).expect("the slice is there");
    (manifests[..at].to_owned(), manifests[at..].to_owned())
}

/// The text without the first endpoint of this address.
fn without(slice: &str, address: &str) -> String {
    let line = format!("- {{addresses: [\"{address}\"], nodeName: {LOCAL}}}\n");
    assert!(slice.contains(&line), "{slice}");
    slice.replacen(&line, "", 1)
}

/// With `localhostNodePorts: false` node ports do not answer on loopback, and the sysctl is not changed.
#[test]
fn loopback_is_left_alone_where_it_is_not_wanted() {
    for variant in VARIANTS {
        for (wanted, setting) in [(true, ""), (false, "  localhostNodePorts: false\n")] {
            let lab = Following::new(variant, &traffic().replacen("iptables:\n", &format!("iptables:\n{setting}"), 1));
            let answer = tcp(&lab.node, at("127.0.0.1", 30_080));
            let sysctl = lab.node.run("sysctl -n net.ipv4.conf.all.route_localnet");
            if wanted {
                assert!(answer.is_ok(), "{variant}: {answer:?}");
            } else {
                assert_eq!(answer.expect_err("no process listens").kind(), ErrorKind::ConnectionRefused, "{variant}");
            }
            assert_eq!(sysctl.trim() == "1", wanted, "{variant}");
            assert!(tcp(&lab.node, at("192.168.61.13", 30_080)).is_ok(), "{variant}: other addresses answer all the same");
        }
    }
}

/// The flow of a UDP client that keeps its source port moves away from a removed endpoint.
#[test]
fn udp_flows_to_a_removed_endpoint_are_cut() {
    for variant in VARIANTS {
        let lab = Following::new(variant, &traffic());
        for (family, to) in [(Family::V4, at("10.111.0.11", 53)), (Family::V6, at("fd61:b::11", 53))] {
            let client = lab.client.run_thread(move || {
                let client = UdpSocket::bind(SocketAddr::new(pick(family, [0, 0, 0, 0].into(), [0_u16; 8].into()), 0)).expect("free");
                client.connect(to).expect("there is a route");
                client.set_read_timeout(Some(Duration::from_secs(10))).expect("a time");
                client
            });
            let ask = || {
                client.send(b"?")?;
                let mut buffer = [0; 64];
                client.recv(&mut buffer).map(|length| String::from_utf8_lossy(&buffer[..length]).into_owned())
            };
            // A packet may be lost before neighbours are resolved.
            let mut first = String::new();
            wait_until("it serves", || ask().map(|answer| first = answer).is_ok());
            assert_eq!(ask().expect("it serves"), first, "{variant}: one flow, one endpoint");
            let (before, slice) = split_at_slice(&traffic(), &format!("dns-{family}"));
            lab.change(&(before + &without(&slice, &first)));
            wait_until("the flow goes to the endpoint that is left", || ask().is_ok_and(|answer| answer != first));
            lab.change(&traffic());
        }
    }
}
