//! The generation of `nf_tables`: a number of the network namespace that moves by one with every transaction that changes anything, in
//! any family. To ask for it costs a few microseconds, however many rules there are.
//!
//! The message layout is that of the kernel's `include/uapi/linux/netfilter/nf_tables.h`.

use super::nfacct::{ATTRIBUTE_HEADER_LEN, ATTRIBUTE_KIND, FLAG_REQUEST, HEADER_LEN, MSG_DONTWAIT, NFGENMSG_LEN, messages, open};

const SUBSYSTEM_NFTABLES: u16 = 10 << 8;
const MESSAGE_NEWGEN: u16 = SUBSYSTEM_NFTABLES | 15;
const MESSAGE_GETGEN: u16 = SUBSYSTEM_NFTABLES | 16;
const ATTRIBUTE_ID: u16 = 1;

/// The generation now; `None` where the kernel has no `nf_tables` or does not tell.
#[must_use]
pub fn of_nf_tables() -> Option<u32> {
    let socket = open()?;
    socket.send(&request(), 0).ok()?;
    let mut answer = Vec::with_capacity(8192);
    // The kernel answers while it takes the request, so there is nothing to wait for.
    socket.recv(&mut answer, MSG_DONTWAIT).ok()?;
    number(&answer)
}

/// Netlink header and netfilter header.
fn request() -> Vec<u8> {
    let total = HEADER_LEN + NFGENMSG_LEN;
    let mut message = Vec::with_capacity(total);
    message.extend_from_slice(&(total as u32).to_ne_bytes());
    message.extend_from_slice(&MESSAGE_GETGEN.to_ne_bytes());
    message.extend_from_slice(&FLAG_REQUEST.to_ne_bytes());
    message.resize(total, 0);
    message
}

/// The generation that a datagram tells of, if it does. It is the first attribute.
fn number(datagram: &[u8]) -> Option<u32> {
    let (_, content) = messages(datagram).find(|(kind, _)| *kind == MESSAGE_NEWGEN)?;
    let attribute = content.get(NFGENMSG_LEN..)?;
    let kind = u16::from_ne_bytes(attribute.get(2..4)?.try_into().ok()?) & ATTRIBUTE_KIND;
    // In network byte order, unlike everything around it.
    let value = attribute.get(ATTRIBUTE_HEADER_LEN..ATTRIBUTE_HEADER_LEN + 4)?;
    (kind == ATTRIBUTE_ID).then_some(u32::from_be_bytes(value.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_found_in_the_answer() {
        let mut datagram = Vec::new();
        datagram.extend_from_slice(&28_u32.to_ne_bytes());
        datagram.extend_from_slice(&0x0a0f_u16.to_ne_bytes());
        datagram.extend_from_slice(&[0; 10]);
        datagram.extend_from_slice(&[0, 1, 0, 0]);
        datagram.extend_from_slice(&8_u16.to_ne_bytes());
        datagram.extend_from_slice(&1_u16.to_ne_bytes());
        datagram.extend_from_slice(&70_000_u32.to_be_bytes());
        assert_eq!(number(&datagram), Some(70_000));
        for end in 0..datagram.len() {
            assert_eq!(number(&datagram[..end]), None, "cut at {end}");
        }
        assert_eq!(request().len(), 20);
    }
}
