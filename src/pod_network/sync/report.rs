//! Reports what happens to the pod network: in the log, in metrics and as Events. A state that lasts is reported once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::Arc;

use crate::cluster::Family;
use crate::kubernetes::events::{Event, Events, Regarding};
use crate::netlink::NetlinkError;
use crate::netlink::entry::Route;
use crate::observe::metrics::Metrics;
use crate::pod_network::cni_config::CniConfFinding;
use crate::pod_network::refusal::PeerRefusal;

/// At most this many items are logged one by one; the rest are counted.
const MAX_LOGGED: usize = 10;

/// Number of changes of each kind.
pub(super) type ChangeCounts = BTreeMap<&'static str, usize>;

/// The reports of the pod network, with what was reported last.
#[derive(Debug)]
pub struct NetworkReport {
    /// The metrics.
    pub metrics: Arc<Metrics>,
    events: Events,
    /// The error of the last reconcile, as it was logged.
    error: Option<String>,
    /// The note of the last Event about lost subnets.
    lost_subnets: Option<String>,
    /// The text that was logged for each refused node.
    refusals: BTreeMap<(Box<str>, Option<Family>), String>,
    /// The logged texts about routes that displace ours.
    obstacles: BTreeSet<String>,
    /// The text that was logged for each route that another program keeps writing.
    contested: BTreeMap<Route, String>,
    /// The error that was logged for the entries of each node.
    failures: BTreeMap<Option<Box<str>>, String>,
    /// Other warnings by subject, as they were logged.
    warnings: BTreeMap<&'static str, String>,
}

impl NetworkReport {
    /// Reports to these metrics and Events.
    #[must_use]
    pub const fn new(metrics: Arc<Metrics>, events: Events) -> Self {
        Self {
            metrics,
            events,
            error: None,
            lost_subnets: None,
            refusals: BTreeMap::new(),
            obstacles: BTreeSet::new(),
            contested: BTreeMap::new(),
            failures: BTreeMap::new(),
            warnings: BTreeMap::new(),
        }
    }

    /// Sends an Event.
    pub(super) fn event(&self, event: Event) {
        self.events.tell(event);
    }

    /// Sends a warning Event about this node.
    fn warn_node(&self, reason: &'static str, note: String) {
        self.events.tell(Event { regarding: Regarding::Node, reason, action: "ProgramPodNetwork", warning: true, note });
    }

    /// Logs the error of a reconcile when it changes, and its end.
    pub(super) fn outcome(&mut self, what: Option<String>) {
        match (&what, &self.error) {
            (Some(what), before) if before.as_ref() != Some(what) => tracing::error!("pod network: {what}"),
            (None, Some(_)) => tracing::info!("pod network: the error is resolved"),
            _ => {}
        }
        self.error = what;
    }

    /// Reports that this node has lost subnets, or that it has none lost any more.
    pub(super) fn subnets_lost(&mut self, event: Option<Event>) {
        let note = event.as_ref().map(|event| event.note.clone());
        if let Some(event) = event.filter(|event| self.lost_subnets.as_ref() != Some(&event.note)) {
            tracing::error!("pod network: {}", event.note);
            self.events.tell(event);
        }
        self.lost_subnets = note;
    }

    /// Logs a warning about a subject when it changes; `None` ends it.
    pub(super) fn warn(&mut self, subject: &'static str, what: Option<impl Display>) {
        match what.map(|what| what.to_string()) {
            Some(what) if self.warnings.get(subject) != Some(&what) => {
                tracing::warn!("pod network: {what}");
                self.warnings.insert(subject, what);
            }
            Some(_) => {}
            None => drop(self.warnings.remove(subject)),
        }
    }

    /// Reports that container runtimes do not use this program's CNI configuration, or use it again.
    pub(super) fn cni_config(&mut self, finding: Option<&CniConfFinding>, own: &str) {
        let before = self.warnings.get("cni-config").cloned();
        let now = finding.map(ToString::to_string);
        self.warn("cni-config", now.as_ref());
        match now {
            Some(now) if before.as_ref() != Some(&now) => self.warn_node("CNIConfigNotUsed", now),
            None if before.is_some() => tracing::info!("pod network: container runtimes use {own} now"),
            _ => {}
        }
    }

    /// Counts a failed kernel call.
    pub(super) fn failed(&self, error: &NetlinkError) {
        self.metrics.network().failed(error.call);
    }

