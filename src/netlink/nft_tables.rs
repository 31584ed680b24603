//! Lists the tables of `nf_tables`, those of other programs included. The program `nft` is not needed.
//!
//! The message layout is in the kernel's `include/uapi/linux/netfilter/nf_tables.h`.

use std::io;

use super::attributes::{attribute, text};
use super::generation::SUBSYSTEM;
use super::message::{netfilter, netfilter_kind};
use super::socket::{Connection, Request};

/// `NFT_MSG_NEWTABLE`
const NEW_TABLE: u16 = netfilter_kind(SUBSYSTEM, 0);
/// `NFT_MSG_GETTABLE`
const GET_TABLE: u16 = netfilter_kind(SUBSYSTEM, 1);
/// `NFTA_TABLE_NAME`
const TABLE_NAME: u16 = 1;

/// Lists the tables of this network namespace, as `nft` shows them: `ip kube-proxy`.
///
/// # Errors
/// This process has no permission, or the kernel has no `nf_tables`.
pub fn tables() -> io::Result<Vec<String>> {
    let request = Request::netfilter(GET_TABLE, 0, None, |_| ());
    let tables = Connection::netfilter()?.dump(&request, |kind, body| (kind == NEW_TABLE).then(|| table(body))?)?;
    Ok(tables)
}

/// Decodes a table. Its family is in the nfnetlink header, its name is an attribute.
fn table(body: &[u8]) -> Option<String> {
    let (family, attributes) = netfilter(body)?;
    // `NFPROTO_*`
    let family = match family {
        1 => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => return None,
    };
    Some(format!("{family} {}", text(attribute(attributes, TABLE_NAME)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_family_and_a_name() {
        let content = |family: u8| [&[family, 0, 0, 7][..], &15_u16.to_ne_bytes(), &1_u16.to_ne_bytes(), b"kube-proxy\0\0"].concat();
        assert_eq!(table(&content(2)).as_deref(), Some("ip kube-proxy"));
        assert_eq!(table(&content(10)).as_deref(), Some("ip6 kube-proxy"));
        assert_eq!(table(&content(99)), None);
        let whole = content(2);
        for end in 0..whole.len() - 1 {
            assert_eq!(table(&whole[..end]), None, "cut at {end}");
        }
    }
}
