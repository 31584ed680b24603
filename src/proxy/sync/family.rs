//! One family's rules: from what the cluster wants to what the kernel has acknowledged. Nothing is taken as done before the kernel said
//! so: what is desired is computed from the inputs, and whatever differs from what was acknowledged is written.

use crate::observe::sync_result::SyncAttempt;
use crate::observe::sync_result::SyncResult;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::rc::Rc;

use tokio::time::Instant;

use crate::cluster::host_facts::HostFacts;
use crate::cluster::{Family, ServiceKey, ServicePortName};
use crate::iptables::{IptablesError, Runner};
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
use crate::observe::latency::SyncPhases;
use crate::observe::sync_result::RefusedPort;

/// After so many refusals a sync ends and leaves the rest to the next one: other changes do not wait for it longer.
const MOST_REFUSALS: usize = 16;

/// After so many refusals in a row there may be hundreds; smaller portions let pass what is between them.
const IN_A_ROW: usize = 8;

/// What has changed since the rules were last computed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stale {
    /// The Node, the settings, the host: anything may be different.
    Everything,
    /// These Services.
    Services(BTreeSet<ServiceKey>),
}

/// A sync that failed.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct SyncError {
    /// Why.
    pub error: IptablesError,
    /// Service ports that iptables refused before that.
    pub refused: Vec<RefusedPort>,
}

/// The rules of one family.
#[derive(Debug)]
pub struct FamilyRules {
    family: Family,
    stale: Stale,
    desired: Desired,
    large: bool,
    /// What the kernel holds; `None` if that has to be read first.
    held: Option<Acknowledged>,
    /// What touched service ports had when the tables were last known: those rules are theirs still, not strangers'.
    former: Outlines,
    /// Service ports whose desired rules may differ from what the kernel holds.
    touched: BTreeSet<ServicePortName>,
    /// Something that is no service port's differs from what the kernel holds.
    unsettled: bool,
    /// Service ports whose rules iptables refused.
    quarantine: Quarantine,
    /// Service ports that were part of something that was refused; all others go before them.
    suspects: BTreeSet<ServicePortName>,
    /// How many suspects are written in one go: fewer while it is not known which of them iptables refuses.
    at_once: usize,
    /// Whether what is nobody's was taken without them in this sync; `None` while that is not in question.
    cleared: Option<bool>,
    /// Refusals with nothing taken between them.
    in_a_row: usize,
    /// On nft, how many chains a transaction mentions.
    limit: usize,
    /// Chains that iptables refused to delete: something foreign jumps to them.
    spared: Vec<ChainName>,
    /// What the last sync came to.
    attempt: SyncAttempt,
    /// Whose counters somebody wants to know before they end.
    counted: CounterSelection,
    /// Rules that ended since that was asked, each as `iptables-save -c` would print it.
    ended: Vec<String>,
}

impl FamilyRules {
    /// Nothing is known of the kernel yet.
    #[must_use]
    pub fn new(family: Family) -> Self {
        Self {
            family,
            stale: Stale::Everything,
            desired: Desired::default(),
            large: false,
            held: None,
            former: Outlines::new(),
            touched: BTreeSet::new(),
            unsettled: false,
            quarantine: Quarantine::default(),
            suspects: BTreeSet::new(),
            at_once: usize::MAX,
            cleared: None,
            in_a_row: 0,
            limit: CHAINS_PER_TRANSACTION,
            spared: Vec::new(),
            attempt: SyncAttempt::default(),
            counted: CounterSelection::default(),
            ended: Vec::new(),
        }
    }

    /// On nft, writes in transactions that take no more Services once they mention so many chains.
    #[must_use]
    pub fn with_limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// The family.
    #[must_use]
    pub const fn family(&self) -> Family {
        self.family
    }

    /// These Services changed.
    pub fn touch(&mut self, services: &[ServiceKey]) {
        if let Stale::Services(stale) = &mut self.stale {
            stale.extend(services.iter().cloned());
        }
    }

    /// Anything may have changed.
    pub fn touch_everything(&mut self) {
        self.stale = Stale::Everything;
    }

    /// Whether there may be something to write.
    #[must_use]
    pub fn is_due(&self) -> bool {
        let trial = self.next_trial().is_some_and(|trial| trial <= Instant::now());
        trial
            || !matches!(&self.stale, Stale::Services(services) if services.is_empty())
            || self.held.is_none()
            || self.unsettled
            || !self.touched.is_empty()
    }

