//! Serves the page at `/` and its data under `/status/`. Read-only. Only browsers on this node, or behind `kubectl port-forward`, get an
//! answer.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, HeaderValue, REFERRER_POLICY};
use hyper::{Method, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::cluster::ServiceKey;
use crate::http_server::{HttpAnswer, HttpRequest, Reply};
use crate::observe::latency::AppliedChange;
use crate::observe::metrics::Metrics;
use crate::observe::paging::PageQuery;
use crate::observe::query::{ProxyQuery, QueryError};
use crate::observe::readiness::{PartState, PartStates, Readiness};

use super::StatusSources;

/// The page with its style and script.
const PAGE: &str = include_str!("page.html");
/// The page may only use its own style and script, and may only send requests to this server.
const POLICY: &str = "default-src 'none'; style-src 'sha256-STYLE'; script-src 'sha256-SCRIPT'; connect-src 'self'; base-uri 'none'; \
form-action 'none'; frame-ancestors 'none'";
/// The most browsers that get change notices at the same time.
const LISTENERS: usize = 16;
/// The shortest time between two notices.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// The longest time between two notices, so that counts are refreshed and closed connections are detected.
const MAX_INTERVAL: Duration = Duration::from_secs(10);

/// Facts of the node that do not change while sepal runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeSummary {
    /// This node's name.
    pub node: String,
    /// sepal's version.
    pub version: &'static str,
    /// The iptables variant, its version, and the reason for the choice.
    pub iptables: String,
    /// The families that have rules.
    pub families: Vec<&'static str>,
}

/// Serves the status page.
pub(crate) struct StatusPage {
    node: NodeSummary,
    sources: StatusSources,
    readiness: Readiness,
    metrics: Arc<Metrics>,
    policy: HeaderValue,
    listeners: Arc<AtomicUsize>,
}

impl StatusPage {
    /// A status page with this content.
    #[must_use]
    pub(crate) fn new(node: NodeSummary, sources: StatusSources, readiness: Readiness, metrics: Arc<Metrics>) -> Self {
        let policy = HeaderValue::try_from(POLICY.replace("STYLE", &digest("style")).replace("SCRIPT", &digest("script")))
            .unwrap_or(HeaderValue::from_static("default-src 'none'"));
        Self { node, sources, readiness, metrics, policy, listeners: Arc::default() }
    }

    /// The answer to a request; `None` for paths of other pages.
    #[must_use]
    pub(crate) fn reply(&self, request: &HttpRequest) -> Option<BoxFuture<'static, Reply>> {
        let path = match request.path.as_str() {
            "/" => "",
            path => path.strip_prefix("/status/")?,
        };
        let now = |answer: HttpAnswer| Some(std::future::ready(Reply::Whole(guarded(answer))).boxed());
        if let Some(refusal) = refusal(request) {
            return now(refusal);
        }
        let query = query(request);
        let text = |name: &str| query.get(name).cloned().unwrap_or_default();
        let part = || PageQuery { search: text("search").to_lowercase(), page: text("page").parse().unwrap_or_default() };
        match path {
            "" => now(HttpAnswer::new(StatusCode::OK, "text/html; charset=utf-8", PAGE).with(CONTENT_SECURITY_POLICY, self.policy.clone())),
            "overview.json" => now(json(StatusCode::OK, &self.overview())),
            "events" => Some(self.listen()),
            "peers.json" => {
                let (queries, part) = (self.sources.peers.clone(), part());
                Some(async move { answered(queries.ask(part).await) }.boxed())
            }
            "services.json" => Some(self.ask(ProxyQuery::Services(part()))),
            "service.json" => {
                let (namespace, name) = (text("namespace").into(), text("name").into());
                Some(self.ask(ProxyQuery::Service(ServiceKey { namespace, name })))
            }
            "explain.json" => Some(self.ask(ProxyQuery::Explain { from: text("from"), to: text("to") })),
            _ => None,
        }
    }

    fn ask(&self, query: ProxyQuery) -> BoxFuture<'static, Reply> {
        let queries = self.sources.proxy.clone();
        async move { answered(queries.ask(query).await) }.boxed()
    }

    fn overview(&self) -> Value {
        let NodeSummary { node, version, iptables, families } = &self.node;
        let now = Timestamp::now();
        let slowest: Vec<Value> = self.metrics.slowest().list(now).iter().map(slow).collect();
        json!({
            "node": node, "version": version, "iptables": iptables, "families": families, "now": now,
            "parts": parts(&self.readiness.states()), "happenings": self.sources.recent.list(), "slowest": slowest,
        })
    }

    /// The stream of change notices.
    fn listen(&self) -> BoxFuture<'static, Reply> {
        let listener = Listener::new(&self.listeners);
        let (news, states) = (self.sources.recent.subscribe(), self.readiness.subscribe());
        let reply = match listener {
            Some(listener) => {
                let start = HttpAnswer::new(StatusCode::OK, "text/event-stream", "retry: 3000\ndata: news\n\n");
                Reply::Stream(guarded(start), change_notices(listener, news, states))
            }
            None => Reply::Whole(guarded(HttpAnswer::text(StatusCode::SERVICE_UNAVAILABLE, "too many browsers are connected\n"))),
        };
        std::future::ready(reply).boxed()
    }
}

