//! The metrics server (`metricsBindAddress`) [kube-proxy 9.3], for people and scrapers. Its `/healthz` only says that the server runs, not that
//! rules are in force.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::future::BoxFuture;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use hyper::{Method, StatusCode};
use jiff::tz::TimeZone;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::status::server::StatusPage;
use super::zpages::{self, BuildInfo};
use crate::http_server::listen::ListenAddress;
use crate::http_server::{self, Handler, HttpAnswer, HttpRequest, Reply, StartError};

/// The text format of Prometheus.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The key of kube-proxy's configuration at `/configz`.
const CONFIG: &str = "kubeproxy.config.k8s.io";
/// The path that sets the log verbosity, if profiling is on.
const VERBOSITY: &str = "/debug/flags/v";
const NO_PROFILES: &str = "sepal is not a Go program and has no Go profiles. Its metrics named sepal_* say how long syncs take and what they write; \
`perf record -g -p PID` says where time goes.\n";

/// Metrics as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exposition {
    /// The content type.
    pub content_type: String,
    /// The text.
    pub text: String,
}

/// Renders the metrics in the format that an Accept header prefers.
pub(crate) type RenderMetrics = Box<dyn Fn(Option<&str>) -> Exposition + Send + Sync>;

/// Sets the log verbosity to a number given as text. Fails if the text is not valid.
pub(crate) type SetVerbosity = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// The sources of the pages.
pub(crate) struct MetricsPages {
    /// Renders the metrics.
    pub metrics: RenderMetrics,
    /// The status page, if there is one.
    pub site: Option<StatusPage>,
    /// Renders the slowest changes as text.
    pub slowest: Box<dyn Fn() -> String + Send + Sync>,
    /// The current configuration in its v1alpha1 form, with kind and apiVersion.
    pub configz: watch::Receiver<Value>,
    /// Flags and their values; `None` if the feature gate `ComponentFlagz` is off.
    pub flags: Option<BTreeMap<String, String>>,
    /// The content of `/statusz`; `None` if the feature gate `ComponentStatusz` is off.
    pub build: Option<BuildInfo>,
    /// Sets the log verbosity; `None` if `enableProfiling` is off.
    pub set_verbosity: Option<SetVerbosity>,
}

/// Serves until the future is dropped. `hard_fail` is `bindAddressHardFail`.
///
/// # Errors
/// The server cannot listen on the address and `hard_fail` is set. Reads `starting metrics server failed: ERR`.
pub(crate) async fn serve(address: SocketAddr, hard_fail: bool, pages: MetricsPages) -> Result<Infallible, StartError> {
    http_server::keep_serving(
        ListenAddress::tcp(address),
        hard_fail,
        "starting metrics server failed".to_owned(),
        Arc::new(Server::new(pages)),
    )
    .await
}

struct Server {
    pages: MetricsPages,
    /// The number of requests for `/healthz` since the start or the last DELETE.
    checks: AtomicU64,
    started: Instant,
    zone: TimeZone,
}

impl Server {
    fn new(pages: MetricsPages) -> Self {
        Self { pages, checks: AtomicU64::new(0), started: Instant::now(), zone: TimeZone::system() }
    }

