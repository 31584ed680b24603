//! `/flagz` and `/statusz` [kube-proxy 9.3]: text for people, and the structured forms of `config.k8s.io` for programs
//! (<https://kubernetes.io/docs/reference/instrumentation/zpages/>).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{ACCEPT, HeaderMap, HeaderValue, WARNING};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::http_server::HttpAnswer;

const COMPONENT: &str = "kube-proxy";
const GROUP: &str = "config.k8s.io";
const NOT_FOR_PARSING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.";
/// The CBOR self-description tag (RFC 8949 section 3.4.6), with which Kubernetes starts every object.
const SELF_DESCRIBED_CBOR: [u8; 3] = [0xd9, 0xd9, 0xf7];

/// The program's versions and start time, for `/statusz`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BuildInfo {
    /// The version in `--version`, without the `v`.
    pub binary_version: String,
    /// The Kubernetes version whose behaviour sepal has, such as `1.36`.
    pub emulation_version: String,
    /// When the process started.
    pub started: Timestamp,
}

/// The value of the Go version, where a Go program has `go1.26.0`.
const COMPILER: &str = concat!("none (", env!("SEPAL_RUSTC"), ")");

/// The answer of `/flagz`: all flags with their values.
#[must_use]
pub(crate) fn flagz(headers: &HeaderMap, flags: &BTreeMap<String, String>) -> HttpAnswer {
    let page = Page { kind: "Flagz", headers };
    page.answer(
        || {
            let mut text = format!("\n{COMPONENT} flagz\n{NOT_FOR_PARSING}\n\n");
            for (name, value) in flags {
                // Writing to a String does not fail.
                let _ = writeln!(text, "{name}={value}");
            }
            text
        },
        || Flagz { flags },
    )
}

/// The answer of `/statusz` of a process that has been `up` for this time. Times are shown in this time zone.
#[must_use]
pub(crate) fn statusz(headers: &HeaderMap, build: &BuildInfo, up: Duration, zone: &TimeZone, paths: &[&str]) -> HttpAnswer {
    let page = Page { kind: "Statusz", headers };
    page.answer(
        || {
            let (hours, minutes, seconds) = (up.as_secs() / 3600, up.as_secs() / 60 % 60, up.as_secs() % 60);
            format!(
                "\n{COMPONENT} statusz\n{NOT_FOR_PARSING}\n\nStarted: {}\nUp: {hours} hr {minutes:02} min {seconds:02} sec\n\
                 Go version: {COMPILER}\nBinary version: {}\nEmulation version: {}\nPaths: {}\n",
                build.started.to_zoned(zone.clone()).strftime("%a %b %e %H:%M:%S %Z %Y"),
                build.binary_version,
                build.emulation_version,
                paths.join(" "),
            )
        },
        || Statusz {
            start_time: format!("{:.0}", build.started),
            uptime_seconds: up.as_secs(),
            go_version: COMPILER,
            binary_version: &build.binary_version,
            emulation_version: &build.emulation_version,
            paths,
        },
    )
}

#[derive(Serialize)]
struct Object<T> {
    kind: &'static str,
    #[serde(rename = "apiVersion")]
    api_version: String,
    metadata: Metadata,
    #[serde(flatten)]
    content: T,
}

#[derive(Serialize)]
struct Metadata {
    name: &'static str,
}

#[derive(Serialize)]
struct Flagz<'a> {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    flags: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Statusz<'a> {
    start_time: String,
    uptime_seconds: u64,
    go_version: &'static str,
    binary_version: &'a str,
    emulation_version: &'a str,
    paths: &'a [&'a str],
}

/// A page that answers one request.
struct Page<'a> {
    kind: &'static str,
    headers: &'a HeaderMap,
}

/// A form of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text,
    Structured(Encoding, Version),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Json,
    Yaml,
    Cbor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1Alpha1,
    V1Beta1,
}

impl Version {
    const fn as_str(self) -> &'static str {
        match self {
            Self::V1Alpha1 => "v1alpha1",
            Self::V1Beta1 => "v1beta1",
        }
    }
}

impl Page<'_> {
    fn answer<T: Serialize>(&self, text: impl FnOnce() -> String, content: impl FnOnce() -> T) -> HttpAnswer {
        let kind = self.kind;
        let accepted: Vec<&str> = self.headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
        match negotiate(&accepted.join(","), kind) {
            Some(Form::Text) => HttpAnswer::text(StatusCode::OK, text()),
            Some(Form::Structured(encoding, version)) => {
                let api_version = format!("{GROUP}/{}", version.as_str());
                let object = Object { kind, api_version, metadata: Metadata { name: COMPONENT }, content: content() };
                let answer = encode(encoding, &object);
                if version == Version::V1Beta1 { answer } else { answer.with(WARNING, outdated(kind)) }
            }
            None => HttpAnswer::text(
                StatusCode::NOT_ACCEPTABLE,
                format!(
                    "only the following media types are accepted: text/plain, and application/json, application/yaml or application/cbor \
                     with ;v=v1beta1;g={GROUP};as={kind}\n"
                ),
            ),
        }
    }
}

