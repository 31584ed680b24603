//! The pod network's part of the daemon: what is asked for, and how its loop is joined with the rest.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use futures::StreamExt;
use futures::stream::BoxStream;
use ipnetwork::IpNetwork;
use kube::Client;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::supervise::Tasks;
use crate::cluster::Family;
use crate::cluster::families::PerFamily;
use crate::cluster::pod_rules::PodRules;
use crate::config::flags::{Face, RunFlags};
use crate::kubernetes::api::Watches;
use crate::kubernetes::client::Connections;
use crate::kubernetes::events::Events;
use crate::netlink::Kernel;
use crate::observe::metrics::Metrics;
use crate::observe::readiness::{Part, Readiness};
use crate::pod_network::claim::LeaseStatus;
use crate::pod_network::masquerade;
use crate::pod_network::net_conf::NetConf;
use crate::pod_network::own_lease::{OwnLease, is_inside};
use crate::pod_network::settings::{NetworkSettings, SubnetSource};
use crate::pod_network::sync::leases::{LeaseData, LeaseStore};
use crate::pod_network::sync::node_name::{NodeNameError, NodeNameSource};
use crate::pod_network::sync::node_writes::NodeWrites;
use crate::pod_network::sync::nodes::{self, NodeUpdate};
use crate::pod_network::sync::publisher::Publisher;
use crate::pod_network::sync::report::NetworkReport;
use crate::pod_network::sync::state::{NetworkInputs, NetworkLoop};
use crate::pod_network::sync::subnet_lease::{SubnetHolder, show_subnets};
use crate::pod_network::sync::subnets::SubnetProvider;
use crate::pod_network::sync::{net_conf_watch, subnet_file};
use crate::proxy::rules::inputs::Inputs;
use crate::serve;
use crate::serve::status::StatusSources;

use super::setup::Setup;

/// Updates of Nodes that may wait for the loop before their source has to wait, too.
const WAITING_NODES: usize = 1024;

/// A pod network that is asked for.
#[derive(Debug)]
pub(crate) struct PodNetwork {
    pub(crate) conf: NetConf,
    pub(crate) settings: NetworkSettings,
    /// The node's name comes from the environment alone, as flanneld has it.
    strict: bool,
}

impl PodNetwork {
    /// What a command line asks for; `None` if the pod network is somebody else's.
    ///
    /// # Errors
    /// A flag or net-conf.json makes no sense.
    pub(crate) fn asked(flags: &RunFlags) -> anyhow::Result<Option<Self>> {
        if !flags.network.pod_network {
            return Ok(None);
        }
        let settings = flags.network.settings()?;
        let conf = read_conf(&settings)?;
        Ok(Some(Self { conf, settings, strict: matches!(flags.face, Face::Flanneld { .. }) }))
    }

    /// The same with the configuration that flannel ships where net-conf.json cannot be used; and why it cannot.
    ///
    /// # Errors
    /// A flag makes no sense.
    pub(crate) fn asked_or_shipped(flags: &RunFlags) -> anyhow::Result<(Option<Self>, Option<anyhow::Error>)> {
        if !flags.network.pod_network {
            return Ok((None, None));
        }
        let settings = flags.network.settings()?;
        let (conf, error) = match read_conf(&settings) {
            Ok(conf) => (conf, None),
            Err(error) => (NetConf::shipped(), Some(error)),
        };
        Ok((Some(Self { conf, settings, strict: matches!(flags.face, Face::Flanneld { .. }) }), error))
    }

    /// The families to run where there is no service proxy: those of the network, if this host can program them.
    ///
    /// # Errors
    /// It cannot.
    pub(crate) fn families(&self, usable: &[Family]) -> anyhow::Result<Vec<Family>> {
        let families: Vec<Family> = self.conf.networks.families().collect();
        self.check(usable)?;
        Ok(families)
    }

    /// Whether this host can run it with these families.
    ///
    /// # Errors
    /// It cannot.
    pub(crate) fn check(&self, usable: &[Family]) -> anyhow::Result<()> {
        match self.conf.networks.families().find(|family| !usable.contains(family)) {
            Some(family) => Err(anyhow!(
                "net-conf.json switches {family} on, and this program does not write {family} rules here: either iptables cannot, or \
                 --ip-family says so. Switch it off in net-conf.json, or mend that"
            )),
            None => Ok(()),
        }
    }

    /// Whether it gives this node its subnets, so that nobody else has to.
    pub(crate) fn assigns_subnets(&self) -> bool {
        self.settings.subnet_source == SubnetSource::Lease
    }

