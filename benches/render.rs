//! Measures how long sepal needs to compute all rules of a large cluster.

#![allow(clippy::expect_used, missing_docs, reason = "a failed setup fails the benchmark")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use sepal::cluster::Family;
use sepal::cluster::host_facts::HostFacts;
use sepal::config::manifests::Manifests;
use sepal::config::settings::RequestedSettings;
use sepal::proxy::rules;
use sepal_lab::Cluster;

fn render(criterion: &mut Criterion) {
    let mut manifests = Manifests::default();
    manifests.add("cluster", &Cluster::new(10_000, 3).manifest()).expect("the manifest is well formed");
    let inputs = manifests.into_inputs(&RequestedSettings::default());
    let host = HostFacts::default();
    criterion.bench_function("rules of 10000 services x 3 endpoints", |bencher| {
        bencher.iter(|| black_box(rules::compute(&inputs, &host, Family::V4)).services.len());
    });
}

criterion_group!(benches, render);
criterion_main!(benches);
