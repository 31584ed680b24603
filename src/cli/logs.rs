//! The log: to standard error, since standard output is for rules. Text for people, or an object a line as Kubernetes' components write.

use std::fmt::{self, Debug, Write};
use std::sync::OnceLock;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use crate::agent::supervise::panic_text;
use crate::agent::sync_log::V2;
use crate::config::settings::LogFormat;

/// Overrides the verbosity: a filter as `tracing-subscriber` reads it (`debug`, `sepal::iptables=trace`).
const VARIABLE: &str = "SEPAL_LOG";

/// Says nothing: what the client library logs comes back as an error, and is told once, by whoever asked.
const QUIET: &str = "kube_client=off";

/// The filter, so that it can be changed while the program runs.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts the log.
pub(super) fn init(verbosity: u32, format: LogFormat) {
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

/// Changes how much is logged from now on.
pub(super) fn set_verbosity(verbosity: u32) {
    if let Some(handle) = FILTER.get()
        && let Err(error) = handle.reload(filter(verbosity))
    {
        tracing::warn!("the verbosity stays as it is: {error}");
    }
}

/// The levels that a verbosity of klog stands for. From 2 on there is a line for each sync; 4 and more says why something is done.
fn filter(verbosity: u32) -> EnvFilter {
    let level = match verbosity {
        0..4 => tracing::level_filters::LevelFilter::INFO,
        4..6 => tracing::level_filters::LevelFilter::DEBUG,
        _ => tracing::level_filters::LevelFilter::TRACE,
    };
    let filter = EnvFilter::builder().with_default_directive(level.into()).with_env_var(VARIABLE).from_env_lossy();
    let syncs = format!("{V2}=debug");
    let syncs = if (2..4).contains(&verbosity) { syncs.parse().ok() } else { None };
    QUIET.parse().into_iter().chain(syncs).fold(filter, EnvFilter::add_directive)
}

/// `{"ts":1764111155000.123,"level":"info","v":0,"msg":"..."}`: `ts` in milliseconds since 1970, `v` on everything but errors, as
/// Kubernetes' components have it.
struct JsonLines;

impl<S: Subscriber + for<'a> LookupSpan<'a>, N: for<'a> FormatFields<'a> + 'static> FormatEvent<S, N> for JsonLines {
    fn format_event(&self, _context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = *event.metadata().level();
        let mut fields = Fields(Map::new());
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

/// The fields of an event; its message is `msg`.
struct Fields(Map<String, Value>);

impl Visit for Fields {
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

impl Fields {
    fn put(&mut self, field: &Field, text: String) {
        let name = if field.name() == "message" { "msg" } else { field.name() };
        self.0.insert(name.into(), text.into());
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn json_lines_are_objects_with_kubernetes_keys() {
        let written = Written::default();
        let to = written.clone();
        let layer = tracing_subscriber::fmt::layer().with_writer(move || to.clone()).event_format(JsonLines);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::info!("all is \"well\"\nreally");
            tracing::error!(why = "a \"reason\"", "it is not");
        });
        let text = String::from_utf8(written.0.lock().expect("not poisoned").clone()).expect("UTF-8");
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect();
        assert_eq!((&lines[0]["msg"], &lines[0]["v"], &lines[0]["level"]), (&"all is \"well\"\nreally".into(), &0.into(), &"info".into()));
        assert_eq!((&lines[1]["msg"], lines[1].get("v")), (&"it is not".into(), None));
        assert_eq!(lines[1]["why"], "a \"reason\"");
        assert!(lines[0]["ts"].as_f64().is_some_and(|ts| ts > 1.7e12));
    }

    #[test]
    fn verbosity_is_klogs() {
        for (verbosity, want) in [(0, "info"), (2, "info"), (4, "debug"), (10, "trace")] {
            assert!(filter(verbosity).to_string().contains(want), "{verbosity}: {}", filter(verbosity));
        }
        // Lines about single syncs come from 2 on.
        for (verbosity, shown) in [(0, false), (1, false), (2, true), (3, true), (4, true)] {
            let written = Written::default();
            let to = written.clone();
            let layer = tracing_subscriber::fmt::layer().with_writer(move || to.clone()).event_format(JsonLines);
            tracing::subscriber::with_default(tracing_subscriber::registry().with(filter(verbosity)).with(layer), || {
                tracing::debug!(target: V2, "3 chains written");
            });
            let text = String::from_utf8(written.0.lock().expect("not poisoned").clone()).expect("UTF-8");
            assert_eq!(text.contains(r#""v":2"#), shown, "{verbosity}: {text}");
        }
    }
}
