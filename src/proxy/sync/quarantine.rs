//! Service ports whose rules iptables refuses: they keep what they had, and are tried again when they change and every few minutes.
//!
//! What refuses one of them may refuse hundreds in the same words: a kernel without a match that they all use. Of those that were
//! refused for the same cause only some are tried each time, and the rest as soon as one of these was taken.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use crate::cluster::ServicePortName;
use crate::table::outline::{Outline, Outlines};

/// Service ports refused for one cause are tried again this often.
const PAUSE: Duration = Duration::from_secs(240);

/// So many of them each time.
const TRIALS: usize = 8;

/// A service port that is left alone for a while.
#[derive(Clone, Debug)]
struct Quarantined {
    /// When it was refused last.
    since: Instant,
    cause: Rc<str>,
    /// The rules it had before; the kernel still holds them.
    kept: Option<Rc<Outline>>,
}

/// All of them, of one family.
#[derive(Clone, Debug, Default)]
pub(super) struct Quarantine {
    members: BTreeMap<ServicePortName, Quarantined>,
    /// When some of those with a cause are tried next.
    trials: BTreeMap<Rc<str>, Instant>,
    /// Those that are being tried, with the cause they were refused for.
    on_trial: BTreeMap<ServicePortName, Rc<str>>,
}

impl Quarantine {
    /// Who is in it.
    pub(super) fn names(&self) -> impl ExactSizeIterator<Item = &ServicePortName> {
        self.members.keys()
    }

    /// Whether a service port is in it.
    pub(super) fn holds(&self, name: &ServicePortName) -> bool {
        self.members.contains_key(name)
    }

    /// What they had before, which is what they keep.
    pub(super) fn kept(&self) -> impl Iterator<Item = (&ServicePortName, Option<&Rc<Outline>>)> {
        self.members.iter().map(|(name, member)| (name, member.kept.as_ref()))
    }

    /// They keep what was read of them.
    pub(super) fn keep(&mut self, held: &Outlines) {
        for (name, member) in &mut self.members {
            member.kept = held.get(name).cloned();
        }
    }

    /// A service port does not keep what it had; says whether it had anything.
    pub(super) fn give_up(&mut self, name: &ServicePortName) -> bool {
        self.members.get_mut(name).is_some_and(|member| member.kept.take().is_some())
    }

    /// When the next of them are tried again.
    pub(super) fn next_trial(&self) -> Option<Instant> {
        self.trials.values().min().copied()
    }

    /// Takes in a service port, with what it had before and what iptables said of it.
    pub(super) fn put(&mut self, name: &ServicePortName, kept: Option<Rc<Outline>>, output: &str, now: Instant) {
        let cause: Rc<str> = essence(output).into();
        self.on_trial.remove(name);
        self.trials.entry(Rc::clone(&cause)).or_insert(now + PAUSE);
        self.members.insert(name.clone(), Quarantined { since: now, cause, kept });
    }

    /// These changed, so they may be acceptable now.
    pub(super) fn forget(&mut self, changed: &BTreeSet<ServicePortName>) {
        self.members.retain(|name, _| !changed.contains(name));
        self.on_trial.retain(|name, _| !changed.contains(name));
        self.drop_causes();
    }

    /// Lets out some of each cause whose time has come: those that have waited longest.
    pub(super) fn release(&mut self, now: Instant) -> Vec<ServicePortName> {
        let mut released = Vec::new();
        for (cause, next) in self.trials.iter_mut().filter(|(_, next)| **next <= now) {
            let mut waiting: Vec<(Instant, &ServicePortName)> =
                self.members.iter().filter(|(_, member)| member.cause == *cause).map(|(name, member)| (member.since, name)).collect();
            waiting.sort_unstable();
            released.extend(waiting.into_iter().take(TRIALS).map(|(_, name)| (name.clone(), Rc::clone(cause))));
            *next = now + PAUSE;
        }
        for (name, cause) in &released {
            self.members.remove(name);
            self.on_trial.insert(name.clone(), Rc::clone(cause));
        }
        self.drop_causes();
        released.into_iter().map(|(name, _)| name).collect()
    }

    /// The kernel has taken these. If one of them was on trial, whatever it was refused for may refuse nobody any more: lets out all others
    /// with that cause.
    pub(super) fn took(&mut self, names: &BTreeSet<ServicePortName>) -> Vec<ServicePortName> {
        let mut released = Vec::new();
        let taken: Vec<ServicePortName> = self.on_trial.keys().filter(|name| names.contains(*name)).cloned().collect();
        for name in taken {
            let Some(cause) = self.on_trial.remove(&name) else { continue };
            let alike = self.members.iter().filter(|(_, member)| member.cause == cause);
            released.extend(alike.map(|(name, _)| name.clone()));
            self.members.retain(|_, member| member.cause != cause);
        }
        self.drop_causes();
        released
    }

    fn drop_causes(&mut self) {
        let members = &self.members;
        self.trials.retain(|cause, _| members.values().any(|member| member.cause == *cause));
    }
}

/// What iptables said, without what is different for each service port: lines, chains, addresses.
fn essence(output: &str) -> String {
    let words = output.split_whitespace().filter(|word| !word.bytes().any(|b| b.is_ascii_digit()) && !word.contains("KUBE-"));
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Protocol, ServiceKey};

    fn name(text: &str) -> ServicePortName {
        ServicePortName { service: ServiceKey { namespace: "ns".into(), name: text.into() }, port: "".into(), protocol: Protocol::Tcp }
    }

    #[test]
    fn the_cause_is_what_is_said_of_all_alike() {
        let first = essence(
            "ip6tables-restore v1.8.9 (nf_tables): line 3: RULE_APPEND failed (No such file or directory): rule in chain KUBE-SVC-A",
        );
        assert_eq!(
            first,
            essence(
                "ip6tables-restore v1.8.9 (nf_tables): line 91: RULE_APPEND failed (No such file or directory): rule in chain KUBE-SVC-B"
            )
        );
        assert_ne!(first, essence("line 3: RULE_APPEND failed (Invalid argument): rule in chain KUBE-SVC-A"));
    }

    #[test]
    fn of_one_cause_some_are_tried_and_all_when_one_was_taken() {
        let mut quarantine = Quarantine::default();
        let now = Instant::now();
        for number in 0..20 {
            quarantine.put(&name(&format!("s{number:02}")), None, "line 1: no match", now);
        }
        quarantine.put(&name("other"), None, "something else", now);
        assert!(quarantine.release(now).is_empty());
        let due = now + PAUSE;
        assert_eq!(quarantine.next_trial(), Some(due));
        let first = quarantine.release(due);
        assert_eq!(first.len(), TRIALS + 1);
        assert!(quarantine.release(due).is_empty() && quarantine.next_trial() == Some(due + PAUSE));
        for refused in &first {
            let output = if *refused == name("other") { "something else" } else { "line 2: no match" };
            quarantine.put(refused, None, output, due);
        }
        let second = quarantine.release(due + PAUSE);
        let same = second.iter().filter(|name| first.contains(name));
        assert!(same.eq([&name("other")]), "others have waited longer: {second:?}");
        quarantine.put(&name("other"), None, "something else", due + PAUSE);
        let taken = second.iter().find(|again| **again != name("other")).expect("one of many").clone();
        assert_eq!(quarantine.took(&[taken].into()).len(), 20 - TRIALS);
        assert_eq!(quarantine.names().len(), 1, "the other cause holds on to its own");
        quarantine.forget(&[name("other")].into());
        assert_eq!(quarantine.next_trial(), None);
    }
}
