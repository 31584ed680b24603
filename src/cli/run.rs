//! `sepal run`: the daemon.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use futures::StreamExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::agent::events::{self, Events};
use crate::agent::flow_loop;
use crate::agent::proxy_loop::ProxyLoop;
use crate::agent::report::Report;
use crate::config::flags::RunFlags;
use crate::conntrack::Reconciler;
use crate::conntrack::flows::KernelFlows;
use crate::iptables::detect;
use crate::netlink::{Host, Kernel};
use crate::rules::inputs::Inputs;
use crate::source::api;
use crate::source::follow::{Files, Watch, follow};
use crate::source::{Kind, Update};

use super::setup::Setup;

/// Updates that may wait for the loop before their source has to wait, too.
const WAITING_UPDATES: usize = 1024;

/// Keeps this node's rules as they should be until it is told to end. The rules stay when it goes.
pub(super) async fn run(flags: &RunFlags) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        ended = serve(flags) => {
            ended?;
            anyhow::bail!("the source of updates has ended");
        }
        _ = terminate.recv() => tracing::info!("terminated; the rules stay"),
        _ = interrupt.recv() => tracing::info!("interrupted; the rules stay"),
    }
    Ok(ExitCode::SUCCESS)
}

async fn serve(flags: &RunFlags) -> anyhow::Result<()> {
    let setup = Setup::new(flags)?;
    let (sender, updates) = mpsc::channel(WAITING_UPDATES);
    let (inputs, events) = match &flags.manifests {
        Some(path) => (start_manifests(path, &setup, sender).await?, Events::none()),
        None => start_api(&setup, sender).await?,
    };
    let found = detect::find(flags.iptables_variant.wanted()).await?;
    tracing::info!("iptables {} ({}): {}", found.variant, found.version, found.reason);
    let mut families = detect::support(&found, Kernel.ipv6_enabled()).await.usable()?.to_vec();
    families.retain(|family| setup.families.contains(family));
    anyhow::ensure!(!families.is_empty(), "this host cannot program the family of --ip-family");
    let names: Vec<&str> = families.iter().map(|family| family.as_str()).collect();
    tracing::info!("node {}, families {}", inputs.node_name, names.join(" and "));
    let random_fully = found.random_fully();
    let mut proxy = ProxyLoop::new(found.exec, Kernel, random_fully, inputs, Report::new(Arc::default(), events));
    for family in families {
        let (told, news) = watch::channel(None);
        tokio::spawn(flow_loop::run(Reconciler::new(family), KernelFlows, news));
        proxy = proxy.with_family(family, Some(told));
    }
    proxy.run(updates).await;
    Ok(())
}

async fn start_manifests(path: &Path, setup: &Setup, sender: mpsc::Sender<Update>) -> anyhow::Result<Inputs> {
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
    Ok(inputs)
}

async fn start_api(setup: &Setup, sender: mpsc::Sender<Update>) -> anyhow::Result<(Inputs, Events)> {
    let inputs = setup.empty_inputs();
    let client = setup.connection.client().await?;
    let mut stream = api::updates(&client, &inputs.node_name);
    tokio::spawn(async move {
        while let Some(update) = stream.next().await {
            if sender.send(update).await.is_err() {
                return;
            }
        }
    });
    let (events, told) = Events::channel();
    tokio::spawn(events::send(client, inputs.node_name.clone(), told));
    Ok((inputs, events))
}
