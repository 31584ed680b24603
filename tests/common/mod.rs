//! The rules that follow from a manifest text.

use sepal::cluster::Family;
use sepal::cluster::host_facts::HostFacts;
use sepal::config::manifests::Manifests;
use sepal::config::settings::RequestedSettings;
use sepal::netlink::record::FakeHost;
use sepal::proxy::rules::inputs::Inputs;
use sepal::proxy::sync::facts::{described_facts, whole};
use sepal::table::planner;

/// The inputs that a manifest text describes.
pub(crate) fn inputs(text: &str) -> Result<Inputs, String> {
    let mut manifests = Manifests::default();
    manifests.add("manifest", text).map_err(|error| error.to_string())?;
    Ok(manifests.into_inputs(&RequestedSettings { host_name: "host".into(), ..RequestedSettings::default() }))
}

/// The facts of a host that is described by the manifest alone.
pub(crate) fn facts(inputs: &Inputs) -> HostFacts {
    described_facts(inputs, &FakeHost::default(), true).expect("facts were checked when they were read")
}

/// The restore input of one family, in one transaction per table.
pub(crate) fn rendered(inputs: &Inputs, family: Family) -> String {
    let (plan, renderer) = whole(inputs, &facts(inputs), family, &planner::dry_run_tables());
    plan.text(&renderer)
}
