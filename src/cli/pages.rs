//! What the metrics server shows of this program (spec section 9.3).

use std::collections::BTreeMap;
use std::sync::Arc;

use clap::{ArgMatches, Args, Command};
use jiff::Timestamp;
use tokio::sync::watch;

use crate::agent::metrics::{Format, Metrics};
use crate::agent::metrics_server::{Exposition, Pages, SetVerbosity};
use crate::agent::status::site::Site;
use crate::agent::zpages::Build;
use crate::config::effective::Effective;
use crate::config::flags::RunFlags;
use crate::config::kubeproxy::gates::enabled;
use crate::source::client::without_password;

use super::{arguments, logs};

/// The pages of a program that runs with this configuration and these flags.
pub(super) fn pages(
    effective: &Effective,
    flags: &RunFlags,
    metrics: Arc<Metrics>,
    configz: watch::Receiver<serde_json::Value>,
    site: Site,
) -> Pages {
    let gate = |name| enabled(&effective.config.feature_gates, name);
    let set_verbosity: SetVerbosity = Box::new(|text: &str| {
        let verbosity = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
        logs::set_verbosity(verbosity);
        Ok(())
    });
    let slowest = Arc::clone(&metrics);
    Pages {
        site: Some(site),
        slowest: Box::new(move || slowest.slowest().text(Timestamp::now())),
        metrics: Box::new(move |accept| {
            let (content_type, text) = metrics.text(Format::of_accept(accept.unwrap_or_default()));
            Exposition { content_type: content_type.to_owned(), text }
        }),
        configz,
        flags: gate("ComponentFlagz").then(|| flags.typed.clone()),
        build: gate("ComponentStatusz").then(|| Build {
            binary_version: format!("{}+sepal-{}", arguments::KUBERNETES_VERSION.trim_start_matches('v'), env!("CARGO_PKG_VERSION")),
            emulation_version: "1.36".into(),
            started: Timestamp::now(),
        }),
        set_verbosity: effective.daemon.profiling.then_some(set_verbosity),
    }
}

/// Flags for which it matters whether they were typed, with kube-proxy's defaults.
const UNTYPED: [(&str, &str); 10] = [
    ("v", "0"),
    ("logging-format", "text"),
    ("log-flush-frequency", "5s"),
    ("log-text-split-stream", "false"),
    ("log-text-info-buffer-size", "0"),
    ("log-json-split-stream", "false"),
    ("log-json-info-buffer-size", "0"),
    ("oom-score-adj", "-999"),
    ("iptables-sync-period", "30s"),
    ("iptables-min-sync-period", "1s"),
];

/// Every flag with its value, as typed or by default.
pub(super) fn values(matches: &ArgMatches) -> BTreeMap<String, String> {
    let of_program = RunFlags::augment_args(Command::new("flags"));
    // What this face of the program does not take has no value.
    let value = |name: &str, id: &str| {
        let raw = matches.try_get_raw(id).ok()?;
        let typed = raw.map(|values| values.map(|value| value.to_string_lossy()).collect::<Vec<_>>().join(","));
        let default = || UNTYPED.iter().find(|(flag, _)| *flag == name).map_or("", |(_, value)| value).to_owned();
        // The URL of a server may hold a password.
        Some(typed.map_or_else(default, |typed| if name == "master" { without_password(&typed) } else { typed }))
    };
    let named = |argument: &clap::Arg| {
        let name = argument.get_long()?;
        Some((name.to_owned(), value(name, argument.get_id().as_str())?))
    };
    of_program.get_arguments().filter_map(named).collect()
}
