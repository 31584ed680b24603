//! Checks the rules of the layout that the compiler does not check. `docs/architecture.md` explains them.
//!
//! Each check takes sources as values and gives the violations, so that its negative case needs no files.

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;

use crate::sources::{Source, crate_sources, parse, workspace_files};

/// The layers, from the top. A module imports only modules of lower layers. Modules of one layer do not import each other.
const LAYERS: [&[&str]; 11] = [
    &["cli"],
    &["daemon"],
    &["serve"],
    &["config"],
    &["proxy", "pod_network", "cni", "explain", "preflight"],
    &["observe"],
    &["kubernetes"],
    &["iptables"],
    &["table", "netlink"],
    &["http_server", "cluster"],
    &["atomic_file", "bad_setting", "captured_log", "duty_cycle", "error_text", "file_watch", "json_keys", "parallel", "versions"],
];

/// Imports between modules of one layer that are allowed, each with its reason.
const ALLOWED: [(&str, &str, &str); 9] = [
    ("explain", "proxy::rules::inputs", "explain walks the rules that these inputs give"),
    ("explain", "proxy::settings", "the question names local traffic as the settings detect it"),
    ("preflight", "pod_network::cni_config", "preflight says which CNI configuration the runtime uses"),
    ("preflight", "pod_network::vxlan", "preflight looks for the links that the pod network makes"),
    ("preflight", "pod_network::interface", "preflight chooses the interface as the pod network does"),
    ("preflight", "pod_network::mtu", "preflight computes the MTU as the pod network does"),
    ("preflight", "pod_network::net_conf", "preflight reads net-conf.json"),
    ("cni", "pod_network", "the plugin reads subnet.env, and its names are those that the pod network installs"),
    ("cni", "proxy::conntrack", "portmap deletes UDP flows as the service proxy does"),
];

/// Folders and files that are PURE: values in, values out.
const PURE: [&str; 8] = ["cluster", "explain", "json_keys", "pod_network", "preflight", "proxy::rules", "proxy::settings", "table"];

/// Parts of those folders that are not.
const NOT_PURE: [&str; 1] = ["pod_network::sync"];

/// What PURE files do not name: async, clients, processes, files, sockets, clocks.
const IMPURE: [&str; 14] = [
    "tokio",
    "kube",
    "k8s_openapi",
    "hyper",
    "netlink_sys",
    "nix",
    "notify",
    "std::fs",
    "std::process",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "std::time::Instant",
    "std::time::SystemTime",
];

/// Values of those that PURE files may name: numbers of the kernel's interface.
const CONSTANTS: [&str; 2] = ["nix::errno", "nix::libc"];

/// The longest file, in lines.
const LONGEST: usize = 600;

fn begins(module: &str, prefix: &str) -> bool {
    module == prefix || module.strip_prefix(prefix).is_some_and(|rest| rest.starts_with("::"))
}

fn layer(module: &str) -> Option<usize> {
    let top = module.split("::").next().unwrap_or_default();
    LAYERS.iter().position(|layer| layer.contains(&top))
}

/// Imports that do not point down, and allowed imports that no file needs.
fn upward_imports(sources: &[Source], allowed: &[(&str, &str, &str)]) -> Vec<String> {
    let (mut violations, mut needed) = (Vec::new(), BTreeSet::new());
    for source in sources.iter().filter(|source| !source.module.is_empty()) {
        let top = source.module.split("::").next().unwrap_or_default();
        let Some(own) = layer(&source.module) else {
            violations.push(format!("{} is in no layer", source.module));
            continue;
        };
        for import in source.imports.iter().filter(|import| !begins(import, top)) {
            let reason = allowed.iter().position(|(from, to, _)| begins(&source.module, from) && begins(import, to));
            needed.extend(reason);
            let is_leaf = own == LAYERS.len() - 1;
            if layer(import).is_none_or(|layer| layer < own || (layer == own && reason.is_none() && !is_leaf)) {
                violations.push(format!("{} imports {import}", source.module));
            }
        }
    }
    let unused = allowed.iter().enumerate().filter(|(number, _)| !needed.contains(number));
    violations.extend(unused.map(|(_, (from, to, _))| format!("no file needs {from} -> {to}: delete it from the list")));
    violations
}

