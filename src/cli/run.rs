//! `sepal run`: the daemon. Its start is in kube-proxy's order (spec section 1.1).

use std::cell::RefCell;
use std::convert::Infallible;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use kube::Client;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::agent::events::{self, Event, Events};
use crate::agent::health::SharedHealth;
use crate::agent::http::StartError;
use crate::agent::metrics::Metrics;
use crate::agent::readiness::{Part, Readiness};
use crate::agent::status::Board;
use crate::agent::status::site::{About, Site};
use crate::agent::supervise::{Supervised, supervise};
use crate::agent::{flanneld_health, healthz, metrics_server, service_manager};
use crate::cluster::{Change, Family, Node};
use crate::config::checks;
use crate::config::effective::Effective;
use crate::config::flags::{Face, RunFlags};
use crate::config::kubeproxy::gates::{GATES, enabled};
use crate::iptables::detect::{self, Found, Support};
use crate::iptables::other_modes::{self, NftTables};
use crate::netlink::sysctl::{allow_route_localnet, set_conntrack, set_oom_score_adj};
use crate::netlink::{Host, Kernel};
use crate::rules::inputs::Inputs;
use crate::rules::view::needs_route_localnet;
use crate::source::Wishes;
use crate::source::api::Watches;
use crate::source::client::Connections;

use super::config_watch::{self, Told};
use super::logs;
use super::own_node;
use super::pages::pages;
use super::pod_network::{NetworkPart, PodNetwork, check_bridge_filter};
use super::proxy::{self, Opened, ProxyPart};
use super::setup::Setup;

/// How long the last Events may take to be told.
const LAST_EVENTS: Duration = Duration::from_secs(2);

/// Keeps this node's rules as they should be until it is told to end. The rules stay when it goes.
pub(super) async fn run(setup: Setup, flags: RunFlags) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        ended = start(setup, &flags) => ended?,
        _ = terminate.recv() => tracing::info!("terminated; the rules stay"),
        _ = interrupt.recv() => tracing::info!("interrupted; the rules stay"),
    }
    Ok(ExitCode::SUCCESS)
}

/// What is known of the cluster before anything is started.
struct Start {
    source: proxy::Source,
    /// The source as it is followed already.
    opened: Opened,
    inputs: Inputs,
    /// The way to the API server, if there is one.
    cluster: Option<Cluster>,
    events: Events,
}

struct Cluster {
    client: Client,
    connections: Connections,
    watches: Watches,
}

async fn start(mut setup: Setup, flags: &RunFlags) -> anyhow::Result<()> {
    let network = PodNetwork::asked(flags)?;
    let proxy = flags.network.proxy;
    anyhow::ensure!(proxy || network.is_some(), "--proxy=false without --pod-network leaves nothing to do");
    let metrics = Arc::new(Metrics::new(Kernel));
    let found = find_iptables(flags, proxy, network.is_some()).await?;
    metrics.iptables(&found);
    let mut start = match (&flags.manifests, &network) {
        (Some(_), Some(_)) => anyhow::bail!("--pod-network needs an API server: with --manifests rules can only be printed (--dry-run)"),
        (Some(path), None) => start_manifests(path, &mut setup)?,
        (None, network) => start_api(&setup, proxy, network.as_ref(), Arc::clone(&metrics)).await?,
    };
    let families = families(&setup, flags, &found, &mut start, network.as_ref()).await?;
    let names: Vec<&str> = families.iter().map(|family| family.as_str()).collect();
    tracing::info!("node {}, families {}", start.inputs.node_name, names.join(" and "));
    if proxy {
        set_kernel(&setup, &start.inputs, &families, flags.proxy.init_only)?;
    }
    if flags.proxy.init_only {
        tracing::info!("--init-only: the kernel settings are done");
        return Ok(());
    }
    for gate in GATES {
        metrics.feature(gate.name, gate.stage, enabled(&setup.effective.config.feature_gates, gate.name));
    }
    if proxy {
        let daemon = &setup.effective.daemon;
        set_oom_score_adj(&Kernel, daemon.oom_score_adj, daemon.oom_score_asked).await;
        start.events.tell(Event::starting());
    }
    keep_running(&setup, flags, (start, network), (found, families), metrics).await
}

