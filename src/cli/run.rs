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
use crate::agent::readiness::{Part, Readiness};
use crate::agent::report::Report;
use crate::agent::{healthz, metrics_server};
use crate::cluster::{Change, Family, Node};
use crate::config::checks;
use crate::config::effective::Effective;
use crate::config::flags::RunFlags;
use crate::config::kubeproxy::gates::{GATES, enabled};
use crate::conntrack::Reconciler;
use crate::conntrack::flows::KernelFlows;
use crate::iptables::detect::Support;
use crate::iptables::{detect, other_modes};
use crate::netlink::sysctl::{allow_route_localnet, set_conntrack, set_oom_score_adj};
use crate::netlink::{Host, Kernel};
use crate::rules::inputs::Inputs;
use crate::rules::view::needs_route_localnet;
use crate::source::api;
use crate::source::follow::{Files, Watch, follow};
use crate::source::{Kind, Update};

use super::config_watch::{self, Told};
use super::own_node;
use super::pages::pages;
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
    let mut source = match &flags.manifests {
        Some(path) => start_manifests(path, &setup, sender.clone()).await?,
        None => start_api(&setup, sender.clone(), Arc::clone(&metrics)).await?,
    };
    let support = detect::support(&found, Kernel.ipv6_enabled()).await;
    let both = support.usable()?.len() == Family::ALL.len();
    if let Some(client) = &source.client
        && let Some(node) = own_node::wait(client, &setup, &source.inputs, both).await?
    {
        source.inputs.snapshot.apply(Change::Node(Some(node)));
    }
    let families = families(&setup, &support, source.inputs.snapshot.node())?;
    let names: Vec<&str> = families.iter().map(|family| family.as_str()).collect();
    tracing::info!("node {}, families {}", source.inputs.node_name, names.join(" and "));

    let Effective { proxy, daemon, config, .. } = &setup.effective;
    set_conntrack(&Kernel, &daemon.conntrack)?;
    // The loop does this, too; here it tells early, and is all there is with --init-only.
    if families.contains(&Family::V4)
        && source.inputs.knows_node_ip()
        && needs_route_localnet(&source.inputs.settings, source.inputs.snapshot.node())
    {
        let whose = if families.len() > 1 { "ipv4 proxier" } else { "proxier" };
        allow_route_localnet(&Kernel).with_context(|| format!("unable to create {whose}"))?;
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
    let readiness = Readiness::new(families.iter().copied().map(Part::Proxy));
    metrics.parts(&readiness);
    let report = Report::new(Arc::clone(&metrics), health.clone(), source.events.clone()).with_readiness(readiness.clone());
    let random_fully = found.random_fully();
    let mut proxy_loop = ProxyLoop::new(found.exec, Kernel, random_fully, source.inputs, report);
    for family in families {
        let (teller, unheard) = flow_loop::channel();
        tokio::spawn(flow_loop::run(Reconciler::new(family), KernelFlows, Arc::clone(&metrics), unheard));
        proxy_loop = proxy_loop.with_family(family, Some(teller));
    }
    proxy_loop = proxy_loop.with_health_checks(daemon.healthz.is_some());
    let (configz, shown) = watch::channel(serde_json::to_value(config)?);
    source.events.tell(Event::starting());
    tokio::select! {
        failed = serve(&setup, (health, readiness), Arc::clone(&metrics), shown, flags) => Err(last_words(&source.events, failed).await),
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
    (health, readiness): (SharedHealth, Readiness),
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
    let readiness = (!flags.as_kube_proxy).then_some(readiness);
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
