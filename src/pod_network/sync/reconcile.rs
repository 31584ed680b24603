//! The full reconcile: dumps the kernel, plans the steps to the desired state, and applies them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use crate::cluster::Family;
use crate::cluster::families::PerFamily;
use crate::error_text::task_failure;
use crate::netlink::entry::{LinkChange, Live, OUR_PROTOCOL};
use crate::netlink::link::LinkNames;
use crate::netlink::{NetlinkError, NetworkKernel};
use crate::observe::readiness::Part;
use crate::pod_network::backoff::doubling;
use crate::pod_network::bridge;
use crate::pod_network::desired::{DesiredEntries, DesiredInputs, DesiredLink};
use crate::pod_network::interface::{self, ExternalInterface, InterfaceOptions};
use crate::pod_network::mtu::{Mtu, compute_mtu};
use crate::pod_network::net_conf::{Backend, NetConf};
use crate::pod_network::node::NetworkNode;
use crate::pod_network::own_lease::{OwnLease, choose_mac};
use crate::pod_network::peers::{LiveSubnets, check_all};
use crate::pod_network::plan::{self, EntryGroup};
use crate::pod_network::vxlan::link_name;

use super::error::PodNetworkError;
use super::node_writes::NodeCondition;
use super::report::ChangeCounts;
use super::state::{AcknowledgedNetwork, NetworkLoop, Retry};
use super::subnets::SubnetStatus;

/// Links are dumped again after a change. If they still differ after this many passes, another program keeps changing them.
const PASSES: usize = 4;

/// The first pause before a peer's entries are written again. It doubles up to the longest.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

impl<K: NetworkKernel> NetworkLoop<K> {
    /// Brings the kernel to the desired state as far as possible. Gives the first error; steps that do not depend on it are applied nevertheless.
    pub(super) async fn reconcile(&mut self) -> Result<(), PodNetworkError> {
        let conf = self.inputs.conf.borrow().clone();
        let since = self.since.take();
        self.changed.clear();
        let taken = if self.own_node_is_missing() { self.taken_by_other_node(&conf) } else { None };
        let Some(node) = self.own_node.clone() else {
            let Some(lost) = taken else { return Err(PodNetworkError::NoNode(self.inputs.node.clone())) };
            return Err(self.leave(lost, &conf).await?);
        };
        let status = taken.map_or_else(|| self.subnet_status(&node, &conf), SubnetStatus::Lost);
        let live = self.dump().await;
        // Do this first, so that a later error does not keep subnet.env with a lost subnet.
        self.release_lost_subnets(&status, &conf, live.as_ref().unwrap_or(&Live::default()));
        let (subnets, missing, of_others) = match &status {
            SubnetStatus::Assigned(subnets) => (*subnets, None, &[][..]),
            // The subnets stay in use until there is an answer.
            SubnetStatus::Pending(condition) => match &self.acknowledged {
                Some(acknowledged) => (acknowledged.own.subnets, Some(PodNetworkError::Subnets(condition.clone())), &[][..]),
                None => return Err(PodNetworkError::Subnets(condition.clone())),
            },
            SubnetStatus::Lost(lost) => (lost.left, Some(PodNetworkError::Lost(lost.condition.clone())), &lost.of_others[..]),
        };
        if missing.is_none() {
            self.readiness.ready(Part::Subnet);
        }
        let live = live?;
        let (own, external, mtu) = match (self.own_lease(&node, &conf, subnets, &live).await, &status) {
            (Ok(found), _) => found,
            (Err(_), SubnetStatus::Lost(lost)) => {
                self.withdraw(lost, &conf, live).await?;
                return Err(PodNetworkError::Lost(lost.condition.clone()));
            }
            (Err(error), _) => return Err(error),
        };
        self.readiness.ready(Part::Interface);
        let of_others = self.subnets_of_others(of_others);
        let settings = self.inputs.settings.clone();
        let inputs = DesiredInputs { conf: &conf, settings: &settings, own: &own, external: &external, mtu: &mtu };

        let desired = inputs.links();
        let (live, error) = self.apply_links(&inputs, &desired, &of_others, live).await?;
        let node_uid = match (&status, self.acknowledged.as_ref()) {
            (SubnetStatus::Pending(_), Some(before)) => before.node_uid.clone(),
            _ => node.uid.clone(),
        };
        self.apply_entries(&inputs, desired, &live, node_uid).await?;
        if let Some(since) = since {
            self.report.metrics.network().programmed_after(since.elapsed());
        }
        // If a subnet is lost, other errors follow from that.
        if let Some(error) = missing.or(error) {
            return Err(error);
        }
        self.readiness.ready(Part::Links);
        self.readiness.ready(Part::Peers);
        Ok(())
    }