/// A browser that gets change notices. Counts as one of [`LISTENERS`] until it is dropped.
struct Listener(Arc<AtomicUsize>);

impl Listener {
    fn new(count: &Arc<AtomicUsize>) -> Option<Self> {
        let one_more = |count: usize| (count < LISTENERS).then_some(count + 1);
        count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok().map(|_| Self(Arc::clone(count)))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Sends a notice after each change, within the limits of the intervals.
fn change_notices(listener: Listener, news: watch::Receiver<u64>, states: watch::Receiver<PartStates>) -> BoxStream<'static, Bytes> {
    let next = |(listener, mut news, mut states): (Listener, watch::Receiver<u64>, watch::Receiver<PartStates>)| async move {
        sleep(MIN_INTERVAL).await;
        let changed = async {
            tokio::select! {
                changed = news.changed() => changed,
                changed = states.changed() => changed,
            }
        };
        match timeout(MAX_INTERVAL, changed).await {
            Ok(Err(_)) => None,
            Ok(Ok(())) | Err(_) => Some((Bytes::from_static(b"data: news\n\n"), (listener, news, states))),
        }
    };
    stream::unfold((listener, news, states), next).boxed()
}

/// Refuses requests of other hosts, requests that are not read-only, and requests of other sites' pages: their host names may resolve to
/// loopback (DNS rebinding), so that a browser on this node sends requests here.
fn refusal(request: &HttpRequest) -> Option<HttpAnswer> {
    let refuse = |status, why: &'static str| Some(HttpAnswer::text(status, why));
    if !request.peer.is_some_and(|peer| peer.to_canonical().is_loopback()) {
        return refuse(
            StatusCode::FORBIDDEN,
            "the status page only answers this node; from another host, use kubectl port-forward or ssh -L\n",
        );
    }
    if request.method != Method::GET && request.method != Method::HEAD {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "this page is read-only\n");
    }
    let host = request.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if !is_address(host) {
        return refuse(
            StatusCode::FORBIDDEN,
            "use an IP address or localhost: other host names are refused, because another site could point them here\n",
        );
    }
    None
}