    /// The served paths, sorted.
    fn paths(&self) -> Vec<&'static str> {
        let mut paths = vec!["/configz", "/healthz", "/healthz/ping", "/metrics", "/metrics/slis", "/proxyMode", "/statusz"];
        paths.extend(self.pages.flags.is_some().then_some("/flagz"));
        paths.extend(self.pages.set_verbosity.is_some().then_some(VERBOSITY));
        paths.sort_unstable();
        paths
    }

    fn metrics(&self, request: &HttpRequest) -> HttpAnswer {
        let accept = request.headers.get(ACCEPT).and_then(|value| value.to_str().ok());
        let exposition = (self.pages.metrics)(accept);
        let answer = HttpAnswer::new(StatusCode::OK, PROMETHEUS, exposition.text);
        match HeaderValue::try_from(exposition.content_type) {
            Ok(content_type) => answer.with(CONTENT_TYPE, content_type),
            Err(_) => answer,
        }
    }

    fn slis(&self, request: &HttpRequest) -> HttpAnswer {
        if request.method == Method::DELETE {
            self.checks.store(0, Ordering::Relaxed);
            return HttpAnswer::text(StatusCode::OK, "metrics reset\n");
        }
        let text = match self.checks.load(Ordering::Relaxed) {
            0 => String::new(),
            checks => format!(
                "# HELP kubernetes_healthcheck [STABLE] This metric records the result of a single healthcheck.\n\
                 # TYPE kubernetes_healthcheck gauge\n\
                 kubernetes_healthcheck{{name=\"ping\",type=\"healthz\"}} 1\n\
                 # HELP kubernetes_healthchecks_total [STABLE] This metric records the results of all healthcheck.\n\
                 # TYPE kubernetes_healthchecks_total counter\n\
                 kubernetes_healthchecks_total{{name=\"ping\",status=\"success\",type=\"healthz\"}} {checks}\n"
            ),
        };
        HttpAnswer::new(StatusCode::OK, PROMETHEUS, text)
    }

    fn flagz(&self, request: &HttpRequest) -> HttpAnswer {
        self.pages.flags.as_ref().map_or_else(HttpAnswer::not_found, |flags| zpages::flagz(&request.headers, flags))
    }

    fn statusz(&self, request: &HttpRequest) -> HttpAnswer {
        let Some(build) = &self.pages.build else { return HttpAnswer::not_found() };
        zpages::statusz(&request.headers, build, self.started.elapsed(), &self.zone, &self.paths())
    }

    fn verbosity(&self, request: &HttpRequest) -> HttpAnswer {
        let Some(set) = &self.pages.set_verbosity else { return HttpAnswer::not_found() };
        if request.method != Method::PUT {
            return HttpAnswer::text(StatusCode::NOT_ACCEPTABLE, "unsupported http method\n");
        }
        let text = String::from_utf8_lossy(&request.body);
        match set(text.trim()) {
            Ok(()) => HttpAnswer::text(StatusCode::OK, format!("successfully set klog.logging.verbosity to {}", text.trim())),
            Err(error) => {
                HttpAnswer::text(StatusCode::BAD_REQUEST, format!("failed set klog.logging.verbosity {}: {error}\n", text.trim()))
            }
        }
    }
}

impl Handler for Server {
    fn later(&self, request: &HttpRequest) -> Option<BoxFuture<'static, Reply>> {
        self.pages.site.as_ref()?.reply(request)
    }

    fn answer(&self, request: &HttpRequest) -> HttpAnswer {
        match request.path.as_str() {
            "/metrics" => self.metrics(request),
            "/metrics/slis" => self.slis(request),
            "/slowest" => HttpAnswer::text(StatusCode::OK, (self.pages.slowest)()),
            "/proxyMode" => HttpAnswer::text(StatusCode::OK, "iptables"),
            "/healthz" => {
                self.checks.fetch_add(1, Ordering::Relaxed);
                ping(request)
            }
            "/healthz/ping" => ping(request),
            "/configz" => {
                let config = json!({ CONFIG: &*self.pages.configz.borrow() });
                HttpAnswer::new(StatusCode::OK, "application/json", config.to_string()).nosniff()
            }
            "/flagz" => self.flagz(request),
            "/statusz" => self.statusz(request),
            VERBOSITY => self.verbosity(request),
            path if path == "/debug/pprof" || path.starts_with("/debug/pprof/") => HttpAnswer::text(StatusCode::NOT_FOUND, NO_PROFILES),
            _ => HttpAnswer::not_found(),
        }
    }
}

