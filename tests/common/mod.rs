//! The rules that follow from a manifest text.

use sepal::agent::facts::{described_facts, whole};
use sepal::cluster::Family;
use sepal::config::settings::{Asked, HostFacts};
use sepal::netlink::record::FakeHost;
use sepal::rules::inputs::Inputs;
use sepal::source::manifests::Manifests;
use sepal::table::planner;

/// The inputs that a manifest text describes.
pub(crate) fn inputs(text: &str) -> Result<Inputs, String> {
    let mut manifests = Manifests::default();
    manifests.add("manifest", text).map_err(|error| error.to_string())?;
    Ok(manifests.into_inputs(&Asked { host_name: "host".into(), ..Asked::default() }))
}

/// The facts of a host that is described by the manifest alone.
pub(crate) fn facts(inputs: &Inputs) -> HostFacts {
    described_facts(inputs, &FakeHost::default(), true).expect("facts were checked when they were read")
}

/// The restore input of one family, in one transaction per table.
pub(crate) fn rendered(inputs: &Inputs, family: Family) -> String {
    let (plan, renderer) = whole(inputs, &facts(inputs), family, &planner::unknown());
    plan.text(&renderer)
}
