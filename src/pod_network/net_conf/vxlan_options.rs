//! The options of the backend `vxlan` in net-conf.json [flannel 1]. One block per key holds its name, meaning, type, default, when a change
//! of it is applied, how its value is read, and examples.

use ipnetwork::IpNetwork;

use super::error::{BadNetConf, bad};
use super::reader::Keys;
use crate::cluster::families::PerFamily;
use crate::cluster::ip::Family;
use crate::pod_network::vxlan;

/// The largest VNIs with which `flannel.<VNI>` and `flannel-v6.<VNI>` have at most 15 bytes, as the kernel requires.
const LARGEST_NAMED_VNI: [(Family, u32); 2] = [(Family::V4, 9_999_999), (Family::V6, 9_999)];

/// The enabled networks.
type Networks = PerFamily<IpNetwork>;

/// Makes the struct of the options from one block per key, its `Default`, and the functions that read and compare the values.
///
/// `while_running` after the default means that a change is applied while the program runs; `after_restart`, that it needs a restart.
/// `accepts` is an example with a check of its value, `refuses` one with the start of its error.
macro_rules! vxlan_options {
    (@live while_running) => { true };
    (@live after_restart) => { false };
    ($(
        $(#[doc = $doc:literal])+
        $key:literal: $field:ident: $type:ty = $default:expr, $when:ident;
        |$name:ident, $keys:ident, $networks:ident| $read:expr;
        accepts $good:literal => $value:expr;
        $(refuses $bad:literal => $error:literal;)*
    )+) => {
        /// The options of the backend `vxlan`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct VxlanConf {
            $(
                #[doc = concat!("`", $key, "`.")]
                $(#[doc = $doc])+
                pub $field: $type,
            )+
        }

        impl Default for VxlanConf {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl VxlanConf {
            /// Reads the options. A key that is absent has its default.
            pub(super) fn read(keys: &Keys, networks: &Networks) -> Result<Self, BadNetConf> {
                let default = Self::default();
                Ok(Self { $(
                    $field: {
                        let ($name, $keys, $networks) = ($key, keys, networks);
                        let value: Option<$type> = $read;
                        value.unwrap_or(default.$field)
                    },
                )+ })
            }

            /// The keys that differ in another version and that need a restart.
            pub(super) fn fixed_differences(&self, other: &Self) -> Vec<&'static str> {
                let mut differences = Vec::new();
                $(if !vxlan_options!(@live $when) && self.$field != other.$field { differences.push($key); })+
                differences
            }

            /// These options with those of `new` that are applied while the program runs.
            #[must_use]
            pub(in crate::pod_network) fn with_live_changes(&self, new: &Self) -> Self {
                Self { $($field: if vxlan_options!(@live $when) { new.$field } else { self.$field },)+ }
            }
        }

        /// The examples that are read: key, value, a check of the options.
        #[cfg(test)]
        pub(super) const ACCEPTED: &[(&str, &str, fn(&VxlanConf) -> bool)] = &[$(($key, $good, |conf| conf.$field == $value),)+];

        /// The examples that are refused: key, value, the start of the error.
        #[cfg(test)]
        pub(super) const REFUSED: &[(&str, &str, &str)] = &[$($(($key, $bad, $error),)*)+];
    };
}

vxlan_options! {
    /// The VXLAN network identifier.
    "VNI": vni: u32 = 1, after_restart;
    |key, keys, networks| checked_vni(key, keys.number(key, 0, (1 << 24) - 1)?, networks)?;
    accepts "7" => 7;
    refuses "16777216" => "VNI: 16777216 is not a whole number from 0 to 16777215";
    refuses "-1" => "VNI: -1 is not";
    refuses "\"1\"" => "VNI: \"1\" is not";
    refuses "16777215" => "VNI: 16777215 makes the name flannel.16777215";

    /// UDP port of the outer packets. 0 means the default, the kernel's.
    "Port": port: u16 = 8472, after_restart;
    |key, keys, _networks| keys.number(key, 0, u16::MAX.into())?.map(|port| port as u16).filter(|port| *port != 0);
    accepts "4789" => 4789;
    refuses "65536" => "Port: 65536 is not";

    /// The MTU of the outer packets in bytes; `None` (0 in the file) for the MTU of the external interface.
    "MTU": mtu: Option<u32> = None, while_running;
    |key, keys, networks| Some(checked_mtu(key, keys.number(key, 0, u16::MAX.into())?, networks)?);
    accepts "1400" => Some(1400);
    refuses "100" => "MTU: 100 is too small";
    refuses "65536" => "MTU: 65536 is not";

    /// The group-based policy extension.
    "GBP": gbp: bool = false, after_restart;
    |key, keys, _networks| keys.bool(key)?;
    accepts "true" => true;
    refuses "1" => "GBP: 1 is not true or false";

    /// The kernel adds FDB entries from received packets.
    "Learning": learning: bool = false, after_restart;
    |key, keys, _networks| keys.bool(key)?;
    accepts "true" => true;

    /// Packets to nodes on the same network are routed without VXLAN.
    "DirectRouting": direct_routing: bool = false, while_running;
    |key, keys, _networks| keys.bool(key)?;
    accepts "true" => true;
}

/// Refuses a VNI whose links would have names that the kernel does not take.
fn checked_vni(key: &'static str, vni: Option<u32>, networks: &Networks) -> Result<Option<u32>, BadNetConf> {
    let Some(number) = vni else { return Ok(None) };
    for (family, largest) in LARGEST_NAMED_VNI {
        if networks.get(family).is_some() && number > largest {
            let name = vxlan::link_name(family, number);
            return Err(bad(key, format!("{number} makes the name {name}, which is too long for a link; at most {largest} with {family}")));
        }
    }
    Ok(vni)
}

/// Refuses an MTU that leaves too little for inner packets. `None` and 0 are the same.
fn checked_mtu(key: &'static str, mtu: Option<u32>, networks: &Networks) -> Result<Option<u32>, BadNetConf> {
    let least = networks.families().map(|family| vxlan::min_mtu(family) + vxlan::overhead(family)).max().unwrap_or_default();
    let Some(mtu) = mtu.filter(|mtu| *mtu != 0) else { return Ok(None) };
    if mtu < least {
        return Err(bad(
            key,
            format!("{mtu} is too small: it is that of the outer packets, {least} at least, or 0 for the external interface's"),
        ));
    }
    Ok(Some(mtu))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod_network::net_conf::NetConf;

    fn text(key: &str, value: &str) -> String {
        format!(r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"vxlan","{key}":{value}}}}}"#)
    }

    #[test]
    fn the_examples_of_every_key_hold() {
        for (key, value, check) in ACCEPTED {
            let conf = NetConf::parse(&text(key, value)).unwrap_or_else(|error| panic!("{key}: {value}: {error}"));
            let vxlan = conf.backend.vxlan().expect("backend vxlan");
            assert!(check(vxlan), "{key}: {value} gives {vxlan:?}");
            assert!(!check(&VxlanConf::default()), "{key}: {value} is the default, so it shows nothing");
        }
        for (key, value, start) in REFUSED {
            let error = NetConf::parse(&text(key, value)).expect_err(value).to_string();
            assert!(error.starts_with(start), "{key}: {value}: {error}");
        }
    }

    #[test]
    fn every_key_is_documented() {
        let document = include_str!("../../../docs/pod-network.md");
        for (key, ..) in ACCEPTED {
            assert!(document.contains(&format!("| `{key}` |")), "{key} has no row in docs/pod-network.md");
        }
    }
}