/// Groups of files that import each other in a circle.
fn circles(sources: &[Source]) -> Vec<BTreeSet<&str>> {
    let edges: BTreeMap<&str, &BTreeSet<String>> = sources.iter().map(|source| (source.module.as_str(), &source.imports)).collect();
    let reachable = |from: &str| {
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        let mut next: Vec<&str> = edges.get(from).into_iter().flat_map(|to| to.iter().map(String::as_str)).collect();
        while let Some(module) = next.pop() {
            if let Some((module, to)) = edges.get_key_value(module)
                && seen.insert(module)
            {
                next.extend(to.iter().map(String::as_str));
            }
        }
        seen
    };
    let all: BTreeMap<&str, BTreeSet<&str>> = edges.keys().map(|module| (*module, reachable(module))).collect();
    let mut found: Vec<BTreeSet<&str>> = Vec::new();
    for (module, reached) in all.iter().filter(|(module, reached)| reached.contains(*module)) {
        if !found.iter().any(|circle| circle.contains(module)) {
            found.push(reached.iter().copied().filter(|other| all[other].contains(module)).collect());
        }
    }
    found
}

/// Names in PURE files that reach the world outside.
fn impure_names(sources: &[Source]) -> Vec<String> {
    let is_pure = |module: &str| PURE.iter().any(|pure| begins(module, pure)) && !NOT_PURE.iter().any(|not| begins(module, not));
    let says_pure = |source: &Source| source.doc.split("\n//!\n").next().is_some_and(|first| first.contains("PURE"));
    let mut violations = Vec::new();
    for source in sources.iter().filter(|source| is_pure(&source.module) || says_pure(source)) {
        let banned = source
            .names
            .iter()
            .filter(|name| IMPURE.iter().any(|impure| begins(name, impure)) && !CONSTANTS.iter().any(|pure| begins(name, pure)));
        violations.extend(banned.map(|name| format!("{} names {name}", source.module)));
    }
    violations
}

/// Types that other files can use and whose name means two things.
fn ambiguous_types(sources: &[Source]) -> Vec<String> {
    let declaration = Regex::new(r"(?m)^pub(?:\([^)]*\))? (?:struct|enum|trait|type|union) (\w+)").expect("a pattern");
    let mut places: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for source in sources {
        for name in declaration.captures_iter(&source.code) {
            places.entry(name.get(1).map_or("", |name| name.as_str())).or_default().push(&source.module);
        }
    }
    places.iter().filter(|(_, modules)| modules.len() > 1).map(|(name, modules)| format!("{name}: {}", modules.join(", "))).collect()
}

/// Functions and constants that are `pub` although only this crate uses them. `outside` is the text of tests, benches and tools. The compiler
/// reports types that are less visible than the items that name them.
fn needless_pub(sources: &[Source], outside: &str) -> Vec<String> {
    let item = Regex::new(r"(?m)^[ \t]*pub (?:const |async |unsafe )*(?:fn|const|static) (?:mut )?(\w+)").expect("a pattern");
    let word = Regex::new(r"\w+").expect("a pattern");
    let words = |text: &str| word.find_iter(text).map(|word| word.as_str().to_owned()).collect::<Vec<String>>();
    let outside: BTreeSet<String> = words(outside).into_iter().collect();
    let mut violations = Vec::new();
    for source in sources {
        for name in item.captures_iter(&source.code).filter_map(|captures| captures.get(1)) {
            let name = name.as_str();
            if !outside.contains(name) {
                violations.push(format!("{}::{name}", source.module));
            }
        }
    }
    violations
}

/// Files with too many lines.
fn long_files<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<String> {
    let lines = files.into_iter().map(|(name, text)| (name, text.lines().count()));
    lines.filter(|(_, lines)| *lines > LONGEST).map(|(name, lines)| format!("{name}: {lines} lines")).collect()
}

fn none() -> Vec<String> {
    Vec::new()
}

