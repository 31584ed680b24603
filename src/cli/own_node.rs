//! What has to be known of this node's Node before anything starts (spec section 1.5).

use std::time::Duration;

use kube::Client;

use crate::cluster::Node;
use crate::config::settings::{DetectLocal, NodePortAddresses};
use crate::rules::inputs::Inputs;
use crate::source::api;

use super::setup::Setup;

const PAUSE: Duration = Duration::from_secs(1);
/// How often the Node is looked at for an IP.
const IP_TRIES: u32 = 30;
/// How often it is looked at for a pod CIDR, after that.
const POD_CIDR_TRIES: u32 = 300;

/// The Node, where it is there. It is waited for where something hangs on it: for an IP if that decides the family or where NodePorts
/// answer, for a pod CIDR if that tells local traffic and somebody else assigns it. An IP that does not come is only told of.
///
/// # Errors
/// The pod CIDR did not come.
pub(super) async fn wait(
    client: &Client,
    setup: &Setup,
    inputs: &Inputs,
    any_family: bool,
    assigned: bool,
) -> anyhow::Result<Option<Node>> {
    let settings = &inputs.settings;
    let by_pod_cidr = assigned && settings.detect_local == DetectLocal::NodeCidr;
    let hangs_on_ip = !any_family || by_pod_cidr || settings.node_port_addresses == NodePortAddresses::Primary;
    let patient = hangs_on_ip && setup.effective.proxy.bind_address.is_none();
    let name = &inputs.node_name;
    let mut node = look(client, name, if patient { IP_TRIES } else { 1 }, |node| !node.addresses.is_empty()).await;
    if patient && node.as_ref().is_none_or(|node| node.addresses.is_empty()) {
        tracing::error!("can't determine this node's IP: {}", if node.is_some() { "its Node shows none" } else { "it has no Node" });
    }
    if by_pod_cidr && node.as_ref().is_none_or(|node| node.pod_cidrs.is_empty()) {
        if let Some(missing) = inputs.missing() {
            tracing::warn!("{missing}");
        }
        node = look(client, name, POD_CIDR_TRIES, |node| !node.pod_cidrs.is_empty()).await;
        anyhow::ensure!(node.is_some(), "timeout waiting for node \"{name}\" to exist");
        let found = node.as_ref().is_some_and(|node| !node.pod_cidrs.is_empty());
        anyhow::ensure!(found, "timeout waiting for PodCIDR allocation on node \"{name}\"");
    }
    Ok(node)
}

/// The Node as it is when it is complete, or after so many looks at it.
async fn look(client: &Client, name: &str, tries: u32, complete: impl Fn(&Node) -> bool) -> Option<Node> {
    let mut last = None;
    for left in (0..tries).rev() {
        match api::node(client, name).await {
            Ok(node) => last = node,
            Err(error) if left % 10 == 0 => tracing::warn!("{error:#}"),
            Err(_) => {}
        }
        if last.as_ref().is_some_and(&complete) || left == 0 {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    last
}
