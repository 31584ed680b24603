//! The rules of one family. Computes the desired rules from the inputs and writes the differences to the acknowledged rules. A rule only
//! counts as acknowledged after the kernel accepted it.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::rc::Rc;

use tokio::time::Instant;

use crate::cluster::host_facts::HostFacts;
use crate::cluster::{Family, ServiceKey, ServicePortName};
use crate::iptables::{IptablesError, Runner};
use crate::observe::latency::SyncPhases;
use crate::observe::sync_result::{RefusedPort, SyncAttempt, SyncResult};
use crate::proxy::rules::Renderer;
use crate::proxy::rules::inputs::Inputs;
use crate::table::Table;
use crate::table::acknowledged::{Acknowledged, Drift};
use crate::table::chain_names::ChainName;
use crate::table::desired::{Desired, Refresh};
use crate::table::final_counters::{self, CounterSelection};
use crate::table::live::LiveReader;
use crate::table::outline::{Outline, Outlines};
use crate::table::plan::{Plan, Variant};
use crate::table::planner::{self, CHAINS_PER_TRANSACTION, DesiredTables};
use crate::table::rule_counts::RuleTotals;
use crate::table::rules::RuleSource;

use super::decisions;
use super::quarantine::Quarantine;

/// After this many refusals, a sync ends and the next one continues, so that other changes do not wait longer.
const MOST_REFUSALS: usize = 16;

/// After this many refusals without a success, hundreds of service ports may be refused. From then on, each refusal halves the portion, so
/// that the service ports that iptables accepts are written early.
const IN_A_ROW: usize = 8;

/// The inputs that changed since the rules were last computed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stale {
    /// The Node, the settings or the host. All rules may be different.
    Everything,
    /// These Services.
    Services(BTreeSet<ServiceKey>),
}

/// A sync that failed.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct SyncError {
    /// The error that ended the sync.
    pub error: IptablesError,
    /// Service ports that iptables refused before the error.
    pub refused: Vec<RefusedPort>,
}

/// The rules of one family.
#[derive(Debug)]
pub struct FamilyRules {
    family: Family,
    stale: Stale,
    desired: Desired,
    large: bool,
    /// The acknowledged rules. `None` if the live tables have to be read first.
    acknowledged: Option<Acknowledged>,
    /// The last acknowledged rules of touched service ports, from before `acknowledged` became `None`. When the live tables are read, these
    /// rules are recognized as rules of the service ports and do not count as unknown rules.
    former: Outlines,
    /// Service ports whose desired rules may differ from the acknowledged ones.
    touched: BTreeSet<ServicePortName>,
    /// Fixed rules may differ from the acknowledged ones, or there may be unknown rules.
    fixed_is_due: bool,
    /// Service ports whose rules iptables refused.
    quarantine: Quarantine,
    /// Service ports of refused transactions. All other service ports are written before them.
    suspects: BTreeSet<ServicePortName>,
    /// The number of suspects to write at once. It is small until the refused ones are found.
    portion: usize,
    /// After iptables refused a transaction as a whole: false until the fixed rules are accepted without any service port, then true. `None`
    /// if that did not happen in this sync.
    fixed_accepted: Option<bool>,
    /// The number of refusals since the last success.
    refusals_in_a_row: usize,
    /// The largest number of chains in a transaction, on nft.
    chains_per_transaction: usize,
    /// Chains that iptables refused to delete, because rules of other programs jump to them.
    spared: Vec<ChainName>,
    /// The counts of the last sync.
    attempt: SyncAttempt,
    /// The rules whose final counters are read before a sync removes them.
    counter_selection: CounterSelection,
    /// Removed rules with their final counters, in the format of `iptables-save -c`.
    ended: Vec<String>,
}

impl FamilyRules {
    /// Creates the rules of a family. The first sync reads the live tables.
    #[must_use]
    pub fn new(family: Family) -> Self {
        Self {
            family,
            stale: Stale::Everything,
            desired: Desired::default(),
            large: false,
            acknowledged: None,
            former: Outlines::new(),
            touched: BTreeSet::new(),
            fixed_is_due: false,
            quarantine: Quarantine::default(),
            suspects: BTreeSet::new(),
            portion: usize::MAX,
            fixed_accepted: None,
            refusals_in_a_row: 0,
            chains_per_transaction: CHAINS_PER_TRANSACTION,
            spared: Vec::new(),
            attempt: SyncAttempt::default(),
            counter_selection: CounterSelection::default(),
            ended: Vec::new(),
        }
    }

