//! subnet.env: the file in which the daemon states this node's subnets for the CNI plugin [flannel 9]. PURE.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::net_conf::NetConf;
use super::own_lease::OwnLease;
use crate::cluster::Family;
use crate::cluster::families::PerFamily;
use crate::cluster::ip::{first_host, network, parse_cidr};

/// Where the daemon writes the file by default.
pub(crate) const SUBNET_FILE: &str = "/run/flannel/subnet.env";

const KEYS: [(Family, &str, &str); 2] =
    [(Family::V4, "FLANNEL_NETWORK", "FLANNEL_SUBNET"), (Family::V6, "FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET")];

/// The content of subnet.env. It prints as flannel writes it, byte for byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The pod networks: those of IPv4, then those of IPv6.
    pub networks: Vec<IpNetwork>,
    /// This node's subnets: of IPv4, then of IPv6.
    pub subnets: Vec<IpNetwork>,
    /// MTU of the pods' interfaces.
    pub mtu: u32,
    /// The daemon masquerades packets that leave the pod network, so the CNI plugin does not.
    pub masquerade: bool,
}

impl SubnetEnv {
    /// The content for a pod network and this node's part of it.
    #[must_use]
    pub fn new(conf: &NetConf, own: &OwnLease, mtu: u32, masquerade: bool) -> Self {
        Self { networks: values(&conf.networks), subnets: values(&own.subnets), mtu, masquerade }
    }

    /// Parses the file strictly, as the plugin `flannel` does [flannel 10.2]. Unknown keys are ignored.
    ///
    /// # Errors
    /// A value is invalid, or values are missing. `path` names the file in the message.
    pub fn parse(path: &str, text: &str) -> Result<Self, String> {
        let (mut networks, mut networks6, mut own, mut own6) = (Vec::new(), Vec::new(), None, None);
        let (mut mtu, mut masquerade) = (None, None);
        for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
            let (key, value) = (key.trim(), value.trim());
            let cidr = |text: &str| strict_cidr(text).ok_or_else(|| format!("{path}: {key}: invalid CIDR address: {text}"));
            match key {
                "FLANNEL_NETWORK" => networks = value.split(',').map(cidr).collect::<Result<_, _>>()?,
                "FLANNEL_IPV6_NETWORK" => networks6 = value.split(',').map(cidr).collect::<Result<_, _>>()?,
                "FLANNEL_SUBNET" => own = Some(cidr(value)?),
                "FLANNEL_IPV6_SUBNET" => own6 = Some(cidr(value)?),
                "FLANNEL_MTU" => mtu = Some(value.parse().map_err(|_| format!("{path}: {key}: {value:?} is not the size of a packet"))?),
                "FLANNEL_IPMASQ" => masquerade = Some(value == "true"),
                _ => {}
            }
        }
        networks.append(&mut networks6);
        let subnets: Vec<IpNetwork> = own.into_iter().chain(own6).collect();
        let missing: Vec<&str> = [
            (networks.is_empty(), "FLANNEL_NETWORK"),
            (subnets.is_empty(), "FLANNEL_SUBNET"),
            (mtu.is_none(), "FLANNEL_MTU"),
            (masquerade.is_none(), "FLANNEL_IPMASQ"),
        ]
        .into_iter()
        .filter_map(|(missing, key)| missing.then_some(key))
        .collect();
        match (mtu, masquerade) {
            (Some(mtu), Some(masquerade)) if missing.is_empty() => Ok(Self { networks, subnets, mtu, masquerade }),
            _ => Err(format!("{path} is missing {}", missing.join(", "))),
        }
    }

    /// Parses the file leniently, as the daemon does at its start: lines and values that are invalid are ignored. If a key has several
    /// networks, only the first is read.
    #[must_use]
    pub(crate) fn parse_lenient(text: &str) -> Self {
        let (mut networks, mut subnets) = (PerFamily::default(), PerFamily::default());
        let mut found = Self::default();
        for line in text.lines() {
            let Some((key, value)) = line.trim().split_once('=') else { continue };
            let (key, value) = (key.trim().trim_start_matches("export "), value.trim().trim_matches(['"', '\'']));
            for (family, network_key, subnet_key) in KEYS {
                let cidr = || parse_cidr(value.split(',').next()?.trim()).filter(|net| Family::of_net(*net) == family);
                if key == network_key {
                    networks.set(family, cidr());
                } else if key == subnet_key {
                    subnets.set(family, cidr());
                }
            }
            match key {
                "FLANNEL_MTU" => found.mtu = value.parse().unwrap_or_default(),
                "FLANNEL_IPMASQ" => found.masquerade = value == "true",
                _ => {}
            }
        }
        Self { networks: values(&networks), subnets: values(&subnets), ..found }
    }

    /// The first network of each family.
    #[must_use]
    pub(crate) fn first_networks(&self) -> PerFamily<IpNetwork> {
        first_of_each_family(&self.networks)
    }

    /// The first subnet of each family.
    #[must_use]
    pub(crate) fn first_subnets(&self) -> PerFamily<IpNetwork> {
        first_of_each_family(&self.subnets)
    }
}