    /// Reports all nodes that are refused now.
    pub(super) fn refused(&mut self, refused: &[PeerRefusal]) {
        let mut reasons = ChangeCounts::new();
        for refusal in refused {
            *reasons.entry(refusal.reason.as_str()).or_default() += 1;
        }
        self.metrics.network().refused(&reasons);
        let noteworthy = refused.iter().filter(|refusal| refusal.reason.is_noteworthy());
        let now: BTreeMap<_, _> = noteworthy.map(|refusal| ((refusal.node.clone(), refusal.family), refusal.to_string())).collect();
        let new: Vec<(&Box<str>, &String)> =
            now.iter().filter(|(key, text)| self.refusals.get(*key) != Some(*text)).map(|((node, _), text)| (node, text)).collect();
        for (node, text) in new.iter().take(MAX_LOGGED) {
            tracing::error!("pod network: refused: {text}");
            let regarding = Regarding::OtherNode((*node).clone());
            self.events.tell(Event { regarding, reason: "PeerRefused", action: "ProgramPodNetwork", warning: true, note: (*text).clone() });
        }
        if new.len() > MAX_LOGGED {
            tracing::error!("pod network: refused: {} more nodes", new.len() - MAX_LOGGED);
        }
        let ended = self.refusals.keys().filter(|key| !now.contains_key(*key));
        for (node, family) in ended.take(MAX_LOGGED) {
            let family = family.map(|family| format!(" ({family})")).unwrap_or_default();
            tracing::info!("pod network: node {node}{family} is not refused any more");
        }
        self.refusals = now;
    }

    /// Reports all routes that displace ours now.
    pub(super) fn in_the_way(&mut self, obstacles: impl Iterator<Item = String>) {
        let now: BTreeSet<String> = obstacles.collect();
        let new: Vec<&String> = now.difference(&self.obstacles).collect();
        for what in new.iter().take(MAX_LOGGED) {
            tracing::error!("pod network: {what}");
            self.warn_node("RouteInTheWay", (*what).clone());
        }
        self.obstacles = now;
    }

    /// Reports routes of other programs that are replaced now.
    pub(super) fn routes_replaced(&self, texts: &[String]) {
        for text in texts.iter().take(MAX_LOGGED) {
            tracing::warn!("pod network: {text}");
            self.warn_node("RouteReplaced", text.clone());
        }
        if texts.len() > MAX_LOGGED {
            tracing::warn!("pod network: {} more routes of other programs are replaced", texts.len() - MAX_LOGGED);
        }
    }

    /// Reports all routes that other programs keep writing and that are not replaced now.
    pub(super) fn routes_contested(&mut self, now: BTreeMap<Route, String>) {
        let new: Vec<&String> =
            now.iter().filter(|(route, text)| self.contested.get(*route) != Some(*text)).map(|(_, text)| text).collect();
        for text in new.iter().take(MAX_LOGGED) {
            tracing::error!("pod network: {text}");
            self.warn_node("RouteContested", (*text).clone());
        }
        if new.len() > MAX_LOGGED {
            tracing::error!("pod network: {} more routes are written again and again by other programs", new.len() - MAX_LOGGED);
        }
        self.contested = now;
    }

    /// Reports all peers whose entries the kernel refused.
    pub(super) fn entries_failed(&mut self, failed: &BTreeMap<Option<Box<str>>, NetlinkError>) {
        for error in failed.values() {
            self.failed(error);
        }
        let now: BTreeMap<Option<Box<str>>, String> = failed.iter().map(|(node, error)| (node.clone(), error.to_string())).collect();
        let new: Vec<(&Option<Box<str>>, &String)> = now.iter().filter(|(node, text)| self.failures.get(*node) != Some(*text)).collect();
        for (node, text) in new.iter().take(MAX_LOGGED) {
            let whose = node.as_ref().map(|node| format!("node {node}: ")).unwrap_or_default();
            tracing::error!("pod network: {whose}{text}; tried again");
        }
        if let Some((_, text)) = new.first() {
            self.warn_node("PeerNotProgrammed", format!("entries of {} nodes are missing; the first: {text}", now.len()));
        }
        if new.len() > MAX_LOGGED {
            tracing::error!("pod network: entries of {} more nodes are not taken", new.len() - MAX_LOGGED);
        }
        self.failures = now;
    }

    /// Reports changes of other programs that were corrected.
    pub(super) fn repaired(&self, kinds: &ChangeCounts) {
        if kinds.is_empty() {
            return;
        }
        for (kind, count) in kinds {
            self.metrics.network().repaired(kind, *count);
        }
        let counts: Vec<String> = kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        let note = format!("another program changed the pod network; it is put right (changes by kind: {})", counts.join(", "));
        tracing::warn!("pod network: {note}");
        self.warn_node("NetworkRepaired", note);
    }
}
