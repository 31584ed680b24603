//! `sepal explain`: which way a packet goes through this node's rules, as they should be or as they are.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail, ensure};
use clap::{Args, ValueEnum};
use kube::Api;
use kube::api::{ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use serde_json::Value;

use crate::agent::facts::{described_facts, whole};
use crate::cluster::ip::parse_ip;
use crate::cluster::{Family, Protocol, ServiceKey};
use crate::config::flags::RunFlags;
use crate::config::settings::DetectLocal;
use crate::explain::packet::{Origin, Packet, Place};
use crate::explain::ruleset::Ruleset;
use crate::explain::story;
use crate::explain::walk::{Ending, Fate, Walk, walk};
use crate::iptables::detect;
use crate::netlink::{Host, Kernel, NetworkKernel};
use crate::rules::inputs::Inputs;
use crate::table::Table;
use crate::table::planner;

use super::setup::Setup;

/// A host that is nobody's (RFC 5737, RFC 3849).
const OUTSIDE: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(203, 0, 113, 1), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
/// Exit status for a packet that does not get through.
const STOPPED: u8 = 2;

/// What `sepal explain` takes: who sends what to whom, which rules count, and where the cluster is read.
#[derive(Args, Clone, Debug)]
pub(super) struct ExplainFlags {
    /// Who sends: an IP, `node` (this node), `external` or `external/IP` (another host), `pod/NAMESPACE/NAME` (asked from the API server)
    #[arg(long, value_name = "WHO")]
    from: String,
    /// Whom to: `IP:PORT` or `svc/NAMESPACE/NAME[:PORT]` (a port's name or number); `/tcp`, `/udp` or `/sctp` behind it says how
    #[arg(long, value_name = "WHOM")]
    to: String,
    /// Go by the rules that are in the kernel, and say where the ones that should be there lead elsewhere
    #[arg(long)]
    live: bool,
    /// How to print it
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Output,
    #[command(flatten)]
    run: RunFlags,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Text,
    /// For programs
    Json,
}

/// Prints the way. The exit status is 2 if no packet gets through.
pub(super) async fn explain(flags: ExplainFlags) -> anyhow::Result<ExitCode> {
    let setup = Setup::new(&flags.run)?;
    let inputs = setup.read_inputs(&flags.run).await?;
    let (to, protocol) = destination(&flags.to, &inputs)?;
    let family = Family::of(to.ip());
    let place = place(&inputs, flags.live)?;
    let packet = Packet { to, protocol, ..sender(&flags, &setup, &inputs, &place, to).await? };
    ensure!(Family::of(packet.source) == family, "{} and {to} are not of the same IP family", packet.source);
    let found = if flags.live { Some(detect::find(flags.run.iptables_variant.wanted()).await?) } else { None };
    let random_fully = found.as_ref().is_none_or(detect::Found::random_fully);
    let host = described_facts(&inputs, &Kernel, random_fully)?;
    let (plan, renderer) = whole(&inputs, &host, family, &planner::unknown());
    let desired = walk(&Ruleset::desired(&plan.text(&renderer)), packet, &place);
    let nodes = Whereabouts { inputs: &inputs, place: &place, live: flags.live };
    let words = |ending: &Ending| nodes.of(ending.to.ip());
    let (counts, other) = match found {
        Some(found) => {
            let mut saved = String::new();
            for table in Table::ALL {
                saved += &found.exec.save_table(family, table.as_str()).await?;
            }
            let live = walk(&Ruleset::live(&saved), packet, &place);
            let differs = outcomes(&live) != outcomes(&desired);
            (live, differs.then_some(desired))
        }
        None => (desired, None),
    };
    let text = match flags.output {
        Output::Text => {
            let mut text = story::text(&packet, &counts, &words);
            if let Some(other) = &other {
                text += "\nBy the rules that should be there it is otherwise:\n";
                text += &story::text(&packet, other, &words);
            }
            text
        }
        Output::Json => {
            let mut object = story::json(&packet, &counts, &words);
            if flags.live {
                object["desired"] = other.as_ref().map(|other| story::json(&packet, other, &words)).into();
            }
            format!("{object:#}\n")
        }
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
        _ => {}
    }
    let gets_through = counts.endings.iter().any(|ending| ending.fate == Fate::Passed);
    Ok(if gets_through { ExitCode::SUCCESS } else { ExitCode::from(STOPPED) })
}

/// What is different for whoever sends: whom it goes to, how likely, and as whom.
fn outcomes(walk: &Walk) -> Vec<(Fate, SocketAddr, bool, String)> {
    let mut all: Vec<_> =
        walk.endings.iter().map(|ending| (ending.fate, ending.to, ending.masqueraded, format!("{:.6}", ending.probability))).collect();
    all.sort_unstable();
    all
}

/// What rules may ask about the node.
fn place(inputs: &Inputs, live: bool) -> anyhow::Result<Place> {
    let node = inputs.snapshot.node();
    let mut addresses: Vec<IpAddr> = node.map(|node| node.addresses.clone()).unwrap_or_default();
    if live {
        addresses.extend(Kernel.addresses().context("cannot list this host's addresses")?);
    } else if let Some(written) = &inputs.written_facts {
        let texts = written.addresses.iter().flatten();
        addresses.extend(texts.filter_map(|text| parse_ip(text.split('/').next().unwrap_or_default())));
    }
    let subnets = node.map(|node| node.pod_cidrs.clone()).unwrap_or_default();
    let pod_interface = match &inputs.settings.detect_local {
        DetectLocal::BridgeInterface(name) => name.clone(),
        DetectLocal::InterfaceNamePrefix(prefix) => format!("{prefix}0"),
        DetectLocal::ClusterCidr(_) | DetectLocal::NodeCidr => "cni0".to_owned(),
    };
    Ok(Place { addresses, subnets, pod_interface, external_interface: "eth0".to_owned() })
}

/// Whom it is sent to.
fn destination(text: &str, inputs: &Inputs) -> anyhow::Result<(SocketAddr, Protocol)> {
    let (whom, protocol) = match text.rsplit_once('/') {
        Some((whom, protocol @ ("tcp" | "udp" | "sctp"))) if whom.contains([':', '/']) => {
            (whom, Protocol::from_api(Some(&protocol.to_uppercase())))
        }
        _ => (text, None),
    };
    let Some(service) = whom.strip_prefix("svc/") else {
        let address = whom.parse().with_context(|| format!("--to {text:?} is neither IP:PORT nor svc/NAMESPACE/NAME[:PORT]"))?;
        return Ok((address, protocol.unwrap_or(Protocol::Tcp)));
    };
    let (name, port) = service.split_once(':').map_or((service, None), |(name, port)| (name, Some(port)));
    let (namespace, name) = name.split_once('/').with_context(|| format!("--to {text:?}: svc/NAMESPACE/NAME is needed"))?;
    let key = ServiceKey { namespace: namespace.into(), name: name.into() };
    let service = inputs.snapshot.service(&key).with_context(|| {
        format!("there is no Service {key} that a node has rules for (headless ones have none, nor have those of type ExternalName)")
    })?;
    let is_meant = |of: &crate::cluster::ServicePort| {
        protocol.is_none_or(|protocol| protocol == of.protocol) && port.is_none_or(|port| *of.name == *port || port.parse() == Ok(of.port))
    };
    let meant: Vec<_> = service.ports.iter().filter(|port| is_meant(port)).collect();
    let [one] = meant.as_slice() else {
        let ports: Vec<String> = service
            .ports
            .iter()
            .map(|port| format!("{} {}/{}", port.name, port.port, port.protocol.as_str()).trim_start().to_owned())
            .collect();
        bail!("--to {text:?} has to name one of its ports: {}", ports.join(", "));
    };
    let ip = Family::ALL
        .into_iter()
        .find_map(|family| service.cluster_ip(family))
        .with_context(|| format!("Service {key} has no cluster IP"))?;
    Ok((SocketAddr::new(ip, one.port), one.protocol))
}

/// Who sends it, and from where.
async fn sender(flags: &ExplainFlags, setup: &Setup, inputs: &Inputs, place: &Place, to: SocketAddr) -> anyhow::Result<Packet> {
    let family = Family::of(to.ip());
    let packet = |source, origin| Packet { source, to, protocol: Protocol::Tcp, origin };
    let from = flags.from.as_str();
    if from == "node" {
        let loopback: IpAddr = if family == Family::V4 { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        let own = inputs.snapshot.node().and_then(|node| node.ip(family));
        return Ok(packet(if to.ip().is_loopback() { loopback } else { own.unwrap_or(loopback) }, Origin::Node));
    }
    if from == "external" {
        return Ok(packet(if family == Family::V4 { OUTSIDE.0.into() } else { OUTSIDE.1.into() }, Origin::Outside));
    }
    if let Some(ip) = from.strip_prefix("external/") {
        return Ok(packet(ip.parse().with_context(|| format!("--from {from:?}: {ip:?} is no IP address"))?, Origin::Outside));
    }
    let ip = match from.strip_prefix("pod/") {
        Some(pod) => pod_ip(flags, setup, pod, family).await?,
        None => from.parse().with_context(|| format!("--from {from:?} is none of IP, node, external, external/IP, pod/NAMESPACE/NAME"))?,
    };
    let origin = if place.is_local(ip) {
        Origin::Node
    } else if place.subnets.iter().any(|subnet| subnet.contains(ip)) {
        Origin::Pod
    } else {
        Origin::Outside
    };
    Ok(packet(ip, origin))
}

/// A pod's address, as the API server has it.
async fn pod_ip(flags: &ExplainFlags, setup: &Setup, pod: &str, family: Family) -> anyhow::Result<IpAddr> {
    let (namespace, name) = pod.split_once('/').context("--from pod/NAMESPACE/NAME is needed")?;
    ensure!(flags.run.manifests.is_none(), "manifests say nothing of pods' addresses: give the IP of pod {pod}");
    let client = setup.connection.client().await?;
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Pod"));
    let api: Api<DynamicObject> = Api::namespaced_with(client, namespace, &resource);
    let object = api.get(name).await.with_context(|| format!("cannot get pod {pod}"))?;
    let ips = object.data.pointer("/status/podIPs").and_then(Value::as_array).cloned().unwrap_or_default();
    let ips = ips.iter().filter_map(|ip| parse_ip(ip.get("ip")?.as_str()?));
    ips.into_iter().find(|ip| Family::of(*ip) == family).ok_or_else(|| anyhow!("pod {pod} has no {family} address yet"))
}

/// Where addresses are.
struct Whereabouts<'a> {
    inputs: &'a Inputs,
    place: &'a Place,
    live: bool,
}

impl Whereabouts<'_> {
    fn of(&self, ip: IpAddr) -> String {
        let way = if self.live { way(ip).map(|way| format!(", by {way}")).unwrap_or_default() } else { String::new() };
        let place = if self.place.is_local(ip) {
            "this node itself".to_owned()
        } else if self.place.subnets.iter().any(|subnet| subnet.contains(ip)) {
            "a pod of this node".to_owned()
        } else {
            match self.node_of(ip) {
                Some(node) if node == self.inputs.node_name => "a pod of this node".to_owned(),
                Some(node) => format!("on node {node}"),
                None => "another host".to_owned(),
            }
        };
        place + &way
    }

    /// The node that an endpoint's slice names.
    fn node_of(&self, ip: IpAddr) -> Option<String> {
        let snapshot = &self.inputs.snapshot;
        let slices = snapshot.services().flat_map(|(key, _)| snapshot.slices(key));
        let endpoint = slices.flat_map(|slice| &slice.endpoints).find(|endpoint| endpoint.ip == ip)?;
        (!endpoint.node.is_empty()).then(|| endpoint.node.to_string())
    }
}

/// The link and the next hop to an address, and how large packets may be.
fn way(ip: IpAddr) -> Option<String> {
    let route = Kernel.route_to(ip).ok()?;
    let live = Kernel.dump().ok()?;
    let link = live.links.iter().find(|link| Some(link.index) == route.link)?;
    let mut text = link.name.clone();
    if let Some(gateway) = route.gateway {
        let mac =
            live.neighbours.iter().find(|neighbour| (neighbour.link, neighbour.ip) == (link.index, gateway)).map(|neighbour| neighbour.mac);
        let host = mac.and_then(|mac| live.fdb.iter().find(|entry| (entry.link, entry.mac) == (link.index, mac)));
        text += &host.map_or_else(|| format!(" and {gateway}"), |entry| format!(" to node {}", entry.host));
    }
    Some(format!("{text}, MTU {}", link.mtu))
}
