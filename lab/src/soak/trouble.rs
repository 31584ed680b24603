//! What is done to the cluster.

use std::net::{IpAddr, Ipv4Addr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use fastrand::Rng;
use sepal_apiserver::Failure;
use serde_json::{Value, json};

use super::Ground;
use super::clients::Clients;
use super::state::{differences, kernel};
use crate::{PodNode, eventually};

/// The Service that clients ask.
pub(super) const CLUSTER_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 53));

/// How long putting something right may take.
const PATIENCE: Duration = Duration::from_secs(20);

type Make = fn(&mut Trouble<'_>, &mut Clients);

/// Kinds of trouble, each with its name.
pub(super) const KINDS: [(&str, Make); 12] = [
    ("endpoints change", |trouble, _| trouble.endpoints()),
    ("Services come and go", |trouble, _| trouble.services()),
    ("pods come and go", |trouble, _| trouble.pods()),
    ("nodes come and go", |trouble, _| trouble.nodes()),
    ("the API server breaks off and answers with errors", |trouble, _| trouble.api_server()),
    ("a daemon is ended", |trouble, _| trouble.restart(false)),
    ("a daemon is killed", |trouble, _| trouble.restart(true)),
    ("flannel.1 is deleted", |trouble, clients| trouble.harm(clients, "ip link del flannel.1")),
    ("routes, entries and neighbours are deleted", |trouble, clients| {
        trouble.harm(
            clients,
            "ip route flush proto 83; ip neigh flush dev flannel.1 nud permanent
             bridge fdb show dev flannel.1 | while read mac rest; do bridge fdb del $mac dev flannel.1; done",
        );
    }),
    ("the MTU is changed and the address taken away", |trouble, clients| {
        trouble.harm(clients, "ip link set flannel.1 mtu 1280; ip addr flush dev flannel.1");
    }),
    ("all rules are flushed", |trouble, clients| {
        trouble.harm(clients, "for table in nat filter; do iptables-nft -t $table -F; iptables-nft -t $table -X; done");
    }),
    ("single rules are changed", |trouble, clients| {
        trouble.harm(
            clients,
            "iptables-nft -t nat -F KUBE-MARK-MASQ; iptables-nft -t nat -I KUBE-SERVICES -j RETURN; iptables-nft -F FLANNEL-FWD",
        );
    }),
];

/// The hands that do it.
pub(super) struct Trouble<'g> {
    ground: &'g Ground,
    random: Rng,
    rounds: usize,
}

fn port(name: &str, number: u16, protocol: &str) -> Value {
    json!({"name": name, "port": number, "protocol": protocol})
}

fn service(name: &str, ip: IpAddr) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "soak"},
        "spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"], "ports": [port("web", 80, "TCP"), port("dns", 53, "UDP"), port("echo", 7, "TCP")]},
    })
}

/// A Service's endpoints: pods by their nodes' numbers.
fn slice(ground: &Ground, name: &str, pods: &[usize]) -> Value {
    let like = CLUSTER_IP;
    let endpoint = |pod: &usize| json!({"addresses": [ground.pods[*pod].ips[0]], "nodeName": ground.cluster.nodes[*pod].name, "conditions": {"ready": true}});
    let [tcp, udp, echo] = [ground.pods[0].tcp(like), ground.pods[0].udp(like), ground.pods[0].echo(like)].map(|address| address.port());
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("{name}-1"), "namespace": "soak", "labels": {"kubernetes.io/service-name": name}},
        "endpoints": pods.iter().map(endpoint).collect::<Vec<_>>(), "ports": [port("web", tcp, "TCP"), port("dns", udp, "UDP"), port("echo", echo, "TCP")],
    })
}

fn put(ground: &Ground, object: Value) {
    ground.cluster.server.put(object).expect("the API server takes it");
}

/// Makes the Service that clients ask. Its endpoints are beside the first node.
pub(super) fn put_service(ground: &Ground) {
    put(ground, service("asked", CLUSTER_IP));
    put(ground, slice(ground, "asked", &[1, 2]));
}

impl<'g> Trouble<'g> {
    pub(super) fn new(ground: &'g Ground, seed: u64) -> Self {
        Self { ground, random: Rng::with_seed(seed), rounds: 0 }
    }

    /// All kinds, in some order. Each cleans up behind itself.
    pub(super) fn round(&mut self, clients: &mut Clients) {
        self.rounds += 1;
        let mut kinds = KINDS;
        self.random.shuffle(&mut kinds);
        for (name, make) in kinds {
            make(self, clients);
            sleep(Duration::from_millis(self.random.u64(50..400)));
            clients.note(name);
        }
    }

