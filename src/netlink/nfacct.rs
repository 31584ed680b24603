//! The two nfacct counters that kube-proxy's rules name (spec section 6.8), over the netfilter netlink socket.
//!
//! The message layout is that of the kernel's `include/uapi/linux/netfilter/nfnetlink.h` and `nfnetlink_acct.h`; no netlink crate
//! knows this subsystem.

use std::fmt;

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::cluster::host_facts::NfacctCounters;

use super::Kernel;

const CT_STATE_INVALID: &str = "ct_state_invalid_dropped_pkts";
const LOCALHOST_NODE_PORTS: &str = "localhost_nps_accepted_pkts";
/// A name nobody uses, to see whether the kernel has counters at all.
const PROBE: &str = "nfacct_probe_sepal";

const SUBSYSTEM_ACCT: u16 = 7 << 8;
const MESSAGE_NEW: u16 = SUBSYSTEM_ACCT;
const MESSAGE_GET: u16 = SUBSYSTEM_ACCT | 1;
const ATTRIBUTE_NAME: u16 = 1;
const ATTRIBUTE_PACKETS: u16 = 2;
/// An attribute's number, without the flags above it.
pub(super) const ATTRIBUTE_KIND: u16 = 0x3fff;
pub(super) const FLAG_REQUEST: u16 = 0x1;
const FLAG_ACK: u16 = 0x4;
const FLAG_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
pub(super) const HEADER_LEN: usize = 16;
pub(super) const NFGENMSG_LEN: usize = 4;
pub(super) const ATTRIBUTE_HEADER_LEN: usize = 4;
const ENOENT: i32 = 2;
pub(super) const MSG_DONTWAIT: i32 = 0x40;

/// How many packets the two counters have seen; `None` for one that is not there, or not to be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packets {
    /// `ct_state_invalid_dropped_pkts`.
    pub ct_state_invalid: Option<u64>,
    /// `localhost_nps_accepted_pkts`.
    pub localhost_node_ports: Option<u64>,
}

/// Whoever knows how many packets the counters have seen.
pub trait PacketCounters: fmt::Debug + Send + Sync + 'static {
    /// How many by now.
    fn packets(&self) -> Packets;
}

/// Counters that stand still, for tests and where there are none.
impl PacketCounters for Packets {
    fn packets(&self) -> Packets {
        *self
    }
}

impl PacketCounters for Kernel {
    fn packets(&self) -> Packets {
        let Some(socket) = open() else { return Packets::default() };
        let of = |name| read(&socket, name);
        Packets { ct_state_invalid: of(CT_STATE_INVALID), localhost_node_ports: of(LOCALHOST_NODE_PORTS) }
    }
}

/// Which counters can be named in rules; with `create`, missing ones are made.
pub(super) fn counters(create: bool) -> NfacctCounters {
    // ENOENT for a name that nobody uses is the sign of a kernel that has counters.
    let Some(socket) = open().filter(|socket| ask(socket, MESSAGE_GET, FLAG_ACK, PROBE) == Some(ENOENT)) else {
        return NfacctCounters::default();
    };
    let usable = |name| match ask(&socket, MESSAGE_GET, FLAG_ACK, name) {
        Some(0) => true,
        Some(ENOENT) if create => ask(&socket, MESSAGE_NEW, FLAG_ACK | FLAG_CREATE, name) == Some(0),
        Some(ENOENT) => true,
        _ => false,
    };
    NfacctCounters { ct_state_invalid: usable(CT_STATE_INVALID), localhost_node_ports: usable(LOCALHOST_NODE_PORTS) }
}

pub(super) fn open() -> Option<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER).ok()?;
    socket.bind_auto().ok()?;
    Some(socket)
}

/// Sends one request and gives the kernel's answer as an errno: 0 for success, `None` if the socket itself failed.
fn ask(socket: &Socket, kind: u16, flags: u16, name: &str) -> Option<i32> {
    exchange(socket, kind, flags, name, |_| ())
}

/// The packets that a counter has seen.
fn read(socket: &Socket, name: &str) -> Option<u64> {
    let mut seen = None;
    let errno = exchange(socket, MESSAGE_GET, FLAG_ACK, name, |datagram| seen = seen.or_else(|| packets(datagram)))?;
    seen.filter(|_| errno == 0)
}

/// Sends one request, gives every datagram of the answer, and says how it ended.
fn exchange(socket: &Socket, kind: u16, flags: u16, name: &str, mut datagram: impl FnMut(&[u8])) -> Option<i32> {
    socket.send(&request(kind, FLAG_REQUEST | flags, name), 0).ok()?;
    let mut answer = Vec::with_capacity(8192);
    loop {
        answer.clear();
        // The kernel answers while it takes the request, so there is nothing to wait for.
        socket.recv(&mut answer, MSG_DONTWAIT).ok()?;
        datagram(&answer);
        if let Some(errno) = acknowledged(&answer) {
            return Some(errno);
        }
    }
}

