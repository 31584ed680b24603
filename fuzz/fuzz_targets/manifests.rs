//! Arbitrary text into the manifest reader, and what it reads into rules. A crash goes to testdata/regress under a name that says what
//! it was, with a `.expect` beside it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sepal::cluster::Family;
use sepal::config::settings::Asked;
use sepal::cluster::host_facts::HostFacts;
use sepal::proxy::rules;
use sepal::config::manifests::Manifests;

fuzz_target!(|text: &str| {
    let mut manifests = Manifests::default();
    if manifests.add("fuzz", text).is_ok() {
        let inputs = manifests.into_inputs(&Asked::default());
        for family in Family::ALL {
            let _ = rules::compute(&inputs, &HostFacts::default(), family);
        }
    }
});