    /// Changes the largest number of chains in a transaction, on nft.
    #[must_use]
    pub fn with_limit(mut self, limit: usize) -> Self {
        self.chains_per_transaction = limit;
        self
    }

    /// The family.
    #[must_use]
    pub const fn family(&self) -> Family {
        self.family
    }

    /// Notes that these Services changed.
    pub fn touch(&mut self, services: &[ServiceKey]) {
        if let Stale::Services(stale) = &mut self.stale {
            stale.extend(services.iter().cloned());
        }
    }

    /// Notes that anything may have changed.
    pub fn touch_everything(&mut self) {
        self.stale = Stale::Everything;
    }

    /// Returns true if a sync may have something to write.
    #[must_use]
    pub fn is_due(&self) -> bool {
        let trial = self.next_trial().is_some_and(|trial| trial <= Instant::now());
        trial
            || !matches!(&self.stale, Stale::Services(services) if services.is_empty())
            || self.acknowledged.is_none()
            || self.fixed_is_due
            || !self.touched.is_empty()
    }

    /// Returns true if the acknowledged rules are known.
    #[must_use]
    pub(crate) const fn knows_kernel_state(&self) -> bool {
        self.acknowledged.is_some()
    }

    /// The service ports that keep their old rules because iptables refuses the new ones.
    #[must_use]
    pub fn quarantined(&self) -> impl ExactSizeIterator<Item = &ServicePortName> {
        self.quarantine.names()
    }

    /// When a quarantined service port is tried again.
    #[must_use]
    pub fn next_trial(&self) -> Option<Instant> {
        self.quarantine.next_trial()
    }

    /// Sets the rules whose final counters are read before a sync removes them.
    pub const fn select_final_counters(&mut self, selection: CounterSelection) {
        self.counter_selection = selection;
    }

    /// Returns the removed rules with a counter above zero since the last call, in the format of `iptables-save -c`.
    pub fn take_ended(&mut self) -> Vec<String> {
        std::mem::take(&mut self.ended)
    }

    /// The counts of the last sync, also if it failed.
    #[must_use]
    pub const fn attempt(&self) -> &SyncAttempt {
        &self.attempt
    }

    /// Returns true if a fixed chain is desired.
    #[must_use]
    pub(crate) fn has_chain(&self, table: Table, chain: &str) -> bool {
        self.desired.fixed.has(table, chain)
    }

    /// The totals of the desired rules at the last sync.
    #[must_use]
    pub fn totals(&self) -> RuleTotals {
        self.desired.totals()
    }

    /// Writes the desired rules. If iptables refuses many service ports, the next call continues.
    ///
    /// # Errors
    /// The live tables cannot be read, or iptables fails for a reason other than the rules of one service port. The next call tries all
    /// rules again that are not acknowledged. The error contains the service ports that were refused before.
    pub async fn sync(&mut self, runner: &impl Runner, inputs: &Inputs, host: &HostFacts) -> Result<SyncResult, SyncError> {
        let mut synced = SyncResult { pod_rules: inputs.pod_rules.is_some(), ..SyncResult::default() };
        self.attempt = SyncAttempt::default();
        match self.try_sync(runner, inputs, host, &mut synced).await {
            Ok(()) => {
                synced.service_ports = self.desired.services().len();
                Ok(synced)
            }
            Err(error) => Err(SyncError { error, refused: synced.refused }),
        }
    }

