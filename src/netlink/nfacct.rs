//! The two nfacct counters that kube-proxy's rules use [kube-proxy 6.8].
//!
//! The message layout is in the kernel's `include/uapi/linux/netfilter/nfnetlink_acct.h`. No netlink crate has this subsystem.

use std::fmt;

use netlink_packet_core::NLM_F_CREATE;
use nix::errno::Errno;

use crate::cluster::host_facts::NfacctCounters;

use super::attributes::attribute;
use super::error::Cause;
use super::message::{netfilter, netfilter_kind};
use super::socket::{Connection, Request};

const CT_STATE_INVALID: &str = "ct_state_invalid_dropped_pkts";
const LOCALHOST_NODE_PORTS: &str = "localhost_nps_accepted_pkts";
/// The name of a counter that does not exist. The kernel's answer for this name shows whether the kernel supports nfacct.
const PROBE: &str = "nfacct_probe_sepal";

/// `NFNL_SUBSYS_ACCT`
const SUBSYSTEM: u8 = 7;
/// `NFNL_MSG_ACCT_NEW`
const NEW: u16 = netfilter_kind(SUBSYSTEM, 0);
/// `NFNL_MSG_ACCT_GET`
const GET: u16 = netfilter_kind(SUBSYSTEM, 1);
/// `NFACCT_NAME`
const NAME: u16 = 1;
/// `NFACCT_PKTS`
const PACKETS: u16 = 2;

/// The packets that the two counters counted; `None` for a counter that does not exist or cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packets {
    /// `ct_state_invalid_dropped_pkts`.
    pub ct_state_invalid: Option<u64>,
    /// `localhost_nps_accepted_pkts`.
    pub localhost_node_ports: Option<u64>,
}

/// A source of the two counters.
pub trait PacketCounters: fmt::Debug + Send + Sync + 'static {
    /// The current values.
    fn packets(&self) -> Packets;
}

/// Counters with fixed values, for tests and for platforms without counters.
impl PacketCounters for Packets {
    fn packets(&self) -> Packets {
        *self
    }
}

/// Reads the two counters.
pub(super) fn packets() -> Packets {
    let Ok(mut connection) = Connection::netfilter() else { return Packets::default() };
    let mut read = |name| connection.get(&about(GET, 0, name), packets_in).ok()?.into_iter().next();
    Packets { ct_state_invalid: read(CT_STATE_INVALID), localhost_node_ports: read(LOCALHOST_NODE_PORTS) }
}

/// Returns which counters rules may use. With `create`, missing counters are created.
pub(super) fn counters(create: bool) -> NfacctCounters {
    let Ok(mut connection) = Connection::netfilter() else { return NfacctCounters::default() };
    if exists(&mut connection, PROBE) != Ok(false) {
        return NfacctCounters::default();
    }
    let mut usable = |name| match exists(&mut connection, name) {
        Ok(false) if create => connection.request(&about(NEW, NLM_F_CREATE, name)).is_ok(),
        found => found.is_ok(),
    };
    NfacctCounters { ct_state_invalid: usable(CT_STATE_INVALID), localhost_node_ports: usable(LOCALHOST_NODE_PORTS) }
}

fn exists(connection: &mut Connection, name: &str) -> Result<bool, Cause> {
    match connection.request(&about(GET, 0, name)) {
        Err(Cause::Kernel { errno: Errno::ENOENT, .. }) => Ok(false),
        answer => answer.map(|()| true),
    }
}

/// Encodes a request for one counter.
fn about(kind: u16, flags: u16, name: &str) -> Request {
    Request::netfilter(kind, flags, None, |writer| writer.attribute(NAME, &[name.as_bytes(), b"\0"].concat()))
}

fn packets_in(kind: u16, body: &[u8]) -> Option<u64> {
    let (_, attributes) = netfilter(body).filter(|_| kind == NEW)?;
    attribute(attributes, PACKETS)?.try_into().ok().map(u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_found_among_the_attributes() {
        let counter = Request::netfilter(NEW, 0, None, |writer| {
            writer.attribute(NAME, b"abc\0");
            writer.attribute(3, &500_u64.to_be_bytes());
            writer.attribute(PACKETS, &7_u64.to_be_bytes());
        });
        assert_eq!(packets_in(NEW, &counter.body), Some(7));
        assert_eq!(packets_in(GET, &counter.body), None);
        for end in 0..counter.body.len() {
            assert_eq!(packets_in(NEW, &counter.body[..end]), None, "cut at {end}");
        }
    }

    /// Every kernel answers, and it has either both counters or none.
    #[test]
    fn the_kernel_answers() {
        let found = counters(false);
        assert_eq!(found.ct_state_invalid, found.localhost_node_ports);
        let read = packets();
        assert!(found.ct_state_invalid || read == Packets::default(), "{read:?} without counters");
    }
}
