//! One node's claim on a subnet, from the first look at the leases to each renewal and beyond. PURE: it says which request to send next
//! and is told the answer; clocks and chance are passed in.
//!
//! What keeps two nodes off one subnet:
//!
//! - A subnet's Lease is created under the subnet's name, and changed or deleted only as the version that was read. Whoever loses a race
//!   is told so.
//! - A subnet counts as held from the beginning of the request that took or renewed its lease, for no longer than the lease's duration;
//!   others wait for longer, from a moment that lies behind it ([`ObservedLease::expiry`]).
//! - Subnets of different length overlap under different names. So whoever has taken one lists the leases once more, and gives it up if
//!   another reaches into it. Of two at once, at least the later one sees the other.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use ipnetwork::IpNetwork;

use super::allocation::{
    AllocationInputs, Claimant, Decision, LeaseTerms, Now, ObservedLease, Random, Shortage, SubnetLease, SubnetSpace, decide,
};
use crate::cluster::Family;
use crate::cluster::ip::overlap;

/// How long a subnet is not tried again after its name turned out to be taken.
const BLOCKED: Duration = Duration::from_secs(60);
/// How often a node without a subnet looks for one even if nothing seems to have changed.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// The first pause after a request that failed; each one after that is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimStep {
    /// List the leases, as they are and not from a cache, and tell what came.
    List,
    /// Send this request and tell what came.
    Send(LeaseRequest),
    /// Nothing until this moment (as [`Now::elapsed`]), unless something is observed.
    Rest(Duration),
}

/// A request to the API server. All but the first hold only for the version of the lease that they carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseRequest {
    /// Create the Lease of a subnet.
    Create(IpNetwork),
    /// Take over a lease that was another's or nobody's.
    Take(SubnetLease),
    /// Renew a lease of its own.
    Renew(SubnetLease),
    /// Delete a lease; one that is reserved for somebody becomes a mere reservation again.
    Release(SubnetLease),
}

/// What came of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseAnswer {
    /// The leases there are.
    Listed(Vec<SubnetLease>),
    /// The lease as it was written.
    Written(SubnetLease),
    /// The lease is given up.
    Released,
    /// There is one already, or it has another version by now.
    Conflict,
    /// There is no such lease.
    Missing,
    /// It is not known what came of it.
    Failed,
}

/// Something seen by a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseObservation {
    /// A lease is like this.
    Changed(SubnetLease),
    /// The lease of this subnet was deleted.
    Gone(IpNetwork),
    /// These are all there are.
    Listed(HashSet<IpNetwork>),
}

/// Something to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimEvent {
    /// A subnet was leased.
    Leased(IpNetwork),
    /// A lease was renewed.
    Renewed(IpNetwork),
    /// A lease that was held is another's, or nobody's.
    Lost(LostLease),
    /// A subnet was given up at once, as another lease reaches into it.
    Overlapped(IpNetwork, IpNetwork),
    /// No subnet is to be had; said at every try.
    OutOfSubnets(Shortage),
}

/// A lease that was held and is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostLease {
    /// Its subnet.
    pub subnet: IpNetwork,
    /// The `holderIdentity` of whoever has it; `None` if the lease is gone.
    pub holder: Option<Box<str>>,
}

/// How things stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseStatus {
    /// A subnet is looked for.
    Seeking {
        /// The one that was held before. As long as nobody else has it (no holder), the same one is likely to come back at once, and what
        /// the kernel has can stay until then; otherwise it is another's.
        loss: Option<LostLease>,
        /// There was none to be had at the last try.
        shortage: Option<Shortage>,
    },
    /// This subnet is held.
    Held(IpNetwork),
    /// This one was held, and could not be renewed for the whole of its duration: the API server was out of reach. Others may take it
    /// once they reach the server; it is not known that anybody did.
    Lapsed(IpNetwork),
}

impl Default for LeaseStatus {
    fn default() -> Self {
        Self::Seeking { loss: None, shortage: None }
    }
}

/// Which leases are worth watching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchScope {
    /// The one of this subnet.
    One(IpNetwork),
    /// All: one may come free.
    All,
}

#[derive(Clone, Debug)]
struct Held {
    lease: SubnetLease,
    /// The beginning of the last request that was granted.
    granted: Duration,
    /// When to renew.
    due: Duration,
    /// Something says that it is lost.
    doubted: bool,
}

