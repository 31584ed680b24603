//! What happens to the pod network, told to whoever is concerned: a line in the log, a count in the metrics, an Event. What stays as it
//! is is told once.

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

/// Single things that are named at once; the rest is counted.
const NAMED: usize = 10;

/// Changes by kind.
pub(super) type ChangeCounts = BTreeMap<&'static str, usize>;

/// Tells what happens.
#[derive(Debug)]
pub struct NetworkReport {
    /// The counts.
    pub metrics: Arc<Metrics>,
    events: Events,
    /// What keeps the network from working, as it was told.
    trouble: Option<String>,
    /// What was reported of subnets that are not this node's any more.
    gone: Option<String>,
    /// What was told of each refused node.
    refusals: BTreeMap<(Box<str>, Option<Family>), String>,
    /// What is in the way of single entries, as it was told.
    obstacles: BTreeSet<String>,
    /// What was reported of routes that other programs write again and again.
    contested: BTreeMap<Route, String>,
    /// What was told of each node whose entries the kernel did not take.
    failures: BTreeMap<Option<Box<str>>, String>,
    /// Other things that were told.
    told: BTreeMap<&'static str, String>,
}

impl NetworkReport {
    /// Counts in these metrics and tells by these events.
    #[must_use]
    pub const fn new(metrics: Arc<Metrics>, events: Events) -> Self {
        Self {
            metrics,
            events,
            trouble: None,
            gone: None,
            refusals: BTreeMap::new(),
            obstacles: BTreeSet::new(),
            contested: BTreeMap::new(),
            failures: BTreeMap::new(),
            told: BTreeMap::new(),
        }
    }

    /// Something is worth an Event.
    pub(super) fn event(&self, event: Event) {
        self.events.tell(event);
    }

    fn warn_node(&self, reason: &'static str, note: String) {
        self.events.tell(Event { regarding: Regarding::Node, reason, action: "ProgramPodNetwork", warning: true, note });
    }

    /// This keeps the network from working; or nothing does.
    pub(super) fn trouble(&mut self, what: Option<String>) {
        match (&what, &self.trouble) {
            (Some(what), before) if before.as_ref() != Some(what) => tracing::error!("pod network: {what}"),
            (None, Some(_)) => tracing::info!("pod network: that is over"),
            _ => {}
        }
        self.trouble = what;
    }

    /// Subnets that this node used are not its own any more; or all are.
    pub(super) fn gone(&mut self, event: Option<Event>) {
        let note = event.as_ref().map(|event| event.note.clone());
        if let Some(event) = event.filter(|event| self.gone.as_ref() != Some(&event.note)) {
            tracing::error!("pod network: {}", event.note);
            self.events.tell(event);
        }
        self.gone = note;
    }

    /// On a subject there is this to complain of; or nothing.
    pub(super) fn complain(&mut self, subject: &'static str, what: Option<impl Display>) {
        match what.map(|what| what.to_string()) {
            Some(what) if self.told.get(subject) != Some(&what) => {
                tracing::warn!("pod network: {what}");
                self.told.insert(subject, what);
            }
            Some(_) => {}
            None => drop(self.told.remove(subject)),
        }
    }

    /// Container runtimes do not simply use this program's own CNI configuration, or they do again. Logged once per change, with an Event.
    pub(super) fn cni_config(&mut self, finding: Option<&CniConfFinding>, own: &str) {
        let before = self.told.get("cni-config").cloned();
        let now = finding.map(ToString::to_string);
        self.complain("cni-config", now.as_ref());
        match now {
            Some(now) if before.as_ref() != Some(&now) => self.warn_node("CNIConfigNotUsed", now),
            None if before.is_some() => tracing::info!("pod network: container runtimes use {own} now"),
            _ => {}
        }
    }

    /// The kernel did not do something.
    pub(super) fn failed(&self, error: &NetlinkError) {
        self.metrics.network().failed(error.call);
    }

