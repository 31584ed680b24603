//! Readings of the API server.

use std::time::Duration;

use anyhow::anyhow;
use futures::future::join_all;
use kube::Client;
use tokio::time::timeout;

use crate::cluster::Node;
use crate::error_text::error_text;
use crate::kubernetes::api;
use crate::kubernetes::permission::{Needed, Uses, is_allowed, needed};
use crate::pod_network::sync::node_name::NameSource;
use crate::preflight::cluster::{self, NodeNeeds};
use crate::preflight::{Check, CheckGroup};
use crate::proxy::settings::DetectLocal;

use super::Asked;
use crate::daemon::pod_network::PodNetwork;

const PART: CheckGroup = CheckGroup::Cluster;
/// How long the server may take for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the API server says.
#[derive(Default)]
pub(super) struct Seen {
    /// This node's Node.
    pub node: Option<Node>,
    /// What that, and the rest, means.
    pub checks: Vec<Check>,
}

/// Asks the API server.
pub(super) async fn read(asked: &Asked<'_>) -> Seen {
    if asked.flags.manifests.is_some() {
        return Seen { checks: vec![Check::not_checked(PART, "API server", "none is needed with --manifests")], node: None };
    }
    let (client, version) = match connect(asked).await {
        Ok(connected) => connected,
        Err(error) => {
            let cure = "see whether the address is right (--kubeconfig, --master, KUBERNETES_SERVICE_HOST) and reachable from this node without \
                        any Service";
            let mut checks = vec![Check::failed(PART, "API server", error_text(error.as_ref()), cure)];
            checks.extend(["permissions", "Node"].map(|name| Check::not_checked(PART, name, "there is nobody to ask")));
            return Seen { checks, node: None };
        }
    };
    let mut checks = vec![Check::ok(PART, "API server", version), permissions(&client, asked).await];
    let name = match node_name(&client, asked).await {
        Ok(name) => name,
        Err(why) => {
            checks.push(Check::failed(PART, "Node", why, ""));
            return Seen { checks, node: None };
        }
    };
    let found = timeout(PATIENCE, api::node(&client, &name)).await;
    let node = match found.map_err(|_| silent()).flatten() {
        Ok(node) => {
            let wanted = NodeNeeds {
                by_pod_cidr: asked.flags.network.proxy && asked.setup.asked.settings.detect_local == DetectLocal::NodeCidr,
                subnet: asked.network.is_some(),
                leased: asked.network.as_ref().is_some_and(PodNetwork::assigns_subnets),
            };
            checks.extend(cluster::node(&name, node.as_ref(), wanted));
            node
        }
        // The pod network alone lists Nodes, and may get none by name.
        Err(error) => {
            checks.push(Check::not_checked(PART, "Node", error_text(error.as_ref())));
            None
        }
    };
    Seen { node, checks }
}

fn silent() -> anyhow::Error {
    anyhow!("no answer within {} s", PATIENCE.as_secs())
}

/// A client, and what the server says of itself. The first request waits for a credential plugin, too, where the kubeconfig names one.
async fn connect(asked: &Asked<'_>) -> anyhow::Result<(Client, String)> {
    let connection = &asked.setup.connection;
    let (url, client) = (connection.url()?, connection.client()?);
    let patience = connection.plugin_time_limit()?.map_or(PATIENCE, |limit| limit + PATIENCE);
    let version = timeout(patience, client.apiserver_version()).await.map_err(|_| silent());
    let version = version.and_then(|answer| answer.map_err(|error| anyhow!("{}", error_text(&error))));
    match version {
        Ok(version) => Ok((client, format!("{url} answers, version {}", version.git_version))),
        Err(error) => Err(error.context(format!("{url} does not answer"))),
    }
}

async fn permissions(client: &Client, asked: &Asked<'_>) -> Check {
    let leases = asked.network.as_ref().is_some_and(PodNetwork::assigns_subnets);
    let needed = needed(Uses { proxy: asked.flags.network.proxy, pod_network: asked.network.is_some(), leases });
    let answers = timeout(PATIENCE, join_all(needed.iter().map(|needed| is_allowed(client, needed)))).await;
    let Ok(answers) = answers else { return Check::not_checked(PART, "permissions", silent().to_string()) };
    let mut missing: Vec<Needed> = Vec::new();
    for (needed, answer) in needed.iter().zip(answers) {
        match answer {
            Ok(true) => {}
            Ok(false) => missing.push(*needed),
            Err(error) => return Check::not_checked(PART, "permissions", format!("the server does not say: {}", error_text(&error))),
        }
    }
    cluster::permissions(&needed, &missing)
}

/// The name of this node's Node, as the daemon would find it.
async fn node_name(client: &Client, asked: &Asked<'_>) -> Result<String, String> {
    if let Some(name) = &asked.setup.asked.node_name {
        return Ok(name.clone());
    }
    let source = asked.network.as_ref().and_then(|_| NameSource::from_environment(|name| std::env::var(name).ok()).ok());
    match source {
        Some(source) => {
            timeout(PATIENCE, source.node_name(client)).await.map_err(|_| silent().to_string())?.map_err(|error| error.to_string())
        }
        None => Ok(asked.setup.asked.host_name.clone()),
    }
}
