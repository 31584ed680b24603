//! The health server (`healthzBindAddress`, spec section 9.1): `/healthz` for load balancers, `/livez` for whoever restarts sepal, and
//! `/readyz`, which kube-proxy has not, for whoever waits for this node's network.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use hyper::StatusCode;
use jiff::Timestamp;
use jiff::tz::{Offset, TimeZone};
use serde::Serialize;

use super::health::{FamilyHealth, Health, SharedHealth};
use super::http::{self, Answer, Handler, Request, StartError};
use super::listen::Place;
use super::readiness::{self, Readiness};

/// What Go prints for a time that was never set.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// The server's paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// `/healthz`: rules keep up, and the node wants traffic.
    Healthz,
    /// `/livez`: rules keep up.
    Livez,
}

/// Told of every answer, to count it (`proxy_healthz_total` and `proxy_livez_total`).
pub type Answered = Arc<dyn Fn(Probe, StatusCode) + Send + Sync>;

/// Answers for as long as it is kept. `hard_fail` is `bindAddressHardFail`. Without a table of parts there is no `/readyz`.
///
/// # Errors
/// The address cannot be had, and that counts as failure. Reads `failed to start proxy healthz on ADDR: ERR`.
pub async fn serve(
    address: SocketAddr,
    hard_fail: bool,
    health: SharedHealth,
    readiness: Option<Readiness>,
    answered: Answered,
) -> Result<Infallible, StartError> {
    let what = format!("failed to start proxy healthz on {address}");
    http::keep_serving(Place::tcp(address), hard_fail, what, handler(health, readiness, answered)).await
}

fn handler(health: SharedHealth, readiness: Option<Readiness>, answered: Answered) -> Arc<dyn Handler> {
    let zone = TimeZone::system();
    Arc::new(move |request: &Request| {
        let probe = match (request.path.as_str(), &readiness) {
            ("/healthz", _) => Probe::Healthz,
            ("/livez", _) => Probe::Livez,
            ("/readyz", Some(readiness)) => return readyz(readiness, request.asks_for("verbose")),
            _ => return Answer::not_found(),
        };
        let answer = answer(&health.now(), probe, &zone);
        answered(probe, answer.status);
        answer
    })
}

/// The answer to one probe; times are shown in this zone.
fn answer(health: &Health, probe: Probe, zone: &TimeZone) -> Answer {
    let good = health.healthy() && (probe == Probe::Livez || health.node_eligible);
    // Whoever looks at lastUpdated alone sees an old time exactly when all is not well.
    let last_updated = if good { Some(health.time) } else { health.last_updated() };
    let family = |family: FamilyHealth| FamilyBody { last_updated: show(family.last_updated, zone), healthy: family.healthy };
    let body = Body {
        last_updated: last_updated.map_or_else(|| NEVER.to_owned(), |time| show(time, zone)),
        current_time: show(health.time, zone),
        node_eligible: (probe == Probe::Healthz).then_some(health.node_eligible),
        healthy: health.healthy(),
        status: (health.v4.is_some() || health.v6.is_some()).then(|| Status { v4: health.v4.map(family), v6: health.v6.map(family) }),
    };
    let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    // Text and booleans have no way not to be JSON.
    Answer::new(status, "application/json", serde_json::to_vec(&body).unwrap_or_default()).nosniff()
}

