//! Keeps this node's rules as they should be: takes updates, syncs, tries again what failed.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, sleep_until};

use crate::cluster::Family;
use crate::iptables::{IptablesError, Runner};
use crate::netlink::Host;
use crate::rules::inputs::Inputs;
use crate::rules::view::needs_route_localnet;
use crate::source::{Kind, Update};

use super::sync::{sync, usable_facts};

/// Without any change, everything is written anew this often (spec section 7.1).
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// The first wait after a failed sync; it doubles from there up to the sync period.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// The loop and what it knows.
#[derive(Debug)]
pub struct ProxyLoop<R, H> {
    runner: R,
    host: H,
    families: Vec<Family>,
    random_fully: bool,
    inputs: Inputs,
    /// Kinds that have not been seen in full yet.
    awaited: BTreeSet<Kind>,
    /// What the last complaint about missing input was, so that it is made once.
    complaint: Option<String>,
}

/// Failures of a sync.
#[derive(Debug, thiserror::Error)]
enum SyncError {
    #[error("{family}: {cause}")]
    Iptables { family: Family, cause: IptablesError },
    #[error("{0}")]
    Facts(#[from] crate::config::kubeproxy::BadSetting),
    #[error(
        "cannot set net.ipv4.conf.all.route_localnet to 1, which NodePorts on 127.0.0.0/8 need: {0}. Set it yourself, or use --iptables-localhost-nodeports=false"
    )]
    RouteLocalnet(std::io::Error),
}

impl<R: Runner, H: Host> ProxyLoop<R, H> {
    /// A loop that starts from these inputs and waits for all objects before it writes anything.
    pub fn new(runner: R, host: H, families: Vec<Family>, random_fully: bool, inputs: Inputs) -> Self {
        let awaited = BTreeSet::from([Kind::Service, Kind::EndpointSlice, Kind::Node]);
        Self { runner, host, families, random_fully, inputs, awaited, complaint: None }
    }

    /// Runs until the updates end.
    pub async fn run(mut self, mut updates: Receiver<Update>) {
        let mut dirty = false;
        let mut not_before = Instant::now();
        let mut retry = FIRST_RETRY;
        loop {
            let ready = self.awaited.is_empty() && self.complete();
            let next = if dirty && ready { not_before } else { Instant::now() + LONGEST_PAUSE };
            tokio::select! {
                // Updates first: whatever has come in belongs in the next sync.
                biased;
                update = updates.recv() => match update {
                    Some(update) => dirty |= self.take(update),
                    None => return,
                },
                () = sleep_until(next) => {
                    dirty = true;
                    if !ready {
                        continue;
                    }
                    let pause = match self.sync().await {
                        Ok(()) => {
                            dirty = false;
                            retry = FIRST_RETRY;
                            self.inputs.settings.min_sync_period
                        }
                        Err(error) => {
                            let pause = retry.min(self.inputs.settings.sync_period);
                            tracing::error!("sync failed, next try in {} s: {error}", pause.as_secs_f32());
                            retry = pause * 2;
                            pause.max(self.inputs.settings.min_sync_period)
                        }
                    };
                    not_before = Instant::now() + pause;
                }
            }
        }
    }

    /// Takes one update; says whether rules may be different now.
    fn take(&mut self, update: Update) -> bool {
        match update {
            Update::Change(change) => !self.inputs.snapshot.apply(change).is_nothing(),
            Update::Inputs(inputs) => {
                let changed = self.inputs != *inputs;
                self.inputs = *inputs;
                changed
            }
            Update::Complete(kind) => {
                let awaited = self.awaited.remove(&kind);
                if awaited && self.awaited.is_empty() && self.inputs.snapshot.node().is_none() {
                    tracing::warn!(
                        "there is no Node {:?}: its IPs, zone and pod CIDR count as unknown. Is --hostname-override right?",
                        self.inputs.node_name
                    );
                }
                awaited
            }
        }
    }

    /// Whether the inputs suffice; if not, says once what is missing.
    fn complete(&mut self) -> bool {
        let missing = self.inputs.missing();
        if let Some(what) = missing.as_ref().filter(|what| self.complaint.as_ref() != Some(what)) {
            tracing::warn!("{what}");
        }
        self.complaint = missing;
        self.complaint.is_none()
    }

    /// Syncs every family, also if one fails.
    async fn sync(&self) -> Result<(), SyncError> {
        if self.families.contains(&Family::V4) && needs_route_localnet(&self.inputs.settings, self.inputs.snapshot.node()) {
            self.host.allow_route_localnet().map_err(SyncError::RouteLocalnet)?;
        }
        let facts = usable_facts(&self.inputs, &self.host, self.random_fully)?;
        let mut outcome = Ok(());
        for family in self.families.iter().copied() {
            match sync(&self.runner, &self.inputs, &facts, family).await {
                Ok(done) => tracing::info!(
                    "{family} rules written: {} service ports, {} chains of theirs, {} transactions, {} ms",
                    done.service_ports,
                    done.chains,
                    done.transactions,
                    done.took.as_millis()
                ),
                Err(cause) => outcome = outcome.and(Err(SyncError::Iptables { family, cause })),
            }
        }
        outcome
    }
}
