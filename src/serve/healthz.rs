//! The health server (`healthzBindAddress`) [kube-proxy 9.1]: `/healthz` for load balancers, `/livez` for the kubelet, which restarts the
//! container, and `/readyz`, which kube-proxy does not have.
//!
//! kube-proxy's `/healthz` answers 200 before its first sync. sepal's answers 503 until every family has synced once, because a load balancer
//! must not choose a node without rules. `/livez` does not wait for that: a restart does not help while the API server is down.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use hyper::StatusCode;
use jiff::Timestamp;
use jiff::tz::{Offset, TimeZone};
use serde::Serialize;

use crate::http_server::listen::ListenAddress;
use crate::http_server::{self, Handler, HttpAnswer, HttpRequest, StartError};
use crate::observe::health::{FamilyHealth, Health, SharedHealth};
use crate::observe::liveness::{Liveness, SERVICE_PROXY};
use crate::observe::readiness::{self, Readiness};

/// What Go prints for a time that was never set.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// The paths whose answers are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HealthPath {
    /// `/healthz`: rules are programmed and keep up, and the node is eligible for traffic.
    Healthz,
    /// `/livez`: rules keep up, and all parts of the daemon run.
    Livez,
}

/// Called with every answer, to count it (`proxy_healthz_total` and `proxy_livez_total`).
pub(crate) type OnAnswer = Arc<dyn Fn(HealthPath, StatusCode) + Send + Sync>;

/// The sources of the answers.
#[derive(Clone, Debug)]
pub(crate) struct HealthSources {
    /// Whether rules keep up.
    pub health: SharedHealth,
    /// Which parts are ready and which run.
    pub readiness: Readiness,
    /// Whether `/readyz` is served.
    pub readyz: bool,
}

/// Serves until the future is dropped. `hard_fail` is `bindAddressHardFail`.
///
/// # Errors
/// The server cannot listen on the address and `hard_fail` is set. Reads `failed to start proxy healthz on ADDR: ERR`.
pub(crate) async fn serve(
    address: SocketAddr,
    hard_fail: bool,
    tables: HealthSources,
    answered: OnAnswer,
) -> Result<Infallible, StartError> {
    let what = format!("failed to start proxy healthz on {address}");
    http_server::keep_serving(ListenAddress::tcp(address), hard_fail, what, handler(tables, answered)).await
}

fn handler(tables: HealthSources, answered: OnAnswer) -> Arc<dyn Handler> {
    let zone = TimeZone::system();
    let HealthSources { health, readiness, readyz: has_readyz } = tables;
    Arc::new(move |request: &HttpRequest| {
        let probe = match request.path.as_str() {
            "/healthz" => HealthPath::Healthz,
            "/livez" => HealthPath::Livez,
            "/readyz" if has_readyz => return readyz(&readiness, request.asks_for("verbose")),
            _ => return HttpAnswer::not_found(),
        };
        let answer = answer(&health.now(), failures(readiness.liveness(), probe), probe, &zone);
        answered(probe, answer.status);
        answer
    })
}

/// The failed parts that a path reports. Load balancers only depend on the service proxy.
fn failures(liveness: &Liveness, probe: HealthPath) -> Vec<String> {
    match probe {
        HealthPath::Healthz => liveness.problem(SERVICE_PROXY).into_iter().collect(),
        HealthPath::Livez => liveness.problems(),
    }
}

/// The answer for one path. Times are shown in this time zone.
fn answer(health: &Health, failed: Vec<String>, probe: HealthPath, zone: &TimeZone) -> HttpAnswer {
    let programmed = |programmed: bool| probe == HealthPath::Livez || programmed;
    let healthy = health.healthy() && programmed(health.programmed()) && failed.is_empty();
    let good = healthy && (probe == HealthPath::Livez || health.node_eligible);
    // For clients that only read lastUpdated: the time is old exactly when the answer is 503.
    let last_updated = if good { Some(health.time) } else { health.last_updated() };
    let family = |family: FamilyHealth| FamilyBody {
        last_updated: show(family.last_updated, zone),
        healthy: family.healthy && programmed(family.programmed),
    };
    let body = Body {
        last_updated: last_updated.map_or_else(|| NEVER.to_owned(), |time| show(time, zone)),
        current_time: show(health.time, zone),
        node_eligible: (probe == HealthPath::Healthz).then_some(health.node_eligible),
        healthy,
        status: (health.v4.is_some() || health.v6.is_some()).then(|| Status { v4: health.v4.map(family), v6: health.v6.map(family) }),
        failed,
    };
    let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    // Text and booleans always become JSON.
    HttpAnswer::new(status, "application/json", serde_json::to_vec(&body).unwrap_or_default()).nosniff()
}

