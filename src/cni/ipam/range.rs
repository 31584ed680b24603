//! Ranges of addresses, and the order in which their addresses are given [flannel 10.4]. PURE.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::Deserialize;

use crate::cni::error::{CniError, ErrorCode};
use crate::cni::result::ip;

/// A range as it is configured.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RangeConfig {
    /// The subnet.
    pub subnet: IpNetwork,
    /// The first address to give. `None` for the first address after the network address.
    #[serde(default, deserialize_with = "ip")]
    pub range_start: Option<IpAddr>,
    /// The last address to give. `None` for the last host address of the subnet.
    #[serde(default, deserialize_with = "ip")]
    pub range_end: Option<IpAddr>,
    /// The gateway. `None` for the first address after the network address.
    #[serde(default, deserialize_with = "ip")]
    pub gateway: Option<IpAddr>,
}

/// A checked range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    /// The subnet.
    pub subnet: IpNetwork,
    /// The gateway, which is never given to a container.
    pub gateway: IpAddr,
    first: u128,
    last: u128,
}

impl AddressRange {
    /// Checks a range and fills in its defaults.
    ///
    /// # Errors
    /// The values contradict each other. The messages are upstream's.
    pub fn new(config: &RangeConfig) -> Result<Self, String> {
        let subnet = config.subnet;
        let (ip, prefix) = (number(subnet.ip()), subnet.prefix());
        let bits = if subnet.is_ipv4() { 32 } else { 128 };
        if prefix > bits - 2 {
            return Err(format!("Network {subnet} too small to allocate from"));
        }
        if subnet.ip() != subnet.network() {
            return Err(format!(
                "Network has host bits set. For a subnet mask of length {prefix} the network address is {}",
                subnet.network()
            ));
        }
        let inside = |what: &str, found: Option<IpAddr>, default: u128| match found {
            None => Ok(default),
            Some(found) if subnet.contains(found) => Ok(number(found)),
            Some(found) => Err(format!("{what} {found} not in network {subnet}")),
        };
        let all_ones = ip | (u128::MAX >> (128 - u32::from(bits - prefix)));
        // No host has the IPv4 broadcast address.
        let last = if subnet.is_ipv4() { all_ones - 1 } else { all_ones };
        let first = inside("RangeStart", config.range_start, ip + 1)?;
        let last = inside("RangeEnd", config.range_end, last)?;
        if last < first {
            return Err(format!("RangeEnd {} not in network {subnet}", address(last, subnet.is_ipv4())));
        }
        let gateway = config.gateway.unwrap_or_else(|| address(ip + 1, subnet.is_ipv4()));
        Ok(Self { subnet, gateway, first, last })
    }

    /// Returns true if an address can be given.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.subnet.is_ipv4() && (self.first..=self.last).contains(&number(ip))
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.subnet.is_ipv4() == other.subnet.is_ipv4() && self.first <= other.last && other.first <= self.last
    }

    fn address(&self, number: u128) -> IpAddr {
        address(number, self.subnet.is_ipv4())
    }

    /// The number of addresses in the range, with the gateway.
    fn len(&self) -> u128 {
        (self.last - self.first).saturating_add(1)
    }
}

/// Ranges of one family. A container gets one address of the set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet(Vec<AddressRange>);

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> =
            self.0.iter().map(|range| format!("{}-{}", range.address(range.first), range.address(range.last))).collect();
        f.write_str(&parts.join(","))
    }
}

impl RangeSet {
    /// Checks the ranges of a set.
    ///
    /// # Errors
    /// They contradict each other.
    pub fn new(configs: &[RangeConfig]) -> Result<Self, String> {
        let ranges: Vec<AddressRange> = configs.iter().map(AddressRange::new).collect::<Result<_, _>>()?;
        let Some(first) = ranges.first() else { return Err("empty range set".to_owned()) };
        if ranges.iter().any(|range| range.subnet.is_ipv4() != first.subnet.is_ipv4()) {
            return Err("mixed address families".to_owned());
        }
        for (at, range) in ranges.iter().enumerate() {
            if let Some(other) = ranges[at + 1..].iter().position(|other| range.overlaps(other)) {
                return Err(format!("subnets {} and {} overlap", range.subnet, ranges[at + 1 + other].subnet));
            }
        }
        Ok(Self(ranges))
    }

