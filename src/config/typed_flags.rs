//! The value of each flag, as typed or by default, for `/flagz`.

use std::collections::BTreeMap;

use clap::{ArgMatches, Args, Command};

use super::flags::RunFlags;
use crate::kubernetes::client::without_password;

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
pub(crate) fn values(matches: &ArgMatches) -> BTreeMap<String, String> {
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
