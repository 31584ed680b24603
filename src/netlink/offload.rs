//! Transmit checksum offload, by ethtool's messages over generic netlink (`include/uapi/linux/ethtool_netlink.h`, Linux 5.6). By
//! hand: the other way is an ioctl, and no crate at hand sets features.

use netlink_packet_core::{DefaultNla, Emitable, NlasIterator};
use nix::errno::Errno;

use super::error::Cause;
use super::socket::{Connection, Request};

/// What `ethtool -K` calls it.
const FEATURE: &str = "tx-checksum-ip-generic";

const GENERIC_CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const CONTROL_FAMILY_ID: u16 = 1;
const CONTROL_FAMILY_NAME: u16 = 2;
const FEATURES_SET: u8 = 12;
const FEATURES_HEADER: u16 = 1;
const FEATURES_WANTED: u16 = 3;
const HEADER_DEVICE: u16 = 1;
const BITSET_BITS: u16 = 3;
const BITSET_BIT: u16 = 1;
const BIT_NAME: u16 = 2;
const BIT_VALUE: u16 = 3;
const NESTED: u16 = 0x8000;
const GENERIC_HEADER_LEN: usize = 4;

/// Switches a link's transmit checksum offload on or off.
pub(super) fn set(index: u32, on: bool) -> Result<(), Cause> {
    let mut connection = Connection::generic()?;
    let family = connection.get(&family_request(), |_, body| family(body)).map_err(|cause| match cause.errno() {
        Some(Errno::ENOENT) => Cause::Unfit("this kernel has no ethtool over netlink (Linux 5.6, CONFIG_ETHTOOL_NETLINK)"),
        _ => cause,
    })?;
    let family = *family.first().ok_or(Cause::Unfit("the kernel does not say which number its ethtool has"))?;
    let refused = connection.get(&set_request(family, index, on), |_, body| refused(body))?;
    if refused.contains(&true) { Err(Cause::Unfit("this kind of link has it fixed")) } else { Ok(()) }
}

fn family_request() -> Request {
    Request { kind: GENERIC_CONTROL, flags: 0, body: message(GET_FAMILY, &[attribute(CONTROL_FAMILY_NAME, b"ethtool\0")]) }
}

fn family(body: &[u8]) -> Option<u16> {
    let found = NlasIterator::new(body.get(GENERIC_HEADER_LEN..)?).flatten().find(|attribute| attribute.kind() == CONTROL_FAMILY_ID)?;
    found.value().try_into().ok().map(u16::from_ne_bytes)
}

fn set_request(family: u16, index: u32, on: bool) -> Request {
    let name = attribute(BIT_NAME, &[FEATURE.as_bytes(), b"\0"].concat());
    // A bit that is named is to be changed; a bit with a value is to be on.
    let bit = if on { nested(BITSET_BIT, &[name, attribute(BIT_VALUE, &[])]) } else { nested(BITSET_BIT, &[name]) };
    let header = nested(FEATURES_HEADER, &[attribute(HEADER_DEVICE, &index.to_ne_bytes())]);
    let wanted = nested(FEATURES_WANTED, &[nested(BITSET_BITS, &[bit])]);
    Request { kind: family, flags: 0, body: message(FEATURES_SET, &[header, wanted]) }
}

/// Whether an answer names bits that are not as they were wanted.
fn refused(body: &[u8]) -> Option<bool> {
    let wanted = NlasIterator::new(body.get(GENERIC_HEADER_LEN..)?).flatten().find(|attribute| attribute.kind() == FEATURES_WANTED)?;
    let bits = NlasIterator::new(wanted.value()).flatten().find(|attribute| attribute.kind() == BITSET_BITS)?;
    Some(!bits.value().is_empty())
}

/// Command, version, two bytes of nothing, attributes.
fn message(command: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
    [&[command, 1, 0, 0], attributes.concat().as_slice()].concat()
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let attribute = DefaultNla::new(kind, value.to_vec());
    let mut out = vec![0; attribute.buffer_len()];
    attribute.emit(&mut out);
    out
}

fn nested(kind: u16, attributes: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | NESTED, &attributes.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_laid_out_as_the_kernel_reads_them() {
        let request = set_request(21, 5, true);
        let ne = |number: u16| number.to_ne_bytes();
        let want = [
            &[12, 1, 0, 0][..],
            // the header, with the link's number
            &[ne(12), ne(0x8001), ne(8), ne(1)].concat(),
            &5_u32.to_ne_bytes(),
            // wanted, bits, one bit, its name, its value
            &[ne(44), ne(0x8003), ne(40), ne(0x8003), ne(36), ne(0x8001), ne(27), ne(2)].concat(),
            b"tx-checksum-ip-generic\0\0",
            &[ne(4), ne(3)].concat(),
        ]
        .concat();
        assert_eq!((request.kind, request.body), (21, want));
        assert_eq!(set_request(21, 5, false).body.len(), 56);
    }

    #[test]
    fn answers_tell_number_and_refusal() {
        assert_eq!(family(&message(1, &[attribute(2, b"ethtool\0"), attribute(1, &21_u16.to_ne_bytes())])), Some(21));
        let answer = |bits: &[Vec<u8>]| message(12, &[nested(3, &[attribute(2, &[64, 0, 0, 0]), nested(3, bits)])]);
        assert_eq!(refused(&answer(&[nested(1, &[attribute(1, &[1, 0, 0, 0])])])), Some(true));
        assert_eq!(refused(&answer(&[])), Some(false));
        assert_eq!((refused(&[]), family(&[])), (None, None));
    }
}
