//! Errors of netlink calls. The text names the call, its object, the cause and the cure.

use std::io;

use nix::errno::Errno;

use super::entry::{CREATE_VXLAN, EntryChange, LinkChange};
use super::link::LinkNames;

/// A call that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot {call} {object}: {cause}{}", self.cure())]
pub struct NetlinkError {
    /// The call, as a verb.
    pub call: &'static str,
    /// The object of the call.
    pub object: String,
    /// Why the call failed.
    pub cause: Cause,
}

/// Why a netlink call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// The kernel refused, or the socket failed.
    #[error("{}{}{said}", .errno.desc(), if .said.is_empty() { "" } else { ": " })]
    Kernel {
        /// The error number.
        errno: Errno,
        /// The kernel's explanation (`NETLINK_EXT_ACK`); often empty.
        said: String,
    },
    /// The kernel did not answer within this many seconds.
    #[error("no answer from the kernel within {0} s; is the node out of CPU time?")]
    Timeout(u64),
    /// The table changed during each of this many listings.
    #[error("it changed during each of {0} listings; try again when the node is less busy")]
    Interrupted(u32),
    /// The request is invalid, or the answer is not the expected one.
    #[error("{0}")]
    Other(&'static str),
}

impl Cause {
    /// The kernel's error number; `None` if the error is not the kernel's.
    #[must_use]
    pub const fn errno(&self) -> Option<Errno> {
        match self {
            Self::Kernel { errno, .. } => Some(*errno),
            Self::Timeout(_) | Self::Interrupted(_) | Self::Other(_) => None,
        }
    }
}

impl From<Errno> for Cause {
    fn from(errno: Errno) -> Self {
        Self::Kernel { errno, said: String::new() }
    }
}

impl From<io::Error> for Cause {
    fn from(error: io::Error) -> Self {
        error.raw_os_error().map_or(Errno::EIO, Errno::from_raw).into()
    }
}

impl From<Cause> for io::Error {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::Kernel { errno, .. } => errno.into(),
            Cause::Timeout(_) => Self::new(io::ErrorKind::TimedOut, cause),
            Cause::Interrupted(_) | Cause::Other(_) => Self::other(cause),
        }
    }
}

/// The call that sets a neighbour.
const SET_NEIGHBOUR: &str = "set neighbour";

impl NetlinkError {
    /// Creates the error of a listing.
    pub(super) fn listing(what: &'static str) -> impl Fn(Cause) -> Self {
        move |cause| Self { call: "list", object: what.to_owned(), cause }
    }

    /// Creates the error of a change of a route, a neighbour or an FDB entry. `names` are the names of the links.
    pub(super) fn entry(change: &EntryChange, names: &LinkNames, cause: Cause) -> Self {
        let (call, object) = match change {
            EntryChange::Route(route) => ("set route", route.text(names)),
            EntryChange::NoRoute(route) => ("delete route", route.text(names)),
            EntryChange::Neighbour(neighbour) => (SET_NEIGHBOUR, neighbour.text(names)),
            EntryChange::NoNeighbour(neighbour) => ("delete neighbour", neighbour.text(names)),
            EntryChange::Fdb(entry) => ("set FDB entry", entry.text(names)),
            EntryChange::NoFdb(entry) => ("delete FDB entry", entry.text(names)),
        };
        Self { call, object, cause }
    }

    /// Creates the error of a change of a link.
    pub(super) fn link(change: &LinkChange, cause: Cause) -> Self {
        let (call, object) = change.words();
        Self { call, object, cause }
    }

