//! The host's ends of containers' interfaces, with names that can be found again. PURE.
//!
//! The reference plugin uses random names and MAC addresses, so the owner of an interface is unknown after a crash. Here both are derived
//! from the network and the attachment. So the interfaces that a killed plugin left can be found, and ports of this plugin can be told from
//! others.

use sha2::{Digest, Sha512};

use crate::cni::request::Attachment;
use crate::netlink::mac::Mac;

/// The number of names that are tried for an attachment, if other interfaces have the first names.
pub(super) const TRIES: u8 = 10;

/// The name and the MAC address of a host's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PortIdentity {
    /// `veth` and eight hexadecimal digits, as in the reference plugin.
    pub name: String,
    /// Locally administered. Half of it is derived from the name, so that a port of this plugin can be recognized.
    pub mac: Mac,
}

impl PortIdentity {
    /// Returns the name of the given try.
    pub(super) fn new(network: &str, attachment: &Attachment, turn: u8) -> Self {
        // The separator is a slash, because no name has one.
        let text = format!("{network}/{}/{}/{turn}", attachment.container, attachment.interface);
        let hash = Sha512::digest(text.as_bytes());
        let name = format!("veth{}", hash[..4].iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        let own = [hash[4], hash[5]];
        let mac = mac(network, &name, own);
        Self { name, mac }
    }

    /// Returns all names of an attachment.
    pub(super) fn all(network: &str, attachment: &Attachment) -> impl Iterator<Item = Self> {
        (0..TRIES).map(move |turn| Self::new(network, attachment, turn))
    }
}

/// Returns true if an interface is a port that this plugin created for any attachment of a network.
pub(super) fn is_ours(network: &str, name: &str, found: Option<Mac>) -> bool {
    found.is_some_and(|found| found == mac(network, name, [found.0[4], found.0[5]]))
}

fn mac(network: &str, name: &str, own: [u8; 2]) -> Mac {
    let text = format!("{network}/{name}/{:02x}{:02x}", own[0], own[1]);
    let check = Sha512::digest(text.as_bytes());
    Mac::local([0, check[0], check[1], check[2], own[0], own[1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_again_and_told_from_others() {
        let attachment = |container: &str| Attachment { container: container.into(), interface: "eth0".into() };
        let port = PortIdentity::new("cbr0", &attachment("abc"), 0);
        assert!(port.name.len() == 12 && port.mac.is_unicast());
        assert_eq!(port, PortIdentity::new("cbr0", &attachment("abc"), 0));
        for other in [
            PortIdentity::new("cbr0", &attachment("abd"), 0),
            PortIdentity::new("cbr0", &attachment("abc"), 1),
            PortIdentity::new("cbr1", &attachment("abc"), 0),
        ] {
            assert_ne!((&port.name, port.mac), (&other.name, other.mac));
        }
        assert!(is_ours("cbr0", &port.name, Some(port.mac)));
        assert!(!is_ours("cbr1", &port.name, Some(port.mac)) && !is_ours("cbr0", "veth00000000", Some(port.mac)));
        assert!(!is_ours("cbr0", &port.name, None));
        assert_eq!(PortIdentity::all("cbr0", &attachment("abc")).count(), 10);
    }
}
