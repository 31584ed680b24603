//! When to look whether somebody else changed the tables, and what to look at: neither more often than it is worth, nor later than it hurts.
//!
//! On nft the kernel keeps a number that every change of tables moves, so tables are read when somebody else has moved it, and at once if
//! they were not read lately. On legacy they are read every sync period. Either way what a look costs decides how soon the next one comes.

use std::time::Duration;

use tokio::time::Instant;

use crate::iptables::Runner;
use crate::table::Table;
use crate::table::jumps::Jump;
use crate::table::parse::Tables;

use super::family::FamilyRules;
use super::report::Report;

/// Reading all live tables may take one part in this many of the time, and so may reading the chains that lead to ours.
const SHARE: u32 = 200;

/// Tables that nobody changes are read this rarely.
const TRUST: Duration = Duration::from_secs(3600);

/// Transactions that canaries take.
const CANARIES: usize = 3;

/// Something that is done again and again.
#[derive(Debug)]
struct Round {
    /// When it is done next, and from when on that is cheap enough.
    next: Instant,
    affordable: Instant,
    /// How long it took the last time.
    took: Duration,
}

impl Round {
    fn new(next: Instant) -> Self {
        Self { next, affordable: Instant::now(), took: Duration::MAX }
    }

    fn is_due(&self) -> bool {
        self.next <= Instant::now()
    }

    /// It was done, begun then; next time after a period, or later if it takes long. One time that took long on a busy machine is no measure.
    fn done(&mut self, start: Instant, period: Duration) {
        let took = start.elapsed();
        self.affordable = Instant::now() + took.min(self.took) * SHARE;
        self.took = took;
        self.next = self.affordable.max(Instant::now() + period);
    }

    /// It is done as soon as it is cheap enough.
    fn hurry(&mut self) {
        self.next = self.next.min(self.affordable);
    }
}

/// When one family's tables are looked at.
#[derive(Debug)]
pub(super) struct AuditSchedule {
    /// Looking for the canary and the jumps.
    look: Round,
    /// Reading all live tables.
    audit: Round,
    /// Whether somebody else may have changed tables since they were last read; `None` where that cannot be told. Until somebody has there
    /// is little to look at.
    disturbed: Option<bool>,
}

impl AuditSchedule {
    /// Canaries are looked for at once; the first sync reads the tables.
    pub(super) fn new(period: Duration) -> Self {
        let now = Instant::now();
        Self { look: Round::new(now), audit: Round::new(now + period), disturbed: None }
    }

    /// When there is something to look at.
    pub(super) fn next(&self) -> Instant {
        self.look.next.min(self.audit.next)
    }

    /// Nothing is looked at before this.
    pub(super) fn put_off(&mut self, until: Instant) {
        for round in [&mut self.look, &mut self.audit] {
            round.next = round.next.max(until);
        }
    }

    /// It cannot be told whether somebody else changes tables.
    pub(super) fn blind(&mut self) {
        if self.disturbed.take() == Some(false) {
            self.look.hurry();
            self.audit.hurry();
        }
    }

    /// Somebody else has changed tables: they are looked at as soon as that is affordable.
    pub(super) fn disturb(&mut self) {
        self.disturbed = Some(true);
        self.look.hurry();
        self.audit.hurry();
    }

    /// Looks at the tables, where it is time; every `period`, where nothing tells whether that is needed. The canary is kube-proxy's, and
    /// only set where the service proxy is ours (`canary`). Gives the transactions it made.
    pub(super) async fn look_after(
        &mut self,
        rules: &mut FamilyRules,
        runner: &impl Runner,
        period: Duration,
        canary: bool,
        report: &Report,
    ) -> usize {
        let mut own = 0;
        if self.look.is_due() && self.disturbed == Some(false) {
            // That nobody has changed anything is as good as having looked.
            if !rules.is_due() {
                report.confirmed(rules.family());
            }
            self.look.next = Instant::now() + period;
        } else if self.look.is_due() {
            let start = Instant::now();
            own = self.look(rules, runner, canary, report).await;
            self.look.done(start, period);
        }
        if self.audit.is_due() {
            let start = Instant::now();
            let outcome = rules.audit(runner).await;
            self.audit.done(start, period);
            match outcome {
                Ok(drift) => {
                    if rules.knows_kernel_state() {
                        let outcome = if drift.is_empty() { "as expected" } else { "they differ" };
                        tracing::debug!("{}: the live tables were read: {outcome}", rules.family());
                    }
                    report.audited(rules.family(), &drift);
                    if drift.is_empty() && !rules.is_due() {
                        report.confirmed(rules.family());
                    }
                    if let Some(disturbed) = &mut self.disturbed {
                        *disturbed = false;
                        self.audit.next = Instant::now() + TRUST;
                    }
                }
                Err(error) => tracing::warn!("{}: the live tables were not looked at: {error}", rules.family()),
            }
        }
        own
    }

    /// Looks for what is lost when tables are flushed: the canary, and the jumps into our chains. Without them all tables are read at once,
    /// whatever that costs. Gives the transactions it made.
    async fn look(&mut self, rules: &FamilyRules, runner: &impl Runner, canary: bool, report: &Report) -> usize {
        let family = rules.family();
        let mut own = 0;
        // While syncs fail, they read the tables themselves.
        let settled = rules.knows_kernel_state() && rules.attempt().failures == 0;
        if canary && runner.canary(family).await == Some(false) {
            if settled {
                report.flushed(family);
                self.audit.next = Instant::now();
            }
            own = CANARIES;
            if let Err(error) = runner.set_canary(family).await {
                tracing::warn!("{family}: {error}");
            }
        }
        for table in Table::ALL.into_iter().filter(|_| settled) {
            let text = match runner.builtin_jumps(family, table).await {
                Ok(text) => text,
                Err(error) => {
                    tracing::debug!("{family}: the jumps in {table} were not looked at: {error}");
                    continue;
                }
            };
            let mut tables = Tables::default();
            tables.read(&text);
            let missing: Vec<&Jump> = tables.missing_jumps(table, |table, chain| rules.has_chain(table, chain)).collect();
            if !missing.is_empty() {
                report.cut_off(family, &missing);
                self.audit.next = Instant::now();
            }
        }
        own
    }
}
