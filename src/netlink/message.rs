//! The netlink message format: requests to bytes, datagrams to messages, acknowledgements to results. rtnetlink, generic netlink and
//! nfnetlink share it. PURE.
//!
//! netlink-packet-core reads and writes headers, attributes and errors. Its `NetlinkMessage` is not used, because it copies each message.
//! [`Message`] borrows from the datagram, so that long listings allocate nothing per entry.

use netlink_packet_core::{
    DoneBuffer, Emitable, ErrorBuffer, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NetlinkBuffer, Nla,
};
use netlink_packet_route::AddressFamily;
use nix::errno::Errno;

use crate::cluster::Family;

use super::attributes::{AttributeWriter, attribute, text};
use super::error::Cause;

/// Length of the netlink header (`struct nlmsghdr`).
const HEADER_LEN: usize = 16;
/// Length of the header of an nfnetlink message (`struct nfgenmsg`): family, version, two bytes that depend on the subsystem.
const NETFILTER_HEADER_LEN: usize = 4;
/// Length of the header of a generic netlink message (`struct genlmsghdr`): command, version, two unused bytes.
const GENERIC_HEADER_LEN: usize = 4;
/// The version in the header of a generic netlink message.
const GENERIC_VERSION: u8 = 1;
/// `NLMSGERR_ATTR_MSG`: the kernel's explanation of an error.
const ERROR_TEXT: u16 = 1;

/// A request without its netlink header, and the fields that the header needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Message type (`RTM_*`, an nfnetlink message, or the ID of a generic netlink family).
    pub kind: u16,
    /// Flags, without those that request an acknowledgement or a listing.
    pub flags: u16,
    /// Header of the message type, and attributes.
    pub body: Vec<u8>,
}

impl Request {
    /// An rtnetlink request.
    pub fn new<A: Nla>(kind: u16, flags: u16, header: &impl Emitable, attributes: &[A]) -> Self {
        let (start, length) = (header.buffer_len(), attributes.buffer_len());
        let mut body = vec![0; start + length];
        header.emit(&mut body[..start]);
        attributes.emit(&mut body[start..]);
        Self { kind, flags, body }
    }

    /// An nfnetlink request with the attributes that `write` appends. `None` stands for all families.
    pub(crate) fn netfilter(kind: u16, flags: u16, family: Option<Family>, write: impl FnOnce(&mut AttributeWriter)) -> Self {
        let family = u8::from(family.map_or(AddressFamily::Unspec, address_family));
        let header: [u8; NETFILTER_HEADER_LEN] = [family, 0, 0, 0];
        Self { kind, flags, body: with_attributes(&header, write) }
    }

    /// A generic netlink request with the attributes that `write` appends.
    pub(super) fn generic(kind: u16, command: u8, write: impl FnOnce(&mut AttributeWriter)) -> Self {
        let header: [u8; GENERIC_HEADER_LEN] = [command, GENERIC_VERSION, 0, 0];
        Self { kind, flags: 0, body: with_attributes(&header, write) }
    }

    /// Appends the request to a datagram.
    pub(super) fn append(&self, datagram: &mut Vec<u8>, flags: u16, sequence: u32) {
        let start = datagram.len();
        datagram.resize(start + HEADER_LEN, 0);
        let mut header = NetlinkBuffer::new(&mut datagram[start..]);
        header.set_length(self.length() as u32);
        header.set_message_type(self.kind);
        header.set_flags(NLM_F_REQUEST | self.flags | flags);
        header.set_sequence_number(sequence);
        datagram.extend_from_slice(&self.body);
        datagram.resize(datagram.len().next_multiple_of(4), 0);
    }

    /// Length of the message, in bytes.
    pub(super) const fn length(&self) -> usize {
        HEADER_LEN + self.body.len()
    }
}

fn with_attributes(header: &[u8], write: impl FnOnce(&mut AttributeWriter)) -> Vec<u8> {
    let mut writer = AttributeWriter::new(header);
    write(&mut writer);
    writer.into_body()
}

