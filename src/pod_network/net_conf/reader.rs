//! The keys of one JSON object of net-conf.json, and the decoding of their values.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::error::{BadNetConf, bad};
use crate::cluster::ip::{self, Family};
use crate::json_keys::matches;

/// The keys of an object as they are written, each with the text of its value.
#[derive(Debug, Default)]
pub(super) struct Keys(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Keys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut keys = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    keys.push(entry);
                }
                Ok(Keys(keys))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

impl Keys {
    /// The value of a key. Keys match in any case, and the last one is used. `null` keeps an earlier value, except for `Backend`, whose text is
    /// used even if it is `null`.
    pub(super) fn raw(&self, key: &str) -> Option<&RawValue> {
        let is_used = |(name, value): &&(String, Box<RawValue>)| matches(name, key) && (value.get() != "null" || key == "Backend");
        self.0.iter().rev().find(is_used).map(|(_, value)| &**value)
    }

    /// Decodes the value of a key. `what` describes valid values.
    pub(super) fn value<T: DeserializeOwned>(&self, key: &'static str, what: &str) -> Result<Option<T>, BadNetConf> {
        let Some(raw) = self.raw(key) else { return Ok(None) };
        serde_json::from_str(raw.get()).map(Some).map_err(|_| bad(key, format!("{} is not {what}", raw.get())))
    }

    /// Decodes `true` or `false`.
    pub(super) fn bool(&self, key: &'static str) -> Result<Option<bool>, BadNetConf> {
        self.value(key, "true or false")
    }

    /// Decodes a whole number from `least` to `most`.
    pub(super) fn number(&self, key: &'static str, least: u32, most: u32) -> Result<Option<u32>, BadNetConf> {
        let what = format!("a whole number from {least} to {most}");
        let Some(number) = self.value::<u64>(key, &what)? else { return Ok(None) };
        let in_range = u32::try_from(number).ok().filter(|number| (least..=most).contains(number));
        in_range.map(Some).ok_or_else(|| bad(key, format!("{number} is not {what}")))
    }

    /// Decodes an IP address of this family. The unspecified address counts as absent, as in flannel.
    pub(super) fn address(&self, key: &'static str, family: Family) -> Result<Option<IpAddr>, BadNetConf> {
        let Some(text) = self.value::<String>(key, "a text")? else { return Ok(None) };
        let address = address(&text, family).ok_or_else(|| bad(key, format!("{text:?} is not an {} address", family.proper_name())))?;
        Ok(Some(address).filter(|address| !address.is_unspecified()))
    }

    /// Decodes a network of this family, such as `10.244.0.0/16`. Bits of the host are cleared.
    pub(super) fn network(&self, key: &'static str, family: Family) -> Result<Option<IpNetwork>, BadNetConf> {
        let Some(text) = self.value::<String>(key, "a text")? else { return Ok(None) };
        let network = || {
            let (ip, length) = text.split_once('/')?;
            let length: u8 = length.bytes().all(|c| c.is_ascii_digit()).then(|| length.parse().ok())??;
            let ip = address(ip, family)?;
            ip::network(ip, length)
        };
        network().map(Some).ok_or_else(|| bad(key, format!("invalid {} CIDR format: {text:?}", family.proper_name())))
    }
}

fn address(text: &str, family: Family) -> Option<IpAddr> {
    match family {
        Family::V4 => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        Family::V6 => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
    }
}
