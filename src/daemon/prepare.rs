//! Reads and sets what the parts of the daemon need before they start.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use kube::Client;

use super::logs;
use super::network_setup::NetworkSetup;
use super::own_node;
use super::pod_network::check_bridge_filter;
use super::proxy::{ObjectSource, OpenSource};
use super::setup::Setup;
use crate::cluster::{Change, Family, Node};
use crate::config::checks;
use crate::config::flags::RunFlags;
use crate::config::kubeproxy::gates::{GATES, enabled};
use crate::iptables::detect::{self, Found, Support};
use crate::iptables::ipvs_nftables::{self, NftTables};
use crate::kubernetes::api::Watches;
use crate::kubernetes::client::Connections;
use crate::kubernetes::events::{self, Event, Events};
use crate::netlink::sysctl::{allow_route_localnet, set_conntrack, set_oom_score_adj};
use crate::netlink::{Host, Kernel};
use crate::observe::metrics::Metrics;
use crate::observe::readiness::{Part, Readiness};
use crate::proxy::rules::inputs::Inputs;
use crate::proxy::rules::view::needs_route_localnet;

/// The source of objects, and what comes with it.
pub(super) struct ObjectOrigin {
    pub source: ObjectSource,
    pub opened: OpenSource,
    pub inputs: Inputs,
    /// The API server, if there is one.
    pub api: Option<ApiAccess>,
    pub events: Events,
    /// Sends Events, if there is an API server.
    pub event_sender: Option<EventSender>,
}

/// Access to the API server.
pub(super) struct ApiAccess {
    pub client: Client,
    pub connections: Connections,
    pub watches: Watches,
}

/// The part that sends Events.
#[derive(Clone)]
pub(super) struct EventSender {
    client: Client,
    node: String,
    host: String,
    queue: events::EventQueue,
}

impl EventSender {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        events::send(self.client, self.node, self.host, self.queue).await;
        Ok(())
    }
}

/// The result of [`prepare`].
pub(super) struct Prepared {
    pub origin: ObjectOrigin,
    pub network: Option<NetworkSetup>,
    pub found: Found,
    pub families: Vec<Family>,
}

/// Prepares the start of the parts; `None` if there are none to start (`--init-only`).
pub(super) async fn prepare(
    setup: &Setup,
    flags: &RunFlags,
    (manifests, network, found): (Option<ObjectOrigin>, Option<NetworkSetup>, Found),
    (metrics, readiness): (Arc<Metrics>, Readiness),
) -> anyhow::Result<Option<Prepared>> {
    let proxy = flags.network.proxy;
    readiness.not_ready(Part::Start, "the API server is asked for this node's Node");
    let mut origin = match manifests {
        Some(origin) => origin,
        None => open_api(setup, proxy, network.as_ref(), Arc::clone(&metrics)).await?,
    };
    let families = choose_families((setup, flags), &found, &mut origin, network.as_ref(), &readiness).await?;
    let names: Vec<&str> = families.iter().map(|family| family.as_str()).collect();
    tracing::info!("node {}, families {}", origin.inputs.node_name, names.join(" and "));
    if proxy {
        set_kernel(setup, &origin.inputs, &families, flags.proxy.init_only)?;
    }
    if flags.proxy.init_only {
        tracing::info!("--init-only: the kernel settings are done");
        return Ok(None);
    }
    for gate in GATES {
        metrics.feature(gate.name, gate.stage, enabled(&setup.effective.config.feature_gates, gate.name));
    }
    if proxy {
        let daemon = &setup.effective.daemon;
        set_oom_score_adj(&Kernel, daemon.oom_score_adj, daemon.oom_score_is_set).await;
        origin.events.tell(Event::starting());
    }
    Ok(Some(Prepared { origin, network, found, families }))
}

/// Finds the iptables to use. Warns about rules in the other variant, and deletes the nftables tables of other modes.
pub(super) async fn find_iptables(flags: &RunFlags, proxy: bool, network: bool) -> anyhow::Result<Found> {
    let mut found = detect::find(flags.iptables_variant.variant()).await?;
    tracing::info!("iptables {} ({}): {}", found.variant, found.version, found.reason);
    for family in found.find_other_variant().await {
        tracing::warn!(
            "{family}: iptables-{other} holds KUBE-* rules, too, and packets go through both: services may answer that are gone. Remove those \
             rules with: sepal cleanup --iptables-variant {other}",
            other = found.variant.other(),
        );
    }
    for (ours, tables) in [(proxy, NftTables::KubeProxy), (network, NftTables::Flannel)] {
        if ours {
            for left in ipvs_nftables::delete_nftables(tables).await {
                tracing::debug!("{left}");
            }
        }
    }
    Ok(found)
}

