//! Keeps this node's rules as they should be: takes updates, syncs what changed, looks after what somebody else changed, tries again what
//! failed.

use std::collections::{BTreeSet, HashSet};
use std::hash::BuildHasher;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, sleep_until};

use crate::cluster::host_facts::HostFacts;
use crate::cluster::{AffectedObjects, Change, Family, Protocol, ServiceKey};
use crate::iptables::Runner;
use crate::kubernetes::{self, ChangeTime, Kind, ListedNames};
use crate::netlink::Host;
use crate::netlink::sysctl::{RouteLocalnetError, allow_route_localnet};
use crate::proxy::rules::inputs::Inputs;
use crate::proxy::rules::view::{NodePorts, needs_route_localnet};
use crate::proxy::settings::NodePortAddresses;

use super::decisions;
use super::facts::usable_facts;
use super::family_loop::FamilyLoop;
use super::flow_loop::FlowSender;
use super::report::Report;
use super::service_health::ServiceHealth;
use super::status::{StatusAnswer, StatusView};
use super::update::Update;
use crate::observe::query::ProxyQuery;
use crate::observe::query::{PendingQuery, QueryChannel};
use crate::proxy::traffic::FinalCounters;

/// How long rules that depend on the node's IPs wait for the Node to have one (spec section 1.5).
const NODE_IP_PATIENCE: Duration = Duration::from_secs(30);

/// Where the kernel tells whether anybody changes tables, it is asked this often.
const GLANCE: Duration = Duration::from_secs(1);

/// The loop and what it knows.
pub struct ProxyLoop<R, H> {
    runner: R,
    host: H,
    random_fully: bool,
    /// What happened before does not count for how fast changes are followed.
    started: Timestamp,
    inputs: Inputs,
    facts: Option<HostFacts>,
    families: Vec<FamilyLoop>,
    /// The generation of the tables as of what is known of them, where there is such a thing.
    generation: Option<u32>,
    report: Report,
    /// Services that changed since the last sync: only their hashes, for they are only counted.
    changed: HashSet<u64>,
    /// The most updates that waited at once since the last sync.
    waiting: usize,
    /// Kinds that have not been seen in full yet.
    awaited: BTreeSet<Kind>,
    /// The inputs were complete once: from then on changes are to be synced.
    begun: bool,
    /// What the last complaint about missing input was, so that it is made once.
    complaint: Option<String>,
    /// Questions of the status page, and the function that answers them.
    questions: Receiver<PendingQuery<ProxyQuery>>,
    answer: StatusAnswer,
}

/// What keeps all families from being synced.
#[derive(Debug, thiserror::Error)]
enum Unready {
    #[error("{0}")]
    Facts(#[from] crate::bad_setting::BadSetting),
    #[error("{0}")]
    RouteLocalnet(#[from] RouteLocalnetError),
}

impl<R: Runner, H: Host> ProxyLoop<R, H> {
    /// A loop that starts from these inputs and waits for all objects before it writes anything.
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
            generation: None,
            report,
            changed: HashSet::new(),
            waiting: 0,
            awaited,
            begun: false,
            complaint: None,
            questions: QueryChannel::default().open(),
            answer: |_, _| Value::Null,
        }
    }

    /// Answers the questions of the status page with this function.
    #[must_use]
    pub fn with_queries(mut self, desk: &QueryChannel<ProxyQuery>, answer: StatusAnswer) -> Self {
        (self.questions, self.answer) = (desk.open(), answer);
        self
    }

    /// Looks after a family, too; tells what its rules say about UDP to whoever looks after its flows.
    #[must_use]
    pub fn with_family(mut self, family: Family, flows: Option<FlowSender>) -> Self {
        self.families.push(FamilyLoop::new(family, self.inputs.settings.sync_period, flows));
        self
    }

