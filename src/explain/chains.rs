//! Takes packets through the chains of one netfilter hook, like the kernel does. Where a rule matches with a probability, the walk follows both
//! branches.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::table::Table;

use super::ending::{Ending, Fate, WalkStep};
use super::packet::{LocalNode, Packet};
use super::rule::{MatchKind, ParsedRule, RuleMatch, RuleTarget};
use super::ruleset::{ParsedChain, Ruleset};

/// The deepest nesting of jumps. The kernel allows fewer, so a deeper nesting is a loop.
const MAX_DEPTH: usize = 64;
/// The largest number of endings of a walk.
const MAX_ENDINGS: usize = 100_000;

/// One branch of the walk: the packet, with all changes that rules have made to it so far.
#[derive(Clone, Debug)]
pub(super) struct Branch {
    source: IpAddr,
    pub(super) to: SocketAddr,
    translated: bool,
    masqueraded: bool,
    mark: u32,
    probability: f64,
    steps: Vec<WalkStep>,
}

impl Branch {
    /// The packet before it meets any rule.
    pub(super) const fn new(packet: &Packet) -> Self {
        let (source, to) = (packet.source, packet.to);
        Self { source, to, translated: false, masqueraded: false, mark: 0, probability: 1.0, steps: Vec::new() }
    }

    /// Removes the step that led into a chain, if no rule of that chain decided anything.
    fn leave(&mut self, frame: &Frame<'_>) {
        if self.steps.len() == frame.steps {
            self.steps.pop();
        }
    }
}

/// A branch at the end of a hook.
pub(super) struct HookResult {
    pub(super) branch: Branch,
    pub(super) fate: Fate,
}

impl HookResult {
    /// The ending of this branch, if the packet passes no further hook.
    pub(super) fn into_ending(self) -> Ending {
        let Branch { to, translated, masqueraded, probability, steps, .. } = self.branch;
        Ending { probability, to, translated, masqueraded, fate: self.fate, steps }
    }
}

/// A branch inside a chain, with the chains that it has to return to.
struct OpenBranch<'r> {
    branch: Branch,
    stack: Vec<Frame<'r>>,
}

/// A chain that the packet is in.
#[derive(Clone)]
struct Frame<'r> {
    name: &'r str,
    chain: &'r ParsedChain,
    /// The index of the next rule.
    next: usize,
    /// The number of steps when the packet entered the chain, including the jump to it.
    steps: usize,
}

/// The walk of one packet through the hooks.
pub(super) struct Walker<'a> {
    rules: &'a Ruleset,
    packet: Packet,
    pub(super) node: &'a LocalNode,
    /// The interface that the packet came in by. Empty for a packet of the node itself.
    pub(super) in_interface: String,
    /// Rules that the walk skipped because it does not understand them.
    pub(super) not_understood: BTreeSet<String>,
}

impl<'a> Walker<'a> {
    pub(super) fn new(rules: &'a Ruleset, packet: Packet, node: &'a LocalNode) -> Self {
        let in_interface = node.interface(packet.origin).to_owned();
        Self { rules, packet, node, in_interface, not_understood: BTreeSet::new() }
    }

    /// Takes a packet through a built-in chain. If the chain does not exist, the packet passes.
    pub(super) fn hook(&mut self, table: Table, name: &'static str, branch: Branch) -> Vec<HookResult> {
        let rules: &'a Ruleset = self.rules;
        let Some(chain) = rules.get(table, name) else { return vec![HookResult { branch, fate: Fate::Passed }] };
        let mut open = vec![OpenBranch { branch, stack: vec![Frame { name, chain, next: 0, steps: usize::MAX }] }];
        let mut results = Vec::new();
        while let Some(next) = open.pop() {
            if results.len() + open.len() >= MAX_ENDINGS {
                self.not_understood.insert(format!("more than {MAX_ENDINGS} endings: the rest is left out"));
                break;
            }
            results.push(self.follow(table, next, &mut open));
        }
        results
    }

    /// Follows one branch to the end of the hook. Adds the other branches that it meets to `open`.
    fn follow(&mut self, table: Table, OpenBranch { mut branch, mut stack }: OpenBranch<'a>, open: &mut Vec<OpenBranch<'a>>) -> HookResult {
        while let Some(frame) = stack.last_mut() {
            let (name, chain) = (frame.name, frame.chain);
            let Some(rule) = chain.rules.get(frame.next) else {
                if let Some(fate) = return_from_chain(table, &mut branch, &mut stack) {
                    return HookResult { branch, fate };
                }
                continue;
            };
            frame.next += 1;
            let probability = self.match_probability(table, name, rule, &branch);
            if probability <= 0.0 {
                continue;
            }
            if probability < 1.0 {
                let mut other = branch.clone();
                other.probability *= 1.0 - probability;
                open.push(OpenBranch { branch: other, stack: stack.clone() });
                branch.probability *= probability;
            }
            if let Some(fate) = self.apply(table, name, rule, &mut branch, &mut stack) {
                return HookResult { branch, fate };
            }
        }
        HookResult { branch, fate: Fate::Passed }
    }