/// A request about one counter: netlink header, netfilter header, the zero-terminated name.
fn request(kind: u16, flags: u16, name: &str) -> Vec<u8> {
    let attribute_len = ATTRIBUTE_HEADER_LEN + name.len() + 1;
    let total = HEADER_LEN + NFGENMSG_LEN + attribute_len.next_multiple_of(4);
    let mut message = Vec::with_capacity(total);
    message.extend_from_slice(&(total as u32).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    message.extend_from_slice(&[0; 8]); // sequence and sender: the socket is used for one request at a time
    message.extend_from_slice(&[0; NFGENMSG_LEN]);
    message.extend_from_slice(&(attribute_len as u16).to_ne_bytes());
    message.extend_from_slice(&ATTRIBUTE_NAME.to_ne_bytes());
    message.extend_from_slice(name.as_bytes());
    message.resize(total, 0);
    message
}

/// The errno in the acknowledgement within a datagram, if it holds one.
pub(super) fn acknowledged(datagram: &[u8]) -> Option<i32> {
    let (_, content) = messages(datagram).find(|(kind, _)| *kind == NLMSG_ERROR)?;
    Some(-i32::from_ne_bytes(content.get(..4)?.try_into().ok()?))
}

/// The packets of the counter that a datagram tells of, if it does.
fn packets(datagram: &[u8]) -> Option<u64> {
    let (_, content) = messages(datagram).find(|(kind, _)| *kind == MESSAGE_NEW)?;
    let mut rest = content.get(NFGENMSG_LEN..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) & ATTRIBUTE_KIND;
        if kind == ATTRIBUTE_PACKETS {
            // In network byte order, unlike everything around it.
            return Some(u64::from_be_bytes(rest.get(ATTRIBUTE_HEADER_LEN..ATTRIBUTE_HEADER_LEN + 8)?.try_into().ok()?));
        }
        rest = rest.get(length.next_multiple_of(4).max(ATTRIBUTE_HEADER_LEN)..)?;
    }
}

/// The messages in a datagram: what each is, and what follows its header. Ends where one is not whole.
pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?);
        let content = rest.get(HEADER_LEN..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, content))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_laid_out_as_the_kernel_reads_it() {
        let message = request(MESSAGE_GET, FLAG_REQUEST | FLAG_ACK, "abc");
        assert_eq!(message.len(), 28);
        assert_eq!(message[..4], 28_u32.to_ne_bytes());
        assert_eq!(message[4..6], 0x0701_u16.to_ne_bytes());
        assert_eq!(message[20..], [&8_u16.to_ne_bytes()[..], &1_u16.to_ne_bytes(), b"abc\0"].concat());
    }

    #[test]
    fn acknowledgements_are_found_behind_other_messages() {
        let mut datagram = Vec::new();
        for (kind, errno) in [(0x0700_u16, 0_i32), (NLMSG_ERROR, -2)] {
            datagram.extend_from_slice(&20_u32.to_ne_bytes());
            datagram.extend_from_slice(&kind.to_ne_bytes());
            datagram.extend_from_slice(&[0; 10]);
            datagram.extend_from_slice(&errno.to_ne_bytes());
        }
        assert_eq!(acknowledged(&datagram), Some(ENOENT));
        assert_eq!(acknowledged(&datagram[..20]), None);
        assert_eq!(acknowledged(&[]), None);
    }

    #[test]
    fn packets_are_found_among_the_attributes() {
        let mut datagram = Vec::new();
        let attributes = [(1_u16, b"abc\0".to_vec()), (3, 500_u64.to_be_bytes().to_vec()), (2, 7_u64.to_be_bytes().to_vec())];
        let length = HEADER_LEN + NFGENMSG_LEN + attributes.iter().map(|(_, value)| ATTRIBUTE_HEADER_LEN + value.len()).sum::<usize>();
        datagram.extend_from_slice(&(length as u32).to_ne_bytes());
        datagram.extend_from_slice(&MESSAGE_NEW.to_ne_bytes());
        datagram.extend_from_slice(&[0; 10 + NFGENMSG_LEN]);
        for (kind, value) in attributes {
            datagram.extend_from_slice(&((ATTRIBUTE_HEADER_LEN + value.len()) as u16).to_ne_bytes());
            datagram.extend_from_slice(&kind.to_ne_bytes());
            datagram.extend_from_slice(&value);
        }
        assert_eq!(packets(&datagram), Some(7));
        for end in 0..datagram.len() {
            assert_eq!(packets(&datagram[..end]), None, "cut at {end}");
        }
    }

    /// Whatever this kernel has, asking it ends and does not lie about having half of it.
    #[test]
    fn asking_the_kernel_comes_to_an_end() {
        let found = counters(false);
        assert_eq!(found.ct_state_invalid, found.localhost_node_ports);
        let read = Kernel.packets();
        assert!(found.ct_state_invalid || read == Packets::default(), "{read:?} without counters");
    }
}
