//! Decides which subnet a node takes, from the leases that exist [flannel 4]. PURE: clock and random numbers are passed in.
//!
//! Each subnet of each family has one Lease object, named after the subnet, so the API server refuses to create it twice. One object for
//! a pair of subnets would not prevent that: the pairs (A, X) and (A, Y) have different names but share A.
//!
//! A Lease without a duration is a reservation. Its `holderIdentity` is the name of a Node or one of its addresses, and only that node
//! takes the subnet. A reservation that was taken is renewed like any other lease. An annotation keeps the name or address it is reserved
//! for.
//!
//! Expired leases of other nodes are taken only if no subnet is free. When clocks disagree, a lease expires late rather than early.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use jiff::{SignedDuration, Timestamp};

use crate::cluster::ip::{Family, overlap, parse_ip};

/// The search stops after this many free subnets; one of them is chosen [flannel 4].
const MAX_CANDIDATES: usize = 100;
/// Prefix of the names of Lease objects.
const NAME_PREFIX: &str = "sepal-";

/// The subnets of one family that nodes can lease: all subnets of one length from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubnetSpace {
    /// The pod network.
    pub network: IpNetwork,
    /// Prefix length of each subnet.
    pub subnet_len: u8,
    /// The first subnet (`SubnetMin`).
    pub min: IpNetwork,
    /// The last subnet (`SubnetMax`).
    pub max: IpNetwork,
}

impl SubnetSpace {
    /// The family of the subnets.
    #[must_use]
    pub const fn family(&self) -> Family {
        Family::of_net(self.network)
    }

    /// Returns true if a subnet belongs to this space.
    #[must_use]
    pub fn contains(&self, subnet: IpNetwork) -> bool {
        let base = first(subnet);
        Family::of_net(subnet) == self.family()
            && subnet.prefix() == self.subnet_len
            && subnet.ip() == subnet.network()
            && (first(self.min)..=first(self.max)).contains(&base)
    }

    /// Number of subnets.
    #[must_use]
    pub fn subnets(&self) -> u128 {
        let span = first(self.max).saturating_sub(first(self.min));
        self.size().map_or(0, |size| span / size).saturating_add(1)
    }

    /// Number of addresses in one subnet; `None` if the subnet is all of IPv6.
    fn size(&self) -> Option<u128> {
        1_u128.checked_shl(u32::from(self.family().bits().saturating_sub(self.subnet_len)))
    }

    /// The subnet that starts at this address.
    fn subnet_at(&self, base: u128) -> Option<IpNetwork> {
        let ip = match self.family() {
            Family::V4 => IpAddr::V4(Ipv4Addr::from(u32::try_from(base).ok()?)),
            Family::V6 => IpAddr::V6(Ipv6Addr::from(base)),
        };
        IpNetwork::new(ip, self.subnet_len).ok()
    }

    /// The first subnets that overlap no taken range, at most `limit`.
    fn free(&self, mut taken: Vec<(u128, u128)>, limit: usize) -> Vec<IpNetwork> {
        taken.sort_unstable();
        let mut taken = taken.into_iter().peekable();
        let (start, end) = (first(self.min), first(self.max));
        let mut free = Vec::new();
        let mut base = Some(start);
        while let Some(at) = base.filter(|at| *at <= end && free.len() < limit) {
            let size = self.size();
            let last = size.map_or(u128::MAX, |size| at.saturating_add(size - 1));
            while taken.next_if(|(_, taken_last)| *taken_last < at).is_some() {}
            let after = match taken.peek() {
                // Go on at the first subnet boundary after the taken range.
                Some((taken_first, taken_last)) if *taken_first <= last => {
                    size.and_then(|size| start.checked_add(((taken_last - start) / size).checked_add(1)?.checked_mul(size)?))
                }
                _ => {
                    free.extend(self.subnet_at(at));
                    size.and_then(|size| at.checked_add(size))
                }
            };
            base = after;
        }
        free
    }
}

impl fmt::Display for SubnetSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} /{} subnets from {} to {}", self.subnets(), self.subnet_len, self.min.network(), self.max.network())
    }
}

/// The first address as a number.
fn first(net: IpNetwork) -> u128 {
    range(net).0
}