/// The warning of the API server about deprecated API versions.
fn outdated(kind: &str) -> HeaderValue {
    let text = format!("299 - \"{GROUP}/v1alpha1 {kind} is deprecated in v1.36+; use {GROUP}/v1beta1 {kind}\"");
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("299 - \"deprecated\""))
}

fn encode<T: Serialize>(encoding: Encoding, object: &Object<T>) -> HttpAnswer {
    let (content_type, encoded) = match encoding {
        Encoding::Json => {
            let json = serde_json::to_vec(object).map(|mut json| {
                json.push(b'\n');
                json
            });
            ("application/json", json.map_err(|error| error.to_string()))
        }
        Encoding::Yaml => ("application/yaml", serde_saphyr::to_string(object).map(String::into_bytes).map_err(|error| error.to_string())),
        Encoding::Cbor => {
            let mut cbor = SELF_DESCRIBED_CBOR.to_vec();
            ("application/cbor", ciborium::into_writer(object, &mut cbor).map(|()| cbor).map_err(|error| error.to_string()))
        }
    };
    match encoded {
        Ok(body) => HttpAnswer::new(StatusCode::OK, content_type, body).nosniff(),
        Err(error) => HttpAnswer::text(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write {}: {error}\n", object.kind)),
    }
}

/// The form that an Accept header prefers; `None` if none of its media types is available. An empty header gets text.
fn negotiate(accept: &str, kind: &str) -> Option<Form> {
    let mut best: Option<(f32, Form)> = None;
    let mut named = false;
    for clause in accept.split(',').map(str::trim).filter(|clause| !clause.is_empty()) {
        named = true;
        let (quality, form) = clause_form(clause, kind);
        if let Some(form) = form
            && quality > best.map_or(0.0, |(quality, _)| quality)
        {
            best = Some((quality, form));
        }
    }
    if named { best.map(|(_, form)| form) } else { Some(Form::Text) }
}

/// The quality and the form of one clause of an Accept header.
fn clause_form(clause: &str, kind: &str) -> (f32, Option<Form>) {
    let mut parts = clause.split(';').map(str::trim);
    let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
    let parameters: Vec<(&str, &str)> =
        parts.filter_map(|part| part.split_once('=')).map(|(key, value)| (key.trim(), value.trim())).collect();
    let parameter = |wanted: &str| parameters.iter().find(|(key, _)| *key == wanted).map(|(_, value)| value.trim_matches('"'));
    let quality = parameter("q").and_then(|quality| quality.parse().ok()).unwrap_or(1.0);
    let structured = |encoding| {
        let version = match parameter("v") {
            Some("v1beta1") => Version::V1Beta1,
            Some("v1alpha1") => Version::V1Alpha1,
            _ => return None,
        };
        (parameter("g") == Some(GROUP) && parameter("as") == Some(kind)).then_some(Form::Structured(encoding, version))
    };
    let form = match media_type.as_str() {
        "text/plain" | "text/*" | "*/*" => Some(Form::Text),
        "application/json" => structured(Encoding::Json),
        "application/yaml" => structured(Encoding::Yaml),
        "application/cbor" => structured(Encoding::Cbor),
        _ => None,
    };
    (quality, form)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BETA: &str = ";v=v1beta1;g=config.k8s.io;as=Statusz";

    fn accepting(accept: &str) -> HeaderMap {
        HeaderMap::from_iter([(ACCEPT, HeaderValue::from_str(accept).expect("a header"))])
    }

    fn build() -> BuildInfo {
        BuildInfo {
            binary_version: "1.36.2".to_owned(),
            emulation_version: "1.36".to_owned(),
            started: "2026-10-06T21:03:43.7Z".parse().expect("a time"),
        }
    }

    fn statusz_for(headers: &HeaderMap) -> HttpAnswer {
        statusz(headers, &build(), Duration::from_millis(3_723_999), &TimeZone::UTC, &["/healthz", "/metrics"])
    }

    fn text(answer: &HttpAnswer) -> &str {
        std::str::from_utf8(&answer.body).expect("text")
    }

    fn content_type(answer: &HttpAnswer) -> &str {
        answer.headers.get("content-type").and_then(|value| value.to_str().ok()).expect("a content type")
    }

    #[test]
    fn the_default_form_is_text() {
        let compiler = env!("SEPAL_RUSTC");
        assert!(compiler.starts_with("rustc 1."), "{compiler}");
        let expected = format!(
            "\nkube-proxy statusz\nWarning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is \
             for debugging purposes only.\n\nStarted: Tue Oct  6 21:03:43 UTC 2026\nUp: 1 hr 02 min 03 sec\nGo version: none ({compiler})\n\
             Binary version: 1.36.2\nEmulation version: 1.36\nPaths: /healthz /metrics\n"
        );
        for headers in [HeaderMap::new(), accepting("text/plain"), accepting("*/*"), accepting("")] {
            let answer = statusz_for(&headers);
            assert_eq!((answer.status.as_u16(), content_type(&answer)), (200, "text/plain; charset=utf-8"));
            assert_eq!(text(&answer), expected);
        }
        let flags = BTreeMap::from([("v".to_owned(), "2".to_owned()), ("bind-address".to_owned(), "0.0.0.0".to_owned())]);
        assert_eq!(
            text(&flagz(&HeaderMap::new(), &flags)),
            "\nkube-proxy flagz\nWarning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is \
             for debugging purposes only.\n\nbind-address=0.0.0.0\nv=2\n"
        );
    }

    #[test]
    fn structured_forms_are_objects() {
        let compiler = env!("SEPAL_RUSTC");
        let answer = statusz_for(&accepting(&format!("application/json{BETA}")));
        assert_eq!((answer.status.as_u16(), content_type(&answer)), (200, "application/json"));
        assert!(!answer.headers.contains_key(WARNING));
        let expected = format!(
            "{{\"kind\":\"Statusz\",\"apiVersion\":\"config.k8s.io/v1beta1\",\"metadata\":{{\"name\":\"kube-proxy\"}},\
             \"startTime\":\"2026-10-06T21:03:43Z\",\"uptimeSeconds\":3723,\"goVersion\":\"none ({compiler})\",\"binaryVersion\":\"1.36.2\",\
             \"emulationVersion\":\"1.36\",\"paths\":[\"/healthz\",\"/metrics\"]}}\n"
        );
        assert_eq!(text(&answer), expected);
        let object: serde_json::Value = serde_json::from_str(&expected).expect("JSON");

        let answer = statusz_for(&accepting(&format!("application/yaml{BETA}")));
        assert_eq!(content_type(&answer), "application/yaml");
        assert_eq!(serde_saphyr::from_str::<serde_json::Value>(text(&answer)).expect("YAML"), object);
        assert!(
            text(&answer).starts_with("kind: Statusz\napiVersion: config.k8s.io/v1beta1\nmetadata:\n  name: kube-proxy\n"),
            "{}",
            text(&answer)
        );

        let answer = statusz_for(&accepting(&format!("application/cbor{BETA}")));
        assert_eq!(content_type(&answer), "application/cbor");
        let cbor = answer.body.strip_prefix(&SELF_DESCRIBED_CBOR[..]).expect("the tag");
        assert_eq!(ciborium::from_reader::<serde_json::Value, _>(cbor).expect("CBOR"), object);
    }

    #[test]
    fn flagz_has_structured_forms() {
        let flags = BTreeMap::from([("v".to_owned(), "2".to_owned())]);
        let answer = flagz(&accepting("application/json;v=v1beta1;g=config.k8s.io;as=Flagz"), &flags);
        assert_eq!(
            text(&answer),
            "{\"kind\":\"Flagz\",\"apiVersion\":\"config.k8s.io/v1beta1\",\"metadata\":{\"name\":\"kube-proxy\"},\"flags\":{\"v\":\"2\"}}\n"
        );
        let answer = flagz(&accepting("application/json;v=v1alpha1;g=config.k8s.io;as=Flagz"), &flags);
        assert_eq!(answer.status.as_u16(), 200);
        assert!(text(&answer).contains("\"apiVersion\":\"config.k8s.io/v1alpha1\""));
        assert_eq!(
            answer.headers.get(WARNING).and_then(|value| value.to_str().ok()),
            Some("299 - \"config.k8s.io/v1alpha1 Flagz is deprecated in v1.36+; use config.k8s.io/v1beta1 Flagz\"")
        );
    }

    #[test]
    fn unavailable_forms_are_not_acceptable() {
        for accept in [
            "application/json",
            "application/json;v=v1;g=config.k8s.io;as=Statusz",
            "application/json;v=v1beta1;g=config.k8s.io;as=Flagz",
            "application/json;v=v1beta1;g=apps;as=Statusz",
            "application/json;v=v1beta1;g=config.k8s.io",
            "text/html",
            "text/plain;q=0",
        ] {
            let answer = statusz_for(&accepting(accept));
            assert_eq!(answer.status.as_u16(), 406, "{accept}");
            assert!(text(&answer).contains(BETA), "{accept}");
        }
    }

    #[test]
    fn the_preferred_form_is_chosen() {
        let json = Some(Form::Structured(Encoding::Json, Version::V1Beta1));
        assert_eq!(negotiate(&format!("application/json{BETA}, text/plain"), "Statusz"), json);
        assert_eq!(negotiate(&format!("text/plain;q=0.5,Application/JSON{BETA};q=0.9"), "Statusz"), json);
        assert_eq!(negotiate(&format!("application/json{BETA};q=0.1,*/*;q=0.8"), "Statusz"), Some(Form::Text));
        assert_eq!(negotiate("application/json,text/html,*/*;q=0.1", "Statusz"), Some(Form::Text));
        let cbor = Some(Form::Structured(Encoding::Cbor, Version::V1Alpha1));
        assert_eq!(negotiate("application/cbor; v=v1alpha1; g=config.k8s.io; as=Statusz", "Statusz"), cbor);
        let mut two = accepting("application/json");
        two.append(ACCEPT, HeaderValue::from_static("text/plain"));
        assert_eq!(statusz_for(&two).status.as_u16(), 200);
    }
}
