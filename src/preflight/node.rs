//! Checks for other service proxies and pod networks on the node: their programs, interfaces, nftables tables, ports and CNI configurations.

use std::fmt;
use std::net::SocketAddr;

use crate::pod_network::cni_config::{ConfFile, choose};

use super::{Check, CheckGroup};

const GROUP: CheckGroup = CheckGroup::Node;

/// Programs that write rules for Services.
const PROXIES: [&str; 4] = ["kube-proxy", "kube-router", "cilium-agent", "antrea-agent"];
/// Programs that set up pod networks.
const NETWORKS: [&str; 8] = ["flanneld", "kube-router", "cilium-agent", "antrea-agent", "calico-node", "weaver", "ovnkube", "kindnetd"];

/// Prefixes of interface names, with the program that creates such interfaces.
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

/// A process on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RunningProgram {
    /// The process ID.
    pub pid: u32,
    /// The name of the program (`comm`, at most 15 bytes).
    pub name: String,
}

impl fmt::Display for RunningProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.name, self.pid)
    }
}

/// The roles that this sepal has on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Roles {
    /// This sepal is the service proxy.
    pub proxy: bool,
    /// This sepal is the pod network.
    pub pod_network: bool,
}

/// Checks that no other program has one of our roles. `own` is the process ID of this process.
#[must_use]
pub(crate) fn programs(processes: &[RunningProgram], own: u32, roles: Roles) -> Check {
    let name = "other programs";
    let is_other = |program: &str| roles.proxy && PROXIES.contains(&program) || roles.pod_network && NETWORKS.contains(&program);
    let others = processes.iter().filter(|process| process.pid != own && is_other(&process.name));
    let others: Vec<String> = others.map(ToString::to_string).collect();
    match (others.as_slice(), processes.len()) {
        ([], 0) => Check::not_checked(GROUP, name, "processes cannot be listed here"),
        ([], seen) => Check::ok(GROUP, name, format!("no other service proxy or pod network among the {seen} visible processes")),
        (others, _) => Check::warning(
            GROUP,
            name,
            format!("running: {}", others.join(", ")),
            "run only one of each kind. sepal takes over the rules and links, so remove the other program from this node when sepal starts",
        ),
    }
}

/// Checks that no interface belongs to another service proxy or pod network.
#[must_use]
pub(crate) fn interfaces<'n>(names: impl IntoIterator<Item = &'n str>) -> Check {
    let name = "interfaces of others";
    let mut found = Vec::new();
    for interface in names {
        if let Some((_, owner)) = INTERFACES.iter().find(|(prefix, _)| interface.starts_with(prefix)) {
            found.push(format!("{interface} of {owner}"));
        }
    }
    if found.is_empty() {
        return Check::ok(GROUP, name, "none of another service proxy or pod network");
    }
    let cure = "if that program no longer runs, clean up with it (for ipvs: `kube-proxy --cleanup` of the old image), or delete the interfaces and reboot";
    Check::warning(GROUP, name, found.join(", "), cure)
}

/// Checks that no nftables table of another service proxy or pod network exists, because packets would pass its rules, too. `others` are the
/// owners with the names of their tables.
#[must_use]
pub(crate) fn nftables(found: std::io::Result<Vec<String>>, others: &[(&str, [&str; 2])]) -> Check {
    let name = "nftables of others";
    let found = match found {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return Check::not_checked(GROUP, name, format!("tables cannot be listed: {error}"));
        }
        Err(_) => Vec::new(),
    };
    let owner = |table: &String| others.iter().find(|(_, names)| names.contains(&table.as_str())).map(|(owner, _)| *owner);
    let tables: Vec<String> = found.iter().filter_map(|table| Some(format!("{table} of {}", owner(table)?))).collect();
    if tables.is_empty() {
        return Check::ok(GROUP, name, "no table of another service proxy or pod network");
    }
    let cure = "sepal deletes them when it starts if the program nft is installed. Otherwise run nft delete table with these names";
    Check::warning(GROUP, name, tables.join(", "), cure)
}

/// The process that listens on a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PortHolder {
    /// A running sepal, by its process ID.
    Sepal(u32),
    /// Another program.
    Other(RunningProgram),
}

/// Checks that sepal can listen on an address. `holder` is the process that has the port. With `hard_fail` sepal ends if it cannot listen.
#[must_use]
pub(crate) fn port(server: &str, address: SocketAddr, tried: std::io::Result<()>, holder: Option<PortHolder>, hard_fail: bool) -> Check {
    let name = format!("{server} address");
    let Err(error) = tried else { return Check::ok(GROUP, name, format!("{address} is free")) };
    let by = match holder {
        Some(PortHolder::Sepal(pid)) => {
            return Check::ok(GROUP, name, format!("{address} is in use by the running sepal (process {pid})"));
        }
        Some(PortHolder::Other(program)) => format!("; {program} has the port"),
        None => String::new(),
    };
    let found = format!("cannot listen on {address}: {error}{by}");
    let cure = format!(
        "end the program that has it (ss -lntp 'sport = {}'). Ignore this if it is the kube-proxy that sepal replaces",
        address.port()
    );
    if hard_fail { Check::failed(GROUP, name, found, cure) } else { Check::warning(GROUP, name, found, cure) }
}

