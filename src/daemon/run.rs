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

use super::service_manager;
use super::supervise::{Supervised, supervise};
use crate::cluster::{Change, Family, Node};
use crate::config::checks;
use crate::config::effective::Effective;
use crate::config::flags::{Face, RunFlags};
use crate::config::kubeproxy::gates::{GATES, enabled};
use crate::http_server::StartError;
use crate::iptables::detect::{self, Found, Support};
use crate::iptables::ipvs_nftables::{self, NftTables};
use crate::kubernetes::api::Watches;
use crate::kubernetes::client::Connections;
use crate::kubernetes::events::{self, Event, Events};
use crate::netlink::sysctl::{allow_route_localnet, set_conntrack, set_oom_score_adj};
use crate::netlink::{Host, Kernel};
use crate::observe::health::SharedHealth;
use crate::observe::liveness::{POD_NETWORK, SERVICE_PROXY};
use crate::observe::metrics::Metrics;
use crate::observe::readiness::{Part, Readiness};
use crate::proxy::rules::inputs::Inputs;
use crate::proxy::rules::view::needs_route_localnet;
use crate::serve::status::StatusSources;
use crate::serve::status::server::{NodeSummary, StatusPage};
use crate::serve::{flanneld_health, healthz, metrics_server};

use super::config_watch::{self, Told};
use super::debug_pages::pages;
use super::logs;
use super::own_node;
use super::pod_network::{NetworkPart, PodNetwork, check_bridge_filter};
use super::proxy::{self, Opened, ProxyPart};
use super::setup::Setup;

/// How long the last Events may take to be told.
const LAST_EVENTS: Duration = Duration::from_secs(2);

/// Keeps this node's rules as they should be until it is told to end. The rules stay when it goes.
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

/// What is known of the cluster before anything is started.
struct Start {
    source: proxy::Source,
    /// The source as it is followed already.
    opened: Opened,
    inputs: Inputs,
    /// The way to the API server, if there is one.
    cluster: Option<Cluster>,
    events: Events,
    /// Sends Events, if there is an API server.
    sender: Option<EventSender>,
}

/// The part that sends Events.
#[derive(Clone)]
struct EventSender {
    client: Client,
    node: String,
    host: String,
    told: events::EventQueue,
}

impl EventSender {
    async fn run(self) -> anyhow::Result<()> {
        events::send(self.client, self.node, self.host, self.told).await;
        Ok(())
    }
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
    // They may hold the configuration of the health server.
    let manifests = match (&flags.manifests, &network) {
        (Some(_), Some(_)) => anyhow::bail!("--pod-network needs an API server: with --manifests rules can only be printed (--dry-run)"),
        (Some(path), None) => Some(start_manifests(path, &mut setup)?),
        (None, _) => None,
    };
    let health = SharedHealth::new(setup.effective.proxy.sync_period);
    let readiness = Readiness::new([Part::Start]);
    // Probes are answered from the beginning: while the API server is down, the kubelet must not kill this container for silence.
    let mut health_server = Box::pin(serve_health(&setup, (health.clone(), readiness.clone()), Arc::clone(&metrics), flags));
    let mut preparing = Box::pin(prepare(&setup, flags, (manifests, network, found), (Arc::clone(&metrics), readiness.clone())));
    let mut failed = None;
    let prepared = loop {
        tokio::select! {
            prepared = &mut preparing => break prepared?,
            cause = &mut health_server, if failed.is_none() => failed = Some(cause),
        }
    };
    let health_server = async move {
        match failed {
            Some(failed) => failed,
            None => health_server.await,
        }
    };
    match prepared {
        Some(prepared) => keep_running(&setup, flags, prepared, (health, readiness, metrics), health_server).await,
        None => Ok(()),
    }
}

/// Everything that has to be known and done before the parts are started.
struct Prepared {
    start: Start,
    network: Option<PodNetwork>,
    found: Found,
    families: Vec<Family>,
}