/// Starts the parts of the daemon, and starts them again when they fail. Ends when the configuration, or a server, wants that.
async fn keep_running(
    setup: &Setup,
    flags: &RunFlags,
    (start, network): (Start, Option<PodNetwork>),
    (found, families): (Found, Vec<Family>),
    metrics: Arc<Metrics>,
) -> anyhow::Result<()> {
    let Effective { proxy: settings, daemon, config, .. } = &setup.effective;
    let proxy = flags.network.proxy;
    let (of_rules, of_network) = parts(proxy, &families, network.as_ref());
    let readiness = Readiness::new(of_rules.iter().chain(&of_network).copied());
    metrics.parts(&readiness);
    tokio::spawn(service_manager::tell_ready(readiness.clone()));
    let health = SharedHealth::new(settings.sync_period);
    if !proxy {
        // Load balancers send nothing here for sepal's sake; what the Node wants is not looked at.
        health.node_seen(true);
    }
    let Start { source, opened, inputs, cluster, events } = start;
    let board = Board::default();
    let events = events.noted(board.happenings.clone());
    let about = About {
        node: inputs.node_name.clone(),
        version: env!("CARGO_PKG_VERSION"),
        iptables: format!("{} {} ({})", found.variant, found.version, found.reason),
        families: families.iter().map(|family| family.as_str()).collect(),
    };
    let site = Site::new(about, board.clone(), readiness.clone(), Arc::clone(&metrics));
    let wishes = watch::Sender::new(Wishes::default());
    let network_part = network.zip(cluster).map(|(network, Cluster { client, connections, watches })| {
        let (metrics, events, readiness, board) = (Arc::clone(&metrics), events.clone(), readiness.clone(), board.clone());
        Rc::new(NetworkPart {
            network,
            client,
            connections,
            watches,
            node: inputs.node_name.clone(),
            metrics,
            events,
            readiness,
            board,
            wishes: wishes.clone(),
        })
    });
    let rules_part = Rc::new(ProxyPart {
        source,
        inputs,
        first: RefCell::new(Some(opened)),
        random_fully: found.random_fully(),
        exec: found.exec,
        families,
        traffic: flags.service_traffic,
        health_server: daemon.healthz.is_some(),
        metrics: Arc::clone(&metrics),
        health: health.clone(),
        events: events.clone(),
        readiness: readiness.clone(),
        board,
        wishes: wishes.subscribe(),
    });
    let supervised = |name, parts| Supervised { name, parts, readiness: readiness.clone(), events: events.clone() };
    let rules = supervise(supervised("keeper of the rules", of_rules), || Rc::clone(&rules_part).run());
    let network = async {
        match &network_part {
            Some(part) => supervise(supervised("pod network", of_network), || Rc::clone(part).run()).await,
            None => std::future::pending().await,
        }
    };
    let (configz, shown) = watch::channel(serde_json::to_value(config)?);
    tokio::select! {
        failed = serve(setup, (health, readiness.clone()), (Arc::clone(&metrics), shown, site), flags) => Err(last_words(&events, failed).await),
        changed = config_watch::follow(flags, setup.typed.clone(), Told { wishes, configz }) => {
            let Err(error) = changed;
            Err(error)
        }
        never = rules => match never {},
        never = network => match never {},
    }
}

/// The parts of the daemon: those of whoever keeps the rules, and those of the pod network.
fn parts(proxy: bool, families: &[Family], network: Option<&PodNetwork>) -> (Vec<Part>, Vec<Part>) {
    let of_proxy = families.iter().filter(|_| proxy).map(|family| Part::Proxy(*family));
    let (rules, others) =
        network.map(PodNetwork::parts).unwrap_or_default().into_iter().partition(|part| matches!(part, Part::PodRules(_)));
    let rules: Vec<Part> = rules;
    (of_proxy.chain(rules).collect(), others)
}