    /// Adds its rules to what rules are computed from, as far as its subnets are known from the Node.
    pub(crate) fn describe(&self, inputs: &mut Inputs) {
        let Some(node) = inputs.snapshot.node() else { return };
        let inside = |(family, network): (Family, &IpNetwork)| {
            let subnet = node.pod_cidrs.iter().find(|cidr| Family::of_net(**cidr) == family)?;
            is_inside(*subnet, *network).then_some((family, *subnet))
        };
        let own = OwnLease { subnets: self.conf.networks.iter().filter_map(inside).collect(), ..OwnLease::default() };
        inputs.pod_rules = Some(masquerade::pod_rules(&self.settings, &self.conf, &own));
    }

    /// The parts of the daemon that belong to it.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let rules = self.conf.networks.families().map(Part::PodRules);
        let parts = [Part::Subnet, Part::Interface, Part::Links, Part::Peers, Part::Registration, Part::SubnetFile];
        let cni_config = self.settings.cni_conf_dir.as_ref().map(|_| Part::CniConfig);
        parts.into_iter().chain(rules).chain(cni_config).collect()
    }

    /// The name of this node's Node: as asked for, else as the environment says, else the host's.
    ///
    /// # Errors
    /// As flanneld, the program needs the environment to say something.
    pub(crate) async fn node_name(&self, client: &Client, setup: &Setup) -> anyhow::Result<String> {
        if let Some(name) = setup.asked.node_name.clone().filter(|_| !self.strict) {
            return Ok(name);
        }
        match NodeNameSource::from_environment(|name| std::env::var(name).ok()) {
            Ok(source) => Ok(source.awaited_node_name(client).await),
            Err(NodeNameError::Unset) if !self.strict => Ok(setup.asked.host_name.clone()),
            Err(error) => Err(anyhow!("Failed to create SubnetManager: {error}")),
        }
    }
}

fn read_conf(settings: &NetworkSettings) -> anyhow::Result<NetConf> {
    let conf = net_conf_watch::read(&settings.net_config_path)?;
    for (family, _) in conf.networks.iter().filter(|_| settings.subnet_source == SubnetSource::Lease) {
        conf.subnet_space(family).with_context(|| format!("error parsing subnet config {}", settings.net_config_path.display()))?;
    }
    Ok(conf)
}

/// What the pod network's loop is made from, as often as it has to be started.
pub(crate) struct NetworkPart {
    pub network: PodNetwork,
    pub client: Client,
    pub connections: Connections,
    pub watches: Watches,
    /// This node's name.
    pub node: String,
    pub metrics: Arc<Metrics>,
    pub events: Events,
    pub readiness: Readiness,
    pub board: StatusSources,
    /// Whoever owns the rules is told there.
    pub pod_rules: watch::Sender<Option<PodRules>>,
}

impl NetworkPart {
    /// Runs until it fails.
    ///
    /// # Errors
    /// The source of Nodes has ended, or something that it is made of.
    pub(crate) async fn run(self: Rc<Self>) -> anyhow::Result<()> {
        let PodNetwork { settings, conf, .. } = &self.network;
        // They end with this.
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
        let (sender, nodes) = mpsc::channel(WAITING_NODES);
        tasks.spawn("watch of Nodes", follow_nodes(nodes::watch_nodes(&self.watches, &settings.prefix), sender));
        tokio::select! {
            never = net_conf_watch::follow(&settings.net_config_path, conf) => match never {},
            () = network.run(nodes) => bail!("the source of Nodes has ended"),
            error = tasks.ended() => Err(error),
        }
    }

    /// Holds a subnet of each family by a Lease.
    fn hold_subnets(&self, data: &watch::Sender<LeaseData>, writes: &Arc<NodeWrites>, tasks: &mut Tasks) -> anyhow::Result<SubnetProvider> {
        let PodNetwork { settings, conf, .. } = &self.network;
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

/// Passes on what is told of Nodes, each with the moment at which it came in.
async fn follow_nodes(mut nodes: BoxStream<'static, NodeUpdate>, sender: mpsc::Sender<(Instant, NodeUpdate)>) {
    while let Some(update) = nodes.next().await {
        if sender.send((Instant::now(), update)).await.is_err() {
            return;
        }
    }
}

/// The name of the network on its leases.
pub(crate) const NETWORK: &str = "pods";

/// Without this setting what pods of one node send to each other passes no rules, and their answers through a Service come from the wrong
/// address (network spec section 2).
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
