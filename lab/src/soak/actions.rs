//! The actions of a soak: changes, faults and restarts. Each action cleans up after itself.

use std::net::IpAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use fastrand::Rng;
use sepal_apiserver::InjectedFailure;
use serde_json::json;

use super::clients::Clients;
use super::objects::{CLUSTER_IP, PROBED, put, service, slice};
use super::sample::{differences, read_state};
use super::testbed::Testbed;
use crate::netns::wait_until;
use crate::pod_cluster::PodNode;
use crate::traffic::tcp;

/// Time limit for a repair. It is shorter than the 30 s between two audits, which would repair the damage, too.
const REPAIR_LIMIT: Duration = Duration::from_secs(25);

type Run = fn(&mut ActionRunner<'_>, &mut Clients);

/// All actions with their names.
pub(super) const ACTIONS: [(&str, Run); 12] = [
    ("change endpoints", |runner, _| runner.change_endpoints()),
    ("add and remove Services", |runner, _| runner.add_and_remove_services()),
    ("add and remove pods", |runner, _| runner.add_and_remove_pods()),
    ("add and remove nodes", |runner, _| runner.add_and_remove_nodes()),
    ("API server closes connections and answers with errors", |runner, _| runner.disturb_api_server()),
    ("end a daemon by SIGTERM", |runner, _| runner.restart_daemon(false)),
    ("end a daemon by SIGKILL", |runner, _| runner.restart_daemon(true)),
    ("delete flannel.1", |runner, clients| runner.damage_node(clients, "ip link del flannel.1")),
    ("delete routes, FDB entries and neighbours", |runner, clients| {
        runner.damage_node(
            clients,
            "ip route flush proto 83; ip neigh flush dev flannel.1 nud permanent
             bridge fdb show dev flannel.1 | while read mac rest; do bridge fdb del $mac dev flannel.1; done",
        );
    }),
    ("change the MTU and delete the address of flannel.1", |runner, clients| {
        runner.damage_node(clients, "ip link set flannel.1 mtu 1280; ip addr flush dev flannel.1");
    }),
    ("flush all rules", |runner, clients| {
        runner.damage_node(clients, "for table in nat filter; do iptables-nft -t $table -F; iptables-nft -t $table -X; done");
    }),
    ("change single rules", |runner, clients| {
        runner.damage_node(
            clients,
            "iptables-nft -t nat -F KUBE-MARK-MASQ; iptables-nft -t nat -I KUBE-SERVICES -j RETURN; iptables-nft -F FLANNEL-FWD",
        );
    }),
];

/// Runs the actions in random order.
pub(super) struct ActionRunner<'t> {
    testbed: &'t Testbed,
    random: Rng,
    rounds: usize,
}

impl<'t> ActionRunner<'t> {
    pub(super) fn new(testbed: &'t Testbed, seed: u64) -> Self {
        Self { testbed, random: Rng::with_seed(seed), rounds: 0 }
    }

    /// Runs all actions once, in random order.
    pub(super) fn run_round(&mut self, clients: &mut Clients) {
        self.rounds += 1;
        let mut actions = ACTIONS;
        self.random.shuffle(&mut actions);
        for (name, run) in actions {
            run(self, clients);
            sleep(Duration::from_millis(self.random.u64(50..400)));
            clients.record_losses(name);
        }
    }

    fn random_node(&mut self) -> &'t PodNode {
        &self.testbed.cluster.nodes[self.random.usize(..3)]
    }

    fn change_endpoints(&mut self) {
        for pods in [&[1][..], &[2], &[1, 2], &[2], &[1, 2]] {
            put(self.testbed, slice(self.testbed, PROBED, pods));
            sleep(Duration::from_millis(self.random.u64(1..150)));
        }
    }

    fn add_and_remove_services(&mut self) {
        let names: Vec<String> = (0..self.random.u8(5..40)).map(|number| format!("other-{number}")).collect();
        for (number, name) in names.iter().enumerate() {
            let last_byte = u8::try_from(number + 1).expect("at most 40 Services");
            put(self.testbed, service(name, IpAddr::from([10, 96, 1, last_byte])));
            put(self.testbed, slice(self.testbed, name, [&[0, 1, 2][..], &[0], &[]][number % 3]));
        }
        sleep(Duration::from_millis(self.random.u64(1..800)));
        for name in &names {
            assert!(self.testbed.cluster.server.remove("services", &format!("soak/{name}")), "{name} existed");
            self.testbed.cluster.server.remove("endpointslices.discovery.k8s.io", &format!("soak/{name}-1"));
        }
    }

    fn add_and_remove_pods(&mut self) {
        let node = self.random_node();
        let rounds = self.rounds;
        let ids: Vec<String> = (0..self.random.u8(1..5)).map(|number| format!("extra-{rounds}-{number}")).collect();
        let pods: Vec<_> = ids.iter().map(|id| node.connect(id).expect("the plugin connects the pod")).collect();
        let outside = self.testbed.cluster.outside.tcp(CLUSTER_IP);
        tcp(&pods[0].netns, outside).expect("a new pod reaches the outside");
        for (id, pod) in ids.iter().zip(&pods) {
            node.disconnect(id, pod).expect("the plugin disconnects the pod");
        }
    }

    fn add_and_remove_nodes(&mut self) {
        let server = &self.testbed.cluster.server;
        let names: Vec<String> = (0..self.random.u8(3..20)).map(|number| format!("extra-{number}")).collect();
        for (number, name) in names.iter().enumerate() {
            let (subnet, number) = (format!("10.244.{}.0/24", 100 + number), number + 1);
            put(
                self.testbed,
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
            assert!(server.remove("nodes", name), "{name} existed");
        }
    }

    fn disturb_api_server(&mut self) {
        let server = &self.testbed.cluster.server;
        server.drop_watches();
        server.compact();
        server.fail(InjectedFailure::during(Duration::from_millis(self.random.u64(50..600)), 503));
        sleep(Duration::from_millis(100));
        server.drop_watches();
        server.fail(InjectedFailure::next(self.random.u32(1..6), 429));
        server.pause(Duration::from_millis(self.random.u64(50..500)));
        server.drop_watches();
    }

    fn restart_daemon(&mut self, kill: bool) {
        // The daemon of node-2 keeps running, so that its memory shows leaks.
        let node = &self.testbed.cluster.nodes[if self.random.bool() { 0 } else { 2 }];
        if kill {
            node.kill();
        } else {
            assert_eq!(node.stop(), Some(0), "the daemon exits with 0 after SIGTERM");
        }
        node.start_again();
        node.wait_ready();
    }

    /// Damages the kernel state of node-1 with a shell script, and waits until sepal has repaired it.
    fn damage_node(&mut self, clients: &mut Clients, script: &str) {
        let node = &self.testbed.cluster.nodes[0];
        node.wait_ready();
        // The state counts as stable when two reads in a row are equal.
        let mut before = read_state(node);
        wait_until("the state of node-1 is stable", || {
            sleep(Duration::from_millis(300));
            let last = std::mem::replace(&mut before, read_state(node));
            last == before
        });
        clients.damage_node(|| {
            node.netns.run(script);
            let begin = Instant::now();
            while read_state(node) != before {
                let difference = || differences(&before, &read_state(node)).collect::<Vec<_>>().join("\n");
                assert!(begin.elapsed() < REPAIR_LIMIT, "not repaired after {script}:\n{}\n{}", difference(), node.log());
                sleep(Duration::from_millis(50));
            }
        });
    }
}