    /// Applies the target of a rule. Returns the fate of the packet if the target decides it for this hook.
    fn apply(&mut self, table: Table, chain: &str, rule: &ParsedRule, branch: &mut Branch, stack: &mut Vec<Frame<'a>>) -> Option<Fate> {
        let fate = match &rule.target {
            RuleTarget::Continue => return None,
            RuleTarget::Return => return return_from_chain(table, branch, stack),
            RuleTarget::Unknown(target) => {
                self.not_understood.insert(format!("{table} {chain}: target {target}"));
                return None;
            }
            RuleTarget::Jump(to) | RuleTarget::Goto(to) => {
                self.enter_chain((table, chain), rule, to, branch, stack);
                return None;
            }
            RuleTarget::SetMark(value, mask) => {
                branch.mark = (branch.mark & !mask) ^ value;
                None
            }
            RuleTarget::Accept => Some(Fate::Passed),
            RuleTarget::Drop => Some(Fate::Dropped),
            RuleTarget::Reject => Some(Fate::Refused),
            RuleTarget::Dnat(ip, port) => {
                branch.to = SocketAddr::new(*ip, port.unwrap_or(branch.to.port()));
                branch.translated = true;
                Some(Fate::Passed)
            }
            RuleTarget::Masquerade => {
                branch.masqueraded = true;
                Some(Fate::Passed)
            }
        };
        branch.steps.push(step(table, chain, rule));
        fate
    }

    /// Enters the chain that a jump or goto names.
    fn enter_chain(&mut self, (table, chain): (Table, &str), rule: &ParsedRule, to: &str, branch: &mut Branch, stack: &mut Vec<Frame<'a>>) {
        let rules: &'a Ruleset = self.rules;
        let Some((name, next)) = rules.get_named(table, to) else {
            self.not_understood.insert(format!("{table} {chain}: the target chain {to} does not exist"));
            return;
        };
        if stack.len() >= MAX_DEPTH {
            self.not_understood.insert(format!("{table} {chain}: the chains jump in a loop"));
            return;
        }
        if let (RuleTarget::Goto(_), Some(frame)) = (&rule.target, stack.last_mut()) {
            // After a goto the packet does not return to the rest of this chain.
            frame.next = frame.chain.rules.len();
        }
        branch.steps.push(step(table, chain, rule));
        stack.push(Frame { name, chain: next, next: 0, steps: branch.steps.len() });
    }

    /// Returns the probability that a rule matches. A rule with a match that the walk does not understand counts as not matching.
    fn match_probability(&mut self, table: Table, chain: &str, rule: &ParsedRule, branch: &Branch) -> f64 {
        let mut probability = 1.0;
        let mut unknown = None;
        for RuleMatch { negated, kind } in &rule.matches {
            let Some(one) = self.kind_probability(kind, branch) else {
                unknown = Some(kind);
                continue;
            };
            probability *= if *negated { 1.0 - one } else { one };
            if probability <= 0.0 {
                return 0.0;
            }
        }
        if let Some(kind) = unknown {
            self.not_understood.insert(format!("{table} {chain}: a rule with {kind}"));
            return 0.0;
        }
        probability
    }

    /// Returns the probability that one match holds. `None` if the walk does not understand it.
    fn kind_probability(&self, kind: &MatchKind, branch: &Branch) -> Option<f64> {
        let holds = match kind {
            MatchKind::Source(net) => net.contains(branch.source),
            MatchKind::Destination(net) => net.contains(branch.to.ip()),
            MatchKind::Protocol(name) => *name == self.packet.protocol.as_str() || matches!(name.as_str(), "all" | "0"),
            MatchKind::InInterface(name) => interface_matches(&self.in_interface, name),
            // The walk knows no routes, so it does not know the interface that the packet leaves by.
            MatchKind::OutInterface(_) | MatchKind::Unknown(_) => return None,
            MatchKind::Ports(ports) => ports.iter().any(|ports| ports.contains(&branch.to.port())),
            MatchKind::DestinationIsLocal => self.node.is_local(branch.to.ip()),
            MatchKind::SourceIsLocal => self.node.is_local(branch.source),
            MatchKind::ConntrackState(states) => states.iter().any(|state| state == "NEW" || state == "DNAT" && branch.translated),
            MatchKind::Mark(value, mask) => branch.mark & mask == *value,
            MatchKind::Probability(probability) => return Some(*probability),
            MatchKind::Recent => false,
        };
        Some(if holds { 1.0 } else { 0.0 })
    }
}

/// Returns to the calling chain. A built-in chain has no caller: its policy decides the fate.
fn return_from_chain(table: Table, branch: &mut Branch, stack: &mut Vec<Frame<'_>>) -> Option<Fate> {
    let frame = stack.pop()?;
    branch.leave(&frame);
    if !stack.is_empty() {
        return None;
    }
    if !frame.chain.policy_drops {
        return Some(Fate::Passed);
    }
    branch.steps.push(WalkStep::drop_policy(table, frame.name));
    Some(Fate::Dropped)
}

fn step(table: Table, chain: &str, rule: &ParsedRule) -> WalkStep {
    WalkStep {
        table,
        chain: chain.to_owned(),
        comment: rule.comment.clone(),
        target: rule.target.clone(),
        rule: Some(Arc::clone(&rule.text)),
    }
}

fn interface_matches(name: &str, pattern: &str) -> bool {
    pattern.strip_suffix('+').map_or(name == pattern, |prefix| name.starts_with(prefix))
}
