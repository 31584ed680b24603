//! Which parts of the daemon do their work, and what the others wait for. One table for `/readyz`, the metrics and the Node's condition.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use tokio::sync::watch;

use crate::cluster::Family;

use super::liveness::Liveness;

/// A part of the daemon that can be ready or not. In the order in which they start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// The parts below are started. Only in the table until then.
    Start,
    /// This node's subnets are known.
    Subnet,
    /// The interface to other nodes is found.
    Interface,
    /// Our links are up and have their addresses.
    Links,
    /// The peers that were known at the start have their entries.
    Peers,
    /// Other nodes are told how to reach this one.
    Registration,
    /// The service proxy's rules are in force.
    Proxy(Family),
    /// The pod network's rules are in force.
    PodRules(Family),
    /// The CNI plugin is told of the subnets.
    SubnetFile,
    /// Container runtimes use a CNI configuration that leads to this node's network.
    CniConfig,
}

impl Part {
    /// Its name, as `/readyz` and metrics have it.
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

/// How a part stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It has not done its work yet; what it waits for.
    Starting(Arc<str>),
    /// It does its work.
    Ready,
    /// It does its work, and the operator should know this.
    Noted(Arc<str>),
    /// It did its work before, and does not now; why.
    Degraded(Arc<str>),
}

impl State {
    /// It waits for this.
    #[must_use]
    pub fn starting(what: impl AsRef<str>) -> Self {
        Self::Starting(what.as_ref().into())
    }

    /// Whether it does its work.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        matches!(self, Self::Ready | Self::Noted(_))
    }

    /// Its name, as metrics have it.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Starting(_) => "starting",
            Self::Ready | Self::Noted(_) => "ready",
            Self::Degraded(_) => "degraded",
        }
    }
}

/// How all parts stand.
pub type States = BTreeMap<Part, State>;

/// The table, as loops and servers share it.
#[derive(Clone, Debug)]
pub struct Readiness {
    states: Arc<watch::Sender<States>>,
    liveness: Liveness,
}

impl Readiness {
    /// These parts there are, and none has done its work yet.
    #[must_use]
    pub fn new(parts: impl IntoIterator<Item = Part>) -> Self {
        Self { states: Arc::new(watch::Sender::new(unbegun(parts))), liveness: Liveness::default() }
    }

    /// From now on there are these parts, and none has done its work yet.
    pub fn begin(&self, parts: impl IntoIterator<Item = Part>) {
        self.states.send_replace(unbegun(parts));
    }

    /// Which parts run at all.
    #[must_use]
    pub const fn liveness(&self) -> &Liveness {
        &self.liveness
    }

    /// A part does its work.
    pub fn ready(&self, part: Part) {
        self.set(part, |_| State::Ready);
    }

    /// A part does its work, and the operator should know this.
    pub fn noted(&self, part: Part, what: impl AsRef<str>) {
        self.set(part, |_| State::Noted(what.as_ref().into()));
    }

    /// A part does not do its work, or not yet. One that is not in the table is passed over, here as everywhere.
    pub fn not_ready(&self, part: Part, why: impl AsRef<str>) {
        self.set(part, |before| match before {
            State::Starting(_) => State::Starting(why.as_ref().into()),
            State::Ready | State::Noted(_) | State::Degraded(_) => State::Degraded(why.as_ref().into()),
        });
    }

    fn set(&self, part: Part, next: impl FnOnce(&State) -> State) {
        self.states.send_if_modified(|states| {
            let Some(state) = states.get_mut(&part) else { return false };
            let next = next(state);
            let news = *state != next;
            *state = next;
            news
        });
    }

    /// How all parts stand now.
    #[must_use]
    pub fn states(&self) -> States {
        self.states.borrow().clone()
    }

    /// Tells when that changes.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<States> {
        self.states.subscribe()
    }
}

/// These parts, before they begin.
fn unbegun(parts: impl IntoIterator<Item = Part>) -> States {
    parts.into_iter().map(|part| (part, State::starting("it has not begun"))).collect()
}

/// Whether all parts do their work.
#[must_use]
pub fn all_ready(states: &States) -> bool {
    states.values().all(State::is_ready)
}

/// Whether this program does all of its own work. Which CNI configuration the runtime uses is not its work: a service manager that waits
/// for it must not stop the program because of it.
#[must_use]
pub fn started(states: &States) -> bool {
    states.iter().all(|(part, state)| *part == Part::CniConfig || state.is_ready())
}

/// One line for each part, as `/readyz?verbose` of Kubernetes' own components looks.
#[must_use]
pub fn show(states: &States) -> String {
    let mut text = String::new();
    for (part, state) in states {
        let name = part.as_str();
        // Writing to a text cannot fail.
        let _ = match state {
            State::Ready => writeln!(text, "[+]{name} ok"),
            State::Noted(what) => writeln!(text, "[+]{name} ok: {what}"),
            State::Starting(why) => writeln!(text, "[-]{name} not yet: {why}"),
            State::Degraded(why) => writeln!(text, "[-]{name} failed: {why}"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_start_do_their_work_and_fail() {
        let readiness = Readiness::new([Part::SubnetFile, Part::Subnet]);
        let mut told = readiness.subscribe();
        told.mark_unchanged();
        readiness.not_ready(Part::Subnet, "no pod CIDR");
        assert_eq!(show(&readiness.states()), "[-]subnet not yet: no pod CIDR\n[-]subnet-file not yet: it has not begun\n");
        assert!(told.has_changed().is_ok_and(|changed| changed));
        told.mark_unchanged();
        readiness.not_ready(Part::Subnet, "no pod CIDR");
        readiness.ready(Part::Links);
        assert!(told.has_changed().is_ok_and(|changed| !changed), "neither is news");
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
        assert_eq!(readiness.states().get(&Part::Subnet), Some(&State::Degraded("lost".into())));
    }
}