/// Prepares the start of the parts; `None` if there are none to start (`--init-only`).
async fn prepare(
    setup: &Setup,
    flags: &RunFlags,
    (manifests, network, found): (Option<Start>, Option<PodNetwork>, Found),
    (metrics, readiness): (Arc<Metrics>, Readiness),
) -> anyhow::Result<Option<Prepared>> {
    let proxy = flags.network.proxy;
    readiness.not_ready(Part::Start, "the API server is asked for this node's Node");
    let mut start = match manifests {
        Some(start) => start,
        None => start_api(setup, proxy, network.as_ref(), Arc::clone(&metrics)).await?,
    };
    let families = families((setup, flags), &found, &mut start, network.as_ref(), &readiness).await?;
    let names: Vec<&str> = families.iter().map(|family| family.as_str()).collect();
    tracing::info!("node {}, families {}", start.inputs.node_name, names.join(" and "));
    if proxy {
        set_kernel(setup, &start.inputs, &families, flags.proxy.init_only)?;
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
        set_oom_score_adj(&Kernel, daemon.oom_score_adj, daemon.oom_score_asked).await;
        start.events.tell(Event::starting());
    }
    Ok(Some(Prepared { start, network, found, families }))
}

/// Starts the parts of the daemon, and starts them again when they fail. Ends when the configuration, or a server, wants that.
async fn keep_running(
    setup: &Setup,
    flags: &RunFlags,
    Prepared { start, network, found, families }: Prepared,
    (health, readiness, metrics): (SharedHealth, Readiness, Arc<Metrics>),
    health_server: impl Future<Output = (&'static str, StartError)>,
) -> anyhow::Result<()> {
    let Effective { daemon, config, .. } = &setup.effective;
    let proxy = flags.network.proxy;
    let (of_rules, of_network) = parts(proxy, &families, network.as_ref());
    readiness.begin(of_rules.iter().chain(&of_network).copied());
    metrics.show_parts(&readiness);
    if !proxy {
        // No load balancer sends traffic here because of sepal, so the Node's taints do not count.
        health.node_seen(true);
    }
    let Start { source, opened, inputs, cluster, events, sender } = start;
    let board = StatusSources::default();
    let events = events.noted(board.recent.clone());
    let about = NodeSummary {
        node: inputs.node_name.clone(),
        version: env!("CARGO_PKG_VERSION"),
        iptables: format!("{} {} ({})", found.variant, found.version, found.reason),
        families: families.iter().map(|family| family.as_str()).collect(),
    };
    let site = StatusPage::new(about, board.clone(), readiness.clone(), Arc::clone(&metrics));
    let (settings, pod_rules) = (watch::Sender::new(None), watch::Sender::new(None));
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
            pod_rules: pod_rules.clone(),
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
        settings: settings.subscribe(),
        pod_rules: pod_rules.subscribe(),
    });
    let supervised = |name, parts| Supervised { name, parts, readiness: readiness.clone(), events: events.clone() };
    let rules = supervise(supervised(SERVICE_PROXY, of_rules), || Rc::clone(&rules_part).run());
    let network = async {
        match &network_part {
            Some(part) => supervise(supervised(POD_NETWORK, of_network), || Rc::clone(part).run()).await,
            None => std::future::pending().await,
        }
    };
    let mut helpers = Box::pin(supervise_helpers(&supervised, sender.as_ref(), &readiness));
    let (configz, shown) = watch::channel(serde_json::to_value(config)?);
    let failed = tokio::select! {
        failed = health_server => failed,
        failed = serve_metrics(setup, (Arc::clone(&metrics), shown, site), flags) => failed,
        changed = config_watch::follow(flags, setup.typed.clone(), Told { settings, configz }) => {
            let Err(error) = changed;
            return Err(error);
        }
        never = rules => match never {},
        never = network => match never {},
        never = &mut helpers => match never {},
    };
    // The Event about it still has to be sent.
    tokio::select! {
        error = last_words(&events, failed) => Err(error),
        never = helpers => match never {},
    }
}