    /// Brings the entries of the peers to the desired state, and records what the kernel acknowledged.
    async fn apply_entries(
        &mut self,
        inputs: &DesiredInputs<'_>,
        desired: Vec<DesiredLink>,
        live: &Live,
        node_uid: Box<str>,
    ) -> Result<(), PodNetworkError> {
        let links = plan::our_links(&desired, live);
        let peers = check_all(self.nodes.values().map(|node| &**node), inputs.own, inputs.conf, &LiveSubnets::of_live(live));
        let entries = inputs.entries(&peers, &links, &live.routes);
        let names = LinkNames::new(&live.links);
        let mut plan = plan::entries(&entries, &links, live);
        self.report.refused(&[&peers.refused[..], &entries.refused].concat());
        let diverted = self.handle_foreign_routes(&mut plan, &names);

        let before = self.acknowledged.take().filter(|acknowledged| acknowledged.desired == desired && acknowledged.links == links);
        let repaired = before.map(|before| count_repairs(&before, &entries, &plan.groups)).unwrap_or_default();
        let mut failed = self.write(plan.groups, &names).await?;
        failed.extend(diverted);
        self.report.repaired(&repaired);
        self.report.metrics.network().peers(entries.peers.len(), entries.peers.keys().filter(|node| !failed.contains(node)).count());
        let mut written = entries.peers;
        written.retain(|node, _| !failed.contains(node));
        let routes = live.routes.iter().filter(|route| route.protocol != OUR_PROTOCOL).copied().collect();
        let (own, external, mtu) = (inputs.own.clone(), inputs.external.clone(), *inputs.mtu);
        let off_link = entries.refused;
        self.acknowledged =
            Some(AcknowledgedNetwork { own, node_uid, external, mtu, desired, links, names, routes, peers, off_link, entries: written });
        Ok(())
    }

    /// The status of this node's subnets. A Node that was registered anew keeps its subnet until another node has it.
    fn subnet_status(&self, node: &NetworkNode, conf: &NetConf) -> SubnetStatus {
        if !self.awaits_new_pod_cidr(node) {
            return self.inputs.source.status(node, conf, &self.in_use());
        }
        let pending = || SubnetStatus::Pending(NodeCondition::pod_cidr_missing(&node.name));
        self.taken_by_other_node(conf).map_or_else(pending, SubnetStatus::Lost)
    }

    /// This node's own lease, the external interface, and the MTUs.
    async fn own_lease(
        &mut self,
        node: &NetworkNode,
        conf: &NetConf,
        subnets: PerFamily<IpNetwork>,
        live: &Live,
    ) -> Result<(OwnLease, ExternalInterface, Mtu), PodNetworkError> {
        let options = self.interface_options(node).await?;
        let (external, mtu) = self.external(&options, node, conf, live)?;
        Ok((own(node, conf, subnets, &external, live)?, external, mtu))
    }

    /// Dumps the kernel's links, routes, neighbours and FDB entries.
    pub(super) async fn dump(&mut self) -> Result<Live, PodNetworkError> {
        let kernel = Arc::clone(&self.kernel);
        let live = blocking(move || kernel.dump()).await?;
        live.inspect_err(|error| self.report.failed(error)).map_err(PodNetworkError::Kernel)
    }

    /// The options for the external interface, from flags and the Node's annotations, with the kernel's route for `--iface-can-reach`.
    async fn interface_options(&mut self, node: &NetworkNode) -> Result<InterfaceOptions, PodNetworkError> {
        let options = self.inputs.settings.interface.clone();
        let mut options = options.with_annotations(&node.annotations).map_err(|bad| PodNetworkError::Annotation(node.name.clone(), bad))?;
        if let Some(ip) = options.can_reach {
            let kernel = Arc::clone(&self.kernel);
            let route = blocking(move || kernel.route_to(ip)).await?;
            options.reached = Some(route.map_err(|error| error.cause.to_string()));
        }
        Ok(options)
    }

