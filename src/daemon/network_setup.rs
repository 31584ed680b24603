//! The pod network's setup: flags and net-conf.json, read and checked.

use anyhow::{Context, anyhow};
use ipnetwork::IpNetwork;
use kube::Client;

use crate::cluster::Family;
use crate::config::flags::{RunAs, RunFlags};
use crate::config::settings::RequestedSettings;
use crate::observe::readiness::Part;
use crate::pod_network::masquerade;
use crate::pod_network::net_conf::NetConf;
use crate::pod_network::own_lease::{OwnLease, is_inside};
use crate::pod_network::settings::{NetworkSettings, SubnetSource};
use crate::pod_network::sync::net_conf_watch;
use crate::pod_network::sync::node_name::{NodeNameError, NodeNameSource};
use crate::proxy::rules::inputs::Inputs;

/// The setup of a pod network that is switched on.
#[derive(Debug)]
pub(crate) struct NetworkSetup {
    pub(crate) conf: NetConf,
    pub(crate) settings: NetworkSettings,
    /// Only the environment may name the node, as with flanneld.
    name_from_environment: bool,
}

impl NetworkSetup {
    /// Reads flags and net-conf.json; `None` if the flags do not switch the pod network on.
    ///
    /// # Errors
    /// A flag or net-conf.json is invalid.
    pub(crate) fn new(flags: &RunFlags) -> anyhow::Result<Option<Self>> {
        match Self::new_or_shipped(flags)? {
            (_, Some(error)) => Err(error),
            (setup, None) => Ok(setup),
        }
    }

    /// Reads flags and net-conf.json. If net-conf.json cannot be used, the setup has the configuration that flannel ships, and the error is
    /// returned beside it.
    ///
    /// # Errors
    /// A flag is invalid.
    pub(crate) fn new_or_shipped(flags: &RunFlags) -> anyhow::Result<(Option<Self>, Option<anyhow::Error>)> {
        if !flags.network.pod_network {
            return Ok((None, None));
        }
        let settings = flags.network.settings()?;
        let (conf, error) = match read_conf(&settings) {
            Ok(conf) => (conf, None),
            Err(error) => (NetConf::shipped(), Some(error)),
        };
        let name_from_environment = matches!(flags.run_as, RunAs::Flanneld { .. });
        Ok((Some(Self { conf, settings, name_from_environment }), error))
    }

    /// The families of the pod network. They are the families to run if there is no service proxy.
    ///
    /// # Errors
    /// This host cannot program one of them.
    pub(crate) fn families(&self, usable: &[Family]) -> anyhow::Result<Vec<Family>> {
        let families: Vec<Family> = self.conf.networks.families().collect();
        self.check(usable)?;
        Ok(families)
    }

    /// Checks that each family of the pod network is among the families that this program writes.
    ///
    /// # Errors
    /// One is missing.
    pub(crate) fn check(&self, usable: &[Family]) -> anyhow::Result<()> {
        match self.conf.networks.families().find(|family| !usable.contains(family)) {
            Some(family) => Err(anyhow!(
                "net-conf.json switches {family} on, and this program does not write {family} rules here: either iptables cannot, or \
                 --ip-family says so. Switch it off in net-conf.json, or mend that"
            )),
            None => Ok(()),
        }
    }

    /// True if sepal assigns this node's subnets itself, by Leases.
    pub(crate) fn assigns_subnets(&self) -> bool {
        self.settings.subnet_source == SubnetSource::Lease
    }

    /// Adds the pod network's rules to the inputs of the rules. Only subnets that the Node shows are known here.
    pub(crate) fn describe(&self, inputs: &mut Inputs) {
        let Some(node) = inputs.snapshot.node() else { return };
        let inside = |(family, network): (Family, &IpNetwork)| {
            let subnet = node.pod_cidrs.iter().find(|cidr| Family::of_net(**cidr) == family)?;
            is_inside(*subnet, *network).then_some((family, *subnet))
        };
        let own = OwnLease { subnets: self.conf.networks.iter().filter_map(inside).collect(), ..OwnLease::default() };
        inputs.pod_rules = Some(masquerade::pod_rules(&self.settings, &self.conf, &own));
    }

    /// The entries of the readiness table that belong to the pod network.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let rules = self.conf.networks.families().map(Part::PodRules);
        let parts = [Part::Subnet, Part::Interface, Part::Links, Part::Peers, Part::Registration, Part::SubnetFile];
        let cni_config = self.settings.cni_conf_dir.as_ref().map(|_| Part::CniConfig);
        parts.into_iter().chain(rules).chain(cni_config).collect()
    }

    /// The name of this node's Node: from the flags or the configuration file, else from the environment, else the host's name.
    ///
    /// # Errors
    /// The program runs as flanneld, and the environment does not name the node.
    pub(crate) async fn node_name(&self, client: &Client, requested: &RequestedSettings) -> anyhow::Result<String> {
        if let Some(name) = requested.node_name.clone().filter(|_| !self.name_from_environment) {
            return Ok(name);
        }
        match NodeNameSource::from_environment(|name| std::env::var(name).ok()) {
            Ok(source) => Ok(source.awaited_node_name(client).await),
            Err(NodeNameError::Unset) if !self.name_from_environment => Ok(requested.host_name.clone()),
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
