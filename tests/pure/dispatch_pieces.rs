//! How many lines of the dispatch chains are written at once.

use sepal::cluster::Family;
use sepal::proxy::sync::family::FamilyRules;
use sepal::table::plan::Variant;
use serde_json::json;

use crate::common;
use crate::engine::{assert_together, fresh, meaning, sync, touch};
use crate::plain;
use crate::simulator::Memory;

/// Many lines of shared chains are written in several COMMITs on nft: appended to a chain without lines, inserted into a live chain. The ports
/// of one Service stay in one COMMIT, and the jumps come last.
#[test]
fn many_lines_of_shared_chains_are_split() {
    let services = |range: std::ops::Range<usize>| -> String {
        range.map(|i| {
            let (service, slice) = (format!("s{i:03}"), [format!("10.62.0.{i}")]);
            let ports = json!([{"name": "a", "port": 80}, {"name": "b", "port": 81}]);
            let service = plain::service(&service, &json!({"clusterIP": format!("10.61.2.{i}"), "clusterIPs": [format!("10.61.2.{i}")], "ipFamilies": ["IPv4"], "ports": ports}));
            let mut slice = plain::slice(&format!("s{i:03}"), "IPv4", &[&slice[0]]);
            slice["ports"] = json!([{"name": "a", "port": 8080}, {"name": "b", "port": 8081}]);
            format!("{service}\n{slice}\n")
        }).collect()
    };
    let [few, all] = [0..60, 0..120].map(|range| common::inputs(&services(range)).expect("well formed"));
    let memory = Memory::new(Variant::Nft);
    let mut rules = FamilyRules::new(Family::V4).with_limit(10);
    // Returns the lines for KUBE-SERVICES in each COMMIT that has any, and the Services in them.
    let commits = || -> Vec<Vec<String>> {
        let run = memory.runs.borrow().last().expect("a run").clone();
        let transactions = run.split("COMMIT\n").filter(|text| text.starts_with("*nat"));
        let lines = transactions.map(|text| {
            text.lines().filter(|line| line[2..].starts_with(" KUBE-SERVICES ") && line.contains("cluster IP")).map(str::to_owned).collect()
        });
        lines.filter(|lines: &Vec<String>| !lines.is_empty()).collect()
    };
    for (inputs, operation) in [(&few, "-A"), (&all, "-I")] {
        touch(&mut rules, &few, inputs);
        sync(&mut rules, &memory, inputs).expect("nothing is refused");
        let commits = commits();
        assert_eq!(commits.iter().map(Vec::len).collect::<Vec<_>>(), [40, 40, 40], "{commits:?}");
        assert!(commits.iter().flatten().all(|line| line.starts_with(operation)), "{commits:?}");
        let run = memory.runs.borrow().last().expect("a run").clone();
        assert_eq!(run.matches(":KUBE-SERVICES - [0:0]\n").count(), usize::from(operation == "-A") * 2, "in nat and in filter");
        assert_together(&run, inputs, Family::V4).expect("one COMMIT for each Service");
        assert_eq!(meaning(&memory.tables.borrow()), meaning(&fresh(inputs, Family::V4, Variant::Nft).tables.borrow()));
    }
    let start = memory.runs.borrow()[0].clone();
    let nat = &start[start.find("*nat").expect("nat")..];
    assert!(nat.find("-j KUBE-SERVICES") > nat.rfind("-A KUBE-SERVICES"), "{start}");

    // If lines are also deleted, a live chain is rewritten in one COMMIT.
    let other = common::inputs(&services(60..200)).expect("well formed");
    touch(&mut rules, &all, &other);
    sync(&mut rules, &memory, &other).expect("nothing is refused");
    let commits = commits();
    assert_eq!(commits.iter().map(Vec::len).collect::<Vec<_>>(), [280]);
    assert_eq!(meaning(&memory.tables.borrow()), meaning(&fresh(&other, Family::V4, Variant::Nft).tables.borrow()));
}