/// The first and the last address as numbers.
fn range(net: IpNetwork) -> (u128, u128) {
    let (first, bits) = match net {
        IpNetwork::V4(net) => (u128::from(u32::from(net.network())), 32_u8),
        IpNetwork::V6(net) => (u128::from(net.network()), 128),
    };
    let host_bits = u32::from(bits - net.prefix().min(bits));
    (first, first | u128::MAX.checked_shr(128 - host_bits).unwrap_or(0))
}

/// The name of the Lease object of a subnet: `sepal-10-244-3-0-24`, `sepal-fc00-0-0-1-0-0-0-0-64`.
#[must_use]
pub(crate) fn lease_name(subnet: IpNetwork) -> String {
    let parts: Vec<String> = match subnet.network() {
        IpAddr::V4(ip) => ip.octets().iter().map(ToString::to_string).collect(),
        IpAddr::V6(ip) => ip.segments().iter().map(|segment| format!("{segment:x}")).collect(),
    };
    format!("{NAME_PREFIX}{}-{}", parts.join("-"), subnet.prefix())
}

/// The subnet that a Lease object is named after; `None` if the name is not of this form.
#[must_use]
pub(crate) fn parse_lease_name(name: &str) -> Option<IpNetwork> {
    let (address, prefix) = name.strip_prefix(NAME_PREFIX)?.rsplit_once('-')?;
    let separator = if address.matches('-').count() == 3 { "." } else { ":" };
    let subnet = IpNetwork::new(address.replace('-', separator).parse().ok()?, prefix.parse().ok()?).ok()?;
    // Accept only the form that `lease_name` writes.
    (lease_name(subnet) == name).then_some(subnet)
}

/// The Lease object of a subnet, as it was read from the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetLease {
    /// The subnet that the object is named after.
    pub subnet: IpNetwork,
    /// `metadata.uid`.
    pub uid: Box<str>,
    /// `metadata.resourceVersion`. It is only compared for equality.
    pub version: Box<str>,
    /// `spec.holderIdentity`; empty if absent.
    pub holder: Box<str>,
    /// `spec.leaseDurationSeconds`. Without it, the object is a reservation that is not taken.
    pub duration: Option<Duration>,
    /// `spec.renewTime`, read from the holder's clock.
    pub renewed: Option<Timestamp>,
    /// `spec.leaseTransitions`.
    pub transitions: i32,
    /// The node that the subnet is reserved for: the name of its Node, or one of its addresses.
    pub reserved_for: Option<Box<str>>,
}

/// A node that needs a subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimant {
    /// The Node's name.
    pub node: Arc<str>,
    /// The Node's UID.
    pub uid: Arc<str>,
    /// Its addresses. A reservation may name one of them.
    pub addresses: Vec<IpAddr>,
}

impl Claimant {
    /// The value of `holderIdentity`: `name_uid`. Names of Nodes contain no underscore.
    #[must_use]
    pub fn identity(&self) -> String {
        format!("{}_{}", self.node, self.uid)
    }

    /// Returns true if this node holds a lease. A lease that it took before its Node was registered anew counts, too.
    #[must_use]
    pub fn holds(&self, lease: &SubnetLease) -> bool {
        lease.duration.is_some() && lease.holder.rsplit_once('_').is_some_and(|(node, _)| node == &*self.node)
    }

    /// Returns true if a reservation names this node.
    fn is_named_by(&self, reserved_for: &str) -> bool {
        let address = || parse_ip(reserved_for).is_some_and(|ip| self.addresses.contains(&ip));
        reserved_for == &*self.node || reserved_for == self.identity() || address()
    }

    /// Returns true if this node may take a lease once it has no holder: it is not reserved for another node.
    #[must_use]
    pub(crate) fn may_take(&self, lease: &SubnetLease) -> bool {
        lease.reserved_for.as_deref().is_none_or(|reserved_for| self.is_named_by(reserved_for))
    }
}

/// How long leases last, and how long another node waits before it takes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTerms {
    /// A lease is valid for this long after it was renewed.
    pub duration: Duration,
    /// An observer that has seen the lease unchanged on its own clock waits this much longer.
    pub grace: Duration,
    /// An observer that compares `renewTime` with its own time of day waits this much longer.
    pub skew: Duration,
}

