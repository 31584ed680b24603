//! Handles routes of other programs that displace ours, during a reconcile.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use ipnetwork::IpNetwork;

use crate::netlink::NetworkKernel;
use crate::netlink::entry::Route;
use crate::netlink::link::LinkNames;
use crate::pod_network::contest::Verdict;
use crate::pod_network::plan::EntryPlan;

use super::state::NetworkLoop;

impl<K: NetworkKernel> NetworkLoop<K> {
    /// Reports the routes of other programs, and removes the replacements from the plan that have to wait. Gives the peers whose routes are
    /// missing because of that.
    pub(super) fn handle_foreign_routes(&mut self, plan: &mut EntryPlan, names: &LinkNames) -> BTreeSet<Box<str>> {
        let found: Vec<Route> = plan.replaced.iter().map(|foreign| foreign.found).collect();
        let verdicts = self.foreign.contests.judge(&found, self.foreign.start.elapsed());
        let (mut replaced, mut contested) = (Vec::new(), BTreeMap::new());
        let (mut left, mut peers) = (HashSet::<IpNetwork>::new(), BTreeSet::new());
        let mut next: Option<Duration> = None;
        for (foreign, verdict) in plan.replaced.iter().zip(verdicts) {
            match verdict {
                Verdict::Replace => replaced.push(foreign.replaced_text(names)),
                Verdict::Leave { until, pause, times } => {
                    left.insert(foreign.desired.destination);
                    peers.extend(foreign.node.clone());
                    contested.insert(foreign.found, foreign.contested_text(names, times, pause.as_secs()));
                    next = Some(next.map_or(until, |next| next.min(until)));
                }
            }
        }
        plan.defer(&left);
        self.foreign.next = next.map(|next| self.foreign.start + next);
        self.report.routes_replaced(&replaced);
        self.report.routes_contested(contested);
        self.report.in_the_way(plan.in_the_way.iter().map(|foreign| foreign.in_the_way_text(names)));
        peers
    }
}
