//! The tables of `nf_tables`, whoever has made them. The program `nft`, which lists them too, need not be there.
//!
//! The message layout is that of the kernel's `include/uapi/linux/netfilter/nf_tables.h`.

use std::io;

use super::nfacct::{
    ATTRIBUTE_HEADER_LEN, ATTRIBUTE_KIND, FLAG_REQUEST, HEADER_LEN, MSG_DONTWAIT, NFGENMSG_LEN, acknowledged, messages, open,
};

const MESSAGE_NEWTABLE: u16 = 10 << 8;
const MESSAGE_GETTABLE: u16 = (10 << 8) | 1;
const FLAG_DUMP: u16 = 0x300;
const NLMSG_DONE: u16 = 3;
const ATTRIBUTE_NAME: u16 = 1;

/// The tables of this network namespace, as `nft` calls them: `ip kube-proxy`.
///
/// # Errors
/// No permission, or the kernel has no `nf_tables`.
pub fn tables() -> io::Result<Vec<String>> {
    let socket = open().ok_or(io::ErrorKind::Unsupported)?;
    socket.send(&request(), 0)?;
    let (mut tables, mut answer) = (Vec::new(), Vec::with_capacity(32 * 1024));
    loop {
        answer.clear();
        // The kernel answers while it takes the request, and goes on while it is read.
        socket.recv(&mut answer, MSG_DONTWAIT)?;
        if let Some(errno) = acknowledged(&answer) {
            return Err(io::Error::from_raw_os_error(errno));
        }
        tables.extend(messages(&answer).filter(|(kind, _)| *kind == MESSAGE_NEWTABLE).filter_map(|(_, content)| table(content)));
        if messages(&answer).any(|(kind, _)| kind == NLMSG_DONE) {
            return Ok(tables);
        }
    }
}

/// Netlink header and netfilter header, for all families.
fn request() -> Vec<u8> {
    let total = HEADER_LEN + NFGENMSG_LEN;
    let mut message = Vec::with_capacity(total);
    message.extend_from_slice(&(total as u32).to_ne_bytes());
    message.extend_from_slice(&MESSAGE_GETTABLE.to_ne_bytes());
    message.extend_from_slice(&(FLAG_REQUEST | FLAG_DUMP).to_ne_bytes());
    message.resize(total, 0);
    message
}

/// The table that a message tells of: its family is in the netfilter header, its name is the first attribute.
fn table(content: &[u8]) -> Option<String> {
    let family = match content.first()? {
        1 => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => return None,
    };
    let attribute = content.get(NFGENMSG_LEN..)?;
    let length = usize::from(u16::from_ne_bytes(attribute.get(..2)?.try_into().ok()?));
    let kind = u16::from_ne_bytes(attribute.get(2..4)?.try_into().ok()?) & ATTRIBUTE_KIND;
    let name = std::str::from_utf8(attribute.get(ATTRIBUTE_HEADER_LEN..length)?).ok()?.trim_end_matches('\0');
    (kind == ATTRIBUTE_NAME).then(|| format!("{family} {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_told_by_family_and_name() {
        let content = |family: u8| [&[family, 0, 0, 7][..], &15_u16.to_ne_bytes(), &1_u16.to_ne_bytes(), b"kube-proxy\0\0"].concat();
        assert_eq!(table(&content(2)).as_deref(), Some("ip kube-proxy"));
        assert_eq!(table(&content(10)).as_deref(), Some("ip6 kube-proxy"));
        assert_eq!(table(&content(99)), None);
        let whole = content(2);
        for end in 0..whole.len() - 1 {
            assert_eq!(table(&whole[..end]), None, "cut at {end}");
        }
        assert_eq!(request().len(), 20);
    }
}