    /// Selects the external interface and computes the MTUs.
    fn external(
        &mut self,
        options: &InterfaceOptions,
        node: &NetworkNode,
        conf: &NetConf,
        live: &Live,
    ) -> Result<(ExternalInterface, Mtu), PodNetworkError> {
        let families: Vec<Family> = conf.networks.families().collect();
        let external = interface::select(options, &families, &node.internal_ips, &live.links, &live.routes)?;
        if conf.backend == Backend::HostGw {
            external.check_host_gw()?;
        }
        let mtu = compute_mtu(conf, external.mtu)?;
        let too_large = mtu.too_large.map(|requested| {
            format!("Backend.MTU is {requested}, but interface {} has an MTU of {}, which is used", external.name, external.mtu)
        });
        self.report.warn("mtu", too_large);
        if self.acknowledged.as_ref().is_none_or(|acknowledged| acknowledged.external != external || acknowledged.mtu != mtu) {
            let ips: Vec<String> = external.local.iter().map(|(_, ip)| ip.to_string()).collect();
            tracing::info!(
                "pod network: packets to other nodes leave by {} ({}) from {}; pods have an MTU of {}",
                external.name,
                external.why,
                ips.join(" and "),
                mtu.pods
            );
        }
        if self.acknowledged.as_ref().is_some_and(|acknowledged| acknowledged.external.addresses != external.addresses)
            && let Some(connections) = &self.connections
        {
            connections.renew();
        }
        Ok((external, mtu))
    }

    /// Brings the links to the desired state. Gives the live state afterwards, and the error that remains for some links.
    async fn apply_links(
        &mut self,
        inputs: &DesiredInputs<'_>,
        desired: &[DesiredLink],
        of_others: &[IpNetwork],
        mut live: Live,
    ) -> Result<(Live, Option<PodNetworkError>), PodNetworkError> {
        let is_repair = self.acknowledged.as_ref().is_some_and(|acknowledged| acknowledged.desired == desired);
        let mut repaired = ChangeCounts::new();
        let mut failed = None;
        let mut before = Vec::new();
        let mut passes = 0..PASSES;
        let error = loop {
            let DesiredInputs { conf, own, mtu, .. } = inputs;
            let mut plan = plan::links(desired, &conf.networks, &live, &self.offloads);
            plan.changes.extend(bridge::mtu_change(&live.links, own, mtu.pods));
            let to_repair = plan.changes.len();
            plan.changes.extend(bridge::stale_addresses(&live.links, own, &conf.networks, of_others));
            if plan.changes.is_empty() {
                break plan.in_the_way.into_iter().next().map(PodNetworkError::InTheWay);
            }
            // Stop if the same steps remain as before: they have failed.
            let pass = passes.next().filter(|_| plan.changes != before);
            if pass.is_none() {
                break Some(failed.map_or(PodNetworkError::Unstable(plan.changes.len()), PodNetworkError::Kernel));
            }
            if is_repair && pass == Some(0) {
                plan.changes.iter().take(to_repair).for_each(|change| *repaired.entry(change.kind()).or_default() += 1);
            }
            before.clone_from(&plan.changes);
            failed = self.change_links(plan.changes).await?;
            live = self.dump().await?;
        };
        self.report.repaired(&repaired);
        let former = self.acknowledged.iter().flat_map(|acknowledged| &acknowledged.desired);
        for link in former.filter(|link| desired.iter().all(|desired| desired.name != link.name)) {
            self.report.metrics.network().no_link(&link.name);
        }
        for link in desired {
            self.report.metrics.network().mtu(&link.name, link.mtu);
        }
        Ok((live, error))
    }

    /// Applies link changes and gives the first error. A failed change does not stop the others.
    pub(super) async fn change_links(&mut self, changes: Vec<LinkChange>) -> Result<Option<NetlinkError>, PodNetworkError> {
        let kernel = Arc::clone(&self.kernel);
        let outcomes = blocking(move || {
            let outcome = |change: LinkChange| (kernel.change_link(&change), change);
            changes.into_iter().map(outcome).collect::<Vec<_>>()
        })
        .await?;
        self.schedule.wrote();
        // Entries that failed because of a link may succeed now.
        self.retries.clear();
        let mut first = None;
        for (outcome, change) in outcomes {
            match outcome {
                Ok(()) => {
                    tracing::info!("pod network: {change}");
                    if let LinkChange::ChecksumOffload(link, on) = change {
                        self.offloads.insert(link.index, on);
                    }
                }
                Err(error) => {
                    self.report.failed(&error);
                    first.get_or_insert(error);
                }
            }
        }
        Ok(first)
    }

