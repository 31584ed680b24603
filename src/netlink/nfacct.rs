//! The two nfacct counters that kube-proxy's rules name (spec section 6.8), over the netfilter netlink socket.
//!
//! The message layout is that of the kernel's `include/uapi/linux/netfilter/nfnetlink.h` and `nfnetlink_acct.h`; no netlink crate
//! knows this subsystem.

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::config::settings::NfacctCounters;

const CT_STATE_INVALID: &str = "ct_state_invalid_dropped_pkts";
const LOCALHOST_NODE_PORTS: &str = "localhost_nps_accepted_pkts";
/// A name nobody uses, to see whether the kernel has counters at all.
const PROBE: &str = "nfacct_probe_sepal";

const SUBSYSTEM_ACCT: u16 = 7 << 8;
const MESSAGE_NEW: u16 = SUBSYSTEM_ACCT;
const MESSAGE_GET: u16 = SUBSYSTEM_ACCT | 1;
const ATTRIBUTE_NAME: u16 = 1;
const FLAG_REQUEST: u16 = 0x1;
const FLAG_ACK: u16 = 0x4;
const FLAG_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const HEADER_LEN: usize = 16;
const NFGENMSG_LEN: usize = 4;
const ATTRIBUTE_HEADER_LEN: usize = 4;
const ENOENT: i32 = 2;
const MSG_DONTWAIT: i32 = 0x40;

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

fn open() -> Option<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER).ok()?;
    socket.bind_auto().ok()?;
    Some(socket)
}

/// Sends one request and gives the kernel's answer as an errno: 0 for success, `None` if the socket itself failed.
fn ask(socket: &Socket, kind: u16, flags: u16, name: &str) -> Option<i32> {
    socket.send(&request(kind, FLAG_REQUEST | flags, name), 0).ok()?;
    let mut answer = Vec::with_capacity(8192);
    loop {
        answer.clear();
        // The kernel answers while it takes the request, so there is nothing to wait for.
        socket.recv(&mut answer, MSG_DONTWAIT).ok()?;
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
fn acknowledged(datagram: &[u8]) -> Option<i32> {
    let mut rest = datagram;
    while rest.len() >= HEADER_LEN {
        let length = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?);
        if kind == NLMSG_ERROR {
            return Some(-i32::from_ne_bytes(rest.get(HEADER_LEN..HEADER_LEN + 4)?.try_into().ok()?));
        }
        rest = rest.get(length.next_multiple_of(4).max(HEADER_LEN)..)?;
    }
    None
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

    /// Whatever this kernel has, asking it ends and does not lie about having half of it.
    #[test]
    fn asking_the_kernel_comes_to_an_end() {
        let found = counters(false);
        assert_eq!(found.ct_state_invalid, found.localhost_node_ports);
    }
}
