//! Who else is on the node: programs, interfaces, files and ports of other service proxies and pod networks.

use std::net::SocketAddr;

use crate::pod_network::cni_config::{ConfFile, choose};

use super::{Check, Part};

const PART: Part = Part::Node;

/// Programs that write rules for Services.
const PROXIES: [&str; 4] = ["kube-proxy", "kube-router", "cilium-agent", "antrea-agent"];
/// Programs that make pod networks.
const NETWORKS: [&str; 8] = ["flanneld", "kube-router", "cilium-agent", "antrea-agent", "calico-node", "weaver", "ovnkube", "kindnetd"];

/// What the names of other programs' interfaces begin with, and whose they are.
const INTERFACES: [(&str, &str); 9] = [
    ("kube-ipvs", "kube-proxy's mode ipvs"),
    ("kube-dummy-if", "kube-router"),
    ("kube-bridge", "kube-router"),
    ("cilium_", "Cilium"),
    ("cali", "Calico"),
    ("vxlan.calico", "Calico"),
    ("weave", "Weave Net"),
    ("antrea-", "Antrea"),
    ("ovn-k8s", "OVN-Kubernetes"),
];

/// A process, by number, and the name of its program (`comm`, at most 15 bytes).
pub type Process = (u32, String);

/// What this program is to be on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles {
    /// The service proxy.
    pub proxy: bool,
    /// The pod network.
    pub pod_network: bool,
}

/// Programs that do the same.
#[must_use]
pub fn programs(processes: &[Process], own: u32, roles: Roles) -> Check {
    let name = "other programs";
    let is_other = |program: &str| roles.proxy && PROXIES.contains(&program) || roles.pod_network && NETWORKS.contains(&program);
    let others = processes.iter().filter(|(number, program)| *number != own && is_other(program));
    let others: Vec<String> = others.map(|(number, program)| format!("{program} (process {number})")).collect();
    match (others.as_slice(), processes.len()) {
        ([], 0) => Check::not_checked(PART, name, "processes cannot be listed here"),
        ([], seen) => {
            Check::ok(PART, name, format!("no other service proxy or pod network among {seen} processes that can be seen from here"))
        }
        (others, _) => Check::warning(
            PART,
            name,
            format!("running: {}", others.join(", ")),
            "one of each kind at a time: sepal takes over what is there, so take the other one off this node when sepal starts",
        ),
    }
}

/// Interfaces that other programs of the kind leave.
#[must_use]
pub fn interfaces<'n>(names: impl IntoIterator<Item = &'n str>) -> Check {
    let name = "interfaces of others";
    let mut found = Vec::new();
    for interface in names {
        if let Some((_, whose)) = INTERFACES.iter().find(|(start, _)| interface.starts_with(start)) {
            found.push(format!("{interface} of {whose}"));
        }
    }
    if found.is_empty() {
        return Check::ok(PART, name, "none of another service proxy or pod network");
    }
    let cure = "if that program is gone, let it clean up (for ipvs: `kube-proxy --cleanup` of the old image), or delete them and reboot";
    Check::warning(PART, name, found.join(", "), cure)
}

/// Tables of nftables that other ways of doing the same leave, each with whose it is; packets go through them as well.
#[must_use]
pub fn nftables(found: std::io::Result<Vec<String>>, others: &[(&str, [&str; 2])]) -> Check {
    let name = "nftables of others";
    let found = match found {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return Check::not_checked(PART, name, format!("tables cannot be listed: {error}"));
        }
        Err(_) => Vec::new(),
    };
    let in_the_way = |table: &&String| others.iter().find(|(_, names)| names.contains(&table.as_str())).map(|(whose, _)| *whose);
    let tables: Vec<String> = found.iter().filter_map(|table| Some(format!("{table} of {}", in_the_way(&table)?))).collect();
    if tables.is_empty() {
        return Check::ok(PART, name, "no table of another service proxy or pod network");
    }
    let cure = "sepal deletes them when it starts, where the program nft is installed beside it; else: nft delete table, with these names";
    Check::warning(PART, name, tables.join(", "), cure)
}

/// The process that has a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A sepal that runs, by its number.
    Sepal(u32),
    /// Another program.
    Other(Process),
}

/// A port to listen on, what came of trying, and the process that has the port.
#[must_use]
pub fn port(what: &str, address: SocketAddr, tried: std::io::Result<()>, holder: Option<Holder>, hard_fail: bool) -> Check {
    let name = format!("{what} address");
    let Err(error) = tried else { return Check::ok(PART, name, format!("{address} is free")) };
    let by = match holder {
        Some(Holder::Sepal(number)) => {
            return Check::ok(PART, name, format!("{address} is that of the sepal that runs (process {number})"));
        }
        Some(Holder::Other((number, program))) => format!("; {program} (process {number}) has the port"),
        None => String::new(),
    };
    let found = format!("cannot listen on {address}: {error}{by}");
    let cure = format!(
        "end the program that has it (ss -lntp 'sport = {}'); if that is the kube-proxy to be replaced, all is well",
        address.port()
    );
    if hard_fail { Check::failed(PART, name, found, cure) } else { Check::warning(PART, name, found, cure) }
}

