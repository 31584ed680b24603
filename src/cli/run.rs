//! `sepal run`: the daemon. Its start is in kube-proxy's order (spec section 1.1).

use std::convert::Infallible;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures::StreamExt;
use kube::Client;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::agent::events::{self, Event, Events};
use crate::agent::flow_loop;
use crate::agent::health::SharedHealth;
use crate::agent::http::StartError;
use crate::agent::metrics::Metrics;
use crate::agent::proxy_loop::ProxyLoop;
use crate::agent::report::Report;
use crate::agent::{healthz, metrics_server};
use crate::cluster::{Family, Node};
use crate::config::checks;
use crate::config::effective::Effective;
use crate::config::flags::RunFlags;
use crate::config::kubeproxy::gates::{GATES, enabled};
use crate::conntrack::Reconciler;
use crate::conntrack::flows::KernelFlows;
use crate::iptables::detect::Found;
use crate::iptables::{detect, other_modes};
use crate::netlink::sysctl::{allow_route_localnet, set_conntrack, set_oom_score_adj};
use crate::netlink::{Host, Kernel};
use crate::rules::inputs::Inputs;
use crate::rules::view::needs_route_localnet;
use crate::source::api;
use crate::source::follow::{Files, Watch, follow};
use crate::source::{Kind, Update};

use super::config_watch::{self, Told};
use super::pages::pages;
use super::setup::Setup;

/// Updates that may wait for the loop before their source has to wait, too.
const WAITING_UPDATES: usize = 1024;

/// How long the Node may take to show an IP where the primary family hangs on it (spec section 1.5).
const NODE_IP_TRIES: u32 = 30;
const NODE_IP_PAUSE: Duration = Duration::from_secs(1);

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
}

async fn start(setup: Setup, flags: &RunFlags) -> anyhow::Result<()> {
    let metrics = Arc::new(Metrics::new(Kernel));
    let mut found = detect::find(flags.iptables_variant.wanted()).await?;
    tracing::info!("iptables {} ({}): {}", found.variant, found.version, found.reason);
    for family in found.find_doubles().await {
        tracing::warn!(
            "{family}: iptables-{other} holds KUBE-* rules, too, and packets go through both: services may answer that are gone. Remove those \
             rules with: sepal cleanup --iptables-variant {other}",
            other = found.variant.other(),
        );
    }
    metrics.iptables(&found);
    for left in other_modes::delete_nftables().await {
        tracing::debug!("{left}");
    }
    let (sender, updates) = mpsc::channel(WAITING_UPDATES);
    let source = match &flags.manifests {
        Some(path) => start_manifests(path, &setup, sender.clone()).await?,
        None => start_api(&setup, sender.clone(), Arc::clone(&metrics)).await?,
    };
    let families = families(&setup, &found, &source).await?;
    let names: Vec<&str> = families.iter().map(|family| family.as_str()).collect();
    tracing::info!("node {}, families {}", source.inputs.node_name, names.join(" and "));

    let Effective { proxy, daemon, config, .. } = &setup.effective;
    set_conntrack(&Kernel, &daemon.conntrack)?;
    if families.contains(&Family::V4) && needs_route_localnet(proxy, source.inputs.snapshot.node()) {
        allow_route_localnet(&Kernel)?;
    }
    if flags.proxy.init_only {
        tracing::info!("--init-only: kernel settings are as they should be");
        return Ok(());
    }
    set_oom_score_adj(&Kernel, daemon.oom_score_adj).await;
    for gate in GATES {
        metrics.feature(gate.name, gate.stage, enabled(&config.feature_gates, gate.name));
    }

    let health = SharedHealth::new(proxy.sync_period);
    let report = Report::new(Arc::clone(&metrics), health.clone(), source.events.clone());
    let random_fully = found.random_fully();
    let mut proxy_loop = ProxyLoop::new(found.exec, Kernel, random_fully, source.inputs, report);
    for family in families {
        let (told, news) = watch::channel(None);
        tokio::spawn(flow_loop::run(Reconciler::new(family), KernelFlows, Arc::clone(&metrics), news));
        proxy_loop = proxy_loop.with_family(family, Some(told));
    }
    proxy_loop = proxy_loop.with_health_checks(daemon.healthz.is_some());
    let (configz, shown) = watch::channel(serde_json::to_value(config)?);
    source.events.tell(Event::starting());
    tokio::select! {
        failed = serve(&setup, health, Arc::clone(&metrics), shown, flags) => Err(last_words(&source.events, failed).await),
        changed = config_watch::follow(flags, setup.effective.clone(), Told { updates: sender, configz }) => {
            let Err(error) = changed;
            Err(error)
        }
        () = proxy_loop.run(updates) => anyhow::bail!("the source of updates has ended"),
    }
}

