//! Conntrack entries and requests as bytes: `include/uapi/linux/netfilter/nfnetlink_conntrack.h` and `nfnetlink.h`. PURE.
//!
//! By hand, because netlink-packet-netfilter knows neither zone, ID nor filter, and makes a dozen vectors of each entry; here a
//! million unrelated entries are read without keeping anything.

use std::net::{IpAddr, SocketAddr};

use crate::cluster::Family;

use super::stale::{Flow, Tuple, UDP};

/// `NLMSG_ERROR`: an acknowledgement, of failure unless its errno is 0.
pub(super) const ERROR: u16 = 2;
/// `NLMSG_DONE`: the end of a dump.
pub(super) const DONE: u16 = 3;
/// A conntrack entry (`IPCTNL_MSG_CT_NEW`).
pub(super) const ENTRY: u16 = SUBSYSTEM_CONNTRACK;
/// `NLM_F_DUMP_INTR`: the table changed in a way that may have hidden entries from the dump.
pub(super) const FLAG_INTERRUPTED: u16 = 0x10;

const SUBSYSTEM_CONNTRACK: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM_CONNTRACK | 1;
const DELETE: u16 = SUBSYSTEM_CONNTRACK | 2;
const FLAG_REQUEST: u16 = 0x1;
const FLAG_ACK: u16 = 0x4;
const FLAG_DUMP: u16 = 0x300;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const HEADER_LEN: usize = 16;
const NFGENMSG_LEN: usize = 4;
const ATTRIBUTE_HEADER_LEN: usize = 4;
const NESTED: u16 = 0x8000;
const KIND_MASK: u16 = 0x3fff;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
/// The kernel's `CTA_FILTER_F_CTA_PROTO_NUM`: compare the protocol, and nothing else.
const FILTER_BY_PROTOCOL: u32 = 1 << 3;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_TUPLE_ZONE: u16 = 3;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

/// One netlink message of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message<'a> {
    /// What it is: [`ENTRY`], [`ERROR`], [`DONE`] or something else.
    pub(super) kind: u16,
    /// `NLM_F_...`.
    pub(super) flags: u16,
    /// The number of the request it answers.
    pub(super) sequence: u32,
    body: &'a [u8],
}

impl Message<'_> {
    /// The errno of an [`ERROR`] or [`DONE`]; 0 means success.
    pub(super) fn errno(&self) -> i32 {
        self.body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes).saturating_neg())
    }

    /// The flow of an [`ENTRY`]; `None` if it is of a protocol without ports, or not laid out as expected.
    pub(super) fn flow(&self) -> Option<Flow> {
        let attributes = self.body.get(NFGENMSG_LEN..)?;
        let (mut original, mut reply, mut zone, mut id) = (None, None, 0, None);
        for (kind, value) in Attributes(attributes) {
            match kind {
                CTA_TUPLE_ORIG => original = Some(parse_tuple(value)?),
                CTA_TUPLE_REPLY => {
                    reply = Some(parse_tuple(value)?.1);
                    // A zone of one direction is kept within the tuple.
                    zone = Attributes(value).find(|(kind, _)| *kind == CTA_TUPLE_ZONE).and_then(|(_, zone)| number(zone)).unwrap_or(zone);
                }
                CTA_ZONE => zone = number(value)?,
                CTA_ID => id = Some(u32::from_be_bytes(*value.first_chunk()?)),
                _ => {}
            }
        }
        let (protocol, original) = original?;
        Some(Flow { protocol, original, reply: reply?, zone, id })
    }
}

/// The messages in a datagram. Ends at anything that cannot be one.
#[derive(Debug)]
pub(super) struct Messages<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let header: &[u8; HEADER_LEN] = self.0.first_chunk()?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
        let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let body = self.0.get(HEADER_LEN..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            body,
        })
    }
}

/// The attributes in a message or in another attribute: kind and value. Ends at anything that cannot be one.
#[derive(Debug)]
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let [l0, l1, k0, k1] = *self.0.first_chunk::<ATTRIBUTE_HEADER_LEN>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = self.0.get(ATTRIBUTE_HEADER_LEN..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & KIND_MASK, value))
    }
}

