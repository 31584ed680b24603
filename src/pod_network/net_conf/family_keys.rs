//! The keys of net-conf.json that exist once per family, and the subnet options in them.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::error::BadNetConf;
use super::reader::Keys;
use crate::cluster::ip::Family;

/// Options for the nodes' subnets. They matter only when subnets come from Leases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SubnetOptions {
    /// `SubnetLen`, `IPv6SubnetLen`; 0 for the default length.
    pub length: u64,
    /// `SubnetMin`, `IPv6SubnetMin`.
    pub min: Option<IpAddr>,
    /// `SubnetMax`, `IPv6SubnetMax`.
    pub max: Option<IpAddr>,
}

/// The names of the keys of one family.
#[derive(Clone, Copy, Debug)]
pub(in crate::pod_network) struct FamilyKeys {
    /// The family.
    family: Family,
    /// Enables the family, with its default.
    enable: (&'static str, bool),
    /// The network that holds the subnets of all nodes.
    pub network: &'static str,
    /// The prefix length of a node's subnet.
    pub subnet_len: &'static str,
    /// The first subnet that a node can get.
    pub subnet_min: &'static str,
    /// The last subnet that a node can get.
    pub subnet_max: &'static str,
    /// The three keys above, as a message names them.
    pub subnet: &'static str,
}

const V4: FamilyKeys = FamilyKeys {
    family: Family::V4,
    enable: ("EnableIPv4", true),
    network: "Network",
    subnet_len: "SubnetLen",
    subnet_min: "SubnetMin",
    subnet_max: "SubnetMax",
    subnet: "SubnetLen, SubnetMin or SubnetMax",
};

const V6: FamilyKeys = FamilyKeys {
    family: Family::V6,
    enable: ("EnableIPv6", false),
    network: "IPv6Network",
    subnet_len: "IPv6SubnetLen",
    subnet_min: "IPv6SubnetMin",
    subnet_max: "IPv6SubnetMax",
    subnet: "IPv6SubnetLen, IPv6SubnetMin or IPv6SubnetMax",
};

impl FamilyKeys {
    /// The keys of each family.
    pub(super) const ALL: [Self; 2] = [V4, V6];

    /// The keys of this family.
    pub(in crate::pod_network) const fn of(family: Family) -> Self {
        match family {
            Family::V4 => V4,
            Family::V6 => V6,
        }
    }

    /// Returns the family, and its values if net-conf.json enables it. Invalid values are refused even if it does not.
    pub(super) fn read(self, keys: &Keys) -> Result<(Family, Option<(IpNetwork, SubnetOptions)>), BadNetConf> {
        let (enable, default) = self.enable;
        let enabled = keys.bool(enable)?.unwrap_or(default);
        let network = keys.network(self.network, self.family)?;
        let options = SubnetOptions {
            length: keys.value(self.subnet_len, "a whole number")?.unwrap_or_default(),
            min: keys.address(self.subnet_min, self.family)?,
            max: keys.address(self.subnet_max, self.family)?,
        };
        if !enabled {
            return Ok((self.family, None));
        }
        let missing =
            || super::error::bad(self.network, format!("please define a correct {} parameter in the flannel config", self.network));
        Ok((self.family, Some((network.ok_or_else(missing)?, options))))
    }
}