impl LeaseTerms {
    /// The default duration: the time to live that flannel uses in etcd.
    pub const DURATION: Duration = Duration::from_secs(24 * 60 * 60);
    /// The grace is at most this long.
    const LONGEST_GRACE: Duration = Duration::from_secs(60 * 60);
    /// The skew is at least this long: the largest error of a clock that shows local time instead of UTC.
    const LEAST_SKEW: Duration = Duration::from_secs(14 * 60 * 60);

    /// The terms for a duration.
    #[must_use]
    pub fn of(duration: Duration) -> Self {
        Self { duration, grace: (duration / 8).min(Self::LONGEST_GRACE), skew: duration.max(Self::LEAST_SKEW) }
    }
}

/// The current time on a node's own clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Monotonic time since the node's own start.
    pub elapsed: Duration,
    /// The time of day. It may be wrong.
    pub wall: Timestamp,
}

/// A lease, and when its current version was first seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedLease {
    /// The lease.
    pub lease: SubnetLease,
    /// When this version was first seen, as [`Now::elapsed`].
    pub since: Duration,
}

impl ObservedLease {
    /// When the lease expires if it does not change, as [`Now::elapsed`]; `None` if it never expires.
    ///
    /// The observer measures with its own monotonic clock, as leader election does: the holder renewed the lease before the observer saw
    /// it. `renewTime` gives an earlier expiry only if it is older than duration and skew together.
    #[must_use]
    pub fn expiry(&self, terms: &LeaseTerms, now: Now) -> Option<Duration> {
        let duration = self.lease.duration?;
        let by_observation = self.since.saturating_add(duration).saturating_add(terms.grace);
        let by_renew_time = self.lease.renewed.map(|renewed| {
            let age = now.wall.duration_since(renewed);
            let left = SignedDuration::try_from(duration.saturating_add(terms.skew)).unwrap_or(SignedDuration::MAX).saturating_sub(age);
            now.elapsed.saturating_add(Duration::try_from(left).unwrap_or_default())
        });
        Some(by_renew_time.map_or(by_observation, |expiry| expiry.min(by_observation)))
    }

    fn is_expired(&self, terms: &LeaseTerms, now: Now) -> bool {
        self.expiry(terms, now).is_some_and(|expiry| expiry <= now.elapsed)
    }
}

/// Everything that a decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct AllocationInputs<'a> {
    /// The subnets that nodes can lease.
    pub space: &'a SubnetSpace,
    /// The node that needs a subnet.
    pub who: &'a Claimant,
    /// Subnets that the node had before, the most recent first: the podCIDRs of its Node, and the subnets in subnet.env.
    pub previous: &'a [IpNetwork],
    /// The existing leases of this family.
    pub leases: &'a BTreeMap<IpNetwork, ObservedLease>,
    /// Subnets that could not be created although no lease is listed, with the end of the block.
    pub blocked: &'a BTreeMap<IpNetwork, Duration>,
    /// How long leases last.
    pub terms: &'a LeaseTerms,
    /// The current time.
    pub now: Now,
}

/// What the node does to get a subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Renew the lease that the node holds.
    Renew(SubnetLease),
    /// Take over a lease that has expired or is reserved for the node.
    Take(SubnetLease),
    /// Create the lease of a free subnet.
    Create(IpNetwork),
    /// Release a lease first: the node's own one, which is outside the space, or an expired one that overlaps subnets of the space.
    Release(SubnetLease),
    /// No subnet is available.
    OutOfSubnets(Shortage),
}

/// Why no subnet is available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// The subnets that nodes can lease.
    pub space: SubnetSpace,
    /// Number of leases that have a holder.
    pub held: usize,
    /// Number of reservations for other nodes that are not taken.
    pub reserved: usize,
    /// Number of subnets whose Lease object exists but lacks the labels of this network.
    pub unlisted: usize,
    /// When the next lease expires if it is not renewed, as [`Now::elapsed`].
    pub next_expiry: Option<Duration>,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { space, held, reserved, unlisted, next_expiry: _ } = self;
        write!(f, "out of subnets: of {space} {held} are leased and {reserved} reserved for others")?;
        if *unlisted > 0 {
            write!(f, ", and for {unlisted} there is a Lease without the labels of this network")?;
        }
        write!(f, "; make Network larger or SubnetLen longer, or delete the Leases of nodes that will not come back")
    }
}

/// Gives a random number below its argument.
pub type Random<'a> = dyn FnMut(usize) -> usize + 'a;

