//! `sepal run`: the daemon. Its start is in kube-proxy's order (spec section 1.1).

use std::convert::Infallible;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures::stream::{self, BoxStream, StreamExt};
use kube::Client;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::agent::events::{self, Event, Events};
use crate::agent::flow_loop;
use crate::agent::health::SharedHealth;
use crate::agent::http::StartError;
use crate::agent::metrics::Metrics;
use crate::agent::proxy_loop::ProxyLoop;
use crate::agent::readiness::{Part, Readiness};
use crate::agent::report::Report;
use crate::agent::{flanneld_health, healthz, metrics_server};
use crate::cluster::{Change, Family, Node};
use crate::config::checks;
use crate::config::effective::Effective;
use crate::config::flags::{Face, RunFlags};
use crate::config::kubeproxy::gates::{GATES, enabled};
use crate::conntrack::Reconciler;
use crate::conntrack::flows::KernelFlows;
use crate::iptables::detect::{self, Found, Support};
use crate::iptables::other_modes::{self, NftTables};
use crate::netlink::sysctl::{allow_route_localnet, set_conntrack, set_oom_score_adj};
use crate::netlink::{Host, Kernel};
use crate::rules::inputs::Inputs;
use crate::rules::view::needs_route_localnet;
use crate::source::api::Watches;
use crate::source::follow::{Files, Watch, follow};
use crate::source::{Kind, Update};

use super::config_watch::{self, Told};
use super::own_node;
use super::pages::pages;
use super::pod_network::{Joined, PodNetwork};
use super::setup::Setup;

/// Updates that may wait for the loop before their source has to wait, too.
const WAITING_UPDATES: usize = 1024;

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

/// Where objects come from: what is known at the start, and the way to the API server, if there is one.
struct Source {
    inputs: Inputs,
    client: Option<Client>,
    events: Events,
    /// What the pod network is joined with, where there is one.
    network: Option<Joined>,
}

impl Source {
    /// Waits for what has to be known of this node's Node.
    async fn wait_for_node(&mut self, setup: &Setup, any_family: bool, assigned: bool) -> anyhow::Result<()> {
        if let Some(client) = &self.client
            && let Some(node) = own_node::wait(client, setup, &self.inputs, any_family, assigned).await?
        {
            self.inputs.snapshot.apply(Change::Node(Some(node)));
        }
        Ok(())
    }
}

async fn start(setup: Setup, flags: &RunFlags) -> anyhow::Result<()> {
    let network = PodNetwork::asked(flags)?;
    let proxy = flags.network.proxy;
    anyhow::ensure!(proxy || network.is_some(), "--proxy=false without --pod-network leaves nothing to do");
    let metrics = Arc::new(Metrics::new(Kernel));
    let found = find_iptables(flags, proxy, network.is_some()).await?;
    metrics.iptables(&found);
    let (sender, updates) = mpsc::channel(WAITING_UPDATES);
    let mut source = match (&flags.manifests, &network) {
        (Some(_), Some(_)) => anyhow::bail!("--pod-network needs an API server: with --manifests rules can only be printed (--dry-run)"),
        (Some(path), None) => start_manifests(path, &setup, sender.clone()).await?,
        (None, network) => start_api(&setup, flags, network.as_ref(), sender.clone(), Arc::clone(&metrics)).await?,
    };
    let support = detect::support(&found, Kernel.ipv6_enabled()).await;
    if proxy {
        let assigned = !network.as_ref().is_some_and(PodNetwork::assigns_subnets);
        source.wait_for_node(&setup, support.usable()?.len() == Family::ALL.len(), assigned).await?;
    }
    let families = match &network {
        Some(network) if !proxy => network.families(support.usable()?)?,
        _ => families(&setup, &support, source.inputs.snapshot.node())?,
    };
    let names: Vec<&str> = families.iter().map(|family| family.as_str()).collect();
    tracing::info!("node {}, families {}", source.inputs.node_name, names.join(" and "));
    if proxy {
        set_kernel(&setup, &source.inputs, &families)?;
    }
    if flags.proxy.init_only {
        tracing::info!("--init-only: kernel settings are as they should be");
        return Ok(());
    }
    let Effective { proxy: settings, daemon, config, .. } = &setup.effective;
    if proxy {
        set_oom_score_adj(&Kernel, daemon.oom_score_adj).await;
    }
    for gate in GATES {
        metrics.feature(gate.name, gate.stage, enabled(&config.feature_gates, gate.name));
    }
    let readiness = parts(proxy, &families, network.as_ref());
    metrics.parts(&readiness);
    let network_loop = {
        let joined = network.zip(source.network.take());
        let (families, readiness, metrics, sender) = (families.clone(), readiness.clone(), Arc::clone(&metrics), sender.clone());
        async move {
            match joined {
                Some((network, joined)) => network.run(joined, &families, readiness, metrics, sender).await,
                None => std::future::pending().await,
            }
        }
    };
    let health = SharedHealth::new(settings.sync_period);
    let report = Report::new(Arc::clone(&metrics), health.clone(), source.events.clone()).with_readiness(readiness.clone());
    let random_fully = found.random_fully();
    let mut proxy_loop = ProxyLoop::new(found.exec, Kernel, random_fully, source.inputs, report);
    for family in families {
        let teller = proxy.then(|| {
            let (teller, unheard) = flow_loop::channel();
            tokio::spawn(flow_loop::run(Reconciler::new(family), KernelFlows, Arc::clone(&metrics), unheard));
            teller
        });
        proxy_loop = proxy_loop.with_family(family, teller);
    }
    if proxy {
        proxy_loop = proxy_loop.with_health_checks(daemon.healthz.is_some());
        source.events.tell(Event::starting());
    } else {
        // Load balancers send nothing here for sepal's sake; what the Node wants is not looked at.
        health.node_seen(true);
    }
    let (configz, shown) = watch::channel(serde_json::to_value(config)?);
    tokio::select! {
        failed = serve(&setup, (health, readiness), Arc::clone(&metrics), shown, flags) => Err(last_words(&source.events, failed).await),
        changed = config_watch::follow(flags, setup.effective.clone(), Told { updates: sender.clone(), configz }) => {
            let Err(error) = changed;
            Err(error)
        }
        ended = network_loop => ended,
        () = proxy_loop.run(updates) => anyhow::bail!("the source of updates has ended"),
    }
}

