//! Feeds arbitrary text to the manifest parser, and computes the rules of what it parses. The input of a crash is stored in
//! testdata/regress under a name that describes the bug, with a `.expect` file.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sepal::cluster::Family;
use sepal::config::settings::RequestedSettings;
use sepal::cluster::host_facts::HostFacts;
use sepal::proxy::rules;
use sepal::config::manifests::Manifests;

fuzz_target!(|text: &str| {
    let mut manifests = Manifests::default();
    if manifests.add("fuzz", text).is_ok() {
        let inputs = manifests.into_inputs(&RequestedSettings::default());
        for family in Family::ALL {
            let _ = rules::compute(&inputs, &HostFacts::default(), family);
        }
    }
});
