//! Syncs of one family on tables in memory: after any changes in any order the live tables equal the desired ones, and every COMMIT in
//! between leaves them usable.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use sepal::cluster::{Family, ServiceKey, ServicePortName};
use sepal::kubernetes::events::Events;
use sepal::kubernetes::{self, ChangeTime, Kind, ObjectId, convert};
use sepal::netlink::record::FakeHost;
use sepal::observe::health::SharedHealth;
use sepal::observe::metrics::Format;
use sepal::observe::sync_result::SyncResult;
use sepal::proxy::rules::RuleSet;
use sepal::proxy::rules::inputs::Inputs;
use sepal::proxy::sync::family::{FamilyRules, SyncError};
use sepal::proxy::sync::proxy_loop::ProxyLoop;
use sepal::proxy::sync::report::Report;
use sepal::proxy::sync::update::Update;
use sepal::table::final_counters::CounterSelection;
use sepal::table::parse::Tables;
use sepal::table::plan::Variant;
use sepal::table::planner::CHAINS_PER_TRANSACTION;
use sepal::table::{Table, rule};

use crate::common;
use crate::objects::{cluster, text};
use crate::simulator::{Chains, Fault, Memory, Simulator};
use crate::{block_on, rule_set};

pub(crate) fn sync(rules: &mut FamilyRules, memory: &Memory, inputs: &Inputs) -> Result<SyncResult, SyncError> {
    block_on(rules.sync(memory, inputs, &common::facts(inputs)))
}

/// Our chains in a comparable form: where the order of service ports does not matter, they are sorted; rules of other programs are left out.
pub(crate) fn meaning(tables: &Simulator) -> Vec<String> {
    let saved = tables.save();
    let mut read = Tables::default();
    read.read(&saved);
    let mut lines = Vec::new();
    for table in Table::ALL {
        for (chain, rules) in read.chains(table) {
            // kubelet uses KUBE-FIREWALL, too: its rules stay until the chain is written again.
            if *chain == "KUBE-FIREWALL" {
                continue;
            }
            let mut rules = rules.clone();
            if let Some(tail) = rules.iter().position(|rule| rule.contains("must be the last rule")) {
                let last = rules[tail..].iter().all(|rule| rule.contains("must be the last rule"));
                lines.push(format!("{table} {chain}: the way to the NodePorts is last: {last}"));
            }
            if matches!(*chain, "KUBE-SERVICES" | "KUBE-NODEPORTS" | "KUBE-EXTERNAL-SERVICES" | "KUBE-PROXY-FIREWALL") {
                rules.sort_by_key(|rule| rule::owner(rule));
            }
            let rules: Vec<String> = rules.iter().map(|rule| rule::canonical(rule)).collect();
            lines.push(format!("{table} {chain}: {rules:?}"));
        }
    }
    lines
}

/// The tables after a first sync on empty tables.
pub(crate) fn fresh(inputs: &Inputs, family: Family, variant: Variant) -> Memory {
    let memory = Memory::new(variant);
    sync(&mut FamilyRules::new(family), &memory, inputs).expect("a start from nothing");
    memory
}

fn keys(inputs: &Inputs) -> BTreeSet<ServiceKey> {
    inputs.snapshot.services().map(|(key, _)| key.clone()).collect()
}

/// Marks everything that differs between the two clusters as changed.
pub(crate) fn touch(rules: &mut FamilyRules, before: &Inputs, after: &Inputs) {
    if before.snapshot.node() != after.snapshot.node() {
        rules.touch_everything();
    }
    let all: Vec<ServiceKey> = keys(before).union(&keys(after)).cloned().collect();
    rules.touch(&all);
}

