//! One look at everything that the kernel holds, and the steps to what it should hold.

use super::state::Retry;
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
use crate::pod_network::bridge;
use crate::pod_network::desired::{DesiredLink, Wanted};
use crate::pod_network::interface::{self, External, InterfaceOptions};
use crate::pod_network::mtu::{Mtu, mtu};
use crate::pod_network::net_conf::{Backend, NetConf};
use crate::pod_network::node::NetworkNode;
use crate::pod_network::own_lease::{OwnLease, own_mac};
use crate::pod_network::peers::{Programmed, peers};
use crate::pod_network::plan::{self, Group};
use crate::pod_network::vxlan::link_name;

use super::error::Unsettled;
use super::node_writes::Condition;
use super::report::Kinds;
use super::state::{Known, NetworkLoop};
use super::subnets::Subnets;

/// Links are looked at again after they were changed; if they still differ after so many times, somebody works against it.
const PASSES: usize = 4;

/// The first pause before a peer's entries are tried again; it doubles up to the longest.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

impl<K: NetworkKernel> NetworkLoop<K> {
    /// Looks at everything and makes it as it should be, as far as that can be done. The first thing that is in the way is the error;
    /// what does not hang on it is done all the same.
    pub(super) async fn round(&mut self) -> Result<(), Unsettled> {
        let conf = self.asked.conf.borrow().clone();
        let since = self.since.take();
        self.changed.clear();
        let taken = if self.own_node_is_missing() { self.taken_by_other_node(&conf) } else { None };
        let Some(node) = self.own_node.clone() else {
            let Some(lost) = taken else { return Err(Unsettled::NoNode(self.asked.node.clone())) };
            return Err(self.leave(lost, &conf).await?);
        };
        let standing = match taken {
            Some(lost) => Subnets::Lost(lost),
            None if self.awaits_new_pod_cidr(&node) => {
                let awaited = || Subnets::Awaited(Condition::pod_cidr_missing(&node.name));
                self.taken_by_other_node(&conf).map_or_else(awaited, Subnets::Lost)
            }
            None => self.asked.source.subnets(&node, &conf, &self.in_use()),
        };
        let live = self.dump().await;
        // Before all else: nothing that fails later keeps subnet.env.
        self.disown(&standing, &conf, live.as_ref().unwrap_or(&Live::default()));
        let (subnets, missing, of_others) = match &standing {
            Subnets::Known(subnets) => (*subnets, None, &[][..]),
            // What was known before holds until something better is known.
            Subnets::Awaited(condition) => match &self.known {
                Some(known) => (known.own.subnets, Some(Unsettled::Subnets(condition.clone())), &[][..]),
                None => return Err(Unsettled::Subnets(condition.clone())),
            },
            Subnets::Lost(lost) => (lost.left, Some(Unsettled::Lost(lost.condition.clone())), &lost.of_others[..]),
        };
        if missing.is_none() {
            self.readiness.ready(Part::Subnet);
        }
        let live = live?;
        let (own, external, mtu) = match (self.place(&node, &conf, subnets, &live).await, &standing) {
            (Ok(placed), _) => placed,
            (Err(_), Subnets::Lost(lost)) => {
                self.withdraw(lost, &conf, live).await?;
                return Err(Unsettled::Lost(lost.condition.clone()));
            }
            (Err(error), _) => return Err(error),
        };
        self.readiness.ready(Part::Interface);
        let of_others = self.subnets_of_others(of_others);
        let settings = self.asked.settings.clone();
        let wanted = Wanted { conf: &conf, settings: &settings, own: &own, external: &external, mtu: &mtu };

        let desired = wanted.links();
        let (live, trouble) = self.links(&wanted, &desired, &of_others, live).await?;
        let links = plan::our_links(&desired, &live);
        let peers = peers(self.nodes.values().map(|node| &**node), &own, &conf, &Programmed::of_live(&live));
        let entries = wanted.entries(&peers, &links, &live.routes);
        let names = LinkNames::new(&live.links);
        let mut plan = plan::entries(&entries, &links, &live);
        self.report.refused(&[&peers.refused[..], &entries.refused].concat());
        let left = self.judge_foreign(&mut plan, &names);

        let uid_before = self.known.as_ref().map(|known| known.node_uid.clone());
        let before = self.known.take().filter(|known| known.desired == desired && known.links == links);
        let mut repaired = Kinds::new();
        if let Some(before) = &before {
            let unchanged = |group: &&Group| match &group.node {
                Some(node) => before.held.get(node) == entries.peers.get(node),
                None => true,
            };
            for change in plan.groups.iter().filter(unchanged).flat_map(|group| &group.changes) {
                *repaired.entry(change.kind()).or_default() += 1;
            }
        }
        let mut untaken = self.write(plan.groups, &names).await?;
        untaken.extend(left);
        self.report.repaired(&repaired);
        self.report.metrics.network().peers(entries.peers.len(), entries.peers.keys().filter(|node| !untaken.contains(node)).count());
        if let Some(since) = since {
            self.report.metrics.network().programmed_after(since.elapsed());
        }
        let mut held = entries.peers;
        held.retain(|node, _| !untaken.contains(node));
        let routes = live.routes.iter().filter(|route| route.protocol != OUR_PROTOCOL).copied().collect();
        let node_uid = match (&standing, uid_before) {
            (Subnets::Awaited(_), Some(before)) => before,
            _ => node.uid.clone(),
        };
        self.known = Some(Known { own, node_uid, external, mtu, desired, links, names, routes, peers, off_link: entries.refused, held });
        // A lost subnet is the cause of what fails besides.
        if let Some(trouble) = missing.or(trouble) {
            return Err(trouble);
        }
        self.readiness.ready(Part::Links);
        self.readiness.ready(Part::Peers);
        Ok(())
    }

