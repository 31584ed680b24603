//! Deletion of stale UDP flows from the kernel's conntrack table, with real rules and packets.

use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use sepal::cluster::Family;
use sepal::proxy::conntrack::flows::{FlowError, FlowTable, KernelFlows, ListEnd};
use sepal::proxy::conntrack::frontends::FrontendChanges;
use sepal::proxy::conntrack::stale::{Flow, LocalAddresses};
use sepal::proxy::conntrack::{FlowCleanup, Reconciler};
use sepal_lab::{Netns, wait_until};

use crate::common;
use crate::restore_input::into_empty_tables;

/// Time limit for an answer. It is much longer than any answer takes, so that a busy machine does not fail a test.
const PATIENCE: Duration = Duration::from_secs(10);

/// The addresses of one family.
struct Addresses {
    node: &'static str,
    service: &'static str,
    service_range: &'static str,
    pods: [&'static str; 2],
    elsewhere: &'static str,
}

fn addresses(family: Family) -> Addresses {
    match family {
        Family::V4 => Addresses {
            node: "192.168.61.13",
            service: "10.111.0.11",
            service_range: "10.111.0.0/16",
            pods: ["10.61.3.10", "10.61.3.11"],
            elsewhere: "198.51.100.7",
        },
        Family::V6 => Addresses {
            node: "fd61::13",
            service: "fd61:b::11",
            service_range: "fd61:b::/64",
            pods: ["fd61:a:0:3::10", "fd61:a:0:3::11"],
            elsewhere: "2001:db8::7",
        },
    }
}

const NODE_PORT: u16 = 30053;

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), port)
}

/// The state of a pod as an endpoint.
#[derive(Clone, Copy)]
enum Pod {
    Ready,
    Draining,
    NotServing,
}

/// Manifests of one UDP Service with these pods, by number, as endpoints; `None` if the Service is deleted.
fn manifests(family: Family, pods: Option<&[(usize, Pod)]>) -> String {
    let Addresses { node, service, pods: ips, .. } = addresses(family);
    let kind = if family == Family::V4 { "IPv4" } else { "IPv6" };
    let mut text = format!(
        "apiVersion: sepal/v1alpha1\nkind: HostFacts\nhost: {{addresses: [\"{node}\"], tcpBeLiberal: false, nfacct: false, noRandomFully: false}}\n"
    );
    let Some(pods) = pods else { return text };
    write!(
        text,
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: dns, namespace: shop}}\nspec:\n  type: NodePort\n  clusterIP: \"{service}\"\n  \
         clusterIPs: [\"{service}\"]\n  ipFamilies: [{kind}]\n  ports: [{{name: dns, port: 53, protocol: UDP, nodePort: {NODE_PORT}}}]\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: dns-1, namespace: shop, labels: {{kubernetes.io/service-name: dns}}}}\naddressType: {kind}\n\
         ports: [{{name: dns, port: 5353, protocol: UDP}}]\nendpoints:\n"
    )
    .expect("memory");
    for (n, state) in pods {
        let conditions = match state {
            Pod::Ready => "ready: true, serving: true",
            Pod::Draining => "ready: false, serving: true, terminating: true",
            Pod::NotServing => "ready: false, serving: false, terminating: true",
        };
        writeln!(text, "- {{addresses: [\"{}\"], conditions: {{{conditions}}}}}", ips[*n]).expect("memory");
    }
    text
}

/// A node with two pods, all in one namespace, and the reconciler of one family.
struct Lab {
    family: Family,
    node: Netns,
    reconciler: Option<Reconciler>,
}

