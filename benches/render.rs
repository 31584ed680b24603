//! Computing every rule of a large cluster from a snapshot, and printing them.

#![allow(clippy::expect_used, missing_docs, reason = "a bench that cannot be set up has failed")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use sepal::cluster::Family;
use sepal::cluster::host_facts::HostFacts;
use sepal::config::manifests::Manifests;
use sepal::config::settings::Asked;
use sepal::proxy::rules;
use sepal_lab::Cluster;

fn render(criterion: &mut Criterion) {
    let mut manifests = Manifests::default();
    manifests.add("cluster", &Cluster { services: 10_000, endpoints: 3 }.manifest()).expect("it is well formed");
    let inputs = manifests.into_inputs(&Asked::default());
    let host = HostFacts::default();
    criterion.bench_function("rules of 10000 services x 3 endpoints", |bencher| {
        bencher.iter(|| black_box(rules::compute(&inputs, &host, Family::V4)).services.len());
    });
}

criterion_group!(benches, render);
criterion_main!(benches);