    async fn try_sync(
        &mut self,
        runner: &impl Runner,
        inputs: &Inputs,
        host: &HostFacts,
        synced: &mut SyncResult,
    ) -> Result<(), IptablesError> {
        let start = Instant::now();
        let reason = decisions::enabled().then(|| self.reason());
        let renderer = self.refresh(inputs, host);
        self.release_quarantined();
        // The fixed rules may have changed. They are not part of `touched`, which only has service ports.
        self.fixed_is_due = true;
        self.fixed_accepted = None;
        synced.spent.render += start.elapsed();
        // True if the live tables were read since the last failure. If they were not, another program may have caused a refusal.
        let mut fresh = false;
        let mut selection = self.counter_selection;
        loop {
            let start = Instant::now();
            if self.acknowledged.is_none() {
                synced.read = true;
                self.read_acknowledged(runner).await?;
                fresh = true;
            }
            synced.spent.read += start.elapsed();

            let start = Instant::now();
            let mut now = self.next_portion();
            let mut plan = self.plan(&now, runner.variant());
            let lists = self.acknowledged.as_ref().is_some_and(|acknowledged| final_counters::list(&mut plan, acknowledged, selection));
            synced.spent.plan += start.elapsed();
            if let Some(reason) = &reason {
                decisions::planned(self.family, reason, &plan);
            }
            if !plan.is_empty() {
                if let Err(error) = self.restore(runner, &plan, &renderer, &mut synced.spent).await {
                    // A list step fails if its chain is missing, and not every iptables version names the line that failed. So try again
                    // without list steps first, before service ports are suspected.
                    let unlisted = lists && matches!(error, IptablesError::Refused { .. } | IptablesError::Failed { .. });
                    if unlisted || !fresh && matches!(error, IptablesError::Refused { .. }) {
                        self.attempt.unlisted |= unlisted;
                        selection = CounterSelection::default();
                        self.forget_acknowledged();
                        continue;
                    }
                    self.handle_refusal(error, &plan, &now, &mut synced.refused)?;
                    synced.unfinished = self.touched.iter().filter(|name| !self.quarantine.contains(name)).count();
                    if self.attempt.failures >= MOST_REFUSALS && synced.unfinished > 0 {
                        return Ok(());
                    }
                    continue;
                }
                self.attempt.written += plan.rules(&renderer);
                synced.extent += plan.extent();
            }
            self.acknowledge(&now);
            if !plan.is_empty() {
                synced.written.append(&mut now);
            }
            synced.unfinished = 0;
            if self.touched.is_empty() {
                return Ok(());
            }
        }
    }

    /// Reads the live rules and makes them the acknowledged ones. The service ports that differ from the desired rules are written next.
    async fn read_acknowledged(&mut self, runner: &impl Runner) -> Result<(), IptablesError> {
        self.attempt.full = true;
        let acknowledged = self.read_live(runner).await?;
        self.quarantine.set_former(&acknowledged.services);
        self.touch_different(&acknowledged);
        self.acknowledged = Some(acknowledged);
        Ok(())
    }

    /// Returns why a sync is due, for the log.
    fn reason(&self) -> String {
        match &self.stale {
            _ if self.acknowledged.is_none() => "the live tables have to be read".to_owned(),
            Stale::Everything => "the Node, the settings or the host may have changed".to_owned(),
            Stale::Services(services) if !services.is_empty() => format!("Services have changed: {}", decisions::names(services.iter())),
            Stale::Services(_) if !self.touched.is_empty() => {
                format!("the rules of service ports differ: {}", decisions::names(self.touched.iter()))
            }
            Stale::Services(_) if self.fixed_is_due => "fixed chains or shared chains differ".to_owned(),
            Stale::Services(_) => "service ports that iptables refused are tried again".to_owned(),
        }
    }

    /// Applies a plan, and keeps the final counters that it prints.
    async fn restore(
        &mut self,
        runner: &impl Runner,
        plan: &Plan,
        renderer: &dyn RuleSource,
        spent: &mut SyncPhases,
    ) -> Result<(), IptablesError> {
        let start = Instant::now();
        self.attempt.transactions += plan.transactions.len();
        let outcome = runner.restore(self.family, plan, renderer).await;
        let locked = outcome.as_ref().map_or_else(IptablesError::waited, |restored| restored.locked);
        spent.lock += locked;
        spent.restore += start.elapsed().saturating_sub(locked);
        match outcome {
            Ok(restored) => {
                self.ended.append(&mut final_counters::ended(plan, &restored.listed));
                Ok(())
            }
            Err(error) => {
                self.attempt.failures += 1;
                self.attempt.partial_failures += usize::from(!self.attempt.full);
                Err(error)
            }
        }
    }

    /// Reads the live tables and compares them with the acknowledged rules. The next sync writes the differences.
    ///
    /// # Errors
    /// The tables cannot be read.
    pub async fn audit(&mut self, runner: &impl Runner) -> Result<Drift, IptablesError> {
        let Some(acknowledged) = &self.acknowledged else { return Ok(Drift::default()) };
        let now = self.read_live(runner).await?;
        if self.is_due() {
            // Rules that are not written yet also differ. They are no drift.
            self.touch_different(&now);
            self.acknowledged = Some(now);
            return Ok(Drift::default());
        }
        let drift = acknowledged.drift(&now, &self.desired.fixed);
        if !drift.is_empty() {
            self.touched.extend(drift.services.iter().cloned());
            self.fixed_is_due = true;
            // The rules that prevented the deletion of chains may be gone.
            self.spared.clear();
        }
        self.acknowledged = Some(now);
        Ok(drift)
    }

