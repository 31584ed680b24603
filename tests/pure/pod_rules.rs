//! The pod network's rules, with and without the service proxy's. After any change the tables are as desired, and the rules of other programs
//! stay.

use proptest::prelude::*;
use sepal::cluster::Family;
use sepal::proxy::rules::inputs::Inputs;
use sepal::proxy::sync::family::FamilyRules;
use sepal::table::plan::Variant;

use crate::common;
use crate::simulator::Memory;

const SERVICE: &str = r#"
{"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "ns", "name": "svc"}, "spec": {"clusterIP": "10.61.0.1", "ports": [{"port": 80}]}}
{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "metadata": {"namespace": "ns", "name": "svc", "labels": {"kubernetes.io/service-name": "svc"}},
 "endpoints": [{"addresses": ["10.61.1.1"]}], "ports": [{"name": "", "port": 8080}]}
"#;

/// Rules of other programs as iptables-save prints them, in built-in chains and in a chain of their own.
const FOREIGN: [(&str, &str, &str); 3] = [
    ("nat", "POSTROUTING", "-s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"),
    ("nat", "CNI-HOSTPORT-MASQ", "-m mark --mark 0x2000/0x2000 -j MASQUERADE"),
    ("filter", "FORWARD", "-i docker0 -j ACCEPT"),
];

fn network(fields: &str) -> String {
    format!("{SERVICE}{{\"apiVersion\": \"sepal/v1alpha1\", \"kind\": \"NetworkFacts\", \"network\": {{{fields}}}}}\n")
}

fn inputs(text: &str) -> Inputs {
    common::inputs(text).expect("well formed")
}

fn sync(rules: &mut FamilyRules, memory: &Memory, inputs: &Inputs) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    rules.touch_everything();
    runtime.block_on(rules.sync(memory, inputs, &common::facts(inputs))).expect("nothing is refused");
}

fn audit(rules: &mut FamilyRules, memory: &Memory) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(rules.audit(memory)).expect("tables are readable").len()
}

fn with_foreign(variant: Variant) -> Memory {
    let memory = Memory::new(variant);
    for (table, chain, rule) in FOREIGN {
        let mut tables = memory.tables.borrow_mut();
        tables.tables.get_mut(table).expect("a table").entry(chain.to_owned()).or_default().push(rule.to_owned());
    }
    memory
}

fn chain(memory: &Memory, table: &str, chain: &str) -> Option<Vec<String>> {
    memory.tables.borrow().tables[table].get(chain).cloned()
}

/// The targets of the rules of a chain.
fn targets(memory: &Memory, table: &str, name: &str) -> Vec<String> {
    let target = |rule: &String| rule.rsplit_once("-j ").map_or("", |(_, to)| to).to_owned();
    chain(memory, table, name).unwrap_or_default().iter().map(target).collect()
}

const V4: &str = r#""networks": ["10.61.0.0/16"], "subnets": ["10.61.3.0/24"], "ipMasq": true"#;

/// The rules that real flanneld 0.28.9 makes, as iptables-save prints them.
const SAVED_POSTROUTING: [&str; 6] = [
    "-m mark --mark 0x4000/0x4000 -m comment --comment \"flanneld masq\" -j RETURN",
    "-s 10.61.3.0/24 -d 10.61.0.0/16 -m comment --comment \"flanneld masq\" -j RETURN",
    "-s 10.61.0.0/16 -d 10.61.3.0/24 -m comment --comment \"flanneld masq\" -j RETURN",
    "! -s 10.61.0.0/16 -d 10.61.3.0/24 -m comment --comment \"flanneld masq\" -j RETURN",
    "-s 10.61.0.0/16 ! -d 224.0.0.0/4 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully",
    "! -s 10.61.0.0/16 -d 10.61.0.0/16 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully",
];

const SAVED_FORWARD: [&str; 2] = [
    "-s 10.61.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT",
    "-d 10.61.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT",
];

/// Changes the tables as flanneld does.
fn run_flanneld(memory: &Memory) {
    let text = |lines: &[&str], chain: &str| lines.iter().map(|line| format!("-A {chain} {line}\n")).collect::<String>();
    let input = format!(
        "*filter\n:FLANNEL-FWD - [0:0]\n{}-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\nCOMMIT\n\
         *nat\n:FLANNEL-POSTRTG - [0:0]\n{}-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG\nCOMMIT\n",
        text(&SAVED_FORWARD, "FLANNEL-FWD"),
        text(&SAVED_POSTROUTING, "FLANNEL-POSTRTG")
    );
    memory.tables.borrow_mut().restore(&input, |_| ()).expect("good input");
}

