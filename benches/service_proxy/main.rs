//! Measures the service proxy end to end in a network namespace, from the API server to the kernel, and prints a table. The floor is a bare
//! iptables-restore or iptables-save of the same content in the same run. Absolute times depend on the machine, so only the ratios count.
//!
//! - `SEPAL_BENCH=1000x10,10000x3` sets the clusters (Services x endpoints), `SEPAL_BENCH_VARIANTS=nft` the variants.
//! - `SEPAL_BENCH_SIZES=10000x3,50000x3,10000x3-dual` sets the clusters whose start, memory, restart and audits are measured. `-dual` means
//!   both families.
//! - `SEPAL_BENCH_WIDE=1x10000` sets the clusters with many endpoints in one Service.
//! - `SEPAL_BENCH_GROWTH=5000x3,20000x3` sets the clusters where only single changes are measured.
//! - `SEPAL_BENCH_CHURN=1000x3` sets the clusters for 50 changes a second.
//! - `SEPAL_BENCH_DRY_RUN=10000x3` sets the clusters for `--dry-run`.
//! - `SEPAL_BENCH_QUICK=FILE` only compares the ratios of a small cluster with those in a file; `SEPAL_BENCH_RECORD=1` writes the file.
//! - `SEPAL_BENCH_FLAGS=--service-traffic=on` adds flags for sepal.
//! - `SEPAL_BENCH_KEEP=benches/README.md` writes the figures into the table of that file.

#![allow(
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    missing_docs,
    reason = "a measuring tool: it starts programs, waits, and prints"
)]

mod daemon;
mod dry_run;
mod floor;
mod quick;
mod scenarios;

use std::path::Path;
use std::process::ExitCode;

use scenarios::Effort;
use sepal::table::plan::Variant;
use sepal_lab::Cluster;
use sepal_lab::figures::{Rows, Table};

fn main() -> ExitCode {
    if let Some(file) = std::env::var_os("SEPAL_BENCH_QUICK") {
        if std::env::var_os("SEPAL_BENCH_RECORD").is_none() {
            return quick::compare(Path::new(&file));
        }
        quick::record(Path::new(&file));
        return ExitCode::SUCCESS;
    }
    measure_everything();
    ExitCode::SUCCESS
}

fn measure_everything() {
    let variants = std::env::var("SEPAL_BENCH_VARIANTS").unwrap_or_else(|_| "nft,legacy".into());
    let variants = [Variant::Nft, Variant::Legacy].into_iter().filter(|variant| variants.contains(variant.as_str()));
    let mut table = Table::new(&["cluster", "variant"]);
    for cluster in read_clusters("SEPAL_BENCH", "1000x10,5000x50,10000x3") {
        for variant in variants.clone() {
            scenarios::measure_all(cluster, variant, &mut rows(&mut table, cluster, variant));
            table.update_file();
        }
    }
    for cluster in read_clusters("SEPAL_BENCH_SIZES", "10000x3,50000x3,10000x3-dual") {
        for variant in variants.clone() {
            scenarios::measure_size(cluster, variant, Effort::FULL, &mut rows(&mut table, cluster, variant));
            table.update_file();
        }
    }
    for cluster in read_clusters("SEPAL_BENCH_WIDE", "1x10000") {
        for variant in variants.clone() {
            scenarios::measure_wide_service(cluster, variant, &mut rows(&mut table, cluster, variant));
            table.update_file();
        }
    }
    for cluster in read_clusters("SEPAL_BENCH_GROWTH", "5000x3,20000x3") {
        for variant in variants.clone() {
            scenarios::measure_single_changes(cluster, variant, &mut rows(&mut table, cluster, variant));
            table.update_file();
        }
    }
    for cluster in read_clusters("SEPAL_BENCH_CHURN", "1000x3") {
        for variant in variants.clone() {
            scenarios::measure_churn(cluster, variant, &mut rows(&mut table, cluster, variant));
            table.update_file();
        }
    }
    for cluster in read_clusters("SEPAL_BENCH_DRY_RUN", "10000x3") {
        dry_run::measure(cluster, &mut rows(&mut table, cluster, Variant::Legacy));
        table.update_file();
    }
    println!("\n{}", table.text());
}

fn rows(table: &mut Table, cluster: Cluster, variant: Variant) -> Rows<'_> {
    let dual_stack = if cluster.dual_stack { "-dual" } else { "" };
    table.rows(&[format!("{}x{}{dual_stack}", cluster.services, cluster.endpoints), variant.to_string()])
}

/// Returns the clusters that an environment variable lists.
fn read_clusters(variable: &str, default: &str) -> Vec<Cluster> {
    let text = std::env::var(variable).unwrap_or_else(|_| default.into());
    let size = |cluster: &str| {
        let (size, dual_stack) = cluster.strip_suffix("-dual").map_or((cluster, false), |size| (size, true));
        let (services, endpoints) = size.split_once('x').expect("SERVICESxENDPOINTS");
        Cluster { dual_stack, ..Cluster::new(services.parse().expect("a number"), endpoints.parse().expect("a number")) }
    };
    text.split(',').filter(|cluster| !cluster.is_empty()).map(size).collect()
}
