//! One node's claim on a subnet: it takes a lease, renews it, and takes another one if it is lost. PURE: this state machine gives the next
//! request and receives the answer; clocks and random numbers are passed in.
//!
//! Three rules prevent two nodes from using one subnet:
//!
//! - A Lease object is named after its subnet. It is changed or deleted only in the version that was read. A node that loses a race gets a
//!   conflict from the API server.
//! - A node uses a subnet from the start of the request that took or renewed the lease, for the duration of the lease at most. Other nodes
//!   wait longer, and they start to count later ([`ObservedLease::expiry`]).
//! - Subnets of different length can overlap under different names. So a node lists the leases again after it took one, and releases it if
//!   another lease overlaps. If two nodes do this at once, at least the later one sees the other's lease.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use ipnetwork::IpNetwork;

use super::allocation::{
    AllocationInputs, Claimant, Decision, LeaseTerms, Now, ObservedLease, Random, Shortage, SubnetLease, SubnetSpace, decide,
};
use super::backoff::{Pauses, doubling};
use crate::cluster::Family;
use crate::cluster::ip::overlap;

/// After a conflict, the same subnet is not created again for this long.
const BLOCKED: Duration = Duration::from_secs(60);
/// A node without a subnet tries again at least this often.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);
/// The pause after the first failed request. It doubles with each further failure.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// The next step of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimStep {
    /// List the leases from the API server, not from a cache, and pass the answer to [`Claim::answer`].
    List,
    /// Send this request and pass the answer to [`Claim::answer`].
    Send(LeaseRequest),
    /// Wait until this time (as [`Now::elapsed`]) or until a watch reports a change.
    Wait(Duration),
}

/// A request to the API server. All but `Create` apply only to the version of the lease that they carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseRequest {
    /// Create the Lease of a subnet.
    Create(IpNetwork),
    /// Take over a lease that has expired or is reserved for this node.
    Take(SubnetLease),
    /// Renew a lease that this node holds.
    Renew(SubnetLease),
    /// Delete a lease. A lease on a reserved subnet becomes a reservation again.
    Release(SubnetLease),
}

/// The answer to a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseAnswer {
    /// The existing leases.
    Listed(Vec<SubnetLease>),
    /// The lease as it was written.
    Written(SubnetLease),
    /// The lease was released.
    Released,
    /// The object exists already, or its version has changed.
    Conflict,
    /// The object does not exist.
    Missing,
    /// The request failed, and it is unknown if the server carried it out.
    Failed,
}

/// An event of the watch on leases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseObservation {
    /// A lease was created or changed.
    Changed(SubnetLease),
    /// The lease of this subnet was deleted.
    Deleted(IpNetwork),
    /// A list is complete: leases exist on these subnets only.
    Listed(HashSet<IpNetwork>),
}

/// An event to log, count and report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimEvent {
    /// A subnet was leased.
    Leased(IpNetwork),
    /// A lease was renewed.
    Renewed(IpNetwork),
    /// A lease that this node held was taken or deleted.
    Lost(LostLease),
    /// The first subnet was released at once, because the lease of the second overlaps it.
    Overlapped(IpNetwork, IpNetwork),
    /// No subnet is available. Reported at every attempt.
    OutOfSubnets(Shortage),
}

/// A lease that this node has lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostLease {
    /// Its subnet.
    pub subnet: IpNetwork,
    /// The `holderIdentity` of the new holder; `None` if the lease was deleted.
    pub holder: Option<Box<str>>,
}

/// The state of the claim, as other parts see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseStatus {
    /// This node holds no subnet and tries to take one.
    Seeking {
        /// The lease that was held before. While it has no new holder, this node will probably take the same subnet again, and the links
        /// and routes in the kernel can stay. With a new holder, the subnet belongs to another node.
        loss: Option<LostLease>,
        /// Why the last attempt found no subnet.
        shortage: Option<Shortage>,
    },
    /// This node holds the subnet.
    Held(IpNetwork),
    /// The lease of this subnet could not be renewed during its whole duration, because the API server was unreachable. Another node may
    /// take it, but none is known to have done so.
    Lapsed(IpNetwork),
}

impl Default for LeaseStatus {
    fn default() -> Self {
        Self::Seeking { loss: None, shortage: None }
    }
}

