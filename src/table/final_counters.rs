//! Reads the final counters of rules that a plan deletes or replaces: rules of endpoint chains, and lines of shared chains. The
//! iptables-restore that applies the plan prints these chains first, so no extra read of the table is needed.

use std::collections::HashSet;

use super::chain_names::{self, ChainKind, ChainName};

use super::Table;
use super::acknowledged::Acknowledged;
use super::live::SHARED;
use super::plan::{Plan, PlanStep, Transaction, Write};
use super::rule::{Digest, split_line};

/// The largest number of endpoint chains that one transaction lists. For each list step, legacy iptables searches all chains: with this
/// many list steps, a transaction takes a quarter longer, for tables of any size. On nft the steps cost less.
const CHAINS: usize = 128;

/// The rules whose final counters are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CounterSelection {
    /// Lines of `KUBE-SERVICES` and `KUBE-NODEPORTS` in `nat`, one for each address of a service port.
    pub addresses: bool,
    /// Rules of endpoint chains.
    pub endpoints: bool,
}

/// Adds list steps to each transaction. They print the rules that the transaction deletes or replaces, with their counters. Only chains
/// that the kernel has are listed. Returns true if any step was added.
pub fn list(plan: &mut Plan, acknowledged: &Acknowledged, selection: CounterSelection) -> bool {
    let mut any = false;
    if selection == CounterSelection::default() {
        return any;
    }
    for transaction in plan.transactions.iter_mut().filter(|transaction| transaction.table == Table::Nat) {
        let shared_chains =
            shortened_chains(transaction).filter(|chain| selection.addresses && acknowledged.fixed.contains_key(&(Table::Nat, *chain)));
        let mut lists: Vec<PlanStep> = shared_chains.map(|chain| PlanStep { write: Write::List(chain.to_owned()), owner: None }).collect();
        if selection.endpoints {
            let chains = endpoint_chains(transaction, acknowledged).take(CHAINS);
            lists.extend(chains.map(|chain| PlanStep { write: Write::List(chain.as_str().to_owned()), owner: None }));
        }
        any |= !lists.is_empty();
        transaction.steps.splice(0..0, lists);
    }
    any
}

/// Returns the shared chains that lose lines in a transaction.
fn shortened_chains(transaction: &Transaction) -> impl Iterator<Item = &'static str> {
    let shared = SHARED.iter().filter(|(table, _)| *table == Table::Nat).map(|(_, chain)| *chain);
    shared.filter(|chain| {
        transaction.steps.iter().any(|step| match &step.write {
            Write::Declare(declared) => declared == chain,
            Write::Lines(lines) => lines.lines().filter_map(deleted_rule).any(|rule| rule.split(' ').next() == Some(chain)),
            _ => false,
        })
    })
}

/// Returns the endpoint chains that existed before and that a transaction empties.
fn endpoint_chains<'t>(transaction: &'t Transaction, acknowledged: &'t Acknowledged) -> impl Iterator<Item = ChainName> {
    transaction.steps.iter().flat_map(|step| {
        let own: Vec<ChainName> = match &step.write {
            Write::DeclareOwn(chain) => vec![*chain],
            Write::DeclareAll(outline) => outline.chains.iter().map(|(chain, _)| *chain).collect(),
            _ => Vec::new(),
        };
        let before = step.owner.as_ref().and_then(|owner| acknowledged.services.get(owner));
        own.into_iter()
            .filter(move |chain| chain.kind() == ChainKind::Endpoint && before.is_some_and(|before| before.chain(chain).is_some()))
    })
}

/// Returns chain and arguments of the rule that a line deletes.
fn deleted_rule(line: &str) -> Option<&str> {
    line.strip_prefix("-D ")
}

/// Returns the rules that a plan deleted or replaced, with their final counters, each in the format of `iptables-save -c`. `listed` is the
/// text that the plan's list steps printed.
#[must_use]
pub fn ended(plan: &Plan, listed: &str) -> Vec<String> {
    // Most plans list nothing.
    if listed.is_empty() {
        return Vec::new();
    }
    let steps =
        || plan.transactions.iter().filter(|transaction| transaction.table == Table::Nat).flat_map(|transaction| &transaction.steps);
    let rewritten: HashSet<&str> =
        steps().filter_map(|step| if let Write::Declare(chain) = &step.write { Some(*chain) } else { None }).collect();
    let lines = steps().filter_map(|step| if let Write::Lines(lines) = &step.write { Some(lines) } else { None });
    let deleted: HashSet<Digest> =
        lines.flat_map(|lines| lines.lines().filter_map(deleted_rule)).map(|rule| Digest::of_line(&["-A ", rule].concat())).collect();
    let ended = |rule: &str| match split_line(rule).0 {
        chain @ (chain_names::SERVICES | chain_names::NODEPORTS) => rewritten.contains(chain) || deleted.contains(&Digest::of_line(rule)),
        _ => true,
    };
    let rules = listed.lines().filter_map(counted_rule).filter(|(_, _, rule)| ended(rule));
    rules.map(|(packets, bytes, rule)| format!("[{packets}:{bytes}] {rule}")).collect()
}