    /// Answers the health checks of `Local` load balancers, too: on their node ports, once there are rules (spec section 9.2). Without a
    /// health server all counts as healthy.
    #[must_use]
    pub(crate) fn with_health_checks(mut self, health_server: bool) -> Self {
        for family_loop in &mut self.families {
            let health = health_server.then(|| self.report.health.clone());
            family_loop.checks = Some(ServiceHealth::new(family_loop.rules.family(), NodePorts::AllLocal, health));
        }
        self
    }

    /// Leaves there what counters say whose rules end, too; after the families.
    #[must_use]
    pub(crate) fn with_final_counters(mut self, final_counters: &FinalCounters) -> Self {
        self.families.iter_mut().for_each(|family_loop| family_loop.final_counters = Some(final_counters.clone()));
        self
    }

    /// Runs until the updates end.
    pub async fn run(mut self, mut updates: Receiver<Update>) {
        self.families.iter().for_each(|family_loop| self.report.started(family_loop.rules.family()));
        self.note_node();
        let patience = Instant::now() + NODE_IP_PATIENCE;
        let mut glance = Instant::now();
        loop {
            let ready = self.awaited.is_empty() && self.complete();
            // Without the node's IPs the rules would open every address for a while.
            let patience = if self.inputs.knows_node_ip() { None } else { Some(patience) };
            let next = self.next().filter(|_| ready).map(|next| patience.map_or(next, |patience| next.max(patience)));
            if ready && !self.begun && patience.is_none_or(|patience| patience <= Instant::now()) {
                self.begun = true;
                self.families.iter().for_each(|family_loop| self.report.first_due(family_loop.rules.family()));
            }
            tokio::select! {
                // Updates first: whatever has come in belongs in the next sync.
                biased;
                update = updates.recv() => match update {
                    Some(update) => {
                        self.waiting = self.waiting.max(updates.len() + 1);
                        self.take(update);
                    }
                    None => return,
                },
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                    let _busy = self.report.busy();
                    self.act().await;
                }
                () = sleep_until(glance), if ready => {
                    self.glance(0);
                    self.report.summarize();
                    glance = Instant::now() + GLANCE;
                }
                Some(asked) = self.questions.recv() => asked.answer(|question| self.tell(question)),
            }
        }
    }

    /// What the status page asks for.
    fn tell(&self, question: ProxyQuery) -> Value {
        let refused: BTreeSet<_> = self.families.iter().flat_map(|family_loop| family_loop.rules.quarantined()).collect();
        let families: Vec<_> =
            self.families.iter().map(|family_loop| (family_loop.rules.family(), family_loop.rules.totals().endpoints)).collect();
        let changed = |key: &ServiceKey| self.families.iter().filter_map(|family_loop| family_loop.followed.get(key)).max().copied();
        let view = StatusView {
            inputs: &self.inputs,
            families: &families,
            refused: &refused,
            changed: &changed,
            metrics: &self.report.metrics,
            host: &self.host,
            random_fully: self.random_fully,
        };
        (self.answer)(&view, question)
    }

    /// When there is something to do.
    fn next(&self) -> Option<Instant> {
        self.families.iter().map(FamilyLoop::next).min()
    }

    /// Looks whether tables were changed by anybody but ourselves, who made at most so many transactions since the last time.
    fn glance(&mut self, own: usize) {
        let before = std::mem::replace(&mut self.generation, self.runner.generation());
        let Some(now) = self.generation else {
            self.families.iter_mut().for_each(|family_loop| family_loop.audits.blind());
            return;
        };
        if before.is_none_or(|before| now.wrapping_sub(before) as usize > own) {
            if before.is_some() {
                tracing::debug!("another program has changed nf_tables: the tables will be read again");
            }
            self.families.iter_mut().for_each(|family_loop| family_loop.audits.disturb());
        }
    }

    /// Takes one update.
    fn take(&mut self, update: Update) {
        decisions::received(&update);
        match update {
            Update::Cluster(update) => self.take_from_cluster(update),
            Update::Inputs(inputs) => {
                if self.inputs != *inputs {
                    self.inputs = *inputs;
                    self.note_node();
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

    fn take_from_cluster(&mut self, update: kubernetes::ClusterUpdate) {
        use kubernetes::ClusterUpdate;
        match update {
            ClusterUpdate::Change(change, moment) => {
                let before = match &change {
                    Change::Service(key, _) => self.serves_udp(key),
                    _ => false,
                };
                let deleted = matches!(change, Change::Slice(_, None));
                let (service, slice) = (matches!(change, Change::Service(..)), matches!(change, Change::Slice(..)));
                // Of a slice that goes, its family is only known until then.
                let family = match &change {
                    Change::Slice(_, Some(slice)) => Some(slice.family),
                    Change::Slice(key, None) => self.inputs.snapshot.slice(key).map(|slice| slice.family),
                    _ => None,
                };
                let node = matches!(change, Change::Node(_));
                let touched = self.inputs.snapshot.apply(change);
                if node {
                    self.note_node();
                }
                if service {
                    self.note_services(1, &touched);
                } else if slice && family.is_some_and(|family| self.looks_after(family)) {
                    self.report.metrics.slice_events(1, usize::from(!touched.is_nothing()));
                }
                self.touch(&touched, before, family);
                // What happened before the start does not count.
                let moment = ChangeTime { happened: moment.happened.filter(|happened| *happened > self.started), ..moment };
                for family_loop in
                    self.families.iter_mut().filter(|family_loop| family.is_none_or(|family| family == family_loop.rules.family()))
                {
                    family_loop.note_trigger(&touched.services, moment.happened, deleted);
                    family_loop.pending.note(&touched.services, moment);
                }
            }
            ClusterUpdate::Listed(known) => {
                let touched = match known {
                    ListedNames::Services(known) => {
                        let touched = self.inputs.snapshot.retain_services(&known);
                        self.note_services(touched.services.len(), &touched);
                        touched
                    }
                    ListedNames::Slices(known) => {
                        let touched = self.inputs.snapshot.retain_slices(&known);
                        self.report.metrics.slice_events(touched.services.len(), touched.services.len());
                        touched
                    }
                };
                // What is gone may have been UDP.
                self.touch(&touched, true, None);
            }
            ClusterUpdate::Unknown(kind, why) if self.awaited.contains(&kind) => {
                self.wait_for(&format!("no {}s are known yet: {why}", kind.as_str()));
            }
            ClusterUpdate::Unknown(..) => {}
            ClusterUpdate::Complete(kind) => self.listed(kind),
        }
    }

    /// A kind has been seen in full.
    fn listed(&mut self, kind: Kind) {
        if !self.awaited.remove(&kind) {
            return;
        }
        if self.awaited.is_empty() {
            self.wait_for("the first sync is due");
        }
        if self.awaited.is_empty() && !self.inputs.without_proxy && self.inputs.snapshot.node().is_none() {
            tracing::warn!(
                "there is no Node {:?}: its IPs, zone and pod CIDR count as unknown. Is --hostname-override right?",
                self.inputs.node_name
            );
        }
    }

    /// Whether the node wants traffic is part of the health server's answer (spec section 9.1).
    fn note_node(&self) {
        if let Some(node) = self.inputs.snapshot.node() {
            self.report.health.node_seen(!node.leaving);
        }
    }

    /// Counts so many Service events as kube-proxy does: each family is told of each, and Services that changed wait for the next sync
    /// (spec section 10).
    fn note_services(&mut self, events: usize, touched: &AffectedObjects) {
        let hashes: Vec<u64> = touched.services.iter().map(|key| self.changed.hasher().hash_one(key)).collect();
        self.changed.extend(hashes);
        self.report.metrics.service_events(events * self.families.len(), self.changed.len());
    }

    fn looks_after(&self, family: Family) -> bool {
        self.families.iter().any(|family_loop| family_loop.rules.family() == family)
    }

    /// Takes note of what is different, for one family or for all.
    fn touch(&mut self, touched: &AffectedObjects, udp: bool, family: Option<Family>) {
        if touched.node {
            self.touch_everything();
        }
        if touched.services.is_empty() {
            return;
        }
        let serving: Vec<ServiceKey> = touched.services.iter().filter(|key| udp || self.serves_udp(key)).cloned().collect();
        for family_loop in &mut self.families {
            family_loop.rules.touch(&touched.services);
            if let Some(flows) = &mut family_loop.flows {
                flows.touch(&serving);
            }
            let asked = family.is_none_or(|family| family == family_loop.rules.family());
            if asked && self.begun {
                self.report.queued(family_loop.rules.family());
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
                self.report.queued(family_loop.rules.family());
            }
        }
    }

    fn serves_udp(&self, key: &ServiceKey) -> bool {
        self.inputs.snapshot.service(key).is_some_and(|service| service.ports.iter().any(|port| port.protocol == Protocol::Udp))
    }

    /// The first sync waits for this.
    fn wait_for(&self, what: &str) {
        self.families.iter().for_each(|family_loop| self.report.waits(family_loop.rules.family(), what));
    }

    /// Whether the inputs suffice; if not, says once what is missing.
    fn complete(&mut self) -> bool {
        let missing = self.inputs.missing();
        if let Some(what) = missing.as_ref().filter(|what| self.complaint.as_ref() != Some(what)) {
            tracing::warn!("{what}");
            self.wait_for(what);
        }
        self.complaint = missing;
        self.complaint.is_none()
    }

    /// Does what is due, family by family; one that fails holds up no other.
    async fn act(&mut self) {
        let facts = match self.facts() {
            Ok(facts) => facts,
            Err(error) => {
                for family_loop in &mut self.families {
                    self.report.waits(family_loop.rules.family(), &error.to_string());
                    let pause = family_loop.failed(self.inputs.settings.sync_period);
                    family_loop.audits.put_off(family_loop.not_before);
                    family_loop.checks_again = family_loop.checks_again.map(|again| again.max(family_loop.not_before));
                    tracing::error!("{}: no sync for now, next try in {} s: {error}", family_loop.rules.family(), pause.as_secs_f32());
                }
                return;
            }
        };
        let mut failed = false;
        for i in 0..self.families.len() {
            // What changes while tables are read is seen the next time.
            self.glance(0);
            let family_loop = &mut self.families[i];
            let period = self.inputs.settings.sync_period;
            let mut own =
                family_loop.audits.look_after(&mut family_loop.rules, &self.runner, period, !self.inputs.without_proxy, &self.report).await;
            if family_loop.rules.is_due() && family_loop.not_before <= Instant::now() {
                self.changed = HashSet::new();
                self.report.metrics.sync_began();
                self.report.metrics.updates_waiting(std::mem::take(&mut self.waiting));
                self.report.metrics.snapshot_changed(&self.inputs.snapshot);
                failed |= !family_loop.sync(&self.runner, &self.host, &self.inputs, &facts, &self.report).await;
                own += family_loop.rules.attempt().transactions;
            } else if family_loop.checks_again.is_some_and(|again| again <= Instant::now()) {
                family_loop.answer_checks(&self.host, &self.inputs, &self.report).await;
            }
            self.glance(own);
        }
        // After a failure the host is asked again: a counter that a rule names may be gone.
        self.facts = (!failed).then_some(facts);
    }

    /// The host's facts; and the one setting that rules need of it.
    fn facts(&mut self) -> Result<HostFacts, Unready> {
        let limited = self.inputs.settings.node_port_addresses != NodePortAddresses::default();
        let known = self.facts.take();
        if let Some(facts) = known.clone().filter(|_| !limited) {
            return Ok(facts);
        }
        let v4 = self.families.iter().any(|family_loop| family_loop.rules.family() == Family::V4);
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