/// An unchanged service port is complete after every COMMIT. A changed one is complete in its old or in its new form, as far as packets
/// reach it.
fn assert_kept(memory: &Memory, before: &Inputs, after: &Inputs, family: Family) -> Result<(), TestCaseError> {
    let (old, new) = (rule_set(before, family), rule_set(after, family));
    let forms = forms(&old, &new);
    for state in memory.states.borrow().iter() {
        let nat = &state.tables["nat"];
        for service in old.services.iter().filter(|service| new.services.contains(service)) {
            for (chain, wanted) in service.chains() {
                let rules: String = nat.get(chain.as_str()).into_iter().flatten().map(|rule| format!("-A {chain} {rule}\n")).collect();
                prop_assert_eq!(&rules, wanted, "{}: {} is not whole", service.name, chain);
            }
            for line in service.nat_dispatch().lines() {
                let (chain, rule) = rule::split_line(line);
                prop_assert!(nat[chain].iter().any(|found| found == rule), "{}: gone from {chain}", service.name);
            }
        }
        assert_one_form(nat, &forms)?;
    }
    Ok(())
}

/// A chain's owner, and its rules in their old and in their new form.
type Forms<'a> = BTreeMap<&'a str, (&'a ServicePortName, Option<&'a str>, Option<&'a str>)>;

fn forms<'a>(old: &'a RuleSet, new: &'a RuleSet) -> Forms<'a> {
    let mut forms = Forms::new();
    for service in &old.services {
        forms.extend(service.chains().map(|(chain, rules)| (chain.as_str(), (&service.name, Some(rules), None))));
    }
    for service in &new.services {
        for (chain, rules) in service.chains() {
            forms.entry(chain.as_str()).or_insert((&service.name, None, None)).2 = Some(rules);
        }
    }
    forms
}

/// Every chain that packets reach is complete, and all chains of one service port have the same form, old or new.
fn assert_one_form(nat: &Chains, forms: &Forms<'_>) -> Result<(), TestCaseError> {
    let targets = |chain: &str| nat.get(chain).into_iter().flatten().filter_map(|rule| rule::target(rule)).collect::<Vec<_>>();
    let mut waiting: Vec<_> = ["KUBE-SERVICES", "KUBE-NODEPORTS"].into_iter().flat_map(targets).collect();
    let mut reached = BTreeSet::new();
    let mut of_form: BTreeMap<&ServicePortName, (bool, bool)> = BTreeMap::new();
    while let Some(chain) = waiting.pop() {
        let Some((name, old, new)) = forms.get(&*chain) else { continue };
        if !reached.insert(chain.clone()) {
            continue;
        }
        let rules: String = nat.get(&*chain).into_iter().flatten().map(|rule| format!("-A {chain} {rule}\n")).collect();
        let (is_old, is_new) = (*old == Some(rules.as_str()), *new == Some(rules.as_str()));
        prop_assert!(is_old || is_new, "{name}: {chain} is reached and not whole:\n{rules}");
        if old.is_some() && new.is_some() {
            let all = of_form.entry(name).or_insert((true, true));
            *all = (all.0 && is_old, all.1 && is_new);
        }
        waiting.extend(targets(&chain));
    }
    for (name, (old, new)) in of_form {
        prop_assert!(old || new, "{name} is half old, half new");
    }
    Ok(())
}

/// All changes of one Service's own chains in one run are in one COMMIT, all ports together.
pub(crate) fn assert_together(run: &str, after: &Inputs, family: Family) -> Result<(), TestCaseError> {
    let rules = rule_set(after, family);
    let chains = rules.services.iter().flat_map(|service| service.chains().map(|(chain, _)| (chain.as_str(), &service.name.service)));
    let owners: BTreeMap<&str, &ServiceKey> = chains.collect();
    let mut written: BTreeMap<&ServiceKey, BTreeSet<usize>> = BTreeMap::new();
    for (number, transaction) in run.split("COMMIT\n").enumerate() {
        for line in transaction.lines() {
            if let Some(owner) = owners.get(rule::split_line(line).0) {
                written.entry(owner).or_default().insert(number);
            }
        }
    }
    for (service, transactions) in written {
        prop_assert_eq!(transactions.len(), 1, "{} is written in several COMMITs:\n{}", service, run);
    }
    Ok(())
}

/// Each rule with a connection counter that is removed or reset was listed exactly once before; no other rule was listed.
fn assert_final_counters(held: &Simulator, run: &str, ended: &[String]) -> Result<(), TestCaseError> {
    // No rule of `filter`, which has a KUBE-SERVICES, too, counts connections.
    let run: String = run.split_inclusive("COMMIT\n").filter(|transaction| transaction.starts_with("*nat")).collect();
    let deleted = run.lines().filter_map(|line| line.strip_prefix("-D "));
    let deleted: BTreeSet<rule::Digest> = deleted.map(|rule| rule::Digest::of_line(&format!("-A {rule}"))).collect();
    let mut wanted = Vec::new();
    for (chain, rules) in &held.tables["nat"] {
        if chain.starts_with("KUBE-SEP-") || ["KUBE-SERVICES", "KUBE-NODEPORTS"].contains(&chain.as_str()) {
            let emptied = run.lines().any(|line| line == format!(":{chain} - [0:0]"));
            let rules = rules.iter().map(|rule| format!("-A {chain} {rule}"));
            wanted.extend(
                rules.filter(|rule| emptied || deleted.contains(&rule::Digest::of_line(rule))).map(|rule| format!("[1:60] {rule}")),
            );
        }
    }
    let mut ended = ended.to_vec();
    wanted.sort_unstable();
    ended.sort_unstable();
    prop_assert_eq!(ended, wanted);
    Ok(())
}

/// The most chains of a transaction: few, so that small clusters need several transactions.
fn limits() -> impl Strategy<Value = usize> {
    prop_oneof![Just(1_usize), Just(5), Just(CHAINS_PER_TRANSACTION)]
}

fn variants() -> impl Strategy<Value = Variant> {
    prop_oneof![Just(Variant::Nft), Just(Variant::Legacy)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any sequence of changes ends in the tables of a fresh start. Unchanged service ports are complete all the time. Nothing is written
    /// twice.
    #[test]
    fn any_changes_end_in_the_tables_of_a_fresh_start(steps in proptest::collection::vec(cluster(), 1..5), variant in variants(), limit in limits()) {
        for family in Family::ALL {
            let memory = Memory::new(variant);
            let mut rules = FamilyRules::new(family).with_limit(limit);
            rules.select_final_counters(CounterSelection { addresses: true, endpoints: true });
            let mut before = Inputs::default();
            for objects in &steps {
                let after = common::inputs(&text(objects)).map_err(TestCaseError::fail)?;
                touch(&mut rules, &before, &after);
                memory.states.borrow_mut().clear();
                let (runs, held) = (memory.runs.borrow().len(), memory.tables.borrow().clone());
                sync(&mut rules, &memory, &after).map_err(|error| TestCaseError::fail(error.to_string()))?;
                assert_final_counters(&held, &memory.runs.borrow()[runs..].concat(), &rules.take_ended())?;
                assert_kept(&memory, &before, &after, family)?;
                memory.runs.borrow()[runs..].iter().try_for_each(|run| assert_together(run, &after, family))?;
                prop_assert_eq!(meaning(&memory.tables.borrow()), meaning(&fresh(&after, family, variant).tables.borrow()));
                before = after;
            }
            // A restart that reads the live tables finds nothing to write.
            let runs = memory.runs.borrow().len();
            rules.touch_everything();
            sync(&mut rules, &memory, &before).map_err(|error| TestCaseError::fail(error.to_string()))?;
            sync(&mut FamilyRules::new(family), &memory, &before).map_err(|error| TestCaseError::fail(error.to_string()))?;
            let written = memory.runs.borrow();
            prop_assert_eq!(written.len(), runs, "{}", written.last().expect("a run"));
        }
    }

    /// A sync that is stopped after any transaction, and then restarted or retried, ends in the same tables.
    #[test]
    fn an_end_in_the_middle_loses_nothing(before in cluster(), after in cluster(), killed in 0_usize..8, restart in any::<bool>(), variant in variants(), limit in limits()) {
        let before = common::inputs(&text(&before)).map_err(TestCaseError::fail)?;
        let after = common::inputs(&text(&after)).map_err(TestCaseError::fail)?;
        let memory = fresh(&before, Family::V4, variant);
        let mut rules = FamilyRules::new(Family::V4).with_limit(limit);
        sync(&mut rules, &memory, &before).map_err(|error| TestCaseError::fail(error.to_string()))?;
        rules.select_final_counters(CounterSelection { addresses: true, endpoints: true });
        touch(&mut rules, &before, &after);
        memory.faults.borrow_mut().push_back(Some(Fault::KilledAfter(killed)));
        if sync(&mut rules, &memory, &after).is_err() {
            if restart {
                rules = FamilyRules::new(Family::V4);
            }
            sync(&mut rules, &memory, &after).map_err(|error| TestCaseError::fail(error.to_string()))?;
        }
        prop_assert_eq!(meaning(&memory.tables.borrow()), meaning(&fresh(&after, Family::V4, variant).tables.borrow()));
    }

    /// An audit finds and repairs every change that another program makes to our rules.
    #[test]
    fn drift_is_put_right(objects in cluster(), edits in proptest::collection::vec((any::<usize>(), any::<usize>(), 0_u8..6), 1..4), variant in variants()) {
        let inputs = common::inputs(&text(&objects)).map_err(TestCaseError::fail)?;
        let memory = Memory::new(variant);
        let mut rules = FamilyRules::new(Family::V4);
        sync(&mut rules, &memory, &inputs).map_err(|error| TestCaseError::fail(error.to_string()))?;
        let wanted = meaning(&memory.tables.borrow());
        for (chain, place, kind) in edits {
            vandalise(&mut memory.tables.borrow_mut(), chain, place, kind);
        }
        let changed = meaning(&memory.tables.borrow()) != wanted;
        let drift = block_on(rules.audit(&memory)).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(!drift.is_empty(), changed, "{:?}", drift);
        sync(&mut rules, &memory, &inputs).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(meaning(&memory.tables.borrow()), wanted);
    }
}

/// The dispatch rules of one service port keep their order in each shared chain: external IPs before load balancers, loopback before other
/// addresses of a NodePort. This also holds when the service port is added while others stay, and when the live order is another one.
#[test]
fn the_lines_of_a_service_port_stay_in_order() {
    let balancer = r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "ns", "name": "both"}, "spec": {"type": "LoadBalancer", "clusterIP": "10.61.0.3",
        "externalIPs": ["198.51.100.9"], "loadBalancerSourceRanges": ["10.0.0.0/8"], "ports": [{"port": 83, "nodePort": 30083}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.9"}]}}}
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "metadata": {"namespace": "ns", "name": "both", "labels": {"kubernetes.io/service-name": "both"}},
        "endpoints": [{"addresses": ["10.61.1.3"]}], "ports": [{"name": "", "port": 8080}]}"#;
    let first = common::inputs(TWO_SERVICES).expect("well formed");
    let second = common::inputs(&format!("{TWO_SERVICES}{balancer}")).expect("well formed");
    let mut facts = common::facts(&second);
    facts.nfacct.localhost_node_ports = true;
    for variant in [Variant::Nft, Variant::Legacy] {
        let memory = Memory::new(variant);
        let mut rules = FamilyRules::new(Family::V4);
        let go = |rules: &mut FamilyRules, inputs| block_on(rules.sync(&memory, inputs, &facts)).expect("nothing is refused").extent;
        go(&mut rules, &first);
        touch(&mut rules, &first, &second);
        let extent = go(&mut rules, &second);
        assert!(extent.edits > 0, "it was put into what is there: {extent:?}");
        let ways = |chain: &str| -> Vec<String> {
            let tables = memory.tables.borrow();
            let of_it = tables.tables["nat"][chain].iter().filter(|rule| rule.contains("ns/both"));
            of_it
                .map(|rule| if rule.contains("127.0.0.0/8") { "loopback".into() } else { rule::target(rule).expect("one")[..8].to_owned() })
                .collect()
        };
        assert_eq!(ways("KUBE-SERVICES"), ["KUBE-SVC", "KUBE-EXT", "KUBE-FW-"], "{variant}");
        assert_eq!(ways("KUBE-NODEPORTS"), ["loopback", "KUBE-EXT"], "{variant}");
        let in_order = memory.tables.borrow().clone();

        // Another program changes the order: an audit and a restart both find and repair it.
        for restart in [false, true] {
            memory.tables.borrow_mut().tables.get_mut("nat").expect("a table").get_mut("KUBE-NODEPORTS").expect("a chain").reverse();
            if restart {
                rules = FamilyRules::new(Family::V4);
            } else {
                let drift = block_on(rules.audit(&memory)).expect("an audit");
                assert_eq!(drift.services.len(), 1, "{drift:?}");
            }
            let extent = go(&mut rules, &second);
            assert_eq!((extent.chains, extent.deleted), (0, 0), "{extent:?}");
            assert_eq!(ways("KUBE-NODEPORTS"), ["loopback", "KUBE-EXT"], "{variant}");
            assert_eq!(meaning(&memory.tables.borrow()), meaning(&in_order));
        }
    }
}

/// Another program changes the tables, and then the cluster changes before an audit: no service port is quarantined, and the tables end as
/// desired.
#[test]
fn a_change_after_drift_quarantines_no_service_port() {
    let first = common::inputs(TWO_SERVICES).expect("well formed");
    let second = common::inputs(&TWO_SERVICES.replace("10.61.1.1", "10.61.2.1")).expect("well formed");
    let gone =
        common::inputs(&TWO_SERVICES.lines().filter(|line| !line.contains("\"bad\"")).map(|line| format!("{line}\n")).collect::<String>());
    let gone = gone.unwrap_or_else(|_| common::inputs("").expect("nothing"));
    for variant in [Variant::Nft, Variant::Legacy] {
        for after in [&second, &gone] {
            // Chains and rules that should be listed before they are deleted may be gone, too.
            for (wiped, listed) in [("nat", false), ("filter", false), ("one rule", false), ("nat", true), ("one rule", true)] {
                let memory = Memory::new(variant);
                let mut rules = FamilyRules::new(Family::V4);
                sync(&mut rules, &memory, &first).expect("a start");
                rules.select_final_counters(CounterSelection { addresses: listed, endpoints: listed });
                match wiped {
                    "one rule" => {
                        let mut tables = memory.tables.borrow_mut();
                        tables.tables.get_mut("nat").expect("a table").get_mut("KUBE-SERVICES").expect("a chain").remove(0);
                    }
                    table => {
                        let empty = Simulator::default().tables.remove(table).expect("a table");
                        memory.tables.borrow_mut().tables.insert(table.to_owned(), empty);
                    }
                }
                touch(&mut rules, &first, after);
                let synced = sync(&mut rules, &memory, after).expect("it is put right");
                assert_eq!(synced.refused, [], "{variant} {wiped}");
                block_on(rules.audit(&memory)).expect("an audit");
                sync(&mut rules, &memory, after).expect("what is left is put right");
                assert_eq!(rules.quarantined().count(), 0);
                let wanted = meaning(&fresh(after, Family::V4, variant).tables.borrow());
                assert_eq!(meaning(&memory.tables.borrow()), wanted, "{variant} {wiped}");
            }
        }
    }
}

/// One transaction lists at most 128 chains of removed endpoints.
#[test]
fn listing_is_bounded() {
    let endpoints: String = (1..=200).map(|last| format!("{{\"addresses\": [\"10.61.1.{last}\"]}},")).collect();
    let many = TWO_SERVICES.replace("{\"addresses\": [\"10.61.1.1\"]}", endpoints.trim_end_matches(','));
    let (before, after) = (common::inputs(&many).expect("well formed"), common::inputs("").expect("nothing"));
    let memory = Memory::new(Variant::Legacy);
    let mut rules = FamilyRules::new(Family::V4);
    sync(&mut rules, &memory, &before).expect("a start");
    rules.select_final_counters(CounterSelection { addresses: true, endpoints: true });
    touch(&mut rules, &before, &after);
    sync(&mut rules, &memory, &after).expect("they are deleted");
    let ended = rules.take_ended();
    let chains: BTreeSet<&str> = ended.iter().filter_map(|line| line.split(' ').find(|word| word.starts_with("KUBE-SEP-"))).collect();
    assert_eq!(chains.len(), 128);
    assert!(ended.iter().any(|line| line.contains("-A KUBE-SERVICES ")), "dispatch rules are listed, too: {ended:?}");
}

/// Changes one of our chains: deletes, adds, repeats or moves a rule, flushes the chain, or adds a foreign chain.
fn vandalise(tables: &mut Simulator, chain: usize, place: usize, kind: u8) {
    let nat = tables.tables.get_mut("nat").expect("a table");
    if kind == 4 {
        nat.insert("KUBE-SEP-STRANGER".into(), vec!["-j MARK --or-mark 0x1".into()]);
        return;
    }
    let ours: Vec<String> = nat.keys().filter(|name| name.starts_with("KUBE-") && *name != "KUBE-SEP-STRANGER").cloned().collect();
    let rules = nat.get_mut(&ours[chain % ours.len()]).expect("a chain");
    let place = place % (rules.len() + 1);
    match (kind, rules.get(place).cloned()) {
        (0, Some(_)) => drop(rules.remove(place)),
        (1, Some(rule)) => rules.insert(place, rule),
        (2, _) => rules.clear(),
        (5, Some(_)) => rules.rotate_left(place),
        _ => rules.insert(place, "-s 192.0.2.1/32 -j RETURN".into()),
    }
}

const TWO_SERVICES: &str = r#"
{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "here"}}
{"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "ns", "name": "bad"}, "spec": {"clusterIP": "10.61.0.1", "ports": [{"port": 80}]}}
{"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "ns", "name": "good"}, "spec": {"clusterIP": "10.61.0.2", "ports": [{"port": 80}]}}
{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "metadata": {"namespace": "ns", "name": "bad", "labels": {"kubernetes.io/service-name": "bad"}},
 "endpoints": [{"addresses": ["10.61.1.1"]}], "ports": [{"name": "", "port": 8080}]}
{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "metadata": {"namespace": "ns", "name": "good", "labels": {"kubernetes.io/service-name": "good"}},
 "endpoints": [{"addresses": ["10.61.1.2"]}], "ports": [{"name": "", "port": 8080}]}
"#;

/// A service port whose new rules iptables refuses keeps its old rules. All others are updated. When it changes again, it is tried again.
fn a_refused_service_costs_only_itself(variant: Variant, by_line: bool) {
    let memory = Memory::new(variant);
    let mut rules = FamilyRules::new(Family::V4);
    let first = common::inputs(TWO_SERVICES).expect("well formed");
    sync(&mut rules, &memory, &first).expect("nothing is refused yet");

    // Both Services get another endpoint. iptables refuses the new one of `bad`.
    let second = common::inputs(&TWO_SERVICES.replace("10.61.1.", "10.61.2.")).expect("well formed");
    touch(&mut rules, &first, &second);
    *memory.refused.borrow_mut() = Some(("10.61.2.1".into(), by_line));
    let synced = sync(&mut rules, &memory, &second).expect("the rest goes on");
    let refused: Vec<String> = synced.refused.iter().map(|refusal| refusal.name.to_string()).collect();
    assert_eq!(refused, ["ns/bad"]);
    let live = memory.tables.borrow().save();
    assert!(live.contains("10.61.2.2:8080") && !live.contains("10.61.1.2:8080"), "the good one follows:\n{live}");
    assert!(live.contains("10.61.1.1:8080"), "the bad one keeps what it had:\n{live}");
    assert_eq!(rules.quarantined().count(), 1);
    assert!(!rules.is_due(), "it is not tried again at once");

    // It changes to rules that iptables accepts.
    let third = common::inputs(&TWO_SERVICES.replace("10.61.1.", "10.61.3.")).expect("well formed");
    touch(&mut rules, &second, &third);
    sync(&mut rules, &memory, &third).expect("nothing is refused any more");
    assert_eq!(rules.quarantined().count(), 0);
    assert_eq!(meaning(&memory.tables.borrow()), meaning(&fresh(&third, Family::V4, variant).tables.borrow()));
}

/// A quarantined service port is tried again after a few minutes without a change.
#[test]
fn quarantine_ends() {
    let inputs = common::inputs(TWO_SERVICES).expect("well formed");
    let wanted = meaning(&fresh(&inputs, Family::V4, Variant::Nft).tables.borrow());
    block_on(async {
        let memory = Memory::new(Variant::Nft);
        let mut rules = FamilyRules::new(Family::V4);
        let facts = common::facts(&inputs);
        *memory.refused.borrow_mut() = Some(("10.61.1.1".into(), true));
        assert_eq!(rules.sync(&memory, &inputs, &facts).await.expect("the rest goes on").refused.len(), 1);
        assert!(!rules.is_due());
        *memory.refused.borrow_mut() = None;
        tokio::time::advance(Duration::from_secs(241)).await;
        assert!(rules.is_due());
        rules.sync(&memory, &inputs, &facts).await.expect("nothing is refused any more");
        assert!(!rules.is_due() && rules.next_trial().is_none());
        assert_eq!(meaning(&memory.tables.borrow()), wanted);
    });
}

#[test]
fn a_service_refused_by_line_costs_only_itself() {
    a_refused_service_costs_only_itself(Variant::Nft, true);
    a_refused_service_costs_only_itself(Variant::Legacy, true);
}

#[test]
fn a_service_refused_by_the_kernel_costs_only_itself() {
    a_refused_service_costs_only_itself(Variant::Nft, false);
    a_refused_service_costs_only_itself(Variant::Legacy, false);
}

/// A refused fixed rule puts no service port into quarantine.
#[test]
fn a_refused_fixed_rule_quarantines_no_service_port() {
    let memory = Memory::new(Variant::Legacy);
    *memory.refused.borrow_mut() = Some(("MASQUERADE".into(), false));
    let mut rules = FamilyRules::new(Family::V4);
    let inputs = common::inputs(TWO_SERVICES).expect("well formed");
    sync(&mut rules, &memory, &inputs).expect_err("everything is refused");
    assert_eq!(rules.quarantined().count(), 0);
    *memory.refused.borrow_mut() = None;
    sync(&mut rules, &memory, &inputs).expect("nothing is refused any more");
    assert_eq!(meaning(&memory.tables.borrow()), meaning(&fresh(&inputs, Family::V4, Variant::Legacy).tables.borrow()));
}

/// A held xtables lock delays a sync and leaves the acknowledged state as it was: the next sync does not read the tables.
#[test]
fn a_lock_puts_off() {
    let memory = fresh(&common::inputs(TWO_SERVICES).expect("well formed"), Family::V4, Variant::Legacy);
    let mut rules = FamilyRules::new(Family::V4);
    let first = common::inputs(TWO_SERVICES).expect("well formed");
    assert!(sync(&mut rules, &memory, &first).expect("a start").read);
    let second = common::inputs(&TWO_SERVICES.replace("10.61.1.1", "10.61.2.1")).expect("well formed");
    touch(&mut rules, &first, &second);
    memory.faults.borrow_mut().push_back(Some(Fault::Locked));
    sync(&mut rules, &memory, &second).expect_err("locked");
    let synced = sync(&mut rules, &memory, &second).expect("free again");
    assert!(!synced.read);
    assert_eq!((synced.extent.chains, synced.extent.deleted, synced.extent.transactions), (2, 1, 1));
}

/// One changed endpoint is one small transaction in `nat` alone.
#[test]
fn a_changed_endpoint_touches_its_service_only() {
    for variant in [Variant::Nft, Variant::Legacy] {
        let first = common::inputs(TWO_SERVICES).expect("well formed");
        let memory = fresh(&first, Family::V4, variant);
        let mut rules = FamilyRules::new(Family::V4);
        sync(&mut rules, &memory, &first).expect("a start");
        let second = common::inputs(&TWO_SERVICES.replace("10.61.1.1", "10.61.2.1")).expect("well formed");
        rules.touch(&[ServiceKey { namespace: "ns".into(), name: "bad".into() }]);
        sync(&mut rules, &memory, &second).expect("a change");
        let runs = memory.runs.borrow();
        let run = runs.last().expect("a run");
        let lines: Vec<&str> = run.lines().map(|line| line.split(' ').next().unwrap_or_default()).collect();
        assert_eq!(lines.iter().filter(|word| **word == "COMMIT").count(), 1, "{run}");
        assert!(run.starts_with("*nat\n") && !run.contains("KUBE-SERVICES"), "{run}");
    }
}

/// The latency from a change in the cluster to its rules is measured once per change, and only for the change's family.
#[test]
fn the_way_from_the_cluster_to_the_rules_is_timed() {
    let metrics: std::sync::Arc<sepal::observe::metrics::Metrics> = std::sync::Arc::default();
    block_on(async {
        let inputs = common::inputs(TWO_SERVICES).expect("well formed");
        let report = Report::new(metrics.clone(), SharedHealth::new(Duration::from_secs(30)), Events::none());
        let proxy = ProxyLoop::new(Memory::new(Variant::Nft), FakeHost::default(), true, inputs, report);
        let proxy = proxy.with_family(Family::V4, None).with_family(Family::V6, None);
        let (updates, receiver) = tokio::sync::mpsc::channel(16);
        for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
            updates.send(Update::Cluster(kubernetes::ClusterUpdate::Complete(kind))).await.expect("taken");
        }
        let slice = |ip: &str, time: String| {
            let object = serde_json::json!({
                "metadata": {"namespace": "ns", "name": "good", "labels": {"kubernetes.io/service-name": "good"},
                    "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": time}},
                "addressType": "IPv4", "endpoints": [{"addresses": [ip]}], "ports": [{"name": "", "port": 8080}],
            });
            let id = ObjectId::of(Kind::EndpointSlice, &object);
            let converted = convert::object(&id, &object);
            Update::Cluster(kubernetes::ClusterUpdate::Change(converted.change, ChangeTime::now(converted.trigger)))
        };
        let later = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(1);
        updates.send(slice("10.61.9.1", "2020-01-01T00:00:00Z".into())).await.expect("taken");
        updates.send(slice("10.61.9.2", later.to_string())).await.expect("taken");
        let run = proxy.run(receiver);
        let _ = tokio::time::timeout(Duration::from_millis(10), run).await;
    });
    let text = metrics.text(Format::Classic).1;
    assert!(text.contains("kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"} 1"), "{text}");
    assert!(text.contains("kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv6\"} 0"), "{text}");
}
