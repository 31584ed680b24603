//! Runs the service proxy as a part of the daemon: opens the source of its objects, and runs the loop of [`crate::proxy::sync`]. The loop
//! writes all rules, also those of the pod network. With `--proxy=false` it writes only those.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, bail};
use futures::StreamExt;
use futures::stream::BoxStream;
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use super::manifest_watch::follow;
use super::supervise::Tasks;
use crate::cluster::Family;
use crate::cluster::pod_rules::PodRules;
use crate::config::flags::TrafficFlag;
use crate::config::manifest_files::ManifestFiles;
use crate::config::settings::RequestedSettings;
use crate::file_watch::FileWatch;
use crate::iptables::exec::Exec;
use crate::kubernetes::api::Watches;
use crate::kubernetes::events::Events;
use crate::kubernetes::{self, Kind};
use crate::netlink::Kernel;
use crate::observe::health::SharedHealth;
use crate::observe::metrics::Metrics;
use crate::observe::readiness::Readiness;
use crate::proxy::conntrack::Reconciler;
use crate::proxy::conntrack::flows::KernelFlows;
use crate::proxy::rules::inputs::Inputs;
use crate::proxy::settings::ProxySettings;
use crate::proxy::sync::flow_loop;
use crate::proxy::sync::proxy_loop::ProxyLoop;
use crate::proxy::sync::report::Report;
use crate::proxy::sync::update::Update;
use crate::proxy::traffic::{self, FinalCounters};
use crate::serve;
use crate::serve::status::StatusSources;

/// Updates that the channel to the loop holds. Their source waits when it is full.
const UPDATES: usize = 1024;

/// The source of Services, EndpointSlices and the Node.
#[derive(Clone)]
pub(crate) enum ObjectSource {
    /// Manifests.
    Manifests {
        /// Their path; `-` for standard input.
        path: PathBuf,
        /// Settings that the manifests may override.
        requested: Box<RequestedSettings>,
    },
    /// An API server.
    Cluster {
        /// Its watches.
        watches: Watches,
        /// This node's name.
        node: String,
    },
    /// No objects are needed.
    None,
}

/// An open source, with the tasks that follow it.
pub(crate) struct OpenSource {
    updates: mpsc::Receiver<Update>,
    sender: mpsc::Sender<Update>,
    tasks: Tasks,
}

impl ObjectSource {
    /// Opens an API server, or the empty source.
    pub(crate) fn open(&self) -> OpenSource {
        let (sender, updates) = mpsc::channel(UPDATES);
        let mut tasks = Tasks::default();
        match self {
            Self::Cluster { watches, node } => tasks.spawn("watch of the cluster", forward_updates(watches.cluster(node), sender.clone())),
            Self::Manifests { .. } | Self::None => send_complete(&sender),
        }
        OpenSource { updates, sender, tasks }
    }

    /// Opens manifests. Returns also the inputs of the rules, and the KubeProxyConfiguration among the manifests.
    ///
    /// # Errors
    /// They cannot be read.
    pub(crate) fn open_manifests(path: &Path, requested: &RequestedSettings) -> anyhow::Result<(OpenSource, Inputs, Option<Value>)> {
        let (sender, updates) = mpsc::channel(UPDATES);
        let mut tasks = Tasks::default();
        let standard_input = path == Path::new("-");
        let watch =
            if standard_input { None } else { Some(FileWatch::new(path).with_context(|| format!("cannot watch {}", path.display()))?) };
        let mut files = ManifestFiles::new(path.to_owned(), requested.clone());
        let inputs = files.read()?;
        let configuration = files.configuration().cloned();
        send_complete(&sender);
        // Standard input is read once.
        if let Some(watch) = watch {
            tasks.spawn("watch of the manifests", follow(files, watch, sender.clone()));
        }
        Ok((OpenSource { updates, sender, tasks }, inputs, configuration))
    }
}

/// Reports that every object is listed. The channel is empty, so there is room.
fn send_complete(sender: &mpsc::Sender<Update>) {
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
        let _ = sender.try_send(Update::Cluster(kubernetes::ClusterUpdate::Complete(kind)));
    }
}

