//! Chain names: kube-proxy's prefixes and its hash [kube-proxy 6.1].

use std::fmt;

use base32::Alphabet;
use sha2::{Digest, Sha256};

use crate::cluster::Protocol;

/// `filter` and `nat`: dispatch on cluster IPs, external IPs and load-balancer IPs.
pub const SERVICES: &str = "KUBE-SERVICES";
/// `filter`: refuses traffic from outside the cluster.
pub const EXTERNAL_SERVICES: &str = "KUBE-EXTERNAL-SERVICES";
/// `filter`: accepts forwarded service traffic and drops invalid packets.
pub const FORWARD: &str = "KUBE-FORWARD";
/// `filter`: health-check node ports; `nat`: dispatch on NodePorts.
pub const NODEPORTS: &str = "KUBE-NODEPORTS";
/// `filter`: drops load-balancer traffic that comes from outside the source ranges.
pub const PROXY_FIREWALL: &str = "KUBE-PROXY-FIREWALL";
/// `filter`: drops martian packets to 127.0.0.0/8. kubelet uses the same chain.
pub const FIREWALL: &str = "KUBE-FIREWALL";
/// `nat`: masquerades marked packets.
pub const POSTROUTING: &str = "KUBE-POSTROUTING";
/// `nat`: marks packets for masquerading.
pub const MARK_MASQ: &str = "KUBE-MARK-MASQ";
/// `nat`: flannel's chain, masquerades traffic that leaves the pod network.
pub const FLANNEL_POSTROUTING: &str = "FLANNEL-POSTRTG";
/// `filter`: flannel's chain, accepts traffic that is forwarded for the pod network.
pub const FLANNEL_FORWARD: &str = "FLANNEL-FWD";
/// `mangle`, `nat` and `filter`: an empty chain. If it is missing, another program flushed the tables [kube-proxy 7.3].
pub const CANARY: &str = "KUBE-PROXY-CANARY";

/// The purpose of a service port's own chain, which decides the prefix of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChainKind {
    /// KUBE-FW-: load-balancer source ranges.
    Firewall,
    /// KUBE-EXT-: traffic from outside the cluster.
    External,
    /// KUBE-SVC-: balances over endpoints on all nodes.
    Cluster,
    /// KUBE-SVL-: balances over endpoints on this node.
    Local,
    /// KUBE-SEP-: one endpoint.
    Endpoint,
}

impl ChainKind {
    /// Every kind. A chain comes before the chains that it jumps to, so chains can be deleted in this order.
    pub const ALL: [Self; 5] = [Self::Firewall, Self::External, Self::Cluster, Self::Local, Self::Endpoint];

    /// The prefix of the chain's name.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Firewall => "KUBE-FW-",
            Self::External => "KUBE-EXT-",
            Self::Cluster => "KUBE-SVC-",
            Self::Local => "KUBE-SVL-",
            Self::Endpoint => "KUBE-SEP-",
        }
    }

    /// Returns the kind of a service port's chain by its name, and `None` for any other chain.
    #[must_use]
    pub fn of(chain: &str) -> Option<Self> {
        let rest = chain.strip_prefix("KUBE-")?;
        Self::ALL.into_iter().find(|kind| rest.starts_with(&kind.prefix()["KUBE-".len()..]))
    }
}

const HASH_LEN: usize = 16;
/// The longest name that the kernel allows (`XT_EXTENSION_MAXNAMELEN` in `include/uapi/linux/netfilter/x_tables.h`, less the zero at the end).
const MAX_LEN: usize = 28;

/// The name of a chain that belongs to a service port. Stored inline, because a cluster has tens of thousands of them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChainName {
    len: u8,
    bytes: [u8; MAX_LEN],
}

impl ChainName {
    fn new(kind: ChainKind, hash: &Hash) -> Self {
        let prefix = kind.prefix().as_bytes();
        let len = prefix.len() + HASH_LEN;
        let mut bytes = [0; MAX_LEN];
        bytes[..prefix.len()].copy_from_slice(prefix);
        bytes[prefix.len()..len].copy_from_slice(&hash.0);
        Self { len: len as u8, bytes }
    }

    /// Parses the name of a live chain. Returns `None` if it is not a service port's chain.
    #[must_use]
    pub fn from_text(name: &str) -> Option<Self> {
        ChainKind::of(name).filter(|_| name.len() <= MAX_LEN)?;
        let mut bytes = [0; MAX_LEN];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Some(Self { len: name.len() as u8, bytes })
    }

