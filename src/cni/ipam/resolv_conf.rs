//! Reads resolv.conf(5) into the DNS part of results.

use std::fs;

use crate::cni::error::CniError;
use crate::cni::result::CniDns;

/// Reads the file.
pub(super) fn read(path: &str) -> Result<CniDns, CniError> {
    let text = fs::read_to_string(path).map_err(|cause| CniError::other(format!("cannot read resolvConf {path}: {cause}")))?;
    Ok(parse(&text))
}

fn parse(text: &str) -> CniDns {
    let mut dns = CniDns::default();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => dns.nameservers.extend(words.next()),
            Some("domain") => dns.domain = words.next().unwrap_or_default(),
            Some("search") => dns.search.extend(words),
            Some("options") => dns.options.extend(words),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    #[test]
    fn name_servers_domains_and_options_are_read() {
        let dns =
            super::parse("# by hand\nnameserver 10.0.0.1\n nameserver fd00::1 \nsearch a.example b.example\noptions ndots:5\nnameserver\n");
        assert_eq!(
            (dns.nameservers, dns.search, dns.options),
            (
                vec!["10.0.0.1".to_owned(), "fd00::1".to_owned()],
                vec!["a.example".to_owned(), "b.example".to_owned()],
                vec!["ndots:5".to_owned()]
            )
        );
    }
}
