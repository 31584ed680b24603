//! Writes metrics as text: in Prometheus' classic format, as kube-proxy does, or as `OpenMetrics` if the client asks for it.
//!
//! The library writes both. But its registry adds a full stop to every help text, and kube-proxy's help texts have none. So [`Catalogue`]
//! keeps the metrics with their help texts, and the registry collects them from there.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, prometheus_text, text};
use prometheus_client::registry::{Metric, Registry};

/// The text format of metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format 0.0.4.
    #[default]
    Classic,
    /// `OpenMetrics` 1.0.0.
    OpenMetrics,
}

impl Format {
    /// The format that an `Accept` header prefers, or the classic one if the header names neither.
    ///
    /// ```
    /// use sepal::observe::metrics::Format;
    /// let prometheus = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    /// assert_eq!(Format::of_accept(prometheus), Format::OpenMetrics);
    /// assert_eq!(Format::of_accept("*/*"), Format::Classic);
    /// ```
    #[must_use]
    pub fn of_accept(accept: &str) -> Self {
        let mut best = (0.0, Self::Classic);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
            let (mut version, mut quality) = ("", 1.0);
            for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                match name.trim().to_ascii_lowercase().as_str() {
                    "version" => version = value.trim().trim_matches('"'),
                    "q" => quality = value.trim().parse::<f32>().unwrap_or(0.0),
                    _ => {}
                }
            }
            let format = match (media_type.as_str(), version) {
                ("application/openmetrics-text", "" | "0.0.1" | "1.0.0") => Self::OpenMetrics,
                ("text/plain", "" | "0.0.4") => Self::Classic,
                _ => continue,
            };
            if quality > best.0 {
                best = (quality, format);
            }
        }
        best.1
    }

    /// The value of the header `Content-Type`.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Classic => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// Writes all metrics of a registry in this format.
    pub(super) fn write(self, registry: &Registry) -> String {
        let mut out = String::new();
        // Writing to a String does not fail.
        let _ = match self {
            Self::Classic => prometheus_text::encode(&mut out, registry),
            Self::OpenMetrics => text::encode(&mut out, registry),
        };
        out
    }
}

/// Metrics with their names and help texts. A counter's name is without `_total`: the text formats add it.
#[derive(Debug, Default)]
pub(super) struct Catalogue(Vec<(&'static str, &'static str, Box<dyn Metric>)>);

impl Catalogue {
    pub(super) fn add(&mut self, name: &'static str, help: &'static str, metric: impl Metric) {
        self.0.push((name, help, Box::new(metric)));
    }
}

impl Collector for Catalogue {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // A metric with labels is exported from its first use on.
        self.0
            .iter()
            .filter(|(_, _, metric)| !metric.is_empty())
            .try_for_each(|(name, help, metric)| encode_one(&mut encoder, name, help, &**metric))
    }
}

/// Writes one metric.
pub(super) fn encode_one(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: &(impl EncodeMetric + ?Sized),
) -> fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::EncodeLabelSet;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::family::Family;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::metrics::histogram::Histogram;

    use super::*;

    #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
    struct Label {
        name: &'static str,
    }

    fn registry() -> Registry {
        let mut catalogue = Catalogue::default();
        let (counter, gauge, histogram) = (Counter::<u64>::default(), Gauge::<i64>::default(), Histogram::new([0.5, 1.0]));
        counter.inc();
        gauge.set(7);
        histogram.observe(0.75);
        let labelled = Family::<Label, Counter>::default();
        labelled.get_or_create(&Label { name: "a\"b\\c\nd" }).inc();
        catalogue.add("a_counter", "[ALPHA] Counts", counter);
        catalogue.add("a_gauge_total", "[ALPHA] Number of things", gauge);
        catalogue.add("a_histogram", "A \\ in a help text", histogram);
        catalogue.add("labelled", "Help", labelled);
        catalogue.add("unused", "Never", Family::<Label, Counter>::default());
        let mut registry = Registry::default();
        registry.register_collector(Box::new(catalogue));
        registry
    }

    #[test]
    fn the_classic_format_equals_kube_proxys() {
        let text = "# HELP a_counter_total [ALPHA] Counts\n# TYPE a_counter_total counter\na_counter_total 1\n\
             # HELP a_gauge_total [ALPHA] Number of things\n# TYPE a_gauge_total gauge\na_gauge_total 7\n\
             # HELP a_histogram A \\\\ in a help text\n# TYPE a_histogram histogram\na_histogram_bucket{le=\"0.5\"} 0\n\
             a_histogram_bucket{le=\"1\"} 1\na_histogram_bucket{le=\"+Inf\"} 1\na_histogram_sum 0.75\na_histogram_count 1\n\
             # HELP labelled_total Help\n# TYPE labelled_total counter\nlabelled_total{name=\"a\\\"b\\\\c\\nd\"} 1\n";
        assert_eq!(Format::Classic.write(&registry()), text);
        assert_eq!(Format::Classic.content_type(), "text/plain; version=0.0.4; charset=utf-8");
    }

    #[test]
    fn open_metrics_drops_the_counter_suffix_and_ends_with_eof() {
        let text = Format::OpenMetrics.write(&registry());
        assert!(text.starts_with("# HELP a_counter [ALPHA] Counts\n# TYPE a_counter counter\na_counter_total 1\n"), "{text}");
        assert!(text.contains("# TYPE a_gauge_total gauge\na_gauge_total 7\n"), "{text}");
        assert!(text.ends_with("\n# EOF\n"), "{text}");
    }

    #[test]
    fn the_accept_header_chooses_the_format() {
        for (accept, format) in [
            ("", Format::Classic),
            ("*/*", Format::Classic),
            ("text/html", Format::Classic),
            ("application/openmetrics-text", Format::OpenMetrics),
            ("Application/OpenMetrics-Text; Version=1.0.0; charset=utf-8", Format::OpenMetrics),
            ("application/openmetrics-text;version=2.0.0", Format::Classic),
            ("application/openmetrics-text;q=0", Format::Classic),
            ("text/plain;version=0.0.4;q=0.5, application/openmetrics-text;version=0.0.1", Format::OpenMetrics),
            ("text/plain;version=0.0.4, application/openmetrics-text;version=1.0.0", Format::Classic),
            ("application/openmetrics-text;q=0.3,text/plain;q=0.4", Format::Classic),
            ("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7", Format::Classic),
        ] {
            assert_eq!(Format::of_accept(accept), format, "{accept:?}");
        }
    }
}
