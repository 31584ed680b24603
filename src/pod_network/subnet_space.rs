//! Computes the subnets that nodes can lease from `SubnetLen`, `SubnetMin` and `SubnetMax`, as flannel does in etcd mode [flannel 1]. PURE.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::allocation::SubnetSpace;
use super::net_conf::{BadNetConf, FamilyKeys, NetConf, SubnetOptions, bad};
use crate::cluster::Family;

impl NetConf {
    /// The subnets that nodes can lease in one family; `None` if it is disabled.
    ///
    /// # Errors
    /// The keys contradict each other. The message has flannel's words.
    pub(crate) fn subnet_space(&self, family: Family) -> Result<Option<SubnetSpace>, BadNetConf> {
        match (self.networks.get(family), self.subnets.get(family)) {
            (Some(network), Some(options)) => space(*network, options).map(Some),
            _ => Ok(None),
        }
    }
}

/// Limits that differ between the families.
struct Rules {
    /// Longest prefix length of a subnet.
    longest: u8,
    /// Longest prefix length of a network without `SubnetLen`.
    smallest_network: u8,
    /// Default prefix length of a subnet, if the network is large enough.
    default: u8,
    too_small: &'static str,
}

const V4: Rules =
    Rules { longest: 30, smallest_network: 28, default: 24, too_small: "network is too small. Minimum useful network prefix is /28" };

const V6: Rules = Rules {
    longest: 126,
    smallest_network: 124,
    default: 64,
    too_small: "IPv6Network is too small. Minimum useful network prefix is /124",
};

fn space(network: IpNetwork, options: &SubnetOptions) -> Result<SubnetSpace, BadNetConf> {
    let family = Family::of_net(network);
    let rules = if family == Family::V4 { V4 } else { V6 };
    let keys = FamilyKeys::of(family);
    let length = match options.length {
        0 if network.prefix() > rules.smallest_network => return Err(bad(keys.network, rules.too_small.into())),
        0 if network.prefix() <= rules.default - 2 => rules.default,
        0 => network.prefix() + 2,
        length if length > rules.longest.into() => {
            return Err(bad(keys.subnet_len, format!("SubnetLen must be less than /{}", rules.longest + 1)));
        }
        length if length < u64::from(network.prefix()) + 2 => {
            return Err(bad(keys.subnet_len, "network must be able to accommodate at least four subnets".into()));
        }
        length => length as u8,
    };
    let size = 1_u128 << (family.bits() - length);
    let (base, last) = (number(network.network()), number(network.broadcast()) - (size - 1));
    let bound = |key: &'static str, given: Option<IpAddr>, default: u128| {
        let Some(ip) = given else { return Ok(address(default, family)) };
        if !network.contains(ip) {
            return Err(bad(key, format!("{key} is not in the range of the {}", keys.network)));
        }
        if !number(ip).is_multiple_of(size) {
            return Err(bad(key, format!("{key} is not on a SubnetLen boundary: {ip}")));
        }
        Ok(ip)
    };
    // The first subnet is skipped: it starts with the network's own address, which a link cannot have.
    let (min, max) = (bound(keys.subnet_min, options.min, base + size)?, bound(keys.subnet_max, options.max, last)?);
    if min > max {
        return Err(bad(keys.subnet_max, format!("{max} is before {}, {min}: that leaves no subnet", keys.subnet_min)));
    }
    let subnet = |ip| IpNetwork::new(ip, length).map_err(|error| bad(keys.subnet_len, error.to_string()));
    Ok(SubnetSpace { network, subnet_len: length, min: subnet(min)?, max: subnet(max)? })
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