    /// These nodes are not believed, and no others.
    pub(super) fn refused(&mut self, refused: &[PeerRefusal]) {
        let mut reasons = ChangeCounts::new();
        for refusal in refused {
            *reasons.entry(refusal.reason.as_str()).or_default() += 1;
        }
        self.metrics.network().refused(&reasons);
        let noteworthy = refused.iter().filter(|refusal| refusal.reason.is_noteworthy());
        let now: BTreeMap<_, _> = noteworthy.map(|refusal| ((refusal.node.clone(), refusal.family), refusal.to_string())).collect();
        let news: Vec<(&Box<str>, &String)> =
            now.iter().filter(|(key, text)| self.refusals.get(*key) != Some(*text)).map(|((node, _), text)| (node, text)).collect();
        for (node, text) in news.iter().take(NAMED) {
            tracing::error!("pod network: refused: {text}");
            let regarding = Regarding::OtherNode((*node).clone());
            self.events.tell(Event { regarding, reason: "PeerRefused", action: "ProgramPodNetwork", warning: true, note: (*text).clone() });
        }
        if news.len() > NAMED {
            tracing::error!("pod network: refused: {} more nodes", news.len() - NAMED);
        }
        let over = self.refusals.keys().filter(|key| !now.contains_key(*key));
        for (node, family) in over.take(NAMED) {
            let family = family.map(|family| format!(" ({family})")).unwrap_or_default();
            tracing::info!("pod network: node {node}{family} is not refused any more");
        }
        self.refusals = now;
    }

    /// These are in the way of entries of ours, and nothing else.
    pub(super) fn in_the_way(&mut self, obstacles: impl Iterator<Item = String>) {
        let now: BTreeSet<String> = obstacles.collect();
        let news: Vec<&String> = now.difference(&self.obstacles).collect();
        for what in news.iter().take(NAMED) {
            tracing::error!("pod network: {what}");
            self.warn_node("RouteInTheWay", (*what).clone());
        }
        self.obstacles = now;
    }

    /// Routes of other programs that are replaced now.
    pub(super) fn routes_replaced(&self, texts: &[String]) {
        for text in texts.iter().take(NAMED) {
            tracing::warn!("pod network: {text}");
            self.warn_node("RouteReplaced", text.clone());
        }
        if texts.len() > NAMED {
            tracing::warn!("pod network: {} more routes of other programs are replaced", texts.len() - NAMED);
        }
    }

    /// All routes that other programs write again and again, and that are left there for now.
    pub(super) fn routes_contested(&mut self, now: BTreeMap<Route, String>) {
        let news: Vec<&String> =
            now.iter().filter(|(route, text)| self.contested.get(*route) != Some(*text)).map(|(_, text)| text).collect();
        for text in news.iter().take(NAMED) {
            tracing::error!("pod network: {text}");
            self.warn_node("RouteContested", (*text).clone());
        }
        if news.len() > NAMED {
            tracing::error!("pod network: {} more routes are written again and again by other programs", news.len() - NAMED);
        }
        self.contested = now;
    }

    /// The kernel did not take these entries, each with the peer it is for; all others it took.
    pub(super) fn untaken(&mut self, failed: &BTreeMap<Option<Box<str>>, NetlinkError>) {
        for error in failed.values() {
            self.failed(error);
        }
        let now: BTreeMap<Option<Box<str>>, String> = failed.iter().map(|(node, error)| (node.clone(), error.to_string())).collect();
        let news: Vec<(&Option<Box<str>>, &String)> = now.iter().filter(|(node, text)| self.failures.get(*node) != Some(*text)).collect();
        for (node, text) in news.iter().take(NAMED) {
            let whose = node.as_ref().map(|node| format!("node {node}: ")).unwrap_or_default();
            tracing::error!("pod network: {whose}{text}; tried again");
        }
        if let Some((_, text)) = news.first() {
            self.warn_node("PeerNotProgrammed", format!("entries of {} nodes are missing; the first: {text}", now.len()));
        }
        if news.len() > NAMED {
            tracing::error!("pod network: entries of {} more nodes are not taken", news.len() - NAMED);
        }
        self.failures = now;
    }

    /// So many things of each kind were not as they had been made, and are again.
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
