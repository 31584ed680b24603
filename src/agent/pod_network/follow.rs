//! The short way from other nodes' changes to the kernel: what is desired now is compared with what the kernel has acknowledged, and only
//! the peers that differ are written.

use std::collections::{BTreeMap, HashSet};

use ipnetwork::IpNetwork;

use crate::netlink::NetworkKernel;
use crate::network::desired::{DesiredEntries, Entry, Wanted};
use crate::network::entry::{Live, Route};
use crate::network::peers::{Programmed, peers};
use crate::network::plan;

use super::NetworkLoop;

impl<K: NetworkKernel> NetworkLoop<K> {
    /// Writes what other nodes have changed. Says whether that is done; if not, a round has to do it.
    pub(super) async fn follow(&mut self) -> bool {
        // What is still to be tried again is not known well enough.
        let Some(mut known) = self.known.take().filter(|_| self.retries.is_empty()) else { return false };
        let Some(since) = self.since.take() else {
            self.known = Some(known);
            return true;
        };
        let conf = self.asked.conf.borrow().clone();
        let settings = &self.asked.settings;
        let wanted = Wanted { conf: &conf, settings, own: &known.own, external: &known.external, mtu: &known.mtu };
        let held = live_of(known.held.values().flatten(), Vec::new());
        let peers = peers(self.nodes.values().map(|node| &**node), &known.own, &conf, &Programmed::of_live(&held));
        let desired = wanted.entries(&peers, &known.links, &known.routes);
        let (now, before) = difference(&desired.peers, &known.held);
        let destinations: HashSet<IpNetwork> = now.values().flatten().filter_map(destination).collect();
        let others = known.routes.iter().filter(|route| destinations.contains(&route.destination)).copied().collect();
        let partial = DesiredEntries { peers: now, ..DesiredEntries::default() };
        let plan = plan::entries(&partial, &known.links, &live_of(before.values().flatten(), others));
        self.report.refused(&[peers.refused, desired.refused].concat());

        let blocked = !plan.in_the_way.is_empty();
        let done = match self.write(plan.groups).await {
            Ok(untaken) => untaken.is_empty() && !blocked,
            Err(error) => {
                tracing::error!("pod network: {error}");
                false
            }
        };
        if done {
            self.report.metrics.network().peers(desired.peers.len(), desired.peers.len());
            self.report.metrics.network().programmed_after(since.elapsed());
            known.held = desired.peers;
            self.known = Some(known);
        } else {
            // What is known stays of use to a round, but for the peers in question.
            let in_question: Vec<Box<str>> = partial.peers.into_keys().chain(before.into_keys()).collect();
            known.held.retain(|node, _| !in_question.contains(node));
            self.known = Some(known);
            self.since = Some(since);
        }
        done
    }
}

type Held = BTreeMap<Box<str>, Vec<Entry>>;

/// The peers that differ, as they should be and as they are.
fn difference(desired: &Held, held: &Held) -> (Held, Held) {
    let only = |here: &Held, there: &Held| -> Held {
        let different = here.iter().filter(|(node, entries)| there.get(*node) != Some(*entries));
        different.map(|(node, entries)| (node.clone(), entries.clone())).collect()
    };
    (only(desired, held), only(held, desired))
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
