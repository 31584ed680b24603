//! Who else is on the node: programs, interfaces, files and ports of other service proxies and pod networks.

use std::net::SocketAddr;

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

/// Configurations of a folder that runtimes take before this program's: the first one by name counts.
#[must_use]
pub fn conflists(folder: &str, files: std::io::Result<Vec<String>>, own: &str) -> Check {
    let name = "CNI configuration";
    let mut files = match files {
        Ok(files) => files,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Check::not_checked(PART, name, format!("{folder} cannot be listed: {error}")),
    };
    files.retain(|file| [".conf", ".conflist", ".json"].iter().any(|end| file.ends_with(end)));
    files.sort_unstable();
    let earlier: Vec<&str> = files.iter().map(String::as_str).take_while(|file| *file < own).collect();
    if earlier.is_empty() {
        return Check::ok(PART, name, format!("nothing in {folder} goes before {own}"));
    }
    let files = earlier.join(" and ");
    Check::warning(
        PART,
        name,
        format!("{files} in {folder} goes before {own}, so runtimes use that"),
        format!("move {files} away once pods are to use sepal's"),
    )
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
        let files = |names: &[&str]| Ok(names.iter().map(|name| (*name).to_owned()).collect());
        let check = conflists(
            "/etc/cni/net.d",
            files(&["87-podman.conflist", "05-cilium.conflist", "README", "10-flannel.conflist"]),
            "10-sepal.conflist",
        );
        assert!(check.found.starts_with("05-cilium.conflist and 10-flannel.conflist in /etc/cni/net.d"), "{check:?}");
        assert_eq!(conflists("/x", files(&["87-podman.conflist", "00-README"]), "10-sepal.conflist").outcome, Outcome::Ok);
        assert_eq!(conflists("/x", Err(io::ErrorKind::NotFound.into()), "10-sepal.conflist").outcome, Outcome::Ok);
        assert_eq!(conflists("/x", Err(io::ErrorKind::PermissionDenied.into()), "a").outcome, Outcome::NotChecked);
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
