//! Citations of the specifications, and words that the project does not use.

use std::collections::BTreeSet;

use regex::Regex;

use crate::sources::workspace_files;

/// Words of riddles: they name no actor.
const WORST: &str = r"(?i)\b(whoever|nobody|somebody|what it tells|wishes|the door|bad end)\b";

/// The sections of a specification: its headings, and the items of its numbered lists, as `12.27` for item 27 of section 12.
fn sections(text: &str) -> BTreeSet<String> {
    let heading = Regex::new(r"^#+ ([0-9]+(?:\.[0-9]+)*)").expect("a pattern");
    let item = Regex::new(r"^\**([0-9]+)\.").expect("a pattern");
    let (mut found, mut section) = (BTreeSet::new(), String::new());
    for line in text.lines() {
        if let Some(captures) = heading.captures(line) {
            captures[1].clone_into(&mut section);
            found.insert(section.clone());
        } else if let Some(captures) = item.captures(line.trim_start()) {
            found.insert(format!("{section}.{}", &captures[1]));
        }
    }
    found
}

/// Citations of sections that do not exist. `specification` gives the sections of one by the name that citations use.
fn unresolved(text: &str, specification: &dyn Fn(&str) -> BTreeSet<String>) -> Vec<String> {
    let citation = Regex::new(r"\[(kube-proxy|flannel|costs) ([0-9][0-9.]*)\]").expect("a pattern");
    let all = citation.captures_iter(text);
    all.filter(|found| !specification(&found[1]).contains(&found[2])).map(|found| found[0].to_owned()).collect()
}

fn read(name: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn every_citation_resolves() {
    let [kube_proxy, flannel, costs] =
        ["kube-proxy", "flannel-and-cni", "iptables-costs"].map(|name| sections(&read(&format!("docs/spec/{name}.md"))));
    let specification = |name: &str| match name {
        "kube-proxy" => kube_proxy.clone(),
        "flannel" => flannel.clone(),
        _ => costs.clone(),
    };
    let files: Vec<(String, String)> =
        ["src", "tests", "lab", "benches", "apiserver"].iter().flat_map(|folder| workspace_files(folder)).collect();
    let citing = |(name, text): &(String, String)| {
        unresolved(text, &specification).into_iter().map(|found| format!("{name}: {found}")).collect::<Vec<_>>()
    };
    let unresolved_citations: Vec<String> = files.iter().filter(|(name, _)| name != file!()).flat_map(citing).collect();
    assert_eq!(unresolved_citations, Vec::<String>::new());

    let known = |_: &str| sections("## 6. Rules\n### 6.7 Comments\n## 12. Quirks\n27. One\n");
    let text = "[kube-proxy 6.7] [flannel 12.27] [costs 6.8] [kube-proxy 7]";
    assert_eq!(unresolved(text, &known), ["[costs 6.8]", "[kube-proxy 7]"]);
}

#[test]
fn the_worst_words_are_not_used() {
    let worst = Regex::new(WORST).expect("a pattern");
    assert!(worst.is_match("Whoever asks") && !worst.is_match("the doors"));
    let documents = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "deploy/README.md", "docs/architecture.md", "docs/operations.md"];
    let documents = documents.iter().chain(&["docs/migration.md", "docs/pod-network.md", "docs/rules.md", "docs/service-proxy.md"]);
    let files = workspace_files("src").into_iter();
    for (name, text) in files.chain(documents.map(|name| ((*name).to_owned(), read(name)))) {
        for line in text.lines() {
            assert!(!worst.is_match(line), "{name}: {line}");
        }
    }
}