/// Runs the parts that do not make the network: they send Events, and tell the service manager when all is ready.
async fn supervise_helpers(
    supervised: &impl Fn(&'static str, Vec<Part>) -> Supervised,
    sender: Option<&EventSender>,
    readiness: &Readiness,
) -> Infallible {
    let events = async {
        match sender {
            Some(sender) => supervise(supervised("sender of Events", Vec::new()), || sender.clone().run()).await,
            None => std::future::pending().await,
        }
    };
    let notifier = supervise(supervised("notification of the service manager", Vec::new()), || {
        let readiness = readiness.clone();
        async {
            service_manager::tell_ready(readiness).await;
            std::future::pending().await
        }
    });
    tokio::select! {
        never = events => match never {},
        never = notifier => match never {},
    }
}

/// The parts of the daemon: those of the service proxy, which writes all rules, and those of the pod network.
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

/// Runs the health server. Ends only with `bindAddressHardFail`, when it cannot listen.
async fn serve_health(
    setup: &Setup,
    (health, readiness): (SharedHealth, Readiness),
    metrics: Arc<Metrics>,
    flags: &RunFlags,
) -> (&'static str, StartError) {
    let daemon = &setup.effective.daemon;
    if flags.proxy.init_only {
        return std::future::pending().await;
    }
    if let Face::Flanneld { healthz } = &flags.face {
        let Some(place) = healthz else { return std::future::pending().await };
        let Err(failed) = flanneld_health::serve(place, readiness).await;
        return ("FailedToStartHealthz", failed);
    }
    let answered = Arc::new(move |probe, status: hyper::StatusCode| match probe {
        healthz::HealthPath::Healthz => metrics.healthz(status.as_u16()),
        healthz::HealthPath::Livez => metrics.livez(status.as_u16()),
    });
    let Some(address) = daemon.healthz else { return std::future::pending().await };
    let tables = healthz::HealthSources { health, readiness, readyz: flags.face == Face::Sepal };
    let Err(failed) = healthz::serve(address, daemon.hard_fail, tables, answered).await;
    ("FailedToStartProxierHealthcheck", failed)
}

/// Runs the metrics server. Ends only with `bindAddressHardFail`, when it cannot listen.
async fn serve_metrics(
    setup: &Setup,
    (metrics, configz, site): (Arc<Metrics>, watch::Receiver<serde_json::Value>, StatusPage),
    flags: &RunFlags,
) -> (&'static str, StartError) {
    if matches!(flags.face, Face::Flanneld { .. }) {
        return std::future::pending().await;
    }
    let daemon = &setup.effective.daemon;
    let pages = pages(&setup.effective, flags, metrics, configz, site);
    let Err(failed) = metrics_server::serve(daemon.metrics, daemon.hard_fail, pages).await;
    ("FailedToStartMetricServer", failed)
}

/// Sends an Event about the failure that ends the program.
async fn last_words(events: &Events, (reason, failed): (&'static str, StartError)) -> anyhow::Error {
    events.tell(Event::cannot_listen(reason, failed.to_string()));
    let _ = tokio::time::timeout(LAST_EVENTS, events.sent()).await;
    failed.into()
}

/// The families to run, once this node's Node is known as far as that has to be waited for.
async fn families(
    (setup, flags): (&Setup, &RunFlags),
    found: &Found,
    start: &mut Start,
    network: Option<&PodNetwork>,
    readiness: &Readiness,
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
        let any_family = usable.len() == Family::ALL.len();
        let awaited = own_node::Awaited { any_family, assigned, pod_network: network.is_some() };
        if let Some(node) = own_node::wait(client, setup, &start.inputs, awaited, readiness).await? {
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
    Ok(Start { source, opened, inputs, cluster: None, events: Events::none(), sender: None })
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
    let host = setup.asked.host_name.clone();
    let sender = Some(EventSender { client: client.clone(), node: inputs.node_name.clone(), host, told });
    let watches = Watches::new(&client);
    let node = inputs.node_name.clone();
    let source = if proxy { proxy::Source::Cluster { watches: watches.clone(), node } } else { proxy::Source::Nothing };
    Ok(Start { opened: source.follow(), source, inputs, cluster: Some(Cluster { client, connections, watches }), events, sender })
}
