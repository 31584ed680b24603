//! subnet.env, by which the CNI plugin learns of this node's subnets (spec section 9).

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::net_conf::NetConf;
use crate::cluster::Family;
use crate::cluster::ip::parse_cidr;

use super::own_lease::OwnLease;
use crate::cluster::families::PerFamily;

/// What subnet.env says. Prints as flannel writes it, byte for byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The networks.
    pub networks: PerFamily<IpNetwork>,
    /// This node's subnets.
    pub subnets: PerFamily<IpNetwork>,
    /// MTU of the pods' interfaces.
    pub mtu: u32,
    /// Whether what leaves the network is masqueraded: then no CNI plugin needs to.
    pub masquerade: bool,
}

/// Where the daemon writes this node's subnet.
pub const SUBNET_FILE: &str = "/run/flannel/subnet.env";

const KEYS: [(Family, &str, &str); 2] =
    [(Family::V4, "FLANNEL_NETWORK", "FLANNEL_SUBNET"), (Family::V6, "FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET")];

impl SubnetEnv {
    /// What to tell of a network and this node's part of it.
    #[must_use]
    pub fn new(conf: &NetConf, own: &OwnLease, mtu: u32, masquerade: bool) -> Self {
        Self { networks: conf.networks, subnets: own.subnets, mtu, masquerade }
    }

    /// Reads what is there, whoever wrote it; what is not understood is passed over.
    #[must_use]
    pub fn read(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let Some((key, value)) = line.trim().split_once('=') else { continue };
            let (key, value) = (key.trim().trim_start_matches("export "), value.trim().trim_matches(['"', '\'']));
            for (family, network, subnet) in KEYS {
                // Of several, the first one.
                let cidr = || parse_cidr(value.split(',').next()?.trim()).filter(|net| Family::of_net(*net) == family);
                if key == network {
                    found.networks.set(family, cidr());
                } else if key == subnet {
                    found.subnets.set(family, cidr());
                }
            }
            match key {
                "FLANNEL_MTU" => found.mtu = value.parse().unwrap_or_default(),
                "FLANNEL_IPMASQ" => found.masquerade = value == "true",
                _ => {}
            }
        }
        found
    }
}

impl fmt::Display for SubnetEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (family, network_key, subnet_key) in KEYS {
            if let (Some(network), Some(subnet)) = (self.networks.get(family), self.subnets.get(family)) {
                writeln!(f, "{network_key}={network}\n{subnet_key}={}/{}", first(*subnet), subnet.prefix())?;
            }
        }
        writeln!(f, "FLANNEL_MTU={}\nFLANNEL_IPMASQ={}", self.mtu, self.masquerade)
    }
}

/// The first address of a subnet behind its base: the bridge's.
fn first(subnet: IpNetwork) -> IpAddr {
    match subnet.network() {
        IpAddr::V4(ip) => IpAddr::V4((u32::from(ip).wrapping_add(1)).into()),
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip).wrapping_add(1)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidrs(v4: &str, v6: &str) -> PerFamily<IpNetwork> {
        PerFamily { v4: v4.parse().ok(), v6: v6.parse().ok() }
    }

    #[test]
    fn it_is_flannels_to_the_byte_and_read_back() {
        let both = SubnetEnv {
            networks: cidrs("10.244.0.0/16", "fd10:244::/32"),
            subnets: cidrs("10.244.1.0/24", "fd10:244:1::/64"),
            mtu: 1430,
            masquerade: true,
        };
        let text = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=fd10:244::/32\nFLANNEL_IPV6_SUBNET=fd10:244:1::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n";
        assert_eq!(both.to_string(), text);
        assert_eq!(SubnetEnv::read(text), both);
        let v4 = SubnetEnv { networks: cidrs("10.244.0.0/16", ""), subnets: cidrs("10.244.1.0/24", ""), mtu: 1450, masquerade: false };
        assert_eq!(v4.to_string(), "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n");
    }

    #[test]
    fn whatever_stands_there_is_read() {
        let text = "# by hand\n export FLANNEL_SUBNET = \"10.244.1.1/24\" \nFLANNEL_NETWORK=10.244.0.0/16,10.245.0.0/16\nFLANNEL_IPV6_SUBNET=10.0.0.1/24\nFLANNEL_MTU=x\nFLANNEL_IPMASQ=True\nOTHER\n=\n";
        let want = SubnetEnv { networks: cidrs("10.244.0.0/16", ""), subnets: cidrs("10.244.1.0/24", ""), ..SubnetEnv::default() };
        assert_eq!(SubnetEnv::read(text), want);
        assert_eq!(SubnetEnv::read(""), SubnetEnv::default());
    }
}
