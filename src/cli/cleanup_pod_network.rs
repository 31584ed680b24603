//! `sepal cleanup --pod-network`: deletes the links, routes and files of the pod network from a node, and what the node has written to the API.
//! The rules of the service proxy stay.

use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::daemon::pod_network::NETWORK;
use crate::daemon::setup::host_name;
use crate::error_text::error_text;
use crate::kubernetes::api::Watches;
use crate::kubernetes::client::ConnectionSettings;
use crate::netlink::entry::LinkChange;
use crate::netlink::link::LinkNames;
use crate::netlink::{Kernel, NetlinkError, NetworkKernel};
use crate::pod_network::annotations::Prefix;
use crate::pod_network::leftovers::{self, FormerNetwork};
use crate::pod_network::net_conf::NetConf;
use crate::pod_network::settings::defaults;
use crate::pod_network::subnet_env::SubnetEnv;
use crate::pod_network::sync::leases::{LeaseError, LeaseStore};
use crate::pod_network::sync::node_name::{NodeNameError, NodeNameSource};
use crate::pod_network::sync::node_writes::remove_annotations;
use crate::pod_network::sync::{net_conf_watch, subnet_file};

/// Time limit for all requests to the API server.
const API_TIMEOUT: Duration = Duration::from_secs(30);

/// The flags that `--pod-network` allows.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct PodNetworkFlags {
    /// Clean up only the pod network: its links, routes, rules and subnet.env. With --kubeconfig, --master or --node-name also this node's
    /// annotations and Leases
    #[arg(long)]
    pub(super) pod_network: bool,
    /// Path of subnet.env
    #[arg(long, value_name = "FILE", default_value = defaults::SUBNET_FILE, requires = "pod_network")]
    subnet_file: PathBuf,
    /// Path of flannel's net-conf.json; it may be missing
    #[arg(long, value_name = "FILE", default_value = defaults::NET_CONFIG_PATH, requires = "pod_network")]
    net_config_path: PathBuf,
    /// Prefix of the names of flannel's annotations on Nodes
    #[arg(long, value_name = "PREFIX", default_value = defaults::ANNOTATION_PREFIX, requires = "pod_network")]
    kube_annotation_prefix: String,
    /// Path of the kubeconfig for the API server
    #[arg(long, value_name = "FILE", requires = "pod_network")]
    kubeconfig: Option<String>,
    /// Address of the API server, in place of the kubeconfig's
    #[arg(long, value_name = "URL", requires = "pod_network")]
    master: Option<String>,
    /// Name of this node's Node [default: from the environment, as the daemon finds it, or the host name]
    #[arg(long, value_name = "NAME", requires = "pod_network")]
    node_name: Option<String>,
}

impl PodNetworkFlags {
    /// Deletes links and routes. Deletes subnet.env only after that, because it says which network they belong to.
    pub(super) async fn clean_node(&self, report: &mut impl FnMut(&dyn Display)) {
        let known = FormerNetwork { env: SubnetEnv::parse_lenient(&subnet_file::read(&self.subnet_file)), conf: self.net_conf() };
        let errors = match spawn_blocking(move || clean_kernel(&Kernel, &known)).await {
            Ok(errors) => errors,
            Err(error) => return report(&error),
        };
        for error in &errors {
            report(error);
        }
        if !errors.is_empty() {
            tracing::info!("{} stays until all of that is gone", self.subnet_file.display());
        } else if self.subnet_file.exists() {
            match subnet_file::remove(&self.subnet_file) {
                Ok(()) => tracing::info!("{} deleted", self.subnet_file.display()),
                Err(error) => report(&error),
            }
        }
    }

    fn net_conf(&self) -> Option<NetConf> {
        if !self.net_config_path.exists() {
            return None;
        }
        net_conf_watch::read(&self.net_config_path).inspect_err(|error| tracing::warn!("{error}; the cleanup goes on without it")).ok()
    }

    /// Deletes what this node has written to the API, if a flag says how to reach the API server.
    pub(super) async fn clean_api(&self, report: &mut impl FnMut(&dyn Display)) {
        if self.kubeconfig.is_none() && self.master.is_none() && self.node_name.is_none() {
            tracing::info!("no API server was named, so this node's annotations and Leases stay (--kubeconfig, --master, --node-name)");
            return;
        }
        let done = timeout(API_TIMEOUT, self.delete_from_api(report)).await;
        let outcome = done.unwrap_or_else(|_| Err(anyhow!("no answer within {} s", API_TIMEOUT.as_secs())));
        if let Err(error) = outcome.context("annotations and Leases of this node may still be in the API") {
            report(&error_text(error.as_ref()));
        }
    }

    async fn delete_from_api(&self, report: &mut impl FnMut(&dyn Display)) -> anyhow::Result<()> {
        let prefix = Prefix::new(&self.kube_annotation_prefix).context("--kube-annotation-prefix")?;
        let client =
            ConnectionSettings { kubeconfig: self.kubeconfig.clone(), master: self.master.clone(), ..ConnectionSettings::default() }
                .client()?;
        let node = match (&self.node_name, NodeNameSource::from_environment(|name| std::env::var(name).ok())) {
            (Some(name), _) => name.clone(),
            (None, Ok(source)) => source.node_name(&client).await?,
            (None, Err(NodeNameError::Unset)) => host_name()?,
            (None, Err(error)) => return Err(error.into()),
        };
        match remove_annotations(&client, &node, &prefix.written()).await {
            Ok(true) => tracing::info!("annotations of Node {node} deleted"),
            Ok(false) => tracing::info!("there is no Node {node}, so it has no annotations"),
            Err(error) => report(&error),
        }
        match LeaseStore::new(&client, &Watches::new(&client), NETWORK).release_all(&node).await {
            Ok(subnets) if subnets.is_empty() => tracing::info!("node {node} has no Leases of subnets"),
            Ok(subnets) => {
                let subnets: Vec<String> = subnets.iter().map(ToString::to_string).collect();
                tracing::info!("Leases of node {node} released: {}", subnets.join(", "));
            }
            // With --subnet-source=node no permission for Leases is needed. A Lease that stays expires.
            Err(error @ LeaseError::Forbidden { .. }) => tracing::warn!("{error}. If node {node} has a Lease, it stays until it expires"),
            Err(error) => report(&error),
        }
        Ok(())
    }
}

/// Deletes links, and then the routes that are left. Returns the errors.
fn clean_kernel(kernel: &impl NetworkKernel, known: &FormerNetwork) -> Vec<NetlinkError> {
    let live = match kernel.dump() {
        Ok(live) => live,
        Err(error) => return vec![error],
    };
    let mut errors = Vec::new();
    for link in leftovers::links(&live, known) {
        match kernel.change_link(&LinkChange::Delete(link.id())) {
            Ok(()) => tracing::info!("link {} deleted", link.name),
            Err(error) => errors.push(error),
        }
    }
    for link in leftovers::unattributed(&live, known) {
        let name = &link.name;
        tracing::warn!(
            "link {name} stays: it has no address in a network that subnet.env or net-conf.json names, and no route of sepal's. If it is \
             not needed: ip link delete {name}"
        );
    }
    match kernel.dump() {
        Ok(live) => {
            let routes = leftovers::routes(&live, known);
            let failed: Vec<NetlinkError> =
                kernel.change_entries(&routes, &LinkNames::new(&live.links)).into_iter().filter_map(Result::err).collect();
            if routes.len() > failed.len() {
                tracing::info!("{} routes deleted", routes.len() - failed.len());
            }
            errors.extend(failed);
        }
        Err(error) => errors.push(error),
    }
    errors
}