    /// Applies all groups of entry changes, except those that wait for a retry. Gives the peers that lack entries.
    pub(super) async fn write(&mut self, groups: Vec<EntryGroup>, names: &LinkNames) -> Result<Vec<Box<str>>, PodNetworkError> {
        let now = Instant::now();
        let mut failed: BTreeMap<Option<Box<str>>, NetlinkError> = BTreeMap::new();
        let (waiting, groups): (Vec<EntryGroup>, Vec<EntryGroup>) =
            groups.into_iter().partition(|group| self.retries.get(&group.node).is_some_and(|retry| retry.at > now));
        let mut retries: BTreeMap<Option<Box<str>>, Retry> =
            waiting.into_iter().filter_map(|group| self.retries.remove(&group.node).map(|retry| (group.node, retry))).collect();
        if !groups.is_empty() {
            let (kernel, names) = (Arc::clone(&self.kernel), names.clone());
            let (groups, outcomes) = blocking(move || {
                let changes: Vec<_> = groups.iter().flat_map(|group| group.changes.iter().copied()).collect();
                let outcomes = kernel.change_entries(&changes, &names);
                (groups, outcomes)
            })
            .await?;
            self.schedule.wrote();
            let mut outcomes = outcomes.into_iter();
            for group in groups {
                let errors = outcomes.by_ref().take(group.changes.len()).filter_map(Result::err);
                // The fold consumes exactly one outcome for each change of the group.
                if let Some(error) = errors.fold(None, |first, error| first.or(Some(error))) {
                    failed.insert(group.node, error);
                }
            }
        }
        for (node, error) in failed {
            let mut pauses = self.retries.remove(&node).map_or_else(|| doubling(FIRST_RETRY, LONGEST_RETRY), |retry| retry.pauses);
            let pause = pauses.next().unwrap_or(LONGEST_RETRY);
            retries.insert(node, Retry { at: Instant::now() + pause, pauses, error });
        }
        self.retries = retries;
        let errors: BTreeMap<_, _> = self.retries.iter().map(|(node, retry)| (node.clone(), retry.error.clone())).collect();
        self.report.entries_failed(&errors);
        Ok(errors.into_keys().flatten().collect())
    }
}

/// Counts the changes to entries whose desired state is the same as before: another program changed them.
fn count_repairs(before: &AcknowledgedNetwork, entries: &DesiredEntries, groups: &[EntryGroup]) -> ChangeCounts {
    let mut repaired = ChangeCounts::new();
    let unchanged = |group: &&EntryGroup| group.node.as_ref().is_none_or(|node| before.entries.get(node) == entries.peers.get(node));
    for change in groups.iter().filter(unchanged).flat_map(|group| &group.changes) {
        *repaired.entry(change.kind()).or_default() += 1;
    }
    repaired
}

/// Runs a blocking call on a thread for blocking work.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, PodNetworkError> {
    spawn_blocking(work).await.map_err(|error| PodNetworkError::Broken(format!("a kernel call failed: {}", task_failure(error))))
}

/// This node's own lease, from its Node, its subnets and the external interface.
fn own(
    node: &NetworkNode,
    conf: &NetConf,
    subnets: PerFamily<IpNetwork>,
    external: &ExternalInterface,
    live: &Live,
) -> Result<OwnLease, PodNetworkError> {
    let bad = |bad| PodNetworkError::Annotation(node.name.clone(), bad);
    let mut own = OwnLease { node: node.name.to_string(), subnets, local: external.local, ..OwnLease::default() };
    for (family, local) in external.local.iter() {
        own.published.set(family, Some(node.annotations.overwrite(family).map_err(bad)?.unwrap_or(*local)));
        if let Some(vxlan) = conf.backend.vxlan() {
            // An invalid annotation is ignored; the address is chosen again.
            let published = node.annotations.vxlan(family).ok().flatten().map(|data| data.mac);
            let name = link_name(family, vxlan.vni);
            let of_link = live.links.iter().find(|link| link.name == name).and_then(|link| link.mac);
            own.macs.set(family, Some(choose_mac(published, of_link, &node.uid, family)));
        }
    }
    Ok(own)
}
