//! Parses addresses and CIDRs as Kubernetes components do, and prints them in canonical form.
//!
//! kube-proxy parses "sloppily" everywhere [kube-proxy 1.4] [kube-proxy 12]. Leading zeros in IPv4 octets, IPv6 groups and prefix
//! lengths are allowed. An IPv4-mapped IPv6 address is the IPv4 address. The standard library rejects leading zeros and does not map
//! addresses, hence this parser.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

/// One of the two IP families; each has its own iptables and its own set of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4, programmed with `iptables`.
    V4,
    /// IPv6, programmed with `ip6tables`.
    V6,
}

impl Family {
    /// Both families, IPv4 first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The other family.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }

    /// The family of an address.
    #[must_use]
    pub const fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The family of a CIDR.
    #[must_use]
    pub const fn of_net(net: IpNetwork) -> Self {
        match net {
            IpNetwork::V4(_) => Self::V4,
            IpNetwork::V6(_) => Self::V6,
        }
    }

    /// The loopback address of the family, which kube-proxy uses while the node IP is unknown [kube-proxy 1.5].
    #[must_use]
    pub const fn loopback(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Self::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
        }
    }

    /// `ipv4` or `ipv6`, as on the command line and in logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }

    /// `IPv4` or `IPv6`, as Kubernetes writes it.
    #[must_use]
    pub(crate) const fn proper_name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// Number of bits in an address.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Parses an address sloppily. An IPv4-mapped IPv6 address becomes IPv4. Returns `None` if the text is not an address or has a zone.
#[must_use]
pub(crate) fn parse_ip(text: &str) -> Option<IpAddr> {
    let bytes = text.as_bytes();
    match bytes.iter().find(|b| matches!(b, b'.' | b':'))? {
        b'.' => parse_v4(bytes).map(IpAddr::V4),
        _ => parse_v6(bytes).map(|ip| IpAddr::V6(ip).to_canonical()),
    }
}

/// Parses a CIDR sloppily and clears its host bits. An IPv4-mapped range of /96 or longer becomes the IPv4 range.
#[must_use]
pub(crate) fn parse_cidr(text: &str) -> Option<IpNetwork> {
    let (address, length) = text.split_once('/')?;
    let (prefix, used) = leading_number(length.as_bytes(), 10)?;
    if used != length.len() {
        return None;
    }
    let prefix = u8::try_from(prefix).ok()?;
    if let Some(ip) = parse_v4(address.as_bytes()) {
        return network(IpAddr::V4(ip), prefix);
    }
    let ip = parse_v6(address.as_bytes())?;
    match (ip.to_ipv4_mapped(), prefix.checked_sub(96)) {
        (Some(v4), Some(rest)) => network(IpAddr::V4(v4), rest),
        _ => network(IpAddr::V6(ip), prefix),
    }
}

/// The CIDR that contains exactly one address.
#[must_use]
pub(crate) fn host_net(ip: IpAddr) -> IpNetwork {
    IpNetwork::from(ip)
}

/// Returns the network of an address and a prefix length, with host bits zero. `None` if the prefix length is too large.
#[must_use]
pub fn network(ip: IpAddr, prefix: u8) -> Option<IpNetwork> {
    let net = IpNetwork::new(ip, prefix).ok()?;
    IpNetwork::new(net.network(), prefix).ok()
}

/// Returns true if two networks have an address in common.
#[must_use]
pub fn overlap(one: IpNetwork, other: IpNetwork) -> bool {
    one.contains(other.network()) || other.contains(one.network())
}

/// Returns the first host address of a subnet: the address after the network address.
#[must_use]
pub(crate) fn first_host(subnet: IpNetwork) -> IpAddr {
    match subnet.network() {
        IpAddr::V4(ip) => IpAddr::V4((u32::from(ip).wrapping_add(1)).into()),
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip).wrapping_add(1)).into()),
    }
}

/// Parses the number at the start of `bytes`. Returns the number and its length in bytes, or `None` if there is none or it is too large.
fn leading_number(bytes: &[u8], radix: u32) -> Option<(u32, usize)> {
    const TOO_BIG: u32 = 0x00FF_FFFF;
    let mut value = 0;
    let mut used = 0;
    for digit in bytes.iter().map_while(|b| char::from(*b).to_digit(radix)) {
        value = value * radix + digit;
        if value >= TOO_BIG {
            return None;
        }
        used += 1;
    }
    (used > 0).then_some((value, used))
}

