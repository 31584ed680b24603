//! The loop of the service proxy: receives updates, syncs changed rules, repairs changes of other programs, and tries failed syncs again.

use std::collections::{BTreeSet, HashSet};
use std::hash::BuildHasher;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, sleep_until};

use crate::bad_setting::BadSetting;
use crate::cluster::host_facts::HostFacts;
use crate::cluster::{AffectedObjects, Change, Family, Protocol, ServiceKey};
use crate::iptables::Runner;
use crate::kubernetes::{ChangeTime, ClusterUpdate, Kind, ListedNames};
use crate::netlink::Host;
use crate::netlink::sysctl::{RouteLocalnetError, allow_route_localnet};
use crate::observe::query::{PendingQuery, ProxyQuery, QueryChannel};
use crate::proxy::rules::inputs::Inputs;
use crate::proxy::rules::view::{NodePorts, needs_route_localnet};
use crate::proxy::settings::NodePortAddresses;
use crate::proxy::traffic::FinalCounters;

use super::decisions;
use super::facts::usable_facts;
use super::family_loop::FamilyLoop;
use super::flow_loop::FlowSender;
use super::report::Report;
use super::service_health::ServiceHealth;
use super::status::{StatusAnswer, StatusView};
use super::sync_budget::SyncBudget;
use super::update::Update;

/// The longest time that rules wait for the Node to have an IP, if they depend on it [kube-proxy 1.5].
const NODE_IP_PATIENCE: Duration = Duration::from_secs(30);

/// How often the generation number of the tables is read.
const GENERATION_PERIOD: Duration = Duration::from_secs(1);

/// The loop and its state.
pub struct ProxyLoop<R, H> {
    runner: R,
    host: H,
    random_fully: bool,
    /// The start of the loop. Latencies are only measured for changes that happened after it.
    started: Timestamp,
    inputs: Inputs,
    facts: Option<HostFacts>,
    families: Vec<FamilyLoop>,
    /// Limits the time that all families together spend on syncs.
    budget: SyncBudget,
    /// The last generation number of the tables, if the kernel has one.
    generation: Option<u32>,
    report: Report,
    /// Hashes of the Services that changed since the last sync. Only their number is used.
    changed: HashSet<u64>,
    /// The largest number of updates in the queue since the last sync.
    waiting: usize,
    /// The kinds whose first list is not complete yet.
    awaited: BTreeSet<Kind>,
    /// The inputs were complete once. From then on, changes queue syncs.
    begun: bool,
    /// The last warning about a missing input, so that it is only logged once.
    missing_input: Option<String>,
    /// Queries of the status page, and the function that answers them.
    queries: Receiver<PendingQuery<ProxyQuery>>,
    answer: StatusAnswer,
}

