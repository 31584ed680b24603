//! Writes the log to standard error; standard output is for rules. A line is text, or a JSON object like those of Kubernetes components.

use std::fmt::{self, Debug, Write};
use std::sync::OnceLock;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use crate::config::settings::LogFormat;
use crate::error_text::panic_text;
use crate::proxy::sync::sync_log::V2;

/// Environment variables with a filter in the syntax of `tracing-subscriber` (`debug`, `sepal::iptables=trace,hyper=debug`). The first one
/// that is set counts.
const OWN_VARIABLE: &str = "SEPAL_LOG";
const RUST_VARIABLE: &str = "RUST_LOG";

/// The filter in force. It can be replaced while the program runs.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts the log.
pub(crate) fn init(verbosity: u32, format: LogFormat) {
    let (filter, handle) = reload::Layer::new(filter(verbosity));
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(ansi).with_target(false);
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.event_format(JsonLines).boxed(),
    };
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!("panic at {place}: {}", panic_text(panic.payload()));
    }));
    if tracing_subscriber::registry().with(filter).with(lines).try_init().is_ok() {
        let _ = FILTER.set(handle);
    }
}

/// Changes the verbosity of the log.
pub(crate) fn set_verbosity(verbosity: u32) {
    if let Some(handle) = FILTER.get()
        && let Err(error) = handle.reload(filter(verbosity))
    {
        tracing::warn!("cannot change the verbosity of the log: {error}");
    }
}

/// The filter of a verbosity and of the environment.
fn filter(verbosity: u32) -> EnvFilter {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let environment = match (variable(OWN_VARIABLE), variable(RUST_VARIABLE)) {
        (Some(directives), _) => EnvFilterText::Own(directives),
        (None, Some(directives)) => EnvFilterText::All(directives),
        (None, None) => EnvFilterText::None,
    };
    EnvFilter::builder().parse_lossy(directives(verbosity, &environment))
}

/// The filter in the environment.
enum EnvFilterText {
    /// `SEPAL_LOG`: a level without a target applies to this program only.
    Own(String),
    /// `RUST_LOG`: a level without a target applies also to libraries.
    All(String),
    None,
}

/// The directives for a verbosity. The levels are those of klog: from 0 on events, from 2 on each sync, from 4 on each decision, from 6 on
/// everything. Libraries log only if the environment says so: this program logs their errors itself.
fn directives(verbosity: u32, environment: &EnvFilterText) -> String {
    let own = match verbosity {
        0..2 => "sepal=info".to_owned(),
        2..4 => format!("sepal=info,{V2}=debug"),
        4..6 => "sepal=debug".to_owned(),
        _ => "sepal=trace".to_owned(),
    };
    let (text, all) = match environment {
        EnvFilterText::Own(text) => (text.as_str(), false),
        EnvFilterText::All(text) => (text.as_str(), true),
        EnvFilterText::None => ("", false),
    };
    let (levels, targets): (Vec<&str>, Vec<&str>) =
        text.split(',').map(str::trim).filter(|item| !item.is_empty()).partition(|item| item.parse::<LevelFilter>().is_ok());
    let base = match levels.last() {
        Some(level) if all => (*level).to_owned(),
        Some(level) => format!("off,sepal={level}"),
        None => format!("off,{own}"),
    };
    // A later directive overrides an earlier one for the same target.
    std::iter::once(base.as_str()).chain(targets).collect::<Vec<_>>().join(",")
}

/// Formats an event like Kubernetes components: `{"ts":1764111155000.123,"level":"info","v":0,"msg":"..."}`. `ts` is in milliseconds since
/// 1970. Errors have no `v`.
struct JsonLines;

impl<S: Subscriber + for<'a> LookupSpan<'a>, N: for<'a> FormatFields<'a> + 'static> FormatEvent<S, N> for JsonLines {
    fn format_event(&self, _context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = *event.metadata().level();
        let mut fields = EventFields(Map::new());
        fields.0.insert("ts".into(), (jiff::Timestamp::now().as_microsecond() as f64 / 1000.0).into());
        fields.0.insert("level".into(), level.as_str().to_lowercase().into());
        let verbosity = match level {
            Level::ERROR => None,
            Level::WARN | Level::INFO => Some(0),
            Level::DEBUG if event.metadata().target() == V2 => Some(2),
            Level::DEBUG => Some(4),
            Level::TRACE => Some(6),
        };
        if let Some(verbosity) = verbosity {
            fields.0.insert("v".into(), verbosity.into());
        }
        event.record(&mut fields);
        writeln!(writer, "{}", Value::Object(fields.0))
    }
}