/// The leases to watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchScope {
    /// The lease of this subnet.
    One(IpNetwork),
    /// All leases, because any of them may be released.
    All,
}

/// A lease that this node holds.
#[derive(Clone, Debug)]
struct Held {
    lease: SubnetLease,
    /// When the last successful request was sent.
    granted: Duration,
    /// When to renew.
    due: Duration,
    /// A conflict or the watch suggests that the lease is lost.
    is_suspect: bool,
}

#[derive(Clone, Debug)]
enum ClaimState {
    /// The leases have to be listed.
    Unlisted,
    /// The leases are listed. A subnet has to be chosen.
    Choosing,
    /// A request was sent. `held` is the lease that the node holds meanwhile.
    Sent { request: LeaseRequest, at: Duration, held: Option<Held> },
    /// A lease was taken. A list has to show if other leases overlap it.
    Confirming { lease: SubnetLease, granted: Duration },
    /// The node holds a lease.
    Held(Held),
    /// No subnet is available.
    Waiting { until: Duration },
}

/// A node's claim on a subnet of one family.
#[derive(Debug)]
pub struct Claim {
    space: SubnetSpace,
    who: Claimant,
    terms: LeaseTerms,
    previous: Vec<IpNetwork>,
    /// The subnet that this node uses, while no lease of it was seen yet.
    in_use: Option<IpNetwork>,
    leases: BTreeMap<IpNetwork, ObservedLease>,
    blocked: BTreeMap<IpNetwork, Duration>,
    /// Further leases of this node, which it releases.
    surplus: Vec<SubnetLease>,
    state: ClaimState,
    loss: Option<LostLease>,
    shortage: Option<Shortage>,
    /// Nothing is sent before this time.
    pause: Duration,
    /// Pauses after failures in a row.
    pauses: Pauses,
    events: Vec<ClaimEvent>,
}

impl Claim {
    /// A new claim. `previous` are the subnets that the node had before, the most recent first.
    #[must_use]
    pub fn new(space: SubnetSpace, who: Claimant, terms: LeaseTerms, previous: Vec<IpNetwork>) -> Self {
        Self {
            space,
            who,
            terms,
            previous,
            in_use: None,
            leases: BTreeMap::new(),
            blocked: BTreeMap::new(),
            surplus: Vec::new(),
            state: ClaimState::Unlisted,
            loss: None,
            shortage: None,
            pause: Duration::ZERO,
            pauses: doubling(FIRST_PAUSE, LONGEST_PAUSE),
            events: Vec::new(),
        }
    }

    /// States that the node uses this subnet already, because subnet.env names it. If another node has a lease of it, the subnet is lost.
    #[must_use]
    pub const fn using(mut self, subnet: Option<IpNetwork>) -> Self {
        self.in_use = subnet;
        self
    }

    /// The node that claims a subnet.
    #[must_use]
    pub const fn who(&self) -> &Claimant {
        &self.who
    }

    /// Updates the node after its Node was registered anew or got other addresses. If the identity changed, the lease is renewed at once.
    pub fn set_who(&mut self, who: Claimant) {
        let is_renamed = who.identity() != self.who.identity();
        self.who = who;
        if is_renamed {
            self.renew_now();
        }
    }

    /// Makes the renewal due now, because data that is stored in the Lease has changed.
    pub(crate) fn renew_now(&mut self) {
        if let ClaimState::Held(held) = &mut self.state {
            held.due = Duration::ZERO;
        }
    }

    /// Takes the events since the last call.
    pub(crate) fn take_events(&mut self) -> Vec<ClaimEvent> {
        std::mem::take(&mut self.events)
    }

    /// The state of the claim.
    #[must_use]
    pub fn status(&self, now: Now) -> LeaseStatus {
        match &self.state {
            ClaimState::Held(held) | ClaimState::Sent { held: Some(held), .. } => {
                let subnet = held.lease.subnet;
                let is_lapsed = now.elapsed >= held.granted.saturating_add(self.terms.duration);
                if is_lapsed { LeaseStatus::Lapsed(subnet) } else { LeaseStatus::Held(subnet) }
            }
            _ => {
                let loss = self.loss.clone().map(|loss| LostLease { holder: self.other_holder(loss.subnet).or(loss.holder), ..loss });
                LeaseStatus::Seeking { loss, shortage: self.shortage }
            }
        }
    }