/// An error that prevents the sync of all families.
#[derive(Debug, thiserror::Error)]
enum HostError {
    #[error("{0}")]
    Facts(#[from] BadSetting),
    #[error("{0}")]
    RouteLocalnet(#[from] RouteLocalnetError),
}

impl<R: Runner, H: Host> ProxyLoop<R, H> {
    /// Creates a loop that starts with these inputs. It writes nothing before all objects are listed.
    pub fn new(runner: R, host: H, random_fully: bool, inputs: Inputs, report: Report) -> Self {
        let awaited = BTreeSet::from([Kind::Service, Kind::EndpointSlice, Kind::Node]);
        Self {
            runner,
            host,
            random_fully,
            started: Timestamp::now(),
            inputs,
            facts: None,
            families: Vec::new(),
            budget: SyncBudget::new(),
            generation: None,
            report,
            changed: HashSet::new(),
            waiting: 0,
            awaited,
            begun: false,
            missing_input: None,
            queries: QueryChannel::default().open(),
            answer: |_, _| Value::Null,
        }
    }

    /// Answers the queries of the status page with this function.
    #[must_use]
    pub(crate) fn with_queries(mut self, queries: &QueryChannel<ProxyQuery>, answer: StatusAnswer) -> Self {
        (self.queries, self.answer) = (queries.open(), answer);
        self
    }

    /// Adds a family. `flows` receives the changes of its UDP Services.
    #[must_use]
    pub fn with_family(mut self, family: Family, flows: Option<FlowSender>) -> Self {
        self.families.push(FamilyLoop::new(family, self.inputs.settings.sync_period, flows));
        self
    }

    /// Also answers the health checks of `Local` load balancers on their node ports, once rules are written [kube-proxy 9.2]. Without a
    /// health server, sepal counts as healthy.
    #[must_use]
    pub(crate) fn with_health_checks(mut self, health_server: bool) -> Self {
        for family_loop in &mut self.families {
            let health = health_server.then(|| self.report.health.clone());
            family_loop.checks = Some(ServiceHealth::new(family_loop.family(), NodePorts::AllLocal, health));
        }
        self
    }

    /// Also saves the final counters of rules that a sync removes. Called after the families are added.
    #[must_use]
    pub(crate) fn with_final_counters(mut self, final_counters: &FinalCounters) -> Self {
        self.families.iter_mut().for_each(|family_loop| family_loop.final_counters = Some(final_counters.clone()));
        self
    }

    /// Runs until the updates end.
    pub async fn run(mut self, mut updates: Receiver<Update>) {
        self.families.iter().for_each(|family_loop| self.report.started(family_loop.family()));
        self.report_node();
        let node_ip_deadline = Instant::now() + NODE_IP_PATIENCE;
        let mut next_generation_check = Instant::now();
        loop {
            let ready = self.awaited.is_empty() && self.has_all_inputs();
            // Rules that are written without the node's IPs would open NodePorts on every address.
            let deadline = if self.inputs.knows_node_ip() { None } else { Some(node_ip_deadline) };
            let next = self.next().filter(|_| ready).map(|next| deadline.map_or(next, |deadline| next.max(deadline)));
            if ready && !self.begun && deadline.is_none_or(|deadline| deadline <= Instant::now()) {
                self.begun = true;
                self.families.iter().for_each(|family_loop| self.report.first_due(family_loop.family()));
            }
            tokio::select! {
                // Updates come first, so that the next sync includes all of them.
                biased;
                update = updates.recv() => match update {
                    Some(update) => {
                        self.waiting = self.waiting.max(updates.len() + 1);
                        self.handle_update(update);
                    }
                    None => return,
                },
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                    let _busy = self.report.busy();
                    self.run_due_work().await;
                }
                () = sleep_until(next_generation_check), if ready => {
                    self.check_generation(0);
                    self.report.summarize();
                    self.report.metrics.sync_budget(self.budget.balance(&self.inputs.settings));
                    next_generation_check = Instant::now() + GENERATION_PERIOD;
                }
                Some(pending) = self.queries.recv() => pending.answer(|query| self.answer_query(query)),
            }
        }
    }

    /// Answers a query of the status page.
    fn answer_query(&self, query: ProxyQuery) -> Value {
        let refused: BTreeSet<_> = self.families.iter().flat_map(|family_loop| family_loop.rules.quarantined()).collect();
        let families: Vec<_> =
            self.families.iter().map(|family_loop| (family_loop.family(), family_loop.rules.totals().endpoints)).collect();
        let changed = |key: &ServiceKey| self.families.iter().filter_map(|family_loop| family_loop.applied.get(key)).max().copied();
        let view = StatusView {
            inputs: &self.inputs,
            families: &families,
            refused: &refused,
            changed: &changed,
            metrics: &self.report.metrics,
            host: &self.host,
            random_fully: self.random_fully,
        };
        (self.answer)(&view, query)
    }

    /// When the next work of any family is due.
    fn next(&self) -> Option<Instant> {
        let paced = self.budget.next(&self.inputs.settings);
        self.families.iter().map(|family_loop| family_loop.next(paced)).min()
    }

    /// Reads the generation number of the tables. If it increased by more than our own `transactions`, another program changed tables.
    fn check_generation(&mut self, transactions: usize) {
        let before = std::mem::replace(&mut self.generation, self.runner.generation());
        let Some(now) = self.generation else {
            self.families.iter_mut().for_each(|family_loop| family_loop.audits.generation_unknown());
            return;
        };
        if before.is_none_or(|before| now.wrapping_sub(before) as usize > transactions) {
            if before.is_some() {
                tracing::debug!("another program changed nf_tables: sepal will read the tables again");
            }
            self.families.iter_mut().for_each(|family_loop| family_loop.audits.generation_changed());
        }
    }

    fn handle_update(&mut self, update: Update) {
        decisions::received(&update);
        match update {
            Update::Cluster(update) => self.handle_cluster_update(update),
            Update::Inputs(inputs) => {
                if self.inputs != *inputs {
                    self.inputs = *inputs;
                    self.report_node();
                    self.touch_everything();
                }
            }
            Update::Settings(settings) => {
                if self.inputs.settings != *settings {
                    self.report.health.set_sync_period(settings.sync_period);
                    self.inputs.settings = *settings;
                    self.touch_everything();
                }
            }
            Update::PodRules(rules) => {
                if self.inputs.pod_rules.as_ref() != Some(&*rules) {
                    self.inputs.pod_rules = Some(*rules);
                    self.touch_everything();
                }
            }
        }
    }

    fn handle_cluster_update(&mut self, update: ClusterUpdate) {
        match update {
            ClusterUpdate::Change(change, time) => self.apply_change(change, time),
            ClusterUpdate::Listed(names) => {
                let touched = match names {
                    ListedNames::Services(names) => {
                        let touched = self.inputs.snapshot.retain_services(&names);
                        self.count_service_events(touched.services.len(), &touched);
                        touched
                    }
                    ListedNames::Slices(names) => {
                        let touched = self.inputs.snapshot.retain_slices(&names);
                        self.report.metrics.slice_events(touched.services.len(), touched.services.len());
                        touched
                    }
                };
                // A deleted Service may have had UDP ports.
                self.touch(&touched, true, None);
            }
            ClusterUpdate::Unknown(kind, why) if self.awaited.contains(&kind) => {
                self.report_wait(&format!("no {}s are known yet: {why}", kind.as_str()));
            }
            ClusterUpdate::Unknown(..) => {}
            ClusterUpdate::Complete(kind) => self.first_list_complete(kind),
        }
    }

    /// Applies the change of one object to the snapshot, and notes what has to be synced.
    fn apply_change(&mut self, change: Change, time: ChangeTime) {
        let served_udp = match &change {
            Change::Service(key, _) => self.serves_udp(key),
            _ => false,
        };
        let deleted = matches!(change, Change::Slice(_, None));
        let (service, slice) = (matches!(change, Change::Service(..)), matches!(change, Change::Slice(..)));
        // When a slice is deleted, its family is only known from the stored copy.
        let family = match &change {
            Change::Slice(_, Some(slice)) => Some(slice.family),
            Change::Slice(key, None) => self.inputs.snapshot.slice(key).map(|slice| slice.family),
            _ => None,
        };
        let node = matches!(change, Change::Node(_));
        let touched = self.inputs.snapshot.apply(change);
        if node {
            self.report_node();
        }
        if service {
            self.count_service_events(1, &touched);
        } else if slice && family.is_some_and(|family| self.has_family(family)) {
            self.report.metrics.slice_events(1, usize::from(!touched.is_nothing()));
        }
        self.touch(&touched, served_udp, family);
        let time = ChangeTime { happened: time.happened.filter(|happened| *happened > self.started), ..time };
        for family_loop in self.families.iter_mut().filter(|family_loop| family.is_none_or(|family| family == family_loop.family())) {
            family_loop.note_trigger(&touched.services, time.happened, deleted);
            family_loop.pending.note(&touched.services, time);
        }
    }

    /// Records that the first list of a kind is complete.
    fn first_list_complete(&mut self, kind: Kind) {
        if !self.awaited.remove(&kind) {
            return;
        }
        if self.awaited.is_empty() {
            self.report_wait("the first sync is due");
        }
        if self.awaited.is_empty() && !self.inputs.without_proxy && self.inputs.snapshot.node().is_none() {
            tracing::warn!(
                "there is no Node {:?}: its IPs, zone and pod CIDR count as unknown. Is --hostname-override right?",
                self.inputs.node_name
            );
        }
    }

    /// Reports whether the Node is being deleted, because the answer of the health server depends on it [kube-proxy 9.1].
    fn report_node(&self) {
        if let Some(node) = self.inputs.snapshot.node() {
            self.report.health.node_seen(!node.leaving);
        }
    }

    /// Counts Service events as kube-proxy does [kube-proxy 10]: each event once per family, and each changed Service as pending until the
    /// next sync.
    fn count_service_events(&mut self, events: usize, touched: &AffectedObjects) {
        let hashes: Vec<u64> = touched.services.iter().map(|key| self.changed.hasher().hash_one(key)).collect();
        self.changed.extend(hashes);
        self.report.metrics.service_events(events * self.families.len(), self.changed.len());
    }

    fn has_family(&self, family: Family) -> bool {
        self.families.iter().any(|family_loop| family_loop.family() == family)
    }

    /// Notes the changed Services for the next sync of one family or of all. `served_udp` is true if they may have had UDP ports before.
    fn touch(&mut self, touched: &AffectedObjects, served_udp: bool, family: Option<Family>) {
        if touched.node {
            self.touch_everything();
        }
        if touched.services.is_empty() {
            return;
        }
        let serving: Vec<ServiceKey> = touched.services.iter().filter(|key| served_udp || self.serves_udp(key)).cloned().collect();
        for family_loop in &mut self.families {
            family_loop.rules.touch(&touched.services);
            if let Some(flows) = &mut family_loop.flows {
                flows.touch(&serving);
            }
            let concerned = family.is_none_or(|family| family == family_loop.family());
            if concerned && self.begun {
                self.report.queued(family_loop.family());
            }
        }
    }

    fn touch_everything(&mut self) {
        self.facts = None;
        for family_loop in &mut self.families {
            family_loop.rules.touch_everything();
            if let Some(flows) = &mut family_loop.flows {
                flows.touch_everything();
            }
            if self.begun {
                self.report.queued(family_loop.family());
            }
        }
    }

    fn serves_udp(&self, key: &ServiceKey) -> bool {
        self.inputs.snapshot.service(key).is_some_and(|service| service.ports.iter().any(|port| port.protocol == Protocol::Udp))
    }

    /// Reports why the first sync cannot start yet.
    fn report_wait(&self, why: &str) {
        self.families.iter().for_each(|family_loop| self.report.waits(family_loop.family(), why));
    }

    /// Returns true if rules can be computed from the inputs. If not, logs once what is missing.
    fn has_all_inputs(&mut self) -> bool {
        let missing = self.inputs.missing();
        if let Some(what) = missing.as_ref().filter(|what| self.missing_input.as_ref() != Some(what)) {
            tracing::warn!("{what}");
            self.report_wait(what);
        }
        self.missing_input = missing;
        self.missing_input.is_none()
    }

    /// Runs the due checks and syncs of each family. If one family fails, the others continue.
    async fn run_due_work(&mut self) {
        let facts = match self.facts() {
            Ok(facts) => facts,
            Err(error) => {
                for family_loop in &mut self.families {
                    self.report.waits(family_loop.family(), &error.to_string());
                    let pause = family_loop.failed(self.inputs.settings.sync_period);
                    family_loop.audits.put_off(family_loop.not_before);
                    family_loop.checks_again = family_loop.checks_again.map(|again| again.max(family_loop.not_before));
                    tracing::error!("{}: no sync for now, next try in {} s: {error}", family_loop.family(), pause.as_secs_f32());
                }
                return;
            }
        };
        let mut failed = false;
        // One answer for all families: if the first family's sync uses up the budget, the second still has its turn.
        let paced = self.budget.next(&self.inputs.settings);
        let may_sync = paced.is_none_or(|paced| paced <= Instant::now());
        let paced = self.budget.last_end().zip(paced).map(|(last_end, paced)| last_end..paced);
        for i in 0..self.families.len() {
            // A change that another program makes during the checks shows in the next call.
            self.check_generation(0);
            let family_loop = &mut self.families[i];
            let period = self.inputs.settings.sync_period;
            let canary = !self.inputs.without_proxy;
            let mut transactions =
                family_loop.audits.run_due_checks(&mut family_loop.rules, &self.runner, period, canary, &self.report).await;
            if may_sync && family_loop.rules.is_due() && family_loop.not_before <= Instant::now() {
                self.changed = HashSet::new();
                self.report.metrics.sync_began();
                self.report.metrics.updates_waiting(std::mem::take(&mut self.waiting));
                self.report.metrics.snapshot_changed(&self.inputs.snapshot);
                let budget = (&mut self.budget, paced.clone());
                failed |= !family_loop.sync(&self.runner, &self.host, &self.inputs, &facts, &self.report, budget).await;
                transactions += family_loop.rules.attempt().transactions;
            } else if family_loop.checks_again.is_some_and(|again| again <= Instant::now()) {
                family_loop.answer_checks(&self.host, &self.inputs, &self.report).await;
            }
            self.check_generation(transactions);
        }
        // After a failure the facts are read again, because an nfacct counter that a rule names may be missing.
        self.facts = (!failed).then_some(facts);
    }

    /// Returns the host's facts. Also sets the sysctl `route_localnet` if the rules need it.
    fn facts(&mut self) -> Result<HostFacts, HostError> {
        let limited = self.inputs.settings.node_port_addresses != NodePortAddresses::default();
        let known = self.facts.take();
        if let Some(facts) = known.clone().filter(|_| !limited) {
            return Ok(facts);
        }
        let v4 = self.families.iter().any(|family_loop| family_loop.family() == Family::V4);
        if v4 && !self.inputs.without_proxy && needs_route_localnet(&self.inputs.settings, self.inputs.snapshot.node()) {
            allow_route_localnet(&self.host)?;
        }
        let facts = usable_facts(&self.inputs, &self.host, self.random_fully)?;
        if known.is_some_and(|known| known != facts) {
            self.touch_everything();
        }
        Ok(facts)
    }
}