impl Lab {
    fn new(family: Family) -> Self {
        let lab = Self { family, node: Netns::new(), reconciler: Some(Reconciler::new(family)) };
        let Addresses { node, service_range, pods: [one, two], .. } = addresses(family);
        // Even on the loopback an IPv6 address is tentative for a moment.
        let at_once = if family == Family::V6 { "nodad" } else { "" };
        lab.node.run(&format!(
            "ip link add here type veth peer name there; ip link set here up; ip link set there up
             for ip in {node} {one} {two}; do ip addr add $ip dev lo {at_once}; done
             ip route add {service_range} dev here src {node}",
        ));
        for pod in [one, two] {
            let server = lab.socket(at(pod, 5353));
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok((_, peer)) = server.recv_from(&mut buffer) {
                    let _ = server.send_to(pod.as_bytes(), peer);
                }
            });
        }
        lab
    }

    fn socket(&self, address: SocketAddr) -> UdpSocket {
        self.node.run_thread(move || UdpSocket::bind(address).expect("free"))
    }

    /// A client that keeps its source port, as long-lived UDP clients do.
    fn client(&self, to: SocketAddr) -> UdpSocket {
        let client = self.socket(at(addresses(self.family).node, 0));
        client.set_read_timeout(Some(PATIENCE)).expect("a time");
        client.connect(to).expect("there is a route");
        client
    }

    /// Writes the rules of a cluster and notes the change in the reconciler, as the daemon does.
    fn cluster(&mut self, pods: Option<&[(usize, Pod)]>) -> bool {
        let inputs = common::inputs(&manifests(self.family, pods)).expect("good manifests");
        let program = if self.family == Family::V4 { "iptables-restore" } else { "ip6tables-restore" };
        let mut restore = self.node.command(program).arg("--noflush").stdin(Stdio::piped()).spawn().expect("it starts");
        let text = into_empty_tables(&inputs, self.family);
        restore.stdin.take().expect("piped").write_all(text.as_bytes()).expect("it reads");
        assert!(restore.wait().expect("it ends").success(), "{text}");
        self.reconciler.as_mut().expect("it is here").update(FrontendChanges::all(&inputs.snapshot, self.family, true))
    }

    /// Runs a reconciliation, if one is due.
    fn round(&mut self) -> Option<FlowCleanup> {
        let mut reconciler = self.reconciler.take().expect("it is here");
        let local: LocalAddresses = [addresses(self.family).node.parse::<IpAddr>().expect("an address")].into_iter().collect();
        let (reconciler, cleaned) = self.node.run_thread(move || {
            let cleaned = runtime().block_on(reconciler.reconcile(&KernelFlows, &Arc::new(local)));
            (reconciler, cleaned)
        });
        self.reconciler = Some(reconciler);
        let cleaned = cleaned.expect("root may");
        assert!(cleaned.is_none_or(|cleaned| cleaned.complete));
        cleaned
    }

    fn deleted(&mut self) -> usize {
        self.round().expect("a reconciliation was due").deleted
    }

    /// Adds an entry; the arguments are those of `conntrack -I`.
    fn entry(&self, arguments: &str) {
        self.node.run(&format!("conntrack -I -t 300 {arguments}"));
    }

    fn entries(&self, protocol: &str) -> String {
        let family = if self.family == Family::V4 { "ipv4" } else { "ipv6" };
        self.node.run(&format!("conntrack -L -f {family} -p {protocol} 2>/dev/null"))
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime")
}