    /// Whether what the kernel holds is known.
    #[must_use]
    pub const fn knows_kernel_state(&self) -> bool {
        self.held.is_some()
    }

    /// The service ports that are left as they are because iptables refuses their rules.
    #[must_use]
    pub fn quarantined(&self) -> impl ExactSizeIterator<Item = &ServicePortName> {
        self.quarantine.names()
    }

    /// When the next of them is tried again.
    #[must_use]
    pub fn next_trial(&self) -> Option<Instant> {
        self.quarantine.next_trial()
    }

    /// From now on, rules whose counters a sync ends are listed before, as far as these are wanted.
    pub const fn count(&mut self, counted: CounterSelection) {
        self.counted = counted;
    }

    /// Rules that ended since this was asked last and that had counted something, each as `iptables-save -c` would print it.
    pub fn take_ended(&mut self) -> Vec<String> {
        std::mem::take(&mut self.ended)
    }

    /// What the last sync came to, well or not.
    #[must_use]
    pub const fn attempt(&self) -> &SyncAttempt {
        &self.attempt
    }

    /// Whether a chain that is no service port's should be there.
    #[must_use]
    pub fn has_chain(&self, table: Table, chain: &str) -> bool {
        self.desired.fixed.has(table, chain)
    }

    /// What the desired rules come to, as of the last sync.
    #[must_use]
    pub fn totals(&self) -> RuleTotals {
        self.desired.totals()
    }

    /// Makes the kernel hold what is desired. Where it refuses many service ports, what is left is for the next call.
    ///
    /// # Errors
    /// The live tables cannot be read, or the plan cannot be carried out and no single service port is to blame. Nothing is lost: the
    /// next call tries everything that is not acknowledged. Service ports that were refused before that are told of with the error.
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
        self.release();
        // What is fixed may have changed, too; that has no service port to be touched.
        self.unsettled = true;
        self.cleared = None;
        synced.spent.render += start.elapsed();
        // Whether what is held was read since the last failure: nobody is to blame for tables that somebody else has changed.
        let mut fresh = false;
        let mut counted = self.counted;
        loop {
            let start = Instant::now();
            if self.held.is_none() {
                synced.read = true;
                self.attempt.full = true;
                let held = self.read(runner).await?;
                self.quarantine.keep(&held.services);
                self.touch_different(&held);
                self.held = Some(held);
                fresh = true;
            }
            synced.spent.read += start.elapsed();

            let start = Instant::now();
            let mut now = self.next_portion();
            let mut plan = self.plan(&now, runner.variant());
            let lists = self.held.as_ref().is_some_and(|held| final_counters::list(&mut plan, held, counted));
            synced.spent.plan += start.elapsed();
            if let Some(reason) = &reason {
                decisions::planned(self.family, reason, &plan);
            }
            if !plan.is_empty() {
                if let Err(error) = self.restore(runner, &plan, &renderer, &mut synced.spent).await {
                    // A chain to list may be gone, and not every program says so by its line. Rules are not to blame before.
                    let unlisted = lists && matches!(error, IptablesError::Refused { .. } | IptablesError::Failed { .. });
                    if unlisted || !fresh && matches!(error, IptablesError::Refused { .. }) {
                        self.attempt.unlisted |= unlisted;
                        counted = CounterSelection::default();
                        self.distrust();
                        continue;
                    }
                    self.learn(error, &plan, &now, &mut synced.refused)?;
                    synced.unfinished = self.touched.iter().filter(|name| !self.quarantine.holds(name)).count();
                    if self.attempt.failures >= MOST_REFUSALS && synced.unfinished > 0 {
                        return Ok(());
                    }
                    continue;
                }
                self.attempt.written += plan.rules(&renderer);
                let extent = plan.extent();
                synced.extent.chains += extent.chains;
                synced.extent.deleted += extent.deleted;
                synced.extent.edits += extent.edits;
                synced.extent.transactions += extent.transactions;
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

    /// Why a sync is due, for the log.
    fn reason(&self) -> String {
        match &self.stale {
            _ if self.held.is_none() => "the live tables have to be read".to_owned(),
            Stale::Everything => "the Node, the settings or the host may have changed".to_owned(),
            Stale::Services(services) if !services.is_empty() => format!("Services have changed: {}", decisions::names(services.iter())),
            Stale::Services(_) if !self.touched.is_empty() => {
                format!("the rules of service ports are not as they should be: {}", decisions::names(self.touched.iter()))
            }
            Stale::Services(_) if self.unsettled => "shared chains are not as they should be".to_owned(),
            Stale::Services(_) => "service ports that iptables refused are tried again".to_owned(),
        }
    }

    /// Has a plan carried out, and keeps what its lists say.
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

    /// Reads the live tables and compares them with what was acknowledged; what differs is written by the next sync.
    ///
    /// # Errors
    /// They cannot be read.
    pub async fn audit(&mut self, runner: &impl Runner) -> Result<Drift, IptablesError> {
        let Some(held) = &self.held else { return Ok(Drift::default()) };
        let now = self.read(runner).await?;
        if self.is_due() {
            // What is still to be written differs, and is nobody's doing.
            self.touch_different(&now);
            self.held = Some(now);
            return Ok(Drift::default());
        }
        let drift = held.drift(&now, &self.desired.fixed);
        if !drift.is_empty() {
            self.touched.extend(drift.services.iter().cloned());
            self.unsettled = true;
            // What could not be deleted may have lost what kept it.
            self.spared.clear();
        }
        self.held = Some(now);
        Ok(drift)
    }

    fn refresh<'a>(&mut self, inputs: &'a Inputs, host: &HostFacts) -> Renderer<'a> {
        let stale = std::mem::replace(&mut self.stale, Stale::Services(BTreeSet::new()));
        let what = match &stale {
            Stale::Everything => Refresh::All,
            Stale::Services(services) => Refresh::Services(services),
        };
        let counter = Renderer::new(inputs, host, self.family);
        self.desired.count(&counter, what);
        let renderer = counter.for_size(self.desired.endpoints());
        // A cluster that becomes large, or is no longer, looks different everywhere.
        let what = if renderer.large() == self.large { what } else { Refresh::All };
        self.large = renderer.large();
        self.attempt.full = matches!(what, Refresh::All);
        let changed = self.desired.refresh(&renderer, what);
        // What changed may be acceptable now.
        self.quarantine.forget(&changed);
        self.touched.extend(changed);
        renderer
    }