fn address(number: u128, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(number as u32).into(),
        Family::V6 => Ipv6Addr::from(number).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(keys: &str, family: Family) -> Result<SubnetSpace, String> {
        let text =
            format!(r#"{{"EnableIPv6":true,"Network":"10.244.0.0/16","IPv6Network":"fd10:244::/32",{keys}"Backend":{{"Type":"vxlan"}}}}"#);
        let conf = NetConf::parse(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        conf.subnet_space(family).map(|space| space.expect("both families are on")).map_err(|error| error.to_string())
    }

    fn shown(space: &SubnetSpace) -> String {
        format!("{} to {}", space.min, space.max)
    }

    #[test]
    fn lengths_and_bounds_are_derived() {
        for (keys, family, want, count) in [
            ("", Family::V4, "10.244.1.0/24 to 10.244.255.0/24", 255),
            (r#""Network":"10.0.0.0/8","#, Family::V4, "10.0.1.0/24 to 10.255.255.0/24", 65_535),
            (r#""Network":"10.1.0.0/23","#, Family::V4, "10.1.0.128/25 to 10.1.1.128/25", 3),
            (r#""Network":"10.1.0.0/28","#, Family::V4, "10.1.0.4/30 to 10.1.0.12/30", 3),
            (r#""SubnetLen":20,"SubnetMin":"10.244.16.0","SubnetMax":"10.244.32.0","#, Family::V4, "10.244.16.0/20 to 10.244.32.0/20", 2),
            (r#""SubnetMin":"0.0.0.0","#, Family::V4, "10.244.1.0/24 to 10.244.255.0/24", 255),
            ("", Family::V6, "fd10:244:0:1::/64 to fd10:244:ffff:ffff::/64", 0xffff_ffff),
            (r#""IPv6Network":"fd00::/124","#, Family::V6, "fd00::4/126 to fd00::c/126", 3),
            (r#""IPv6SubnetLen":48,"IPv6SubnetMin":"fd10:244:2::","#, Family::V6, "fd10:244:2::/48 to fd10:244:ffff::/48", 0xfffe),
        ] {
            let space = of(keys, family).unwrap_or_else(|error| panic!("{keys}: {error}"));
            assert_eq!((shown(&space).as_str(), space.subnets()), (want, count), "{keys}");
            assert!(space.contains(space.min) && space.contains(space.max));
        }
        let space = of("", Family::V4).expect("good");
        for (subnet, inside) in [
            ("10.244.1.0/24", true),
            ("10.244.0.0/24", false),
            ("10.244.2.0/25", false),
            ("10.245.1.0/24", false),
            ("10.244.1.1/24", false),
            ("fd10:244::/64", false),
        ] {
            assert_eq!(space.contains(subnet.parse().expect("a CIDR")), inside, "{subnet}");
        }
    }

    #[test]
    fn contradictions_are_refused_in_flannels_words() {
        for (keys, family, want) in [
            (r#""SubnetLen":31,"#, Family::V4, "SubnetLen: SubnetLen must be less than /31"),
            (r#""SubnetLen":300,"#, Family::V4, "SubnetLen: SubnetLen must be less than /31"),
            (r#""SubnetLen":17,"#, Family::V4, "SubnetLen: network must be able to accommodate at least four subnets"),
            (r#""Network":"10.0.0.0/29","#, Family::V4, "Network: network is too small. Minimum useful network prefix is /28"),
            (r#""SubnetMin":"10.245.0.0","#, Family::V4, "SubnetMin: SubnetMin is not in the range of the Network"),
            (r#""SubnetMax":"10.244.3.1","#, Family::V4, "SubnetMax: SubnetMax is not on a SubnetLen boundary: 10.244.3.1"),
            (
                r#""SubnetMin":"10.244.9.0","SubnetMax":"10.244.3.0","#,
                Family::V4,
                "SubnetMax: 10.244.3.0 is before SubnetMin, 10.244.9.0: that leaves no subnet",
            ),
            (r#""IPv6SubnetLen":127,"#, Family::V6, "IPv6SubnetLen: SubnetLen must be less than /127"),
            (r#""IPv6SubnetLen":33,"#, Family::V6, "IPv6SubnetLen: network must be able to accommodate at least four subnets"),
            (r#""IPv6Network":"fd00::/125","#, Family::V6, "IPv6Network: IPv6Network is too small. Minimum useful network prefix is /124"),
            (r#""IPv6SubnetMin":"fd11::","#, Family::V6, "IPv6SubnetMin: IPv6SubnetMin is not in the range of the IPv6Network"),
            (r#""IPv6SubnetMax":"fd10:244::1","#, Family::V6, "IPv6SubnetMax: IPv6SubnetMax is not on a SubnetLen boundary: fd10:244::1"),
        ] {
            assert_eq!(of(keys, family), Err(want.to_owned()), "{keys}");
        }
    }

    #[test]
    fn the_largest_networks_do_not_overflow() {
        let space = of(r#""IPv6Network":"::/0","IPv6SubnetLen":126,"#, Family::V6).expect("good");
        assert_eq!(space.subnets(), (1 << 126) - 1);
        let space = of(r#""Network":"0.0.0.0/0","#, Family::V4).expect("good");
        assert_eq!(shown(&space), "0.0.1.0/24 to 255.255.255.0/24");
    }
}
