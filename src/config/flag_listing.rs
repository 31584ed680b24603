//! The value of each flag, for `/flagz` and the log.

use std::collections::BTreeMap;

use clap::{ArgMatches, Args, Command};

use super::flags::RunFlags;
use super::ignored_flags::IgnoredFlags;
use super::logging_flags::LoggingFlags;
use super::network_flags::NetworkFlags;
use super::proxy_flags::ProxyFlags;
use crate::kubernetes::client::without_password;

/// Lists every flag with its value, given or default. Flags that the command line does not take are left out.
pub(crate) fn flag_values(matches: &ArgMatches) -> BTreeMap<String, String> {
    let defaults: BTreeMap<String, String> = [
        ProxyFlags::defaults_if_unset(),
        LoggingFlags::defaults_if_unset(),
        IgnoredFlags::defaults_if_unset(),
        NetworkFlags::defaults_if_unset(),
    ]
    .into_iter()
    .flatten()
    .collect();
    let value = |name: &str, id: &str| {
        let raw = matches.try_get_raw(id).ok()?;
        let given = raw.map(|values| values.map(|value| value.to_string_lossy()).collect::<Vec<_>>().join(","));
        // The URL of a server may hold a password.
        let given = given.map(|given| if name == "master" { without_password(&given) } else { given });
        Some(given.or_else(|| defaults.get(name).cloned()).unwrap_or_default())
    };
    let named = |argument: &clap::Arg| {
        let name = argument.get_long()?;
        Some((name.to_owned(), value(name, argument.get_id().as_str())?))
    };
    RunFlags::augment_args(Command::new("flags")).get_arguments().filter_map(named).collect()
}
