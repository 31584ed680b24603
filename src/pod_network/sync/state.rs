//! The state of the pod network's loop.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::foreign_routes::ForeignRoutes;
use super::node_name::retry_pauses;
use super::publisher::Publisher;
use super::report::NetworkReport;
use super::schedule::Schedule;
use super::status::PeersRenderer;
use super::subnets::SubnetProvider;
use crate::cluster::families::PerFamily;
use crate::kubernetes::client::Connections;
use crate::netlink::entry::Route;
use crate::netlink::link::LinkNames;
use crate::netlink::{NetlinkError, NetworkKernel};
use crate::observe::paging::PageQuery;
use crate::observe::query::{PendingQuery, QueryChannel};
use crate::observe::readiness::Readiness;
use crate::pod_network::backoff::Pauses;
use crate::pod_network::desired::{DesiredLink, Entry};
use crate::pod_network::interface::ExternalInterface;
use crate::pod_network::mtu::Mtu;
use crate::pod_network::net_conf::NetConf;
use crate::pod_network::node::NetworkNode;
use crate::pod_network::own_lease::OwnLease;
use crate::pod_network::peers::Peers;
use crate::pod_network::refusal::PeerRefusal;
use crate::pod_network::settings::NetworkSettings;

/// The inputs of the loop, besides the Nodes.
#[derive(Debug)]
pub struct NetworkInputs {
    /// The name of this node's Node.
    pub node: Box<str>,
    /// net-conf.json.
    pub conf: watch::Receiver<NetConf>,
    /// All other settings.
    pub settings: NetworkSettings,
    /// The source of this node's subnets.
    pub source: SubnetProvider,
}

/// The state that the kernel has acknowledged, and the values it was computed from.
#[derive(Clone, Debug)]
pub(super) struct AcknowledgedNetwork {
    pub(super) own: OwnLease,
    /// `metadata.uid` of the Node that the subnets come from.
    pub(super) node_uid: Box<str>,
    pub(super) external: ExternalInterface,
    pub(super) mtu: Mtu,
    /// The desired links.
    pub(super) desired: Vec<DesiredLink>,
    /// Their indexes.
    pub(super) links: PerFamily<u32>,
    /// The names of all links.
    pub(super) names: LinkNames,
    /// Routes of other programs.
    pub(super) routes: Vec<Route>,
    /// The other nodes, accepted or refused.
    pub(super) peers: Peers,
    /// Peers that host-gw cannot reach.
    pub(super) off_link: Vec<PeerRefusal>,
    /// The entries of each peer.
    pub(super) entries: BTreeMap<Box<str>, Vec<Entry>>,
}

/// The loop of the pod network.
pub struct NetworkLoop<K> {
    pub(super) kernel: Arc<K>,
    pub(super) inputs: NetworkInputs,
    /// The other Nodes.
    pub(super) nodes: HashMap<Box<str>, Box<NetworkNode>>,
    /// The first list of Nodes is complete.
    pub(super) complete: bool,
    /// The last version of this node's Node.
    pub(super) own_node: Option<Box<NetworkNode>>,
    /// That Node was deleted.
    pub(super) own_node_is_deleted: bool,
    /// The acknowledged state; `None` before the first complete reconcile.
    pub(super) acknowledged: Option<AcknowledgedNetwork>,
    /// Transmit checksum offload that was set, by link index.
    pub(super) offloads: BTreeMap<u32, bool>,
    /// Peers whose entries the kernel refused; `None` for entries of no peer.
    pub(super) retries: BTreeMap<Option<Box<str>>, Retry>,
    /// Routes of other programs that displace ours.
    pub(super) foreign: ForeignRoutes,
    pub(super) schedule: Schedule,
    /// Pauses after failed reconciles.
    pub(super) pauses: Box<dyn Iterator<Item = Duration> + Send>,
    pub(super) publisher: Publisher,
    pub(super) readiness: Readiness,
    pub(super) report: NetworkReport,
    /// When the oldest unwritten change of a peer was received.
    pub(super) since: Option<Instant>,
    /// The peers with unwritten changes.
    pub(super) changed: BTreeSet<Box<str>>,
    /// Connections to the API server. They are closed when the node's address changes.
    pub(super) connections: Option<Connections>,
    /// Queries of the status page.
    pub(super) questions: mpsc::Receiver<PendingQuery<PageQuery>>,
    /// Renders the answers to them.
    pub(super) answer: PeersRenderer,
}

/// When refused entries are written again.
#[derive(Debug)]
pub(super) struct Retry {
    pub(super) at: Instant,
    /// The pauses after further failures.
    pub(super) pauses: Pauses,
    /// The last error.
    pub(super) error: NetlinkError,
}

impl<K: NetworkKernel> NetworkLoop<K> {
    /// A loop. It changes nothing before the first list of Nodes is complete.
    pub fn new(kernel: Arc<K>, inputs: NetworkInputs, publisher: Publisher, readiness: Readiness, report: NetworkReport) -> Self {
        Self {
            kernel,
            inputs,
            nodes: HashMap::new(),
            complete: false,
            own_node: None,
            own_node_is_deleted: false,
            acknowledged: None,
            offloads: BTreeMap::new(),
            retries: BTreeMap::new(),
            foreign: ForeignRoutes::new(),
            schedule: Schedule::new(),
            pauses: Box::new(retry_pauses()),
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

    /// Answers the queries of this desk.
    #[must_use]
    pub(crate) fn with_queries(self, desk: &QueryChannel<PageQuery>, answer: PeersRenderer) -> Self {
        Self { questions: desk.open(), answer, ..self }
    }

    /// Closes these connections when this node gets other addresses.
    #[must_use]
    pub(crate) fn with_connections(self, connections: Connections) -> Self {
        Self { connections: Some(connections), ..self }
    }
}