/// The service proxy as a part of the daemon. Each start of the part makes a new loop from it.
pub(crate) struct ProxyPart {
    pub source: ObjectSource,
    /// The inputs of the rules at the start of the daemon.
    pub inputs: Inputs,
    /// The source that was opened at the start of the daemon. The first start of the part takes it; later ones open the source again.
    pub opened: RefCell<Option<OpenSource>>,
    pub exec: Exec,
    pub random_fully: bool,
    pub families: Vec<Family>,
    /// `--service-traffic`.
    pub traffic: TrafficFlag,
    /// The daemon has a health server.
    pub health_server: bool,
    pub metrics: Arc<Metrics>,
    pub health: SharedHealth,
    pub events: Events,
    pub readiness: Readiness,
    pub board: StatusSources,
    /// Receives settings when the configuration file changes.
    pub settings: watch::Receiver<Option<ProxySettings>>,
    /// Receives the input of the pod network's rules.
    pub pod_rules: watch::Receiver<Option<PodRules>>,
}

impl ProxyPart {
    /// Runs the loop and its tasks until one of them fails.
    ///
    /// # Errors
    /// The source of objects or another task has ended.
    pub(crate) async fn run(self: Rc<Self>) -> anyhow::Result<()> {
        let (opened, mut inputs) = self.open()?;
        let OpenSource { updates, sender, mut tasks } = opened;
        let (mut settings, mut pod_rules) = (self.settings.clone(), self.pod_rules.clone());
        inputs.settings = settings.borrow_and_update().clone().unwrap_or(inputs.settings);
        inputs.pod_rules = pod_rules.borrow_and_update().clone().or(inputs.pod_rules);
        tasks.spawn("watch of the settings", forward_values(settings, sender.clone(), |settings| Update::Settings(Box::new(settings))));
        tasks.spawn("watch of the pod network's rules", forward_values(pod_rules, sender, |rules| Update::PodRules(Box::new(rules))));
        let proxy_loop = self.build_loop(inputs, &mut tasks);
        tokio::select! {
            () = proxy_loop.run(updates) => bail!("the source of updates has ended"),
            error = tasks.ended() => Err(error),
        }
    }

    /// Makes the loop, and starts the tasks for connection tracking and traffic counters.
    fn build_loop(&self, inputs: Inputs, tasks: &mut Tasks) -> ProxyLoop<Exec, Kernel> {
        let with_proxy = !inputs.without_proxy;
        let report =
            Report::new(Arc::clone(&self.metrics), self.health.clone(), self.events.clone()).with_readiness(self.readiness.clone());
        let proxy_loop = ProxyLoop::new(self.exec.clone(), Kernel, self.random_fully, inputs, report);
        let mut proxy_loop = proxy_loop.with_queries(&self.board.proxy, serve::status::answer);
        for family in &self.families {
            let sender = with_proxy.then(|| {
                let (sender, pending) = flow_loop::channel();
                let cleanup = flow_loop::run(Reconciler::new(*family), KernelFlows, Arc::clone(&self.metrics), pending);
                tasks.spawn("conntrack cleanup", cleanup);
                sender
            });
            proxy_loop = proxy_loop.with_family(*family, sender);
        }
        if with_proxy && self.traffic != TrafficFlag::Off {
            let (final_counters, any_size) = (FinalCounters::default(), self.traffic == TrafficFlag::On);
            proxy_loop = proxy_loop.with_final_counters(&final_counters);
            let (exec, families, metrics) = (self.exec.clone(), self.families.clone(), Arc::clone(&self.metrics));
            tasks.spawn_local("traffic counters", traffic::run(exec, families, final_counters, metrics, any_size));
        }
        if with_proxy {
            proxy_loop = proxy_loop.with_health_checks(self.health_server);
        }
        proxy_loop
    }

    fn open(&self) -> anyhow::Result<(OpenSource, Inputs)> {
        let inputs = self.inputs.clone();
        if let Some(opened) = self.opened.take() {
            return Ok((opened, inputs));
        }
        match &self.source {
            ObjectSource::Manifests { path, requested } if path != Path::new("-") => {
                ObjectSource::open_manifests(path, requested).map(|(opened, inputs, _)| (opened, inputs))
            }
            source => Ok((source.open(), inputs)),
        }
    }
}

/// Sends each update to the loop, until the channel closes.
async fn forward_updates(mut updates: BoxStream<'static, kubernetes::ClusterUpdate>, sender: mpsc::Sender<Update>) {
    while let Some(update) = updates.next().await {
        if sender.send(update.into()).await.is_err() {
            return;
        }
    }
}

/// Sends each new value to the loop. Does not end when the sender of the values is gone.
async fn forward_values<T: Clone>(mut values: watch::Receiver<Option<T>>, sender: mpsc::Sender<Update>, update: impl Fn(T) -> Update) {
    while values.changed().await.is_ok() {
        let value = values.borrow_and_update().clone();
        if let Some(value) = value
            && sender.send(update(value)).await.is_err()
        {
            return;
        }
    }
    std::future::pending::<()>().await;
}
