//! The part of the loop that belongs to one family: decides when its rules are synced, audited and tried again, and reports the results.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use jiff::Timestamp;
use tokio::time::Instant;

use crate::cluster::health_checks;
use crate::cluster::host_facts::HostFacts;
use crate::cluster::{Family, ServiceKey};
use crate::iptables::Runner;
use crate::netlink::Host;
use crate::observe::latency::WaitingChanges;
use crate::observe::sync_result::SyncResult;
use crate::proxy::rules::inputs::Inputs;
use crate::proxy::rules::view::health_check_addresses;
use crate::proxy::traffic::FinalCounters;

use super::audit_schedule::AuditSchedule;
use super::family::{FamilyRules, SyncError};
use super::flow_loop::FlowSender;
use super::report::Report;
use super::service_health::ServiceHealth;
use super::sync_budget::SyncBudget;

/// The first wait after a failed sync. It doubles with each failure, up to the sync period.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// If another program uses a health-check node port, opening it is tried again this often. Load balancers see the node as unhealthy until
/// then.
const CHECKS_RETRY: Duration = Duration::from_secs(1);

/// The largest number of trigger times that are kept for one Service until its rules are written.
const TRIGGERS: usize = 64;

/// The rules of one family, and the times at which they are synced and audited.
pub(super) struct FamilyLoop {
    pub(super) rules: FamilyRules,
    /// The next sync does not start before this time.
    pub(super) not_before: Instant,
    /// The waits after failed syncs.
    retries: ExponentialBackoff,
    pub(super) audits: AuditSchedule,
    /// The times of changes whose rules are not written yet, by Service.
    triggers: HashMap<ServiceKey, Vec<Timestamp>>,
    /// The same changes, with the reasons why each had to wait.
    pub(super) pending: WaitingChanges,
    /// Sends changes to the loop that deletes stale UDP flows.
    pub(super) flows: Option<FlowSender>,
    /// The last time that a change of each existing Service took effect.
    pub(super) applied: HashMap<ServiceKey, Timestamp>,
    /// Answers load balancers' health checks, if enabled.
    pub(super) checks: Option<ServiceHealth>,
    /// When health-check node ports that could not be opened are tried again.
    pub(super) checks_again: Option<Instant>,
    /// Receives the final counters of rules that a sync removes, if Service traffic is counted.
    pub(super) final_counters: Option<FinalCounters>,
}

impl FamilyLoop {
    /// Creates the loop of a family. The rules in the kernel are not known yet.
    pub(super) fn new(family: Family, sync_period: Duration, flows: Option<FlowSender>) -> Self {
        Self {
            rules: FamilyRules::new(family),
            not_before: Instant::now(),
            retries: backoff(),
            audits: AuditSchedule::new(sync_period),
            triggers: HashMap::new(),
            pending: WaitingChanges::default(),
            applied: HashMap::new(),
            flows,
            checks: None,
            checks_again: None,
            final_counters: None,
        }
    }

    pub(super) const fn family(&self) -> Family {
        self.rules.family()
    }

    /// When the next sync, check or retry is due. No sync starts before `paced`.
    pub(super) fn next(&self, paced: Option<Instant>) -> Instant {
        let earliest = paced.map_or(self.not_before, |paced| paced.max(self.not_before));
        let trial = self.rules.next_trial().map(|trial| trial.max(earliest));
        let sync = self.rules.is_due().then_some(earliest);
        [trial, sync, self.checks_again].into_iter().flatten().fold(self.audits.next(), Instant::min)
    }

    /// Stores the time of a change of Services. When an EndpointSlice is deleted, the stored times of its Service are dropped
    /// [kube-proxy 4].
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

    /// Delays the next sync after a failure. Returns the wait.
    pub(super) fn failed(&mut self, longest: Duration) -> Duration {
        let pause = self.retries.next().map_or(longest, |pause| pause.min(longest));
        self.not_before = Instant::now() + pause;
        pause
    }