    /// The purpose of the chain.
    #[must_use]
    pub fn kind(&self) -> ChainKind {
        // Every constructor checks the kind, so the default is never used.
        ChainKind::of(self.as_str()).unwrap_or(ChainKind::Endpoint)
    }

    /// The KUBE-SEP- chain of one endpoint of a service port.
    ///
    /// ```
    /// use sepal::{cluster::Protocol, table::chain_names::ChainName};
    /// let name = ChainName::endpoint("kube-system/kube-dns:dns", Protocol::Udp, "10.0.0.46:53");
    /// assert_eq!(name.as_str(), "KUBE-SEP-L5MHPWJPDKD7XIFG");
    /// ```
    #[must_use]
    pub fn endpoint(spn: &str, protocol: Protocol, endpoint_id: &str) -> Self {
        Self::new(ChainKind::Endpoint, &Hash::of(&[spn, protocol.as_str(), endpoint_id]))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // The bytes always come from a `str`.
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The chains of one service port that share one hash.
#[derive(Clone, Debug)]
pub struct ServiceChains {
    /// KUBE-SVC-.
    pub cluster: ChainName,
    /// KUBE-SVL-.
    pub local: ChainName,
    /// KUBE-FW-.
    pub firewall: ChainName,
    /// KUBE-EXT-.
    pub external: ChainName,
}

impl ServiceChains {
    /// The names for a service port, from its printed name and its protocol.
    #[must_use]
    pub fn new(spn: &str, protocol: Protocol) -> Self {
        let hash = Hash::of(&[spn, protocol.as_str()]);
        Self {
            cluster: ChainName::new(ChainKind::Cluster, &hash),
            local: ChainName::new(ChainKind::Local, &hash),
            firewall: ChainName::new(ChainKind::Firewall, &hash),
            external: ChainName::new(ChainKind::External, &hash),
        }
    }
}

struct Hash([u8; HASH_LEN]);

impl Hash {
    /// Returns the first 16 base32 characters of the SHA-256 of the joined parts.
    fn of(parts: &[&str]) -> Self {
        let mut sha = Sha256::new();
        for part in parts {
            sha.update(part.as_bytes());
        }
        // 10 bytes are 80 bits, which are exactly 16 base32 characters.
        let text = base32::encode(Alphabet::Rfc4648 { padding: false }, &sha.finalize()[..10]);
        let mut hash = [0; HASH_LEN];
        hash.copy_from_slice(text.as_bytes());
        Self(hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of [kube-proxy 6.1].
    #[test]
    fn names_are_the_same_as_kube_proxys() {
        for (spn, protocol, hash) in [
            ("ns1/svc1:p80", Protocol::Tcp, "XPGD46QRK7WJZT7O"),
            ("ns5/svc5:p80", Protocol::Tcp, "NUKIZ6OKUXPJNT4C"),
            ("default/kubernetes:https", Protocol::Tcp, "NPX46M4PTMTKRN6Y"),
            ("kube-system/kube-dns:dns", Protocol::Udp, "TCOU7JCQXEZGVUNU"),
            ("ns1/svc1", Protocol::Tcp, "AQI2S6QIMU7PVVRP"),
            ("ns1/svc1", Protocol::Udp, "A2PEVXD55OHK2IVW"),
        ] {
            let names = ServiceChains::new(spn, protocol);
            assert_eq!(names.cluster.as_str(), format!("KUBE-SVC-{hash}"));
            assert_eq!(names.local.as_str(), format!("KUBE-SVL-{hash}"));
            assert_eq!(names.firewall.as_str(), format!("KUBE-FW-{hash}"));
            assert_eq!(names.external.as_str(), format!("KUBE-EXT-{hash}"));
        }
        for (spn, endpoint, hash) in [
            ("ns1/svc1:p80", "10.180.0.1:80", "SXIVWICOYRO3J4NJ"),
            ("ns3/svc3:p8081", "203.0.113.4:8081", "RUVVH7YV3PHQBDOS"),
            ("ns1/svc1:p80", "[fd00:10:180::1]:80", "OGYCNMB4EMRUSJ6N"),
        ] {
            assert_eq!(ChainName::endpoint(spn, Protocol::Tcp, endpoint).as_str(), format!("KUBE-SEP-{hash}"));
        }
    }

    #[test]
    fn the_prefix_gives_the_kind() {
        assert_eq!(ChainKind::of("KUBE-SVC-X"), Some(ChainKind::Cluster));
        assert_eq!(ChainKind::of("KUBE-FW-X"), Some(ChainKind::Firewall));
        assert_eq!(ChainKind::of("KUBE-FIREWALL"), None);
        assert_eq!(ChainKind::of("KUBE-SERVICES"), None);
    }
}