#[derive(Clone, Debug)]
enum ClaimState {
    /// The leases are to be listed.
    Blind,
    /// They are listed, and one is to be chosen.
    Choosing,
    /// A request is under way. If a lease is held meanwhile, this one.
    Sent {
        request: LeaseRequest,
        at: Duration,
        held: Option<Held>,
    },
    /// A lease was granted, and it is to be seen whether others reach into it.
    Confirming {
        lease: SubnetLease,
        granted: Duration,
    },
    Held(Held),
    /// There is none to be had.
    Waiting {
        until: Duration,
    },
}

/// A node's claim on a subnet of one family.
#[derive(Debug)]
pub struct Claim {
    space: SubnetSpace,
    who: Claimant,
    terms: LeaseTerms,
    previous: Vec<IpNetwork>,
    /// The subnet that this node uses although no lease of it was seen yet.
    in_use: Option<IpNetwork>,
    leases: BTreeMap<IpNetwork, ObservedLease>,
    blocked: BTreeMap<IpNetwork, Duration>,
    /// Leases of its own that it does not want.
    surplus: Vec<SubnetLease>,
    state: ClaimState,
    loss: Option<LostLease>,
    shortage: Option<Shortage>,
    /// Nothing is sent before.
    pause: Duration,
    failures: u32,
    news: Vec<ClaimEvent>,
}

impl Claim {
    /// A claim of a node, that knows nothing yet but the subnets it had before, the most recent first.
    #[must_use]
    pub const fn new(space: SubnetSpace, who: Claimant, terms: LeaseTerms, previous: Vec<IpNetwork>) -> Self {
        Self {
            space,
            who,
            terms,
            previous,
            in_use: None,
            leases: BTreeMap::new(),
            blocked: BTreeMap::new(),
            surplus: Vec::new(),
            state: ClaimState::Blind,
            loss: None,
            shortage: None,
            pause: Duration::ZERO,
            failures: 0,
            news: Vec::new(),
        }
    }

    /// The same claim of a node that uses this subnet already: subnet.env names it. If another node has a lease of it, it is lost.
    #[must_use]
    pub const fn using(mut self, subnet: Option<IpNetwork>) -> Self {
        self.in_use = subnet;
        self
    }

    /// Who claims.
    #[must_use]
    pub const fn who(&self) -> &Claimant {
        &self.who
    }

    /// The Node was registered anew, or has other addresses. A lease is renewed in its new name at once.
    pub fn set_who(&mut self, who: Claimant) {
        let renamed = who.identity() != self.who.identity();
        self.who = who;
        if renamed {
            self.renew_now();
        }
    }

    /// Renews the lease now and not when it is due: what stands beside it has changed.
    pub fn renew_now(&mut self) {
        if let ClaimState::Held(held) = &mut self.state {
            held.due = Duration::ZERO;
        }
    }

    /// What there is to tell since the last time.
    pub fn take_news(&mut self) -> Vec<ClaimEvent> {
        std::mem::take(&mut self.news)
    }

    /// How things stand.
    #[must_use]
    pub fn standing(&self, now: Now) -> LeaseStatus {
        match &self.state {
            ClaimState::Held(held) | ClaimState::Sent { held: Some(held), .. } => {
                let subnet = held.lease.subnet;
                let lapsed = now.elapsed >= held.granted.saturating_add(self.terms.duration);
                if lapsed { LeaseStatus::Lapsed(subnet) } else { LeaseStatus::Held(subnet) }
            }
            _ => {
                let loss = self.loss.clone().map(|loss| LostLease { holder: self.taken_by(loss.subnet).or(loss.holder), ..loss });
                LeaseStatus::Seeking { loss, shortage: self.shortage }
            }
        }
    }

    /// Which leases are worth watching now; `None` if it does not matter.
    #[must_use]
    pub const fn scope(&self) -> Option<WatchScope> {
        match &self.state {
            ClaimState::Held(held) => Some(WatchScope::One(held.lease.subnet)),
            ClaimState::Waiting { .. } => Some(WatchScope::All),
            _ => None,
        }
    }

