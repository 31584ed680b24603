//! testdata/<case>.yaml against golden/<case>/ipv4.rules and ipv6.rules, byte for byte. `UPDATE_GOLDEN=1` rewrites them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use sepal::cluster::Family;
use similar::{ChangeTag, TextDiff};

use crate::common;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn cases() -> BTreeSet<String> {
    let entries = fs::read_dir(root().join("testdata")).expect("testdata is there");
    let files = entries.map(|entry| entry.expect("readable").path()).filter(|path| path.is_file());
    files
        .map(|path| {
            assert_eq!(path.extension().and_then(|e| e.to_str()), Some("yaml"), "{} is no case", path.display());
            path.file_stem().expect("a name").to_string_lossy().into_owned()
        })
        .collect()
}

fn golden(case: &str, family: Family) -> PathBuf {
    root().join("golden").join(case).join(format!("{family}.rules"))
}

fn render(case: &str, family: Family) -> String {
    let text = fs::read_to_string(root().join("testdata").join(format!("{case}.yaml"))).expect("readable");
    let inputs = common::inputs(&text).unwrap_or_else(|error| panic!("{case}: {error}"));
    common::rendered(&inputs, family)
}

/// A short diff with the table of each line.
fn short_diff(want: &str, got: &str) -> String {
    const SHOWN: usize = 12;
    let diff = TextDiff::from_lines(want, got);
    let mut table = "";
    let mut lines = Vec::new();
    for change in diff.iter_all_changes() {
        let text = change.value().trim_end();
        if text.starts_with('*') {
            table = text;
        }
        let sign = match change.tag() {
            ChangeTag::Delete => "golden has ",
            ChangeTag::Insert => "rendered   ",
            ChangeTag::Equal => continue,
        };
        lines.push(format!("  {table} {sign} {text}"));
    }
    let more = lines.len().saturating_sub(SHOWN);
    lines.truncate(SHOWN);
    if more > 0 {
        lines.push(format!("  and {more} more lines"));
    }
    lines.join("\n")
}

#[test]
fn rules_are_the_golden_ones() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1");
    let mut failures = Vec::new();
    let cases = cases();
    assert!(cases.len() > 150, "only {} cases: testdata is not complete", cases.len());
    for case in &cases {
        for family in Family::ALL {
            let got = render(case, family);
            let path = golden(case, family);
            if update {
                fs::create_dir_all(path.parent().expect("a folder")).expect("writable");
                fs::write(&path, got).expect("writable");
                continue;
            }
            match fs::read_to_string(&path) {
                Ok(want) if want == got => {}
                Ok(want) => failures.push(format!("{case} {family}:\n{}", short_diff(&want, &got))),
                Err(error) => failures.push(format!("{case} {family}: no golden file ({error}); `make golden` writes it")),
            }
        }
    }
    assert!(failures.is_empty(), "{} of {} cases differ:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

#[test]
fn every_golden_file_has_its_case() {
    let cases = cases();
    for entry in fs::read_dir(root().join("golden")).expect("golden is there") {
        let path = entry.expect("readable").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        assert!(cases.contains(&name), "golden/{name} has no testdata/{name}.yaml");
        let files: BTreeSet<_> = fs::read_dir(&path).expect("a folder").map(|file| file.expect("readable").file_name()).collect();
        let wanted: BTreeSet<_> = Family::ALL.map(|family| format!("{family}.rules").into()).into();
        assert_eq!(files, wanted, "golden/{name}");
    }
}

/// Chain names that operators see on real clusters.
#[test]
fn the_field_case_has_its_known_chains() {
    let rules = render("field-kube-dns", Family::V4);
    for line in [
        ":KUBE-SVC-TCOU7JCQXEZGVUNU - [0:0]",
        ":KUBE-SEP-L5MHPWJPDKD7XIFG - [0:0]",
        "-A KUBE-SERVICES -m comment --comment \"kube-system/kube-dns:dns cluster IP\" -m udp -p udp -d 10.16.0.10 --dport 53 -j KUBE-SVC-TCOU7JCQXEZGVUNU",
        "-A KUBE-SEP-L5MHPWJPDKD7XIFG -m comment --comment kube-system/kube-dns:dns -m udp -p udp -j DNAT --to-destination 10.0.0.46:53",
    ] {
        assert!(rules.lines().any(|found| found == line), "no line {line}");
    }
}
