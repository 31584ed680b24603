//! The state of the loop of the pod network.

use super::node_name::pace;
use super::report::NetworkReport;
use super::schedule::Agenda;
use super::status::PeersAnswer;
use super::subnets::Source;
use crate::cluster::families::PerFamily;
use crate::kubernetes::client::Connections;
use crate::netlink::entry::Route;
use crate::netlink::link::LinkNames;
use crate::netlink::{NetlinkError, NetworkKernel};
use crate::observe::paging::PageQuery;
use crate::observe::query::{PendingQuery, QueryChannel};
use crate::observe::readiness::Readiness;
use crate::pod_network::desired::{DesiredLink, Entry};
use crate::pod_network::interface::External;
use crate::pod_network::mtu::Mtu;
use crate::pod_network::net_conf::NetConf;
use crate::pod_network::node::NetworkNode;
use crate::pod_network::own_lease::OwnLease;
use crate::pod_network::peers::Peers;
use crate::pod_network::refusal::Refusal;
use crate::pod_network::settings::NetworkSettings;
use crate::pod_network::sync::foreign_routes::ForeignRoutes;
use crate::pod_network::sync::publisher::Publisher;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

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

/// What the kernel holds of what should be there, and what that follows from.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) own: OwnLease,
    /// `metadata.uid` of the Node that gave the subnets.
    pub(super) node_uid: Box<str>,
    pub(super) external: External,
    pub(super) mtu: Mtu,
    pub(super) desired: Vec<DesiredLink>,
    pub(super) links: PerFamily<u32>,
    /// The names of all links.
    pub(super) names: LinkNames,
    /// Routes of others.
    pub(super) routes: Vec<Route>,
    /// The other nodes, sorted.
    pub(super) peers: Peers,
    /// Those of them that the backend does not reach.
    pub(super) off_link: Vec<Refusal>,
    /// The peers' entries.
    pub(super) held: BTreeMap<Box<str>, Vec<Entry>>,
}

/// The loop and what it knows.
pub struct NetworkLoop<K> {
    pub(super) kernel: Arc<K>,
    pub(super) asked: Asked,
    pub(super) nodes: HashMap<Box<str>, Box<NetworkNode>>,
    /// Every Node has been told.
    pub(super) complete: bool,
    /// This node's Node as it was last seen.
    pub(super) own_node: Option<Box<NetworkNode>>,
    /// That Node was deleted since.
    pub(super) own_node_is_gone: bool,
    /// What the kernel has acknowledged; nothing before the first round that came to its end.
    pub(super) known: Option<Known>,
    /// Transmit checksum offload of links, as it was set.
    pub(super) offloads: BTreeMap<u32, bool>,
    /// Peers whose entries the kernel did not take; without a name, what is no peer's.
    pub(super) retries: BTreeMap<Option<Box<str>>, Retry>,
    /// Routes of other programs in place of ours.
    pub(super) foreign: ForeignRoutes,
    pub(super) agenda: Agenda,
    /// Waits after rounds that failed.
    pub(super) pauses: Box<dyn Iterator<Item = Duration> + Send>,
    pub(super) publisher: Publisher,
    pub(super) readiness: Readiness,
    pub(super) report: NetworkReport,
    /// When the oldest change of a peer came in that is not written yet.
    pub(super) since: Option<Instant>,
    /// The peers that have changed since the kernel was last brought up to them.
    pub(super) changed: BTreeSet<Box<str>>,
    /// Those to the API server: they are of no use once the address is gone that they come from.
    pub(super) connections: Option<Connections>,
    /// What is asked for the status page.
    pub(super) questions: mpsc::Receiver<PendingQuery<PageQuery>>,
    pub(super) answer: PeersAnswer,
}

/// When something that the kernel did not take is tried again.
#[derive(Clone, Debug)]
pub(super) struct Retry {
    pub(super) at: Instant,
    pub(super) pause: Duration,
    /// Why it was not taken.
    pub(super) error: NetlinkError,
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
}