#[test]
fn imports_point_down() {
    assert_eq!(upward_imports(&crate_sources("src"), &ALLOWED), none());

    let check = |module: &str, text: &str, allowed: &[(&str, &str, &str)]| {
        upward_imports(&[parse(module, text), parse("proxy::rules", ""), parse("daemon", ""), parse("table", "")], allowed)
    };
    assert_eq!(check("proxy", "use crate::table::Table;", &[]), none());
    assert_eq!(check("proxy", "use crate::daemon::{logs, run::x};", &[]), ["proxy imports daemon"]);
    assert_eq!(check("explain", "fn f() { crate::proxy::rules::compute(); }", &[]), ["explain imports proxy::rules"]);
    assert_eq!(check("explain", "use crate::proxy::rules;", &[("explain", "proxy", "")]), none());
    assert_eq!(check("explain", "", &[("explain", "proxy", "")]), ["no file needs explain -> proxy: delete it from the list"]);
    assert_eq!(check("other", "", &[]), ["other is in no layer"]);
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    for (root, least) in [("src", 200), ("apiserver/src", 20), ("lab/src", 10)] {
        let sources = crate_sources(root);
        assert!(sources.len() >= least, "{root}: only {} files", sources.len());
        assert_eq!(circles(&sources), Vec::<BTreeSet<&str>>::new(), "{root}");
    }

    let parent = parse("a", "mod b;\nuse b::B;\npub struct A;");
    let child = |text: &str| parse("a::b", text);
    assert_eq!(circles(&[parent.clone(), child("")]), Vec::<BTreeSet<&str>>::new());
    let both = BTreeSet::from(["a", "a::b"]);
    assert_eq!(circles(&[parent.clone(), child("use super::A;")]), std::slice::from_ref(&both));
    assert_eq!(circles(&[parent, child("fn f() -> crate::a::A {}")]), [both]);
}

#[test]
fn pure_files_reach_nothing_outside() {
    assert_eq!(impure_names(&crate_sources("src")), none());

    let check = |module: &str, text: &str| impure_names(&[parse(module, text)]);
    assert_eq!(check("table::plan", "use std::fs;"), ["table::plan names std::fs"]);
    assert_eq!(check("table::plan", "fn f() { std::process::exit(1); }"), ["table::plan names std::process::exit"]);
    assert_eq!(check("pod_network::sync::schedule", "use tokio::time;"), none());
    assert_eq!(check("netlink::mac", "//! MAC addresses. PURE.\nuse tokio::time;"), ["netlink::mac names tokio::time"]);
}

#[test]
fn a_public_type_name_means_one_thing() {
    assert_eq!(ambiguous_types(&crate_sources("src")), none());

    let sources = [parse("a", "pub struct Route;"), parse("b", "pub(crate) enum Route {}\nstruct Other;"), parse("c", "struct Other;")];
    assert_eq!(ambiguous_types(&sources), ["Route: a, b"]);
}

#[test]
fn functions_are_public_only_for_tests_benches_and_tools() {
    let outside: String =
        ["tests", "benches", "lab", "fuzz", "src/main.rs"].iter().flat_map(|root| workspace_files(root)).map(|(_, text)| text).collect();
    assert_eq!(needless_pub(&crate_sources("src"), &outside), none());

    let sources = [parse("a", "pub fn used() {}\npub fn unused() {}\npub(crate) fn narrow() {}\n")];
    assert_eq!(needless_pub(&sources, "a::used()"), ["a::unused"]);
}

#[test]
fn files_are_short() {
    let files: Vec<(String, String)> =
        ["src", "tests", "benches", "lab", "apiserver", "fuzz"].iter().flat_map(|root| workspace_files(root)).collect();
    assert!(files.len() > 300, "only {} files", files.len());
    assert_eq!(long_files(files.iter().map(|(name, text)| (name.as_str(), text.as_str()))), none());

    assert_eq!(long_files([("a", "\n".repeat(LONGEST).as_str())]), none());
    assert_eq!(long_files([("a", "\n".repeat(LONGEST + 1).as_str())]), ["a: 601 lines"]);
}

/// Kubernetes types are named in `kubernetes/api.rs` only, and the fields of objects where objects are converted.
#[test]
fn kubernetes_types_stay_where_objects_are_read() {
    for source in crate_sources("src") {
        let names = |prefix: &str| source.names.iter().any(|name| begins(name, prefix));
        assert!(source.module == "kubernetes::api" || !names("k8s_openapi"), "{} names Kubernetes types", source.module);
        let converts = ["kubernetes::convert", "pod_network::api_objects"].contains(&source.module.as_str());
        assert!(
            converts || !source.imports.contains("kubernetes::fields") || source.module == "kubernetes",
            "{} names fields of objects",
            source.module
        );
    }
}

#[test]
fn main_is_thin() {
    let main = workspace_files("src/main.rs");
    assert!(main[0].1.lines().count() < 60);
}