/// The fields of an event. Its message is in `msg`.
struct EventFields(Map<String, Value>);

impl Visit for EventFields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = write!(text, "{value:?}");
        self.put(field, text);
    }
}

impl EventFields {
    fn put(&mut self, field: &Field, text: String) {
        let name = if field.name() == "message" { "msg" } else { field.name() };
        self.0.insert(name.into(), text.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::captured_log::CapturedLog;

    #[test]
    fn json_lines_are_objects_with_kubernetes_keys() {
        let log = CapturedLog::default();
        let layer = tracing_subscriber::fmt::layer().with_writer(log.clone()).event_format(JsonLines);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::info!("all is \"well\"\nreally");
            tracing::error!(why = "a \"reason\"", "it is not");
        });
        let lines: Vec<Value> = log.take().iter().map(|line| serde_json::from_str(line).expect("an object a line")).collect();
        assert_eq!((&lines[0]["msg"], &lines[0]["v"], &lines[0]["level"]), (&"all is \"well\"\nreally".into(), &0.into(), &"info".into()));
        assert_eq!((&lines[1]["msg"], lines[1].get("v")), (&"it is not".into(), None));
        assert_eq!(lines[1]["why"], "a \"reason\"");
        assert!(lines[0]["ts"].as_f64().is_some_and(|ts| ts > 1.7e12));
    }

    /// The messages that pass a filter.
    fn logged(directives: &str) -> Vec<String> {
        let log = CapturedLog::default();
        let layer = tracing_subscriber::fmt::layer().with_writer(log.clone()).event_format(JsonLines);
        let filter = EnvFilter::builder().parse_lossy(directives);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(filter).with(layer), || {
            tracing::info!(target: "sepal::proxy::sync::report", "info");
            tracing::debug!(target: V2, "sync");
            tracing::debug!(target: "sepal::proxy::sync::family", "decision");
            tracing::trace!(target: "sepal::iptables::exec", "detail");
            tracing::error!(target: "kube_client::client::builder", "kube");
            tracing::warn!(target: "rustls::client", "rustls");
            tracing::debug!(target: "tower::buffer::worker", "tower");
            tracing::debug!(target: "hyper_util::client", "hyper");
            tracing::trace!(target: "h2::proto", "h2");
        });
        let message = |line: &String| serde_json::from_str::<Value>(line).expect("JSON")["msg"].as_str().expect("a text").to_owned();
        log.take().iter().map(message).collect()
    }

    #[test]
    fn verbosity_has_the_levels_of_klog_and_applies_to_this_program_only() {
        let of = |verbosity| logged(&directives(verbosity, &EnvFilterText::None));
        for (verbosity, want) in [
            (0, &["info"][..]),
            (1, &["info"]),
            (2, &["info", "sync"]),
            (3, &["info", "sync"]),
            (4, &["info", "sync", "decision"]),
            (6, &["info", "sync", "decision", "detail"]),
            (10, &["info", "sync", "decision", "detail"]),
        ] {
            assert_eq!(of(verbosity), want, "-v={verbosity}");
        }
    }

    #[test]
    fn libraries_log_if_the_environment_says_so() {
        let own = |text: &str| logged(&directives(0, &EnvFilterText::Own(text.into())));
        assert_eq!(own("debug"), ["info", "sync", "decision"]);
        assert_eq!(own("off"), Vec::<String>::new());
        assert_eq!(own("hyper_util=debug"), ["info", "hyper"]);
        assert_eq!(own("sepal::proxy=debug,tower=debug"), ["info", "decision", "tower"]);
        assert_eq!(own("debug, h2=trace ,"), ["info", "sync", "decision", "h2"]);
        let all = |text: &str| logged(&directives(4, &EnvFilterText::All(text.into())));
        assert_eq!(all("debug"), ["info", "sync", "decision", "kube", "rustls", "tower", "hyper"]);
        assert_eq!(all("kube_client=error"), ["info", "sync", "decision", "kube"]);
        assert_eq!(all("warn,sepal=debug"), ["info", "sync", "decision", "kube", "rustls"]);
    }
}