    /// Returns true if the set is of IPv4.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.0.first().is_some_and(|range| range.subnet.is_ipv4())
    }

    /// Returns the range of an address.
    #[must_use]
    pub(crate) fn range_of(&self, ip: IpAddr) -> Option<&AddressRange> {
        self.0.iter().find(|range| range.contains(ip))
    }

    /// Returns every address of the set once, in a circle that starts after `last` and ends with `last`. If no range has `last`, it starts
    /// with the first range.
    pub(crate) fn candidates(&self, last: Option<IpAddr>) -> impl Iterator<Item = (IpAddr, &AddressRange)> {
        let found = last.and_then(|last| self.0.iter().position(|range| range.contains(last)).map(|at| (at, number(last))));
        let (at, skipped) = found.map_or((0, 0), |(at, last)| (at, (last - self.0[at].first).saturating_add(1)));
        // The rest of the first range, then the other ranges, then the skipped part.
        let whole = |range: &AddressRange| (0, range.len());
        let rest = self.0.get(at).map(|range| (range, (skipped, range.len())));
        let others = self.0.iter().skip(at + 1).chain(self.0.iter().take(at)).map(move |range| (range, whole(range)));
        let start = self.0.get(at).map(|range| (range, (0, skipped)));
        rest.into_iter().chain(others).chain(start).flat_map(|(range, (from, to))| {
            (from..to).map(move |offset| (range.address(range.first + offset), range)).filter(|(ip, range)| *ip != range.gateway)
        })
    }
}

