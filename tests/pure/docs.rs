//! The documentation matches the code: everything that exists is described, and everything described exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn source_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() { files.extend(source_files(&path)) } else { files.push(path) }
    }
    files
}

/// A file without its unit tests, which are at its end.
fn code(path: &Path) -> String {
    let text = read(path);
    text.split_once("#[cfg(test)]").map_or(text.clone(), |(code, _)| code.to_owned())
}

fn found(pattern: &str, text: &str) -> BTreeSet<String> {
    let pattern = Regex::new(pattern).expect("a pattern");
    pattern.captures_iter(text).map(|captures| captures[1].to_owned()).collect()
}

fn operations() -> String {
    read(&root().join("docs/operations.md"))
}

/// Counters are registered without the `_total` of their sample names.
#[test]
fn every_metric_is_described() {
    let text: String = source_files(&root().join("src/observe/metrics")).iter().map(|file| code(file)).collect();
    let prefixes = "sepal|kubeproxy|kubernetes|rest_client|process";
    let registered = found(&format!("\"((?:{prefixes})_[a-z_]+)\""), &text);
    assert!(registered.len() > 50, "only {registered:?}");
    let described: BTreeSet<String> = found(&format!("`((?:{prefixes})_[a-z_]+)[`{{]"), &operations());
    let plain = |name: &String| name.strip_suffix("_total").map_or(name.clone(), str::to_owned);
    let (registered, described) = (registered.iter().map(plain).collect::<BTreeSet<_>>(), described.iter().map(plain).collect());
    assert_eq!(registered.difference(&described).collect::<Vec<_>>(), Vec::<&String>::new(), "not described");
    assert_eq!(described.difference(&registered).collect::<Vec<_>>(), Vec::<&String>::new(), "does not exist");
}

/// Reasons are string literals in camel case, and so are a few other texts.
#[test]
fn every_reason_of_an_event_is_described() {
    const OTHERS: [&str; 12] = [
        // Actions of Events.
        "LeaseSubnet",
        "ProgramPodNetwork",
        "RestartPart",
        "SetUpPodNetwork",
        "StartKubeProxy",
        // Shown on the status page only.
        "RulesWritten",
        // Kubernetes kinds and names.
        "ComponentFlagz",
        "ComponentStatusz",
        "ContextualLogging",
        "KubeProxyConfiguration",
        "NetworkUnavailable",
        "NodeMeta",
    ];
    let folders = ["cli", "daemon", "observe", "pod_network/sync", "proxy/sync", "serve"];
    let files = folders.iter().flat_map(|folder| source_files(&root().join("src").join(folder)));
    let files = files.chain([root().join("src/kubernetes/events.rs")]);
    let text: String = files.map(|file| code(&file)).collect();
    let mut reasons = found("\"([A-Z][A-Za-z]*[a-z][A-Z][A-Za-z]+)\"", &text);
    reasons.extend(found("reason: \"([A-Za-z]+)\"", &text));
    reasons.retain(|word| !OTHERS.contains(&word.as_str()));
    assert!(reasons.len() > 20, "only {reasons:?}");
    let operations = operations();
    let section = operations.split("\n## ").find(|section| section.starts_with("Events\n")).expect("a section");
    let described = found("(?m)^\\| `([A-Z][A-Za-z]+)`", section);
    assert_eq!(reasons.difference(&described).collect::<Vec<_>>(), Vec::<&String>::new(), "not described");
    assert_eq!(described.difference(&reasons).collect::<Vec<_>>(), Vec::<&String>::new(), "does not exist");
}

#[test]
fn every_part_and_every_refusal_is_described() {
    let operations = operations();
    for (file, least) in [("src/observe/readiness.rs", 10), ("src/pod_network/refusal.rs", 11)] {
        let text = code(&root().join(file));
        let (_, names) = text.split_once("fn as_str(").expect("it has names");
        let names = found("=> \"([a-z0-9_-]+)\"", names.split_once("\n    }").expect("an end").0);
        assert!(names.len() >= least, "only {names:?}");
        for name in names {
            assert!(operations.contains(&format!("`{name}`")), "{file}: {name} is not described");
        }
    }
}

fn documents() -> Vec<PathBuf> {
    let mut documents = source_files(&root().join("docs"));
    documents.extend(["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "deploy/README.md"].map(|name| root().join(name)));
    documents.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    assert!(documents.len() > 7, "{documents:?}");
    documents
}

/// The functions that a document names, each with its file.
fn named_functions(document: &Path) -> Vec<(String, String)> {
    let pattern = Regex::new("`((?:tests|src)/[a-z0-9_/]+\\.rs)::([a-z0-9_]+)`").expect("a pattern");
    pattern.captures_iter(&read(document)).map(|captures| (captures[1].to_owned(), captures[2].to_owned())).collect()
}

/// Every function that a document names exists. Only the description of the architecture names functions that are no tests.
#[test]
fn functions_that_are_named_exist() {
    let mut checked = 0;
    for document in documents() {
        for (file, name) in named_functions(&document) {
            checked += 1;
            let text = read(&root().join(&file));
            let declared = text.find(&format!("fn {name}(")).or_else(|| text.find(&format!("fn {name}<")));
            let declared = declared.unwrap_or_else(|| panic!("{}: there is no {name} in {file}", document.display()));
            let before = &text[..declared];
            let attributes = &before[before.rfind("\n}").unwrap_or_default()..];
            let is_test = attributes.contains("#[test]") || attributes.contains("#[tokio::test") || attributes.contains("proptest!");
            assert!(is_test || document.ends_with("architecture.md"), "{}: {name} in {file} is no test", document.display());
        }
    }
    assert!(checked > 30, "only {checked}");
}

/// The migration guide uses kubectl and curl and no other tool.
#[test]
fn the_migration_guide_needs_no_other_tools() {
    let text = read(&root().join("docs/migration.md"));
    let blocks = text.split("```").skip(1).step_by(2);
    let tools = ["jq", "yq", "python", "helm"];
    for line in blocks.flat_map(str::lines) {
        assert!(line.split_whitespace().all(|word| !tools.contains(&word)), "{line}");
    }
    assert!(text.contains("kubectl expose") && text.contains("/readyz"), "the checks reach a new Service");
}

/// The targets of links within the repository exist.
#[test]
fn links_lead_somewhere() {
    for path in documents() {
        let text = read(&path);
        for link in found("\\]\\(([^)]+)\\)", &text).iter().filter(|link| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().expect("a folder").join(file) };
            assert!(target.exists(), "{}: {link}", path.display());
            if !anchor.is_empty() {
                let slug = |heading: &str| {
                    heading.trim_start_matches(['#', ' ']).to_lowercase().replace(' ', "-").replace(['?', ',', '.', '\''], "")
                };
                let text = read(&target);
                let mut headings = text.lines().filter(|line| line.starts_with('#'));
                assert!(headings.any(|heading| slug(heading) == anchor), "{}: {link}", path.display());
            }
        }
    }
}
