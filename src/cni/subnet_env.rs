//! subnet.env as the plugin `flannel` reads it: strictly, for a pod's network is made of it (spec sections 9 and 10.2). PURE.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// What subnet.env says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The pod networks: those of IPv4, then those of IPv6.
    pub networks: Vec<IpNetwork>,
    /// This node's subnets: of IPv4, then of IPv6.
    pub subnets: Vec<IpNetwork>,
    /// Largest packet of the pods' interfaces, in bytes.
    pub mtu: u32,
    /// The daemon masquerades what leaves the pod network.
    pub masquerade: bool,
}

impl SubnetEnv {
    /// Reads it. Keys that are not known are passed over.
    ///
    /// # Errors
    /// A value is wrong, or some are missing; `path` is what to call the file.
    pub fn read(path: &str, text: &str) -> Result<Self, String> {
        let (mut networks, mut networks6, mut own, mut own6) = (Vec::new(), Vec::new(), None, None);
        let (mut mtu, mut masquerade) = (None, None);
        for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
            let (key, value) = (key.trim(), value.trim());
            let cidr = |text: &str| parse(text).ok_or_else(|| format!("{path}: {key}: invalid CIDR address: {text}"));
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
}

/// A network in CIDR notation, without host bits.
fn parse(text: &str) -> Option<IpNetwork> {
    let (ip, prefix) = text.trim().split_once('/')?;
    let (ip, prefix): (IpAddr, u8) = (ip.parse().ok()?, prefix.parse().ok()?);
    let net = IpNetwork::new(ip, prefix).ok()?;
    IpNetwork::new(net.network(), prefix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_missing_or_wrong_is_told() {
        let read = |text: &str| SubnetEnv::read("/run/flannel/subnet.env", text);
        let all = "FLANNEL_NETWORK=10.244.0.0/16,10.245.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00::1:0:0:0:1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\nX\n";
        let good = read(all).expect("good");
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
            assert_eq!(read(text), Err(words.to_owned()));
        }
    }

    proptest! {
        #[test]
        fn nothing_that_stands_there_panics(noise in ".{0,80}", at in 0..200_usize, with in any::<char>()) {
            let _ = SubnetEnv::read("f", &noise);
            let text = "FLANNEL_NETWORK=10.244.0.0/16,fd00::/48\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
            let bent: String = text.chars().enumerate().map(|(place, c)| if place == at { with } else { c }).collect();
            let _ = SubnetEnv::read("f", &bent);
        }
    }
}
