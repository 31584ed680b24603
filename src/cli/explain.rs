//! `sepal explain`: shows the path of a packet through this node's rules, desired or live.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use anyhow::{Context, anyhow, ensure};
use clap::Args;
use kube::Api;
use kube::api::{ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use serde_json::Value;

use crate::cluster::Family;
use crate::cluster::ip::parse_ip;
use crate::config::flags::RunFlags;
use crate::daemon::setup::Setup;
use crate::explain::ending::{Ending, Fate, Walk};
use crate::explain::output;
use crate::explain::packet::LocalNode;
use crate::explain::question;
use crate::explain::ruleset::Ruleset;
use crate::explain::walk::walk;
use crate::iptables::detect::{self, Found};
use crate::netlink::{Host, Kernel, NetworkKernel};
use crate::proxy::rules::inputs::Inputs;
use crate::proxy::sync::facts::{described_facts, whole};
use crate::table::planner;

use super::live_rules::saved_tables;
use super::output::{OutputFormat, print};

/// Exit status for a packet that is dropped or refused.
const STOPPED: u8 = 2;

/// The flags of `sepal explain`: the packet, which rules to use, and where to read the cluster.
#[derive(Args, Clone, Debug)]
pub(super) struct ExplainFlags {
    /// Sender of the packet: an IP, `node` (this node), `external` or `external/IP` (another host), or `pod/NAMESPACE/NAME` (needs an API server)
    #[arg(long, value_name = "SENDER")]
    from: String,
    /// Destination: `IP:PORT` or `svc/NAMESPACE/NAME[:PORT]` (name or number of the port), with `/tcp`, `/udp` or `/sctp` at the end, in any
    /// case; without it the Service's own protocol, or tcp
    #[arg(long, value_name = "DESTINATION")]
    to: String,
    /// Use the rules that are in the kernel, and show where the rules that sepal would write lead elsewhere
    #[arg(long)]
    live: bool,
    /// Format of the output
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    output: OutputFormat,
    #[command(flatten)]
    run: RunFlags,
}

/// Prints the path. The exit status is 2 if every such packet is dropped or refused.
pub(super) async fn explain(flags: ExplainFlags) -> anyhow::Result<ExitCode> {
    let setup = Setup::new(&flags.run)?;
    let inputs = setup.read_inputs(&flags.run).await?;
    let to = question::destination(&flags.to, &inputs).context("--to")?;
    let family = Family::of(to.0.ip());
    let place = place(&inputs, flags.live)?;
    let pod = match flags.from.strip_prefix("pod/") {
        Some(pod) => Some(pod_ip(&flags, &setup, pod, family).await?.to_string()),
        None => None,
    };
    let packet = question::packet(pod.as_deref().unwrap_or(&flags.from), to, &inputs, &place).context("--from")?;
    let found = if flags.live { Some(detect::find(flags.run.iptables_variant.variant()).await?) } else { None };
    let random_fully = found.as_ref().is_none_or(Found::random_fully);
    let host = described_facts(&inputs, &Kernel, random_fully)?;
    let (plan, renderer) = whole(&inputs, &host, family, &planner::dry_run_tables());
    let desired = walk(&Ruleset::desired(&plan.text(&renderer)), packet, &place);
    let describe = |ending: &Ending| {
        let ip = ending.to.ip();
        let route = if flags.live { route(ip).map(|route| format!(", by {route}")).unwrap_or_default() } else { String::new() };
        question::location(ip, &inputs, &place) + &route
    };
    // With --live, the desired path is only shown if it differs.
    let (shown, other) = match found {
        Some(found) => {
            let live = walk(&Ruleset::live(&saved_tables(&found.exec, family).await?), packet, &place);
            let differs = outcomes(&live) != outcomes(&desired);
            (live, differs.then_some(desired))
        }
        None => (desired, None),
    };
    let text = match flags.output {
        OutputFormat::Text => {
            let mut text = output::text(&packet, &shown, &describe);
            if let Some(other) = &other {
                text += "\nWith the rules that sepal would write it is different:\n";
                text += &output::text(&packet, other, &describe);
            }
            text
        }
        OutputFormat::Json => {
            let mut object = output::json(&packet, &shown, &describe);
            if flags.live {
                object["desired"] = other.as_ref().map(|other| output::json(&packet, other, &describe)).into();
            }
            format!("{object:#}\n")
        }
    };
    print(&text)?;
    let gets_through = shown.endings.iter().any(|ending| ending.fate == Fate::Passed);
    Ok(if gets_through { ExitCode::SUCCESS } else { ExitCode::from(STOPPED) })
}

/// The parts of a path by which live and desired rules are compared: the fate, the destination, masquerading and the probability.
fn outcomes(walk: &Walk) -> Vec<(Fate, SocketAddr, bool, String)> {
    let mut all: Vec<_> =
        walk.endings.iter().map(|ending| (ending.fate, ending.to, ending.masqueraded, format!("{:.6}", ending.probability))).collect();
    all.sort_unstable();
    all
}

/// Facts about the node that rules may test.
fn place(inputs: &Inputs, live: bool) -> anyhow::Result<LocalNode> {
    let host = if live { Kernel.addresses().context("cannot list this host's addresses")? } else { question::written_addresses(inputs) };
    Ok(question::local_node(inputs, host))
}

/// Gets a pod's address from the API server.
async fn pod_ip(flags: &ExplainFlags, setup: &Setup, pod: &str, family: Family) -> anyhow::Result<IpAddr> {
    let (namespace, name) = pod.split_once('/').context("--from pod/NAMESPACE/NAME is needed")?;
    ensure!(flags.run.manifests.is_none(), "manifests have no addresses of pods: give the IP of pod {pod}");
    let client = setup.connection.client()?;
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Pod"));
    let api: Api<DynamicObject> = Api::namespaced_with(client, namespace, &resource);
    let object = api.get(name).await.with_context(|| format!("cannot get pod {pod}"))?;
    let ips = object.data.pointer("/status/podIPs").and_then(Value::as_array).cloned().unwrap_or_default();
    let ips = ips.iter().filter_map(|ip| parse_ip(ip.get("ip")?.as_str()?));
    ips.into_iter().find(|ip| Family::of(*ip) == family).ok_or_else(|| anyhow!("pod {pod} has no {family} address yet"))
}

/// The link and the next hop to an address, and the MTU.
fn route(ip: IpAddr) -> Option<String> {
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