    fn cure(&self) -> &'static str {
        match (self.cause.errno(), self.call) {
            (Some(Errno::EPERM), _) => ". Run as root, or with the capability NET_ADMIN in this network namespace",
            (Some(Errno::EOPNOTSUPP), CREATE_VXLAN) => ". Load the module (modprobe vxlan), or use a kernel with CONFIG_VXLAN",
            // Before Linux 5.0, permanent neighbours count towards the limit.
            (Some(Errno::ENOBUFS), SET_NEIGHBOUR) => {
                ". The neighbour table is full: raise the sysctls net.ipv4.neigh.default.gc_thresh3 and net.ipv6.neigh.default.gc_thresh3"
            }
            (Some(Errno::EAFNOSUPPORT), _) => ". Is that IP family switched off on this node?",
            _ => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::entry::{FdbEntry, Neighbour, Route, RouteKind};
    use crate::netlink::link::{Link, LinkId, LinkKind, Vxlan};
    use crate::netlink::mac::Mac;

    fn said(errno: Errno, said: &str) -> Cause {
        Cause::Kernel { errno, said: said.to_owned() }
    }

    #[test]
    fn errors_name_call_object_cause_and_cure() {
        let vxlan = Vxlan::new(1, 8472);
        let create = LinkChange::CreateVxlan { name: "flannel.1".to_owned(), vxlan, mac: Mac::default(), mtu: 1450 };
        let missing = NetlinkError::link(&create, said(Errno::EOPNOTSUPP, "Unknown device type"));
        assert_eq!(
            missing.to_string(),
            "cannot create VXLAN link flannel.1 (VNI 1): Operation not supported on transport endpoint: Unknown device type. \
             Load the module (modprobe vxlan), or use a kernel with CONFIG_VXLAN"
        );
        let route = Route {
            destination: "10.244.2.0/24".parse().expect("a network"),
            gateway: "10.244.2.0".parse().ok(),
            link: Some(5),
            onlink: true,
            kind: RouteKind::Unicast,
            source: None,
            protocol: 83,
            metric: 7,
        };
        let link = Link {
            index: 5,
            name: "flannel.1".to_owned(),
            mac: None,
            mtu: 1450,
            up: true,
            master: None,
            kind: LinkKind::Vxlan(vxlan),
            addresses: Vec::new(),
        };
        let names = LinkNames::new(std::slice::from_ref(&link));
        let refused = NetlinkError::entry(&EntryChange::NoRoute(route), &names, Errno::EPERM.into());
        assert_eq!(
            refused.to_string(),
            "cannot delete route 10.244.2.0/24 via 10.244.2.0 dev flannel.1 metric 7: Operation not permitted. \
             Run as root, or with the capability NET_ADMIN in this network namespace"
        );
        // Every change of a link or an entry names the link, not its index.
        let (ip, mac, net) = (route.destination.ip(), Mac::default(), route.destination);
        let id = || LinkId { index: 5, name: "flannel.1".into() };
        let of_entries = [
            EntryChange::Neighbour(Neighbour { link: 5, ip, mac, permanent: true }),
            EntryChange::Fdb(FdbEntry { link: 5, mac, host: ip, permanent: true }),
            EntryChange::Route(route),
        ]
        .map(|change| NetlinkError::entry(&change, &names, Errno::ENODEV.into()));
        let of_links = [
            LinkChange::Delete(id()),
            LinkChange::Mtu(link.id(), 1400),
            LinkChange::Mac(id(), mac),
            LinkChange::Up(id()),
            LinkChange::AddAddress(id(), net),
            LinkChange::DeleteAddress(id(), net),
            LinkChange::ChecksumOffload(id(), true),
        ]
        .map(|change| NetlinkError::link(&change, Errno::ENODEV.into()));
        for error in of_entries.iter().chain(&of_links) {
            let text = error.to_string();
            assert!(text.contains(" flannel.1") && !text.contains("link 5") && !text.contains("if5"), "{text}");
        }
        assert_eq!(of_links[3].to_string(), "cannot set up link flannel.1: No such device");
        let silent = NetlinkError::listing("links")(Cause::Timeout(10));
        assert_eq!(silent.to_string(), "cannot list links: no answer from the kernel within 10 s; is the node out of CPU time?");
    }
}