/// Returns the message type of a message of an nfnetlink subsystem.
pub(crate) const fn netfilter_kind(subsystem: u8, message: u8) -> u16 {
    u16::from_be_bytes([subsystem, message])
}

/// Returns the family and the attributes of an nfnetlink message.
pub(crate) fn netfilter(body: &[u8]) -> Option<(u8, &[u8])> {
    let (header, attributes) = body.split_at_checked(NETFILTER_HEADER_LEN)?;
    Some((header[0], attributes))
}

/// Returns the attributes of a generic netlink message.
pub(super) fn generic(body: &[u8]) -> Option<&[u8]> {
    body.get(GENERIC_HEADER_LEN..)
}

/// Returns the kernel's `AF_*` number of a family.
pub(super) const fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

/// One message of a datagram.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    /// Message type.
    pub(super) kind: u16,
    /// `NLM_F_*`.
    pub(super) flags: u16,
    /// Sequence number of the request that it answers.
    pub(super) sequence: u32,
    /// Header of the message type, and attributes.
    pub(super) body: &'a [u8],
}

/// The messages in a datagram. Ends at the first malformed message.
#[derive(Debug)]
pub(super) struct Messages<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        // At the end of each datagram, `new_checked` would format an error text that is not used.
        if self.0.len() < HEADER_LEN {
            return None;
        }
        let message = NetlinkBuffer::new_checked(self.0).ok()?;
        let (kind, flags, sequence) = (message.message_type(), message.flags(), message.sequence_number());
        self.0 = self.0.get((message.length() as usize).next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, flags, sequence, body: message.payload() })
    }
}

