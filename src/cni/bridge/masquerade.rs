//! Masquerades packets that leave the network through this host (`ipMasq`) [flannel 10.3], step 9.

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;

use crate::cluster::Family;
use crate::cluster::ip::host_net;
use crate::cni::error::{CniError, CniErrors};
use crate::cni::iptables::{ChangeError, NatTable, chain_name, comment, names_of};
use crate::cni::netns::lock_own;
use crate::cni::request::Attachment;

const PREFIX: &str = "CNI-";
const POSTROUTING: &str = "POSTROUTING";

/// Returns the lines that create the rules of one attachment in one family. Rules that a killed plugin left are deleted first.
fn lines(network: &str, container: &str, addresses: &[IpNetwork], present: &str) -> Vec<String> {
    let chain = chain_name(PREFIX, network, container);
    let comment = comment(&format!("name: \"{network}\" id: \"{container}\""));
    let mut lines = vec![format!(":{chain} - [0:0]")];
    lines.extend(deletions(present, &chain));
    for net in addresses {
        let multicast = if net.is_ipv4() { "224.0.0.0/4" } else { "ff00::/8" };
        let network = format!("{}/{}", net.network(), net.prefix());
        lines.push(format!("-A {chain} -d {network} {comment} -j ACCEPT"));
        lines.push(format!("-A {chain} ! -d {multicast} {comment} -j MASQUERADE"));
    }
    lines.extend(addresses.iter().map(|net| format!("-A {POSTROUTING} -s {} {comment} -j {chain}", host_net(net.ip()))));
    lines
}

/// Returns the lines that delete the jumps to a chain.
fn deletions(present: &str, chain: &str) -> Vec<String> {
    let jump = format!("-j {chain}");
    present
        .lines()
        .filter(|line| line.ends_with(&jump))
        .filter_map(|line| line.strip_prefix("-A "))
        .map(|rule| format!("-D {rule}"))
        .collect()
}

fn removal(chain: &str, present: &str) -> Vec<String> {
    let mut lines = deletions(present, chain);
    lines.extend([format!("-F {chain}"), format!("-X {chain}")]);
    lines
}

fn of_rules(refusal: ChangeError) -> CniError {
    match refusal {
        ChangeError::Failed(error) => error,
        ChangeError::ChainExists => CniError::other("another program changed the rules meanwhile"),
    }
}

fn locked() -> Result<std::fs::File, CniError> {
    lock_own().map_err(|cause| CniError::other(format!("cannot lock the rules of this network namespace: {cause}")))
}

/// Creates the rules of an attachment.
pub(super) fn add(network: &str, container: &str, addresses: &[IpNetwork]) -> Result<(), CniError> {
    let _lock = locked()?;
    for family in Family::ALL {
        let of_family: Vec<IpNetwork> = addresses.iter().copied().filter(|net| Family::of_net(*net) == family).collect();
        if of_family.is_empty() {
            continue;
        }
        let [present] = NatTable(family).list([POSTROUTING])?;
        let lines = lines(network, container, &of_family, &present.unwrap_or_default());
        NatTable(family).change(&lines).map_err(of_rules)?;
    }
    Ok(())
}

/// Deletes the rules of an attachment, if there are any.
pub(super) fn del(network: &str, container: &str) -> Result<(), CniError> {
    let chain = chain_name(PREFIX, network, container);
    let _lock = locked()?;
    let mut errors = CniErrors::default();
    for nat in NatTable::present() {
        let removed = nat.list([POSTROUTING, &chain]).and_then(|listed| match listed {
            [present, Some(_)] => nat.change(&removal(&chain, &present.unwrap_or_default())).map_err(of_rules),
            [_, None] => Ok(()),
        });
        errors.note(removed);
    }
    errors.into_result()
}

/// Deletes the rules of this network's attachments that are not valid.
pub(super) fn collect(network: &str, valid: &BTreeSet<Attachment>) -> Result<(), CniError> {
    let _lock = locked()?;
    let mut errors = CniErrors::default();
    for nat in NatTable::present() {
        let Some([present]) = errors.note(nat.list([POSTROUTING])) else { continue };
        let present = present.unwrap_or_default();
        let stale: BTreeSet<String> = present.lines().filter_map(names_of).filter_map(|found| stale(found, network, valid)).collect();
        for chain in stale {
            errors.note(nat.change(&removal(&chain, &present)).map_err(of_rules));
        }
    }
    errors.into_result()
}

/// Returns the chain of a rule if it belongs to an attachment of this network that is not valid.
fn stale((of, container, chain): (String, String, String), network: &str, valid: &BTreeSet<Attachment>) -> Option<String> {
    let gone = of == network && !valid.iter().any(|valid| valid.container == container);
    (gone && chain == chain_name(PREFIX, network, &container)).then_some(chain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::probes::{self, PROBES};

    #[test]
    fn the_rules_are_those_of_the_reference_plugin() {
        let chain = "CNI-3e9a3d0f9583cdc0e7133af3";
        let comment = r#"-m comment --comment "name: \"cbr0\" id: \"abc123\"""#;
        let present = format!("-P POSTROUTING ACCEPT\n-A POSTROUTING -s 10.244.1.9/32 {comment} -j {chain}\n-A POSTROUTING -j OTHER\n");
        assert_eq!(
            lines("cbr0", "abc123", &["10.244.1.2/24".parse().expect("a network")], &present),
            [
                format!(":{chain} - [0:0]"),
                format!("-D POSTROUTING -s 10.244.1.9/32 {comment} -j {chain}"),
                format!("-A {chain} -d 10.244.1.0/24 {comment} -j ACCEPT"),
                format!("-A {chain} ! -d 224.0.0.0/4 {comment} -j MASQUERADE"),
                format!("-A POSTROUTING -s 10.244.1.2/32 {comment} -j {chain}"),
            ]
        );
        // `sepal preflight` tests each match and target.
        let all = lines("cbr0", "abc123", &["10.244.1.2/24".parse().expect("a network")], &present).join("\n");
        let used = probes::used(&all);
        assert_eq!(used, BTreeSet::from(["MASQUERADE", "comment"]));
        assert!(used.iter().all(|name| PROBES.iter().any(|probe| probe.name == *name)));
        let found = present.lines().find_map(names_of).expect("a comment");
        assert_eq!(stale(found.clone(), "cbr0", &BTreeSet::new()).as_deref(), Some(chain));
        assert_eq!(stale(found.clone(), "other", &BTreeSet::new()), None);
        let valid = BTreeSet::from([Attachment { container: "abc123".into(), interface: "eth0".into() }]);
        assert_eq!(stale(found, "cbr0", &valid), None);
    }
}
