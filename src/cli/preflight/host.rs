//! Checks of kernel settings, of other programs on the node, and of VXLAN.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::Path;

use socket2::{Domain, Socket, Type};

use crate::cluster::{Family, Node};
use crate::config::flags::RunAs;
use crate::iptables::ipvs_nftables::NftTables;
use crate::netlink::entry::LinkChange;
use crate::netlink::kernel_settings::{CONNTRACK_MAX, ROUTE_LOCALNET, conntrack};
use crate::netlink::link::Vxlan;
use crate::netlink::mac::Mac;
use crate::netlink::scratch::within_new_namespace;
use crate::netlink::{Host, Kernel, NetworkKernel, nft_tables};
use crate::pod_network::cni_config::ConfFile;
use crate::pod_network::interface::select;
use crate::pod_network::settings::NetworkSettings;
use crate::pod_network::sync::cni_install::{CONFLIST_NAME, conf_files, conflist};
use crate::pod_network::vxlan::link_name;
use crate::preflight::tunnel_port::tunnel_port;
use crate::preflight::{Check, CheckGroup, kernel, network, node};
use crate::proxy::rules::view::needs_route_localnet;

use super::processes;
use super::run_setup::RunSetup;
use crate::daemon::network_setup::NetworkSetup;

/// The default folder of CNI configurations: as sepal's manifests mount it, and on the node itself.
const CONF_DIRS: [&str; 2] = ["/host/etc/cni/net.d", "/etc/cni/net.d"];

/// Checks kernel settings.
pub(super) fn kernel(run: &RunSetup<'_>, node: Option<&Node>) -> Vec<Check> {
    let mut checks = Vec::new();
    if run.flags.network.proxy {
        let mut wanted = conntrack(&run.setup.effective.daemon.conntrack, Kernel.cores());
        if run.setup.families.contains(&Family::V4) && needs_route_localnet(&run.setup.requested.settings, node) {
            wanted.push(ROUTE_LOCALNET);
        }
        let read_only = Kernel.is_read_only_setting(CONNTRACK_MAX);
        checks.extend(kernel::settings(&wanted, |path| Kernel.read_setting(path), |path| Kernel.can_write_setting(path), read_only));
    }
    let has = |family: &&Family| match node {
        // If the Node has no address of a family, its pods have none either.
        Some(node) if !node.addresses.is_empty() => node.ip(**family).is_some(),
        _ => **family == Family::V4 || Kernel.ipv6_enabled(),
    };
    for family in run.setup.families.iter().filter(has) {
        let [forwarding, bridge] = match family {
            Family::V4 => ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/bridge/bridge-nf-call-iptables"],
            Family::V6 => ["/proc/sys/net/ipv6/conf/all/forwarding", "/proc/sys/net/bridge/bridge-nf-call-ip6tables"],
        };
        checks.push(kernel::forwarding(*family, Kernel.read_setting(forwarding)));
        checks.push(kernel::bridge_filter(*family, Kernel.read_setting(bridge)));
    }
    checks
}

/// Checks for other programs, interfaces, nftables tables, taken ports and CNI configurations.
pub(super) fn node(run: &RunSetup<'_>) -> Vec<Check> {
    let mut checks = vec![node::programs(&processes::others(), std::process::id(), run.roles())];
    checks.push(match Kernel.links() {
        Ok(links) => node::interfaces(links.iter().map(|link| link.name.as_str())),
        Err(error) => Check::not_checked(CheckGroup::Node, "interfaces of others", error.to_string()),
    });
    let roles = run.roles();
    let others = [
        ("kube-proxy's mode nftables", NftTables::KubeProxy, roles.proxy),
        ("flannel with EnableNFTables", NftTables::Flannel, roles.pod_network),
    ];
    let others: Vec<_> = others.into_iter().filter(|(.., ours)| *ours).map(|(program, tables, _)| (program, tables.names())).collect();
    checks.push(node::nftables(nft_tables::tables(), &others));
    let daemon = &run.setup.effective.daemon;
    if let RunAs::Sepal | RunAs::KubeProxy = run.flags.run_as {
        let addresses = [("healthz", daemon.healthz), ("metrics", Some(daemon.metrics))];
        for (what, address) in addresses.into_iter().filter_map(|(what, address)| Some((what, address?))) {
            let tried = try_listen(address);
            let holder = tried.as_ref().err().and_then(|_| processes::holder(address.port()));
            checks.push(node::port(what, address, tried, holder, daemon.hard_fail));
        }
    }
    checks.extend(run.network.as_ref().and_then(|network| cni_config(&network.settings)));
    checks
}