    /// Lets those out of quarantine whose time has come.
    fn release(&mut self) {
        self.touched.extend(self.quarantine.release(Instant::now()));
    }

    /// Notes the service ports whose rules are not the desired ones in what was read.
    fn touch_different(&mut self, held: &Acknowledged) {
        let same = |name, outline| held.services.get(name).is_some_and(|held| Rc::ptr_eq(held, outline));
        let different = self.desired.services().iter().filter(|(name, outline)| !same(name, outline));
        self.touched.extend(different.map(|(name, _)| name.clone()));
    }

    /// The service ports to write next: none to see whether what is refused is theirs at all; all that nothing speaks against; else some
    /// suspects.
    fn next_portion(&self) -> BTreeSet<ServicePortName> {
        if self.cleared == Some(false) {
            return BTreeSet::new();
        }
        let free = || self.touched.iter().filter(|name| !self.quarantine.holds(name));
        let innocent: BTreeSet<ServicePortName> = free().filter(|name| !self.suspects.contains(*name)).cloned().collect();
        if innocent.is_empty() { free().take(self.at_once).cloned().collect() } else { innocent }
    }

    async fn read(&self, runner: &impl Runner) -> Result<Acknowledged, IptablesError> {
        let claimed = self.claimed();
        let mut reader = LiveReader::new(&claimed, &self.desired.fixed);
        for table in Table::ALL {
            runner.save(self.family, table, &mut |line| reader.line(line)).await?;
        }
        Ok(Acknowledged::from_live(reader.finish(), &claimed))
    }

