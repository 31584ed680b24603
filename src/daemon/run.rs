//! `sepal run`: starts the daemon in kube-proxy's order [kube-proxy 1.1], and runs its parts until it has to end.

use std::cell::RefCell;
use std::convert::Infallible;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::config_watch::{self, ConfigSenders};
use super::network_setup::NetworkSetup;
use super::pod_network::NetworkPart;
use super::prepare::{ApiAccess, EventSender, ObjectOrigin, Prepared, find_iptables, open_manifests, prepare};
use super::proxy::ProxyPart;
use super::servers::{ServerFailure, serve_health, serve_metrics};
use super::service_manager;
use super::setup::Setup;
use super::supervise::{Supervised, supervise};
use crate::cluster::Family;
use crate::cluster::pod_rules::PodRules;
use crate::config::flags::RunFlags;
use crate::iptables::detect::Found;
use crate::kubernetes::events::{Event, Events};
use crate::netlink::Kernel;
use crate::observe::health::SharedHealth;
use crate::observe::liveness::{POD_NETWORK, SERVICE_PROXY};
use crate::observe::metrics::Metrics;
use crate::observe::readiness::{Part, Readiness};
use crate::proxy::settings::ProxySettings;
use crate::serve::status::StatusSources;
use crate::serve::status::server::{NodeSummary, StatusPage};

/// Time limit for sending the last Events.
const LAST_EVENTS: Duration = Duration::from_secs(2);

/// Runs the daemon until a signal or a failure ends it. The rules stay.
pub(crate) async fn run(setup: Setup, flags: RunFlags) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        ended = start(setup, &flags) => ended?,
        _ = terminate.recv() => tracing::info!("terminated; the rules stay"),
        _ = interrupt.recv() => tracing::info!("interrupted; the rules stay"),
    }
    Ok(ExitCode::SUCCESS)
}

async fn start(mut setup: Setup, flags: &RunFlags) -> anyhow::Result<()> {
    let network = NetworkSetup::new(flags)?;
    let proxy = flags.network.proxy;
    anyhow::ensure!(proxy || network.is_some(), "--proxy=false without --pod-network leaves nothing to do");
    let metrics = Arc::new(Metrics::new(Kernel));
    let found = find_iptables(flags, proxy, network.is_some()).await?;
    metrics.iptables(&found);
    // Manifests are opened first: they may hold the configuration of the health server.
    let manifests = match (&flags.manifests, &network) {
        (Some(_), Some(_)) => anyhow::bail!("--pod-network needs an API server: with --manifests rules can only be printed (--dry-run)"),
        (Some(path), None) => Some(open_manifests(path, &mut setup)?),
        (None, _) => None,
    };
    let report = Reporting {
        health: SharedHealth::new(setup.effective.proxy.sync_period),
        readiness: Readiness::new([Part::Start]),
        metrics: Arc::clone(&metrics),
    };
    // The health server runs from the beginning. Without it, the kubelet would kill this container while the API server is down.
    let tables = (report.health.clone(), report.readiness.clone());
    let mut health_server = Box::pin(serve_health(&setup, tables, Arc::clone(&metrics), flags));
    let mut preparing = Box::pin(prepare(&setup, flags, (manifests, network, found), (metrics, report.readiness.clone())));
    let mut failed = None;
    let prepared = loop {
        tokio::select! {
            prepared = &mut preparing => break prepared?,
            failure = &mut health_server, if failed.is_none() => failed = Some(failure),
        }
    };
    let health_server = async move {
        match failed {
            Some(failure) => failure,
            None => health_server.await,
        }
    };
    match prepared {
        Some(prepared) => run_parts(&setup, flags, prepared, report, health_server).await,
        None => Ok(()),
    }
}

/// The values that the parts report to.
struct Reporting {
    health: SharedHealth,
    readiness: Readiness,
    metrics: Arc<Metrics>,
}

