//! Clients that send requests all the time. They report lost answers that no action on node-1 explains.

use std::net::SocketAddr;

use super::objects::{CLUSTER_IP, put_probed_service};
use super::sample::Finding;
use super::testbed::Testbed;
use crate::netns::wait_until;
use crate::probe::Prober;
use crate::session::Session;
use crate::traffic::tcp;

/// The clients of a soak.
pub(super) struct Clients {
    /// Clients whose packets do not pass node-1. No action may cost them an answer.
    unaffected: Vec<(&'static str, Prober)>,
    /// Clients whose packets pass node-1.
    exposed: Vec<(&'static str, Prober)>,
    /// Long-lived connections that do not pass node-1.
    sessions: Vec<Session>,
    /// Answers that were lost while node-1 was damaged.
    explained: usize,
    unexplained: Vec<Finding>,
}

impl Clients {
    /// Creates the probed Service, waits until it answers, and starts all clients.
    pub(super) fn start(testbed: &Testbed) -> Self {
        let [first, second, third] = testbed.pods.as_slice() else { unreachable!("the testbed has three pods") };
        let ip = second.ips[0];
        // Services are probed by TCP: sepal deletes UDP flows to a removed endpoint, which can cost an answer that is under way.
        let service: SocketAddr = (CLUSTER_IP, 80).into();
        put_probed_service(testbed);
        wait_until("the Service answers", || [first, third].iter().all(|pod| tcp(&pod.netns, service).is_ok()));
        let outside = testbed.cluster.outside.udp(ip);
        Self {
            unaffected: vec![
                ("pod of node-2 to pod of node-3", Prober::start(&second.netns, third.udp(ip))),
                ("pod of node-3 to the Service", Prober::start_tcp(&third.netns, service)),
                ("node-2 to the Service", Prober::start_tcp(&testbed.cluster.nodes[1].netns, service)),
                ("pod of node-2 to the outside", Prober::start(&second.netns, outside)),
            ],
            exposed: vec![
                ("pod of node-1 to the Service", Prober::start_tcp(&first.netns, service)),
                ("pod of node-2 to pod of node-1", Prober::start(&second.netns, first.udp(ip))),
                ("pod of node-1 to the outside", Prober::start(&first.netns, outside)),
            ],
            sessions: vec![Session::start(&second.netns, third.echo(ip)), Session::start(&third.netns, (CLUSTER_IP, 7).into())],
            explained: 0,
            unexplained: Vec::new(),
        }
    }

    /// Damages node-1 with `damage`, which returns once the node is repaired. Answers that the exposed clients lose meanwhile count as
    /// explained.
    pub(super) fn damage_node(&mut self, damage: impl FnOnce()) {
        self.record_losses("before the damage");
        damage();
        self.explained += self.exposed.iter().map(|(_, prober)| prober.lost()).sum::<usize>();
    }

    /// Records the answers that were lost since the last call. `activity` names what the soak did meanwhile.
    pub(super) fn record_losses(&mut self, activity: &str) {
        for (name, prober) in self.unaffected.iter().chain(&self.exposed) {
            match prober.lost() {
                0 => {}
                lost => self.unexplained.push(Finding::new(format!("{name}: {lost} answers lost without an explanation ({activity})"))),
            }
        }
        for fault in self.sessions.iter().filter_map(Session::fault) {
            self.unexplained.push(Finding::new(fault));
        }
        self.sessions.retain(|session| session.fault().is_none());
    }

    /// Returns the unexplained losses since the last call.
    pub(super) fn take_unexplained(&mut self) -> Vec<Finding> {
        self.record_losses("at rest");
        std::mem::take(&mut self.unexplained)
    }

    /// Returns the totals in one line.
    pub(super) fn summary(&self) -> String {
        let requests: usize = self.unaffected.iter().chain(&self.exposed).map(|(_, prober)| prober.asked()).sum();
        format!("{requests} connections, {} lost while node-1 was damaged", self.explained)
    }
}
