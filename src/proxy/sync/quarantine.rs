//! Service ports whose rules iptables refuses. They keep their former rules and are tried again when they change, and every few minutes.
//!
//! One cause, such as a kernel without a match that all of them use, can refuse hundreds of service ports with the same message. Only a
//! few service ports of the same cause are tried each time. When one of them is accepted, all others are tried too.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use crate::cluster::ServicePortName;
use crate::table::outline::{Outline, Outlines};

/// How often service ports of one cause are tried again.
const PAUSE: Duration = Duration::from_secs(240);

/// The number of service ports of one cause that are tried each time.
const TRIALS: usize = 8;

/// A service port in quarantine.
#[derive(Clone, Debug)]
struct Quarantined {
    /// The time of the last refusal.
    since: Instant,
    cause: Rc<str>,
    /// The rules from before the refusal, which are still in the kernel.
    former: Option<Rc<Outline>>,
}

/// All quarantined service ports of one family.
#[derive(Clone, Debug, Default)]
pub(super) struct Quarantine {
    members: BTreeMap<ServicePortName, Quarantined>,
    /// When some service ports of each cause are tried next.
    trials: BTreeMap<Rc<str>, Instant>,
    /// The service ports that are being tried again, with the cause of their refusal.
    on_trial: BTreeMap<ServicePortName, Rc<str>>,
}

impl Quarantine {
    /// The service ports in quarantine.
    pub(super) fn names(&self) -> impl ExactSizeIterator<Item = &ServicePortName> {
        self.members.keys()
    }

    /// Returns true if the service port is in quarantine.
    pub(super) fn contains(&self, name: &ServicePortName) -> bool {
        self.members.contains_key(name)
    }

    /// The former rules of each service port, which stay in the kernel.
    pub(super) fn former(&self) -> impl Iterator<Item = (&ServicePortName, Option<&Rc<Outline>>)> {
        self.members.iter().map(|(name, member)| (name, member.former.as_ref()))
    }

    /// Replaces the former rules by the live ones.
    pub(super) fn set_former(&mut self, live: &Outlines) {
        for (name, member) in &mut self.members {
            member.former = live.get(name).cloned();
        }
    }

    /// Drops the former rules of a service port. Returns true if it had some.
    pub(super) fn drop_former(&mut self, name: &ServicePortName) -> bool {
        self.members.get_mut(name).is_some_and(|member| member.former.take().is_some())
    }

    /// When the next service ports are tried again.
    pub(super) fn next_trial(&self) -> Option<Instant> {
        self.trials.values().min().copied()
    }

    /// Adds a service port with its former rules and the message of iptables.
    pub(super) fn add(&mut self, name: &ServicePortName, former: Option<Rc<Outline>>, output: &str, now: Instant) {
        let cause: Rc<str> = cause(output).into();
        self.on_trial.remove(name);
        self.trials.entry(Rc::clone(&cause)).or_insert(now + PAUSE);
        self.members.insert(name.clone(), Quarantined { since: now, cause, former });
    }

    /// Removes changed service ports, because iptables may accept their new rules.
    pub(super) fn forget(&mut self, changed: &BTreeSet<ServicePortName>) {
        self.members.retain(|name, _| !changed.contains(name));
        self.on_trial.retain(|name, _| !changed.contains(name));
        self.drop_causes();
    }

    /// Releases some service ports of each cause that is due. Those that waited longest come first.
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

    /// Records that the kernel accepted these service ports. If one of them was refused before, its cause may be gone, so all other service
    /// ports of that cause are released.
    pub(super) fn accepted(&mut self, names: &BTreeSet<ServicePortName>) -> Vec<ServicePortName> {
        let mut released = Vec::new();
        let accepted: Vec<ServicePortName> = self.on_trial.keys().filter(|name| names.contains(*name)).cloned().collect();
        for name in accepted {
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

/// Returns the cause of a refusal: the message of iptables without the words that differ for each service port, such as line numbers,
/// chains and addresses.
fn cause(output: &str) -> String {
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
    fn the_cause_is_the_same_for_all_service_ports() {
        let first =
            cause("ip6tables-restore v1.8.9 (nf_tables): line 3: RULE_APPEND failed (No such file or directory): rule in chain KUBE-SVC-A");
        assert_eq!(
            first,
            cause(
                "ip6tables-restore v1.8.9 (nf_tables): line 91: RULE_APPEND failed (No such file or directory): rule in chain KUBE-SVC-B"
            )
        );
        assert_ne!(first, cause("line 3: RULE_APPEND failed (Invalid argument): rule in chain KUBE-SVC-A"));
    }

    #[test]
    fn a_few_service_ports_of_a_cause_are_tried_and_all_after_one_is_accepted() {
        let mut quarantine = Quarantine::default();
        let now = Instant::now();
        for number in 0..20 {
            quarantine.add(&name(&format!("s{number:02}")), None, "line 1: no match", now);
        }
        quarantine.add(&name("other"), None, "something else", now);
        assert!(quarantine.release(now).is_empty());
        let due = now + PAUSE;
        assert_eq!(quarantine.next_trial(), Some(due));
        let first = quarantine.release(due);
        assert_eq!(first.len(), TRIALS + 1);
        assert!(quarantine.release(due).is_empty() && quarantine.next_trial() == Some(due + PAUSE));
        for refused in &first {
            let output = if *refused == name("other") { "something else" } else { "line 2: no match" };
            quarantine.add(refused, None, output, due);
        }
        let second = quarantine.release(due + PAUSE);
        let same = second.iter().filter(|name| first.contains(name));
        assert!(same.eq([&name("other")]), "the others waited longer: {second:?}");
        quarantine.add(&name("other"), None, "something else", due + PAUSE);
        let taken = second.iter().find(|again| **again != name("other")).expect("one of many").clone();
        assert_eq!(quarantine.accepted(&[taken].into()).len(), 20 - TRIALS);
        assert_eq!(quarantine.names().len(), 1, "the other cause keeps its service port");
        quarantine.forget(&[name("other")].into());
        assert_eq!(quarantine.next_trial(), None);
    }
}