/// Decides which subnet a node takes [flannel 4]. The order is: the subnet of its own lease, a reserved one, its previous one, a random free
/// one, one whose lease has expired.
#[must_use]
pub(crate) fn decide(view: &AllocationInputs<'_>, random: &mut Random<'_>) -> Decision {
    let AllocationInputs { space, who, previous, leases, blocked, .. } = *view;
    let rank = |lease: &&SubnetLease| previous.iter().position(|subnet| *subnet == lease.subnet).unwrap_or(previous.len());
    let own = || leases.values().map(|seen| &seen.lease).filter(|lease| who.holds(lease));
    if let Some(lease) = own().filter(|lease| space.contains(lease.subnet)).min_by_key(rank) {
        return Decision::Renew(lease.clone());
    }
    if let Some(lease) = own().next() {
        return Decision::Release(lease.clone());
    }
    // Leases of another length may overlap a subnet.
    let clear = |lease: &&SubnetLease| {
        let alone = |subnet: IpNetwork| !leases.keys().any(|other| *other != subnet && overlap(*other, subnet));
        space.contains(lease.subnet) && alone(lease.subnet)
    };
    let reserved = |lease: &&SubnetLease| lease.duration.is_none() && who.may_take(lease) && clear(lease);
    if let Some(lease) = leases.values().map(|seen| &seen.lease).find(reserved) {
        return Decision::Take(lease.clone());
    }
    let taken = || leases.keys().chain(blocked.keys());
    let free = |subnet: &&IpNetwork| space.contains(**subnet) && !taken().any(|other| overlap(*other, **subnet));
    if let Some(subnet) = previous.iter().find(free) {
        return Decision::Create(*subnet);
    }
    let free = space.free(taken().map(|subnet| range(*subnet)).collect(), MAX_CANDIDATES);
    if let Some(subnet) = pick(&free, random) {
        return Decision::Create(*subnet);
    }
    let (usable, in_the_way): (Vec<_>, Vec<_>) = view.expired().take(MAX_CANDIDATES).partition(clear);
    if let Some(lease) = pick(&usable, random) {
        return Decision::Take((*lease).clone());
    }
    match in_the_way.into_iter().find(|lease| lease.reserved_for.is_none()) {
        Some(lease) => Decision::Release(lease.clone()),
        None => Decision::OutOfSubnets(view.shortage()),
    }
}

/// Chooses one item at random.
fn pick<'a, T>(choice: &'a [T], random: &mut Random<'_>) -> Option<&'a T> {
    if choice.is_empty() { None } else { choice.get(random(choice.len()) % choice.len()) }
}

