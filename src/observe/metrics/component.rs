//! Metrics that every Kubernetes component exports and that dashboards rely on: the build, feature gates, and requests to the API server.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::kubernetes::requests::AnsweredRequest;

use super::declare::metrics;
use super::labels::Durations;

/// The Kubernetes release whose kube-proxy sepal replaces: major, minor, version.
const KUBERNETES: (&str, &str, &str) = ("1", "36", "v1.36.2");

/// The code of a request without an answer, as client-go writes it.
const NO_ANSWER: &str = "<error>";

/// The labels of `kubernetes_build_info`. Those about Go are empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct BuildLabels {
    build_date: &'static str,
    compiler: &'static str,
    git_commit: &'static str,
    git_tree_state: &'static str,
    git_version: String,
    go_version: &'static str,
    major: &'static str,
    minor: &'static str,
    platform: String,
}

/// The labels of a feature gate.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct FeatureLabels {
    name: String,
    stage: String,
}

/// The labels of the number of requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RequestLabels {
    code: String,
    host: String,
    method: String,
}

/// The labels of the duration of requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct LatencyLabels {
    host: String,
    verb: String,
}

metrics! {
    /// The metrics of every Kubernetes component.
    ComponentMetrics {
        build: Labelled<BuildLabels, Gauge> = build_info(),
            "kubernetes_build_info", "[ALPHA] A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree state, build date, Go version, and compiler from which Kubernetes was built, and platform on which it is running.";
        features: Labelled<FeatureLabels, Gauge>,
            "kubernetes_feature_enabled", "[BETA] This metric records the data about the stage and enablement of a k8s feature.";
        requests: Labelled<RequestLabels, Counter>,
            "rest_client_requests", "[ALPHA] Number of HTTP requests, partitioned by status code, method, and host.";
        durations: Durations<LatencyLabels> = Durations::new_with_constructor(request_durations),
            "rest_client_request_duration_seconds", "[ALPHA] Request latency in seconds. Broken down by verb, and host.";
    }
}

/// A histogram with client-go's buckets for requests, in seconds.
fn request_durations() -> Histogram {
    Histogram::new([0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0])
}

/// The metric of the build, with the value 1.
fn build_info() -> Labelled<BuildLabels, Gauge> {
    let build = Labelled::<BuildLabels, Gauge>::default();
    let (major, minor, version) = KUBERNETES;
    let labels = BuildLabels {
        build_date: "",
        compiler: "rustc",
        git_commit: "",
        git_tree_state: "",
        git_version: format!("{version}+sepal-{}", env!("CARGO_PKG_VERSION")),
        go_version: "",
        major,
        minor,
        platform: format!("{}/{}", std::env::consts::OS, architecture(std::env::consts::ARCH)),
    };
    build.get_or_create(&labels).set(1);
    build
}

/// Go's name of an architecture.
fn architecture(rust: &str) -> &str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl ComponentMetrics {
    /// Sets a feature gate to on or off.
    pub(super) fn feature(&self, name: &str, stage: &str, enabled: bool) {
        self.features.get_or_create(&FeatureLabels { name: name.to_owned(), stage: stage.to_owned() }).set(enabled.into());
    }

    /// Counts a request to the API server.
    pub(super) fn answered(&self, request: &AnsweredRequest<'_>) {
        let (host, method) = (request.host.to_owned(), request.method.to_owned());
        if let Some(took) = request.took {
            let labels = LatencyLabels { host: host.clone(), verb: method.clone() };
            self.durations.get_or_create(&labels).observe(took.as_secs_f64());
        }
        let code = request.code.map_or_else(|| NO_ANSWER.to_owned(), |code| code.to_string());
        self.requests.get_or_create(&RequestLabels { code, host, method }).inc();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::kubernetes::requests::{AnsweredRequest, RequestObserver};
    use crate::observe::metrics::{Format, Metrics};

    #[test]
    fn metrics_of_every_kubernetes_component_are_exported() {
        let metrics = Metrics::default();
        metrics.feature("ContextualLogging", "BETA", true);
        metrics.feature("NFAcct", "", false);
        let (host, method) = ("10.0.0.1:6443", "GET");
        metrics.answered(&AnsweredRequest { host, method, code: Some(200), took: Some(Duration::from_millis(30)) });
        metrics.answered(&AnsweredRequest { host, method, code: None, took: None });
        let text = metrics.text(Format::Classic).1;
        let version = env!("CARGO_PKG_VERSION");
        for part in [
            "# TYPE kubernetes_build_info gauge\nkubernetes_build_info{build_date=\"\",compiler=\"rustc\",".to_owned(),
            format!("git_version=\"v1.36.2+sepal-{version}\",go_version=\"\",major=\"1\",minor=\"36\",platform=\"linux/"),
            "kubernetes_feature_enabled{name=\"ContextualLogging\",stage=\"BETA\"} 1\n".to_owned(),
            "kubernetes_feature_enabled{name=\"NFAcct\",stage=\"\"} 0\n".to_owned(),
            "# TYPE rest_client_requests_total counter\n".to_owned(),
            "rest_client_requests_total{code=\"200\",host=\"10.0.0.1:6443\",method=\"GET\"} 1\n".to_owned(),
            "rest_client_requests_total{code=\"<error>\",host=\"10.0.0.1:6443\",method=\"GET\"} 1\n".to_owned(),
            "rest_client_request_duration_seconds_bucket{host=\"10.0.0.1:6443\",verb=\"GET\",le=\"0.025\"} 0\n".to_owned(),
            "rest_client_request_duration_seconds_bucket{host=\"10.0.0.1:6443\",verb=\"GET\",le=\"0.1\"} 1\n".to_owned(),
            "rest_client_request_duration_seconds_count{host=\"10.0.0.1:6443\",verb=\"GET\"} 1\n".to_owned(),
        ] {
            assert!(text.contains(&part), "no {part} in\n{text}");
        }
    }
}
