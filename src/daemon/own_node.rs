//! What has to be known of this node's Node before anything starts (spec section 1.5).

use std::time::Duration;

use kube::Client;

use crate::cluster::Node;
use crate::error_text::error_text;
use crate::kubernetes::api;
use crate::observe::readiness::{Part, Readiness};
use crate::proxy::rules::inputs::Inputs;
use crate::proxy::settings::{DetectLocal, NodePortAddresses};

use super::setup::Setup;

const PAUSE: Duration = Duration::from_secs(1);
/// Of errors in a row, one in this many is logged.
const WARN_EVERY: u32 = 30;
/// How often the Node is looked at for an IP.
const IP_TRIES: u32 = 30;
/// How often it is looked at for a pod CIDR, after that.
const POD_CIDR_TRIES: u32 = 300;

/// What else the start knows.
#[derive(Clone, Copy)]
pub(crate) struct Awaited {
    /// This host can program both families.
    pub any_family: bool,
    /// Something else assigns this node's pod CIDR.
    pub assigned: bool,
    /// The pod network runs, too. It has to start without a pod CIDR: if the node has lost it, subnet.env must go.
    pub pod_network: bool,
}

/// The Node, where it is there. It is waited for where something hangs on it: for an IP if that decides the family or where NodePorts
/// answer, for a pod CIDR if that tells local traffic and somebody else assigns it. An IP that does not come is only told of.
///
/// # Errors
/// The pod CIDR did not come.
pub(crate) async fn wait(
    client: &Client,
    setup: &Setup,
    inputs: &Inputs,
    Awaited { any_family, assigned, pod_network }: Awaited,
    readiness: &Readiness,
) -> anyhow::Result<Option<Node>> {
    let settings = &inputs.settings;
    let by_pod_cidr = assigned && settings.detect_local == DetectLocal::NodeCidr;
    let hangs_on_ip = !any_family || by_pod_cidr || settings.node_port_addresses == NodePortAddresses::Primary;
    let patient = hangs_on_ip && setup.effective.proxy.bind_address.is_none();
    let name = &inputs.node_name;
    let looks = Looks { client, name, readiness };
    let mut node = looks.until(if patient { IP_TRIES } else { 1 }, true, |node| !node.addresses.is_empty()).await;
    if patient && node.as_ref().is_none_or(|node| node.addresses.is_empty()) {
        tracing::error!("can't determine this node's IP: {}", if node.is_some() { "its Node shows none" } else { "it has no Node" });
    }
    if by_pod_cidr && !pod_network && node.as_ref().is_none_or(|node| node.pod_cidrs.is_empty()) {
        if let Some(missing) = inputs.missing() {
            tracing::warn!("{missing}");
        }
        readiness.not_ready(Part::Start, inputs.missing().unwrap_or_default());
        node = looks.until(POD_CIDR_TRIES, false, |node| !node.pod_cidrs.is_empty()).await;
        anyhow::ensure!(node.is_some(), "timeout waiting for node \"{name}\" to exist");
        let found = node.as_ref().is_some_and(|node| !node.pod_cidrs.is_empty());
        anyhow::ensure!(found, "timeout waiting for PodCIDR allocation on node \"{name}\"");
    }
    Ok(node)
}

/// Looks at the Node, again and again.
struct Looks<'a> {
    client: &'a Client,
    name: &'a str,
    readiness: &'a Readiness,
}

impl Looks<'_> {
    /// The Node as it is when it is complete, or after so many looks at it. If errors do not count, an API server that is down is waited
    /// for: it says nothing about the Node.
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
