//! Checks of the API server: connection, permissions and this node's Node.

use std::time::Duration;

use anyhow::anyhow;
use futures::future::join_all;
use kube::Client;
use tokio::time::timeout;

use crate::cluster::Node;
use crate::error_text::error_text;
use crate::kubernetes::api;
use crate::kubernetes::permission::{ApiUses, NeededPermission, is_allowed, needed};
use crate::pod_network::sync::node_name::NodeNameSource;
use crate::preflight::cluster::{self, NodeNeeds};
use crate::preflight::{Check, CheckGroup};
use crate::proxy::settings::DetectLocal;

use super::run_setup::RunSetup;
use crate::daemon::network_setup::NetworkSetup;

const PART: CheckGroup = CheckGroup::Cluster;
/// Time limit for an answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The answers of the API server.
#[derive(Default)]
pub(super) struct Answers {
    /// This node's Node.
    pub node: Option<Node>,
    /// The results of the checks.
    pub checks: Vec<Check>,
}

/// Asks the API server.
pub(super) async fn read(run: &RunSetup<'_>) -> Answers {
    if run.flags.manifests.is_some() {
        return Answers { checks: vec![Check::not_checked(PART, "API server", "none is needed with --manifests")], node: None };
    }
    let (client, version) = match connect(run).await {
        Ok(connected) => connected,
        Err(error) => {
            let cure = "see whether the address is right (--kubeconfig, --master, KUBERNETES_SERVICE_HOST) and reachable from this node without \
                        any Service";
            let mut checks = vec![Check::failed(PART, "API server", error_text(error.as_ref()), cure)];
            checks.extend(["permissions", "Node"].map(|name| Check::not_checked(PART, name, "the API server does not answer")));
            return Answers { checks, node: None };
        }
    };
    let mut checks = vec![Check::ok(PART, "API server", version), permissions(&client, run).await];
    let name = match node_name(&client, run).await {
        Ok(name) => name,
        Err(why) => {
            checks.push(Check::failed(PART, "Node", why, ""));
            return Answers { checks, node: None };
        }
    };
    let found = timeout(TIMEOUT, api::node(&client, &name)).await;
    let node = match found.map_err(|_| no_answer()).flatten() {
        Ok(node) => {
            let wanted = NodeNeeds {
                by_pod_cidr: run.flags.network.proxy && run.setup.requested.settings.detect_local == DetectLocal::NodeCidr,
                subnet: run.network.is_some(),
                leased: run.network.as_ref().is_some_and(NetworkSetup::assigns_subnets),
            };
            checks.extend(cluster::node(&name, node.as_ref(), wanted));
            node
        }
        // Without the service proxy, the permission to get one Node by name is not needed: the pod network lists Nodes.
        Err(error) => {
            checks.push(Check::not_checked(PART, "Node", error_text(error.as_ref())));
            None
        }
    };
    Answers { node, checks }
}

/// The error of a request without an answer.
fn no_answer() -> anyhow::Error {
    anyhow!("no answer within {} s", TIMEOUT.as_secs())
}

/// Connects to the API server, and gets its version. If the kubeconfig names a credential plugin, the first request also waits for the plugin.
async fn connect(run: &RunSetup<'_>) -> anyhow::Result<(Client, String)> {
    let connection = &run.setup.connection;
    let (url, client) = (connection.url()?, connection.client()?);
    let limit = connection.plugin_time_limit()?.map_or(TIMEOUT, |plugin| plugin + TIMEOUT);
    let version = timeout(limit, client.apiserver_version()).await.map_err(|_| no_answer());
    let version = version.and_then(|answer| answer.map_err(|error| anyhow!("{}", error_text(&error))));
    match version {
        Ok(version) => Ok((client, format!("{url} answers, version {}", version.git_version))),
        Err(error) => Err(error.context(format!("{url} does not answer"))),
    }
}

async fn permissions(client: &Client, run: &RunSetup<'_>) -> Check {
    let leases = run.network.as_ref().is_some_and(NetworkSetup::assigns_subnets);
    let needed = needed(ApiUses { proxy: run.flags.network.proxy, pod_network: run.network.is_some(), leases });
    let answers = timeout(TIMEOUT, join_all(needed.iter().map(|needed| is_allowed(client, needed)))).await;
    let Ok(answers) = answers else { return Check::not_checked(PART, "permissions", no_answer().to_string()) };
    let mut missing: Vec<NeededPermission> = Vec::new();
    for (needed, answer) in needed.iter().zip(answers) {
        match answer {
            Ok(true) => {}
            Ok(false) => missing.push(*needed),
            Err(error) => return Check::not_checked(PART, "permissions", format!("the server does not say: {}", error_text(&error))),
        }
    }
    cluster::permissions(&needed, &missing)
}

/// The name of this node's Node, found as the daemon finds it.
async fn node_name(client: &Client, run: &RunSetup<'_>) -> Result<String, String> {
    if let Some(name) = &run.setup.requested.node_name {
        return Ok(name.clone());
    }
    let source = run.network.as_ref().and_then(|_| NodeNameSource::from_environment(|name| std::env::var(name).ok()).ok());
    match source {
        Some(source) => {
            timeout(TIMEOUT, source.node_name(client)).await.map_err(|_| no_answer().to_string())?.map_err(|error| error.to_string())
        }
        None => Ok(run.setup.requested.host_name.clone()),
    }
}