    /// This node's own part, and the interface to other nodes.
    async fn place(
        &mut self,
        node: &NetworkNode,
        conf: &NetConf,
        subnets: PerFamily<IpNetwork>,
        live: &Live,
    ) -> Result<(OwnLease, External, Mtu), Unsettled> {
        let options = self.interface_options(node).await?;
        let (external, mtu) = self.external(&options, node, conf, live)?;
        Ok((own(node, conf, subnets, &external, live)?, external, mtu))
    }

    /// Everything that the kernel holds.
    pub(super) async fn dump(&mut self) -> Result<Live, Unsettled> {
        let kernel = Arc::clone(&self.kernel);
        let live = within(move || kernel.dump()).await?;
        live.inspect_err(|error| self.report.failed(error)).map_err(Unsettled::Kernel)
    }

    /// What the operator and the Node's annotations ask for about the interface, and the kernel's route for `--iface-can-reach`.
    async fn interface_options(&mut self, node: &NetworkNode) -> Result<InterfaceOptions, Unsettled> {
        let options = self.asked.settings.interface.clone();
        let mut options = options.with_annotations(&node.annotations).map_err(|bad| Unsettled::Annotation(node.name.clone(), bad))?;
        if let Some(ip) = options.can_reach {
            let kernel = Arc::clone(&self.kernel);
            let route = within(move || kernel.route_to(ip)).await?;
            options.reached = Some(route.map_err(|error| error.cause.to_string()));
        }
        Ok(options)
    }

    /// The interface to other nodes, and how large packets can be.
    fn external(
        &mut self,
        options: &InterfaceOptions,
        node: &NetworkNode,
        conf: &NetConf,
        live: &Live,
    ) -> Result<(External, Mtu), Unsettled> {
        let families: Vec<Family> = conf.networks.families().collect();
        let external = interface::select(options, &families, &node.internal_ips, &live.links, &live.routes)?;
        if conf.backend == Backend::HostGw {
            external.check_host_gw()?;
        }
        let mtu = mtu(conf, external.mtu)?;
        let too_large = mtu
            .too_large
            .map(|asked| format!("Backend.MTU is {asked}, and interface {} takes {} only: that counts", external.name, external.mtu));
        self.report.complain("mtu", too_large);
        if self.known.as_ref().is_none_or(|known| known.external != external || known.mtu != mtu) {
            let ips: Vec<String> = external.local.iter().map(|(_, ip)| ip.to_string()).collect();
            tracing::info!(
                "pod network: packets to other nodes leave by {} ({}) from {}; pods have an MTU of {}",
                external.name,
                external.why,
                ips.join(" and "),
                mtu.pods
            );
        }
        if self.known.as_ref().is_some_and(|known| known.external.addresses != external.addresses)
            && let Some(connections) = &self.connections
        {
            connections.renew();
        }
        Ok((external, mtu))
    }

    /// Makes the links as they should be. Gives what the kernel holds then, and what is still in the way of some of them.
    async fn links(
        &mut self,
        wanted: &Wanted<'_>,
        desired: &[DesiredLink],
        of_others: &[IpNetwork],
        mut live: Live,
    ) -> Result<(Live, Option<Unsettled>), Unsettled> {
        let drifted = self.known.as_ref().is_some_and(|known| known.desired == desired);
        let mut repaired = Kinds::new();
        let mut failed = None;
        let mut before = Vec::new();
        let mut passes = 0..PASSES;
        let trouble = loop {
            let Wanted { conf, own, mtu, .. } = wanted;
            let mut plan = plan::links(desired, &conf.networks, &live, &self.offloads);
            plan.changes.extend(bridge::mtu_change(&live.links, own, mtu.pods));
            let to_repair = plan.changes.len();
            plan.changes.extend(bridge::stale_addresses(&live.links, own, &conf.networks, of_others));
            if plan.changes.is_empty() {
                break plan.in_the_way.into_iter().next().map(Unsettled::InTheWay);
            }
            // What failed is still to be done, and nothing else is.
            let pass = passes.next().filter(|_| plan.changes != before);
            if pass.is_none() {
                break Some(failed.map_or(Unsettled::Restless(plan.changes.len()), Unsettled::Kernel));
            }
            if drifted && pass == Some(0) {
                plan.changes.iter().take(to_repair).for_each(|change| *repaired.entry(change.kind()).or_default() += 1);
            }
            before.clone_from(&plan.changes);
            failed = self.change_links(plan.changes).await?;
            live = self.dump().await?;
        };
        self.report.repaired(&repaired);
        let former = self.known.iter().flat_map(|known| &known.desired);
        for link in former.filter(|link| desired.iter().all(|desired| desired.name != link.name)) {
            self.report.metrics.network().no_link(&link.name);
        }
        for link in desired {
            self.report.metrics.network().mtu(&link.name, link.mtu);
        }
        Ok((live, trouble))
    }

