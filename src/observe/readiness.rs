//! The readiness of each part of the daemon, for `/readyz`, the metrics and the Node's condition.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use tokio::sync::watch;

use crate::cluster::Family;

use super::liveness::Liveness;

/// A part of the daemon that can be ready or not, in the order of start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// The start of the parts below. It is only in the table until they have started.
    Start,
    /// This node's subnets are known.
    Subnet,
    /// The interface to other nodes is found.
    Interface,
    /// The links of the pod network are up and have their addresses.
    Links,
    /// All peers that were known at the start have their entries.
    Peers,
    /// The Node's annotations, with which other nodes reach this one, are written.
    Registration,
    /// The service proxy's rules are in force.
    Proxy(Family),
    /// The pod network's rules are in force.
    PodRules(Family),
    /// subnet.env is written for the CNI plugin.
    SubnetFile,
    /// Container runtimes use a CNI configuration that leads to this node's network.
    CniConfig,
}

impl Part {
    /// Its name in `/readyz` and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Subnet => "subnet",
            Self::Interface => "interface",
            Self::Links => "links",
            Self::Peers => "peers",
            Self::Registration => "registration",
            Self::Proxy(Family::V4) => "proxy-ipv4",
            Self::Proxy(Family::V6) => "proxy-ipv6",
            Self::PodRules(Family::V4) => "pod-rules-ipv4",
            Self::PodRules(Family::V6) => "pod-rules-ipv6",
            Self::SubnetFile => "subnet-file",
            Self::CniConfig => "cni-config",
        }
    }
}

/// The readiness of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartState {
    /// The part has not been ready yet. The text says what it waits for.
    Starting(Arc<str>),
    /// The part is ready.
    Ready,
    /// The part is ready, and the text is a hint for the operator.
    Noted(Arc<str>),
    /// The part was ready before and is not now. The text says why.
    Degraded(Arc<str>),
}

impl PartState {
    /// The part waits for this.
    #[must_use]
    pub fn starting(what: impl AsRef<str>) -> Self {
        Self::Starting(what.as_ref().into())
    }

    /// True if the part is ready.
    #[must_use]
    pub(crate) const fn is_ready(&self) -> bool {
        matches!(self, Self::Ready | Self::Noted(_))
    }

    /// Its name in metrics.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Starting(_) => "starting",
            Self::Ready | Self::Noted(_) => "ready",
            Self::Degraded(_) => "degraded",
        }
    }
}

/// The readiness of all parts.
pub(crate) type PartStates = BTreeMap<Part, PartState>;

/// The readiness of all parts. Loops and servers share it.
#[derive(Clone, Debug)]
pub struct Readiness {
    states: Arc<watch::Sender<PartStates>>,
    liveness: Liveness,
}

impl Readiness {
    /// A table of these parts, none of which is ready yet.
    #[must_use]
    pub fn new(parts: impl IntoIterator<Item = Part>) -> Self {
        Self { states: Arc::new(watch::Sender::new(not_started(parts))), liveness: Liveness::default() }
    }

    /// Replaces the table by these parts, none of which is ready yet.
    pub fn begin(&self, parts: impl IntoIterator<Item = Part>) {
        self.states.send_replace(not_started(parts));
    }

    /// The parts that do not run.
    #[must_use]
    pub(crate) const fn liveness(&self) -> &Liveness {
        &self.liveness
    }

    /// Marks a part as ready.
    pub fn ready(&self, part: Part) {
        self.set(part, |_| PartState::Ready);
    }

    /// Marks a part as ready, with a hint for the operator.
    pub fn noted(&self, part: Part, what: impl AsRef<str>) {
        self.set(part, |_| PartState::Noted(what.as_ref().into()));
    }

