//! Conntrack entries and requests as netlink attributes (`include/uapi/linux/netfilter/nfnetlink_conntrack.h`). PURE.
//!
//! netlink-packet-netfilter 0.4 is not used: it has neither zone, ID nor filter, and allocates a dozen vectors for each entry. This code
//! reads a table of a million entries without an allocation per entry.

use std::net::{IpAddr, SocketAddr};

use crate::cluster::Family;
use crate::netlink::attributes::{AttributeWriter, attribute, attributes, ip};
use crate::netlink::message::{netfilter, netfilter_kind};
use crate::netlink::socket::Request;

use super::stale::{Flow, Tuple, UDP};

/// `NFNL_SUBSYS_CTNETLINK`
const SUBSYSTEM: u8 = 1;
/// `IPCTNL_MSG_CT_NEW`: a conntrack entry.
pub(super) const ENTRY: u16 = netfilter_kind(SUBSYSTEM, 0);
/// `IPCTNL_MSG_CT_GET`
const GET: u16 = netfilter_kind(SUBSYSTEM, 1);
/// `IPCTNL_MSG_CT_DELETE`
const DELETE: u16 = netfilter_kind(SUBSYSTEM, 2);

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

/// Decodes the flow of an [`ENTRY`]. `None` if its protocol has no ports, or if the entry is malformed.
pub(super) fn flow(body: &[u8]) -> Option<Flow> {
    let (_, entry) = netfilter(body)?;
    let (mut original, mut reply, mut zone, mut id) = (None, None, 0, None);
    for (kind, value) in attributes(entry) {
        match kind {
            CTA_TUPLE_ORIG => original = Some(parse_tuple(value)?),
            CTA_TUPLE_REPLY => {
                reply = Some(parse_tuple(value)?.1);
                // If an entry has a zone for one direction only, the zone is inside that direction's tuple.
                zone = attribute(value, CTA_TUPLE_ZONE).and_then(number).unwrap_or(zone);
            }
            CTA_ZONE => zone = number(value)?,
            CTA_ID => id = Some(u32::from_be_bytes(*value.first_chunk()?)),
            _ => {}
        }
    }
    let (protocol, original) = original?;
    Some(Flow { protocol, original, reply: reply?, zone, id })
}

