//! The loop of the pod network: waits for news of Nodes, of the configuration and of the kernel, and acts on it.

use super::node_name::pace;
use super::nodes::NodeUpdate;
use super::state::NetworkLoop;
use super::status::PeersView;
use crate::file_watch::Watch;
use crate::netlink::NetworkKernel;
use crate::netlink::entry::{KERNEL_PROTOCOL, OUR_PROTOCOL};
use crate::netlink::monitor::{Event, Monitor};
use crate::observe::liveness::POD_NETWORK;
use crate::observe::paging::PageQuery;
use crate::observe::readiness::{self, PartState};
use crate::pod_network::bridge::BRIDGE;
use crate::pod_network::peers::Peers;
use crate::pod_network::vxlan::link_name;
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

/// A socket that failed is replaced after this long.
const REOPEN: Duration = Duration::from_secs(1);

impl<K: NetworkKernel> NetworkLoop<K> {
    /// Runs until no more is told of Nodes; each update comes with the moment at which it came in.
    pub async fn run(mut self, mut nodes: mpsc::Receiver<(Instant, NodeUpdate)>) {
        let mut monitor = self.listen().await;
        let mut file = Watched::new(self.asked.settings.subnet_file.clone());
        let mut conf_dir = self.asked.settings.cni_conf_dir.clone().map(Watched::new);
        let mut states = self.readiness.subscribe();
        let mut annotations = self.publisher.annotations_state();
        let start = "the list of all Nodes is awaited: does the API server answer, and allow to list and watch nodes?";
        self.readiness.not_ready(readiness::Part::Subnet, start);
        self.readiness.not_ready(readiness::Part::CniConfig, "the CNI configuration is written when subnet-file is ready");
        loop {
            let (ready, next, condition) = (self.complete, self.agenda.next(), self.publisher.next());
            tokio::select! {
                biased;
                () = sleep_until(next), if ready => {
                    while let Ok(update) = nodes.try_recv() {
                        self.take(update);
                    }
                    let _busy = self.readiness.liveness().busy(POD_NETWORK);
                    self.act().await;
                }
                update = nodes.recv() => match update {
                    Some(update) => self.take(update),
                    None => return,
                },
                events = monitor.next() => match events {
                    Ok(events) => self.notice(&events),
                    Err(error) => {
                        self.report.failed(&error);
                        tracing::warn!("pod network: {error}; everything is looked at anew");
                        sleep(REOPEN).await;
                        monitor = self.listen().await;
                        self.agenda.ask();
                    }
                },
                Ok(()) = self.asked.conf.changed() => self.agenda.ask(),
                () = self.asked.source.changed() => self.agenda.ask(),
                () = file.changed() => self.publish_file(),
                () = changed(conf_dir.as_mut()) => self.conf_dir_changed(),
                Ok(()) = annotations.changed() => {
                    let state = annotations.borrow_and_update().clone();
                    self.registered(&state);
                }
                Ok(()) = states.changed() => {
                    let is_starting = matches!(states.borrow_and_update().get(&readiness::Part::SubnetFile), Some(PartState::Starting(_)));
                    if is_starting || self.publisher.is_withdrawn() {
                        self.publish_file();
                    }
                    self.tell_condition();
                }
                () = sleep_until(condition.unwrap_or_else(Instant::now)), if condition.is_some() => self.tell_condition(),
                Some(asked) = self.questions.recv() => asked.answer(|part| self.list(&part)),
            }
        }
    }

    /// The other nodes, as the status page asks for them.
    fn list(&self, part: &PageQuery) -> Value {
        let failed = self.retries.iter().filter_map(|(node, retry)| Some((node.as_deref()?, retry.error.to_string()))).collect();
        match &self.known {
            Some(known) => (self.answer)(&PeersView { peers: &known.peers, off_link: &known.off_link, failed: &failed }, part),
            None => (self.answer)(&PeersView { peers: &Peers::default(), off_link: &[], failed: &failed }, part),
        }
    }

    /// Listens for changes in the kernel, as soon as that can be had.
    async fn listen(&mut self) -> Monitor {
        loop {
            match Monitor::open() {
                Ok(monitor) => return monitor,
                Err(error) => {
                    self.report.failed(&error);
                    self.report.complain("monitor", Some(&error));
                    sleep(REOPEN).await;
                }
            }
        }
    }