    /// The next step. After [`ClaimStep::List`] and [`ClaimStep::Send`] it wants an answer before it is asked again.
    pub fn step(&mut self, now: Now, random: &mut Random<'_>) -> ClaimStep {
        if now.elapsed < self.pause {
            return ClaimStep::Rest(self.pause);
        }
        match &self.state {
            ClaimState::Blind | ClaimState::Confirming { .. } => ClaimStep::List,
            ClaimState::Held(held) if held.doubted => ClaimStep::List,
            ClaimState::Sent { request, .. } => ClaimStep::Send(request.clone()),
            ClaimState::Waiting { until } if now.elapsed < *until => ClaimStep::Rest(*until),
            ClaimState::Waiting { .. } | ClaimState::Choosing => match self.surplus.pop() {
                Some(lease) => self.send(LeaseRequest::Release(lease), now),
                None => self.choose(now, random),
            },
            ClaimState::Held(held) => {
                let (due, lease) = (held.due, held.lease.clone());
                match self.surplus.pop() {
                    Some(surplus) => self.send(LeaseRequest::Release(surplus), now),
                    None if now.elapsed < due => ClaimStep::Rest(due),
                    None => self.send(LeaseRequest::Renew(lease), now),
                }
            }
        }
    }

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
                let latest = now.elapsed.saturating_add(LOOK_AGAIN);
                let until = shortage.next_expiry.map_or(latest, |expiry| expiry.min(latest));
                self.news.push(ClaimEvent::OutOfSubnets(shortage));
                self.shortage = Some(shortage);
                self.state = ClaimState::Waiting { until };
                return ClaimStep::Rest(until);
            }
        };
        self.send(request, now)
    }

    fn send(&mut self, request: LeaseRequest, now: Now) -> ClaimStep {
        let held = match std::mem::replace(&mut self.state, ClaimState::Blind) {
            ClaimState::Held(held) => Some(held),
            _ => None,
        };
        self.state = ClaimState::Sent { request: request.clone(), at: now.elapsed, held };
        ClaimStep::Send(request)
    }

    /// Takes the answer to the last step.
    pub fn answer(&mut self, answer: LeaseAnswer, now: Now, random: &mut Random<'_>) {
        if answer == LeaseAnswer::Failed {
            let longest = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10)).min(LONGEST_PAUSE);
            self.failures = self.failures.saturating_add(1);
            self.pause_for(longest, now, random);
        } else {
            self.failures = 0;
        }
        let state = std::mem::replace(&mut self.state, ClaimState::Blind);
        self.state = match (state, answer) {
            (ClaimState::Sent { request, at, held }, answer) => self.answered(request, at, held, answer, now, random),
            (state, LeaseAnswer::Listed(leases)) => {
                self.absorb(leases, now);
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
                self.news.push(ClaimEvent::Renewed(lease.subnet));
                ClaimState::Held(self.granted(lease, at, random))
            }
            (LeaseRequest::Renew(_), Some(held), LeaseAnswer::Conflict | LeaseAnswer::Missing) => {
                ClaimState::Held(Held { doubted: true, ..held })
            }
            // What became of a lease that is not wanted, shows in the next list; if it is still there, it expires.
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
                ClaimState::Blind
            }
            _ => ClaimState::Blind,
        }
    }

    /// A lease that was granted at this moment. Renewal is due after a third of its duration, but not for all nodes at once.
    fn granted(&self, lease: SubnetLease, at: Duration, random: &mut Random<'_>) -> Held {
        let third = self.terms.duration / 3;
        let percent = u32::try_from(90 + random(21)).unwrap_or(100);
        Held { lease, granted: at, due: at.saturating_add(third * percent / 100), doubted: false }
    }

    /// Pauses for a random part of this time.
    fn pause_for(&mut self, longest: Duration, now: Now, random: &mut Random<'_>) {
        let percent = u32::try_from(50 + random(51)).unwrap_or(100);
        self.pause = now.elapsed.saturating_add(longest * percent / 100);
    }

    /// Takes the leases there are. What has not changed since it was last seen, was seen then.
    fn absorb(&mut self, leases: Vec<SubnetLease>, now: Now) {
        let before = std::mem::take(&mut self.leases);
        let ours = leases.into_iter().filter(|lease| Family::of_net(lease.subnet) == self.space.family());
        self.leases = ours.map(|lease| (lease.subnet, seen(before.get(&lease.subnet), lease, now))).collect();
    }

    /// Whether a lease that was granted is really held, now that the leases were listed after it.
    fn confirm(&mut self, granted: &SubnetLease, at: Duration, now: Now, random: &mut Random<'_>) -> ClaimState {
        let Some(lease) = self.own(granted.subnet) else { return ClaimState::Choosing };
        let rival = self
            .leases
            .values()
            .map(|seen| &seen.lease)
            .find(|other| other.subnet != lease.subnet && overlap(other.subnet, lease.subnet) && !self.who.holds(other));
        if let Some(rival) = rival {
            self.news.push(ClaimEvent::Overlapped(lease.subnet, rival.subnet));
            self.surplus.push(lease);
            self.pause_for(FIRST_PAUSE, now, random);
            return ClaimState::Choosing;
        }
        let others = self.leases.values().map(|seen| &seen.lease);
        self.surplus = others.filter(|other| other.subnet != lease.subnet && self.who.holds(other)).cloned().collect();
        self.leases.clear();
        (self.loss, self.shortage, self.in_use) = (None, None, None);
        self.news.push(ClaimEvent::Leased(lease.subnet));
        ClaimState::Held(self.granted(lease, at, random))
    }

    /// Whether a lease that was held still is, now that the leases were listed.
    fn confirm_held(&mut self, held: &Held) -> ClaimState {
        let subnet = held.lease.subnet;
        if let Some(lease) = self.own(subnet) {
            self.leases.clear();
            return ClaimState::Held(Held { lease, doubted: false, granted: held.granted, due: held.due });
        }
        let loss = LostLease { subnet, holder: self.taken_by(subnet) };
        self.news.push(ClaimEvent::Lost(loss.clone()));
        self.loss = Some(loss);
        self.previous.retain(|previous| *previous != subnet);
        self.previous.insert(0, subnet);
        ClaimState::Choosing
    }

    /// Whether the subnet that this node uses is another node's by now. Nothing else was seen of it if there is no lease of it at all.
    fn check_in_use(&mut self) {
        let Some(subnet) = self.in_use.filter(|subnet| self.own(*subnet).is_none()) else { return };
        if let Some(holder) = self.taken_by(subnet) {
            self.in_use = None;
            let loss = LostLease { subnet, holder: Some(holder) };
            self.news.push(ClaimEvent::Lost(loss.clone()));
            self.loss = Some(loss);
        }
    }

    /// The holder of another node's lease on any address of a subnet. A reservation for another node counts, too.
    fn taken_by(&self, subnet: IpNetwork) -> Option<Box<str>> {
        let is_others = |lease: &SubnetLease| match lease.duration {
            Some(_) => !lease.holder.is_empty() && !self.who.holds(lease),
            None => !self.who.may_have(lease),
        };
        let mut others = self.leases.values().map(|seen| &seen.lease).filter(|lease| overlap(lease.subnet, subnet) && is_others(lease));
        others.next().map(|lease| lease.holder.clone())
    }

    fn own(&self, subnet: IpNetwork) -> Option<SubnetLease> {
        self.leases.get(&subnet).map(|seen| &seen.lease).filter(|lease| self.who.holds(lease)).cloned()
    }

    /// Takes what a watch has seen. It may be late: it makes one look or wait, and nothing is believed of it.
    pub fn observe(&mut self, observed: LeaseObservation, now: Now) {
        match &mut self.state {
            ClaimState::Held(held) => {
                let subnet = held.lease.subnet;
                held.doubted |= match observed {
                    LeaseObservation::Changed(lease) => lease.subnet == subnet && !self.who.holds(&lease),
                    LeaseObservation::Gone(gone) => gone == subnet,
                    LeaseObservation::Listed(all) => !all.contains(&subnet),
                };
            }
            ClaimState::Waiting { until } => {
                let before = self.leases.len();
                let mut may_have = false;
                match observed {
                    LeaseObservation::Changed(lease) if Family::of_net(lease.subnet) == self.space.family() => {
                        may_have = self.who.holds(&lease) || (lease.duration.is_none() && self.who.may_have(&lease));
                        let seen = seen(self.leases.get(&lease.subnet), lease, now);
                        self.leases.insert(seen.lease.subnet, seen);
                    }
                    LeaseObservation::Changed(_) => {}
                    LeaseObservation::Gone(subnet) => drop(self.leases.remove(&subnet)),
                    LeaseObservation::Listed(all) => self.leases.retain(|subnet, _| all.contains(subnet)),
                }
                if may_have || self.leases.len() < before {
                    *until = now.elapsed;
                }
            }
            _ => {}
        }
    }
}

/// A lease as it is seen now; since then, or since it was first seen like that.
fn seen(before: Option<&ObservedLease>, lease: SubnetLease, now: Now) -> ObservedLease {
    let same = before.filter(|before| (&before.lease.uid, &before.lease.version) == (&lease.uid, &lease.version));
    ObservedLease { since: same.map_or(now.elapsed, |before| before.since), lease }
}