    /// Marks a part as not ready. Parts that are not in the table are ignored by all methods.
    pub(crate) fn not_ready(&self, part: Part, why: impl AsRef<str>) {
        self.set(part, |before| match before {
            PartState::Starting(_) => PartState::Starting(why.as_ref().into()),
            PartState::Ready | PartState::Noted(_) | PartState::Degraded(_) => PartState::Degraded(why.as_ref().into()),
        });
    }

    fn set(&self, part: Part, next: impl FnOnce(&PartState) -> PartState) {
        self.states.send_if_modified(|states| {
            let Some(state) = states.get_mut(&part) else { return false };
            let next = next(state);
            let changed = *state != next;
            *state = next;
            changed
        });
    }

    /// The readiness of all parts now.
    #[must_use]
    pub fn states(&self) -> PartStates {
        self.states.borrow().clone()
    }

    /// Signals each change of readiness.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<PartStates> {
        self.states.subscribe()
    }
}

/// These parts before they start.
fn not_started(parts: impl IntoIterator<Item = Part>) -> PartStates {
    parts.into_iter().map(|part| (part, PartState::starting("it has not begun"))).collect()
}

/// True if all parts are ready.
#[must_use]
pub fn all_ready(states: &PartStates) -> bool {
    states.values().all(PartState::is_ready)
}

/// True if all parts but the CNI configuration are ready. The container runtime, not sepal, chooses its CNI configuration, so a service
/// manager must not stop sepal because of it.
#[must_use]
pub fn started(states: &PartStates) -> bool {
    states.iter().all(|(part, state)| *part == Part::CniConfig || state.is_ready())
}

/// One line for each part, in the format of `/readyz?verbose` of Kubernetes' components.
#[must_use]
pub fn show(states: &PartStates) -> String {
    let mut text = String::new();
    for (part, state) in states {
        let name = part.as_str();
        // Writing to a String does not fail.
        let _ = match state {
            PartState::Ready => writeln!(text, "[+]{name} ok"),
            PartState::Noted(what) => writeln!(text, "[+]{name} ok: {what}"),
            PartState::Starting(why) => writeln!(text, "[-]{name} not yet: {why}"),
            PartState::Degraded(why) => writeln!(text, "[-]{name} failed: {why}"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_become_ready_and_degraded() {
        let readiness = Readiness::new([Part::SubnetFile, Part::Subnet]);
        let mut changes = readiness.subscribe();
        changes.mark_unchanged();
        readiness.not_ready(Part::Subnet, "no pod CIDR");
        assert_eq!(show(&readiness.states()), "[-]subnet not yet: no pod CIDR\n[-]subnet-file not yet: it has not begun\n");
        assert!(changes.has_changed().is_ok_and(|changed| changed));
        changes.mark_unchanged();
        readiness.not_ready(Part::Subnet, "no pod CIDR");
        readiness.ready(Part::Links);
        assert!(changes.has_changed().is_ok_and(|changed| !changed), "neither is a change");
        readiness.ready(Part::Subnet);
        assert!(!all_ready(&readiness.states()));
        readiness.ready(Part::SubnetFile);
        assert!(all_ready(&readiness.states()));
        readiness.not_ready(Part::Subnet, "lost");
        assert_eq!(show(&readiness.states()), "[-]subnet failed: lost\n[+]subnet-file ok\n");
        readiness.noted(Part::Subnet, "it is small");
        assert!(all_ready(&readiness.states()));
        assert_eq!(show(&readiness.states()), "[+]subnet ok: it is small\n[+]subnet-file ok\n");
        let with_config = Readiness::new([Part::SubnetFile, Part::CniConfig]);
        assert!(!started(&with_config.states()));
        with_config.ready(Part::SubnetFile);
        with_config.not_ready(Part::CniConfig, "another one");
        assert!(started(&with_config.states()) && !all_ready(&with_config.states()));
        readiness.not_ready(Part::Subnet, "lost");
        assert_eq!(readiness.states().get(&Part::Subnet), Some(&PartState::Degraded("lost".into())));
    }
}