fn parse_tuple(value: &[u8]) -> Option<(u8, Tuple)> {
    let (mut source, mut destination) = (None, None);
    let (mut protocol, mut source_port, mut destination_port) = (None, None, None);
    for (kind, value) in attributes(value) {
        match kind {
            CTA_TUPLE_IP => {
                for (kind, value) in attributes(value) {
                    match kind {
                        CTA_IP_V4_SRC | CTA_IP_V6_SRC => source = ip(value),
                        CTA_IP_V4_DST | CTA_IP_V6_DST => destination = ip(value),
                        _ => {}
                    }
                }
            }
            CTA_TUPLE_PROTO => {
                for (kind, value) in attributes(value) {
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

/// A number of 16 bits in network byte order.
fn number(value: &[u8]) -> Option<u16> {
    value.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

/// The request that lists all entries of a family or, with `filtered`, only those of UDP. Kernels before 5.8 ignore the filter and list
/// all.
pub(super) fn list(family: Family, filtered: bool) -> Request {
    Request::netfilter(GET, 0, Some(family), |writer| {
        if filtered {
            writer.nested(CTA_TUPLE_ORIG, |writer| writer.nested(CTA_TUPLE_PROTO, |writer| writer.attribute(CTA_PROTO_NUM, &[UDP])));
            writer.nested(CTA_FILTER, |writer| writer.attribute(CTA_FILTER_ORIG_FLAGS, &FILTER_BY_PROTOCOL.to_ne_bytes()));
        }
    })
}

/// The request that deletes one flow.
///
/// The kernel finds the entry by one tuple and compares the ID. The request has the reply tuple, because the ID is computed from the
/// original tuple and from the entry's address in memory: a newer flow to a serving endpoint can have the same original tuple and the
/// same ID. A request without any tuple would empty the whole table.
pub(super) fn delete(flow: &Flow) -> Request {
    Request::netfilter(DELETE, 0, Some(Family::of(flow.original.source.ip())), |writer| {
        writer.nested(CTA_TUPLE_REPLY, |writer| tuple(writer, flow.protocol, &flow.reply));
        // Kernels without zones refuse the attribute, and zone 0 is the default.
        if flow.zone != 0 {
            writer.attribute(CTA_ZONE, &flow.zone.to_be_bytes());
        }
        if let Some(id) = flow.id {
            writer.attribute(CTA_ID, &id.to_be_bytes());
        }
    })
}

fn tuple(writer: &mut AttributeWriter, protocol: u8, tuple: &Tuple) {
    writer.nested(CTA_TUPLE_IP, |writer| {
        for (ip, v4, v6) in [(tuple.source.ip(), CTA_IP_V4_SRC, CTA_IP_V6_SRC), (tuple.destination.ip(), CTA_IP_V4_DST, CTA_IP_V6_DST)] {
            match ip {
                IpAddr::V4(ip) => writer.attribute(v4, &ip.octets()),
                IpAddr::V6(ip) => writer.attribute(v6, &ip.octets()),
            }
        }
    });
    writer.nested(CTA_TUPLE_PROTO, |writer| {
        writer.attribute(CTA_PROTO_NUM, &[protocol]);
        writer.attribute(CTA_PROTO_SRC_PORT, &tuple.source.port().to_be_bytes());
        writer.attribute(CTA_PROTO_DST_PORT, &tuple.destination.port().to_be_bytes());
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::conntrack::stale::tests::flow as sample;
    use proptest::prelude::*;

    /// The body of an entry as the kernel sends it.
    fn entry(flow: &Flow) -> Vec<u8> {
        let write = |writer: &mut AttributeWriter| {
            writer.nested(CTA_TUPLE_ORIG, |writer| tuple(writer, flow.protocol, &flow.original));
            writer.nested(CTA_TUPLE_REPLY, |writer| tuple(writer, flow.protocol, &flow.reply));
            writer.attribute(7, &[0, 0, 0, 30]);
            writer.attribute(CTA_ID, &flow.id.unwrap_or_default().to_be_bytes());
            writer.attribute(CTA_ZONE, &flow.zone.to_be_bytes());
        };
        Request::netfilter(ENTRY, 0, Some(Family::of(flow.original.source.ip())), write).body
    }

    #[test]
    fn entries_decode_to_flows() {
        for want in [
            Flow { zone: 5, id: Some(0xdead_beef), ..sample("10.96.0.10:53", "10.0.0.1:5353") },
            Flow { protocol: 6, ..sample("10.96.0.11:53", "10.0.0.2:5353") },
        ] {
            assert_eq!(flow(&entry(&want)), Some(want));
        }
    }

    #[test]
    fn a_zone_of_the_reply_direction_is_inside_the_tuple() {
        let want = Flow { zone: 9, ..sample("10.96.0.10:53", "10.0.0.1:5353") };
        let entry = Request::netfilter(ENTRY, 0, Some(Family::V4), |writer| {
            writer.nested(CTA_TUPLE_ORIG, |writer| tuple(writer, want.protocol, &want.original));
            writer.nested(CTA_TUPLE_REPLY, |writer| {
                tuple(writer, want.protocol, &want.reply);
                writer.attribute(CTA_TUPLE_ZONE, &want.zone.to_be_bytes());
            });
            writer.attribute(CTA_ID, &1_u32.to_be_bytes());
        });
        assert_eq!(flow(&entry.body), Some(want));
    }

    #[test]
    fn a_request_to_delete_has_the_reply_tuple_the_zone_and_the_id() {
        let flow = Flow { zone: 5, id: Some(0x0102_0304), ..sample("10.96.0.10:53", "10.0.0.1:5353") };
        let request = delete(&flow);
        assert_eq!((request.kind, request.flags, &request.body[..4]), (0x0102, 0, &[2, 0, 0, 0][..]));
        let found: Vec<_> = attributes(&request.body[4..]).collect();
        let [(CTA_TUPLE_REPLY, reply), (CTA_ZONE, [0, 5]), (CTA_ID, [1, 2, 3, 4])] = found[..] else { panic!("{found:?}") };
        assert_eq!(parse_tuple(reply), Some((UDP, flow.reply)));
    }

    #[test]
    fn a_filtered_request_to_list_names_udp() {
        let ne = |number: u16| number.to_ne_bytes();
        let want = [
            &[10, 0, 0, 0][..],
            &[ne(16), ne(0x8001), ne(12), ne(0x8002), ne(5), ne(1)].concat(),
            &[UDP, 0, 0, 0],
            &[ne(12), ne(0x8019), ne(8), ne(1)].concat(),
            &8_u32.to_ne_bytes(),
        ];
        let request = list(Family::V6, true);
        assert_eq!((request.kind, request.body), (0x0101, want.concat()));
        assert_eq!(list(Family::V4, false).body, [2, 0, 0, 0]);
    }

    proptest! {
        /// Random bytes, and entries that are cut off or damaged, are skipped without a panic.
        #[test]
        fn malformed_bytes_do_not_panic(noise in proptest::collection::vec(any::<u8>(), 0..200), cut in 0..200_usize, at in 0..200_usize) {
            let mut damaged = entry(&sample("10.96.0.10:53", "10.0.0.1:5353"));
            if let (Some(byte), Some(with)) = (damaged.get_mut(at), noise.first()) {
                *byte = *with;
            }
            damaged.truncate(cut);
            let _ = (flow(&noise), flow(&damaged));
        }
    }
}
