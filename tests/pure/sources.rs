//! Source files as values: which modules they import and which paths they name. Good enough for this code base, not a parser of Rust.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

/// One file of a crate, without its test module.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// The module, like `table::plan`; empty for the root of the crate.
    pub(crate) module: String,
    /// The text at the head of the file.
    pub(crate) doc: String,
    /// The code without comments.
    pub(crate) code: String,
    /// The modules of this crate that it names, itself excluded.
    pub(crate) imports: BTreeSet<String>,
    /// The paths of other crates that it names.
    pub(crate) names: BTreeSet<String>,
}

/// The files of a crate. Files of tests are left out.
pub(crate) fn crate_sources(root: &str) -> Vec<Source> {
    let files = workspace_files(root).into_iter().filter_map(|(name, text)| {
        let path = name.strip_prefix(&format!("{root}/"))?.strip_suffix(".rs")?;
        let path = path.strip_suffix("/mod").unwrap_or(path);
        let is_test = path.ends_with("tests");
        let module = if path == "lib" { String::new() } else { path.replace('/', "::") };
        (!is_test && path != "main").then_some((module, text))
    });
    let files: Vec<(String, String)> = files.collect();
    let modules: BTreeSet<&str> = files.iter().map(|(module, _)| module.as_str()).collect();
    files.iter().map(|(module, text)| parse_in(module, text, &modules)).collect()
}

/// A source of a crate that has the modules its paths name, as a negative case needs it.
pub(crate) fn parse(module: &str, text: &str) -> Source {
    let modules = BTreeSet::from(["a", "a::b", "proxy", "proxy::rules", "daemon", "table", "explain"]);
    parse_in(module, text, &modules)
}

fn parse_in(module: &str, text: &str, modules: &BTreeSet<&str>) -> Source {
    let head = text.lines().take_while(|line| line.starts_with("//!"));
    let doc = head.collect::<Vec<_>>().join("\n");
    let code = code(text);
    let own: Vec<&str> = if module.is_empty() { Vec::new() } else { module.split("::").collect() };
    let (mut imports, mut names) = (BTreeSet::new(), BTreeSet::new());
    for path in paths(&code) {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        let absolute = match path[0] {
            "crate" => path[1..].to_vec(),
            "self" => [&own[..], &path[1..]].concat(),
            "super" => {
                let up = path.iter().take_while(|part| **part == "super").count();
                [&own[..own.len().saturating_sub(up)], &path[up..]].concat()
            }
            child if modules.contains([&own[..], &[child]].concat().join("::").as_str()) && !own.is_empty() => {
                [&own[..], &path[..]].concat()
            }
            _ => {
                names.insert(path.join("::"));
                continue;
            }
        };
        let found = (1..=absolute.len()).rev().map(|length| absolute[..length].join("::")).find(|name| modules.contains(name.as_str()));
        imports.extend(found.filter(|found| found != module));
    }
    Source { module: module.to_owned(), doc, code, imports, names }
}

/// Every path that code names: those of `use` declarations, one for each leaf, and those in expressions.
fn paths(code: &str) -> Vec<Vec<String>> {
    let declaration = Regex::new(r"(?m)^[ \t]*(?:pub(?:\([^)]*\))? )?use ([^;]+);").expect("a pattern");
    let path = Regex::new(r"(?:^|[^\w:.])((?:[a-z_]\w*::)+\w+)").expect("a pattern");
    let mut all = Vec::new();
    for tree in declaration.captures_iter(code) {
        leaves(&[], &tree[1], &mut all);
    }
    let rest = declaration.replace_all(code, "");
    for found in path.captures_iter(&rest) {
        all.push(found[1].split("::").map(str::to_owned).collect());
    }
    all
}

fn leaves(before: &[String], tree: &str, all: &mut Vec<Vec<String>>) {
    let tree = tree.trim();
    let (path, inner) = tree.split_once('{').map_or((tree, None), |(path, inner)| (path, inner.trim_end().strip_suffix('}')));
    let path = path.split(" as ").next().unwrap_or_default();
    let parts = path.split("::").map(str::trim).filter(|part| !part.is_empty() && (*part != "self" || before.is_empty()));
    let path: Vec<String> = before.iter().cloned().chain(parts.map(str::to_owned)).collect();
    let Some(inner) = inner else {
        all.push(path);
        return;
    };
    let (mut depth, mut start) = (0, 0);
    for (at, character) in inner.char_indices().chain([(inner.len(), ',')]) {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                if !inner[start..at].trim().is_empty() {
                    leaves(&path, &inner[start..at], all);
                }
                start = at + 1;
            }
            _ => {}
        }
    }
}

/// The code without comments and without items of tests.
fn code(text: &str) -> String {
    let mut lines = Vec::new();
    let mut rest = text.lines();
    while let Some(line) = rest.next() {
        if line.trim_start().starts_with("#[cfg(test)]") {
            // The item ends with the next line that is indented as its attribute is.
            let indent = line.len() - line.trim_start().len();
            for line in rest.by_ref() {
                let is_at_indent = line.len() - line.trim_start().len() == indent;
                let end = line.trim_end();
                if is_at_indent && (end.trim_start().starts_with('}') || end.ends_with(';') || end.ends_with(',')) {
                    break;
                }
            }
            continue;
        }
        let is_comment = line.trim_start().starts_with("//");
        lines.push(if is_comment { "" } else { line });
    }
    lines.join("\n")
}

/// The Rust files below a folder of the workspace, or one file, with their names and texts.
pub(crate) fn workspace_files(root: &str) -> Vec<(String, String)> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    collect(&workspace.join(root), &mut files);
    files.sort();
    let named = |file: &PathBuf| {
        let name = file.strip_prefix(workspace).expect("below the workspace").display().to_string();
        (name, fs::read_to_string(file).expect("readable"))
    };
    files.iter().map(named).collect()
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) {
    if path.is_file() {
        files.push(path.to_owned());
        return;
    }
    for entry in fs::read_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())) {
        let entry = entry.expect("readable").path();
        let is_built = entry.file_name().is_some_and(|name| name == "target");
        if entry.is_dir() && !is_built {
            collect(&entry, files);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            files.push(entry);
        }
    }
}
