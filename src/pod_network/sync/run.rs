//! The loop of the pod network: waits for changes of Nodes, configuration and kernel, and processes them.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::node_name::retry_pauses;
use super::nodes::NodeUpdate;
use super::state::NetworkLoop;
use super::status::PeersView;
use crate::file_watch::FileWatch;
use crate::netlink::NetworkKernel;
use crate::netlink::entry::{KERNEL_PROTOCOL, OUR_PROTOCOL};
use crate::netlink::monitor::{KernelEvent, Monitor};
use crate::observe::liveness::POD_NETWORK;
use crate::observe::paging::PageQuery;
use crate::observe::readiness::{self, PartState};
use crate::pod_network::bridge::BRIDGE;
use crate::pod_network::peers::Peers;
use crate::pod_network::vxlan::link_name;

/// Pause before a failed netlink socket is opened again.
const REOPEN_DELAY: Duration = Duration::from_secs(1);

impl<K: NetworkKernel> NetworkLoop<K> {
    /// Runs until the channel of Node updates closes. Each update has the time when it was received.
    pub async fn run(mut self, mut nodes: mpsc::Receiver<(Instant, NodeUpdate)>) {
        let mut monitor = self.open_monitor().await;
        let mut file = WatchedPath::new(self.inputs.settings.subnet_file.clone());
        let mut conf_dir = self.inputs.settings.cni_conf_dir.clone().map(WatchedPath::new);
        let mut states = self.readiness.subscribe();
        let mut annotations = self.publisher.annotations_state();
        let start = "waiting for the list of all Nodes: does the API server answer, and allow to list and watch nodes?";
        self.readiness.not_ready(readiness::Part::Subnet, start);
        self.readiness.not_ready(readiness::Part::CniConfig, "the CNI configuration is written when subnet-file is ready");
        loop {
            let (ready, next, condition) = (self.complete, self.schedule.next(), self.publisher.condition_due());
            tokio::select! {
                biased;
                () = sleep_until(next), if ready => {
                    while let Ok(update) = nodes.try_recv() {
                        self.apply(update);
                    }
                    let _busy = self.readiness.liveness().busy(POD_NETWORK);
                    self.work().await;
                }
                update = nodes.recv() => match update {
                    Some(update) => self.apply(update),
                    None => return,
                },
                events = monitor.next() => match events {
                    Ok(events) => self.process_events(&events),
                    Err(error) => {
                        self.report.failed(&error);
                        tracing::warn!("pod network: {error}; a full reconcile follows");
                        sleep(REOPEN_DELAY).await;
                        monitor = self.open_monitor().await;
                        self.schedule.reconcile_now();
                    }
                },
                Ok(()) = self.inputs.conf.changed() => self.schedule.reconcile_now(),
                () = self.inputs.source.changed() => self.schedule.reconcile_now(),
                () = file.changed() => self.publish_file(),
                () = changed(conf_dir.as_mut()) => self.conf_dir_changed(),
                Ok(()) = annotations.changed() => {
                    let state = annotations.borrow_and_update().clone();
                    self.set_registration(&state);
                }
                Ok(()) = states.changed() => {
                    let is_starting = matches!(states.borrow_and_update().get(&readiness::Part::SubnetFile), Some(PartState::Starting(_)));
                    if is_starting || self.publisher.is_withdrawn() {
                        self.publish_file();
                    }
                    self.update_condition();
                }
                () = sleep_until(condition.unwrap_or_else(Instant::now)), if condition.is_some() => self.update_condition(),
                Some(question) = self.questions.recv() => question.answer(|part| self.list_peers(&part)),
            }
        }
    }

    /// Answers a query of the status page for the other nodes.
    fn list_peers(&self, part: &PageQuery) -> Value {
        let failed = self.retries.iter().filter_map(|(node, retry)| Some((node.as_deref()?, retry.error.to_string()))).collect();
        match &self.acknowledged {
            Some(acknowledged) => {
                (self.answer)(&PeersView { peers: &acknowledged.peers, off_link: &acknowledged.off_link, failed: &failed }, part)
            }
            None => (self.answer)(&PeersView { peers: &Peers::default(), off_link: &[], failed: &failed }, part),
        }
    }

    /// Opens the netlink monitor, with retries.
    async fn open_monitor(&mut self) -> Monitor {
        loop {
            match Monitor::open() {
                Ok(monitor) => return monitor,
                Err(error) => {
                    self.report.failed(&error);
                    self.report.warn("monitor", Some(&error));
                    sleep(REOPEN_DELAY).await;
                }
            }
        }
    }