    /// Takes steps; gives the first failure. One that fails holds up no other.
    pub(super) async fn change_links(&mut self, changes: Vec<LinkChange>) -> Result<Option<NetlinkError>, Unsettled> {
        let kernel = Arc::clone(&self.kernel);
        let outcomes = within(move || {
            let outcome = |change: LinkChange| (kernel.change_link(&change), change);
            changes.into_iter().map(outcome).collect::<Vec<_>>()
        })
        .await?;
        self.agenda.wrote();
        // What could not be written because of a link may be possible now.
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

    /// Takes the steps of all groups but those that wait for their next try. Gives the peers that do not have all of theirs.
    pub(super) async fn write(&mut self, groups: Vec<Group>, names: &LinkNames) -> Result<Vec<Box<str>>, Unsettled> {
        let now = Instant::now();
        let mut failed: BTreeMap<Option<Box<str>>, NetlinkError> = BTreeMap::new();
        let (waiting, groups): (Vec<Group>, Vec<Group>) =
            groups.into_iter().partition(|group| self.retries.get(&group.node).is_some_and(|retry| retry.at > now));
        let mut retries: BTreeMap<Option<Box<str>>, Retry> =
            waiting.into_iter().filter_map(|group| self.retries.get(&group.node).cloned().map(|retry| (group.node, retry))).collect();
        if !groups.is_empty() {
            let (kernel, names) = (Arc::clone(&self.kernel), names.clone());
            let (groups, outcomes) = within(move || {
                let changes: Vec<_> = groups.iter().flat_map(|group| group.changes.iter().copied()).collect();
                let outcomes = kernel.change_entries(&changes, &names);
                (groups, outcomes)
            })
            .await?;
            self.agenda.wrote();
            let mut outcomes = outcomes.into_iter();
            for group in groups {
                let errors = outcomes.by_ref().take(group.changes.len()).filter_map(Result::err);
                // Exactly as many outcomes are taken as there are changes.
                if let Some(error) = errors.fold(None, |first, error| first.or(Some(error))) {
                    failed.insert(group.node, error);
                }
            }
        }
        for (node, error) in failed {
            let pause = self.retries.get(&node).map_or(FIRST_RETRY, |retry| (retry.pause * 2).min(LONGEST_RETRY));
            retries.insert(node, Retry { at: Instant::now() + pause, pause, error });
        }
        self.retries = retries;
        let untaken: BTreeMap<_, _> = self.retries.iter().map(|(node, retry)| (node.clone(), retry.error.clone())).collect();
        self.report.untaken(&untaken);
        Ok(untaken.into_keys().flatten().collect())
    }
}

/// Does work that blocks on a thread for such.
async fn within<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Unsettled> {
    spawn_blocking(work).await.map_err(|error| Unsettled::Broken(format!("a kernel call failed: {}", task_failure(error))))
}

/// This node's own part, as it follows from its Node, its subnets and its interface.
fn own(node: &NetworkNode, conf: &NetConf, subnets: PerFamily<IpNetwork>, external: &External, live: &Live) -> Result<OwnLease, Unsettled> {
    let bad = |bad| Unsettled::Annotation(node.name.clone(), bad);
    let mut own = OwnLease { node: node.name.to_string(), subnets, local: external.local, ..OwnLease::default() };
    for (family, local) in external.local.iter() {
        own.published.set(family, Some(node.annotations.overwrite(family).map_err(bad)?.unwrap_or(*local)));
        if let Some(vxlan) = conf.backend.vxlan() {
            // What is told of it may be nonsense; then it is made anew.
            let known = node.annotations.vxlan(family).ok().flatten().map(|data| data.mac);
            let name = link_name(family, vxlan.vni);
            let of_link = live.links.iter().find(|link| link.name == name).and_then(|link| link.mac);
            own.macs.set(family, Some(own_mac(known, of_link, &node.uid, family)));
        }
    }
    Ok(own)
}