#[test]
fn the_proxys_jump_stays_first_in_any_order_of_starts() {
    for variant in [Variant::Nft, Variant::Legacy] {
        for flannel_first in [false, true] {
            let memory = with_foreign(variant);
            if flannel_first {
                run_flanneld(&memory);
            }
            let mut rules = FamilyRules::new(Family::V4);
            sync(&mut rules, &memory, &inputs(SERVICE));
            sync(&mut rules, &memory, &inputs(&network(V4)));
            assert_eq!(targets(&memory, "nat", "POSTROUTING"), ["KUBE-POSTROUTING", "MASQUERADE", "FLANNEL-POSTRTG"]);
            let forward = targets(&memory, "filter", "FORWARD");
            assert_eq!(forward[forward.len() - 2..], ["ACCEPT", "FLANNEL-FWD"]);
            assert_eq!(chain(&memory, "nat", "FLANNEL-POSTRTG"), Some(SAVED_POSTROUTING.map(str::to_owned).to_vec()));
            assert_eq!(chain(&memory, "filter", "FLANNEL-FWD"), Some(SAVED_FORWARD.map(str::to_owned).to_vec()));
        }
    }
}

/// Taking over flanneld's rules writes nothing, and a restart writes nothing.
#[test]
fn what_flanneld_has_written_is_not_written_again() {
    let alone = network(&format!("{V4}, \"proxy\": false"));
    for variant in [Variant::Nft, Variant::Legacy] {
        let memory = with_foreign(variant);
        run_flanneld(&memory);
        sync(&mut FamilyRules::new(Family::V4), &memory, &inputs(&alone));
        assert_eq!(*memory.runs.borrow(), [""; 0], "{variant}");
    }
}

/// Without the service proxy, kube-proxy's chains, rules and jumps belong to another program.
#[test]
fn without_the_proxy_its_rules_are_left_alone() {
    let alone = network(&format!("{V4}, \"proxy\": false"));
    for variant in [Variant::Nft, Variant::Legacy] {
        let memory = with_foreign(variant);
        sync(&mut FamilyRules::new(Family::V4), &memory, &inputs(SERVICE));
        let before = memory.tables.borrow().clone();
        // States of another proxy's rules that our proxy would repair.
        {
            let mut tables = memory.tables.borrow_mut();
            tables.tables.get_mut("nat").expect("a table").insert("KUBE-SEP-AAAAAAAAAAAAAAAA".into(), vec!["-j MARK --or-mark 0x1".into()]);
            tables.tables.get_mut("filter").expect("a table").get_mut("INPUT").expect("a chain").clear();
        }
        let odd = memory.tables.borrow().clone();
        let mut rules = FamilyRules::new(Family::V4);
        sync(&mut rules, &memory, &inputs(&alone));
        assert_eq!(audit(&mut rules, &memory), 0);
        let mut after = memory.tables.borrow().clone();
        for (table, name, count) in [("nat", "FLANNEL-POSTRTG", 6), ("filter", "FLANNEL-FWD", 2)] {
            let removed = after.tables.get_mut(table).and_then(|chains| chains.remove(name)).expect("a chain");
            assert_eq!(removed.len(), count, "{name}");
        }
        for (table, name) in [("nat", "POSTROUTING"), ("filter", "FORWARD")] {
            let last = after.tables.get_mut(table).and_then(|chains| chains.get_mut(name)?.pop()).expect("a jump");
            assert!(last.contains("-j FLANNEL-"), "{last}");
        }
        assert_eq!(after, odd, "{variant}");
        assert_ne!(after, before);
    }
}

