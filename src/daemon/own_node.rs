//! Waits for this node's Node before the parts start [kube-proxy 1.5].

use std::time::Duration;

use kube::Client;

use crate::cluster::Node;
use crate::error_text::error_text;
use crate::kubernetes::api;
use crate::observe::readiness::{Part, Readiness};
use crate::proxy::rules::inputs::Inputs;
use crate::proxy::settings::{DetectLocal, NodePortAddresses};

use super::setup::Setup;

/// Pause between two requests.
const PAUSE: Duration = Duration::from_secs(1);
/// Of consecutive errors, the first and then every 30th is logged.
const WARN_EVERY: u32 = 30;
/// Requests until the Node has an IP.
const IP_TRIES: u32 = 30;
/// Further requests until the Node has a pod CIDR.
const POD_CIDR_TRIES: u32 = 300;

/// Facts that decide what to wait for.
#[derive(Clone, Copy)]
pub(crate) struct WaitConditions {
    /// This host can program both families.
    pub any_family: bool,
    /// Another program assigns this node's pod CIDR.
    pub assigned: bool,
    /// The pod network runs, too. It has to start without a pod CIDR: if the node has lost its pod CIDR, subnet.env must be deleted.
    pub pod_network: bool,
}

/// Gets this node's Node; `None` if there is none. Waits for an IP if the family or the addresses of NodePorts follow from it, and for a pod
/// CIDR if local traffic is detected by it and another program assigns it. An IP that does not appear is only logged.
///
/// # Errors
/// The pod CIDR did not appear.
pub(crate) async fn wait(
    client: &Client,
    setup: &Setup,
    inputs: &Inputs,
    WaitConditions { any_family, assigned, pod_network }: WaitConditions,
    readiness: &Readiness,
) -> anyhow::Result<Option<Node>> {
    let settings = &inputs.settings;
    let needs_pod_cidr = assigned && settings.detect_local == DetectLocal::NodeCidr;
    let needs_ip = !any_family || needs_pod_cidr || settings.node_port_addresses == NodePortAddresses::Primary;
    let waits_for_ip = needs_ip && setup.effective.proxy.bind_address.is_none();
    let name = &inputs.node_name;
    let poll = NodePoll { client, name, readiness };
    let mut node = poll.until(if waits_for_ip { IP_TRIES } else { 1 }, true, |node| !node.addresses.is_empty()).await;
    if waits_for_ip && node.as_ref().is_none_or(|node| node.addresses.is_empty()) {
        tracing::error!("can't determine this node's IP: {}", if node.is_some() { "its Node shows none" } else { "it has no Node" });
    }
    if needs_pod_cidr && !pod_network && node.as_ref().is_none_or(|node| node.pod_cidrs.is_empty()) {
        if let Some(missing) = inputs.missing() {
            tracing::warn!("{missing}");
        }
        readiness.not_ready(Part::Start, inputs.missing().unwrap_or_default());
        node = poll.until(POD_CIDR_TRIES, false, |node| !node.pod_cidrs.is_empty()).await;
        anyhow::ensure!(node.is_some(), "timeout waiting for node \"{name}\" to exist");
        let found = node.as_ref().is_some_and(|node| !node.pod_cidrs.is_empty());
        anyhow::ensure!(found, "timeout waiting for PodCIDR allocation on node \"{name}\"");
    }
    Ok(node)
}

/// Gets the Node repeatedly.
struct NodePoll<'a> {
    client: &'a Client,
    name: &'a str,
    readiness: &'a Readiness,
}

impl NodePoll<'_> {
    /// Returns the Node once it is complete, or as it is after the last of so many requests. With `errors_count` off, failed requests are
    /// repeated without a limit: an error of the API server says nothing about the Node.
    async fn until(&self, tries: u32, errors_count: bool, complete: impl Fn(&Node) -> bool) -> Option<Node> {
        let (mut last, mut left, mut errors) = (None, tries, 0_u32);
        loop {
            match api::node(self.client, self.name).await {
                Ok(node) => {
                    last = node;
                    left -= 1;
                }
                Err(error) => {
                    let error = format!("no Node is known yet: {}", error_text(error.as_ref()));
                    self.readiness.not_ready(Part::Start, &error);
                    if errors.is_multiple_of(WARN_EVERY) {
                        tracing::warn!("{error}, next attempt in {} s", PAUSE.as_secs());
                    }
                    errors += 1;
                    left -= u32::from(errors_count);
                }
            }
            if last.as_ref().is_some_and(&complete) || left == 0 {
                return last;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
