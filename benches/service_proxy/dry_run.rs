//! Measures `--dry-run` from a manifest file. The floor is iptables-restore loading the printed rules.

use std::fmt::Write as _;
use std::time::Instant;

use sepal::cluster::Family;
use sepal::table::plan::Variant;
use sepal_lab::figures::{Rows, quantile};
use sepal_lab::{Cluster, Netns};
use serde_json::json;

use crate::daemon::SEPAL;
use crate::floor::restore;

/// Runs per manifest. The median counts.
const RUNS: usize = 5;

/// Host facts for the dry run. nfacct is off because rules that name a missing nfacct counter cannot be loaded.
const HOST_FACTS: &str = r#"{"apiVersion": "sepal/v1alpha1", "kind": "HostFacts", "host": {"addresses": [], "nfacct": false, "tcpBeLiberal": false, "noRandomFully": false}}"#;

/// Measures the dry run of a cluster in three manifest formats.
pub(crate) fn measure(cluster: Cluster, rows: &mut Rows<'_>) {
    let manifests = [
        ("--dry-run of a manifest as kubectl prints it", yaml_list(cluster, "")),
        ("the same, items indented", yaml_list(cluster, "  ")),
        (
            "--dry-run of a manifest, JSON",
            json!({"apiVersion": "v1", "kind": "List", "items": cluster.objects().collect::<Vec<_>>()}).to_string(),
        ),
    ];
    let path = std::env::temp_dir().join(format!("sepal-bench-manifest-{}.yaml", std::process::id()));
    for (what, manifest) in manifests {
        std::fs::write(&path, format!("{HOST_FACTS}\n---\n{manifest}")).expect("writable");
        let (mut times, mut floors) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            let node = Netns::new();
            let mut command = node.command(SEPAL);
            command.args(["--dry-run", "--ip-family=ipv4", "--hostname-override=bench", "--manifests"]).arg(&path);
            let start = Instant::now();
            let output = command.output().expect("sepal starts");
            times.push(start.elapsed().as_secs_f64());
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            floors.push(restore(&node, Family::V4, Variant::Legacy, &String::from_utf8(output.stdout).expect("text")));
        }
        rows.ratio(what, quantile(&mut times, 0.5), quantile(&mut floors, 0.5), "s");
    }
    std::fs::remove_file(path).expect("the file exists");
}

/// Returns the cluster as a List in YAML block style, with this indentation of its items.
fn yaml_list(cluster: Cluster, indent: &str) -> String {
    let mut text = String::from("apiVersion: v1\nitems:\n");
    for object in cluster.objects() {
        let yaml = serde_saphyr::to_string(&object).expect("the object converts to YAML");
        for (line, prefix) in yaml.lines().zip(std::iter::once("- ").chain(std::iter::repeat("  "))) {
            let _ = writeln!(text, "{indent}{prefix}{line}");
        }
    }
    text + "kind: List\nmetadata:\n  resourceVersion: \"\"\n"
}
