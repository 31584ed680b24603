//! Reports the work of the service proxy in log lines, metrics, Events, readiness and health.

use std::sync::Arc;
use std::time::Duration;

use crate::cluster::Family;
use crate::iptables::IptablesError;
use crate::table::acknowledged::Drift;
use crate::table::jumps::{JUMPS, Jump};

use super::family::{FamilyRules, SyncError};
use super::sync_log::{SyncLog, written};
use crate::kubernetes::events::{Event, Events, Regarding};
use crate::observe::health::SharedHealth;
use crate::observe::latency::AppliedChange;
use crate::observe::liveness::{RunningStep, SERVICE_PROXY};
use crate::observe::metrics::Metrics;
use crate::observe::readiness::{Part, PartState, Readiness};
use crate::observe::sync_result::RefusedPort;
use crate::observe::sync_result::SyncResult;

/// The largest number of names in one log line or Event. The others are only counted.
const NAMED: usize = 5;

/// Reports the work of the service proxy.
#[derive(Debug)]
pub struct Report {
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The health of the service proxy: whether its rules are up to date.
    pub health: SharedHealth,
    events: Events,
    readiness: Readiness,
    syncs: SyncLog,
}

impl Report {
    /// Creates a report without readiness.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>, health: SharedHealth, events: Events) -> Self {
        Self { metrics, health, events, readiness: Readiness::new([]), syncs: SyncLog::default() }
    }

    /// Also updates this readiness when the rules of a family are written.
    #[must_use]
    pub fn with_readiness(mut self, readiness: Readiness) -> Self {
        self.readiness = readiness;
        self
    }

    /// Reports that the loop started for a family.
    pub fn started(&self, family: Family) {
        self.metrics.queued(family);
        self.health.updated(family);
    }

    /// Reports why the first sync of a family cannot start yet.
    pub fn waits(&self, family: Family, why: &str) {
        let states = self.readiness.states();
        for part in parts(family).into_iter().filter(|part| matches!(states.get(part), Some(PartState::Starting(_)))) {
            self.readiness.not_ready(part, why);
        }
    }

    /// Reports the start of a step of the loop. The step ends when the returned value is dropped.
    #[must_use]
    pub fn busy(&self) -> RunningStep {
        self.readiness.liveness().busy(SERVICE_PROXY)
    }

    /// Logs a summary of the syncs if it is due.
    pub(crate) fn summarize(&self) {
        self.syncs.summarize();
    }

    /// Reports that the first sync of a family is due. kube-proxy does not count it as a queued sync.
    pub(crate) fn first_due(&self, family: Family) {
        self.health.queued(family);
    }

    /// Reports that a change of the inputs queued a sync of a family.
    pub fn queued(&self, family: Family) {
        self.metrics.queued(family);
        self.health.queued(family);
    }

    /// Sends an Event.
    pub(crate) fn send_event(&self, event: Event) {
        self.events.tell(event);
    }

    /// Reports the duration of a sync that succeeded or failed.
    pub(crate) fn attempted(&self, rules: &FamilyRules, took: Duration) {
        self.metrics.attempted(rules.family(), rules.attempt(), &rules.totals(), took);
        self.metrics.quarantined(rules.family(), rules.quarantined().len());
    }

    /// Reports that the live tables are the desired ones.
    pub(crate) fn confirmed(&self, family: Family) {
        self.health.updated(family);
        self.metrics.confirmed(family);
    }

    /// Reports a sync that succeeded.
    pub fn synced(&self, rules: &FamilyRules, synced: &SyncResult) {
        let family = rules.family();
        self.health.synced(family);
        self.metrics.synced(family, synced, &rules.totals());
        self.refused(family, &synced.refused);
        self.readiness.ready(Part::Proxy(family));
        if synced.pod_rules {
            self.readiness.ready(Part::PodRules(family));
        }
        if synced.extent.transactions > 0 {
            let names = match synced.written.len() {
                0 => String::new(),
                more => format!(": {}", first(synced.written.iter(), more)),
            };
            self.events.note("RulesWritten", &(written(family, synced) + &names));
        }
        self.syncs.synced(family, synced, rules.attempt().full);
    }

    /// Reports that the rules of a changed Service are written.
    pub(crate) fn change_applied(&self, change: &AppliedChange) {
        self.metrics.change_applied(change);
    }

    fn refused(&self, family: Family, refused: &[RefusedPort]) {
        for RefusedPort { name, cause } in refused {
            tracing::error!(
                "{family}: iptables refuses the rules of service port {name}, its old rules stay; next attempt in a few minutes or when it changes: {cause}"
            );
            self.events.tell(Event {
                regarding: Regarding::Service(name.service.clone()),
                reason: "RulesRefused",
                action: "Sync",
                warning: true,
                note: format!("iptables refuses the {family} rules of port {name}; its old rules stay. {cause}"),
            });
        }
    }

    /// Reports a sync that ended before everything was written, because iptables refused many service ports. The next sync continues.
    pub fn unfinished(&self, family: Family, synced: &SyncResult, seconds: f32) {
        self.refused(family, &synced.refused);
        tracing::warn!(
            "{family}: iptables refuses the rules of many service ports; {} are still to be written, next attempt in {seconds} s",
            synced.unfinished
        );
    }

    /// Reports a sync that failed as a whole.
    pub fn failed(&self, family: Family, failure: &SyncError, seconds: f32) {
        let SyncError { error, refused } = failure;
        self.refused(family, refused);
        self.metrics.failed(family);
        if let IptablesError::Locked { seconds, .. } = error {
            self.metrics.lock_timed_out(family, *seconds);
        }
        for part in parts(family) {
            self.readiness.not_ready(part, error.to_string());
        }
        tracing::error!("{family}: sync failed, next try in {seconds} s: {error}");
    }

    /// Reports the result of an audit. If another program changed rules, the next sync repairs them.
    pub(crate) fn audited(&self, family: Family, drift: &Drift) {
        let services: Vec<String> = drift.services.iter().map(ToString::to_string).collect();
        let chains: Vec<String> = drift.chains.iter().map(|(table, chain)| format!("{table} {chain}")).collect();
        let jumps: Vec<String> = drift.jumps.iter().map(|i| name(&JUMPS[*i])).collect();
        let mut changes = Vec::new();
        for (kind, what, names) in [("service", "service ports", services), ("chain", "chains", chains), ("jump", "jumps", jumps)] {
            self.metrics.audited(family, kind, names.len());
            if !names.is_empty() {
                changes.push(format!("{what}: {}", first(names.iter(), names.len())));
            }
        }
        self.metrics.audited(family, "stranger", drift.unknown);
        if drift.is_empty() {
            return;
        }
        if drift.unknown > 0 {
            changes.push(format!("{} unknown rules or chains", drift.unknown));
        }
        let note = format!("{family}: another program changed rules of sepal, they are put right: {}", changes.join("; "));
        tracing::warn!("{note}");
        self.events.tell(Event { regarding: Regarding::Node, reason: "RulesRepaired", action: "Audit", warning: true, note });
    }

    /// Reports that another program flushed the tables of a family.
    pub fn flushed(&self, family: Family) {
        tracing::warn!("{family}: chain KUBE-PROXY-CANARY is missing: another program flushed the tables. sepal reads and repairs them");
    }

    /// Reports that jumps to our chains are missing.
    pub(crate) fn jumps_missing(&self, family: Family, missing: &[&Jump]) {
        let jumps: Vec<String> = missing.iter().map(|jump| name(jump)).collect();
        tracing::warn!("{family}: jumps are missing: {}. sepal reads the live tables and repairs them", first(jumps.iter(), jumps.len()));
    }
}

/// The readiness parts that depend on the rules of a family.
const fn parts(family: Family) -> [Part; 2] {
    [Part::Proxy(family), Part::PodRules(family)]
}

fn name(jump: &Jump) -> String {
    format!("{} {} to {}", jump.table, jump.from, jump.to)
}

/// Returns the first names and the number of the others.
fn first(all: impl Iterator<Item = impl ToString>, count: usize) -> String {
    let named = all.take(NAMED).map(|name| name.to_string()).collect::<Vec<_>>().join(", ");
    if count > NAMED { format!("{named} and {} more", count - NAMED) } else { named }
}