fn parse_v4(mut bytes: &[u8]) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    for (i, octet) in octets.iter_mut().enumerate() {
        if i > 0 {
            bytes = bytes.strip_prefix(b".")?;
        }
        let (value, used) = leading_number(bytes, 10)?;
        *octet = u8::try_from(value).ok()?;
        bytes = &bytes[used..];
    }
    bytes.is_empty().then(|| Ipv4Addr::from(octets))
}

fn parse_v6(mut bytes: &[u8]) -> Option<Ipv6Addr> {
    let mut head: Vec<u16> = Vec::with_capacity(8);
    let mut gap: Option<usize> = None;
    if let Some(rest) = bytes.strip_prefix(b"::") {
        gap = Some(0);
        bytes = rest;
    }
    while !bytes.is_empty() {
        if head.len() == 8 {
            return None;
        }
        let (value, used) = leading_number(bytes, 16)?;
        if bytes.get(used) == Some(&b'.') {
            // Dotted quad: only as the last 32 bits.
            if head.len() > 6 || (gap.is_none() && head.len() != 6) {
                return None;
            }
            let [a, b, c, d] = parse_v4(bytes)?.octets();
            head.extend([u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]);
            break;
        }
        head.push(u16::try_from(value).ok()?);
        bytes = &bytes[used..];
        if bytes.is_empty() {
            break;
        }
        bytes = bytes.strip_prefix(b":")?;
        if let Some(rest) = bytes.strip_prefix(b":") {
            if gap.replace(head.len()).is_some() {
                return None;
            }
            bytes = rest;
        } else if bytes.is_empty() {
            return None;
        }
    }
    let mut groups = [0; 8];
    match gap {
        None if head.len() == 8 => groups.copy_from_slice(&head),
        Some(at) if head.len() < 8 => {
            let tail = head.len() - at;
            groups[..at].copy_from_slice(&head[..at]);
            groups[8 - tail..].copy_from_slice(&head[at..]);
        }
        _ => return None,
    }
    Some(Ipv6Addr::from(groups))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Option<String> {
        parse_ip(text).map(|ip| ip.to_string())
    }

    fn cidr(text: &str) -> Option<String> {
        parse_cidr(text).map(|net| net.to_string())
    }

    #[test]
    fn sloppy_addresses_print_canonically() {
        for (text, want) in [
            ("010.096.000.001", "10.96.0.1"),
            ("0000000000010.1.1.1", "10.1.1.1"),
            ("::ffff:1.2.3.4", "1.2.3.4"),
            ("::ffff:0102:0304", "1.2.3.4"),
            ("FD00:0:0:0::00001", "fd00::1"),
            ("::", "::"),
            ("1::", "1::"),
            ("::1.2.3.4", "::102:304"),
            ("1:2:3:4:5:6:1.2.3.4", "1:2:3:4:5:6:102:304"),
            ("1:0:0:2:0:0:0:3", "1:0:0:2::3"),
        ] {
            assert_eq!(ip(text).as_deref(), Some(want), "{text}");
        }
    }

    #[test]
    fn texts_that_are_not_addresses_are_refused() {
        for text in [
            "",
            "1",
            "1.2.3",
            "1.2.3.4.5",
            "1.2.3.256",
            "1.2.3.4 ",
            "1..2.3",
            ":",
            ":::",
            "1::2::3",
            "1:2:3:4:5:6:7",
            "12345::",
            "fe80::1%eth0",
            "1:2:3:4:5:6:7:8:9",
            "1:2:3:4:5:6:7:1.2.3.4",
            "1:",
            "::1:",
            "1:2:3:4:5:6:7::8:9",
            "1.2.3.4/8",
            "999999999999.1.1.1",
            "x.1.1.1",
            "1:2:3:4::5:6:7:8",
        ] {
            assert_eq!(ip(text), None, "{text:?}");
        }
    }

    #[test]
    fn cidrs_are_masked_and_mapped() {
        for (text, want) in [
            ("10.1.2.3/16", Some("10.1.0.0/16")),
            ("010.0.0.0/025", Some("10.0.0.0/25")),
            ("fd00:10::5/64", Some("fd00:10::/64")),
            ("::ffff:10.1.2.3/112", Some("10.1.0.0/16")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("::/0", Some("::/0")),
            ("10.0.0.0/33", None),
            ("10.0.0.0", None),
            ("10.0.0.0/", None),
            ("10.0.0.0/8/8", None),
            ("10.0.0.0/+8", None),
            ("fd00::/129", None),
        ] {
            assert_eq!(cidr(text).as_deref(), want, "{text}");
        }
    }
}
