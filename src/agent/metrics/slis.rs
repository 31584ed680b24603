//! What health checks came to, served apart from everything else on `/metrics/slis` (spec section 9.3).

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Format;
use super::text::Catalogue;

/// Labels of a health check.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Check {
    name: String,
    r#type: String,
}

/// Labels of what health checks came to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    name: String,
    /// `success` or `error`.
    status: &'static str,
    r#type: String,
}

/// The metrics of health checks.
#[derive(Debug)]
pub struct Slis {
    registry: Registry,
    last: Labelled<Check, Gauge>,
    all: Labelled<Outcome, Counter>,
}

impl Default for Slis {
    fn default() -> Self {
        let (last, all) = (Labelled::default(), Labelled::default());
        let mut catalogue = Catalogue::default();
        catalogue.add(
            "kubernetes_healthcheck",
            "[STABLE] This metric records the result of a single healthcheck.",
            Labelled::<Check, Gauge>::clone(&last),
        );
        catalogue.add(
            "kubernetes_healthchecks",
            "[STABLE] This metric records the results of all healthcheck.",
            Labelled::<Outcome, Counter>::clone(&all),
        );
        let mut registry = Registry::default();
        registry.register_collector(Box::new(catalogue));
        Self { registry, last, all }
    }
}

impl Slis {
    /// A health check, like `ping`, was asked for by a path, like `healthz`, and went well or not.
    pub fn checked(&self, name: &str, path: &str, well: bool) {
        let (name, r#type) = (name.to_owned(), path.to_owned());
        self.last.get_or_create(&Check { name: name.clone(), r#type: r#type.clone() }).set(well.into());
        let status = if well { "success" } else { "error" };
        self.all.get_or_create(&Outcome { name, status, r#type }).inc();
    }

    /// Forgets everything, as a DELETE on the path asks for.
    pub fn reset(&self) {
        self.last.clear();
        self.all.clear();
    }

    /// The text, and what the header `Content-Type` says of it.
    #[must_use]
    pub fn text(&self, format: Format) -> (&'static str, String) {
        (format.content_type(), format.write(&self.registry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_result_is_shown_and_all_are_counted() {
        let slis = Slis::default();
        slis.checked("ping", "healthz", true);
        slis.checked("ping", "healthz", false);
        let (content_type, text) = slis.text(Format::Classic);
        assert_eq!(content_type, "text/plain; version=0.0.4; charset=utf-8");
        for line in [
            "# HELP kubernetes_healthcheck [STABLE] This metric records the result of a single healthcheck.",
            "# TYPE kubernetes_healthcheck gauge",
            "kubernetes_healthcheck{name=\"ping\",type=\"healthz\"} 0",
            "# TYPE kubernetes_healthchecks_total counter",
            "kubernetes_healthchecks_total{name=\"ping\",status=\"success\",type=\"healthz\"} 1",
            "kubernetes_healthchecks_total{name=\"ping\",status=\"error\",type=\"healthz\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "no line {line} in\n{text}");
        }
        slis.reset();
        assert_eq!(slis.text(Format::Classic).1, "");
    }
}