    /// Writes the differences and reports the result. Takes the duration from the budget, and reports the wait for the budget as `paced`.
    /// Returns false if the sync failed.
    pub(super) async fn sync(
        &mut self,
        runner: &impl Runner,
        host: &impl Host,
        inputs: &Inputs,
        facts: &HostFacts,
        report: &Report,
        (budget, paced): (&mut SyncBudget, Option<Range<Instant>>),
    ) -> bool {
        let start = Instant::now();
        let outcome = self.write(runner, inputs, facts).await;
        report.attempted(&self.rules, start.elapsed());
        let locked = outcome.as_ref().map_or_else(|failed| failed.error.waited(), |synced| synced.spent.lock);
        budget.spend(&inputs.settings, start.elapsed().saturating_sub(locked));
        // Without a budget, syncs take at most two thirds of the time.
        let rest = |took: Duration| if inputs.settings.sync_share.limit().is_none() { took / 2 } else { Duration::ZERO };
        match outcome {
            Ok(synced) if synced.unfinished > 0 => {
                let end = Instant::now();
                self.not_before = end + inputs.settings.min_sync_period.unwrap_or_else(|| rest(end - start));
                report.unfinished(self.family(), &synced, (self.not_before - end).as_secs_f32());
                true
            }
            Ok(synced) => {
                report.synced(&self.rules, &synced);
                self.report_applied_changes(start, paced.as_ref(), &synced, inputs, report);
                self.retries = backoff();
                let end = Instant::now();
                self.not_before = end + inputs.settings.min_sync_period.unwrap_or_else(|| rest(end - start));
                tracing::debug!(
                    "{}: synced in {} ms; the next sync starts in {} ms or later",
                    self.family(),
                    (end - start).as_millis(),
                    (self.not_before - end).as_millis()
                );
                let family = self.family();
                if let Some(flows) = &mut self.flows {
                    flows.send_touched(host, inputs, family);
                }
                self.answer_checks(host, inputs, report).await;
                true
            }
            Err(error) => {
                let pause = self.failed(inputs.settings.sync_period);
                report.failed(self.family(), &error, pause.as_secs_f32());
                false
            }
        }
    }

    /// Reports the latency of each change whose rules were written.
    fn report_applied_changes(
        &mut self,
        start: Instant,
        paced: Option<&Range<Instant>>,
        synced: &SyncResult,
        inputs: &Inputs,
        report: &Report,
    ) {
        let family = self.family();
        for change in self.pending.written(family, start, paced, synced.spent, &synced.written) {
            report.change_applied(&change);
            if inputs.snapshot.service(&change.service).is_some() {
                self.applied.insert(change.service, change.at);
            } else {
                self.applied.remove(&change.service);
            }
        }
        let now = Timestamp::now();
        for trigger in self.triggers.drain().flat_map(|(_, triggers)| triggers) {
            report.metrics.programmed(family, now.duration_since(trigger).as_secs_f64());
        }
    }

    /// Writes the differences, and saves the final counters of the rules that this removes.
    async fn write(&mut self, runner: &impl Runner, inputs: &Inputs, facts: &HostFacts) -> Result<SyncResult, SyncError> {
        let Some(final_counters) = &self.final_counters else { return self.rules.sync(runner, inputs, facts).await };
        let mut pending = final_counters.lock().await;
        self.rules.select_final_counters(pending.selection());
        let outcome = self.rules.sync(runner, inputs, facts).await;
        pending.add(self.rules.family(), self.rules.take_ended());
        if self.rules.attempt().unlisted {
            pending.pause();
        }
        outcome
    }

    /// Opens and closes health-check node ports so that they match the Services, and updates their answers.
    pub(super) async fn answer_checks(&mut self, host: &impl Host, inputs: &Inputs, report: &Report) {
        let family = self.family();
        let Some(checks) = &mut self.checks else { return };
        let desired = health_checks::of_family(&inputs.snapshot, family, &inputs.node_name);
        if !desired.is_empty() {
            let local = host.addresses().inspect_err(|error| tracing::warn!("cannot list this host's addresses: {error}")).ok();
            checks.move_to(health_check_addresses(&inputs.settings, local.as_deref(), inputs.snapshot.node(), family)).await;
        }
        for failed in checks.sync(&desired).await {
            tracing::error!("node {} {failed}; it is tried again every second", inputs.node_name);
            report.send_event(failed.event(&inputs.node_name));
        }
        self.checks_again = checks.has_refused_ports().then(|| Instant::now() + CHECKS_RETRY);
    }
}

/// The waits after failed syncs. The caller limits them to the sync period.
fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::new().with_min_delay(FIRST_RETRY).with_factor(2.0).without_max_delay().without_max_times().build()
}