fn parse_tuple(value: &[u8]) -> Option<(u8, Tuple)> {
    let (mut source, mut destination) = (None, None);
    let (mut protocol, mut source_port, mut destination_port) = (None, None, None);
    for (kind, value) in Attributes(value) {
        match kind {
            CTA_TUPLE_IP => {
                for (kind, value) in Attributes(value) {
                    match kind {
                        CTA_IP_V4_SRC | CTA_IP_V6_SRC => source = address(value),
                        CTA_IP_V4_DST | CTA_IP_V6_DST => destination = address(value),
                        _ => {}
                    }
                }
            }
            CTA_TUPLE_PROTO => {
                for (kind, value) in Attributes(value) {
                    match kind {
                        CTA_PROTO_NUM => protocol = value.first().copied(),
                        CTA_PROTO_SRC_PORT => source_port = number(value),
                        CTA_PROTO_DST_PORT => destination_port = number(value),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let source = SocketAddr::new(source?, source_port?);
    Some((protocol?, Tuple { source, destination: SocketAddr::new(destination?, destination_port?) }))
}

fn address(value: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(value).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok()
}

fn number(value: &[u8]) -> Option<u16> {
    value.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

/// The request for all entries of a family; with `filtered`, for those of UDP. Kernels before 5.8 do not know the filter and send
/// everything.
pub(super) fn dump(family: Family, sequence: u32, filtered: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    message(&mut out, GET, FLAG_REQUEST | FLAG_DUMP, family, sequence, |out| {
        if filtered {
            nested(out, CTA_TUPLE_ORIG, |out| nested(out, CTA_TUPLE_PROTO, |out| attribute(out, CTA_PROTO_NUM, &[UDP])));
            nested(out, CTA_FILTER, |out| attribute(out, CTA_FILTER_ORIG_FLAGS, &FILTER_BY_PROTOCOL.to_ne_bytes()));
        }
    });
    out
}

/// Appends the request to delete one flow, to be acknowledged. The kernel looks an entry up by one tuple. Here that is the reply's,
/// because the ID, which it compares as well, is made of the original one and of the entry's place in memory, and a newer flow
/// to a better backend can have both of those. There always is a tuple: without any, the kernel would empty the whole table.
pub(super) fn delete(out: &mut Vec<u8>, flow: &Flow, sequence: u32) {
    message(out, DELETE, FLAG_REQUEST | FLAG_ACK, Family::of(flow.original.source.ip()), sequence, |out| {
        nested(out, CTA_TUPLE_REPLY, |out| tuple(out, flow.protocol, &flow.reply));
        // Kernels without zones refuse the attribute, and zone 0 goes without saying.
        if flow.zone != 0 {
            attribute(out, CTA_ZONE, &flow.zone.to_be_bytes());
        }
        if let Some(id) = flow.id {
            attribute(out, CTA_ID, &id.to_be_bytes());
        }
    });
}

fn tuple(out: &mut Vec<u8>, protocol: u8, tuple: &Tuple) {
    nested(out, CTA_TUPLE_IP, |out| {
        for (ip, v4, v6) in [(tuple.source.ip(), CTA_IP_V4_SRC, CTA_IP_V6_SRC), (tuple.destination.ip(), CTA_IP_V4_DST, CTA_IP_V6_DST)] {
            match ip {
                IpAddr::V4(ip) => attribute(out, v4, &ip.octets()),
                IpAddr::V6(ip) => attribute(out, v6, &ip.octets()),
            }
        }
    });
    nested(out, CTA_TUPLE_PROTO, |out| {
        attribute(out, CTA_PROTO_NUM, &[protocol]);
        attribute(out, CTA_PROTO_SRC_PORT, &tuple.source.port().to_be_bytes());
        attribute(out, CTA_PROTO_DST_PORT, &tuple.destination.port().to_be_bytes());
    });
}

fn message(out: &mut Vec<u8>, kind: u16, flags: u16, family: Family, sequence: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&[0; 4]); // the sender: the kernel knows
    let family = match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    };
    out.extend_from_slice(&[family, 0, 0, 0]);
    body(out);
    let length = (out.len() - start) as u32;
    out[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend_from_slice(&((ATTRIBUTE_HEADER_LEN + value.len()) as u16).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn nested(out: &mut Vec<u8>, kind: u16, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&(kind | NESTED).to_ne_bytes());
    body(out);
    let length = (out.len() - start) as u16;
    out[start..start + 2].copy_from_slice(&length.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::conntrack::stale::tests::flow;
    use proptest::prelude::*;

    /// An entry as the kernel sends it.
    fn entry(flow: &Flow) -> Vec<u8> {
        let mut out = Vec::new();
        message(&mut out, ENTRY, 2, Family::of(flow.original.source.ip()), 7, |out| {
            nested(out, CTA_TUPLE_ORIG, |out| tuple(out, flow.protocol, &flow.original));
            nested(out, CTA_TUPLE_REPLY, |out| tuple(out, flow.protocol, &flow.reply));
            attribute(out, 7, &[0, 0, 0, 30]);
            attribute(out, CTA_ID, &flow.id.unwrap_or_default().to_be_bytes());
            attribute(out, CTA_ZONE, &flow.zone.to_be_bytes());
        });
        out
    }

    #[test]
    fn entries_are_read_one_by_one() {
        let one = Flow { zone: 5, id: Some(0xdead_beef), ..flow("10.96.0.10:53", "10.0.0.1:5353") };
        let two = Flow { protocol: 6, ..flow("10.96.0.11:53", "10.0.0.2:5353") };
        let datagram = [entry(&one), entry(&two)].concat();
        let found: Vec<_> = Messages(&datagram).map(|message| (message.kind, message.sequence, message.flow())).collect();
        assert_eq!(found, [(ENTRY, 7, Some(one)), (ENTRY, 7, Some(two))]);
    }

    #[test]
    fn a_zone_of_the_reply_direction_is_within_the_tuple() {
        let want = Flow { zone: 9, ..flow("10.96.0.10:53", "10.0.0.1:5353") };
        let mut out = Vec::new();
        message(&mut out, ENTRY, 2, Family::V4, 7, |out| {
            nested(out, CTA_TUPLE_ORIG, |out| tuple(out, want.protocol, &want.original));
            nested(out, CTA_TUPLE_REPLY, |out| {
                tuple(out, want.protocol, &want.reply);
                attribute(out, CTA_TUPLE_ZONE, &want.zone.to_be_bytes());
            });
            attribute(out, CTA_ID, &1_u32.to_be_bytes());
        });
        assert_eq!(Messages(&out).next().and_then(|message| message.flow()), Some(want));
    }

    #[test]
    fn a_request_to_delete_names_the_flow_its_zone_and_its_id() {
        let wanted = Flow { zone: 5, id: Some(0x0102_0304), ..flow("10.96.0.10:53", "10.0.0.1:5353") };
        let mut out = Vec::new();
        delete(&mut out, &wanted, 3);
        let found = Messages(&out).next().expect("one message");
        assert_eq!((found.kind, found.flags, found.sequence), (DELETE, FLAG_REQUEST | FLAG_ACK, 3));
        let attributes: Vec<_> = Attributes(&found.body[NFGENMSG_LEN..]).collect();
        let [(CTA_TUPLE_REPLY, reply), (CTA_ZONE, [0, 5]), (CTA_ID, [1, 2, 3, 4])] = attributes[..] else { panic!("{attributes:?}") };
        assert_eq!(parse_tuple(reply), Some((UDP, wanted.reply)));
    }

    #[test]
    fn acknowledgements_carry_an_errno() {
        for (body, want) in [(&(-2_i32).to_ne_bytes()[..], 2), (&[0; 4], 0), (&[], 0)] {
            assert_eq!(Message { kind: ERROR, flags: 0, sequence: 1, body }.errno(), want);
        }
    }

    proptest! {
        /// Bytes that make no sense, and sense that is cut off or bent, end quietly.
        #[test]
        fn nothing_that_comes_in_panics(noise in proptest::collection::vec(any::<u8>(), 0..200), cut in 0..200_usize, at in 0..200_usize) {
            for message in Messages(&noise) {
                let _ = (message.errno(), message.flow());
            }
            let mut bent = entry(&flow("10.96.0.10:53", "10.0.0.1:5353"));
            if let (Some(byte), Some(with)) = (bent.get_mut(at), noise.first()) {
                *byte = *with;
            }
            bent.truncate(cut);
            for message in Messages(&bent) {
                let _ = (message.errno(), message.flow());
            }
        }
    }
}