    fn any_node(&mut self) -> &'g PodNode {
        &self.ground.cluster.nodes[self.random.usize(..3)]
    }

    fn endpoints(&mut self) {
        for pods in [&[1][..], &[2], &[1, 2], &[2], &[1, 2]] {
            put(self.ground, slice(self.ground, "asked", pods));
            sleep(Duration::from_millis(self.random.u64(1..150)));
        }
    }

    fn services(&mut self) {
        let names: Vec<String> = (0..self.random.u8(5..40)).map(|number| format!("other-{number}")).collect();
        for (number, name) in names.iter().enumerate() {
            let last = u8::try_from(number + 1).expect("there are few");
            put(self.ground, service(name, IpAddr::from([10, 96, 1, last])));
            put(self.ground, slice(self.ground, name, [&[0, 1, 2][..], &[0], &[]][number % 3]));
        }
        sleep(Duration::from_millis(self.random.u64(1..800)));
        for name in &names {
            assert!(self.ground.cluster.server.remove("services", &format!("soak/{name}")), "{name} was there");
            self.ground.cluster.server.remove("endpointslices.discovery.k8s.io", &format!("soak/{name}-1"));
        }
    }

    fn pods(&mut self) {
        let node = self.any_node();
        let rounds = self.rounds;
        let ids: Vec<String> = (0..self.random.u8(1..5)).map(|number| format!("guest-{rounds}-{number}")).collect();
        let pods: Vec<_> = ids.iter().map(|id| node.connect(id).expect("the plugin connects it")).collect();
        let outside = self.ground.cluster.outside.tcp(CLUSTER_IP);
        crate::traffic::tcp(&pods[0].netns, outside).expect("a new pod reaches the outside");
        for (id, pod) in ids.iter().zip(&pods) {
            node.disconnect(id, pod).expect("the plugin disconnects it");
        }
    }

    fn nodes(&mut self) {
        let server = &self.ground.cluster.server;
        let names: Vec<String> = (0..self.random.u8(3..20)).map(|number| format!("guest-{number}")).collect();
        for (number, name) in names.iter().enumerate() {
            let (subnet, number) = (format!("10.244.{}.0/24", 100 + number), number + 1);
            put(
                self.ground,
                json!({
                    "apiVersion": "v1", "kind": "Node", "spec": {"podCIDR": subnet, "podCIDRs": [subnet]},
                    "metadata": {"name": name, "annotations": {
                        "flannel.alpha.coreos.com/backend-data": format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:01:{number:02x}"}}"#),
                        "flannel.alpha.coreos.com/backend-type": "vxlan", "flannel.alpha.coreos.com/kube-subnet-manager": "true",
                        "flannel.alpha.coreos.com/public-ip": format!("192.168.77.{}", 100 + number),
                    }},
                }),
            );
        }
        sleep(Duration::from_millis(self.random.u64(1..500)));
        for name in &names {
            assert!(server.remove("nodes", name), "{name} was there");
        }
    }

    fn api_server(&mut self) {
        let server = &self.ground.cluster.server;
        server.drop_watches();
        server.compact();
        server.fail(Failure::during(Duration::from_millis(self.random.u64(50..600)), 503));
        sleep(Duration::from_millis(100));
        server.drop_watches();
        server.fail(Failure::next(self.random.u32(1..6), 429));
        server.pause(Duration::from_millis(self.random.u64(50..500)));
        server.drop_watches();
    }

    fn restart(&mut self, kill: bool) {
        // The second one's goes on, so that its memory tells of leaks.
        let node = &self.ground.cluster.nodes[if self.random.bool() { 0 } else { 2 }];
        if kill {
            node.kill();
        } else {
            assert_eq!(node.stop(), Some(0), "SIGTERM is a good end");
        }
        node.start_again();
        node.wait_ready();
    }

    /// Does something to the first node's kernel, and waits until it is put right.
    fn harm(&mut self, clients: &mut Clients, script: &str) {
        let node = &self.ground.cluster.nodes[0];
        node.wait_ready();
        let now = || kernel(node);
        // What came before has to have arrived.
        let mut before = now();
        eventually("the first node is at rest", || {
            sleep(Duration::from_millis(300));
            let last = std::mem::replace(&mut before, now());
            last == before
        });
        clients.during(|| {
            node.netns.run(script);
            let begin = Instant::now();
            while now() != before {
                let difference = || differences(&before, &now()).collect::<Vec<_>>().join("\n");
                assert!(begin.elapsed() < PATIENCE, "after {script}, still:\n{}\n{}", difference(), node.log());
                sleep(Duration::from_millis(50));
            }
        });
    }
}
