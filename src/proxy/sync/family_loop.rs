//! One family's rules in the hands of the loop: when they are synced, looked at and tried again, and who is told of it.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::cluster::health_checks;
use crate::cluster::host_facts::HostFacts;
use crate::cluster::{Family, ServiceKey};
use crate::iptables::Runner;
use crate::netlink::Host;
use crate::proxy::rules::inputs::Inputs;
use crate::proxy::rules::view::health_check_addresses;

use super::audit_schedule::AuditSchedule;
use super::family::{FamilyRules, SyncError};
use super::flow_loop::FlowSender;
use super::report::Report;
use super::service_health::ServiceHealth;
use crate::observe::latency::WaitingChanges;
use crate::observe::sync_result::SyncResult;
use crate::proxy::traffic::FinalCounters;

/// The first wait after a failed sync; it doubles from there up to the sync period.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// Health check ports that somebody else has are tried this often: until then load balancers count the node as down.
const CHECKS_RETRY: Duration = Duration::from_secs(1);

/// Changes of one Service whose time is noted while they wait to be written; more say nothing new.
const TRIGGERS: usize = 64;

/// One family's rules and when they are looked after.
pub(super) struct FamilyLoop {
    pub(super) rules: FamilyRules,
    /// No sync before this.
    pub(super) not_before: Instant,
    retry: Duration,
    pub(super) audits: AuditSchedule,
    /// When what is not written yet happened, by Service.
    triggers: HashMap<ServiceKey, Vec<Timestamp>>,
    /// The same for what changes wait for.
    pub(super) pending: WaitingChanges,
    /// Tells whoever looks after UDP flows.
    pub(super) flows: Option<FlowSender>,
    /// When rules followed a change of a Service last; of those that there are.
    pub(super) followed: HashMap<ServiceKey, Timestamp>,
    /// Answers load balancers' health checks, where that is wanted.
    pub(super) checks: Option<ServiceHealth>,
    /// When health checks whose port could not be opened are tried again.
    pub(super) checks_again: Option<Instant>,
    /// Where counters go whose rules end, where they are wanted.
    pub(super) final_counters: Option<FinalCounters>,
}

impl FamilyLoop {
    /// Nothing is known of a family's rules yet.
    pub(super) fn new(family: Family, sync_period: Duration, flows: Option<FlowSender>) -> Self {
        Self {
            rules: FamilyRules::new(family),
            not_before: Instant::now(),
            retry: FIRST_RETRY,
            audits: AuditSchedule::new(sync_period),
            triggers: HashMap::new(),
            pending: WaitingChanges::default(),
            followed: HashMap::new(),
            flows,
            checks: None,
            checks_again: None,
            final_counters: None,
        }
    }

    /// When there is something to do.
    pub(super) fn next(&self) -> Instant {
        let trial = self.rules.next_trial().map(|trial| trial.max(self.not_before));
        let sync = self.rules.is_due().then_some(self.not_before);
        [trial, sync, self.checks_again].into_iter().flatten().fold(self.audits.next(), Instant::min)
    }

    /// Notes when something happened to Services. A slice that goes takes what was noted of its Service along (spec section 4).
    pub(super) fn note_trigger(&mut self, services: &[ServiceKey], trigger: Option<Timestamp>, deleted: bool) {
        for service in services {
            match trigger {
                Some(trigger) if !deleted => {
                    let noted = self.triggers.entry(service.clone()).or_default();
                    if noted.len() < TRIGGERS {
                        noted.push(trigger);
                    }
                }
                _ if deleted => drop(self.triggers.remove(service)),
                _ => {}
            }
        }
    }

    /// Notes a failure; gives the wait until the next try.
    pub(super) fn failed(&mut self, longest: Duration) -> Duration {
        let pause = self.retry.min(longest);
        self.retry = pause * 2;
        self.not_before = Instant::now() + pause;
        pause
    }

    /// Writes what differs, and tells what came of it; false if that failed.
    pub(super) async fn sync(
        &mut self,
        runner: &impl Runner,
        host: &impl Host,
        inputs: &Inputs,
        facts: &HostFacts,
        report: &Report,
    ) -> bool {
        let start = Instant::now();
        let outcome = self.write(runner, inputs, facts).await;
        report.attempted(&self.rules, start.elapsed());
        match outcome {
            Ok(synced) if synced.unfinished > 0 => {
                let end = Instant::now();
                self.not_before = end + inputs.settings.min_sync_period.unwrap_or(end - start);
                report.unfinished(self.rules.family(), &synced, (self.not_before - end).as_secs_f32());
                true
            }
            Ok(synced) => {
                report.synced(&self.rules, &synced);
                for change in self.pending.written(self.rules.family(), start, synced.spent, &synced.written) {
                    report.followed(&change);
                    if inputs.snapshot.service(&change.service).is_some() {
                        self.followed.insert(change.service, change.at);
                    } else {
                        self.followed.remove(&change.service);
                    }
                }
                self.retry = FIRST_RETRY;
                let now = Timestamp::now();
                for trigger in self.triggers.drain().flat_map(|(_, triggers)| triggers) {
                    report.metrics.programmed(self.rules.family(), now.duration_since(trigger).as_secs_f64());
                }
                let end = Instant::now();
                // Without an order from outside, writing may take two thirds of the time, but not all of it.
                self.not_before = end + inputs.settings.min_sync_period.unwrap_or((end - start) / 2);
                tracing::debug!(
                    "{}: synced in {} ms; the next sync starts in {} ms or later",
                    self.rules.family(),
                    (end - start).as_millis(),
                    (self.not_before - end).as_millis()
                );
                if let Some(flows) = &mut self.flows {
                    flows.tell(host, inputs, self.rules.family());
                }
                self.answer_checks(host, inputs, report).await;
                true
            }
            Err(error) => {
                let pause = self.failed(inputs.settings.sync_period);
                report.failed(self.rules.family(), &error, pause.as_secs_f32());
                false
            }
        }
    }

    /// Writes what differs, and leaves what the counters said that this ends to who counts.
    async fn write(&mut self, runner: &impl Runner, inputs: &Inputs, facts: &HostFacts) -> Result<SyncResult, SyncError> {
        let Some(final_counters) = &self.final_counters else { return self.rules.sync(runner, inputs, facts).await };
        let mut pending = final_counters.hold().await;
        self.rules.count(pending.wanted());
        let outcome = self.rules.sync(runner, inputs, facts).await;
        pending.put(self.rules.family(), self.rules.take_ended());
        if self.rules.attempt().unlisted {
            pending.pause();
        }
        outcome
    }

    /// Answers the health checks of this family as the cluster wants it now.
    pub(super) async fn answer_checks(&mut self, host: &impl Host, inputs: &Inputs, report: &Report) {
        let family = self.rules.family();
        let Some(checks) = &mut self.checks else { return };
        let wanted = health_checks::of_family(&inputs.snapshot, family, &inputs.node_name);
        if !wanted.is_empty() {
            let local = host.addresses().inspect_err(|error| tracing::warn!("cannot list this host's addresses: {error}")).ok();
            checks.move_to(health_check_addresses(&inputs.settings, local.as_deref(), inputs.snapshot.node(), family)).await;
        }
        for failed in checks.sync(&wanted).await {
            tracing::error!("node {} {failed}; it is tried again every second", inputs.node_name);
            report.tell(failed.event(&inputs.node_name));
        }
        self.checks_again = checks.is_refused().then(|| Instant::now() + CHECKS_RETRY);
    }
}