/// The CNI configuration that container runtimes will use, when `own` is in the folder. `subnet_file` is the one that sepal writes.
#[must_use]
pub fn cni_config(folder: &str, files: std::io::Result<Vec<ConfFile>>, own: &ConfFile, subnet_file: &str) -> Check {
    let name = "CNI configuration";
    let mut files = match files {
        Ok(files) => files,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Check::not_checked(PART, name, format!("{folder} cannot be listed: {error}")),
    };
    files.retain(|file| file.name != own.name);
    files.push(own.clone());
    match choose(files, subnet_file).finding(folder, &own.name, subnet_file) {
        None => Check::ok(PART, name, format!("nothing in {folder} goes before {}", own.name)),
        Some(finding) => Check::warning(PART, name, finding.found, finding.cure),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::super::Outcome;
    use super::*;

    #[test]
    fn only_who_does_the_same_is_in_the_way() {
        let processes =
            [(1, "systemd"), (70, "kube-proxy"), (71, "flanneld"), (72, "kubelet")].map(|(number, name)| (number, name.to_owned()));
        let (proxy, network) = (Roles { proxy: true, pod_network: false }, Roles { proxy: false, pod_network: true });
        assert_eq!(programs(&processes, 5, proxy).found, "running: kube-proxy (process 70)");
        assert_eq!(programs(&processes, 5, network).found, "running: flanneld (process 71)");
        // Called by that name, it is no other.
        assert_eq!(programs(&processes, 70, proxy).outcome, Outcome::Ok);
        assert_eq!(programs(&[], 5, proxy).outcome, Outcome::NotChecked);
    }

    #[test]
    fn others_interfaces_are_named_with_their_owner() {
        assert_eq!(interfaces(["lo", "eth0", "cni0", "flannel.1", "veth12"]).outcome, Outcome::Ok);
        assert_eq!(interfaces(["lo", "kube-ipvs0", "cali12345"]).found, "kube-ipvs0 of kube-proxy's mode ipvs, cali12345 of Calico");
    }

    #[test]
    fn tables_of_nftables_are_named_with_their_owner() {
        let others = [("kube-proxy's mode nftables", ["ip kube-proxy", "ip6 kube-proxy"])];
        let judge = |tables: io::Result<&[&str]>| nftables(tables.map(|tables| tables.iter().map(ToString::to_string).collect()), &others);
        let found = judge(Ok(&["ip nat", "ip6 kube-proxy"]));
        assert_eq!((found.outcome, found.found.as_str()), (Outcome::Warning, "ip6 kube-proxy of kube-proxy's mode nftables"));
        assert_eq!(judge(Ok(&["ip nat", "inet kube-proxy", "ip flannel-ipv4"])).outcome, Outcome::Ok);
        assert_eq!(judge(Err(io::ErrorKind::Unsupported.into())).outcome, Outcome::Ok);
        assert_eq!(judge(Err(io::ErrorKind::PermissionDenied.into())).outcome, Outcome::NotChecked);
    }

    #[test]
    fn the_first_configuration_by_name_counts() {
        let file = |name: &str, kind: &str| ConfFile {
            name: name.to_owned(),
            content: Ok(format!(r#"{{"name":"n","plugins":[{{"type":"{kind}"}}]}}"#).into_bytes()),
        };
        let own = file("10-sepal.conflist", "sepal");
        let check = |files: io::Result<Vec<ConfFile>>| cni_config("/etc/cni/net.d", files, &own, "/run/flannel/subnet.env");
        let found = check(Ok(vec![file("87-podman.conflist", "bridge"), file("10-flannel.conflist", "flannel")]));
        assert_eq!(found.outcome, Outcome::Warning);
        assert!(
            found.found.starts_with("container runtimes use /etc/cni/net.d/10-flannel.conflist (network n, plugins: flannel)"),
            "{found:?}"
        );
        assert!(found.cure.starts_with("move 10-flannel.conflist out of the folder when the flannel DaemonSet"), "{found:?}");
        assert_eq!(check(Ok(vec![file("87-podman.conflist", "bridge"), file("00-README", "x")])).outcome, Outcome::Ok);
        assert_eq!(check(Err(io::ErrorKind::NotFound.into())).outcome, Outcome::Ok);
        assert_eq!(check(Err(io::ErrorKind::PermissionDenied.into())).outcome, Outcome::NotChecked);
    }

    #[test]
    fn a_port_in_use_ends_the_program_only_where_that_is_wanted() {
        let address = "127.0.0.1:10249".parse().expect("an address");
        let in_use = || Err(io::ErrorKind::AddrInUse.into());
        assert_eq!(port("metrics", address, in_use(), None, false).outcome, Outcome::Warning);
        assert_eq!(port("metrics", address, in_use(), None, true).outcome, Outcome::Failed);
        assert_eq!(port("metrics", address, Ok(()), None, true).outcome, Outcome::Ok);
        assert_eq!(port("metrics", address, in_use(), Some(Holder::Sepal(7)), true).outcome, Outcome::Ok);
        let other = port("metrics", address, in_use(), Some(Holder::Other((7, "kube-proxy".into()))), false);
        assert!(other.outcome == Outcome::Warning && other.found.ends_with("kube-proxy (process 7) has the port"), "{other:?}");
    }
}