/// The iptables to use; says what is left of other ways to do the same.
async fn find_iptables(flags: &RunFlags, proxy: bool, network: bool) -> anyhow::Result<Found> {
    let mut found = detect::find(flags.iptables_variant.wanted()).await?;
    tracing::info!("iptables {} ({}): {}", found.variant, found.version, found.reason);
    for family in found.find_doubles().await {
        tracing::warn!(
            "{family}: iptables-{other} holds KUBE-* rules, too, and packets go through both: services may answer that are gone. Remove those \
             rules with: sepal cleanup --iptables-variant {other}",
            other = found.variant.other(),
        );
    }
    for (ours, tables) in [(proxy, NftTables::KubeProxy), (network, NftTables::Flannel)] {
        if ours {
            for left in other_modes::delete_nftables(tables).await {
                tracing::debug!("{left}");
            }
        }
    }
    Ok(found)
}

/// Sets what the service proxy needs of the kernel.
fn set_kernel(setup: &Setup, inputs: &Inputs, families: &[Family], init_only: bool) -> anyhow::Result<()> {
    set_conntrack(&Kernel, &setup.effective.daemon.conntrack).map_err(|error| if init_only { error.of_init_container() } else { error })?;
    // The loop does this, too; here it tells early, and is all there is with --init-only.
    if families.contains(&Family::V4) && inputs.knows_node_ip() && needs_route_localnet(&inputs.settings, inputs.snapshot.node()) {
        let whose = if families.len() > 1 { "ipv4 proxier" } else { "proxier" };
        let allowed = allow_route_localnet(&Kernel).map_err(|error| if init_only { error.of_init_container() } else { error });
        allowed.with_context(|| format!("unable to create {whose}"))?;
    }
    Ok(())
}

/// Runs the health and the metrics server; ends only with `bindAddressHardFail`, when one of them cannot listen.
async fn serve(
    setup: &Setup,
    (health, readiness): (SharedHealth, Readiness),
    (metrics, configz, site): (Arc<Metrics>, watch::Receiver<serde_json::Value>, Site),
    flags: &RunFlags,
) -> (&'static str, StartError) {
    if let Face::Flanneld { healthz } = &flags.face {
        let Some(place) = healthz else { return std::future::pending().await };
        let Err(failed) = flanneld_health::serve(place, readiness).await;
        return ("FailedToStartHealthz", failed);
    }
    let daemon = &setup.effective.daemon;
    let counts = Arc::clone(&metrics);
    let answered = Arc::new(move |probe, status: hyper::StatusCode| match probe {
        healthz::Probe::Healthz => counts.healthz(status.as_u16()),
        healthz::Probe::Livez => counts.livez(status.as_u16()),
    });
    let readiness = (flags.face == Face::Sepal).then_some(readiness);
    let healthz = async {
        match daemon.healthz {
            Some(address) => healthz::serve(address, daemon.hard_fail, health, readiness, answered).await,
            None => std::future::pending::<Result<Infallible, _>>().await,
        }
    };
    let pages = pages(&setup.effective, flags, metrics, configz, site);
    tokio::select! {
        Err(failed) = healthz => ("FailedToStartProxierHealthcheck", failed),
        Err(failed) = metrics_server::serve(daemon.metrics, daemon.hard_fail, pages) => ("FailedToStartMetricServer", failed),
    }
}

