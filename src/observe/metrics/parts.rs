//! The readiness of each part of the daemon, read at each scrape. `/readyz` shows the same.

use std::fmt;
use std::sync::{Arc, OnceLock};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::metrics::family::Family as Labelled;

use crate::observe::readiness::Readiness;

use super::labels::Count;
use super::text::encode_one;

/// The label of a part.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartLabel {
    part: &'static str,
}

/// Exports the readiness of each part, once the parts are known.
#[derive(Clone, Debug, Default)]
pub(super) struct PartsCollector(Arc<OnceLock<Readiness>>);

impl PartsCollector {
    /// Exports these parts from now on. Later calls change nothing.
    pub(super) fn show(&self, readiness: &Readiness) {
        let _ = self.0.set(readiness.clone());
    }
}

impl Collector for PartsCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let states = self.0.get().map(Readiness::states).unwrap_or_default();
        if states.is_empty() {
            return Ok(());
        }
        let ready = Labelled::<PartLabel, Count>::default();
        for (part, state) in &states {
            ready.get_or_create(&PartLabel { part: part.as_str() }).set(state.is_ready().into());
        }
        encode_one(&mut encoder, "sepal_part_ready", "1 if a part of the daemon is ready, else 0", &ready)
    }
}

#[cfg(test)]
mod tests {
    use crate::cluster::Family;
    use crate::observe::metrics::{Format, Metrics};
    use crate::observe::readiness::{Part, Readiness};

    /// The exported lines of parts, sorted.
    fn shown(metrics: &Metrics) -> Vec<String> {
        let text = metrics.text(Format::Classic).1;
        let mut lines: Vec<String> = text.lines().filter(|line| line.contains("sepal_part_ready")).map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    }

    #[test]
    fn parts_are_exported_with_their_readiness() {
        let metrics = Metrics::default();
        assert!(shown(&metrics).is_empty());
        let readiness = Readiness::new([Part::Peers, Part::Proxy(Family::V4)]);
        metrics.show_parts(&readiness);
        readiness.ready(Part::Proxy(Family::V4));
        let head = ["# HELP sepal_part_ready 1 if a part of the daemon is ready, else 0", "# TYPE sepal_part_ready gauge"];
        assert_eq!(shown(&metrics), [head[0], head[1], "sepal_part_ready{part=\"peers\"} 0", "sepal_part_ready{part=\"proxy-ipv4\"} 1"]);
        readiness.not_ready(Part::Proxy(Family::V4), "no iptables");
        readiness.ready(Part::Peers);
        assert_eq!(shown(&metrics)[2..], ["sepal_part_ready{part=\"peers\"} 1", "sepal_part_ready{part=\"proxy-ipv4\"} 0"]);
    }
}