/// Checks all range sets.
///
/// # Errors
/// They contradict each other, or there is none: code 7.
pub fn sets(configs: &[Vec<RangeConfig>]) -> Result<Vec<RangeSet>, CniError> {
    let bad = |message: String| CniError::new(ErrorCode::BAD_CONFIG, message);
    let sets: Vec<RangeSet> = configs
        .iter()
        .enumerate()
        .map(|(at, set)| RangeSet::new(set).map_err(|error| bad(format!("invalid range set {at}: {error}"))))
        .collect::<Result<_, _>>()?;
    if sets.is_empty() {
        return Err(bad("no IP ranges specified".to_owned()));
    }
    for (at, set) in sets.iter().enumerate() {
        let overlaps = |other: &RangeSet| set.0.iter().any(|range| other.0.iter().any(|other| range.overlaps(other)));
        if let Some(other) = sets[at + 1..].iter().position(overlaps) {
            return Err(bad(format!("range set {at} overlaps with {}", at + 1 + other)));
        }
    }
    Ok(sets)
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

/// IPv4 addresses are 32-bit numbers within their subnet.
fn address(number: u128, v4: bool) -> IpAddr {
    if v4 { IpAddr::V4((number as u32).into()) } else { IpAddr::V6(number.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(subnet: &str, start: &str, end: &str) -> RangeConfig {
        let ip = |text: &str| text.parse().ok();
        RangeConfig { subnet: subnet.parse().expect("a network"), range_start: ip(start), range_end: ip(end), gateway: None }
    }

    fn set(configs: &[RangeConfig]) -> RangeSet {
        RangeSet::new(configs).expect("it fits")
    }

    fn walk(set: &RangeSet, last: &str) -> Vec<String> {
        set.candidates(last.parse().ok()).map(|(ip, _)| ip.to_string()).collect()
    }

    #[test]
    fn the_walk_goes_round_and_leaves_gateways_out() {
        let two = set(&[config("10.9.8.0/30", "", ""), config("10.9.9.0/24", "10.9.9.1", "10.9.9.4")]);
        assert_eq!(two.to_string(), "10.9.8.1-10.9.8.2,10.9.9.1-10.9.9.4");
        assert_eq!(walk(&two, ""), ["10.9.8.2", "10.9.9.2", "10.9.9.3", "10.9.9.4"]);
        assert_eq!(walk(&two, "10.9.9.3"), ["10.9.9.4", "10.9.8.2", "10.9.9.2", "10.9.9.3"]);
        assert_eq!(walk(&two, "10.9.9.4"), ["10.9.8.2", "10.9.9.2", "10.9.9.3", "10.9.9.4"]);
        assert_eq!(walk(&two, "192.168.0.1"), walk(&two, ""));
        let v6 = set(&[config("fd00:9::/64", "", "")]);
        assert_eq!(v6.candidates(None).next().map(|(ip, _)| ip.to_string()).as_deref(), Some("fd00:9::2"));
        assert_eq!(set(&[config("::/0", "", "")]).candidates(None).count_some(2), 2);
        let everything = set(&[config("::/0", "::", "")]);
        assert_eq!(everything.candidates(Some(address(u128::MAX, false))).count_some(2), 2);
    }

    trait CountSome {
        fn count_some(self, most: usize) -> usize;
    }

    impl<I: Iterator> CountSome for I {
        fn count_some(self, most: usize) -> usize {
            self.take(most).count()
        }
    }

    #[test]
    fn contradictions_are_refused_with_upstreams_messages() {
        for (ranges, words) in [
            (vec![config("10.0.0.0/31", "", "")], "Network 10.0.0.0/31 too small to allocate from"),
            (
                vec![config("10.0.0.5/24", "", "")],
                "Network has host bits set. For a subnet mask of length 24 the network address is 10.0.0.0",
            ),
            (vec![config("10.0.0.0/24", "10.0.1.1", "")], "RangeStart 10.0.1.1 not in network 10.0.0.0/24"),
            (vec![config("10.0.0.0/24", "", "fd00::1")], "RangeEnd fd00::1 not in network 10.0.0.0/24"),
            (vec![config("10.0.0.0/24", "10.0.0.9", "10.0.0.8")], "RangeEnd 10.0.0.8 not in network 10.0.0.0/24"),
            (vec![config("10.0.0.0/24", "", ""), config("fd00::/64", "", "")], "mixed address families"),
            (vec![config("10.0.0.0/24", "", ""), config("10.0.0.0/25", "", "")], "subnets 10.0.0.0/24 and 10.0.0.0/25 overlap"),
            (vec![], "empty range set"),
        ] {
            assert_eq!(RangeSet::new(&ranges), Err(words.to_owned()));
        }
        let one = vec![config("10.0.0.0/24", "", "")];
        assert_eq!(sets(&[one.clone(), one]).expect_err("twice").message, "range set 0 overlaps with 1");
        assert_eq!(sets(&[]).expect_err("none").message, "no IP ranges specified");
    }

    proptest! {
        /// From any start, the walk visits every address except the gateways once.
        #[test]
        fn the_walk_is_whole(prefix in 24..=30_u8, last in any::<u8>()) {
            let range = set(&[config(&format!("10.0.0.0/{prefix}"), "", ""), config("10.1.0.0/29", "", "")]);
            let mut found: Vec<_> = range.candidates(Some([10, 0, 0, last].into())).map(|(ip, _)| ip).collect();
            prop_assert_eq!(found.len(), (1 << (32 - prefix)) - 3 + 5);
            found.sort();
            found.dedup();
            prop_assert_eq!(found.len(), (1 << (32 - prefix)) - 3 + 5);
        }

        #[test]
        fn no_range_panics(ip in any::<[u8; 16]>(), v4 in any::<bool>(), prefix in 0..=128_u8, start in any::<[u8; 16]>(), end in any::<u32>()) {
            let net = if v4 { IpNetwork::new(IpAddr::from([ip[0], ip[1], ip[2], ip[3]]), prefix.min(32)) } else { IpNetwork::new(ip.into(), prefix) };
            let subnet = net.expect("a prefix that fits");
            for subnet in [subnet, IpNetwork::new(subnet.network(), subnet.prefix()).expect("the same")] {
                let config = RangeConfig { subnet, range_start: Some(start.into()), range_end: Some(IpAddr::V4(end.into())), gateway: None };
                for config in [config.clone(), RangeConfig { range_start: None, range_end: None, ..config }] {
                    if let Ok(set) = RangeSet::new(&[config]) {
                        prop_assert!(set.candidates(Some(start.into())).take(3).count() >= 1);
                    }
                }
            }
        }
    }
}
