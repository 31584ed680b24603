//! Hardware addresses of links.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A 48-bit hardware address. Prints in lower case, like `02:00:5e:10:00:01`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

/// The error for a text that is not a hardware address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a hardware address (like 02:00:5e:10:00:01)")]
pub struct BadMac(pub String);

impl Mac {
    /// Turns any six bytes into a unicast, locally administered address.
    #[must_use]
    pub const fn local(mut bytes: [u8; 6]) -> Self {
        bytes[0] = (bytes[0] & 0xfe) | 0x02;
        Self(bytes)
    }

    /// True for the address of a single station: neither multicast nor zero.
    #[must_use]
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02x}", if i == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

impl FromStr for Mac {
    type Err = BadMac;

    /// Parses `02:00:5e:10:00:01`, `02-00-5e-10-00-01` or `0200.5e10.0001`, as Go's `net.ParseMAC` does. A byte between colons may have one
    /// digit.
    fn from_str(text: &str) -> Result<Self, BadMac> {
        let (separator, digits, bytes_each) = match text {
            dotted if dotted.contains('.') => ('.', 4..=4, 2),
            dashed if dashed.contains('-') => ('-', 2..=2, 1),
            _ => (':', 1..=2, 1),
        };
        let mut bytes = Vec::with_capacity(6);
        for group in text.split(separator) {
            let number = u16::from_str_radix(group, 16).ok().filter(|_| digits.contains(&group.len()) && !group.starts_with('+'));
            let [high, low] = number.ok_or_else(|| BadMac(text.to_owned()))?.to_be_bytes();
            bytes.extend([high, low].iter().skip(2 - bytes_each));
        }
        bytes.try_into().map(Self).map_err(|_| BadMac(text.to_owned()))
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed_and_printed() {
        assert_eq!("02:00:5E:10:0:1".parse(), Ok(Mac([2, 0, 0x5e, 0x10, 0, 1])));
        assert_eq!(Mac([2, 0, 0x5e, 0x10, 0, 1]).to_string(), "02:00:5e:10:00:01");
        for text in ["02-00-5e-10-00-01", "02-00-5E-10-00-01", "0200.5e10.0001", "0200.5E10.0001"] {
            assert_eq!(text.parse(), Ok(Mac([2, 0, 0x5e, 0x10, 0, 1])), "{text}");
        }
        for bad in [
            "",
            "02:00:5e:10:00",
            "02:00:5e:10:00:01:02",
            "02-00-5e-10-00-1",
            "02-00-5e-10-00",
            "02-00:5e-10-00-01",
            "0200.5e10.00:1",
            "0200.5e10",
            "0200.5e10.0001.0002",
            "0200.5e10.001",
            "02005e100001",
            "02:00:5e:10:00:0g",
            "02:00:5e:10:00:001",
            "+2:00:5e:10:00:01",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
        assert!(Mac::local([0xff; 6]).is_unicast() && !Mac([1, 0, 0, 0, 0, 0]).is_unicast() && !Mac::default().is_unicast());
    }
}
