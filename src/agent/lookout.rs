//! When to look whether somebody else changed the tables, and what to look at: neither more often than it is worth, nor later than it hurts.
//!
//! On nft the kernel keeps a number that every change of tables moves, so tables are read when somebody else has moved it, and at once if
//! they were not read lately. On legacy they are read every sync period. Either way what a look costs decides how soon the next one comes.

use std::time::Duration;

use tokio::time::Instant;

use crate::iptables::Runner;
use crate::rules::jumps::Jump;
use crate::table::Table;
use crate::table::parse::Tables;

use super::family::FamilyRules;
use super::report::Report;

/// Reading all live tables may take one part in this many of the time, and so may reading the chains that lead to ours.
const SHARE: u32 = 200;

/// Tables that nobody changes are read this rarely.
const TRUST: Duration = Duration::from_secs(3600);

/// Transactions that canaries take.
const CANARIES: usize = 3;

/// When one family's tables are looked at.
#[derive(Debug)]
pub(super) struct Lookout {
    /// When the canary and the jumps are looked for next, and from when on that is cheap enough.
    look: Instant,
    look_affordable: Instant,
    /// When all live tables are read next, and from when on that is cheap enough.
    audit: Instant,
    audit_affordable: Instant,
    /// Whether somebody else may have changed tables since they were last read; `None` where that cannot be told. Until somebody has there
    /// is little to look at.
    disturbed: Option<bool>,
}

impl Lookout {
    /// Canaries are looked for at once; the first sync reads the tables.
    pub(super) fn new(period: Duration) -> Self {
        let now = Instant::now();
        Self { look: now, look_affordable: now, audit: now + period, audit_affordable: now, disturbed: None }
    }

    /// When there is something to look at.
    pub(super) fn next(&self) -> Instant {
        self.look.min(self.audit)
    }

    /// Nothing is looked at before this.
    pub(super) fn put_off(&mut self, until: Instant) {
        (self.look, self.audit) = (self.look.max(until), self.audit.max(until));
    }

    /// It cannot be told whether somebody else changes tables.
    pub(super) fn blind(&mut self) {
        if self.disturbed.take() == Some(false) {
            self.disturb();
            self.disturbed = None;
        }
    }

    /// Somebody else has changed tables: they are looked at as soon as that is affordable.
    pub(super) fn disturb(&mut self) {
        self.disturbed = Some(true);
        self.look = self.look.min(self.look_affordable);
        self.audit = self.audit.min(self.audit_affordable);
    }

    /// Looks at the tables, where it is time; every `period`, where nothing tells whether that is needed. Gives the transactions it made.
    pub(super) async fn look_after(&mut self, rules: &mut FamilyRules, runner: &impl Runner, period: Duration, report: &Report) -> usize {
        let mut own = 0;
        if self.look <= Instant::now() {
            let start = Instant::now();
            own = self.look(rules, runner, report).await;
            self.look_affordable = Instant::now() + start.elapsed() * SHARE;
            self.look = self.look_affordable.max(Instant::now() + period);
        }
        if self.audit <= Instant::now() {
            let start = Instant::now();
            let outcome = rules.audit(runner).await;
            self.audit_affordable = Instant::now() + start.elapsed() * SHARE;
            self.audit = self.audit_affordable.max(Instant::now() + period);
            match outcome {
                Ok(drift) => {
                    report.audited(rules.family(), &drift);
                    if let Some(disturbed) = &mut self.disturbed {
                        *disturbed = false;
                        (self.look, self.audit) = (Instant::now() + TRUST, Instant::now() + TRUST);
                    }
                }
                Err(error) => tracing::warn!("{}: the live tables were not looked at: {error}", rules.family()),
            }
        }
        own
    }

    /// Looks for what is lost when tables are flushed: the canary, and the jumps into our chains. Without them all tables are read at once,
    /// whatever that costs. Gives the transactions it made.
    async fn look(&mut self, rules: &FamilyRules, runner: &impl Runner, report: &Report) -> usize {
        let family = rules.family();
        let mut own = 0;
        // While syncs fail, they read the tables themselves.
        let settled = rules.is_settled() && rules.attempt().failures == 0;
        if runner.canary(family).await == Some(false) {
            if settled {
                report.flushed(family);
                self.audit = Instant::now();
            }
            own = CANARIES;
            if let Err(error) = runner.set_canary(family).await {
                tracing::warn!("{family}: {error}");
            }
        }
        for table in Table::ALL.into_iter().filter(|_| settled) {
            let text = match runner.entrances(family, table).await {
                Ok(text) => text,
                Err(error) => {
                    tracing::debug!("{family}: the jumps in {table} were not looked at: {error}");
                    continue;
                }
            };
            let mut tables = Tables::default();
            tables.read(&text);
            let missing: Vec<&Jump> = tables.missing_jumps(table).collect();
            if !missing.is_empty() {
                report.cut_off(family, &missing);
                self.audit = Instant::now();
            }
        }
        own
    }
}