/// Checks that container runtimes will use the CNI configuration `own` that sepal writes to the folder. `subnet_file` is the subnet.env that
/// sepal writes.
#[must_use]
pub(crate) fn cni_config(folder: &str, files: std::io::Result<Vec<ConfFile>>, own: &ConfFile, subnet_file: &str) -> Check {
    let name = "CNI configuration";
    let mut files = match files {
        Ok(files) => files,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Check::not_checked(GROUP, name, format!("{folder} cannot be listed: {error}")),
    };
    files.retain(|file| file.name != own.name);
    files.push(own.clone());
    match choose(files, subnet_file).finding(folder, &own.name, subnet_file) {
        None => Check::ok(GROUP, name, format!("no configuration in {folder} is used before {}", own.name)),
        Some(finding) => Check::warning(GROUP, name, finding.found, finding.cure),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::super::CheckOutcome;
    use super::*;

    #[test]
    fn only_programs_with_the_same_role_are_reported() {
        let processes = [(1, "systemd"), (70, "kube-proxy"), (71, "flanneld"), (72, "kubelet")]
            .map(|(pid, name)| RunningProgram { pid, name: name.to_owned() });
        let (proxy, network) = (Roles { proxy: true, pod_network: false }, Roles { proxy: false, pod_network: true });
        assert_eq!(programs(&processes, 5, proxy).found, "running: kube-proxy (process 70)");
        assert_eq!(programs(&processes, 5, network).found, "running: flanneld (process 71)");
        // This process itself is not another program, even if it is called kube-proxy.
        assert_eq!(programs(&processes, 70, proxy).outcome, CheckOutcome::Ok);
        assert_eq!(programs(&[], 5, proxy).outcome, CheckOutcome::NotChecked);
    }

    #[test]
    fn interfaces_of_other_programs_are_reported_with_their_owner() {
        assert_eq!(interfaces(["lo", "eth0", "cni0", "flannel.1", "veth12"]).outcome, CheckOutcome::Ok);
        assert_eq!(interfaces(["lo", "kube-ipvs0", "cali12345"]).found, "kube-ipvs0 of kube-proxy's mode ipvs, cali12345 of Calico");
    }

    #[test]
    fn nftables_tables_are_reported_with_their_owner() {
        let others = [("kube-proxy's mode nftables", ["ip kube-proxy", "ip6 kube-proxy"])];
        let judge = |tables: io::Result<&[&str]>| nftables(tables.map(|tables| tables.iter().map(ToString::to_string).collect()), &others);
        let found = judge(Ok(&["ip nat", "ip6 kube-proxy"]));
        assert_eq!((found.outcome, found.found.as_str()), (CheckOutcome::Warning, "ip6 kube-proxy of kube-proxy's mode nftables"));
        assert_eq!(judge(Ok(&["ip nat", "inet kube-proxy", "ip flannel-ipv4"])).outcome, CheckOutcome::Ok);
        assert_eq!(judge(Err(io::ErrorKind::Unsupported.into())).outcome, CheckOutcome::Ok);
        assert_eq!(judge(Err(io::ErrorKind::PermissionDenied.into())).outcome, CheckOutcome::NotChecked);
    }

    #[test]
    fn the_first_configuration_by_name_is_used() {
        let file = |name: &str, kind: &str| ConfFile {
            name: name.to_owned(),
            content: Ok(format!(r#"{{"name":"n","plugins":[{{"type":"{kind}"}}]}}"#).into_bytes()),
        };
        let own = file("10-sepal.conflist", "sepal");
        let check = |files: io::Result<Vec<ConfFile>>| cni_config("/etc/cni/net.d", files, &own, "/run/flannel/subnet.env");
        let found = check(Ok(vec![file("87-podman.conflist", "bridge"), file("10-flannel.conflist", "flannel")]));
        assert_eq!(found.outcome, CheckOutcome::Warning);
        assert!(
            found.found.starts_with("container runtimes use /etc/cni/net.d/10-flannel.conflist (network n, plugins: flannel)"),
            "{found:?}"
        );
        assert!(found.cure.starts_with("move 10-flannel.conflist out of the folder when the flannel DaemonSet"), "{found:?}");
        assert_eq!(check(Ok(vec![file("87-podman.conflist", "bridge"), file("00-README", "x")])).outcome, CheckOutcome::Ok);
        assert_eq!(check(Err(io::ErrorKind::NotFound.into())).outcome, CheckOutcome::Ok);
        assert_eq!(check(Err(io::ErrorKind::PermissionDenied.into())).outcome, CheckOutcome::NotChecked);
    }

    #[test]
    fn a_port_in_use_fails_only_if_sepal_would_end() {
        let address = "127.0.0.1:10249".parse().expect("an address");
        let in_use = || Err(io::ErrorKind::AddrInUse.into());
        assert_eq!(port("metrics", address, in_use(), None, false).outcome, CheckOutcome::Warning);
        assert_eq!(port("metrics", address, in_use(), None, true).outcome, CheckOutcome::Failed);
        assert_eq!(port("metrics", address, Ok(()), None, true).outcome, CheckOutcome::Ok);
        assert_eq!(port("metrics", address, in_use(), Some(PortHolder::Sepal(7)), true).outcome, CheckOutcome::Ok);
        let other =
            port("metrics", address, in_use(), Some(PortHolder::Other(RunningProgram { pid: 7, name: "kube-proxy".into() })), false);
        assert!(other.outcome == CheckOutcome::Warning && other.found.ends_with("kube-proxy (process 7) has the port"), "{other:?}");
    }
}
