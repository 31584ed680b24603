//! Rules of the source tree that the compiler does not check.

use std::fs;
use std::path::{Path, PathBuf};

fn source_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() { files.extend(source_files(&path)) } else { files.push(path) }
    }
    files
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Pure modules compute values from values: no async, no clients, no processes, files or clocks.
#[test]
fn pure_modules_are_pure() {
    const BANNED: [&str; 9] =
        ["tokio", "kube::", "k8s_openapi", "nix::", "netlink_sys", "std::process", "std::fs", "std::time::Instant", "SystemTime"];
    let src = src();
    let mut files: Vec<PathBuf> = ["cluster", "explain", "network", "preflight", "rules", "table"]
        .iter()
        .flat_map(|module| source_files(&src.join(module)))
        .collect();
    files.extend(
        [
            "config/kernel.rs",
            "config/netconf.rs",
            "config/network_settings.rs",
            "config/settings.rs",
            "config/subnet_space.rs",
            "conntrack/frontends.rs",
            "conntrack/stale.rs",
            "conntrack/wire.rs",
            "json_keys.rs",
        ]
        .map(|file| src.join(file)),
    );
    let checked = files.len();
    assert!(checked > 15, "only {checked} files: have the modules moved?");
    for file in files.iter().chain([&src.join("source/convert.rs")]) {
        for line in fs::read_to_string(file).expect("readable").lines().filter(|line| line.trim_start().starts_with("use ")) {
            let banned = BANNED.iter().find(|word| line.contains(*word));
            assert!(banned.is_none(), "{}: {line}", file.display());
        }
    }
}

/// Only api.rs names Kubernetes types, and only convert.rs names their fields.
#[test]
fn kubernetes_types_stay_in_conversion() {
    for file in source_files(&src()) {
        let text = fs::read_to_string(&file).expect("readable");
        assert!(file.ends_with("source/api.rs") || !text.contains("use k8s_openapi"), "{} knows Kubernetes types", file.display());
        assert!(file.ends_with("source/convert.rs") || !text.contains("use super::fields"), "{} knows their fields", file.display());
    }
}

#[test]
fn files_are_small() {
    for file in source_files(&src()) {
        let lines = fs::read_to_string(&file).expect("readable").lines().count();
        assert!(lines <= 600, "{}: {lines} lines; split it", file.display());
    }
}

#[test]
fn main_is_thin() {
    assert!(fs::read_to_string(src().join("main.rs")).expect("readable").lines().count() < 60);
}