    /// Whose rules are not strange in the live tables: what is desired, and for service ports in quarantine what they last had.
    fn claimed(&self) -> Cow<'_, Outlines> {
        let mut claimed = Cow::Borrowed(self.desired.services());
        for (name, former) in &self.former {
            let outline = claimed.get(name).map_or_else(|| Rc::clone(former), |desired| Rc::new(desired.merge(former)));
            overlay(claimed.to_mut(), name, Some(&outline));
        }
        for (name, kept) in self.quarantine.kept() {
            overlay(claimed.to_mut(), name, kept);
        }
        claimed
    }

    /// What is to be written: what is desired, and for service ports in quarantine what they have.
    fn wanted(&self) -> Cow<'_, Outlines> {
        let mut wanted = Cow::Borrowed(self.desired.services());
        for (name, kept) in self.quarantine.kept() {
            overlay(wanted.to_mut(), name, kept);
        }
        wanted
    }

    /// The tables may be other than they were thought to be: they are read before anything else is written.
    fn distrust(&mut self) {
        let Some(held) = self.held.take() else { return };
        let had = self.touched.iter().filter_map(|name| Some((name.clone(), Rc::clone(held.services.get(name)?))));
        self.former.extend(had);
    }

    fn plan(&self, now: &BTreeSet<ServicePortName>, variant: Variant) -> Plan {
        let Some(held) = &self.held else { return Plan::default() };
        let mut services = self.wanted();
        for later in self.touched.difference(now).filter(|name| !self.quarantine.holds(name)) {
            overlay(services.to_mut(), later, held.services.get(later));
        }
        let wanted = DesiredTables { services: &services, fixed: &self.desired.fixed, spared: &self.spared };
        planner::plan(&wanted, held, now, variant, self.limit)
    }

    fn acknowledge(&mut self, now: &BTreeSet<ServicePortName>) {
        if let Some(held) = &mut self.held {
            held.accept_plan(self.desired.services(), &self.desired.fixed, now, &self.spared);
        }
        // Those in quarantine wait for their time, or for their change.
        self.touched.retain(|name| !now.contains(name) && !self.quarantine.holds(name));
        self.former.retain(|name, _| !now.contains(name) && !self.quarantine.holds(name));
        self.touched.extend(self.quarantine.took(now));
        self.unsettled = false;
        self.in_a_row = 0;
        if self.cleared == Some(false) {
            self.cleared = Some(true);
        } else if self.touched.is_empty() {
            self.suspects.clear();
            self.at_once = usize::MAX;
        } else if now.iter().any(|name| self.suspects.remove(name)) {
            self.at_once = self.at_once.saturating_mul(2);
        }
    }

    /// Draws the conclusion from a plan that failed; an error if there is none but to try again later.
    fn learn(
        &mut self,
        error: IptablesError,
        plan: &Plan,
        now: &BTreeSet<ServicePortName>,
        refused: &mut Vec<RefusedPort>,
    ) -> Result<(), IptablesError> {
        // One transaction takes effect as a whole or not at all; of several, nobody knows how far they got.
        let atomic = plan.transactions.len() == 1 && matches!(error, IptablesError::Refused { .. } | IptablesError::Locked { .. });
        let had: Outlines = self.held.as_ref().map(|held| held.services.clone()).unwrap_or_default();
        if !atomic {
            self.distrust();
        }
        let IptablesError::Refused { text, owner, output, .. } = &error else { return Err(error) };
        if let Some(chain) = text.strip_prefix("-X ").and_then(ChainName::from_text) {
            tracing::warn!("chain {chain} cannot be deleted, it stays behind empty: {output}");
            self.spared.push(chain);
            return Ok(());
        }
        tracing::debug!("{}: iptables refused one of {} service ports in a transaction at {text:?}", self.family, now.len());
        let culprit = match owner {
            Some(owner) => (**owner).clone(),
            // What the kernel refuses as a whole has no line to its name. First, is it any service port? Then, which half of them?
            None if text == "COMMIT" && self.cleared != Some(false) => match now.iter().next() {
                Some(only) if now.len() == 1 && self.cleared == Some(true) => only.clone(),
                Some(_) => {
                    self.cleared.get_or_insert(false);
                    self.suspect(now, now.len() / 2);
                    return Ok(());
                }
                None => return Err(error),
            },
            None => return Err(error),
        };
        if self.quarantine.holds(&culprit) {
            // Not even what it had is taken any more.
            let gave_up = self.quarantine.give_up(&culprit);
            self.distrust();
            return if gave_up { Ok(()) } else { Err(error) };
        }
        self.in_a_row += 1;
        self.suspect(now, if self.in_a_row < IN_A_ROW { self.at_once } else { now.len() / 2 });
        self.suspects.remove(&culprit);
        self.quarantine.put(&culprit, had.get(&culprit).cloned(), output, Instant::now());
        refused.push(RefusedPort { name: culprit, cause: error.to_string() });
        Ok(())
    }

    /// These were part of what was refused; so many of them are tried next.
    fn suspect(&mut self, now: &BTreeSet<ServicePortName>, at_once: usize) {
        self.suspects.extend(now.iter().cloned());
        self.at_once = at_once.max(1);
    }
}

fn overlay(services: &mut Outlines, name: &ServicePortName, outline: Option<&Rc<Outline>>) {
    match outline {
        Some(outline) => drop(services.insert(name.clone(), Rc::clone(outline))),
        None => drop(services.remove(name)),
    }
}
