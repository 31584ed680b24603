//! Switches transmit checksum offload through ethtool's generic netlink messages (`include/uapi/linux/ethtool_netlink.h`, Linux 5.6).
//! This module builds the messages itself, because no crate that sepal uses can set features, and the alternative is an ioctl.

use nix::errno::Errno;

use super::attributes::attribute;
use super::error::Cause;
use super::message::generic;
use super::socket::{Connection, Request};

/// The feature's name in `ethtool -K`.
const FEATURE: &[u8] = b"tx-checksum-ip-generic\0";

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

/// Switches a link's transmit checksum offload on or off.
pub(super) fn set(index: u32, on: bool) -> Result<(), Cause> {
    let mut connection = Connection::generic()?;
    let family = connection.get(&family_request(), |_, body| family(body)).map_err(|cause| match cause.errno() {
        Some(Errno::ENOENT) => Cause::Other("this kernel has no ethtool over netlink (Linux 5.6, CONFIG_ETHTOOL_NETLINK)"),
        _ => cause,
    })?;
    let family = *family.first().ok_or(Cause::Other("the kernel's answer lacks the number of the ethtool family"))?;
    let refused = connection.get(&set_request(family, index, on), |_, body| refused(body))?;
    if refused.contains(&true) { Err(Cause::Other("this kind of link cannot change it")) } else { Ok(()) }
}

/// Requests the number of the generic netlink family `ethtool`.
fn family_request() -> Request {
    Request::generic(GENERIC_CONTROL, GET_FAMILY, |writer| writer.attribute(CONTROL_FAMILY_NAME, b"ethtool\0"))
}

fn family(body: &[u8]) -> Option<u16> {
    attribute(generic(body)?, CONTROL_FAMILY_ID)?.try_into().ok().map(u16::from_ne_bytes)
}

fn set_request(family: u16, index: u32, on: bool) -> Request {
    Request::generic(family, FEATURES_SET, |writer| {
        writer.nested(FEATURES_HEADER, |writer| writer.attribute(HEADER_DEVICE, &index.to_ne_bytes()));
        writer.nested(FEATURES_WANTED, |writer| {
            writer.nested(BITSET_BITS, |writer| {
                // A named bit is changed: to 1 if it has a value, else to 0.
                writer.nested(BITSET_BIT, |writer| {
                    writer.attribute(BIT_NAME, FEATURE);
                    if on {
                        writer.attribute(BIT_VALUE, &[]);
                    }
                });
            });
        });
    })
}

/// True if the answer names bits that did not get the requested value.
fn refused(body: &[u8]) -> Option<bool> {
    let wanted = attribute(generic(body)?, FEATURES_WANTED)?;
    Some(!attribute(wanted, BITSET_BITS)?.is_empty())
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
            // the features: bits, one bit, its name, its value
            &[ne(44), ne(0x8003), ne(40), ne(0x8003), ne(36), ne(0x8001), ne(27), ne(2)].concat(),
            b"tx-checksum-ip-generic\0\0",
            &[ne(4), ne(3)].concat(),
        ]
        .concat();
        assert_eq!((request.kind, request.body), (21, want));
        assert_eq!(set_request(21, 5, false).body.len(), 56);
    }

    #[test]
    fn answers_carry_the_number_and_the_refused_bits() {
        let found = Request::generic(GENERIC_CONTROL, 1, |writer| {
            writer.attribute(CONTROL_FAMILY_NAME, b"ethtool\0");
            writer.attribute(CONTROL_FAMILY_ID, &21_u16.to_ne_bytes());
        });
        assert_eq!(family(&found.body), Some(21));
        let answer = |bit: Option<[u8; 4]>| {
            let answer = Request::generic(21, FEATURES_SET, |writer| {
                writer.nested(FEATURES_WANTED, |writer| {
                    writer.attribute(2, &[64, 0, 0, 0]);
                    writer.nested(BITSET_BITS, |writer| {
                        if let Some(bit) = bit {
                            writer.nested(BITSET_BIT, |writer| writer.attribute(1, &bit));
                        }
                    });
                });
            });
            refused(&answer.body)
        };
        assert_eq!(answer(Some([1, 0, 0, 0])), Some(true));
        assert_eq!(answer(None), Some(false));
        assert_eq!((refused(&[]), family(&[])), (None, None));
    }
}