    /// Takes what is told of Nodes.
    fn take(&mut self, (at, update): (Instant, NodeUpdate)) {
        match update {
            NodeUpdate::Changed(node) if node.name == self.asked.node => {
                self.publisher.node_seen(self.own_node.as_deref(), &node);
                self.asked.source.tell(&node);
                (self.own_node, self.own_node_is_gone) = (Some(node), false);
                self.agenda.ask();
            }
            NodeUpdate::Changed(node) => {
                self.followed(at, node.name.clone());
                self.nodes.insert(node.name.clone(), node);
            }
            NodeUpdate::Gone(name) if name == self.asked.node => self.own_node_gone(),
            NodeUpdate::Gone(name) => {
                if self.nodes.remove(&name).is_some() {
                    self.followed(at, name);
                }
            }
            NodeUpdate::Listed(known) => {
                let gone: Vec<Box<str>> = self.nodes.keys().filter(|name| !known.contains(*name)).cloned().collect();
                for name in gone {
                    self.nodes.remove(&name);
                    self.followed(at, name);
                }
                if self.own_node.is_some() && !known.contains(&self.asked.node) {
                    self.own_node_gone();
                }
            }
            NodeUpdate::Complete => {
                if !std::mem::replace(&mut self.complete, true) {
                    self.agenda.ask();
                }
            }
            NodeUpdate::Unknown(why) => self.readiness.not_ready(readiness::Part::Subnet, format!("no Nodes are known yet: {why}")),
        }
    }

    fn followed(&mut self, at: Instant, node: Box<str>) {
        self.since.get_or_insert(at);
        self.changed.insert(node);
        if self.own_node_is_missing() {
            // The other node may have got this node's subnet.
            self.agenda.ask();
        }
        self.agenda.follow();
    }

    /// A Node that is deleted is mostly about to be registered again: what it had stays until then, unless another Node gets it.
    fn own_node_gone(&mut self) {
        tracing::warn!("pod network: Node {} is gone; what it had stays until it is registered again", self.asked.node);
        self.publisher.node_gone();
        self.own_node_is_gone = true;
        self.agenda.ask();
    }

    /// Takes note of what changes in the kernel.
    fn notice(&mut self, events: &[Event]) {
        if events.iter().any(|event| self.concerns(event)) {
            self.agenda.disturbed();
        }
    }

    /// Whether an event can be about anything that the network hangs on. Pods come and go all the time, and their links, addresses and
    /// neighbours are none of it.
    fn concerns(&self, event: &Event) -> bool {
        let Some(known) = &self.known else { return true };
        let links: Vec<u32> = known.links.iter().map(|(_, link)| *link).chain([known.external.index]).collect();
        let conf = self.asked.conf.borrow();
        let is_named = |name: &str| {
            let ours = |vni| conf.networks.families().any(|family| link_name(family, vni) == name);
            name == known.external.name || name == BRIDGE || conf.backend.vxlan().is_some_and(|vxlan| ours(vxlan.vni))
        };
        match event {
            Event::Link { index, name, .. } => links.contains(index) || is_named(name),
            Event::Address { link, .. } => links.contains(link),
            // The neighbours on the interface to other nodes are the kernel's affair.
            Event::Neighbour { link, .. } | Event::Fdb { link, .. } => known.links.iter().any(|(_, ours)| ours == link),
            Event::Route { link, protocol, .. } => {
                *protocol == OUR_PROTOCOL || *protocol != KERNEL_PROTOCOL || link.is_some_and(|link| links.contains(&link))
            }
            Event::Lost => true,
        }
    }

    /// Does what is due.
    async fn act(&mut self) {
        if self.agenda.take_follow() && !self.follow().await {
            self.agenda.ask();
        }
        if self.agenda.look_is_due() {
            let start = Instant::now();
            let outcome = self.round().await;
            let pause = match &outcome {
                Ok(()) => {
                    self.pauses = Box::new(pace());
                    None
                }
                Err(_) => self.pauses.next(),
            };
            self.agenda.looked(start, pause);
            self.settle(outcome.err().as_ref());
        }
        if let Some(at) = self.retries.values().map(|retry| retry.at).chain(self.foreign.next).min() {
            self.agenda.by(at);
        }
    }
}

/// Waits until a file or folder may have changed, if there is one to watch.
async fn changed(watched: Option<&mut Watched>) {
    match watched {
        Some(watched) => watched.changed().await,
        None => std::future::pending().await,
    }
}

/// A file or folder that is watched, if that can be had.
struct Watched {
    path: PathBuf,
    watch: Option<Watch>,
}

impl Watched {
    fn new(path: PathBuf) -> Self {
        Self { path, watch: None }
    }

    /// Waits until the file may have changed. Its folder may have to be made first; that it cannot be watched is no trouble, for it is
    /// looked at in every round.
    async fn changed(&mut self) {
        /// How long a folder is waited for.
        const PATIENCE: Duration = Duration::from_secs(5);
        loop {
            match &mut self.watch {
                Some(watch) => {
                    watch.changed().await;
                    // Its folder may be another one of the same name by now.
                    self.watch = Watch::new(&self.path).ok();
                    return;
                }
                None => match Watch::new(&self.path) {
                    Ok(watch) => {
                        self.watch = Some(watch);
                        // What happened before counts, too.
                        return;
                    }
                    Err(_) => sleep(PATIENCE).await,
                },
            }
        }
    }
}
