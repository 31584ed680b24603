//! What all programs of Kubernetes show and dashboards rely on: what was built, which feature gates are on, requests to the API server.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::kubernetes::requests::{Answered, Observer};

use super::text::Catalogue;
use super::{Durations, Metrics};

/// The release of Kubernetes whose kube-proxy this one stands in for.
const KUBERNETES: (&str, &str, &str) = ("1", "36", "v1.36.2");

/// What a request counts as that got no answer; so client-go has it.
const NO_ANSWER: &str = "<error>";

/// Labels of `kubernetes_build_info`. Nothing of Go has gone into this.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuiltFrom {
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

/// Labels of a feature gate.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Feature {
    name: String,
    stage: String,
}

/// Labels of requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    code: String,
    host: String,
    method: String,
}

/// Labels of how long requests took.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Latency {
    host: String,
    verb: String,
}

/// The metrics.
#[derive(Debug)]
pub(super) struct Shared {
    build: Labelled<BuiltFrom, Gauge>,
    features: Labelled<Feature, Gauge>,
    requests: Labelled<Request, Counter>,
    durations: Durations<Latency>,
}

/// client-go's, in seconds.
fn durations() -> Histogram {
    Histogram::new([0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0])
}

impl Default for Shared {
    fn default() -> Self {
        let build = Labelled::default();
        let (major, minor, version) = KUBERNETES;
        let labels = BuiltFrom {
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
        Labelled::<BuiltFrom, Gauge>::get_or_create(&build, &labels).set(1);
        Self { build, features: Labelled::default(), requests: Labelled::default(), durations: Durations::new_with_constructor(durations) }
    }
}

/// The machine as Go names it.
fn architecture(rust: &str) -> &str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Shared {
    #[rustfmt::skip]
    pub(super) fn register(&self, catalogue: &mut Catalogue) {
        catalogue.add("kubernetes_build_info", "[ALPHA] A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree state, build date, Go version, and compiler from which Kubernetes was built, and platform on which it is running.", self.build.clone());
        catalogue.add("kubernetes_feature_enabled", "[BETA] This metric records the data about the stage and enablement of a k8s feature.", self.features.clone());
        catalogue.add("rest_client_requests", "[ALPHA] Number of HTTP requests, partitioned by status code, method, and host.", self.requests.clone());
        catalogue.add("rest_client_request_duration_seconds", "[ALPHA] Request latency in seconds. Broken down by verb, and host.", self.durations.clone());
    }

    pub(super) fn feature(&self, name: &str, stage: &str, enabled: bool) {
        self.features.get_or_create(&Feature { name: name.to_owned(), stage: stage.to_owned() }).set(enabled.into());
    }
}

impl Observer for Metrics {
    fn answered(&self, request: &Answered<'_>) {
        let (host, method) = (request.host.to_owned(), request.method.to_owned());
        if let Some(took) = request.took {
            let of = Latency { host: host.clone(), verb: method.clone() };
            self.shared.durations.get_or_create(&of).observe(took.as_secs_f64());
        }
        let code = request.code.map_or_else(|| NO_ANSWER.to_owned(), |code| code.to_string());
        self.shared.requests.get_or_create(&Request { code, host, method }).inc();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::observe::metrics::Format;

    #[test]
    fn what_dashboards_ask_for_is_there() {
        let metrics = Metrics::default();
        metrics.feature("ContextualLogging", "BETA", true);
        metrics.feature("NFAcct", "", false);
        let (host, method) = ("10.0.0.1:6443", "GET");
        metrics.answered(&Answered { host, method, code: Some(200), took: Some(Duration::from_millis(30)) });
        metrics.answered(&Answered { host, method, code: None, took: None });
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