impl<'a> AllocationInputs<'a> {
    /// The leases that overlap the space and that the node may take once they have expired.
    fn takeable(&self) -> impl Iterator<Item = &'a ObservedLease> {
        let Self { space, who, leases, .. } = *self;
        let (start, end) = (first(space.min), range(space.max).1);
        let within = move |subnet: IpNetwork| range(subnet).0 <= end && range(subnet).1 >= start;
        leases.values().filter(move |seen| within(seen.lease.subnet) && who.may_take(&seen.lease))
    }

    /// The leases that the node may take now.
    fn expired(&self) -> impl Iterator<Item = &'a SubnetLease> {
        let Self { terms, now, .. } = *self;
        self.takeable().filter(move |seen| seen.is_expired(terms, now)).map(|seen| &seen.lease)
    }

    fn shortage(&self) -> Shortage {
        let Self { space, who, leases, blocked, terms, now, .. } = *self;
        let held = leases.values().filter(|seen| seen.lease.duration.is_some()).count();
        Shortage {
            space: *space,
            held,
            reserved: leases.values().filter(|seen| seen.lease.duration.is_none() && !who.may_take(&seen.lease)).count(),
            unlisted: blocked.keys().filter(|subnet| !leases.contains_key(subnet)).count(),
            next_expiry: self.takeable().filter_map(|seen| seen.expiry(terms, now)).filter(|expiry| *expiry > now.elapsed).min(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNetwork {
        text.parse().expect("a CIDR")
    }

    fn space(network: &str, subnet_len: u8, min: &str, max: &str) -> SubnetSpace {
        SubnetSpace { network: net(network), subnet_len, min: net(min), max: net(max) }
    }

    fn lease(subnet: &str, holder: &str) -> SubnetLease {
        SubnetLease {
            subnet: net(subnet),
            uid: "u".into(),
            version: "1".into(),
            holder: holder.into(),
            duration: Some(Duration::from_secs(100)),
            renewed: Some(Timestamp::UNIX_EPOCH),
            transitions: 0,
            reserved_for: None,
        }
    }

    fn reservation(subnet: &str, holder: &str) -> SubnetLease {
        SubnetLease { duration: None, renewed: None, reserved_for: Some(holder.into()), ..lease(subnet, holder) }
    }

    const TERMS: LeaseTerms =
        LeaseTerms { duration: Duration::from_secs(100), grace: Duration::from_secs(10), skew: Duration::from_secs(1000) };

    /// Decides for the node `me` at this second. All leases were first seen at second 0.
    fn decided(space: &SubnetSpace, previous: &[&str], leases: &[SubnetLease], seconds: u64) -> Decision {
        let who = Claimant { node: "me".into(), uid: "2".into(), addresses: vec!["192.0.2.1".parse().expect("an address")] };
        let previous: Vec<IpNetwork> = previous.iter().map(|subnet| net(subnet)).collect();
        let leases = leases.iter().map(|lease| (lease.subnet, ObservedLease { lease: lease.clone(), since: Duration::ZERO })).collect();
        let wall = Timestamp::UNIX_EPOCH + SignedDuration::from_secs(i64::try_from(seconds).expect("small"));
        let now = Now { elapsed: Duration::from_secs(seconds), wall };
        let blocked = BTreeMap::new();
        let view = AllocationInputs { space, who: &who, previous: &previous, leases: &leases, blocked: &blocked, terms: &TERMS, now };
        decide(&view, &mut |_| 0)
    }

    fn small() -> SubnetSpace {
        space("10.0.0.0/22", 24, "10.0.1.0/24", "10.0.3.0/24")
    }

    #[test]
    fn lease_names_and_subnets_correspond() {
        for (subnet, name) in [
            ("10.244.3.0/24", "sepal-10-244-3-0-24"),
            ("fc00:0:0:1::/64", "sepal-fc00-0-0-1-0-0-0-0-64"),
            ("::/0", "sepal-0-0-0-0-0-0-0-0-0"),
        ] {
            assert_eq!((lease_name(net(subnet)).as_str(), parse_lease_name(name)), (name, Some(net(subnet))));
        }
        for name in ["sepal-10-244-3-1-24", "sepal-10-244-03-0-24", "sepal-10-244-3-0-33", "sepal-10-244-3-24", "x-10-244-3-0-24", "sepal-"]
        {
            assert_eq!(parse_lease_name(name), None, "{name}");
        }
    }

    #[test]
    fn the_order_is_own_reserved_previous_random() {
        let space = small();
        let own = lease("10.0.2.0/24", "me_2");
        let reserved = reservation("10.0.3.0/24", "me");
        assert_eq!(decided(&space, &["10.0.1.0/24"], &[own.clone(), reserved.clone()], 0), Decision::Renew(own));
        assert_eq!(decided(&space, &["10.0.1.0/24"], std::slice::from_ref(&reserved), 0), Decision::Take(reserved));
        assert_eq!(decided(&space, &["10.0.2.0/24"], &[], 0), Decision::Create(net("10.0.2.0/24")));
        assert_eq!(decided(&space, &["10.0.2.0/24"], &[lease("10.0.2.0/24", "it_1")], 0), Decision::Create(net("10.0.1.0/24")));
        // Subnets outside the space are not candidates.
        assert_eq!(decided(&space, &["10.0.0.0/24", "10.0.2.0/25", "10.1.2.0/24"], &[], 0), Decision::Create(net("10.0.1.0/24")));
    }

    #[test]
    fn reservations_are_for_a_node_or_an_address() {
        let space = space("10.0.0.0/23", 24, "10.0.1.0/24", "10.0.1.0/24");
        for holder in ["me", "me_2", "192.0.2.1"] {
            let reserved = reservation("10.0.1.0/24", holder);
            assert_eq!(decided(&space, &[], std::slice::from_ref(&reserved), 0), Decision::Take(reserved), "{holder}");
        }
        for holder in ["it", "m", "192.0.2.2", ""] {
            let refused = decided(&space, &["10.0.1.0/24"], &[reservation("10.0.1.0/24", holder)], 1_000_000);
            let Decision::OutOfSubnets(shortage) = refused else { panic!("{holder}: {refused:?}") };
            assert_eq!((shortage.held, shortage.reserved, shortage.next_expiry), (0, 1, None), "{holder}");
        }
        // A reservation that its node took and let expire stays reserved for that node.
        let taken = SubnetLease { reserved_for: Some("it".into()), ..lease("10.0.1.0/24", "it_1") };
        assert!(matches!(decided(&space, &[], &[taken], 1_000_000), Decision::OutOfSubnets(_)));
    }

    #[test]
    fn a_lease_expires_on_the_observers_clock_or_long_after_its_renew_time() {
        let space = space("10.0.0.0/23", 24, "10.0.1.0/24", "10.0.1.0/24");
        let held = lease("10.0.1.0/24", "it_1");
        let Decision::OutOfSubnets(shortage) = decided(&space, &[], std::slice::from_ref(&held), 109) else { panic!("it is held") };
        assert_eq!((shortage.held, shortage.next_expiry), (1, Some(Duration::from_secs(110))));
        assert!(shortage.to_string().starts_with("out of subnets: of the 1 /24 subnets from 10.0.1.0 to 10.0.1.0 1 are leased"));
        assert_eq!(decided(&space, &[], std::slice::from_ref(&held), 110), Decision::Take(held.clone()));
        // The lease was first seen now but renewed long ago.
        let now = Now { elapsed: Duration::from_secs(5), wall: Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1099) };
        let seen = ObservedLease { lease: held, since: Duration::from_secs(5) };
        assert_eq!(seen.expiry(&TERMS, now), Some(Duration::from_secs(6)));
        // A renewal in the observer's future is ignored.
        let now = Now { wall: Timestamp::UNIX_EPOCH - SignedDuration::from_secs(10_000), ..now };
        assert_eq!(seen.expiry(&TERMS, now), Some(Duration::from_secs(115)));
    }

    #[test]
    fn a_lease_of_the_nodes_former_registration_is_its_own() {
        let former = lease("10.0.3.0/24", "me_1");
        assert_eq!(decided(&small(), &[], std::slice::from_ref(&former), 0), Decision::Renew(former));
    }

    #[test]
    fn leases_outside_the_space_are_released_first() {
        let own = lease("10.0.1.0/25", "me_2");
        assert_eq!(decided(&small(), &[], std::slice::from_ref(&own), 0), Decision::Release(own));
        // A lease of another length takes every subnet that it overlaps.
        let wide = lease("10.0.0.0/23", "it_1");
        assert_eq!(decided(&small(), &["10.0.1.0/24"], std::slice::from_ref(&wide), 0), Decision::Create(net("10.0.2.0/24")));
        let all = lease("10.0.0.0/22", "it_1");
        assert!(matches!(decided(&small(), &[], std::slice::from_ref(&all), 109), Decision::OutOfSubnets(_)));
        assert_eq!(decided(&small(), &[], std::slice::from_ref(&all), 110), Decision::Release(all));
    }

    #[test]
    fn free_subnets_are_found_beside_taken_ones_in_huge_spaces() {
        let huge = space("fc00::/16", 64, "fc00:0:0:1::/64", "fc00:ffff:ffff:ffff::/64");
        let mut taken: Vec<(u128, u128)> = (1..=5000).map(|i| range(net(&format!("fc00:0:0:{i:x}::/64")))).collect();
        taken.push(range(net("fc00:0:0:1388::/62")));
        let free = huge.free(taken, MAX_CANDIDATES);
        assert_eq!((free.len(), free[0]), (MAX_CANDIDATES, net("fc00:0:0:138c::/64")));
        let end = space("255.255.255.0/24", 26, "255.255.255.64/26", "255.255.255.192/26");
        assert_eq!((end.free(Vec::new(), MAX_CANDIDATES).len(), end.subnets()), (3, 3));
        let everything = space("::/0", 0, "::/0", "::/0");
        assert_eq!((everything.free(Vec::new(), MAX_CANDIDATES), everything.subnets()), (vec![net("::/0")], 1));
        assert!(everything.free(vec![range(net("fc00::/64"))], MAX_CANDIDATES).is_empty());
    }
}