/// Checks VXLAN and the interface below it.
pub(super) fn pod_network(run: &RunSetup<'_>, node: Option<&Node>) -> Vec<Check> {
    let Some(NetworkSetup { conf, settings, .. }) = &run.network else { return Vec::new() };
    let live = match Kernel.dump() {
        Ok(live) => live,
        Err(error) => return vec![Check::not_checked(CheckGroup::PodNetwork, "external interface", error.to_string())],
    };
    let families: Vec<Family> = conf.networks.families().collect();
    let node_ips: Vec<IpAddr> = node.map(|node| node.addresses.clone()).unwrap_or_default();
    let tried: Vec<_> = conf
        .backend
        .vxlan()
        .map_or_else(Vec::new, |vxlan| families.iter().map(|family| (*family, try_bind(*family, vxlan.port))).collect());
    let mut options = settings.interface.clone();
    options.reached = options.can_reach.map(|ip| Kernel.route_to(ip).map_err(|error| error.cause.to_string()));
    let mut checks = network::interface(&select(&options, &families, &node_ips, &live.links, &live.routes), conf);
    checks.extend(tunnel_port(&tried, &live.links, conf));
    checks.extend(network::other_tunnels(&live.links, conf));
    if let Some(vxlan) = conf.backend.vxlan() {
        let there = families.iter().any(|family| live.links.iter().any(|link| link.name == link_name(*family, vxlan.vni)));
        checks.push(match within_new_namespace(|| Kernel.change_link(&tunnel(vxlan.vni, vxlan.port))) {
            Ok(made) => network::vxlan(made.map_err(|error| error.to_string()), None, there),
            Err(error) => {
                let why = format!("no network namespace can be made to try it in ({error}); run as root");
                network::vxlan(Ok(()), Some(&why), there)
            }
        });
    }
    checks
}

/// A link like the one that the pod network would create.
fn tunnel(vni: u32, port: u16) -> LinkChange {
    let vxlan = Vxlan::new(vni, port);
    LinkChange::CreateVxlan { name: "preflight".into(), vxlan, mac: Mac([2, 0, 0, 0, 0, 1]), mtu: 1450 }
}

/// Tries to bind the UDP port of a tunnel over this family, at all addresses as the kernel does.
fn try_bind(family: Family, port: u16) -> io::Result<()> {
    let (domain, all) = match family {
        Family::V4 => (Domain::IPV4, IpAddr::from(Ipv4Addr::UNSPECIFIED)),
        Family::V6 => (Domain::IPV6, Ipv6Addr::UNSPECIFIED.into()),
    };
    let socket = Socket::new(domain, Type::DGRAM, None)?;
    if family == Family::V6 {
        socket.set_only_v6(true)?;
    }
    socket.bind(&SocketAddr::new(all, port).into())
}

/// Tries to listen on an address.
fn try_listen(address: SocketAddr) -> io::Result<()> {
    TcpListener::bind(address).map(drop)
}

/// Checks the CNI configuration that container runtimes will use. Without --cni-conf-dir, reads the default folder, if it exists.
fn cni_config(settings: &NetworkSettings) -> Option<Check> {
    let folder = match &settings.cni_conf_dir {
        Some(folder) => folder,
        None => CONF_DIRS.into_iter().map(Path::new).find(|folder| folder.exists())?,
    };
    let own = ConfFile { name: CONFLIST_NAME.to_owned(), content: Ok(conflist(&settings.subnet_file).into_bytes()) };
    let files = conf_files(folder).map_err(|error| error.cause);
    Some(node::cni_config(&folder.display().to_string(), files, &own, &settings.subnet_file.display().to_string()))
}
