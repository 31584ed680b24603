//! Counters that a plan ends: those of endpoints' chains that are written anew or deleted, and of lines that leave shared chains. The
//! iptables-restore that carries out the plan lists them first: it has those chains in hand anyway, so nobody reads a table for it.

use std::collections::HashSet;

use super::chain_names::{self, ChainKind, ChainName};

use super::Table;
use super::acknowledged::Acknowledged;
use super::live::SHARED;
use super::plan::{Plan, PlanStep, Transaction, Write};
use super::rule::{Digest, split_line};

/// A transaction lists no more endpoints' chains than this. Legacy iptables looks through all chains for each: this many add a quarter to
/// what it needs anyway, whatever the table's size, and on nft less.
const CHAINS: usize = 128;

/// Whose counters somebody wants to know before they end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CounterSelection {
    /// Lines of `KUBE-SERVICES` and `KUBE-NODEPORTS` in `nat`: the shared_chains of Services.
    pub addresses: bool,
    /// Rules that lead to endpoints.
    pub endpoints: bool,
}

/// Has each transaction list the rules whose counters it ends, as far as the kernel holds them; says whether there are any.
pub fn list(plan: &mut Plan, held: &Acknowledged, counted: CounterSelection) -> bool {
    let mut any = false;
    if counted == CounterSelection::default() {
        return any;
    }
    for transaction in plan.transactions.iter_mut().filter(|transaction| transaction.table == Table::Nat) {
        let shared_chains = shared_chains(transaction).filter(|chain| counted.addresses && held.fixed.contains_key(&(Table::Nat, *chain)));
        let mut lists: Vec<PlanStep> = shared_chains.map(|chain| PlanStep { write: Write::List(chain.to_owned()), owner: None }).collect();
        if counted.endpoints {
            let chains = endpoints(transaction, held).take(CHAINS);
            lists.extend(chains.map(|chain| PlanStep { write: Write::List(chain.as_str().to_owned()), owner: None }));
        }
        any |= !lists.is_empty();
        transaction.steps.splice(0..0, lists);
    }
    any
}

/// The shared chains that lose lines in a transaction.
fn shared_chains(transaction: &Transaction) -> impl Iterator<Item = &'static str> {
    let shared = SHARED.iter().filter(|(table, _)| *table == Table::Nat).map(|(_, chain)| *chain);
    shared.filter(|chain| {
        transaction.steps.iter().any(|step| match &step.write {
            Write::Declare(declared) => declared == chain,
            Write::Lines(lines) => lines.lines().filter_map(taken_out).any(|rule| rule.split(' ').next() == Some(chain)),
            _ => false,
        })
    })
}

/// The endpoints' chains that a transaction empties and that were there before.
fn endpoints<'t>(transaction: &'t Transaction, held: &'t Acknowledged) -> impl Iterator<Item = ChainName> {
    transaction.steps.iter().flat_map(|step| {
        let own: Vec<ChainName> = match &step.write {
            Write::DeclareOwn(chain) => vec![*chain],
            Write::DeclareAll(outline) => outline.chains.iter().map(|(chain, _)| *chain).collect(),
            _ => Vec::new(),
        };
        let before = step.owner.as_ref().and_then(|owner| held.services.get(owner));
        own.into_iter()
            .filter(move |chain| chain.kind() == ChainKind::Endpoint && before.is_some_and(|before| before.chain(chain).is_some()))
    })
}

/// The rule that a line takes out: chain and arguments.
fn taken_out(line: &str) -> Option<&str> {
    line.strip_prefix("-D ")
}

/// Of what a plan's lists said when it was carried out: the rules that ended, each as `iptables-save -c` would print it.
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
    let taken_out: HashSet<Digest> =
        lines.flat_map(|lines| lines.lines().filter_map(taken_out)).map(|rule| Digest::of_line(&["-A ", rule].concat())).collect();
    let ended = |rule: &str| match split_line(rule).0 {
        chain @ (chain_names::SERVICES | chain_names::NODEPORTS) => rewritten.contains(chain) || taken_out.contains(&Digest::of_line(rule)),
        _ => true,
    };
    let rules = listed.lines().filter_map(counted_rule).filter(|(_, _, rule)| ended(rule));
    rules.map(|(packets, bytes, rule)| format!("[{packets}:{bytes}] {rule}")).collect()
}

/// Packets, bytes and the rule without them, of a line like `-A KUBE-SEP-A -p tcp ... -c 3 180 -j DNAT ...`; of one that counted.
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

    const DOOR: &str = "KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m comment --comment \"shop/web:http cluster IP\" -m tcp --dport 80";
    const OTHER: &str = "KUBE-SERVICES -d 10.96.0.2/32 -p udp -m comment --comment \"shop/dns cluster IP\" -m udp --dport 53";

    #[test]
    fn what_stays_has_not_ended() {
        let listed = format!(
            "-N KUBE-SERVICES\n-A {DOOR} -c 3 180 -j KUBE-SVC-A\n-A {OTHER} -c 9 540 -j KUBE-SVC-B\n\
             -A KUBE-SEP-A -p tcp -m comment --comment \"shop/web:http\" -m tcp -c 7 420 -j DNAT --to-destination 10.244.0.5:80\n\
             -A KUBE-SEP-A -s 10.244.0.5/32 -m comment --comment \"shop/web:http\" -c 0 0 -j KUBE-MARK-MASQ\n"
        );
        let endpoint =
            "[7:420] -A KUBE-SEP-A -p tcp -m comment --comment \"shop/web:http\" -m tcp -j DNAT --to-destination 10.244.0.5:80".to_owned();
        // As it is written, not as it is printed.
        let written = "KUBE-SERVICES -m comment --comment \"shop/web:http cluster IP\" -m tcp -p tcp -d 10.96.0.1 --dport 80 -j KUBE-SVC-A";
        let door = format!("[3:180] -A {DOOR} -j KUBE-SVC-A");
        let edited = plan(vec![Write::Lines(format!("-D {written}\n-I {OTHER} -j KUBE-SVC-B\n"))]);
        assert_eq!(ended(&edited, &listed), [door.clone(), endpoint.clone()]);
        let rewritten = plan(vec![Write::Declare(chain_names::SERVICES)]);
        assert_eq!(ended(&rewritten, &listed), [door, format!("[9:540] -A {OTHER} -j KUBE-SVC-B"), endpoint]);
    }

    #[test]
    fn nonsense_has_no_counters() {
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
    fn only_what_the_kernel_holds_is_listed() {
        let mut held = Acknowledged::default();
        let lists = |held: &Acknowledged, counted| {
            let mut plan = plan(vec![Write::Declare(chain_names::SERVICES), Write::Lines(format!("-D {OTHER}\n"))]);
            let any = list(&mut plan, held, counted);
            let lists = plan.transactions[0].steps.iter().filter(|step| matches!(step.write, Write::List(_))).count();
            assert_eq!(any, lists > 0);
            lists
        };
        let all = CounterSelection { addresses: true, endpoints: true };
        assert_eq!(lists(&held, all), 0, "a chain that is not there");
        held.fixed.insert((Table::Nat, chain_names::SERVICES), Digest::default());
        assert_eq!(lists(&held, all), 1);
        assert_eq!(lists(&held, CounterSelection { addresses: false, ..all }), 0, "nobody wants to know");
    }
}