/// Tells of the failure for which the program ends, and waits until that is told.
async fn last_words(events: &Events, (reason, failed): (&'static str, StartError)) -> anyhow::Error {
    events.tell(Event::cannot_listen(reason, failed.to_string()));
    let _ = tokio::time::timeout(LAST_EVENTS, events.sent()).await;
    failed.into()
}

/// The families to run, once this node's Node is known as far as that has to be waited for.
async fn families(
    setup: &Setup,
    flags: &RunFlags,
    found: &Found,
    start: &mut Start,
    network: Option<&PodNetwork>,
) -> anyhow::Result<Vec<Family>> {
    let support = detect::support(found, Kernel.ipv6_enabled()).await;
    let usable = support.usable()?;
    if let (false, Some(network)) = (flags.network.proxy, network) {
        check_bridge_filter(usable);
        return network.families(usable);
    }
    if let Some(Cluster { client, .. }) = &start.cluster {
        // No kernel setting hangs on the pod CIDR, and an init container must not wait for what its daemon may have to assign.
        let assigned = !flags.proxy.init_only && !network.is_some_and(PodNetwork::assigns_subnets);
        if let Some(node) = own_node::wait(client, setup, &start.inputs, usable.len() == Family::ALL.len(), assigned).await? {
            start.inputs.snapshot.apply(Change::Node(Some(node)));
        }
    }
    let families = of_proxy(setup, &support, start.inputs.snapshot.node())?;
    if let Some(network) = network {
        check_bridge_filter(&families);
        network.check(&families)?;
    }
    Ok(families)
}

/// The families that this host can program, if the node's primary family is among them.
fn of_proxy(setup: &Setup, support: &Support, node: Option<&Node>) -> anyhow::Result<Vec<Family>> {
    let of_node = node.and_then(|node| node.addresses.first()).copied();
    let primary = setup.effective.proxy.bind_address.or(of_node).map_or(Family::V4, Family::of);
    let mut families = support.to_run(primary)?;
    let pod_cidrs = node.map(|node| node.pod_cidrs.as_slice()).unwrap_or_default();
    for mismatch in checks::mismatches(&setup.effective, primary, &families, pod_cidrs) {
        anyhow::ensure!(!mismatch.fatal, "kube-proxy configuration is incorrect: {}", mismatch.what);
        tracing::warn!("kube-proxy configuration may be incorrect: {}", mismatch.what);
    }
    if let Some(advice) = checks::advice(&setup.effective, primary, &families) {
        tracing::info!("{advice}");
    }
    families.retain(|family| setup.families.contains(family));
    anyhow::ensure!(!families.is_empty(), "this host cannot program the family of --ip-family");
    Ok(families)
}

fn start_manifests(path: &Path, setup: &mut Setup) -> anyhow::Result<Start> {
    let (opened, inputs, configuration) = proxy::Source::read(path, &setup.asked)?;
    if let Some(document) = configuration {
        setup.effective = setup.with_document(&document)?;
        logs::set_verbosity(setup.effective.daemon.verbosity);
    }
    let source = proxy::Source::Manifests { path: path.to_owned(), asked: Box::new(setup.asked.clone()) };
    Ok(Start { source, opened, inputs, cluster: None, events: Events::none() })
}

async fn start_api(setup: &Setup, proxy: bool, network: Option<&PodNetwork>, metrics: Arc<Metrics>) -> anyhow::Result<Start> {
    let mut inputs = setup.empty_inputs();
    let connections = Connections::default();
    let client = setup.connection.observed_client(metrics, &connections)?;
    inputs.without_proxy = !proxy;
    if let Some(network) = network {
        inputs.node_name = network.node_name(&client, setup).await?;
    }
    let (events, told) = Events::channel();
    tokio::spawn(events::send(client.clone(), inputs.node_name.clone(), setup.asked.host_name.clone(), told));
    let watches = Watches::new(&client);
    let node = inputs.node_name.clone();
    let source = if proxy { proxy::Source::Cluster { watches: watches.clone(), node } } else { proxy::Source::Nothing };
    Ok(Start { opened: source.follow(), source, inputs, cluster: Some(Cluster { client, connections, watches }), events })
}