/// The parts of the daemon, none of which is ready yet.
fn parts(proxy: bool, families: &[Family], network: Option<&PodNetwork>) -> Readiness {
    let of_proxy = families.iter().filter(|_| proxy).map(|family| Part::Proxy(*family));
    Readiness::new(of_proxy.chain(network.into_iter().flat_map(PodNetwork::parts)))
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
fn set_kernel(setup: &Setup, inputs: &Inputs, families: &[Family]) -> anyhow::Result<()> {
    set_conntrack(&Kernel, &setup.effective.daemon.conntrack)?;
    // The loop does this, too; here it tells early, and is all there is with --init-only.
    if families.contains(&Family::V4) && inputs.knows_node_ip() && needs_route_localnet(&inputs.settings, inputs.snapshot.node()) {
        let whose = if families.len() > 1 { "ipv4 proxier" } else { "proxier" };
        allow_route_localnet(&Kernel).with_context(|| format!("unable to create {whose}"))?;
    }
    Ok(())
}

/// Runs the health and the metrics server; ends only with `bindAddressHardFail`, when one of them cannot listen.
async fn serve(
    setup: &Setup,
    (health, readiness): (SharedHealth, Readiness),
    metrics: Arc<Metrics>,
    configz: watch::Receiver<serde_json::Value>,
    flags: &RunFlags,
) -> (&'static str, StartError) {
    if let Face::Flanneld { healthz } = flags.face {
        let Some(address) = healthz else { return std::future::pending().await };
        let Err(failed) = flanneld_health::serve(address, readiness).await;
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
    let pages = pages(&setup.effective, flags, metrics, configz);
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

/// The families to run: those that this host can program, if the node's primary family is among them.
fn families(setup: &Setup, support: &Support, node: Option<&Node>) -> anyhow::Result<Vec<Family>> {
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

async fn start_manifests(path: &Path, setup: &Setup, sender: mpsc::Sender<Update>) -> anyhow::Result<Source> {
    let standard_input = path == Path::new("-");
    let watch = if standard_input { None } else { Some(Watch::new(path).with_context(|| format!("cannot watch {}", path.display()))?) };
    let mut files = Files::new(path.to_owned(), setup.asked.clone());
    let inputs = files.read()?;
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
        sender.send(Update::Complete(kind)).await?;
    }
    tokio::spawn(async move {
        match watch {
            Some(watch) => follow(files, watch, sender).await,
            // Standard input says it once, and that holds.
            None => sender.closed().await,
        }
    });
    Ok(Source { inputs, client: None, events: Events::none(), network: None })
}

async fn start_api(
    setup: &Setup,
    flags: &RunFlags,
    network: Option<&PodNetwork>,
    sender: mpsc::Sender<Update>,
    metrics: Arc<Metrics>,
) -> anyhow::Result<Source> {
    let mut inputs = setup.empty_inputs();
    let client = setup.connection.observed_client(metrics).await?;
    inputs.without_proxy = !flags.network.proxy;
    if let Some(network) = network {
        inputs.node_name = network.node_name(&client, setup).await?;
    }
    let (events, told) = Events::channel();
    tokio::spawn(events::send(client.clone(), inputs.node_name.clone(), setup.asked.host_name.clone(), told));
    let watches = Watches::new(&client);
    let name = inputs.node_name.clone();
    let follow = |network: &PodNetwork, own: Option<&str>| Joined {
        client: client.clone(),
        watches: watches.clone(),
        node: name.clone(),
        events: events.clone(),
        nodes: network.follow_nodes(&watches, own, sender.clone()),
    };
    let (joined, updates) = match (network, flags.network.proxy) {
        (None, _) => (None, watches.cluster(&name)),
        (Some(network), true) => (Some(follow(network, Some(&name))), watches.services()),
        (Some(network), false) => {
            // Nothing of these is needed, and more is never told.
            let known = [Kind::Service, Kind::EndpointSlice, Kind::Node].map(Update::Complete);
            (Some(follow(network, None)), stream::iter(known).chain(stream::pending()).boxed())
        }
    };
    tokio::spawn(pass_on(updates, sender));
    Ok(Source { inputs, client: Some(client), events, network: joined })
}

/// Passes updates on for as long as somebody takes them.
async fn pass_on(mut updates: BoxStream<'static, Update>, sender: mpsc::Sender<Update>) {
    while let Some(update) = updates.next().await {
        if sender.send(update).await.is_err() {
            return;
        }
    }
}