    /// Computes the desired rules again from the stale inputs.
    fn refresh<'a>(&mut self, inputs: &'a Inputs, host: &HostFacts) -> Renderer<'a> {
        let stale = std::mem::replace(&mut self.stale, Stale::Services(BTreeSet::new()));
        let what = match &stale {
            Stale::Everything => Refresh::All,
            Stale::Services(services) => Refresh::Services(services),
        };
        let counter = Renderer::new(inputs, host, self.family);
        self.desired.count(&counter, what);
        let renderer = counter.for_size(self.desired.endpoints());
        // If the cluster becomes large or small, the comments of all endpoint rules change.
        let what = if renderer.large() == self.large { what } else { Refresh::All };
        self.large = renderer.large();
        self.attempt.full = matches!(what, Refresh::All);
        let changed = self.desired.refresh(&renderer, what);
        // iptables may accept the changed rules.
        self.quarantine.forget(&changed);
        self.touched.extend(changed);
        renderer
    }

    /// Releases service ports from quarantine that are due for another try.
    fn release_quarantined(&mut self) {
        self.touched.extend(self.quarantine.release(Instant::now()));
    }

    /// Notes the service ports whose live rules differ from the desired ones.
    fn touch_different(&mut self, live: &Acknowledged) {
        let same = |name, outline| live.services.get(name).is_some_and(|live| Rc::ptr_eq(live, outline));
        let different = self.desired.services().iter().filter(|(name, outline)| !same(name, outline));
        self.touched.extend(different.map(|(name, _)| name.clone()));
    }

    /// Returns the service ports to write next: all that are not suspects, else some suspects. If a transaction was refused as a whole,
    /// first none, which shows whether a service port is the cause at all.
    fn next_portion(&self) -> BTreeSet<ServicePortName> {
        if self.fixed_accepted == Some(false) {
            return BTreeSet::new();
        }
        let free = || self.touched.iter().filter(|name| !self.quarantine.contains(name));
        let others: BTreeSet<ServicePortName> = free().filter(|name| !self.suspects.contains(*name)).cloned().collect();
        if others.is_empty() { free().take(self.portion).cloned().collect() } else { others }
    }

    /// Reads the live tables.
    async fn read_live(&self, runner: &impl Runner) -> Result<Acknowledged, IptablesError> {
        let known = self.known_outlines();
        let mut reader = LiveReader::new(&known, &self.desired.fixed);
        for table in Table::ALL {
            runner.save(self.family, table, &mut |line| reader.line(line)).await?;
        }
        Ok(Acknowledged::from_live(reader.finish(), &known))
    }

    /// Returns the rules that belong to service ports in the live tables: the desired rules, the former rules of touched service ports, and
    /// the former rules of quarantined ones.
    fn known_outlines(&self) -> Cow<'_, Outlines> {
        let mut known = Cow::Borrowed(self.desired.services());
        for (name, former) in &self.former {
            let outline = known.get(name).map_or_else(|| Rc::clone(former), |desired| Rc::new(desired.merge(former)));
            overlay(known.to_mut(), name, Some(&outline));
        }
        for (name, former) in self.quarantine.former() {
            overlay(known.to_mut(), name, former);
        }
        known
    }

    /// Returns the rules to write: the desired rules, except that quarantined service ports keep their former rules.
    fn outlines_to_write(&self) -> Cow<'_, Outlines> {
        let mut outlines = Cow::Borrowed(self.desired.services());
        for (name, former) in self.quarantine.former() {
            overlay(outlines.to_mut(), name, former);
        }
        outlines
    }

    /// Drops the acknowledged rules, because the live tables may differ from them. The live tables are read before the next write.
    fn forget_acknowledged(&mut self) {
        let Some(acknowledged) = self.acknowledged.take() else { return };
        let outlines = self.touched.iter().filter_map(|name| Some((name.clone(), Rc::clone(acknowledged.services.get(name)?))));
        self.former.extend(outlines);
    }

    /// Plans the rules of these service ports and all fixed rules. Other touched service ports keep their acknowledged rules.
    fn plan(&self, now: &BTreeSet<ServicePortName>, variant: Variant) -> Plan {
        let Some(acknowledged) = &self.acknowledged else { return Plan::default() };
        let mut services = self.outlines_to_write();
        for later in self.touched.difference(now).filter(|name| !self.quarantine.contains(name)) {
            overlay(services.to_mut(), later, acknowledged.services.get(later));
        }
        let desired = DesiredTables { services: &services, fixed: &self.desired.fixed, spared: &self.spared };
        planner::plan(&desired, acknowledged, now, variant, self.chains_per_transaction)
    }

    /// Records that the kernel accepted the rules of these service ports and all fixed rules.
    fn acknowledge(&mut self, now: &BTreeSet<ServicePortName>) {
        if let Some(acknowledged) = &mut self.acknowledged {
            acknowledged.accept_plan(self.desired.services(), &self.desired.fixed, now, &self.spared);
        }
        // Quarantined service ports wait until they change or are due for another try.
        self.touched.retain(|name| !now.contains(name) && !self.quarantine.contains(name));
        self.former.retain(|name, _| !now.contains(name) && !self.quarantine.contains(name));
        self.touched.extend(self.quarantine.accepted(now));
        self.fixed_is_due = false;
        self.refusals_in_a_row = 0;
        if self.fixed_accepted == Some(false) {
            self.fixed_accepted = Some(true);
        } else if self.touched.is_empty() {
            self.suspects.clear();
            self.portion = usize::MAX;
        } else if now.iter().any(|name| self.suspects.remove(name)) {
            self.portion = self.portion.saturating_mul(2);
        }
    }

    /// Finds out which rules iptables refused, so that the next portion leaves them out. Returns the error if no service port is the cause.
    fn handle_refusal(
        &mut self,
        error: IptablesError,
        plan: &Plan,
        now: &BTreeSet<ServicePortName>,
        refused: &mut Vec<RefusedPort>,
    ) -> Result<(), IptablesError> {
        // A single transaction is applied as a whole or not at all. Of several, some may have been applied.
        let atomic = plan.transactions.len() == 1 && matches!(error, IptablesError::Refused { .. } | IptablesError::Locked { .. });
        let former: Outlines = self.acknowledged.as_ref().map(|acknowledged| acknowledged.services.clone()).unwrap_or_default();
        if !atomic {
            self.forget_acknowledged();
        }
        let IptablesError::Refused { text, owner, output, .. } = &error else { return Err(error) };
        if let Some(chain) = text.strip_prefix("-X ").and_then(ChainName::from_text) {
            tracing::warn!("cannot delete chain {chain}; it stays empty: {output}");
            self.spared.push(chain);
            return Ok(());
        }
        tracing::debug!("{}: iptables refused one of {} service ports in a transaction at {text:?}", self.family, now.len());
        let culprit = match owner {
            Some(owner) => (**owner).clone(),
            // The kernel refused the transaction as a whole, so no line is named. The next portion has no service port, which shows whether
            // a service port is the cause. After that, each portion has half of the suspects.
            None if text == "COMMIT" && self.fixed_accepted != Some(false) => match now.iter().next() {
                Some(only) if now.len() == 1 && self.fixed_accepted == Some(true) => only.clone(),
                Some(_) => {
                    self.fixed_accepted.get_or_insert(false);
                    self.add_suspects(now, now.len() / 2);
                    return Ok(());
                }
                None => return Err(error),
            },
            None => return Err(error),
        };
        if self.quarantine.contains(&culprit) {
            // iptables does not accept the former rules any more either.
            let had_rules = self.quarantine.drop_former(&culprit);
            self.forget_acknowledged();
            return if had_rules { Ok(()) } else { Err(error) };
        }
        self.refusals_in_a_row += 1;
        self.add_suspects(now, if self.refusals_in_a_row < IN_A_ROW { self.portion } else { now.len() / 2 });
        self.suspects.remove(&culprit);
        self.quarantine.add(&culprit, former.get(&culprit).cloned(), output, Instant::now());
        refused.push(RefusedPort { name: culprit, cause: error.to_string() });
        Ok(())
    }

    /// Adds the service ports of a refused transaction to the suspects. `portion` is the number of suspects to write next.
    fn add_suspects(&mut self, now: &BTreeSet<ServicePortName>, portion: usize) {
        self.suspects.extend(now.iter().cloned());
        self.portion = portion.max(1);
    }
}

/// Sets the outline of a service port, or removes it if there is none.
fn overlay(services: &mut Outlines, name: &ServicePortName, outline: Option<&Rc<Outline>>) {
    match outline {
        Some(outline) => drop(services.insert(name.clone(), Rc::clone(outline))),
        None => drop(services.remove(name)),
    }
}
