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
    let mut files: Vec<PathBuf> =
        ["cluster", "explain", "preflight", "proxy/rules", "table"].iter().flat_map(|room| source_files(&src.join(room))).collect();
    // The files of the pod network, but not the folder of its loop.
    files.extend(source_files(&src.join("pod_network")).into_iter().filter(|file| !file.starts_with(src.join("pod_network/sync"))));
    files.extend(
        [
            "config/settings.rs",
            "json_keys.rs",
            "netlink/entry.rs",
            "netlink/kernel_settings.rs",
            "netlink/link.rs",
            "netlink/mac.rs",
            "proxy/conntrack/frontends.rs",
            "proxy/conntrack/stale.rs",
            "proxy/conntrack/wire.rs",
            "proxy/settings.rs",
        ]
        .map(|file| src.join(file)),
    );
    let checked = files.len();
    assert!(checked > 15, "only {checked} files: did the rooms move?");
    for file in files.iter().chain([&src.join("kubernetes/convert.rs")]) {
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
        assert!(file.ends_with("kubernetes/api.rs") || !text.contains("use k8s_openapi"), "{} knows Kubernetes types", file.display());
        let converts = ["kubernetes/convert.rs", "pod_network/api_objects.rs"].iter().any(|name| file.ends_with(name));
        assert!(converts || !text.contains("::fields"), "{} knows their fields", file.display());
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