/// The answer of `/readyz` in the format of Kubernetes' components: a line for each part if one is not ready, or if the request is verbose.
fn readyz(readiness: &Readiness, verbose: bool) -> HttpAnswer {
    let states = readiness.states();
    let problems = readiness.liveness().problems();
    let ready = readiness::all_ready(&states) && problems.is_empty();
    if ready && !verbose {
        return HttpAnswer::text(StatusCode::OK, "ok");
    }
    let (code, outcome) = if ready { (StatusCode::OK, "passed") } else { (StatusCode::SERVICE_UNAVAILABLE, "failed") };
    let mut text = readiness::show(&states);
    for problem in problems {
        // The lines of the parts may already have the problem.
        if !text.contains(&problem) {
            text = format!("{text}[-]daemon failed: {problem}\n");
        }
    }
    HttpAnswer::text(code, format!("{text}readyz check {outcome}\n"))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    /// The problems of parts that do not run. kube-proxy does not have this field.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    failed: Vec<String>,
}

#[derive(Serialize)]
struct Status {
    #[serde(rename = "IPv4", skip_serializing_if = "Option::is_none")]
    v4: Option<FamilyBody>,
    #[serde(rename = "IPv6", skip_serializing_if = "Option::is_none")]
    v6: Option<FamilyBody>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyBody {
    last_updated: String,
    healthy: bool,
}

/// Formats a time as RFC 3339 without trailing zeros, as Go does in JSON.
fn show(time: Timestamp, zone: &TimeZone) -> String {
    let offset = zone.to_offset(time);
    if offset == Offset::UTC { time.to_string() } else { time.display_with_offset(offset).to_string() }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use hyper::header::HeaderValue;

    use tokio::task::LocalSet;

    use super::*;
    use crate::cluster::Family;
    use crate::daemon::supervise::{Supervised, supervise};
    use crate::http_server::HttpServer;
    use crate::http_server::listen;
    use crate::http_server::tests::get;
    use crate::kubernetes::events::Events;
    use crate::observe::health::{ClockReading, HealthState};
    use crate::observe::readiness::Part;

    fn at(elapsed: u64, time: &str) -> ClockReading {
        ClockReading { elapsed: Duration::from_secs(elapsed), time: time.parse().expect("a time") }
    }

    fn answered(state: &HealthState, now: ClockReading, probe: HealthPath) -> (u16, String) {
        let answer = answer(&state.at(now), Vec::new(), probe, &TimeZone::UTC);
        assert_eq!(answer.headers.get("content-type").map(HeaderValue::as_bytes), Some(b"application/json".as_slice()));
        assert_eq!(answer.headers.get("x-content-type-options").map(HeaderValue::as_bytes), Some(b"nosniff".as_slice()));
        (answer.status.as_u16(), String::from_utf8(answer.body.to_vec()).expect("text"))
    }

    fn tables(health: &SharedHealth, readiness: &Readiness, readyz: bool) -> HealthSources {
        HealthSources { health: health.clone(), readiness: readiness.clone(), readyz }
    }

    #[test]
    fn before_the_first_sync_only_livez_answers_200() {
        let mut state = HealthState::new(Duration::from_secs(10));
        let now = at(1, "2026-03-01T10:00:00.5Z");
        assert_eq!(
            answered(&state, now, HealthPath::Healthz),
            (
                503,
                concat!(
                    r#"{"lastUpdated":"0001-01-01T00:00:00Z","currentTime":"2026-03-01T10:00:00.5Z","#,
                    r#""nodeEligible":false,"healthy":false}"#
                )
                .to_owned()
            )
        );
        assert_eq!(
            answered(&state, now, HealthPath::Livez),
            (200, r#"{"lastUpdated":"2026-03-01T10:00:00.5Z","currentTime":"2026-03-01T10:00:00.5Z","healthy":true}"#.to_owned())
        );
        state.node_seen(true);
        assert_eq!(answered(&state, now, HealthPath::Healthz).0, 503);
        // A loop that waits for its first lists has not programmed rules, however long it waits.
        state.updated(Family::V4, now);
        let later = at(100_000, "2026-03-02T10:00:00Z");
        let (code, body) = answered(&state, later, HealthPath::Healthz);
        assert_eq!(code, 503);
        let waits = r#""healthy":false,"status":{"IPv4":{"lastUpdated":"2026-03-01T10:00:00.5Z","healthy":false}}}"#;
        assert!(body.ends_with(waits), "{body}");
        let (code, body) = answered(&state, later, HealthPath::Livez);
        assert_eq!(code, 200);
        assert!(body.contains(r#""healthy":true,"status""#), "{body}");
        state.synced(Family::V4, later);
        assert_eq!(answered(&state, later, HealthPath::Healthz).0, 200);
    }

    #[test]
    fn the_body_equals_kube_proxys() {
        let mut state = HealthState::new(Duration::from_secs(10));
        state.node_seen(true);
        state.synced(Family::V4, at(0, "2026-03-01T09:00:00Z"));
        state.synced(Family::V6, at(1, "2026-03-01T09:00:01.000000012Z"));
        assert_eq!(
            answered(&state, at(2, "2026-03-01T10:00:00.120Z"), HealthPath::Healthz),
            (200, concat!(
                r#"{"lastUpdated":"2026-03-01T10:00:00.12Z","currentTime":"2026-03-01T10:00:00.12Z","nodeEligible":true,"healthy":true,"#,
                r#""status":{"IPv4":{"lastUpdated":"2026-03-01T09:00:00Z","healthy":true},"#,
                r#""IPv6":{"lastUpdated":"2026-03-01T09:00:01.000000012Z","healthy":true}}}"#
            ).to_owned())
        );
        state.queued(Family::V4, at(5, "2026-03-01T09:00:05Z"));
        let late = concat!(
            r#""healthy":false,"status":{"IPv4":{"lastUpdated":"2026-03-01T09:00:00Z","healthy":false},"#,
            r#""IPv6":{"lastUpdated":"2026-03-01T09:00:01.000000012Z","healthy":true}}}"#
        );
        let times = r#"{"lastUpdated":"2026-03-01T09:00:01.000000012Z","currentTime":"2026-03-01T10:00:01Z","#;
        let now = at(15, "2026-03-01T10:00:01Z");
        assert_eq!(answered(&state, now, HealthPath::Healthz), (503, format!(r#"{times}"nodeEligible":true,{late}"#)));
        assert_eq!(answered(&state, now, HealthPath::Livez), (503, format!("{times}{late}")));
    }

    #[test]
    fn a_single_family_is_alone_in_the_body() {
        let mut state = HealthState::new(Duration::from_secs(10));
        state.synced(Family::V6, at(0, "2026-03-01T09:00:00Z"));
        let (code, body) = answered(&state, at(1, "2026-03-01T10:00:00Z"), HealthPath::Healthz);
        assert_eq!(code, 503);
        assert!(body.starts_with(r#"{"lastUpdated":"2026-03-01T09:00:00Z","currentTime":"2026-03-01T10:00:00Z","nodeEligible":false"#));
        assert!(body.ends_with(r#""healthy":true,"status":{"IPv6":{"lastUpdated":"2026-03-01T09:00:00Z","healthy":true}}}"#), "{body}");
    }

    #[test]
    fn times_are_local_and_trimmed() {
        let time = "2026-03-01T10:00:00.123456780Z".parse().expect("a time");
        assert_eq!(show(time, &TimeZone::UTC), "2026-03-01T10:00:00.12345678Z");
        assert_eq!(show(time, &TimeZone::fixed(jiff::tz::offset(2))), "2026-03-01T12:00:00.12345678+02:00");
        assert_eq!(show(time, &TimeZone::fixed(-Offset::from_seconds(12_600).expect("small"))), "2026-03-01T06:30:00.12345678-03:30");
    }

    #[tokio::test]
    async fn answers_are_counted_and_other_paths_are_404() {
        let health = SharedHealth::new(Duration::from_secs(30));
        let counted = Arc::new(Mutex::new(Vec::new()));
        let count = Arc::clone(&counted);
        let answered: OnAnswer = Arc::new(move |probe, status| count.lock().expect("one thread").push((probe, status.as_u16())));
        let listener = listen::listen(ListenAddress::tcp(SocketAddr::from(([127, 0, 0, 1], 0)))).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let _serving = HttpServer::start(listener, handler(tables(&health, &Readiness::new([]), false), answered));

        assert!(get(address, "/healthz").await.expect("an answer").starts_with("HTTP/1.1 503 Service Unavailable\r\n"));
        health.node_seen(true);
        health.synced(Family::V4);
        for path in ["/healthz", "/healthz?verbose", "/livez"] {
            assert!(get(address, path).await.expect("an answer").starts_with("HTTP/1.1 200 OK\r\n"), "{path}");
        }
        for path in ["/", "/healthz/", "/livez/ping", "/readyz", "/metrics"] {
            assert!(get(address, path).await.expect("an answer").starts_with("HTTP/1.1 404 Not Found\r\n"), "{path}");
        }
        let posted =
            http_server::tests::say(address, "POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
        assert!(posted.expect("an answer").starts_with("HTTP/1.1 200 OK\r\n"), "any method is accepted");
        let expected = [
            (HealthPath::Healthz, 503),
            (HealthPath::Healthz, 200),
            (HealthPath::Healthz, 200),
            (HealthPath::Livez, 200),
            (HealthPath::Livez, 200),
        ];
        assert_eq!(*counted.lock().expect("one thread"), expected);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_panic_is_reported_until_the_part_works_again() {
        let (health, readiness) = (SharedHealth::new(Duration::from_secs(30)), Readiness::new([Part::Links]));
        health.node_seen(true);
        health.synced(Family::V4);
        readiness.ready(Part::Links);
        let listener = listen::listen(ListenAddress::tcp(SocketAddr::from(([127, 0, 0, 1], 0)))).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let _serving = HttpServer::start(listener, handler(tables(&health, &readiness, true), Arc::new(|_, _| {})));
        let code = async |path: &str| get(address, path).await.expect("an answer")[9..12].to_owned();
        let supervised = |name| Supervised { name, parts: Vec::new(), readiness: readiness.clone(), events: Events::none() };
        let healthy = async || [code("/livez").await, code("/readyz").await, code("/healthz").await];
        assert_eq!(healthy().await, ["200", "200", "200"]);
        for (name, healthz) in [("event sender", "200"), (SERVICE_PROXY, "503")] {
            // It panics, and once more when it is started again.
            let panics = supervise(supervised(name), || async { panic!("index 7 of 3") });
            let looking = async {
                while readiness.liveness().problems().is_empty() {
                    tokio::task::yield_now().await;
                }
                assert_eq!(healthy().await, ["503", "503", healthz], "{name}");
                let (livez, readyz) = (get(address, "/livez").await.expect("an answer"), get(address, "/readyz").await.expect("an answer"));
                let why = format!("{name} failed: index 7 of 3 (this is a defect of sepal, please report it), restarted in ");
                assert!(livez.contains(r#""healthy":false,"status":{"IPv4":{"#) && livez.contains(&format!(r#""failed":["{why}"#)));
                assert!(readyz.contains(&format!("\n[-]daemon failed: {why}")), "{readyz}");
            };
            LocalSet::new()
                .run_until(async {
                    tokio::select! {
                        never = panics => match never {},
                        () = looking => {}
                    }
                })
                .await;
            readiness.liveness().works(name);
            assert_eq!(healthy().await, ["200", "200", "200"], "{name}");
        }
    }

    #[tokio::test]
    async fn readyz_lists_the_parts() {
        let readiness = Readiness::new([Part::Peers, Part::Proxy(Family::V4)]);
        let answered: OnAnswer = Arc::new(|probe, _| panic!("{probe:?} was not asked for"));
        let listener = listen::listen(ListenAddress::tcp(SocketAddr::from(([127, 0, 0, 1], 0)))).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let _serving =
            HttpServer::start(listener, handler(tables(&SharedHealth::new(Duration::from_secs(30)), &readiness, true), answered));
        let answers = async |path: &str, status: &str, body: &str| {
            let answer = get(address, path).await.expect("an answer");
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")) && answer.ends_with(&format!("\r\n\r\n{body}")), "{answer}");
            assert!(answer.contains("\r\nContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\n"), "{answer}");
        };
        readiness.not_ready(Part::Peers, "3 of 5 have their entries");
        readiness.ready(Part::Proxy(Family::V4));
        let missing = "[-]peers not yet: 3 of 5 have their entries\n[+]proxy-ipv4 ok\nreadyz check failed\n";
        for path in ["/readyz", "/readyz?verbose"] {
            answers(path, "503 Service Unavailable", missing).await;
        }
        readiness.ready(Part::Peers);
        answers("/readyz", "200 OK", "ok").await;
        answers("/readyz?verbose", "200 OK", "[+]peers ok\n[+]proxy-ipv4 ok\nreadyz check passed\n").await;
        readiness.not_ready(Part::Proxy(Family::V4), "iptables is gone");
        answers("/readyz", "503 Service Unavailable", "[+]peers ok\n[-]proxy-ipv4 failed: iptables is gone\nreadyz check failed\n").await;
        answers("/readyz/peers", "404 Not Found", "404 page not found\n").await;
    }

    #[tokio::test]
    async fn an_address_in_use_is_named() {
        let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = taken.local_addr().expect("an address");
        let tables = tables(&SharedHealth::new(Duration::from_secs(30)), &Readiness::new([]), false);
        let error = serve(address, true, tables, Arc::new(|_, _| {})).await.expect_err("the address is in use");
        let expected = format!("failed to start proxy healthz on {address}: listen tcp {address}: bind: Address already in use");
        assert!(error.to_string().starts_with(&expected), "{error}");
    }
}
