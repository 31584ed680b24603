//! Runs the pod network as a part of the daemon: watches Nodes and Leases, and runs the loop of [`crate::pod_network::sync`].

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::bail;
use futures::StreamExt;
use futures::stream::BoxStream;
use kube::Client;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::network_setup::NetworkSetup;
use super::supervise::Tasks;
use crate::cluster::Family;
use crate::cluster::families::PerFamily;
use crate::cluster::pod_rules::PodRules;
use crate::kubernetes::api::Watches;
use crate::kubernetes::client::Connections;
use crate::kubernetes::events::Events;
use crate::netlink::Kernel;
use crate::observe::metrics::Metrics;
use crate::observe::readiness::Readiness;
use crate::pod_network::claim::LeaseStatus;
use crate::pod_network::settings::SubnetSource;
use crate::pod_network::sync::leases::{LeaseData, LeaseStore};
use crate::pod_network::sync::node_writes::NodeWrites;
use crate::pod_network::sync::nodes::{self, NodeUpdate};
use crate::pod_network::sync::publisher::Publisher;
use crate::pod_network::sync::report::NetworkReport;
use crate::pod_network::sync::state::{NetworkInputs, NetworkLoop};
use crate::pod_network::sync::subnet_lease::{SubnetHolder, show_subnets};
use crate::pod_network::sync::subnets::SubnetProvider;
use crate::pod_network::sync::{net_conf_watch, subnet_file};
use crate::serve;
use crate::serve::status::StatusSources;

/// Node updates that the channel to the loop holds. The watch waits when it is full.
const NODE_UPDATES: usize = 1024;

/// The name of the network on its Leases.
pub(crate) const NETWORK: &str = "pods";

/// The pod network as a part of the daemon. Each start of the part makes a new loop from it.
pub(crate) struct NetworkPart {
    pub setup: NetworkSetup,
    pub client: Client,
    pub connections: Connections,
    pub watches: Watches,
    /// This node's name.
    pub node: String,
    pub metrics: Arc<Metrics>,
    pub events: Events,
    pub readiness: Readiness,
    pub board: StatusSources,
    /// Sends the input of the pod network's rules to the service proxy, which writes all rules.
    pub pod_rules: watch::Sender<Option<PodRules>>,
}

impl NetworkPart {
    /// Runs the loop and its tasks until one of them fails.
    ///
    /// # Errors
    /// The watch of Nodes or another task has ended.
    pub(crate) async fn run(self: Rc<Self>) -> anyhow::Result<()> {
        let NetworkSetup { settings, conf, .. } = &self.setup;
        // Dropping `tasks` ends the tasks.
        let mut tasks = Tasks::default();
        let (writes, writing) = NodeWrites::new(&self.client, &self.node, &self.events);
        tasks.spawn("writes to the Node", writing);
        let writes = Arc::new(writes);
        let lease_data = watch::Sender::new(LeaseData::new());
        let subnets = match settings.subnet_source {
            SubnetSource::Node => SubnetProvider::Node,
            SubnetSource::Lease => self.hold_subnets(&lease_data, &writes, &mut tasks)?,
        };
        let conf = watch::Sender::new(conf.clone());
        let asked = NetworkInputs { node: self.node.as_str().into(), conf: conf.subscribe(), settings: settings.clone(), source: subnets };
        let publisher = Publisher::new(writes, lease_data, self.pod_rules.clone());
        let report = NetworkReport::new(Arc::clone(&self.metrics), self.events.clone());
        let network = NetworkLoop::new(Arc::new(Kernel), asked, publisher, self.readiness.clone(), report);
        let network = network.with_connections(self.connections.clone()).with_queries(&self.board.peers, serve::status::peers::list);
        let (sender, nodes) = mpsc::channel(NODE_UPDATES);
        tasks.spawn("watch of Nodes", forward_nodes(nodes::watch_nodes(&self.watches, &settings.prefix), sender));
        tokio::select! {
            never = net_conf_watch::follow(&settings.net_config_path, conf) => match never {},
            () = network.run(nodes) => bail!("the source of Nodes has ended"),
            error = tasks.ended() => Err(error),
        }
    }

    /// Starts a task per family that takes a Lease of a subnet and renews it.
    fn hold_subnets(&self, data: &watch::Sender<LeaseData>, writes: &Arc<NodeWrites>, tasks: &mut Tasks) -> anyhow::Result<SubnetProvider> {
        let NetworkSetup { settings, conf, .. } = &self.setup;
        let node = watch::Sender::new(None);
        let previous = subnet_file::subnets(&settings.subnet_file);
        let mut statuses = PerFamily::default();
        for family in conf.networks.families() {
            let Some(space) = conf.subnet_space(family)? else { continue };
            let status = watch::Sender::new(LeaseStatus::default());
            statuses.set(family, Some(status.subscribe()));
            let holder = SubnetHolder {
                store: LeaseStore::new(&self.client, &self.watches, NETWORK),
                space,
                terms: settings.lease_terms,
                previous: previous.get(family).copied(),
                subnet_file: settings.subnet_file.clone(),
                node: node.subscribe(),
                data: data.subscribe(),
                status,
                events: self.events.clone(),
                metrics: self.metrics.network().clone(),
            };
            tasks.spawn("subnet lease", holder.run());
        }
        let receivers = statuses.iter().map(|(_, status)| status.clone()).collect();
        tasks.spawn("podCIDRs of the Node", show_subnets(node.subscribe(), receivers, Arc::clone(writes), self.events.clone()));
        Ok(SubnetProvider::Leases { statuses, node })
    }
}

/// Sends each Node update to the loop, with the time at which it arrived.
async fn forward_nodes(mut nodes: BoxStream<'static, NodeUpdate>, sender: mpsc::Sender<(Instant, NodeUpdate)>) {
    while let Some(update) = nodes.next().await {
        if sender.send((Instant::now(), update)).await.is_err() {
            return;
        }
    }
}

/// Warns if bridged packets do not pass iptables. Packets between pods of one node pass no rules then, and the answer of a Service's
/// endpoint has the wrong source address [flannel 2].
pub(crate) fn check_bridge_filter(families: &[Family]) {
    for family in families {
        let name = if *family == Family::V4 { "bridge-nf-call-iptables" } else { "bridge-nf-call-ip6tables" };
        if !Path::new("/proc/sys/net/bridge").join(name).exists() {
            tracing::warn!(
                "Failed to check br_netfilter: there is no /proc/sys/net/bridge/{name}. Pods on one node may not reach each other through \
                 Services: load the module on the host (modprobe br_netfilter)"
            );
        }
    }
}
