//! The service proxy's part of the daemon: its source of objects and its loop, started as often as it takes. It owns the rules; those of
//! the pod network are written by it, too, and where the proxy is off only those.

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
use crate::config::manifest_files::Files;
use crate::config::settings::Asked;
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

/// Updates that may wait for the loop before their source has to wait, too.
const WAITING_UPDATES: usize = 1024;

/// Where objects come from.
#[derive(Clone)]
pub(crate) enum Source {
    /// Manifests.
    Manifests {
        /// Their path; `-` for standard input.
        path: PathBuf,
        /// What is asked for beside them.
        asked: Box<Asked>,
    },
    /// An API server.
    Cluster {
        /// Its watches.
        watches: Watches,
        /// This node's name.
        node: String,
    },
    /// No objects are needed.
    Nothing,
}

/// A source that is being followed.
pub(crate) struct Opened {
    updates: mpsc::Receiver<Update>,
    sender: mpsc::Sender<Update>,
    tasks: Tasks,
}

impl Source {
    /// Begins to follow an API server, or nothing.
    pub(crate) fn follow(&self) -> Opened {
        let (sender, updates) = mpsc::channel(WAITING_UPDATES);
        let mut tasks = Tasks::default();
        match self {
            Self::Cluster { watches, node } => tasks.spawn("watch of the cluster", pass_on(watches.cluster(node), sender.clone())),
            Self::Manifests { .. } | Self::Nothing => tell_complete(&sender),
        }
        Opened { updates, sender, tasks }
    }

    /// Begins to follow manifests, and gives what they say now: what rules are computed from, and the KubeProxyConfiguration among them.
    ///
    /// # Errors
    /// They cannot be read.
    pub(crate) fn read(path: &Path, asked: &Asked) -> anyhow::Result<(Opened, Inputs, Option<Value>)> {
        let (sender, updates) = mpsc::channel(WAITING_UPDATES);
        let mut tasks = Tasks::default();
        let standard_input = path == Path::new("-");
        let watch =
            if standard_input { None } else { Some(FileWatch::new(path).with_context(|| format!("cannot watch {}", path.display()))?) };
        let mut files = Files::new(path.to_owned(), asked.clone());
        let inputs = files.read()?;
        let configuration = files.configuration().cloned();
        tell_complete(&sender);
        // Standard input says it once, and that holds.
        if let Some(watch) = watch {
            tasks.spawn("watch of the manifests", follow(files, watch, sender.clone()));
        }
        Ok((Opened { updates, sender, tasks }, inputs, configuration))
    }
}

/// Every object has been told. The channel is empty, so there is room.
fn tell_complete(sender: &mpsc::Sender<Update>) {
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
        let _ = sender.try_send(Update::Cluster(kubernetes::ClusterUpdate::Complete(kind)));
    }
}

/// What the loop is made from.
pub(crate) struct ProxyPart {
    pub source: Source,
    /// What is known at the start.
    pub inputs: Inputs,
    /// The source as it is followed already; where that has failed it is opened anew.
    pub first: RefCell<Option<Opened>>,
    pub exec: Exec,
    pub random_fully: bool,
    pub families: Vec<Family>,
    /// When traffic of Services is counted.
    pub traffic: TrafficFlag,
    /// There is a health server.
    pub health_server: bool,
    pub metrics: Arc<Metrics>,
    pub health: SharedHealth,
    pub events: Events,
    pub readiness: Readiness,
    pub board: StatusSources,
    /// New settings from the configuration file.
    pub settings: watch::Receiver<Option<ProxySettings>>,
    /// The input of the pod network's rules, once it is known.
    pub pod_rules: watch::Receiver<Option<PodRules>>,
}

impl ProxyPart {
    /// Runs until it fails.
    ///
    /// # Errors
    /// The source of objects has ended, or something that it is made of.
    pub(crate) async fn run(self: Rc<Self>) -> anyhow::Result<()> {
        let (opened, mut inputs) = self.open()?;
        let Opened { updates, sender, mut tasks } = opened;
        let (mut settings, mut pod_rules) = (self.settings.clone(), self.pod_rules.clone());
        inputs.settings = settings.borrow_and_update().clone().unwrap_or(inputs.settings);
        inputs.pod_rules = pod_rules.borrow_and_update().clone().or(inputs.pod_rules);
        tasks.spawn("watch of the settings", pass_values(settings, sender.clone(), |settings| Update::Settings(Box::new(settings))));
        tasks.spawn("watch of the pod network's rules", pass_values(pod_rules, sender, |rules| Update::PodRules(Box::new(rules))));
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
        tokio::select! {
            () = proxy_loop.run(updates) => bail!("the source of updates has ended"),
            error = tasks.ended() => Err(error),
        }
    }

    fn open(&self) -> anyhow::Result<(Opened, Inputs)> {
        let inputs = self.inputs.clone();
        if let Some(opened) = self.first.take() {
            return Ok((opened, inputs));
        }
        match &self.source {
            Source::Manifests { path, asked } if path != Path::new("-") => {
                Source::read(path, asked).map(|(opened, inputs, _)| (opened, inputs))
            }
            source => Ok((source.follow(), inputs)),
        }
    }
}

/// Passes updates on for as long as somebody takes them.
async fn pass_on(mut updates: BoxStream<'static, kubernetes::ClusterUpdate>, sender: mpsc::Sender<Update>) {
    while let Some(update) = updates.next().await {
        if sender.send(update.into()).await.is_err() {
            return;
        }
    }
}

/// Sends each new value to the loop, for good.
async fn pass_values<T: Clone>(mut values: watch::Receiver<Option<T>>, sender: mpsc::Sender<Update>, update: impl Fn(T) -> Update) {
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
