//! The generation of `nf_tables`: a number of the network namespace that grows by one with every transaction that changes a table of any
//! family. Reading it takes a few microseconds, however many rules there are.
//!
//! The message layout is in the kernel's `include/uapi/linux/netfilter/nf_tables.h`.

use super::attributes::attribute;
use super::message::{netfilter, netfilter_kind};
use super::socket::{Connection, Request};

/// `NFNL_SUBSYS_NFTABLES`
pub(super) const SUBSYSTEM: u8 = 10;
/// `NFT_MSG_NEWGEN`
const NEW_GENERATION: u16 = netfilter_kind(SUBSYSTEM, 15);
/// `NFT_MSG_GETGEN`
const GET_GENERATION: u16 = netfilter_kind(SUBSYSTEM, 16);
/// `NFTA_GEN_ID`
const GENERATION_ID: u16 = 1;

/// The current generation; `None` if the kernel has no `nf_tables` or refuses to answer.
#[must_use]
pub fn of_nf_tables() -> Option<u32> {
    let request = Request::netfilter(GET_GENERATION, 0, None, |_| ());
    let answers = Connection::netfilter().ok()?.get(&request, |kind, body| (kind == NEW_GENERATION).then(|| number(body))?);
    answers.ok()?.into_iter().next()
}

fn number(body: &[u8]) -> Option<u32> {
    let (_, attributes) = netfilter(body)?;
    attribute(attributes, GENERATION_ID)?.try_into().ok().map(u32::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_in_network_byte_order() {
        let request = Request::netfilter(NEW_GENERATION, 0, None, |writer| writer.attribute(GENERATION_ID, &70_000_u32.to_be_bytes()));
        assert_eq!(number(&request.body), Some(70_000));
        for end in 0..request.body.len() {
            assert_eq!(number(&request.body[..end]), None, "cut at {end}");
        }
    }
}