/// The address of the pod that answers.
fn ask(client: &UdpSocket) -> std::io::Result<String> {
    client.send(b"?")?;
    let mut buffer = [0; 64];
    let length = client.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Whether no pod answers. An answer that comes later than 0.5 s does not count, so a busy machine cannot fail a test.
fn unanswered(client: &UdpSocket) -> bool {
    client.set_read_timeout(Some(Duration::from_millis(500))).expect("a time");
    let answer = ask(client);
    client.set_read_timeout(Some(PATIENCE)).expect("a time");
    answer.is_err()
}

fn refused(client: &UdpSocket) -> bool {
    matches!(ask(client), Err(error) if error.kind() == ErrorKind::ConnectionRefused || error.kind() == ErrorKind::PermissionDenied)
}

/// k/k#139628: the flows of a Service without endpoints went on to the pod that was gone.
#[test]
fn scaled_to_zero_139628() {
    for family in Family::ALL {
        let Addresses { node, service, pods: [one, _], .. } = addresses(family);
        let mut lab = Lab::new(family);
        assert!(lab.cluster(Some(&[(0, Pod::Ready)])));
        let clients = [lab.client(at(service, 53)), lab.client(at(node, NODE_PORT))];
        for client in &clients {
            assert_eq!(ask(client).expect("it serves"), one);
        }
        assert_eq!(lab.deleted(), 0);
        for empty in [&[(0, Pod::NotServing)][..], &[]] {
            lab.cluster(Some(empty));
            for client in &clients {
                assert!(empty.is_empty() || ask(client).is_ok(), "rules alone do not end a flow");
            }
            if let Some(cleaned) = lab.round() {
                assert_eq!(cleaned.deleted, 2, "{family}: {}", lab.entries("udp"));
            }
            for client in &clients {
                assert!(refused(client), "{family}: without endpoints the rules refuse at once");
            }
        }
        // An endpoint again, and the clients keep their ports.
        assert!(lab.cluster(Some(&[(0, Pod::Ready)])));
        lab.round();
        for client in &clients {
            wait_until("the Service serves again", || ask(client).is_ok_and(|pod| pod == one));
        }
    }
}

/// k/k#141371: the flows of a deleted Service went on to the next pod with the same IP.
#[test]
fn service_deleted_and_pod_ip_used_again_141371() {
    for family in Family::ALL {
        let Addresses { node, service, pods: [one, _], .. } = addresses(family);
        let mut lab = Lab::new(family);
        lab.cluster(Some(&[(0, Pod::Ready)]));
        lab.round();
        let clients = [lab.client(at(service, 53)), lab.client(at(node, NODE_PORT))];
        for client in &clients {
            assert_eq!(ask(client).expect("it serves"), one);
        }
        assert!(lab.cluster(None));
        for client in &clients {
            assert_eq!(ask(client).expect("the flow is still there"), one, "rules alone do not end the flow");
        }
        assert_eq!(lab.deleted(), 2, "{family}");
        for client in &clients {
            assert!(unanswered(client), "{family}: the new pod with that IP gets no packets");
        }
        assert_eq!(lab.round(), None, "nothing is due any more");
    }
}

/// k/k#122740: every restart deleted all UDP entries of Services.
#[test]
fn restart_without_change_122740() {
    for family in Family::ALL {
        let Addresses { node, service, elsewhere, .. } = addresses(family);
        let mut lab = Lab::new(family);
        // One endpoint is ready and gets new flows; the other drains and keeps its flows.
        lab.cluster(Some(&[(0, Pod::Ready), (1, Pod::Ready)]));
        let clients: Vec<_> = (0..16).flat_map(|_| [lab.client(at(service, 53)), lab.client(at(node, NODE_PORT))]).collect();
        let answers: Vec<_> = clients.iter().map(|client| ask(client).expect("it serves")).collect();
        lab.entry(&format!("-p udp -s {node} --sport 4000 -d {elsewhere} --dport 443"));
        lab.cluster(Some(&[(0, Pod::Ready), (1, Pod::Draining)]));

        lab.reconciler = Some(Reconciler::new(family));
        assert!(lab.cluster(Some(&[(0, Pod::Ready), (1, Pod::Draining)])), "a restart reconciles once");
        let cleaned = lab.round().expect("a restart reconciles once");
        assert_eq!((cleaned.listed, cleaned.deleted), (33, 0), "{family}");
        for (client, answer) in clients.iter().zip(answers) {
            assert_eq!(ask(client).expect("it serves"), answer, "{family}: same pod as before");
        }
        assert!(!lab.cluster(Some(&[(0, Pod::Ready), (1, Pod::Draining)])), "nothing changed, so nothing is due");
    }
}

/// Flows that became stale while the daemon was stopped are deleted at its start.
#[test]
fn endpoint_replaced_while_stopped() {
    for family in Family::ALL {
        let Addresses { service, pods: [one, two], .. } = addresses(family);
        let mut lab = Lab::new(family);
        lab.cluster(Some(&[(0, Pod::Ready)]));
        let client = lab.client(at(service, 53));
        assert_eq!(ask(&client).expect("it serves"), one);
        lab.reconciler = Some(Reconciler::new(family));
        lab.cluster(Some(&[(1, Pod::Ready)]));
        assert_eq!(ask(&client).expect("the flow is still there"), one);
        assert_eq!(lab.deleted(), 1);
        assert_eq!(ask(&client).expect("it serves"), two, "{family}: the same client, the new pod");
    }
}

/// A client sent packets before the rules existed: its flow is not translated, and the rules alone do not change that.
#[test]
fn flow_older_than_the_rules() {
    for family in Family::ALL {
        let Addresses { service, pods: [one, _], .. } = addresses(family);
        let mut lab = Lab::new(family);
        // Rules that make the kernel track connections without translating them.
        lab.cluster(None);
        let tables = if family == Family::V4 { "iptables" } else { "ip6tables" };
        lab.node.run(&format!("{tables} -t nat -A POSTROUTING -j RETURN; {tables} -A OUTPUT -m conntrack --ctstate NEW -j ACCEPT"));
        let client = lab.client(at(service, 53));
        assert!(unanswered(&client), "there are no rules yet");
        assert_eq!(lab.entries("udp").lines().count(), 1, "an untranslated flow");
        assert!(lab.cluster(Some(&[(0, Pod::Ready)])));
        assert!(unanswered(&client), "the rules do not apply to an existing flow");
        assert_eq!(lab.deleted(), 1);
        wait_until("the client reaches a pod", || ask(&client).is_ok_and(|pod| pod == one));
    }
}

/// TCP flows and flows to other destinations stay. A node port counts at the node's own addresses only [kube-proxy 12.48].
#[test]
fn others_flows_are_left_alone() {
    for family in Family::ALL {
        let Addresses { node, service, pods: [one, two], elsewhere, .. } = addresses(family);
        let mut lab = Lab::new(family);
        lab.cluster(Some(&[(0, Pod::Ready)]));
        lab.round();
        let translated = |to: &str, port: u16, from: u16| {
            format!("-s {two} --sport {from} -d {to} --dport {port} -r {one} --reply-port-src 5353 -q {two} --reply-port-dst {from}")
        };
        for (to, port, from) in [(service, 53, 4000), (node, NODE_PORT, 4001)] {
            lab.entry(&format!("-p tcp --state ESTABLISHED {}", translated(to, port, from)));
        }
        lab.entry(&format!("-p udp {}", translated(elsewhere, NODE_PORT, 4001)));
        lab.entry(&format!("-p udp -s {two} --sport 4002 -d {elsewhere} --dport {NODE_PORT}"));
        lab.entry(&format!("-p udp -s {two} --sport 4003 -d {one} --dport 5353"));
        // Two stale flows.
        lab.entry(&format!("-p udp {}", translated(service, 53, 4004)));
        lab.entry(&format!("-p udp {}", translated(node, NODE_PORT, 4005)));
        lab.cluster(Some(&[]));
        let cleaned = lab.round().expect("it is due");
        assert_eq!((cleaned.listed, cleaned.deleted), (5, 2), "{family}");
        let left = lab.entries("udp");
        assert!(["sport=4001", "sport=4002", "sport=4003"].iter().all(|port| left.contains(port)), "{family}: {left}");
        assert_eq!(lab.entries("tcp").lines().count(), 2);
    }
}

/// Entries with the same tuple in several zones, and in zones of one direction.
#[test]
fn zones_are_told_apart() {
    let Addresses { service, pods: [one, two], .. } = addresses(Family::V4);
    let mut lab = Lab::new(Family::V4);
    lab.cluster(Some(&[(0, Pod::Ready)]));
    let tuple = |port, pod| {
        format!(
            "-p udp -s 10.61.3.99 --sport {port} -d {service} --dport 53 -r {pod} --reply-port-src 5353 -q 10.61.3.99 --reply-port-dst {port}"
        )
    };
    for (zone, pod) in [("--zone 7", two), ("--zone 8", one), ("--orig-zone 9", two), ("", one)] {
        lab.entry(&format!("{zone} {}", tuple(4000, pod)));
    }
    for (zone, port, pod) in [("--reply-zone 10", 4001, two), ("--reply-zone 11", 4002, one)] {
        lab.entry(&format!("{zone} {}", tuple(port, pod)));
    }
    let cleaned = lab.round().expect("due at the start");
    assert_eq!((cleaned.listed, cleaned.deleted), (6, 3), "{}", lab.entries("udp"));
    let left = lab.entries("udp");
    assert!(!left.contains(two) && left.lines().count() == 3, "{left}");
}

/// An entry is replaced by a newer one between list and delete: it counts as deleted, and the newer one stays.
#[test]
fn only_the_listed_entry_is_deleted() {
    let Addresses { service, pods: [one, two], .. } = addresses(Family::V4);
    let lab = Lab::new(Family::V4);
    let tuple = |pod| {
        format!(
            "-p udp -s 10.61.3.99 --sport 4000 -d {service} --dport 53 -r {pod} --reply-port-src 5353 -q 10.61.3.99 --reply-port-dst 4000"
        )
    };
    lab.entry(&tuple(two));
    let list = || lab.node.run_thread(|| runtime().block_on(KernelFlows.select(Family::V4, 10, |_| true)).expect("root may"));
    let found = list();
    assert_eq!((found.flows.len(), found.end), (1, ListEnd::Complete));
    lab.node.run("conntrack -D -p udp 2>/dev/null");
    lab.entry(&tuple(one));
    let delete = |flows: Vec<Flow>| lab.node.run_thread(move || runtime().block_on(KernelFlows.delete(flows)).expect("root may"));
    assert_eq!(delete(found.flows), 1, "an entry that is already gone counts as deleted");
    let newer = list().flows;
    assert_eq!(newer.len(), 1, "the newer entry stays");
    assert_eq!(delete(newer), 1);
    assert_eq!(list().flows, []);
}

/// A thousand stale flows among 100,000 unrelated ones: the table is read quickly, and only the stale flows are deleted.
#[test]
fn among_100_000_others() {
    const OTHERS: u32 = 100_000;
    const STALE: usize = 1000;
    let Addresses { service, .. } = addresses(Family::V4);
    let mut lab = Lab::new(Family::V4);
    lab.node.run(
        "ip addr add 10.70.0.1/24 dev here; sysctl -qw net.netfilter.nf_conntrack_udp_timeout=300
         ip route add 10.71.0.0/16 via 10.70.0.2; ip neigh add 10.70.0.2 lladdr 02:00:00:00:00:02 dev here",
    );
    lab.cluster(Some(&[(0, Pod::Ready)]));
    let clients: Vec<_> = (0..STALE).map(|_| lab.client(at(service, 53))).collect();
    for client in &clients {
        ask(client).expect("it serves");
    }
    let socket = lab.node.run_thread(|| UdpSocket::bind("10.70.0.1:0").expect("free"));
    for n in 0..OTHERS {
        let [_, high, low, port] = n.to_be_bytes();
        socket.send_to(b"?", SocketAddr::from(([10, 71, low, port], 1000 + u16::from(high)))).expect("there is a route");
    }
    let all = lab.node.run("cat /proc/sys/net/netfilter/nf_conntrack_count").trim().parse::<usize>().expect("a number");
    assert!(all >= OTHERS as usize, "only {all}");
    let first = lab.round().expect("due at the start");
    assert_eq!((first.listed, first.deleted), (all, 0));
    lab.cluster(Some(&[(1, Pod::Ready)]));
    let second = lab.round().expect("the endpoint has changed");
    assert_eq!(second.deleted, STALE);
    println!("{all} flows read in {:?}; {STALE} of them found and deleted in {:?}", first.took, second.took);
    assert!(second.took < Duration::from_secs(60), "{:?}", second.took);
}

/// Reading a large table does not block the runtime's only thread.
#[test]
fn the_runtime_goes_on_meanwhile() {
    let lab = Lab::new(Family::V4);
    lab.entry("-p udp -s 10.61.3.99 --sport 4000 -d 10.61.3.98 --dport 53");
    lab.node.run_thread(|| {
        runtime().block_on(async {
            let (other_ran, ran) = std::sync::mpsc::channel();
            let ran = std::sync::Mutex::new(ran);
            // The listing ends only after the runtime's thread has run the other future.
            let slow = move |_: &Flow| {
                let ran = ran.lock().expect("not poisoned").recv_timeout(Duration::from_secs(60));
                ran.expect("the runtime's thread goes on while the table is read");
                false
            };
            let listing = KernelFlows.select(Family::V4, 10, slow);
            let other = async { other_ran.send(()).expect("the listing is not finished") };
            let (listed, ()) = tokio::join!(listing, other);
            assert_eq!(listed.expect("root may").listed, 1);
        });
    });
}

/// Without the capability the error names it. Capabilities belong to a process, so this test runs itself again without them.
#[test]
fn without_permission() {
    const WITHOUT: &str = "SEPAL_TEST_WITHOUT_CAPABILITIES";
    if std::env::var_os(WITHOUT).is_some() {
        let error = runtime().block_on(KernelFlows.select(Family::V4, 10, |_| true)).expect_err("it is not allowed to");
        assert!(matches!(error, FlowError::Permission(_)), "{error}");
        assert!(error.to_string().contains("NET_ADMIN"), "{error}");
        return;
    }
    let netns = Netns::new();
    let mut again = netns.command("setpriv");
    again.args(["--bounding-set=-all", "--inh-caps=-all", "--"]).arg(std::env::current_exe().expect("it runs"));
    let output = again.args(["--exact", "conntrack::without_permission"]).env(WITHOUT, "1").output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}