/// Runs the parts of the daemon, and restarts them when they fail. Ends when the configuration needs a restart of the program, or when a
/// server cannot listen.
async fn run_parts(
    setup: &Setup,
    flags: &RunFlags,
    Prepared { origin, network, found, families }: Prepared,
    report: Reporting,
    health_server: impl Future<Output = ServerFailure>,
) -> anyhow::Result<()> {
    let Reporting { health, readiness, metrics } = &report;
    let proxy = flags.network.proxy;
    let (rule_parts, network_parts) = readiness_parts(proxy, &families, network.as_ref());
    readiness.begin(rule_parts.iter().chain(&network_parts).copied());
    metrics.show_parts(readiness);
    if !proxy {
        // No load balancer sends traffic here because of sepal, so the Node's taints do not count.
        health.node_seen(true);
    }
    let board = StatusSources::default();
    let events = origin.events.clone().noted(board.recent.clone());
    let site = StatusPage::new(about(&origin, &found, &families), board.clone(), readiness.clone(), Arc::clone(metrics));
    let settings = watch::Sender::new(None);
    let event_sender = origin.event_sender.clone();
    let (rules, network) = build_parts((setup, flags), Prepared { origin, network, found, families }, &report, (&events, board), &settings);
    let supervised = |name, parts| Supervised { name, parts, readiness: readiness.clone(), events: events.clone() };
    let rules = supervise(supervised(SERVICE_PROXY, rule_parts), || Rc::clone(&rules).run());
    let network = async {
        match &network {
            Some(part) => supervise(supervised(POD_NETWORK, network_parts), || Rc::clone(part).run()).await,
            None => std::future::pending().await,
        }
    };
    let mut helpers = Box::pin(supervise_helpers(&supervised, event_sender.as_ref(), readiness));
    let (configz, shown) = watch::channel(serde_json::to_value(&setup.effective.config)?);
    let failure = tokio::select! {
        failure = health_server => failure,
        failure = serve_metrics(setup, (Arc::clone(metrics), shown, site), flags) => failure,
        changed = config_watch::follow(flags, setup.without_manifests.clone(), ConfigSenders { settings, configz }) => {
            let Err(error) = changed;
            return Err(error);
        }
        never = rules => match never {},
        never = network => match never {},
        never = &mut helpers => match never {},
    };
    // The sender of Events is among the helpers: it has to send the Event about the failure.
    tokio::select! {
        error = send_failure(&events, failure) => Err(error),
        never = helpers => match never {},
    }
}

/// What the status page shows about this process.
fn about(origin: &ObjectOrigin, found: &Found, families: &[Family]) -> NodeSummary {
    NodeSummary {
        node: origin.inputs.node_name.clone(),
        version: env!("CARGO_PKG_VERSION"),
        iptables: format!("{} {} ({})", found.variant, found.version, found.reason),
        families: families.iter().map(|family| family.as_str()).collect(),
    }
}

/// Builds the part that writes rules, and the pod network if it is switched on.
fn build_parts(
    (setup, flags): (&Setup, &RunFlags),
    Prepared { origin, network, found, families }: Prepared,
    Reporting { health, readiness, metrics }: &Reporting,
    (events, board): (&Events, StatusSources),
    settings: &watch::Sender<Option<ProxySettings>>,
) -> (Rc<ProxyPart>, Option<Rc<NetworkPart>>) {
    let ObjectOrigin { source, opened, inputs, api, .. } = origin;
    let pod_rules: watch::Sender<Option<PodRules>> = watch::Sender::new(None);
    let network_part = network.zip(api).map(|(setup, ApiAccess { client, connections, watches })| {
        Rc::new(NetworkPart {
            setup,
            client,
            connections,
            watches,
            node: inputs.node_name.clone(),
            metrics: Arc::clone(metrics),
            events: events.clone(),
            readiness: readiness.clone(),
            board: board.clone(),
            pod_rules: pod_rules.clone(),
        })
    });
    let rules_part = Rc::new(ProxyPart {
        source,
        inputs,
        opened: RefCell::new(Some(opened)),
        random_fully: found.random_fully(),
        exec: found.exec,
        families,
        traffic: flags.service_traffic,
        health_server: setup.effective.daemon.healthz.is_some(),
        metrics: Arc::clone(metrics),
        health: health.clone(),
        events: events.clone(),
        readiness: readiness.clone(),
        board,
        settings: settings.subscribe(),
        pod_rules: pod_rules.subscribe(),
    });
    (rules_part, network_part)
}

/// Runs the parts that do not make the network: the sender of Events, and the report to the service manager.
async fn supervise_helpers(
    supervised: &impl Fn(&'static str, Vec<Part>) -> Supervised,
    event_sender: Option<&EventSender>,
    readiness: &Readiness,
) -> Infallible {
    let events = async {
        match event_sender {
            Some(sender) => supervise(supervised("sender of Events", Vec::new()), || sender.clone().run()).await,
            None => std::future::pending().await,
        }
    };
    let notifier = supervise(supervised("notification of the service manager", Vec::new()), || {
        let readiness = readiness.clone();
        async {
            service_manager::notify_ready(readiness).await;
            std::future::pending().await
        }
    });
    tokio::select! {
        never = events => match never {},
        never = notifier => match never {},
    }
}

/// The entries of the readiness table: those of the service proxy, which writes all rules, and those of the pod network.
fn readiness_parts(proxy: bool, families: &[Family], network: Option<&NetworkSetup>) -> (Vec<Part>, Vec<Part>) {
    let proxy_parts = families.iter().filter(|_| proxy).map(|family| Part::Proxy(*family));
    let (pod_rules, others): (Vec<Part>, Vec<Part>) =
        network.map(NetworkSetup::parts).unwrap_or_default().into_iter().partition(|part| matches!(part, Part::PodRules(_)));
    (proxy_parts.chain(pod_rules).collect(), others)
}

/// Sends an Event about the failure that ends the program.
async fn send_failure(events: &Events, (reason, failure): ServerFailure) -> anyhow::Error {
    events.tell(Event::cannot_listen(reason, failure.to_string()));
    let _ = tokio::time::timeout(LAST_EVENTS, events.sent()).await;
    failure.into()
}