/// Opens manifests. A KubeProxyConfiguration among them overrides the configuration of the setup.
pub(super) fn open_manifests(path: &Path, setup: &mut Setup) -> anyhow::Result<ObjectOrigin> {
    let (opened, inputs, configuration) = ObjectSource::open_manifests(path, &setup.requested)?;
    if let Some(document) = configuration {
        setup.effective = setup.with_document(&document)?;
        logs::set_verbosity(setup.effective.daemon.verbosity);
    }
    let source = ObjectSource::Manifests { path: path.to_owned(), requested: Box::new(setup.requested.clone()) };
    Ok(ObjectOrigin { source, opened, inputs, api: None, events: Events::none(), event_sender: None })
}

async fn open_api(setup: &Setup, proxy: bool, network: Option<&NetworkSetup>, metrics: Arc<Metrics>) -> anyhow::Result<ObjectOrigin> {
    let mut inputs = setup.empty_inputs();
    let connections = Connections::default();
    let client = setup.connection.observed_client(metrics, &connections)?;
    inputs.without_proxy = !proxy;
    if let Some(network) = network {
        inputs.node_name = network.node_name(&client, &setup.requested).await?;
    }
    let (events, queue) = Events::channel();
    let host = setup.requested.host_name.clone();
    let event_sender = Some(EventSender { client: client.clone(), node: inputs.node_name.clone(), host, queue });
    let watches = Watches::new(&client);
    let node = inputs.node_name.clone();
    let source = if proxy { ObjectSource::Cluster { watches: watches.clone(), node } } else { ObjectSource::None };
    Ok(ObjectOrigin { opened: source.open(), source, inputs, api: Some(ApiAccess { client, connections, watches }), events, event_sender })
}

/// Sets the kernel settings that the service proxy needs.
fn set_kernel(setup: &Setup, inputs: &Inputs, families: &[Family], init_only: bool) -> anyhow::Result<()> {
    set_conntrack(&Kernel, &setup.effective.daemon.conntrack).map_err(|error| if init_only { error.of_init_container() } else { error })?;
    // The loop sets this again. Here a failure is found early, and with --init-only the loop does not run.
    if families.contains(&Family::V4) && inputs.knows_node_ip() && needs_route_localnet(&inputs.settings, inputs.snapshot.node()) {
        let proxier = if families.len() > 1 { "ipv4 proxier" } else { "proxier" };
        let allowed = allow_route_localnet(&Kernel).map_err(|error| if init_only { error.of_init_container() } else { error });
        allowed.with_context(|| format!("unable to create {proxier}"))?;
    }
    Ok(())
}

/// The families to run. Waits for this node's Node as far as they depend on it.
async fn choose_families(
    (setup, flags): (&Setup, &RunFlags),
    found: &Found,
    origin: &mut ObjectOrigin,
    network: Option<&NetworkSetup>,
    readiness: &Readiness,
) -> anyhow::Result<Vec<Family>> {
    let support = detect::support(found, Kernel.ipv6_enabled()).await;
    let usable = support.usable()?;
    if let (false, Some(network)) = (flags.network.proxy, network) {
        check_bridge_filter(usable);
        return network.families(usable);
    }
    if let Some(ApiAccess { client, .. }) = &origin.api {
        // No kernel setting depends on the pod CIDR. An init container must not wait for it, as its daemon may have to assign it.
        let assigned = !flags.proxy.init_only && !network.is_some_and(NetworkSetup::assigns_subnets);
        let any_family = usable.len() == Family::ALL.len();
        let conditions = own_node::WaitConditions { any_family, assigned, pod_network: network.is_some() };
        if let Some(node) = own_node::wait(client, setup, &origin.inputs, conditions, readiness).await? {
            origin.inputs.snapshot.apply(Change::Node(Some(node)));
        }
    }
    let families = proxy_families(setup, &support, origin.inputs.snapshot.node())?;
    if let Some(network) = network {
        check_bridge_filter(&families);
        network.check(&families)?;
    }
    Ok(families)
}

/// The families of the service proxy: those that this host can program, if the node's primary family is among them.
fn proxy_families(setup: &Setup, support: &Support, node: Option<&Node>) -> anyhow::Result<Vec<Family>> {
    let node_ip = node.and_then(|node| node.addresses.first()).copied();
    let primary = setup.effective.proxy.bind_address.or(node_ip).map_or(Family::V4, Family::of);
    let mut families = support.to_run(primary)?;
    let pod_cidrs = node.map(|node| node.pod_cidrs.as_slice()).unwrap_or_default();
    for mismatch in checks::find_mismatches(&setup.effective, primary, &families, pod_cidrs) {
        anyhow::ensure!(!mismatch.fatal, "kube-proxy configuration is incorrect: {}", mismatch.text);
        tracing::warn!("kube-proxy configuration may be incorrect: {}", mismatch.text);
    }
    if let Some(advice) = checks::node_port_advice(&setup.effective, primary, &families) {
        tracing::info!("{advice}");
    }
    families.retain(|family| setup.families.contains(family));
    anyhow::ensure!(!families.is_empty(), "this host cannot program the family of --ip-family");
    Ok(families)
}