    /// The leases to watch now; `None` keeps the current watch.
    #[must_use]
    pub(crate) const fn watch_scope(&self) -> Option<WatchScope> {
        match &self.state {
            ClaimState::Held(held) => Some(WatchScope::One(held.lease.subnet)),
            ClaimState::Waiting { .. } => Some(WatchScope::All),
            _ => None,
        }
    }

    /// Gives the next step. After [`ClaimStep::List`] and [`ClaimStep::Send`], [`Claim::answer`] must be called first.
    pub fn step(&mut self, now: Now, random: &mut Random<'_>) -> ClaimStep {
        if now.elapsed < self.pause {
            return ClaimStep::Wait(self.pause);
        }
        match &self.state {
            ClaimState::Unlisted | ClaimState::Confirming { .. } => ClaimStep::List,
            ClaimState::Held(held) if held.is_suspect => ClaimStep::List,
            ClaimState::Sent { request, .. } => ClaimStep::Send(request.clone()),
            ClaimState::Waiting { until } if now.elapsed < *until => ClaimStep::Wait(*until),
            ClaimState::Waiting { .. } | ClaimState::Choosing => match self.surplus.pop() {
                Some(lease) => self.send(LeaseRequest::Release(lease), now),
                None => self.choose(now, random),
            },
            ClaimState::Held(held) => {
                let (due, lease) = (held.due, held.lease.clone());
                match self.surplus.pop() {
                    Some(surplus) => self.send(LeaseRequest::Release(surplus), now),
                    None if now.elapsed < due => ClaimStep::Wait(due),
                    None => self.send(LeaseRequest::Renew(lease), now),
                }
            }
        }
    }

    /// Decides which lease to take, and sends the request.
    fn choose(&mut self, now: Now, random: &mut Random<'_>) -> ClaimStep {
        self.blocked.retain(|_, until| *until > now.elapsed);
        let view = AllocationInputs {
            space: &self.space,
            who: &self.who,
            previous: &self.previous,
            leases: &self.leases,
            blocked: &self.blocked,
            terms: &self.terms,
            now,
        };
        let request = match decide(&view, random) {
            Decision::Renew(lease) => LeaseRequest::Renew(lease),
            Decision::Take(lease) => LeaseRequest::Take(lease),
            Decision::Create(subnet) => LeaseRequest::Create(subnet),
            Decision::Release(lease) => LeaseRequest::Release(lease),
            Decision::OutOfSubnets(shortage) => {
                let latest = now.elapsed.saturating_add(RETRY_INTERVAL);
                let until = shortage.next_expiry.map_or(latest, |expiry| expiry.min(latest));
                self.events.push(ClaimEvent::OutOfSubnets(shortage));
                self.shortage = Some(shortage);
                self.state = ClaimState::Waiting { until };
                return ClaimStep::Wait(until);
            }
        };
        self.send(request, now)
    }

    /// Enters the state in which a request is under way.
    fn send(&mut self, request: LeaseRequest, now: Now) -> ClaimStep {
        let held = match std::mem::replace(&mut self.state, ClaimState::Unlisted) {
            ClaimState::Held(held) => Some(held),
            _ => None,
        };
        self.state = ClaimState::Sent { request: request.clone(), at: now.elapsed, held };
        ClaimStep::Send(request)
    }

    /// Processes the answer to the last step.
    pub fn answer(&mut self, answer: LeaseAnswer, now: Now, random: &mut Random<'_>) {
        if answer == LeaseAnswer::Failed {
            let longest = self.pauses.next().unwrap_or(LONGEST_PAUSE);
            self.pause_for(longest, now, random);
        } else {
            self.pauses = doubling(FIRST_PAUSE, LONGEST_PAUSE);
        }
        let state = std::mem::replace(&mut self.state, ClaimState::Unlisted);
        self.state = match (state, answer) {
            (ClaimState::Sent { request, at, held }, answer) => self.answered(request, at, held, answer, now, random),
            (state, LeaseAnswer::Listed(leases)) => {
                self.replace_leases(leases, now);
                match state {
                    ClaimState::Confirming { lease, granted } => self.confirm(&lease, granted, now, random),
                    ClaimState::Held(held) => self.confirm_held(&held),
                    _ => {
                        self.check_in_use();
                        ClaimState::Choosing
                    }
                }
            }
            (state, _) => state,
        };
    }

