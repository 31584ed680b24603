//! Properties of the rules of any cluster. The objects are arbitrary, and some are invalid.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use sepal::cluster::Family;
use sepal::table::parse::Tables;
use sepal::table::rule;

use crate::common;
use crate::objects::{cluster, text};
use crate::simulator::Simulator;

/// Arbitrary clusters lead to rules of each kind often enough.
#[test]
fn arbitrary_clusters_have_rules() {
    let mut runner = TestRunner::deterministic();
    let clusters: Vec<String> = (0..100)
        .map(|_| {
            let objects = cluster().new_tree(&mut runner).expect("a cluster").current();
            Family::ALL.map(|family| common::rendered(&common::inputs(&text(&objects)).expect("manifests"), family)).concat()
        })
        .collect();
    for what in ["-j DNAT", "-j REJECT", "-A KUBE-NODEPORTS", ":KUBE-FW-", "external IP", ":KUBE-SVL-", "-m recent --name", "--probability"]
    {
        let having = clusters.iter().filter(|rules| rules.contains(what)).count();
        assert!(having >= 15, "{what}: {having} of {}", clusters.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// The rules of any cluster can be restored, do not depend on the order of objects, and consist of complete lines.
    #[test]
    fn any_cluster_renders((objects, rotation) in cluster().prop_flat_map(|objects| { let n = objects.len(); (Just(objects), 0..n) })) {
        let inputs = common::inputs(&text(&objects)).map_err(TestCaseError::fail)?;
        let mut turned = objects.clone();
        turned.rotate_left(rotation);
        turned.reverse();
        let other = common::inputs(&text(&turned)).map_err(TestCaseError::fail)?;
        for family in Family::ALL {
            let rendered = common::rendered(&inputs, family);
            prop_assert_eq!(&rendered, &common::rendered(&other, family));
            Simulator::default().restore(&rendered, |_| ()).map_err(TestCaseError::fail)?;
            for line in rendered.lines() {
                prop_assert!(line.starts_with([':', '*', '-']) || line == "COMMIT", "{:?}", line);
                prop_assert_eq!(line.matches('"').count() % 2, 0, "{:?}", line);
            }
        }
    }

    /// Any manifest text is read or refused, without a panic.
    #[test]
    fn any_text_is_read_or_refused(text in any::<String>(), structured in "([a-z]{0,4}[:\\-\\[\\]{}\"'&*!|>%#,\\n \\t]{0,3}){0,40}") {
        let _ = common::inputs(&text);
        let _ = common::inputs(&structured);
    }

    /// Any iptables-save text is read without a panic, and the canonical form of a rule is its own canonical form.
    #[test]
    fn any_saved_text_is_taken(text in any::<String>(), rule in "(-[mjpsdi] |--[a-z]{1,6} |! |[a-zA-Z0-9./:]{1,8} |\"[a-z ]{0,5}\" ){0,12}") {
        let mut tables = Tables::default();
        tables.read(&text);
        let canonical = rule::canonical(&rule);
        prop_assert_eq!(rule::canonical(&canonical), canonical);
    }
}
