//! The short way from other nodes' changes to the kernel: what is desired now is compared with what the kernel has acknowledged, and only
//! the peers that differ are written. Mostly one node has changed and no other is concerned; then no other is looked at.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use ipnetwork::IpNetwork;

use crate::netlink::NetworkKernel;
use crate::netlink::entry::{Live, Route};
use crate::pod_network::desired::{DesiredEntries, Entry, Wanted};
use crate::pod_network::peers::{Peers, Programmed, peers};
use crate::pod_network::plan;
use crate::pod_network::refusal::Refusal;

use super::state::{Known, NetworkLoop};

/// With more changed nodes than these it is quicker to look at all.
const FEW: usize = 64;

/// What the peers in question should have and have, and what follows of that.
struct Difference {
    peers: Peers,
    off_link: Vec<Refusal>,
    now: DesiredEntries,
    before: Held,
}

impl<K: NetworkKernel> NetworkLoop<K> {
    /// Writes what other nodes have changed. Says whether that is done; if not, a round has to do it.
    pub(super) async fn follow(&mut self) -> bool {
        // What is still to be tried again is not known well enough.
        if !self.retries.is_empty() {
            return false;
        }
        let (Some(mut known), Some(since)) = (self.known.take(), self.since.take()) else { return false };
        let changed = std::mem::take(&mut self.changed);
        let Difference { peers, off_link, now, before } = self.difference(&known, &changed);
        let destinations: HashSet<IpNetwork> = now.peers.values().flatten().filter_map(destination).collect();
        let others = known.routes.iter().filter(|route| destinations.contains(&route.destination)).copied().collect();
        let plan = plan::entries(&now, &known.links, &live_of(before.values().flatten(), others));

        // Only a round decides what happens to routes of other programs.
        if !plan.replaced.is_empty() || !plan.in_the_way.is_empty() {
            (self.known, self.since) = (Some(known), Some(since));
            return false;
        }
        let done = match self.write(plan.groups, &known.names).await {
            Ok(untaken) => untaken.is_empty(),
            Err(error) => {
                tracing::error!("pod network: {error}");
                false
            }
        };
        known.off_link = off_link;
        known.peers = peers;
        known.held.retain(|node, _| !before.contains_key(node));
        if done {
            known.held.extend(now.peers);
            self.report.refused(&[&known.peers.refused[..], &known.off_link].concat());
            self.report.metrics.network().peers(known.held.len(), known.held.len());
            self.report.metrics.network().programmed_after(since.elapsed());
        } else {
            // What is known stays of use to a round, but for the peers in question.
            self.since = Some(since);
        }
        self.known = Some(known);
        done
    }

    /// What has to be done about these nodes: what they should have that differs from what they have.
    fn difference(&self, known: &Known, changed: &BTreeSet<Box<str>>) -> Difference {
        let conf = self.asked.conf.borrow();
        let wanted = Wanted { conf: &conf, settings: &self.asked.settings, own: &known.own, external: &known.external, mtu: &known.mtu };
        let mut all = known.peers.clone();
        let mut alone = |name: &str| all.follow(name, self.nodes.get(name).map(|node| &**node), &known.own, &conf);
        let mut off_link = Vec::new();
        let (asked, held) = if changed.len() <= FEW && changed.iter().all(|name| alone(name)) {
            let accepted = changed.iter().filter_map(|name| Some((name.clone(), *all.accepted.get(name)?))).collect();
            let few = Peers { accepted, refused: Vec::new() };
            let held = changed.iter().filter_map(|name| Some((name.clone(), known.held.get(name)?.clone()))).collect();
            off_link.extend(known.off_link.iter().filter(|refusal| !changed.contains(&refusal.node)).cloned());
            (few, held)
        } else {
            let programmed = Programmed::of_live(&live_of(known.held.values().flatten(), Vec::new()));
            all = peers(self.nodes.values().map(|node| &**node), &known.own, &conf, &programmed);
            (all.clone(), known.held.clone())
        };
        let desired = wanted.entries(&asked, &known.links, &known.routes);
        off_link.extend(desired.refused);
        let (now, before) = different(desired.peers, held);
        Difference { peers: all, off_link, now: DesiredEntries { peers: now, ..DesiredEntries::default() }, before }
    }
}

type Held = BTreeMap<Box<str>, Vec<Entry>>;

/// The peers that differ, as they should be and as they are.
fn different(mut desired: Held, mut held: Held) -> (Held, Held) {
    held.retain(|node, entries| {
        let same = desired.get(node) == Some(entries);
        if same {
            desired.remove(node);
        }
        !same
    });
    (desired, held)
}

/// The kernel as far as it holds these entries and these routes.
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

const fn destination(entry: &Entry) -> Option<IpNetwork> {
    match entry {
        Entry::Route(route) => Some(route.destination),
        Entry::Neighbour(_) | Entry::Fdb(_) => None,
    }
}