    /// The state after the answer to a request.
    fn answered(
        &mut self,
        request: LeaseRequest,
        at: Duration,
        held: Option<Held>,
        answer: LeaseAnswer,
        now: Now,
        random: &mut Random<'_>,
    ) -> ClaimState {
        match (request, held, answer) {
            (LeaseRequest::Renew(_), Some(_), LeaseAnswer::Written(lease)) => {
                self.events.push(ClaimEvent::Renewed(lease.subnet));
                ClaimState::Held(self.granted(lease, at, random))
            }
            (LeaseRequest::Renew(_), Some(held), LeaseAnswer::Conflict | LeaseAnswer::Missing) => {
                ClaimState::Held(Held { is_suspect: true, ..held })
            }
            // The answer to the release of a surplus lease is ignored: if the lease still exists, it expires.
            (_, Some(held), _) => ClaimState::Held(held),
            (LeaseRequest::Create(_) | LeaseRequest::Take(_) | LeaseRequest::Renew(_), None, LeaseAnswer::Written(lease)) => {
                ClaimState::Confirming { lease, granted: at }
            }
            (LeaseRequest::Release(lease), None, LeaseAnswer::Released | LeaseAnswer::Missing) => {
                self.leases.remove(&lease.subnet);
                ClaimState::Choosing
            }
            (LeaseRequest::Create(subnet), None, LeaseAnswer::Conflict) => {
                self.blocked.insert(subnet, now.elapsed.saturating_add(BLOCKED));
                self.pause_for(FIRST_PAUSE, now, random);
                ClaimState::Unlisted
            }
            _ => ClaimState::Unlisted,
        }
    }

    /// A lease that was granted by a request sent at this time. Its renewal is due after about a third of the duration. The due time is random,
    /// so that not all nodes renew at once.
    fn granted(&self, lease: SubnetLease, at: Duration, random: &mut Random<'_>) -> Held {
        let third = self.terms.duration / 3;
        let percent = u32::try_from(90 + random(21)).unwrap_or(100);
        Held { lease, granted: at, due: at.saturating_add(third * percent / 100), is_suspect: false }
    }

    /// Sends nothing for 50 to 100 percent of this time.
    fn pause_for(&mut self, longest: Duration, now: Now, random: &mut Random<'_>) {
        let percent = u32::try_from(50 + random(51)).unwrap_or(100);
        self.pause = now.elapsed.saturating_add(longest * percent / 100);
    }

    /// Replaces the leases by a list. A lease whose version has not changed keeps the time when it was first seen.
    fn replace_leases(&mut self, leases: Vec<SubnetLease>, now: Now) {
        let before = std::mem::take(&mut self.leases);
        let ours = leases.into_iter().filter(|lease| Family::of_net(lease.subnet) == self.space.family());
        self.leases = ours.map(|lease| (lease.subnet, observe_lease(before.get(&lease.subnet), lease, now))).collect();
    }

    /// The state after the list that follows the grant of a lease: the lease is held unless another lease overlaps it.
    fn confirm(&mut self, granted: &SubnetLease, at: Duration, now: Now, random: &mut Random<'_>) -> ClaimState {
        let Some(lease) = self.own(granted.subnet) else {
            // The answer to the request was so late that another node has taken the lease meanwhile.
            self.check_in_use();
            return ClaimState::Choosing;
        };
        let rival = self
            .leases
            .values()
            .map(|seen| &seen.lease)
            .find(|other| other.subnet != lease.subnet && overlap(other.subnet, lease.subnet) && !self.who.holds(other));
        if let Some(rival) = rival {
            self.events.push(ClaimEvent::Overlapped(lease.subnet, rival.subnet));
            self.surplus.push(lease);
            self.pause_for(FIRST_PAUSE, now, random);
            return ClaimState::Choosing;
        }
        let others = self.leases.values().map(|seen| &seen.lease);
        self.surplus = others.filter(|other| other.subnet != lease.subnet && self.who.holds(other)).cloned().collect();
        self.leases.clear();
        (self.loss, self.shortage, self.in_use) = (None, None, None);
        self.events.push(ClaimEvent::Leased(lease.subnet));
        ClaimState::Held(self.granted(lease, at, random))
    }

