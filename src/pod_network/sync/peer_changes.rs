//! Writes changes of other nodes incrementally: the desired state is compared with the acknowledged one, and only peers that differ are
//! written. Usually one node has changed and no other is affected; then only that node is computed.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use ipnetwork::IpNetwork;

use crate::netlink::NetworkKernel;
use crate::netlink::entry::{Live, Route};
use crate::pod_network::desired::{DesiredEntries, DesiredInputs, Entry};
use crate::pod_network::peers::{LiveSubnets, Peers, check_all};
use crate::pod_network::plan;
use crate::pod_network::refusal::PeerRefusal;

use super::state::{AcknowledgedNetwork, NetworkLoop};

/// With more changed nodes, all nodes are checked, which is faster then.
const MAX_SINGLE_UPDATES: usize = 64;

/// The peers whose desired entries differ from the acknowledged ones.
struct Difference {
    /// All other nodes, accepted or refused.
    peers: Peers,
    /// Peers that host-gw cannot reach.
    off_link: Vec<PeerRefusal>,
    /// The desired entries of these peers.
    desired: DesiredEntries,
    /// Their acknowledged entries.
    acknowledged: PeerEntries,
}

impl<K: NetworkKernel> NetworkLoop<K> {
    /// Writes the changes of other nodes. Returns false if that is not possible; then a full reconcile has to write them.
    pub(super) async fn apply_peer_changes(&mut self) -> bool {
        // After a failed write, the kernel's state is uncertain.
        if !self.retries.is_empty() {
            return false;
        }
        let (Some(mut acknowledged), Some(since)) = (self.acknowledged.take(), self.since.take()) else { return false };
        let changed = std::mem::take(&mut self.changed);
        let Difference { peers, off_link, desired, acknowledged: before } = self.difference(&acknowledged, &changed);
        let destinations: HashSet<IpNetwork> = desired.peers.values().flatten().filter_map(destination).collect();
        let others = acknowledged.routes.iter().filter(|route| destinations.contains(&route.destination)).copied().collect();
        let plan = plan::entries(&desired, &acknowledged.links, &live_of(before.values().flatten(), others));

        // Only a full reconcile handles routes of other programs.
        if !plan.replaced.is_empty() || !plan.in_the_way.is_empty() {
            (self.acknowledged, self.since) = (Some(acknowledged), Some(since));
            return false;
        }
        let done = match self.write(plan.groups, &acknowledged.names).await {
            Ok(untaken) => untaken.is_empty(),
            Err(error) => {
                tracing::error!("pod network: {error}");
                false
            }
        };
        acknowledged.off_link = off_link;
        acknowledged.peers = peers;
        acknowledged.entries.retain(|node, _| !before.contains_key(node));
        if done {
            acknowledged.entries.extend(desired.peers);
            self.report.refused(&[&acknowledged.peers.refused[..], &acknowledged.off_link].concat());
            self.report.metrics.network().peers(acknowledged.entries.len(), acknowledged.entries.len());
            self.report.metrics.network().programmed_after(since.elapsed());
        } else {
            // The full reconcile needs the acknowledged state of all other peers.
            self.since = Some(since);
        }
        self.acknowledged = Some(acknowledged);
        done
    }

    /// Compares the desired with the acknowledged entries of changed nodes, or of all nodes if others are affected.
    fn difference(&self, acknowledged: &AcknowledgedNetwork, changed: &BTreeSet<Box<str>>) -> Difference {
        let conf = self.inputs.conf.borrow();
        let inputs = DesiredInputs {
            conf: &conf,
            settings: &self.inputs.settings,
            own: &acknowledged.own,
            external: &acknowledged.external,
            mtu: &acknowledged.mtu,
        };
        let mut all = acknowledged.peers.clone();
        let mut update = |name: &str| all.update_one(name, self.nodes.get(name).map(|node| &**node), &acknowledged.own, &conf);
        let mut off_link = Vec::new();
        let (considered, held) = if changed.len() <= MAX_SINGLE_UPDATES && changed.iter().all(|name| update(name)) {
            let accepted = changed.iter().filter_map(|name| Some((name.clone(), *all.accepted.get(name)?))).collect();
            let few = Peers { accepted, refused: Vec::new() };
            let held = changed.iter().filter_map(|name| Some((name.clone(), acknowledged.entries.get(name)?.clone()))).collect();
            off_link.extend(acknowledged.off_link.iter().filter(|refusal| !changed.contains(&refusal.node)).cloned());
            (few, held)
        } else {
            let programmed = LiveSubnets::of_live(&live_of(acknowledged.entries.values().flatten(), Vec::new()));
            all = check_all(self.nodes.values().map(|node| &**node), &acknowledged.own, &conf, &programmed);
            (all.clone(), acknowledged.entries.clone())
        };
        let desired = inputs.entries(&considered, &acknowledged.links, &acknowledged.routes);
        off_link.extend(desired.refused);
        let (desired, acknowledged) = different(desired.peers, held);
        Difference { peers: all, off_link, desired: DesiredEntries { peers: desired, ..DesiredEntries::default() }, acknowledged }
    }
}

/// The entries of peers, by name.
type PeerEntries = BTreeMap<Box<str>, Vec<Entry>>;

/// Removes the peers whose entries are equal from both maps.
fn different(mut desired: PeerEntries, mut acknowledged: PeerEntries) -> (PeerEntries, PeerEntries) {
    acknowledged.retain(|node, entries| {
        let same = desired.get(node) == Some(entries);
        if same {
            desired.remove(node);
        }
        !same
    });
    (desired, acknowledged)
}

/// A live state that consists of these entries and routes.
fn live_of<'a>(entries: impl Iterator<Item = &'a Entry>, routes: Vec<Route>) -> Live {
    let mut live = Live { routes, ..Live::default() };
    for entry in entries {
        match entry {
            Entry::Neighbour(neighbour) => live.neighbours.push(*neighbour),
            Entry::Fdb(fdb) => live.fdb.push(*fdb),
            Entry::Route(route) => live.routes.push(*route),
        }
    }
    live
}

/// The destination of a route entry.
const fn destination(entry: &Entry) -> Option<IpNetwork> {
    match entry {
        Entry::Route(route) => Some(route.destination),
        Entry::Neighbour(_) | Entry::Fdb(_) => None,
    }
}