    /// Applies an update of Nodes.
    fn apply(&mut self, (at, update): (Instant, NodeUpdate)) {
        match update {
            NodeUpdate::Changed(node) if node.name == self.inputs.node => {
                self.publisher.node_changed(self.own_node.as_deref(), &node);
                self.inputs.source.set_node(&node);
                (self.own_node, self.own_node_is_deleted) = (Some(node), false);
                self.schedule.reconcile_now();
            }
            NodeUpdate::Changed(node) => {
                self.peer_changed(at, node.name.clone());
                self.nodes.insert(node.name.clone(), node);
            }
            NodeUpdate::Deleted(name) if name == self.inputs.node => self.own_node_deleted(),
            NodeUpdate::Deleted(name) => {
                if self.nodes.remove(&name).is_some() {
                    self.peer_changed(at, name);
                }
            }
            NodeUpdate::Listed(listed) => {
                let deleted: Vec<Box<str>> = self.nodes.keys().filter(|name| !listed.contains(*name)).cloned().collect();
                for name in deleted {
                    self.nodes.remove(&name);
                    self.peer_changed(at, name);
                }
                if self.own_node.is_some() && !listed.contains(&self.inputs.node) {
                    self.own_node_deleted();
                }
            }
            NodeUpdate::Complete => {
                if !std::mem::replace(&mut self.complete, true) {
                    self.schedule.reconcile_now();
                }
            }
            NodeUpdate::Unknown(why) => self.readiness.not_ready(readiness::Part::Subnet, format!("no Nodes are known yet: {why}")),
        }
    }

    /// Records that another node has changed.
    fn peer_changed(&mut self, at: Instant, node: Box<str>) {
        self.since.get_or_insert(at);
        self.changed.insert(node);
        if self.own_node_is_missing() {
            // The other node may have got the subnet of this one.
            self.schedule.reconcile_now();
        }
        self.schedule.peers_changed();
    }

    /// Records that this node's Node was deleted. kubelet usually registers it again, so links and routes stay until then, unless another node gets
    /// the subnet.
    fn own_node_deleted(&mut self) {
        tracing::warn!("pod network: Node {} was deleted; its links and routes stay until it is registered again", self.inputs.node);
        self.publisher.node_deleted();
        self.own_node_is_deleted = true;
        self.schedule.reconcile_now();
    }

    /// Schedules a reconcile if an event in the kernel concerns the pod network.
    fn process_events(&mut self, events: &[KernelEvent]) {
        if events.iter().any(|event| self.concerns(event)) {
            self.schedule.kernel_changed();
        }
    }

    /// Returns true if an event may concern the pod network. Links, addresses and neighbours of pods change all the time and do not.
    fn concerns(&self, event: &KernelEvent) -> bool {
        let Some(acknowledged) = &self.acknowledged else { return true };
        let links: Vec<u32> = acknowledged.links.iter().map(|(_, link)| *link).chain([acknowledged.external.index]).collect();
        let conf = self.inputs.conf.borrow();
        let is_named = |name: &str| {
            let ours = |vni| conf.networks.families().any(|family| link_name(family, vni) == name);
            name == acknowledged.external.name || name == BRIDGE || conf.backend.vxlan().is_some_and(|vxlan| ours(vxlan.vni))
        };
        match event {
            KernelEvent::Link { index, name, .. } => links.contains(index) || is_named(name),
            KernelEvent::Address { link, .. } => links.contains(link),
            // Neighbours on the external interface belong to the kernel.
            KernelEvent::Neighbour { link, .. } | KernelEvent::Fdb { link, .. } => acknowledged.links.iter().any(|(_, ours)| ours == link),
            KernelEvent::Route { link, protocol, .. } => {
                *protocol == OUR_PROTOCOL || *protocol != KERNEL_PROTOCOL || link.is_some_and(|link| links.contains(&link))
            }
            KernelEvent::Lost => true,
        }
    }

    /// Does the work that is due: writes changes of other nodes, and runs a full reconcile.
    async fn work(&mut self) {
        if self.schedule.take_peer_changes() && !self.apply_peer_changes().await {
            self.schedule.reconcile_now();
        }
        if self.schedule.reconcile_is_due() {
            let start = Instant::now();
            let outcome = self.reconcile().await;
            let pause = match &outcome {
                Ok(()) => {
                    self.pauses = Box::new(retry_pauses());
                    None
                }
                Err(_) => self.pauses.next(),
            };
            self.schedule.reconciled(start, pause);
            self.publish_outcome(outcome.err().as_ref());
        }
        if let Some(at) = self.retries.values().map(|retry| retry.at).chain(self.foreign.next).min() {
            self.schedule.reconcile_by(at);
        }
    }
}

/// Waits for a change of a watched path; forever if there is none.
async fn changed(watched: Option<&mut WatchedPath>) {
    match watched {
        Some(watched) => watched.changed().await,
        None => std::future::pending().await,
    }
}

/// A file or folder that is watched once it can be.
struct WatchedPath {
    path: PathBuf,
    watch: Option<FileWatch>,
}

impl WatchedPath {
    fn new(path: PathBuf) -> Self {
        Self { path, watch: None }
    }

    /// Waits until the path may have changed. If its folder does not exist yet, the watch is tried again. Without a watch, every reconcile checks
    /// the path.
    async fn changed(&mut self) {
        /// Pause before the watch is tried again.
        const RETRY_DELAY: Duration = Duration::from_secs(5);
        loop {
            match &mut self.watch {
                Some(watch) => {
                    watch.changed().await;
                    // Watch again: the folder may have been replaced.
                    self.watch = FileWatch::new(&self.path).ok();
                    return;
                }
                None => match FileWatch::new(&self.path) {
                    Ok(watch) => {
                        self.watch = Some(watch);
                        // The path may have changed before the watch began.
                        return;
                    }
                    Err(_) => sleep(RETRY_DELAY).await,
                },
            }
        }
    }
}
