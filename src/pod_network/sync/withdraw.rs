//! Withdraws a subnet that this node has lost.
//!
//! subnet.env is deleted first, so that the CNI plugin gives no pod an address of another node. Then addresses, links and routes are changed.
//! subnet.env with a new subnet is written last. A crash in between leaves a node without subnet.env; the next start continues from the
//! live state.

use ipnetwork::IpNetwork;

use super::node_writes::NodeCondition;
use crate::cluster::families::PerFamily;
use crate::cluster::ip::overlap;
use crate::kubernetes::events::{Event, Regarding};
use crate::netlink::NetworkKernel;
use crate::netlink::entry::Live;
use crate::netlink::link::LinkNames;
use crate::pod_network::bridge;
use crate::pod_network::desired::DesiredEntries;
use crate::pod_network::net_conf::NetConf;
use crate::pod_network::node::{BadPodCidrs, NetworkNode};
use crate::pod_network::own_lease::OwnLease;
use crate::pod_network::plan;

use super::error::PodNetworkError;
use super::state::NetworkLoop;
use super::subnet_file;
use super::subnets::{LostSubnets, SubnetProvider, SubnetStatus};

impl<K: NetworkKernel> NetworkLoop<K> {
    /// The subnets that this node uses: the acknowledged ones, or those in subnet.env after a start.
    pub(super) fn in_use(&self) -> PerFamily<IpNetwork> {
        match &self.acknowledged {
            Some(acknowledged) => acknowledged.own.subnets,
            None => subnet_file::subnets(&self.inputs.settings.subnet_file),
        }
    }

    /// Returns true if this node's Node does not exist.
    pub(super) const fn own_node_is_missing(&self) -> bool {
        self.complete && (self.own_node_is_deleted || self.own_node.is_none())
    }

    /// Returns true if the Node was registered anew while this program runs and has no podCIDR yet. This node keeps the former subnet until another
    /// node has it.
    pub(super) fn awaits_new_pod_cidr(&self, node: &NetworkNode) -> bool {
        let is_new = self.acknowledged.as_ref().is_some_and(|acknowledged| acknowledged.node_uid != node.uid);
        is_new && matches!(self.inputs.source, SubnetProvider::Node) && matches!(node.pod_cidrs, Err(BadPodCidrs::Unassigned))
    }

    /// Finds the subnets of this node that another Node has as podCIDR now. `None` if there are none.
    pub(super) fn taken_by_other_node(&self, conf: &NetConf) -> Option<LostSubnets> {
        if !matches!(self.inputs.source, SubnetProvider::Node) {
            return None;
        }
        let in_use = self.in_use();
        let own = if self.own_node_is_missing() { "there is no Node" } else { "no podCIDR is assigned to the new Node" };
        let (mut left, mut of_others, mut why) = (in_use, Vec::new(), None);
        for (family, subnet) in in_use.iter().filter(|(family, _)| conf.networks.get(*family).is_some()) {
            let has_it = |node: &&NetworkNode| {
                node.pod_cidrs.as_ref().is_ok_and(|cidrs| cidrs.get(family).is_some_and(|cidr| overlap(*cidr, *subnet)))
            };
            if let Some(other) = self.nodes.values().map(|node| &**node).find(has_it) {
                left.set(family, None);
                of_others.push(*subnet);
                why = Some(format!("{own} {}, and Node {} has its podCIDR {subnet} now", self.inputs.node, other.name));
            }
        }
        Some(LostSubnets { left, of_others, condition: NodeCondition::down("SubnetLost", why?) })
    }

    /// Deletes links, routes and subnet.env of a node without Node whose subnet another node has. Gives the error to report.
    pub(super) async fn leave(&mut self, lost: LostSubnets, conf: &NetConf) -> Result<PodNetworkError, PodNetworkError> {
        let live = self.dump().await;
        self.release_lost_subnets(&SubnetStatus::Lost(lost.clone()), conf, live.as_ref().unwrap_or(&Live::default()));
        self.withdraw(&lost, conf, live?).await?;
        Ok(PodNetworkError::Lost(lost.condition))
    }

