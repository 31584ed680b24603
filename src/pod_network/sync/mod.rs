//! Keeps this node's part of the pod network as it should be: takes what is told of Nodes, of the configuration and of the kernel,
//! computes what should be there, compares it with what is, and makes the difference.
//!
//! Two ways lead to the kernel. A [`round`] looks at everything that the kernel holds and puts right what differs; it comes at the start,
//! after whatever else changes anything there, and now and then in any case. Other nodes' changes take the short way ([`follow`]): they
//! are compared with what the kernel has acknowledged, and only what differs is written.

pub mod cni_install;
mod error;
mod foreign;
pub mod leases;
pub mod net_conf_watch;
pub mod node_name;
pub mod node_writes;
pub mod nodes;
mod peer_changes;
pub mod publish;
mod reconcile;
pub mod report;
mod schedule;
pub mod status;
pub(crate) mod subnet_file;
pub mod subnet_lease;
pub mod subnets;
mod withdraw;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use crate::cluster::families::PerFamily;
use crate::file_watch::Watch;
use crate::kubernetes::client::Connections;
use crate::netlink::NetworkKernel;
use crate::netlink::entry::{KERNEL_PROTOCOL, OUR_PROTOCOL, Route};
use crate::netlink::link::LinkNames;
use crate::netlink::monitor::{Event, Monitor};
use crate::observe::liveness::POD_NETWORK;
use crate::observe::paging::PageQuery;
use crate::observe::query::{PendingQuery, QueryChannel};
use crate::observe::readiness::{self, PartState, Readiness};
use crate::pod_network::bridge::BRIDGE;
use crate::pod_network::desired::{DesiredLink, Entry, link_name};
use crate::pod_network::interface::External;
use crate::pod_network::mtu::Mtu;
use crate::pod_network::net_conf::NetConf;
use crate::pod_network::node::NetworkNode;
use crate::pod_network::own_lease::OwnLease;
use crate::pod_network::peers::Peers;
use crate::pod_network::refusal::Refusal;
use crate::pod_network::settings::NetworkSettings;
use nodes::NodeUpdate;

use foreign::ForeignRoutes;
use node_name::pace;
use publish::Publisher;
use reconcile::Retry;
use report::NetworkReport;
use schedule::Agenda;
use status::{PeersAnswer, PeersView};
use subnets::Source;

/// A socket that failed is replaced after this long.
const REOPEN: Duration = Duration::from_secs(1);

/// What this node is, and what is asked of it.
#[derive(Debug)]
pub struct Asked {
    /// The name of this node's Node.
    pub node: Box<str>,
    /// net-conf.json, as it is in force.
    pub conf: watch::Receiver<NetConf>,
    /// The rest.
    pub settings: NetworkSettings,
    /// Where this node's subnets come from.
    pub source: Source,
}

/// The loop and what it knows.
pub struct NetworkLoop<K> {
    kernel: Arc<K>,
    asked: Asked,
    nodes: HashMap<Box<str>, Box<NetworkNode>>,
    /// Every Node has been told.
    complete: bool,
    /// This node's Node as it was last seen.
    own_node: Option<Box<NetworkNode>>,
    /// That Node was deleted since.
    own_node_is_gone: bool,
    /// What the kernel has acknowledged; nothing before the first round that came to its end.
    known: Option<Known>,
    /// Transmit checksum offload of links, as it was set.
    offloads: BTreeMap<u32, bool>,
    /// Peers whose entries the kernel did not take; without a name, what is no peer's.
    retries: BTreeMap<Option<Box<str>>, Retry>,
    /// Routes of other programs in place of ours.
    foreign: ForeignRoutes,
    agenda: Agenda,
    /// Waits after rounds that failed.
    pauses: Box<dyn Iterator<Item = Duration> + Send>,
    publisher: Publisher,
    readiness: Readiness,
    report: NetworkReport,
    /// When the oldest change of a peer came in that is not written yet.
    since: Option<Instant>,
    /// The peers that have changed since the kernel was last brought up to them.
    changed: BTreeSet<Box<str>>,
    /// Those to the API server: they are of no use once the address is gone that they come from.
    connections: Option<Connections>,
    /// What is asked for the status page.
    questions: mpsc::Receiver<PendingQuery<PageQuery>>,
    answer: PeersAnswer,
}

/// What the kernel holds of what should be there, and what that follows from.
#[derive(Clone, Debug)]
struct Known {
    own: OwnLease,
    external: External,
    mtu: Mtu,
    desired: Vec<DesiredLink>,
    links: PerFamily<u32>,
    /// The names of all links.
    names: LinkNames,
    /// Routes of others.
    routes: Vec<Route>,
    /// The other nodes, sorted.
    peers: Peers,
    /// Those of them that the backend does not reach.
    off_link: Vec<Refusal>,
    /// The peers' entries.
    held: BTreeMap<Box<str>, Vec<Entry>>,
}

impl<K: NetworkKernel> NetworkLoop<K> {
    /// A loop that waits for all Nodes before it touches anything.
    pub fn new(kernel: Arc<K>, asked: Asked, publisher: Publisher, readiness: Readiness, report: NetworkReport) -> Self {
        Self {
            kernel,
            asked,
            nodes: HashMap::new(),
            complete: false,
            own_node: None,
            own_node_is_gone: false,
            known: None,
            offloads: BTreeMap::new(),
            retries: BTreeMap::new(),
            foreign: ForeignRoutes::new(),
            agenda: Agenda::new(),
            pauses: Box::new(pace()),
            publisher,
            readiness,
            report,
            since: None,
            changed: BTreeSet::new(),
            connections: None,
            questions: QueryChannel::default().open(),
            answer: |_, _| Value::Null,
        }
    }

    /// Answers what is asked there, too.
    #[must_use]
    pub fn with_queries(self, desk: &QueryChannel<PageQuery>, answer: PeersAnswer) -> Self {
        Self { questions: desk.open(), answer, ..self }
    }

    /// The same, which gives up these connections when this node gets other addresses.
    #[must_use]
    pub fn with_connections(self, connections: Connections) -> Self {
        Self { connections: Some(connections), ..self }
    }

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