/// The answer of `/healthz`: the server runs.
fn ping(request: &HttpRequest) -> HttpAnswer {
    HttpAnswer::text(StatusCode::OK, if request.asks_for("verbose") { "[+]ping ok\nhealthz check passed\n" } else { "ok" })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::http_server::HttpServer;
    use crate::http_server::listen;
    use crate::http_server::tests::get;

    fn pages(configz: watch::Receiver<Value>) -> MetricsPages {
        let metrics = |accept: Option<&str>| Exposition {
            content_type: accept.unwrap_or(PROMETHEUS).to_owned(),
            text: "# TYPE sepal_syncs counter\nsepal_syncs_total 1\n".to_owned(),
        };
        MetricsPages {
            metrics: Box::new(metrics),
            site: None,
            slowest: Box::new(|| "ns/a\n".to_owned()),
            configz,
            flags: None,
            build: None,
            set_verbosity: None,
        }
    }

    fn everything(configz: watch::Receiver<Value>) -> MetricsPages {
        MetricsPages {
            flags: Some(BTreeMap::from([("v".to_owned(), "2".to_owned())])),
            build: Some(BuildInfo {
                binary_version: "1.36.2".to_owned(),
                emulation_version: "1.36".to_owned(),
                started: "2026-10-06T21:03:43Z".parse().expect("a time"),
            }),
            set_verbosity: Some(Box::new(|_| Ok(()))),
            ..pages(configz)
        }
    }

    fn request(method: Method, path: &str) -> HttpRequest {
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query.to_owned())));
        HttpRequest { method, path: path.to_owned(), query, ..HttpRequest::default() }
    }

    fn got(server: &Server, path: &str) -> (u16, String) {
        let answer = server.answer(&request(Method::GET, path));
        (answer.status.as_u16(), String::from_utf8(answer.body.to_vec()).expect("text"))
    }

    fn header<'a>(answer: &'a HttpAnswer, name: &str) -> Option<&'a str> {
        answer.headers.get(name).and_then(|value| value.to_str().ok())
    }

    fn ok(text: &str) -> (u16, String) {
        (200, text.to_owned())
    }

    #[tokio::test]
    async fn short_answers_equal_kube_proxys() {
        let server = Server::new(pages(watch::channel(Value::Null).1));
        let mode = server.answer(&request(Method::GET, "/proxyMode"));
        assert_eq!((&*mode.body, header(&mode, "content-type")), (b"iptables".as_slice(), Some("text/plain; charset=utf-8")));
        assert_eq!(header(&mode, "x-content-type-options"), Some("nosniff"));
        for path in ["/healthz", "/healthz/ping"] {
            assert_eq!(got(&server, path), ok("ok"));
            assert_eq!(got(&server, &format!("{path}?verbose")), ok("[+]ping ok\nhealthz check passed\n"));
        }
        for path in ["/", "/livez", "/readyz", "/healthz/", "/metrics/", "/flagz", "/statusz", "/debug/flags/v", "/debug/flags/vmodule"] {
            assert_eq!(got(&server, path), (404, "404 page not found\n".to_owned()), "{path}");
        }
    }

    #[tokio::test]
    async fn slow_changes_are_served() {
        assert_eq!(got(&Server::new(pages(watch::channel(Value::Null).1)), "/slowest"), ok("ns/a\n"));
    }

    #[tokio::test]
    async fn requests_for_go_profiles_name_the_alternatives() {
        let configz = watch::channel(Value::Null).1;
        for server in [Server::new(pages(configz.clone())), Server::new(everything(configz))] {
            for path in ["/debug/pprof", "/debug/pprof/", "/debug/pprof/profile?seconds=1", "/debug/pprof/symbol", "/debug/pprof/trace"] {
                let (status, text) = got(&server, path);
                assert_eq!(status, 404, "{path}");
                assert!(text.contains("no Go profiles") && text.contains("sepal_*") && text.contains("perf record"), "{text}");
            }
        }
    }

    #[tokio::test]
    async fn the_accept_header_chooses_the_metrics_format() {
        let server = Server::new(pages(watch::channel(Value::Null).1));
        let mut asked = request(Method::GET, "/metrics");
        let plain = server.answer(&asked);
        assert_eq!(header(&plain, "content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
        assert!(plain.body.ends_with(b"sepal_syncs_total 1\n"));
        asked.headers.insert(ACCEPT, HeaderValue::from_static("application/openmetrics-text"));
        assert_eq!(header(&server.answer(&asked), "content-type"), Some("application/openmetrics-text"));
    }

    #[tokio::test]
    async fn health_checks_are_counted_until_they_are_reset() {
        let server = Server::new(pages(watch::channel(Value::Null).1));
        assert_eq!(got(&server, "/metrics/slis"), ok(""));
        for _ in 0..3 {
            got(&server, "/healthz");
        }
        let counted = concat!(
            "# HELP kubernetes_healthcheck [STABLE] This metric records the result of a single healthcheck.\n",
            "# TYPE kubernetes_healthcheck gauge\n",
            "kubernetes_healthcheck{name=\"ping\",type=\"healthz\"} 1\n",
            "# HELP kubernetes_healthchecks_total [STABLE] This metric records the results of all healthcheck.\n",
            "# TYPE kubernetes_healthchecks_total counter\n",
            "kubernetes_healthchecks_total{name=\"ping\",status=\"success\",type=\"healthz\"} 3\n",
        );
        assert_eq!(got(&server, "/metrics/slis"), ok(counted));
        assert_eq!(server.answer(&request(Method::DELETE, "/metrics/slis")).body, "metrics reset\n");
        assert_eq!(got(&server, "/metrics/slis"), ok(""));
    }

    #[tokio::test]
    async fn configz_shows_the_current_configuration() {
        let (now, configz) = watch::channel(json!({"mode": "iptables"}));
        let server = Server::new(pages(configz));
        let shown = server.answer(&request(Method::GET, "/configz"));
        assert_eq!(&*shown.body, br#"{"kubeproxy.config.k8s.io":{"mode":"iptables"}}"#);
        assert_eq!((header(&shown, "content-type"), header(&shown, "x-content-type-options")), (Some("application/json"), Some("nosniff")));
        now.send_replace(json!({"mode": "", "oomScoreAdj": -999}));
        assert_eq!(got(&server, "/configz"), ok(r#"{"kubeproxy.config.k8s.io":{"mode":"","oomScoreAdj":-999}}"#));
    }

    #[tokio::test]
    async fn put_sets_the_verbosity() {
        let put = Arc::new(Mutex::new(Vec::new()));
        let stored = Arc::clone(&put);
        let set: SetVerbosity = Box::new(move |text| {
            let level: u8 = text.parse().map_err(|error| format!("{error}"))?;
            stored.lock().map_err(|error| error.to_string())?.push(level);
            Ok(())
        });
        let server = Server::new(MetricsPages { set_verbosity: Some(set), ..pages(watch::channel(Value::Null).1) });
        for method in [Method::GET, Method::POST, Method::DELETE] {
            assert_eq!(server.answer(&request(method, VERBOSITY)).status.as_u16(), 406);
        }
        let with = |body: &'static str| HttpRequest { body: body.into(), ..request(Method::PUT, VERBOSITY) };
        let answer = server.answer(&with("4\n"));
        assert_eq!((answer.status.as_u16(), &*answer.body), (200, b"successfully set klog.logging.verbosity to 4".as_slice()));
        let answer = server.answer(&with("loud"));
        assert_eq!(answer.status.as_u16(), 400);
        assert!(answer.body.starts_with(b"failed set klog.logging.verbosity loud: "));
        assert_eq!(*put.lock().expect("one thread"), [4]);
    }

    #[tokio::test]
    async fn statusz_names_the_served_paths() {
        let server = Server::new(everything(watch::channel(Value::Null).1));
        let (status, text) = got(&server, "/statusz");
        assert_eq!(status, 200);
        assert!(text.starts_with("\nkube-proxy statusz\nWarning: "), "{text}");
        let paths = "/configz /debug/flags/v /flagz /healthz /healthz/ping /metrics /metrics/slis /proxyMode /statusz";
        assert!(text.ends_with(&format!("\nPaths: {paths}\n")), "{text}");
        for path in paths.split(' ') {
            assert_ne!(got(&server, path).0, 404, "{path}");
        }
        assert!(got(&server, "/flagz").1.ends_with("\n\nv=2\n"));
    }

    #[tokio::test]
    async fn it_serves_plain_http() {
        let listener = listen::listen(ListenAddress::tcp(SocketAddr::from(([127, 0, 0, 1], 0)))).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let _serving = HttpServer::start(listener, Arc::new(Server::new(pages(watch::channel(Value::Null).1))));
        let answer = get(address, "/metrics").await.expect("an answer");
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n# TYPE sepal_syncs counter\nsepal_syncs_total 1\n"),
            "{answer}"
        );
        assert!(get(address, "/healthz").await.expect("an answer").ends_with("\r\n\r\nok"));
    }

    #[tokio::test]
    async fn an_address_in_use_is_named() {
        let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = taken.local_addr().expect("an address");
        let error = serve(address, true, pages(watch::channel(Value::Null).1)).await.expect_err("the address is in use");
        assert!(error.to_string().starts_with(&format!("starting metrics server failed: listen tcp {address}: bind: ")), "{error}");
    }
}
