//! What happens when a subnet is not this node's any more.
//!
//! The order of the steps: subnet.env is deleted first, so that the CNI plugin gives no pod an address that another node may have; then
//! addresses, links and routes change; subnet.env with a new subnet is written last. A crash between two steps leaves a node without
//! subnet.env, and the next start goes on from what the kernel holds.

use ipnetwork::IpNetwork;

use super::node_writes::Condition;
use crate::cluster::families::PerFamily;
use crate::kubernetes::events::{Event, Regarding};
use crate::netlink::NetworkKernel;
use crate::netlink::entry::Live;
use crate::netlink::link::LinkNames;
use crate::pod_network::allocation::overlap;
use crate::pod_network::bridge;
use crate::pod_network::desired::DesiredEntries;
use crate::pod_network::net_conf::NetConf;
use crate::pod_network::node::{BadPodCidrs, NetworkNode};
use crate::pod_network::own_lease::OwnLease;
use crate::pod_network::plan;

use super::error::Unsettled;
use super::state::NetworkLoop;
use super::subnet_file;
use super::subnets::{Lost, Source, Subnets};

impl<K: NetworkKernel> NetworkLoop<K> {
    /// The subnets that this node uses: those of this process, else those that subnet.env names.
    pub(super) fn in_use(&self) -> PerFamily<IpNetwork> {
        match &self.known {
            Some(known) => known.own.subnets,
            None => subnet_file::subnets(&self.asked.settings.subnet_file),
        }
    }

    /// This node's Node was deleted, or there is none of this name.
    pub(super) const fn own_node_is_missing(&self) -> bool {
        self.complete && (self.own_node_is_gone || self.own_node.is_none())
    }

    /// The Node was registered anew while this program runs, and its podCIDR is not assigned yet. The former subnet may be this node's
    /// still: it stays until another node has it.
    pub(super) fn awaits_new_pod_cidr(&self, node: &NetworkNode) -> bool {
        let is_new = self.known.as_ref().is_some_and(|known| known.node_uid != node.uid);
        is_new && matches!(self.asked.source, Source::Node) && matches!(node.pod_cidrs, Err(BadPodCidrs::Unassigned))
    }

    /// Finds the subnets of this node that another Node has as podCIDR now. `None` if there are none.
    pub(super) fn taken_by_other_node(&self, conf: &NetConf) -> Option<Lost> {
        if !matches!(self.asked.source, Source::Node) {
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
                why = Some(format!("{own} {}, and Node {} has its podCIDR {subnet} now", self.asked.node, other.name));
            }
        }
        Some(Lost { left, of_others, condition: Condition::down("SubnetLost", why?) })
    }

    /// Deletes what a node has in the kernel and in subnet.env that has no Node. Gives the reason.
    pub(super) async fn leave(&mut self, lost: Lost, conf: &NetConf) -> Result<Unsettled, Unsettled> {
        let live = self.dump().await;
        self.disown(&Subnets::Lost(lost.clone()), conf, live.as_ref().unwrap_or(&Live::default()));
        self.withdraw(&lost, conf, live?).await?;
        Ok(Unsettled::Lost(lost.condition))
    }

    /// Deletes subnet.env if it names a subnet that is not this node's any more, and reports subnets that are gone.
    pub(super) fn disown(&mut self, subnets: &Subnets, conf: &NetConf, live: &Live) {
        let Some(ours) = subnets.ours() else { return };
        let is_ours = |(family, subnet): (_, IpNetwork)| ours.get(family) == Some(&subnet) || conf.networks.get(family).is_none();
        let mut gone: Vec<IpNetwork> =
            self.in_use().iter().map(|(family, subnet)| (family, *subnet)).filter(|of| !is_ours(*of)).map(|of| of.1).collect();
        // After a crash only the bridge may tell.
        let own = OwnLease { subnets: ours, ..OwnLease::default() };
        gone.extend(bridge::former_subnets(&live.links, &own, &conf.networks));
        match subnet_file::disown(&self.asked.settings.subnet_file, |family, subnet| is_ours((family, subnet))) {
            Ok(None) => {}
            Ok(Some(named)) => {
                tracing::warn!(
                    "pod network: {} is deleted: it names a subnet that is not this node's any more",
                    self.asked.settings.subnet_file.display()
                );
                self.publisher.withdraw_file();
                gone.extend(named.iter().map(|(family, subnet)| (family, *subnet)).filter(|of| !is_ours(*of)).map(|of| of.1));
            }
            Err(error) => {
                self.publisher.withdraw_file();
                self.report.complain("subnet-file", Some(&error));
            }
        }
        gone.sort_unstable();
        gone.dedup();
        self.report_gone(&gone, subnets);
    }

    fn report_gone(&mut self, gone: &[IpNetwork], subnets: &Subnets) {
        let former = join(gone.iter().copied());
        let cure = format!(
            "Other nodes do not reach pods with addresses of {former}: delete these pods, so that they are made again (kubectl get pods -A -o \
             wide --field-selector spec.nodeName={})",
            self.asked.node
        );
        let (reason, text) = match subnets {
            _ if gone.is_empty() => return self.report.gone(None),
            Subnets::Lost(Lost { condition, .. }) => {
                let text = format!("this node lost its subnet {former}, and no pod can start: {}. {cure}", condition.message);
                ("SubnetWithdrawn", text)
            }
            Subnets::Known(now) => {
                let now = join(now.iter().map(|(_, subnet)| *subnet));
                ("SubnetChanged", format!("the subnet of this node changed from {former} to {now}. {cure}"))
            }
            Subnets::Awaited(_) => return,
        };
        self.report.gone(Some(Event { regarding: Regarding::Node, reason, action: "SetUpPodNetwork", warning: true, note: text }));
    }

    /// Deletes links and routes of a node that has no subnet left, where the rest of a round cannot be done.
    pub(super) async fn withdraw(&mut self, lost: &Lost, conf: &NetConf, live: Live) -> Result<(), Unsettled> {
        if let Some(mut known) = self.known.take() {
            // Rules and annotations follow, too.
            known.own.subnets = lost.left;
            self.publisher.is_final = true;
            self.publish(&known, false);
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

    /// Subnets of other nodes: those that are known by their leases, and the podCIDRs of their Nodes.
    pub(super) fn subnets_of_others(&self, leased: &[IpNetwork]) -> Vec<IpNetwork> {
        let of_nodes = self.nodes.values().filter_map(|node| node.pod_cidrs.as_ref().ok());
        leased.iter().copied().chain(of_nodes.flat_map(|cidrs| cidrs.iter().map(|(_, cidr)| *cidr))).collect()
    }
}

fn join(subnets: impl Iterator<Item = IpNetwork>) -> String {
    subnets.map(|subnet| subnet.to_string()).collect::<Vec<_>>().join(" and ")
}