    /// The state after the list that follows a suspicion: the lease is held or lost.
    fn confirm_held(&mut self, held: &Held) -> ClaimState {
        let subnet = held.lease.subnet;
        if let Some(lease) = self.own(subnet) {
            self.leases.clear();
            return ClaimState::Held(Held { lease, is_suspect: false, granted: held.granted, due: held.due });
        }
        let loss = LostLease { subnet, holder: self.other_holder(subnet) };
        self.events.push(ClaimEvent::Lost(loss.clone()));
        self.loss = Some(loss);
        self.previous.retain(|previous| *previous != subnet);
        self.previous.insert(0, subnet);
        ClaimState::Choosing
    }

    /// Records a loss if another node has a lease on the subnet that this node uses. If no lease of the subnet exists, it stays in use.
    fn check_in_use(&mut self) {
        let Some(subnet) = self.in_use.filter(|subnet| self.own(*subnet).is_none()) else { return };
        if let Some(holder) = self.other_holder(subnet) {
            self.in_use = None;
            let loss = LostLease { subnet, holder: Some(holder) };
            self.events.push(ClaimEvent::Lost(loss.clone()));
            self.loss = Some(loss);
        }
    }

    /// The holder of another node's lease or reservation that overlaps a subnet.
    fn other_holder(&self, subnet: IpNetwork) -> Option<Box<str>> {
        let is_others = |lease: &SubnetLease| match lease.duration {
            Some(_) => !lease.holder.is_empty() && !self.who.holds(lease),
            None => !self.who.may_take(lease),
        };
        let mut others = self.leases.values().map(|seen| &seen.lease).filter(|lease| overlap(lease.subnet, subnet) && is_others(lease));
        others.next().map(|lease| lease.holder.clone())
    }

    /// This node's lease of a subnet.
    fn own(&self, subnet: IpNetwork) -> Option<SubnetLease> {
        self.leases.get(&subnet).map(|seen| &seen.lease).filter(|lease| self.who.holds(lease)).cloned()
    }

    /// Processes an event of the watch. The event may be outdated, so it only causes a new list or a new attempt.
    pub fn observe(&mut self, observed: LeaseObservation, now: Now) {
        match &mut self.state {
            ClaimState::Held(held) => {
                let subnet = held.lease.subnet;
                held.is_suspect |= match observed {
                    LeaseObservation::Changed(lease) => lease.subnet == subnet && !self.who.holds(&lease),
                    LeaseObservation::Deleted(deleted) => deleted == subnet,
                    LeaseObservation::Listed(all) => !all.contains(&subnet),
                };
            }
            ClaimState::Waiting { until } => {
                let before = self.leases.len();
                let mut is_takeable = false;
                match observed {
                    LeaseObservation::Changed(lease) if Family::of_net(lease.subnet) == self.space.family() => {
                        is_takeable = self.who.holds(&lease) || (lease.duration.is_none() && self.who.may_take(&lease));
                        let seen = observe_lease(self.leases.get(&lease.subnet), lease, now);
                        self.leases.insert(seen.lease.subnet, seen);
                    }
                    LeaseObservation::Changed(_) => {}
                    LeaseObservation::Deleted(subnet) => drop(self.leases.remove(&subnet)),
                    LeaseObservation::Listed(all) => self.leases.retain(|subnet, _| all.contains(subnet)),
                }
                if is_takeable || self.leases.len() < before {
                    *until = now.elapsed;
                }
            }
            _ => {}
        }
    }
}

/// A lease with the time when its version was first seen.
fn observe_lease(before: Option<&ObservedLease>, lease: SubnetLease, now: Now) -> ObservedLease {
    let same = before.filter(|before| (&before.lease.uid, &before.lease.version) == (&lease.uid, &lease.version));
    ObservedLease { since: same.map_or(now.elapsed, |before| before.since), lease }
}
