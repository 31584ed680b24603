//! Decides when the live tables are checked for changes of other programs.
//!
//! There are two checks. The quick check looks for the canary chain and the jumps to our chains. The audit reads all tables. On nft, the
//! kernel increases a generation number with every change of the tables, so both checks run after another program changed it. On legacy
//! iptables, they run every sync period. In both cases, a check that takes long runs less often.

use std::time::Duration;

use tokio::time::Instant;

use crate::iptables::Runner;
use crate::table::Table;
use crate::table::jumps::Jump;
use crate::table::parse::Tables;

use super::family::FamilyRules;
use super::report::Report;
use crate::duty_cycle::DutyCycle;

/// Each check rests for this many times its own duration, so it takes at most 1/200 of the time.
const CYCLE: DutyCycle = DutyCycle::new(200, Duration::ZERO);

/// The period of the audit while the generation number shows no change of another program.
const UNCHANGED_PERIOD: Duration = Duration::from_secs(3600);

/// The number of transactions that create the canary chain: one per table.
const CANARY_TRANSACTIONS: usize = 3;

/// The times of one repeated check.
#[derive(Debug)]
struct CheckTimer {
    /// When the check runs next.
    next: Instant,
    /// The earliest time of the next run that keeps the check within its share of the time (see [`CYCLE`]).
    affordable: Instant,
    /// How long the check took the last time.
    took: Duration,
}

impl CheckTimer {
    fn new(next: Instant) -> Self {
        Self { next, affordable: Instant::now(), took: Duration::MAX }
    }

    fn is_due(&self) -> bool {
        self.next <= Instant::now()
    }

    /// Records that the check that began at `start` is done. The next check is due after `period`, or later if the check took long. The
    /// shorter one of the last two durations counts, because a busy machine can delay a single check.
    fn done(&mut self, start: Instant, period: Duration) {
        let took = start.elapsed();
        self.affordable = Instant::now() + CYCLE.rest(took.min(self.took));
        self.took = took;
        self.next = self.affordable.max(Instant::now() + period);
    }

    /// Makes the check due at [`Self::affordable`], if it is not due earlier.
    fn hurry(&mut self) {
        self.next = self.next.min(self.affordable);
    }
}

/// The times at which the tables of one family are checked.
#[derive(Debug)]
pub(super) struct AuditSchedule {
    /// The check of the canary and the jumps.
    quick_check: CheckTimer,
    /// The audit, which reads all live tables.
    audit: CheckTimer,
    /// Another program may have changed the tables since they were last read. `None` if there is no generation number.
    changed: Option<bool>,
}

impl AuditSchedule {
    /// Creates a schedule. The quick check is due at once, the audit after a period, because the first sync reads the tables.
    pub(super) fn new(period: Duration) -> Self {
        let now = Instant::now();
        Self { quick_check: CheckTimer::new(now), audit: CheckTimer::new(now + period), changed: None }
    }

    /// When the next check is due.
    pub(super) fn next(&self) -> Instant {
        self.quick_check.next.min(self.audit.next)
    }

    /// Delays all checks until this time.
    pub(super) fn put_off(&mut self, until: Instant) {
        for timer in [&mut self.quick_check, &mut self.audit] {
            timer.next = timer.next.max(until);
        }
    }

    /// Records that there is no generation number, so that only the checks find changes of other programs.
    pub(super) fn generation_unknown(&mut self) {
        if self.changed.take() == Some(false) {
            self.quick_check.hurry();
            self.audit.hurry();
        }
    }

    /// Records that another program changed tables. Both checks run at their earliest time.
    pub(super) fn generation_changed(&mut self) {
        self.changed = Some(true);
        self.quick_check.hurry();
        self.audit.hurry();
    }

    /// Runs the checks that are due. Without a generation number each runs every `period`. The canary is kube-proxy's chain, so it is only
    /// set if sepal is the service proxy (`canary`). Returns the number of transactions made.
    pub(super) async fn run_due_checks(
        &mut self,
        rules: &mut FamilyRules,
        runner: &impl Runner,
        period: Duration,
        canary: bool,
        report: &Report,
    ) -> usize {
        let mut transactions = 0;
        if self.quick_check.is_due() && self.changed == Some(false) {
            // An unchanged generation number proves that the canary and the jumps still exist.
            if !rules.is_due() {
                report.confirmed(rules.family());
            }
            self.quick_check.next = Instant::now() + period;
        } else if self.quick_check.is_due() {
            let start = Instant::now();
            transactions = self.check_canary_and_jumps(rules, runner, canary, report).await;
            self.quick_check.done(start, period);
        }
        if self.audit.is_due() {
            self.run_audit(rules, runner, period, report).await;
        }
        transactions
    }

    async fn run_audit(&mut self, rules: &mut FamilyRules, runner: &impl Runner, period: Duration, report: &Report) {
        let start = Instant::now();
        let outcome = rules.audit(runner).await;
        self.audit.done(start, period);
        let drift = match outcome {
            Ok(drift) => drift,
            Err(error) => {
                tracing::warn!("{}: the live tables could not be read for an audit: {error}", rules.family());
                return;
            }
        };
        if rules.knows_kernel_state() {
            let outcome = if drift.is_empty() { "no changes" } else { "another program changed them" };
            tracing::debug!("{}: audit of the live tables: {outcome}", rules.family());
        }
        report.audited(rules.family(), &drift);
        if drift.is_empty() && !rules.is_due() {
            report.confirmed(rules.family());
        }
        if let Some(changed) = &mut self.changed {
            *changed = false;
            self.audit.next = Instant::now() + UNCHANGED_PERIOD;
        }
    }

    /// Checks for the canary and the jumps to our chains, which are lost when another program flushes tables. If one is missing, the audit is
    /// due at once. Returns the number of transactions made.
    async fn check_canary_and_jumps(&mut self, rules: &FamilyRules, runner: &impl Runner, canary: bool, report: &Report) -> usize {
        let family = rules.family();
        let mut transactions = 0;
        // A sync after a failed one reads the tables itself.
        let acknowledged = rules.knows_kernel_state() && rules.attempt().failures == 0;
        if canary && runner.canary(family).await == Some(false) {
            if acknowledged {
                report.flushed(family);
                self.audit.next = Instant::now();
            }
            transactions = CANARY_TRANSACTIONS;
            if let Err(error) = runner.set_canary(family).await {
                tracing::warn!("{family}: {error}");
            }
        }
        for table in Table::ALL.into_iter().filter(|_| acknowledged) {
            let text = match runner.builtin_jumps(family, table).await {
                Ok(text) => text,
                Err(error) => {
                    tracing::debug!("{family}: the jumps in {table} could not be read: {error}");
                    continue;
                }
            };
            let mut tables = Tables::default();
            tables.read(&text);
            let missing: Vec<&Jump> = tables.missing_jumps(table, |table, chain| rules.has_chain(table, chain)).collect();
            if !missing.is_empty() {
                report.jumps_missing(family, &missing);
                self.audit.next = Instant::now();
            }
        }
        transactions
    }
}
