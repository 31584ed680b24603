//! `--dry-run` from a manifest file, beside what it takes to load what it prints.

use std::fmt::Write as _;
use std::time::Instant;

use sepal::table::plan::Variant;
use sepal_lab::figures::{Rows, quantile};
use sepal_lab::{Cluster, Netns};
use serde_json::json;

use crate::daemon::SEPAL;
use crate::floor::restore;

/// How often each is done; the median counts.
const TIMES: usize = 5;

/// The namespace has no nfacct counters, so rules that name one could not be loaded.
const HOST: &str = r#"{"apiVersion": "sepal/v1alpha1", "kind": "HostFacts", "host": {"addresses": [], "nfacct": false, "tcpBeLiberal": false, "noRandomFully": false}}"#;

pub(crate) fn measure(cluster: Cluster, rows: &mut Rows<'_>) {
    let manifests = [
        ("--dry-run of a manifest as kubectl prints it", list(cluster, "")),
        ("the same, items indented", list(cluster, "  ")),
        (
            "--dry-run of a manifest, JSON",
            json!({"apiVersion": "v1", "kind": "List", "items": cluster.objects().collect::<Vec<_>>()}).to_string(),
        ),
    ];
    let path = std::env::temp_dir().join(format!("sepal-bench-manifest-{}.yaml", std::process::id()));
    for (what, manifest) in manifests {
        std::fs::write(&path, format!("{HOST}\n---\n{manifest}")).expect("writable");
        let (mut times, mut floors) = (Vec::new(), Vec::new());
        for _ in 0..TIMES {
            let node = Netns::new();
            let mut command = node.command(SEPAL);
            command.args(["--dry-run", "--ip-family=ipv4", "--hostname-override=bench", "--manifests"]).arg(&path);
            let start = Instant::now();
            let output = command.output().expect("sepal starts");
            times.push(start.elapsed().as_secs_f64());
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            floors.push(restore(&node, Variant::Legacy, &String::from_utf8(output.stdout).expect("text")));
        }
        rows.ratio(what, quantile(&mut times, 0.5), quantile(&mut floors, 0.5), "s");
    }
    std::fs::remove_file(path).expect("it is there");
}

/// The cluster as a list in block style.
fn list(cluster: Cluster, margin: &str) -> String {
    let mut text = String::from("apiVersion: v1\nitems:\n");
    for object in cluster.objects() {
        let yaml = serde_saphyr::to_string(&object).expect("YAML can hold it");
        for (line, start) in yaml.lines().zip(std::iter::once("- ").chain(std::iter::repeat("  "))) {
            let _ = writeln!(text, "{margin}{start}{line}");
        }
    }
    text + "kind: List\nmetadata:\n  resourceVersion: \"\"\n"
}