/// Parses a line like `-A KUBE-SEP-A -p tcp ... -c 3 180 -j DNAT ...` into packets, bytes and the rule without them. Returns `None` if the
/// counters are zero.
fn counted_rule(line: &str) -> Option<(u64, u64, String)> {
    let (rule, rest) = line.strip_prefix("-A ").and(line.rsplit_once(" -c "))?;
    let mut words = rest.splitn(3, ' ');
    let (packets, bytes) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let target = words.next().map(|target| [" ", target].concat()).unwrap_or_default();
    (packets > 0).then(|| (packets, bytes, [rule, &target].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(steps: Vec<Write>) -> Plan {
        let steps = steps.into_iter().map(|write| PlanStep { write, owner: None }).collect();
        Plan { transactions: vec![Transaction { table: Table::Nat, steps }] }
    }

    const WEB: &str = "KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m comment --comment \"shop/web:http cluster IP\" -m tcp --dport 80";
    const DNS: &str = "KUBE-SERVICES -d 10.96.0.2/32 -p udp -m comment --comment \"shop/dns cluster IP\" -m udp --dport 53";

    #[test]
    fn only_deleted_and_rewritten_rules_end() {
        let listed = format!(
            "-N KUBE-SERVICES\n-A {WEB} -c 3 180 -j KUBE-SVC-A\n-A {DNS} -c 9 540 -j KUBE-SVC-B\n\
             -A KUBE-SEP-A -p tcp -m comment --comment \"shop/web:http\" -m tcp -c 7 420 -j DNAT --to-destination 10.244.0.5:80\n\
             -A KUBE-SEP-A -s 10.244.0.5/32 -m comment --comment \"shop/web:http\" -c 0 0 -j KUBE-MARK-MASQ\n"
        );
        let endpoint =
            "[7:420] -A KUBE-SEP-A -p tcp -m comment --comment \"shop/web:http\" -m tcp -j DNAT --to-destination 10.244.0.5:80".to_owned();
        // The spelling in which the rule is written, not the one in which it is printed.
        let written = "KUBE-SERVICES -m comment --comment \"shop/web:http cluster IP\" -m tcp -p tcp -d 10.96.0.1 --dport 80 -j KUBE-SVC-A";
        let web = format!("[3:180] -A {WEB} -j KUBE-SVC-A");
        let edited = plan(vec![Write::Lines(format!("-D {written}\n-I {DNS} -j KUBE-SVC-B\n"))]);
        assert_eq!(ended(&edited, &listed), [web.clone(), endpoint.clone()]);
        let rewritten = plan(vec![Write::Declare(chain_names::SERVICES)]);
        assert_eq!(ended(&rewritten, &listed), [web, format!("[9:540] -A {DNS} -j KUBE-SVC-B"), endpoint]);
    }

    #[test]
    fn malformed_lines_have_no_counters() {
        let rewritten = plan(vec![Write::Declare(chain_names::SERVICES)]);
        for line in [
            "",
            "-A",
            "-A KUBE-SERVICES -c ",
            "-A KUBE-SERVICES -c 1",
            "-A KUBE-SERVICES -c x y -j Z",
            "# -c 1 2 -j",
            "-P OUTPUT ACCEPT -c 1 2",
        ] {
            assert_eq!(ended(&rewritten, line), Vec::<String>::new(), "{line}");
        }
        assert_eq!(ended(&rewritten, "-A KUBE-SERVICES -c 1 60"), ["[1:60] -A KUBE-SERVICES"], "a rule that only counts");
    }

    #[test]
    fn only_existing_chains_are_listed() {
        let mut acknowledged = Acknowledged::default();
        let lists = |acknowledged: &Acknowledged, selection| {
            let mut plan = plan(vec![Write::Declare(chain_names::SERVICES), Write::Lines(format!("-D {DNS}\n"))]);
            let any = list(&mut plan, acknowledged, selection);
            let lists = plan.transactions[0].steps.iter().filter(|step| matches!(step.write, Write::List(_))).count();
            assert_eq!(any, lists > 0);
            lists
        };
        let all = CounterSelection { addresses: true, endpoints: true };
        assert_eq!(lists(&acknowledged, all), 0, "the chain does not exist");
        acknowledged.fixed.insert((Table::Nat, chain_names::SERVICES), Digest::default());
        assert_eq!(lists(&acknowledged, all), 1);
        assert_eq!(lists(&acknowledged, CounterSelection { addresses: false, ..all }), 0, "not selected");
    }
}
