//! Clients that ask all the time, and whether what they lose is explained.

use std::net::SocketAddr;

use super::state::Finding;
use super::{Ground, trouble};
use crate::{Prober, Session};

/// The clients of a soak.
pub(super) struct Clients {
    /// Nothing that is done may cost them an answer.
    calm: Vec<(&'static str, Prober)>,
    /// Their packets pass the first node.
    exposed: Vec<(&'static str, Prober)>,
    /// Connections that last, beside the first node.
    sessions: Vec<Session>,
    explained: usize,
    lost: Vec<Finding>,
}

impl Clients {
    pub(super) fn start(ground: &Ground) -> Self {
        let [first, second, third] = ground.pods.as_slice() else { unreachable!("there are three") };
        let ip = second.ips[0];
        // By TCP: a UDP flow to an endpoint that goes is cut, with an answer that may be under way.
        let service: SocketAddr = (trouble::CLUSTER_IP, 80).into();
        // The Service is made with the first trouble; until then nobody asks it.
        trouble::put_service(ground);
        crate::eventually("the Service answers", || [first, third].iter().all(|pod| crate::traffic::tcp(&pod.netns, service).is_ok()));
        let outside = ground.cluster.outside.udp(ip);
        Self {
            calm: vec![
                ("pod of node-2 to pod of node-3", Prober::start(&second.netns, third.udp(ip))),
                ("pod of node-3 to the Service", Prober::start_tcp(&third.netns, service)),
                ("node-2 to the Service", Prober::start_tcp(&ground.cluster.nodes[1].netns, service)),
                ("pod of node-2 to the outside", Prober::start(&second.netns, outside)),
            ],
            exposed: vec![
                ("pod of node-1 to the Service", Prober::start_tcp(&first.netns, service)),
                ("pod of node-2 to pod of node-1", Prober::start(&second.netns, first.udp(ip))),
                ("pod of node-1 to the outside", Prober::start(&first.netns, outside)),
            ],
            sessions: vec![Session::start(&second.netns, third.echo(ip)), Session::start(&third.netns, (trouble::CLUSTER_IP, 7).into())],
            explained: 0,
            lost: Vec::new(),
        }
    }

    /// Takes what is lost from here on for the consequence of what is done to the first node, until it is put right; what was lost before
    /// is not.
    pub(super) fn during(&mut self, harm: impl FnOnce()) {
        self.note("before that");
        harm();
        self.explained += self.exposed.iter().map(|(_, prober)| prober.lost()).sum::<usize>();
    }

    /// What was lost since the last time, while this was done, should not have been.
    pub(super) fn note(&mut self, doing: &str) {
        for (who, prober) in self.calm.iter().chain(&self.exposed) {
            match prober.lost() {
                0 => {}
                lost => self.lost.push(Finding::new(format!("{who}: {lost} answers lost, and nothing explains that ({doing})"))),
            }
        }
        for fault in self.sessions.iter().filter_map(Session::fault) {
            self.lost.push(Finding::new(fault));
        }
        self.sessions.retain(|session| session.fault().is_none());
    }

    /// What was lost since this was asked last, and should not have been.
    pub(super) fn unexplained(&mut self) -> Vec<Finding> {
        self.note("at rest");
        std::mem::take(&mut self.lost)
    }

    pub(super) fn summary(&self) -> String {
        let asked: usize = self.calm.iter().chain(&self.exposed).map(|(_, prober)| prober.asked()).sum();
        format!("{asked} connections, {} lost by what was done to node-1", self.explained)
    }
}