impl fmt::Display for SubnetEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (networks, subnets) = (self.first_networks(), self.first_subnets());
        for (family, network_key, subnet_key) in KEYS {
            if let (Some(network), Some(subnet)) = (networks.get(family), subnets.get(family)) {
                writeln!(f, "{network_key}={network}\n{subnet_key}={}/{}", first_host(*subnet), subnet.prefix())?;
            }
        }
        writeln!(f, "FLANNEL_MTU={}\nFLANNEL_IPMASQ={}", self.mtu, self.masquerade)
    }
}

fn values(of_families: &PerFamily<IpNetwork>) -> Vec<IpNetwork> {
    of_families.iter().map(|(_, net)| *net).collect()
}

fn first_of_each_family(nets: &[IpNetwork]) -> PerFamily<IpNetwork> {
    nets.iter().rev().map(|net| (Family::of_net(*net), *net)).collect()
}

/// Parses a CIDR without leading zeros, and clears its host bits.
fn strict_cidr(text: &str) -> Option<IpNetwork> {
    let (ip, prefix) = text.trim().split_once('/')?;
    let (ip, prefix): (IpAddr, u8) = (ip.parse().ok()?, prefix.parse().ok()?);
    network(ip, prefix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cidrs(texts: &[&str]) -> Vec<IpNetwork> {
        texts.iter().map(|text| text.parse().expect("a CIDR")).collect()
    }

    #[test]
    fn it_is_flannels_to_the_byte_and_read_back() {
        let both = SubnetEnv {
            networks: cidrs(&["10.244.0.0/16", "fd10:244::/32"]),
            subnets: cidrs(&["10.244.1.0/24", "fd10:244:1::/64"]),
            mtu: 1430,
            masquerade: true,
        };
        let text = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=fd10:244::/32\nFLANNEL_IPV6_SUBNET=fd10:244:1::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n";
        assert_eq!(both.to_string(), text);
        assert_eq!(SubnetEnv::parse_lenient(text), both);
        assert_eq!(SubnetEnv::parse("f", text), Ok(both));
        let v4 = SubnetEnv { networks: cidrs(&["10.244.0.0/16"]), subnets: cidrs(&["10.244.1.0/24"]), mtu: 1450, masquerade: false };
        assert_eq!(v4.to_string(), "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n");
    }

    #[test]
    fn the_lenient_parser_ignores_invalid_lines() {
        let text = "# by hand\n export FLANNEL_SUBNET = \"10.244.1.1/24\" \nFLANNEL_NETWORK=10.244.0.0/16,10.245.0.0/16\nFLANNEL_IPV6_SUBNET=10.0.0.1/24\nFLANNEL_MTU=x\nFLANNEL_IPMASQ=True\nOTHER\n=\n";
        let want = SubnetEnv { networks: cidrs(&["10.244.0.0/16"]), subnets: cidrs(&["10.244.1.0/24"]), ..SubnetEnv::default() };
        assert_eq!(SubnetEnv::parse_lenient(text), want);
        assert_eq!(SubnetEnv::parse_lenient(""), SubnetEnv::default());
    }

    #[test]
    fn the_strict_parser_names_missing_and_invalid_values() {
        let parse = |text: &str| SubnetEnv::parse("/run/flannel/subnet.env", text);
        let all = "FLANNEL_NETWORK=10.244.0.0/16,10.245.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00::1:0:0:0:1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\nX\n";
        let good = parse(all).expect("good");
        let text = |nets: &[IpNetwork]| nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!(text(&good.networks), "10.244.0.0/16 10.245.0.0/16 fd00::/48");
        assert_eq!((text(&good.subnets).as_str(), good.mtu, good.masquerade), ("10.244.1.0/24 fd00:0:0:1::/64", 1450, true));
        for (text, words) in [
            ("", "/run/flannel/subnet.env is missing FLANNEL_NETWORK, FLANNEL_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ"),
            (
                "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPMASQ=false",
                "/run/flannel/subnet.env is missing FLANNEL_MTU",
            ),
            ("FLANNEL_SUBNET=10.244.1.1", "/run/flannel/subnet.env: FLANNEL_SUBNET: invalid CIDR address: 10.244.1.1"),
            ("FLANNEL_MTU=x", "/run/flannel/subnet.env: FLANNEL_MTU: \"x\" is not the size of a packet"),
        ] {
            assert_eq!(parse(text), Err(words.to_owned()));
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(noise in ".{0,80}", at in 0..200_usize, with in any::<char>()) {
            let _ = (SubnetEnv::parse("f", &noise), SubnetEnv::parse_lenient(&noise));
            let text = "FLANNEL_NETWORK=10.244.0.0/16,fd00::/48\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
            let bent: String = text.chars().enumerate().map(|(place, c)| if place == at { with } else { c }).collect();
            let _ = (SubnetEnv::parse("f", &bent), SubnetEnv::parse_lenient(&bent));
        }
    }
}