/// Runs the health and the metrics server; ends only with `bindAddressHardFail`, when one of them cannot listen.
async fn serve(
    setup: &Setup,
    health: SharedHealth,
    metrics: Arc<Metrics>,
    configz: watch::Receiver<serde_json::Value>,
    flags: &RunFlags,
) -> (&'static str, StartError) {
    let daemon = &setup.effective.daemon;
    let counts = Arc::clone(&metrics);
    let answered = Arc::new(move |probe, status: hyper::StatusCode| match probe {
        healthz::Probe::Healthz => counts.healthz(status.as_u16()),
        healthz::Probe::Livez => counts.livez(status.as_u16()),
    });
    let healthz = async {
        match daemon.healthz {
            Some(address) => healthz::serve(address, daemon.hard_fail, health, answered).await,
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
async fn families(setup: &Setup, found: &Found, source: &Source) -> anyhow::Result<Vec<Family>> {
    let support = detect::support(found, Kernel.ipv6_enabled()).await;
    let both = support.usable()?.len() == Family::ALL.len();
    let node = match &source.client {
        Some(client) => own_node(client, setup, &source.inputs.node_name, both).await,
        None => source.inputs.snapshot.node().cloned(),
    };
    let of_node = node.as_ref().and_then(|node| node.addresses.first()).copied();
    let primary = setup.effective.proxy.bind_address.or(of_node).map_or(Family::V4, Family::of);
    let mut families = support.to_run(primary)?;
    let pod_cidrs = node.map(|node| node.pod_cidrs).unwrap_or_default();
    for mismatch in checks::mismatches(&setup.effective, primary, &families, &pod_cidrs) {
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

/// This node's Node, as far as it matters now: where only one family can be programmed, its IP says whether that is the right one, and it
/// is waited for.
async fn own_node(client: &Client, setup: &Setup, node_name: &str, any_family: bool) -> Option<Node> {
    let patient = !any_family && setup.effective.proxy.bind_address.is_none();
    for _ in 0..NODE_IP_TRIES {
        match api::node(client, node_name).await {
            Ok(node) if !patient || node.as_ref().is_some_and(|node| !node.addresses.is_empty()) => return node,
            Ok(_) => {}
            Err(error) if patient => tracing::warn!("{error:#}"),
            Err(error) => {
                tracing::debug!("{error:#}");
                return None;
            }
        }
        tokio::time::sleep(NODE_IP_PAUSE).await;
    }
    tracing::error!("can't determine this node's IP: Node {node_name} shows none; taken to be IPv4");
    None
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
    Ok(Source { inputs, client: None, events: Events::none() })
}

async fn start_api(setup: &Setup, sender: mpsc::Sender<Update>, metrics: Arc<Metrics>) -> anyhow::Result<Source> {
    let inputs = setup.empty_inputs();
    let client = setup.connection.observed_client(metrics).await?;
    let mut stream = api::updates(&client, &inputs.node_name);
    tokio::spawn(async move {
        while let Some(update) = stream.next().await {
            if sender.send(update).await.is_err() {
                return;
            }
        }
    });
    let (events, told) = Events::channel();
    tokio::spawn(events::send(client.clone(), inputs.node_name.clone(), setup.asked.host_name.clone(), told));
    Ok(Source { inputs, client: Some(client), events })
}