/// Whether all parts do their work, as Kubernetes' own components say it: part by part if some do not, or if asked for.
fn readyz(readiness: &Readiness, verbose: bool) -> Answer {
    let states = readiness.states();
    let ready = readiness::all_ready(&states);
    if ready && !verbose {
        return Answer::text(StatusCode::OK, "ok");
    }
    let (code, outcome) = if ready { (StatusCode::OK, "passed") } else { (StatusCode::SERVICE_UNAVAILABLE, "failed") };
    Answer::text(code, format!("{}readyz check {outcome}\n", readiness::show(&states)))
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

/// RFC 3339 with as many digits after the second as there are, as Go writes times into JSON.
fn show(time: Timestamp, zone: &TimeZone) -> String {
    let offset = zone.to_offset(time);
    if offset == Offset::UTC { time.to_string() } else { time.display_with_offset(offset).to_string() }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use hyper::header::HeaderValue;

    use super::*;
    use crate::agent::health::{Moment, State};
    use crate::agent::http::Serving;
    use crate::agent::http::tests::get;
    use crate::agent::listen;
    use crate::agent::readiness::Part;
    use crate::cluster::Family;

    fn at(elapsed: u64, time: &str) -> Moment {
        Moment { elapsed: Duration::from_secs(elapsed), time: time.parse().expect("a time") }
    }

    fn answered(state: &State, now: Moment, probe: Probe) -> (u16, String) {
        let answer = answer(&state.at(now), probe, &TimeZone::UTC);
        assert_eq!(answer.headers.get("content-type").map(HeaderValue::as_bytes), Some(b"application/json".as_slice()));
        assert_eq!(answer.headers.get("x-content-type-options").map(HeaderValue::as_bytes), Some(b"nosniff".as_slice()));
        (answer.status.as_u16(), String::from_utf8(answer.body.to_vec()).expect("text"))
    }

    #[test]
    fn before_any_loop_starts_only_the_node_is_missing() {
        let mut state = State::new(Duration::from_secs(10));
        let now = at(1, "2026-03-01T10:00:00.5Z");
        assert_eq!(
            answered(&state, now, Probe::Healthz),
            (
                503,
                concat!(
                    r#"{"lastUpdated":"0001-01-01T00:00:00Z","currentTime":"2026-03-01T10:00:00.5Z","#,
                    r#""nodeEligible":false,"healthy":true}"#
                )
                .to_owned()
            )
        );
        assert_eq!(
            answered(&state, now, Probe::Livez),
            (200, r#"{"lastUpdated":"2026-03-01T10:00:00.5Z","currentTime":"2026-03-01T10:00:00.5Z","healthy":true}"#.to_owned())
        );
        state.node_seen(true);
        assert_eq!(answered(&state, now, Probe::Healthz).0, 200);
    }

    #[test]
    fn the_body_is_kube_proxys_to_the_byte() {
        let mut state = State::new(Duration::from_secs(10));
        state.node_seen(true);
        state.updated(Family::V4, at(0, "2026-03-01T09:00:00Z"));
        state.updated(Family::V6, at(1, "2026-03-01T09:00:01.000000012Z"));
        assert_eq!(
            answered(&state, at(2, "2026-03-01T10:00:00.120Z"), Probe::Healthz),
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
        assert_eq!(answered(&state, now, Probe::Healthz), (503, format!(r#"{times}"nodeEligible":true,{late}"#)));
        assert_eq!(answered(&state, now, Probe::Livez), (503, format!("{times}{late}")));
    }

    #[test]
    fn a_family_alone_is_alone_in_the_body() {
        let mut state = State::new(Duration::from_secs(10));
        state.updated(Family::V6, at(0, "2026-03-01T09:00:00Z"));
        let (code, body) = answered(&state, at(1, "2026-03-01T10:00:00Z"), Probe::Healthz);
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
    async fn over_the_wire_answers_are_counted_and_other_paths_are_not_there() {
        let health = SharedHealth::new(Duration::from_secs(30));
        let counted = Arc::new(Mutex::new(Vec::new()));
        let count = Arc::clone(&counted);
        let answered: Answered = Arc::new(move |probe, status| count.lock().expect("one thread").push((probe, status.as_u16())));
        let listener = listen::listen(Place::tcp(SocketAddr::from(([127, 0, 0, 1], 0)))).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let _serving = Serving::start(listener, handler(health.clone(), None, answered));

        assert!(get(address, "/healthz").await.expect("an answer").starts_with("HTTP/1.1 503 Service Unavailable\r\n"));
        health.node_seen(true);
        for path in ["/healthz", "/healthz?verbose", "/livez"] {
            assert!(get(address, path).await.expect("an answer").starts_with("HTTP/1.1 200 OK\r\n"), "{path}");
        }
        for path in ["/", "/healthz/", "/livez/ping", "/readyz", "/metrics"] {
            assert!(get(address, path).await.expect("an answer").starts_with("HTTP/1.1 404 Not Found\r\n"), "{path}");
        }
        let posted = http::tests::say(address, "POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
        assert!(posted.expect("an answer").starts_with("HTTP/1.1 200 OK\r\n"), "any method will do");
        let expected = [(Probe::Healthz, 503), (Probe::Healthz, 200), (Probe::Healthz, 200), (Probe::Livez, 200), (Probe::Livez, 200)];
        assert_eq!(*counted.lock().expect("one thread"), expected);
    }

    #[tokio::test]
    async fn readyz_says_what_is_missing() {
        let readiness = Readiness::new([Part::Peers, Part::Proxy(Family::V4)]);
        let answered: Answered = Arc::new(|probe, _| panic!("{probe:?} was not asked for"));
        let listener = listen::listen(Place::tcp(SocketAddr::from(([127, 0, 0, 1], 0)))).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let _serving = Serving::start(listener, handler(SharedHealth::new(Duration::from_secs(30)), Some(readiness.clone()), answered));
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
    async fn an_address_that_cannot_be_had_is_named() {
        let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = taken.local_addr().expect("an address");
        let error =
            serve(address, true, SharedHealth::new(Duration::from_secs(30)), None, Arc::new(|_, _| {})).await.expect_err("it is taken");
        let expected = format!("failed to start proxy healthz on {address}: listen tcp {address}: bind: Address already in use");
        assert!(error.to_string().starts_with(&expected), "{error}");
    }
}
