//! From the API server to the kernel, end to end, in a network namespace: what sepal needs, and what a bare iptables-restore (or
//! iptables-save) of the same content needs in the same run. Prints a table; figures that depend on the machine are only worth their ratio.
//!
//! - `SEPAL_BENCH=1000x10,10000x3` chooses the clusters (services x endpoints), `SEPAL_BENCH_VARIANTS=nft` the variants.
//! - `SEPAL_BENCH_GROWTH=5000x3,20000x3` chooses the clusters of which only a single change is looked at.
//! - `SEPAL_BENCH_DRY_RUN=10000x3` chooses the clusters that are printed from manifests.
//! - `SEPAL_BENCH_FLAGS=--service-traffic=on` has sepal run with these flags, too.
//! - `SEPAL_BENCH_KEEP=benches/README.md` puts the figures into the table of that file, in place of those it has.

#![allow(
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    missing_docs,
    reason = "an instrument: it starts programs, waits, and prints"
)]

mod daemon;
mod dry_run;
mod floor;
mod journey;

use sepal::table::plan::Variant;
use sepal_lab::Cluster;
use sepal_lab::figures::{Rows, Table};

fn main() {
    let variants = std::env::var("SEPAL_BENCH_VARIANTS").unwrap_or_else(|_| "nft,legacy".into());
    let variants = [Variant::Nft, Variant::Legacy].into_iter().filter(|variant| variants.contains(variant.as_str()));
    let mut table = Table::new(&["cluster", "variant"]);
    for cluster in clusters("SEPAL_BENCH", "1000x10,5000x50,10000x3") {
        for variant in variants.clone() {
            journey::whole(cluster, variant, &mut rows(&mut table, cluster, variant));
            table.keep();
        }
    }
    for cluster in clusters("SEPAL_BENCH_GROWTH", "5000x3,20000x3") {
        for variant in variants.clone() {
            journey::single_changes(cluster, variant, &mut rows(&mut table, cluster, variant));
            table.keep();
        }
    }
    for cluster in clusters("SEPAL_BENCH_DRY_RUN", "10000x3") {
        dry_run::measure(cluster, &mut rows(&mut table, cluster, Variant::Legacy));
        table.keep();
    }
    println!("\n{}", table.text());
}

fn rows(table: &mut Table, cluster: Cluster, variant: Variant) -> Rows<'_> {
    table.of(&[format!("{}x{}", cluster.services, cluster.endpoints), variant.to_string()])
}

/// The clusters that a variable of the environment names.
fn clusters(variable: &str, default: &str) -> Vec<Cluster> {
    let text = std::env::var(variable).unwrap_or_else(|_| default.into());
    let size = |cluster: &str| {
        let (services, endpoints) = cluster.split_once('x').expect("SERVICESxENDPOINTS");
        Cluster { services: services.parse().expect("a number"), endpoints: endpoints.parse().expect("a number") }
    };
    text.split(',').filter(|cluster| !cluster.is_empty()).map(size).collect()
}