    /// Deletes subnet.env if it names a lost subnet, and reports all lost subnets.
    pub(super) fn release_lost_subnets(&mut self, subnets: &SubnetStatus, conf: &NetConf, live: &Live) {
        let Some(ours) = subnets.ours() else { return };
        let is_ours = |(family, subnet): (_, IpNetwork)| ours.get(family) == Some(&subnet) || conf.networks.get(family).is_none();
        let mut lost: Vec<IpNetwork> =
            self.in_use().iter().map(|(family, subnet)| (family, *subnet)).filter(|of| !is_ours(*of)).map(|of| of.1).collect();
        // After a crash, only the bridge may show a former subnet.
        let own = OwnLease { subnets: ours, ..OwnLease::default() };
        lost.extend(bridge::former_subnets(&live.links, &own, &conf.networks));
        match subnet_file::delete_if_stale(&self.inputs.settings.subnet_file, |family, subnet| is_ours((family, subnet))) {
            Ok(None) => {}
            Ok(Some(named)) => {
                tracing::warn!(
                    "pod network: {} is deleted: it names a subnet that this node has lost",
                    self.inputs.settings.subnet_file.display()
                );
                self.publisher.withdraw_file();
                lost.extend(named.iter().map(|(family, subnet)| (family, *subnet)).filter(|of| !is_ours(*of)).map(|of| of.1));
            }
            Err(error) => {
                self.publisher.withdraw_file();
                self.report.warn("subnet-file", Some(&error));
            }
        }
        lost.sort_unstable();
        lost.dedup();
        self.report_lost(&lost, subnets);
    }

    /// Reports that the subnet was withdrawn or has changed.
    fn report_lost(&mut self, lost: &[IpNetwork], subnets: &SubnetStatus) {
        let former = join(lost.iter().copied());
        let cure = format!(
            "Other nodes do not reach pods with addresses of {former}: delete these pods, so that they are made again (kubectl get pods -A -o \
             wide --field-selector spec.nodeName={})",
            self.inputs.node
        );
        let (reason, text) = match subnets {
            _ if lost.is_empty() => return self.report.subnets_lost(None),
            SubnetStatus::Lost(LostSubnets { condition, .. }) => {
                let text = format!("this node lost its subnet {former}, and no pod can start: {}. {cure}", condition.message);
                ("SubnetWithdrawn", text)
            }
            SubnetStatus::Assigned(now) => {
                let now = join(now.iter().map(|(_, subnet)| *subnet));
                ("SubnetChanged", format!("the subnet of this node changed from {former} to {now}. {cure}"))
            }
            SubnetStatus::Pending(_) => return,
        };
        self.report.subnets_lost(Some(Event { regarding: Regarding::Node, reason, action: "SetUpPodNetwork", warning: true, note: text }));
    }

    /// Deletes links and routes of a node that has no subnet left, if the rest of the reconcile is not possible.
    pub(super) async fn withdraw(&mut self, lost: &LostSubnets, conf: &NetConf, live: Live) -> Result<(), PodNetworkError> {
        if let Some(mut acknowledged) = self.acknowledged.take() {
            // Publish the lost subnets, so that rules and annotations are withdrawn, too.
            acknowledged.own.subnets = lost.left;
            self.publisher.is_final = true;
            self.publish(&acknowledged, false);
        }
        if !lost.left.is_empty() {
            return Ok(());
        }
        let mut changes = plan::links(&[], &conf.networks, &live, &self.offloads).changes;
        changes.extend(bridge::stale_addresses(
            &live.links,
            &OwnLease::default(),
            &conf.networks,
            &self.subnets_of_others(&lost.of_others),
        ));
        if !changes.is_empty() {
            self.change_links(changes).await?;
        }
        let live = self.dump().await?;
        let groups = plan::entries(&DesiredEntries::default(), &PerFamily::default(), &live).groups;
        self.write(groups, &LinkNames::new(&live.links)).await.map(drop)
    }

    /// Subnets of other nodes: the given leased ones, and the podCIDRs of their Nodes.
    pub(super) fn subnets_of_others(&self, leased: &[IpNetwork]) -> Vec<IpNetwork> {
        let of_nodes = self.nodes.values().filter_map(|node| node.pod_cidrs.as_ref().ok());
        leased.iter().copied().chain(of_nodes.flat_map(|cidrs| cidrs.iter().map(|(_, cidr)| *cidr))).collect()
    }
}

fn join(subnets: impl Iterator<Item = IpNetwork>) -> String {
    subnets.map(|subnet| subnet.to_string()).collect::<Vec<_>>().join(" and ")
}