/// While the pod network's settings are unknown, flanneld's rules stay. Once they are known to be undesired, they are deleted.
#[test]
fn unwanted_rules_go_and_unknown_ones_stay() {
    for variant in [Variant::Nft, Variant::Legacy] {
        let memory = with_foreign(variant);
        run_flanneld(&memory);
        let mut rules = FamilyRules::new(Family::V4);
        sync(&mut rules, &memory, &inputs(SERVICE));
        assert_eq!(chain(&memory, "nat", "FLANNEL-POSTRTG").map(|rules| rules.len()), Some(6));
        let without = network(r#""networks": ["10.61.0.0/16"], "subnets": ["10.61.3.0/24"], "iptablesForwardRules": false"#);
        sync(&mut rules, &memory, &inputs(&without));
        assert_eq!(targets(&memory, "nat", "POSTROUTING"), ["KUBE-POSTROUTING", "MASQUERADE"]);
        assert_eq!((chain(&memory, "nat", "FLANNEL-POSTRTG"), chain(&memory, "filter", "FLANNEL-FWD")), (Some(vec![]), Some(vec![])));
        assert!(!targets(&memory, "filter", "FORWARD").contains(&"FLANNEL-FWD".to_owned()));
        // Nothing is left to write, now or after a restart.
        let runs = memory.runs.borrow().len();
        assert_eq!(audit(&mut rules, &memory), 0);
        sync(&mut rules, &memory, &inputs(&without));
        sync(&mut FamilyRules::new(Family::V4), &memory, &inputs(&without));
        assert_eq!(memory.runs.borrow().len(), runs, "{variant}");
        // flanneld writes its rules again, and an audit finds them.
        run_flanneld(&memory);
        assert_eq!(audit(&mut rules, &memory), 4);
    }
}

#[test]
fn drift_is_found_and_put_right() {
    for variant in [Variant::Nft, Variant::Legacy] {
        for proxy in [true, false] {
            let text = network(&format!("{V4}, \"proxy\": {proxy}"));
            let memory = with_foreign(variant);
            let mut rules = FamilyRules::new(Family::V4);
            sync(&mut rules, &memory, &inputs(&text));
            let wanted = memory.tables.borrow().clone();
            for (table, name) in [("nat", "FLANNEL-POSTRTG"), ("nat", "POSTROUTING"), ("filter", "FLANNEL-FWD"), ("filter", "FORWARD")] {
                let mut broken = wanted.clone();
                broken.tables.get_mut(table).and_then(|chains| chains.get_mut(name)?.pop()).expect("a rule");
                *memory.tables.borrow_mut() = broken;
                assert_eq!(audit(&mut rules, &memory), 1, "{table} {name}");
                sync(&mut rules, &memory, &inputs(&text));
                assert_eq!(*memory.tables.borrow(), wanted, "{variant} {table} {name}");
            }
        }
    }
}

/// Arbitrary inputs of a family's rules.
fn facts() -> impl Strategy<Value = Option<String>> {
    let one = (0_u8..3, any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(n, masq, random, forward, proxy)| {
        network(&format!(
            "\"networks\": [\"10.61.0.0/16\", \"fd61::/48\"], \"subnets\": [\"10.61.{n}.0/24\", \"fd61:0:0:{n}::/64\"], \"ipMasq\": {masq}, \
             \"ipMasqFullyRandomDisable\": {random}, \"iptablesForwardRules\": {forward}, \"proxy\": {proxy}"
        ))
    });
    proptest::option::of(one)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// After any sequence of changes the pod network's chains equal those of a fresh start, foreign chains are unchanged, and nothing is written
    /// twice.
    #[test]
    fn any_changes_end_in_the_chains_of_a_fresh_start(steps in proptest::collection::vec(facts(), 1..5), nft in any::<bool>()) {
        let variant = if nft { Variant::Nft } else { Variant::Legacy };
        for family in Family::ALL {
            let memory = with_foreign(variant);
            let mut rules = FamilyRules::new(family);
            let mut last = None;
            for text in &steps {
                sync(&mut rules, &memory, &inputs(text.as_deref().unwrap_or(SERVICE)));
                last = text.clone().or(last);
            }
            // A setting that becomes unknown keeps its last value.
            if let Some(last) = last {
                let fresh = with_foreign(variant);
                sync(&mut FamilyRules::new(family), &fresh, &inputs(&last));
                for (table, name) in [("nat", "FLANNEL-POSTRTG"), ("filter", "FLANNEL-FWD")] {
                    prop_assert_eq!(chain(&memory, table, name).unwrap_or_default(), chain(&fresh, table, name).unwrap_or_default());
                }
                let jumps = |memory: &Memory, table, chain| targets(memory, table, chain).iter().filter(|to| to.starts_with("FLANNEL-")).count();
                for (table, name) in [("nat", "POSTROUTING"), ("filter", "FORWARD")] {
                    prop_assert_eq!(jumps(&memory, table, name), jumps(&fresh, table, name));
                }
            }
            for (table, name, rule) in FOREIGN {
                prop_assert!(chain(&memory, table, name).is_some_and(|rules| rules.iter().any(|found| found == rule)));
            }
            let runs = memory.runs.borrow().len();
            let now = inputs(steps.last().and_then(Option::as_deref).unwrap_or(SERVICE));
            sync(&mut rules, &memory, &now);
            sync(&mut FamilyRules::new(family), &memory, &now);
            prop_assert_eq!(audit(&mut rules, &memory), 0);
            prop_assert_eq!(memory.runs.borrow().len(), runs);
        }
    }
}