impl Message<'_> {
    /// True if the table changed during the listing in a way that may have hidden entries.
    pub(super) const fn interrupted(&self) -> bool {
        self.flags & NLM_F_DUMP_INTR != 0
    }

    /// The result that an acknowledgement or the end of a listing reports.
    pub(super) fn outcome(&self) -> Result<(), Cause> {
        let code = if self.kind == NLMSG_DONE {
            DoneBuffer::new_checked(self.body).map_or(0, |done| done.code())
        } else {
            ErrorBuffer::new_checked(self.body).ok().and_then(|error| error.code()).map_or(0, std::num::NonZero::get)
        };
        if code == 0 {
            return Ok(());
        }
        Err(Cause::Kernel { errno: Errno::from_raw(code.saturating_neg()), said: self.error_text().unwrap_or_default() })
    }

    /// The kernel's explanation of an error (`NETLINK_EXT_ACK`).
    fn error_text(&self) -> Option<String> {
        if self.flags & NLM_F_ACK_TLVS == 0 {
            return None;
        }
        let attributes = if self.kind == NLMSG_DONE {
            DoneBuffer::new_checked(self.body).ok()?.extended_ack()
        } else {
            // An acknowledgement starts with a copy of the request. A capped one only has the header of the request.
            let request = ErrorBuffer::new_checked(self.body).ok()?.payload();
            let capped = self.flags & NLM_F_CAPPED != 0;
            let length = if capped { HEADER_LEN } else { u32::from_ne_bytes(*request.first_chunk()?) as usize };
            request.get(length.next_multiple_of(4)..)?
        };
        attribute(attributes, ERROR_TEXT).map(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::{NLM_F_ACK, NLMSG_ERROR};
    use proptest::prelude::*;

    fn acknowledgement(kind: u16, errno: i32, flags: u16, repeated: &[u8], said: Option<&str>) -> Vec<u8> {
        let mut writer = AttributeWriter::new(&[&(-errno).to_ne_bytes()[..], repeated].concat());
        if let Some(said) = said {
            writer.attribute(ERROR_TEXT, &[said.as_bytes(), b"\0"].concat());
        }
        let mut out = Vec::new();
        Request { kind, flags, body: writer.into_body() }.append(&mut out, 0, 7);
        out
    }

    #[test]
    fn acknowledgements_carry_errno_and_text() {
        let mut request = Vec::new();
        Request { kind: 24, flags: 0, body: vec![1; 30] }.append(&mut request, NLM_F_ACK, 7);
        let said = |said: &str| Err(Cause::Kernel { errno: Errno::EINVAL, said: said.to_owned() });
        let header = &request[..16];
        for (kind, errno, flags, repeated, text, want) in [
            (NLMSG_ERROR, 0, NLM_F_CAPPED, header, None, Ok(())),
            (NLMSG_ERROR, 22, NLM_F_CAPPED, header, None, said("")),
            (NLMSG_ERROR, 22, NLM_F_CAPPED | NLM_F_ACK_TLVS, header, Some("No such thing"), said("No such thing")),
            (NLMSG_ERROR, 22, NLM_F_ACK_TLVS, &request, Some("Not there"), said("Not there")),
            (NLMSG_DONE, 0, 0, &[], None, Ok(())),
            (NLMSG_DONE, 22, NLM_F_ACK_TLVS, &[], Some("Not there"), said("Not there")),
        ] {
            let bytes = acknowledgement(kind, errno, flags, repeated, text);
            let message = Messages(&bytes).next().expect("a message");
            assert_eq!((message.kind, message.sequence), (kind, 7));
            assert_eq!(message.outcome(), want);
        }
        let without_code = Message { kind: NLMSG_ERROR, flags: 0, sequence: 1, body: &[] };
        assert_eq!(without_code.outcome(), Ok(()));
    }

    #[test]
    fn requests_follow_each_other_in_a_datagram() {
        let mut datagram = Vec::new();
        for (sequence, length) in [(1, 5), (2, 0), (3, 8)] {
            Request { kind: 24, flags: 0x500, body: vec![9; length] }.append(&mut datagram, NLM_F_ACK, sequence);
        }
        let found: Vec<_> = Messages(&datagram).map(|message| (message.sequence, message.flags, message.body.len())).collect();
        assert_eq!(found, [(1, 0x505, 5), (2, 0x505, 0), (3, 0x505, 8)]);
    }

    #[test]
    fn nfnetlink_requests_are_laid_out_as_the_kernel_reads_them() {
        let mut datagram = Vec::new();
        let write = |writer: &mut AttributeWriter| writer.attribute(1, b"abc\0");
        Request::netfilter(netfilter_kind(7, 1), 0, Some(Family::V6), write).append(&mut datagram, NLM_F_ACK, 3);
        assert_eq!(datagram.len(), 28);
        assert_eq!(datagram[..4], 28_u32.to_ne_bytes());
        assert_eq!(datagram[4..6], 0x0701_u16.to_ne_bytes());
        assert_eq!(datagram[6..8], (NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        assert_eq!(datagram[16..20], [10, 0, 0, 0]);
        assert_eq!(datagram[20..], [&8_u16.to_ne_bytes()[..], &1_u16.to_ne_bytes(), b"abc\0"].concat());
        assert_eq!(netfilter(&datagram[16..]), Some((10, &datagram[20..])));
        assert_eq!(netfilter(&[2, 0, 0]), None);
        assert_eq!(Request::netfilter(netfilter_kind(10, 1), 0, None, |_| ()).body, [0; 4]);
    }

    proptest! {
        /// Malformed bytes are skipped without a panic.
        #[test]
        fn noise_does_not_panic(mut noise in proptest::collection::vec(any::<u8>(), 0..120), length in 0..140_u32, kind in 1..4_u16) {
            if noise.len() >= 8 {
                noise[..4].copy_from_slice(&length.to_ne_bytes());
                noise[4..6].copy_from_slice(&kind.to_ne_bytes());
            }
            for message in Messages(&noise) {
                let _ = message.outcome();
            }
        }
    }
}