/// True if a `Host` header is an IP or `localhost`, with or without a port.
fn is_address(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

fn query(request: &HttpRequest) -> HashMap<String, String> {
    form_urlencoded::parse(request.query.as_deref().unwrap_or_default().as_bytes()).into_owned().collect()
}

fn json(status: StatusCode, value: &Value) -> HttpAnswer {
    HttpAnswer::new(status, "application/json", value.to_string())
}

fn answered(answer: Result<Value, QueryError>) -> Reply {
    Reply::Whole(guarded(match answer {
        Ok(answer) => json(StatusCode::OK, &answer),
        Err(error) => json(StatusCode::SERVICE_UNAVAILABLE, &json!({"error": error.to_string()})),
    }))
}

fn guarded(answer: HttpAnswer) -> HttpAnswer {
    let answer = answer.nosniff().with(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer.with(REFERRER_POLICY, HeaderValue::from_static("no-referrer"))
}

fn parts(states: &PartStates) -> Vec<Value> {
    let why = |state: &PartState| match state {
        PartState::Ready => String::new(),
        PartState::Noted(why) | PartState::Starting(why) | PartState::Degraded(why) => why.to_string(),
    };
    states.iter().map(|(part, state)| json!({"name": part.as_str(), "state": state.as_str(), "why": why(state)})).collect()
}

fn slow(change: &AppliedChange) -> Value {
    let milliseconds = |time: Duration| (time.as_secs_f64() * 10_000.0).round() / 10.0;
    let waits: serde_json::Map<String, Value> =
        change.waits().map(|(cause, wait)| (cause.as_str().to_owned(), milliseconds(wait).into())).collect();
    let ServiceKey { namespace, name } = &change.service;
    json!({
        "namespace": &**namespace, "name": &**name, "family": change.family.as_str(), "at": change.at,
        "total": milliseconds(change.total()), "waits": waits,
    })
}

/// SHA-256 in base64 of the content of an element of the page.
fn digest(element: &str) -> String {
    let (start, end) = (format!("<{element}>"), format!("</{element}>"));
    let content = PAGE.split_once(&start).and_then(|(_, rest)| rest.split_once(&end)).map_or("", |(content, _)| content);
    STANDARD.encode(Sha256::digest(content))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Family;
    use crate::observe::readiness::Part;

    fn page(sources: &StatusSources) -> StatusPage {
        let readiness = Readiness::new([Part::Proxy(Family::V4)]);
        StatusPage::new(NodeSummary { node: "n".to_owned(), ..NodeSummary::default() }, sources.clone(), readiness, Arc::default())
    }

    fn request(path: &str) -> HttpRequest {
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query.to_owned())));
        let headers = [(HOST, HeaderValue::from_static("127.0.0.1:10249"))].into_iter().collect();
        HttpRequest { path: path.to_owned(), query, headers, peer: Some([127, 0, 0, 1].into()), ..HttpRequest::default() }
    }

    async fn answer(page: &StatusPage, request: &HttpRequest) -> HttpAnswer {
        match page.reply(request).expect("one of its paths").await {
            Reply::Whole(answer) | Reply::Stream(answer, _) => answer,
        }
    }

    #[tokio::test]
    async fn the_page_only_runs_its_own_script() {
        let site = page(&StatusSources::default());
        let html = answer(&site, &request("/")).await;
        let header = |name: &str| html.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        assert_eq!(
            (html.status, header("cache-control").as_str(), header("x-content-type-options").as_str()),
            (StatusCode::OK, "no-store", "nosniff")
        );
        assert!(header("content-security-policy").starts_with("default-src 'none'; style-src 'sha256-"), "{:?}", html.headers);
        // One script, one style, no code that sets markup, nothing from other servers.
        assert_eq!((PAGE.matches("<script").count(), PAGE.matches("<style").count()), (1, 1));
        for banned in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", " style=", "src=", "href=", "onclick=\""]
        {
            assert!(!PAGE.contains(banned), "{banned}");
        }
    }

    #[tokio::test]
    async fn other_hosts_and_sites_are_refused() {
        let site = page(&StatusSources::default());
        for path in ["/", "/status/overview.json", "/status/services.json", "/status/events"] {
            let asked = |change: &dyn Fn(&mut HttpRequest)| {
                let mut request = request(path);
                change(&mut request);
                request
            };
            for peer in [None, Some(IpAddr::from([192, 168, 0, 9])), Some("fe80::1".parse().expect("an IP"))] {
                assert_eq!(answer(&site, &asked(&|request| request.peer = peer)).await.status, StatusCode::FORBIDDEN, "{path} {peer:?}");
            }
            for host in ["evil.example:10249", "127.0.0.1.evil.example", "", "localhost.evil.example"] {
                let header = HeaderValue::try_from(host).expect("a header");
                let request = asked(&|request| drop(request.headers.insert(HOST, header.clone())));
                assert_eq!(answer(&site, &request).await.status, StatusCode::FORBIDDEN, "{path} {host}");
            }
            assert_eq!(answer(&site, &asked(&|request| request.method = Method::POST)).await.status, StatusCode::METHOD_NOT_ALLOWED);
            for peer in ["::1", "::ffff:127.0.0.1", "127.0.0.9"] {
                let request = asked(&|request| request.peer = peer.parse().ok());
                assert_ne!(answer(&site, &request).await.status, StatusCode::FORBIDDEN, "{peer}");
            }
            for host in ["localhost", "LOCALHOST:8080", "[::1]:10249", "127.0.0.1", "[fd00::1]"] {
                let header = HeaderValue::try_from(host).expect("a header");
                let request = asked(&|request| drop(request.headers.insert(HOST, header.clone())));
                assert_ne!(answer(&site, &request).await.status, StatusCode::FORBIDDEN, "{host}");
            }
        }
        assert!(site.reply(&request("/metrics")).is_none() && site.reply(&request("/status/nothing")).is_none());
    }

    #[tokio::test]
    async fn queries_reach_the_loop_and_its_answer_returns() {
        let sources = StatusSources::default();
        let site = page(&sources);
        let unanswered = answer(&site, &request("/status/services.json")).await;
        assert_eq!(unanswered.status, StatusCode::SERVICE_UNAVAILABLE);
        let mut queries = sources.proxy.open();
        for (path, wanted) in [
            ("services.json?search=A%2Fb&page=2", ProxyQuery::Services(PageQuery { search: "a/b".to_owned(), page: 2 })),
            ("services.json?page=x", ProxyQuery::Services(PageQuery::default())),
            ("service.json?namespace=a&name=b", ProxyQuery::Service(ServiceKey { namespace: "a".into(), name: "b".into() })),
            ("explain.json?from=node&to=svc/a/b", ProxyQuery::Explain { from: "node".to_owned(), to: "svc/a/b".to_owned() }),
        ] {
            let asking = async { answer(&site, &request(&format!("/status/{path}"))).await };
            let answering = async {
                queries.recv().await.expect("a query").answer(|query| {
                    assert_eq!(query, wanted, "{path}");
                    json!("<b>")
                });
            };
            let (reply, ()) = tokio::join!(asking, answering);
            assert_eq!((reply.status, &*reply.body), (StatusCode::OK, br#""<b>""#.as_slice()), "{path}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn change_notices_go_to_a_limited_number_of_browsers() {
        let sources = StatusSources::default();
        let site = page(&sources);
        let mut streams = Vec::new();
        for _ in 0..LISTENERS {
            let Reply::Stream(_, stream) = site.reply(&request("/status/events")).expect("a path").await else { panic!("a stream") };
            streams.push(stream);
        }
        assert_eq!(answer(&site, &request("/status/events")).await.status, StatusCode::SERVICE_UNAVAILABLE);
        let mut stream = streams.pop().expect("there are some");
        sources.recent.note("RulesWritten", false, "a");
        sources.recent.note("RulesWritten", false, "b");
        let start = tokio::time::Instant::now();
        assert_eq!(stream.next().await.as_deref(), Some(b"data: news\n\n".as_slice()));
        assert_eq!(start.elapsed(), MIN_INTERVAL);
        assert!(stream.next().await.is_some());
        assert_eq!(start.elapsed(), 2 * MIN_INTERVAL + MAX_INTERVAL, "no change meanwhile");
        drop(stream);
        assert_eq!(answer(&site, &request("/status/events")).await.status, StatusCode::OK, "one browser has gone");
        let overview: Value = serde_json::from_slice(&answer(&site, &request("/status/overview.json")).await.body).expect("JSON");
        assert_eq!((&overview["node"], &overview["happenings"][0]["text"]), (&json!("n"), &json!("b")));
        assert_eq!(overview["parts"][0], json!({"name": "proxy-ipv4", "state": "starting", "why": "it has not begun"}));
    }
}
