//! The command line of kube-proxy, with its spelling and its error texts [kube-proxy 1.1] [kube-proxy 1.2].

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches, Parser};

use super::usage_error::{self, CalledCommand};
use crate::config::flag_listing::flag_values;
use crate::config::flags::{RunAs, RunFlags};
use crate::config::proxy_flags::ProxyFlags;
use crate::versions::KUBE_PROXY;

/// Network proxy of a Kubernetes node, in iptables mode (this is sepal under the name of kube-proxy).
#[derive(Debug, Parser)]
#[command(name = "kube-proxy", args_override_self = true, max_term_width = 120)]
struct KubeProxy {
    #[command(flatten)]
    proxy: ProxyFlags,
    #[arg(hide = true)]
    arguments: Vec<String>,
}

/// Replaces `_` by `-` in the names of flags, as kube-proxy allows both.
pub(super) fn normalized(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut flags = true;
    let normalize = |argument: OsString| {
        flags &= argument != "--";
        match argument.to_str().filter(|text| flags && text.starts_with("--")) {
            Some(text) => {
                let (name, value) = text.find('=').map_or((text, ""), |at| text.split_at(at));
                (name.replace('_', "-") + value).into()
            }
            None => argument,
        }
    };
    arguments.map(normalize).collect()
}

/// Allows values that start with a dash: as in kube-proxy, the argument after a flag is its value.
pub(super) fn with_any_values(command: clap::Command) -> clap::Command {
    command.mut_args(|argument| {
        let takes = argument.get_action().takes_values() && !argument.is_require_equals_set() && argument.get_long().is_some();
        argument.allow_hyphen_values(takes)
    })
}

/// Parses the command line of kube-proxy. The error is a text to print: the help, or what is wrong.
pub(super) fn kube_proxy(arguments: &[OsString]) -> Result<RunFlags, ExitText> {
    let parsed = with_any_values(KubeProxy::command())
        .try_get_matches_from(arguments)
        .and_then(|matches| Ok((KubeProxy::from_arg_matches(&matches)?, matches)));
    match parsed {
        Ok((KubeProxy { arguments, .. }, _)) if !arguments.is_empty() => {
            let quoted: Vec<String> = arguments.iter().map(|argument| format!("{argument:?}")).collect();
            let error = format!("\"kube-proxy\" does not take any arguments, got [{}]", quoted.join(" "));
            Err(ExitText { text: usage_error::with_hint(&error, "kube-proxy"), failed: true })
        }
        Ok((KubeProxy { proxy, .. }, matches)) => {
            Ok(RunFlags { proxy, values: flag_values(&matches), run_as: RunAs::KubeProxy, ..RunFlags::default() })
        }
        Err(error) => Err(ExitText::of(&error, &KubeProxy::command(), arguments)),
    }
}

/// A text to print before the program ends.
#[derive(Debug)]
pub(super) struct ExitText {
    /// The text.
    pub text: String,
    /// True for an error: the text goes to standard error, and the exit status is 1.
    pub failed: bool,
}

impl ExitText {
    /// The text for an error of `clap`, which may also be a request for help.
    pub(super) fn of(error: &clap::Error, program: &clap::Command, arguments: &[OsString]) -> Self {
        if error.use_stderr() {
            Self { text: usage_error::text(error, &CalledCommand::new(program, arguments)), failed: true }
        } else {
            Self { text: error.render().ansi().to_string(), failed: false }
        }
    }
}

/// The output of `sepal version` and `sepal --version`.
pub(super) fn own_version() -> String {
    format!("sepal {} (in place of kube-proxy {KUBE_PROXY})\n", env!("CARGO_PKG_VERSION"))
}

/// The output of `--version`; `None` if the flag is not given.
pub(super) fn version(value: &str, kube_proxy: bool) -> Option<String> {
    let own = env!("CARGO_PKG_VERSION");
    match value {
        "true" if kube_proxy => Some(format!("Kubernetes {KUBE_PROXY}\n")),
        "true" => Some(own_version()),
        "raw" => {
            Some(format!("version.Info{{Major:\"1\", Minor:\"36\", GitVersion:\"{KUBE_PROXY}\", Compiler:\"rustc\", Sepal:\"{own}\"}}\n"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &str) -> Result<RunFlags, ExitText> {
        kube_proxy(&normalized(std::iter::once("kube-proxy").chain(arguments.split_whitespace()).map(OsString::from)))
    }

    #[test]
    fn flags_have_the_names_spellings_and_defaults_of_kube_proxy() {
        let flags = parse("").expect("no flags").proxy;
        let config = flags.configuration();
        assert_eq!(config, crate::config::kubeproxy::KubeProxyConfiguration::built_in());
        let config = parse(
            "--bind_address=10.0.0.1 --cluster-cidr 10.0.0.0/8,fd00::/64 --iptables-min-sync-period=0 --masquerade_all \
             --iptables-localhost-nodeports=F --nodeport-addresses=10.0.0.0/8,11.0.0.0/8 --nodeport-addresses 12.0.0.0/8 \
             --oom-score-adj -5 --iptables-sync-period -1s --ipvs-exclude-cidrs= --healthz-bind-address 10.0.0.2 --ipvs-scheduler=rr --feature-gates=AllAlpha=true,AllBeta=false",
        )
        .expect("good flags")
        .proxy
        .configuration();
        assert_eq!((config.bind_address.as_str(), config.cluster_cidr.as_str()), ("10.0.0.1", "10.0.0.0/8,fd00::/64"));
        assert_eq!((config.iptables.min_sync_period.0, config.min_sync_period_is_set, config.iptables.masquerade_all), (0, true, true));
        assert_eq!(config.iptables.localhost_node_ports, Some(false));
        assert_eq!(config.node_port_addresses.as_ref().map(Vec::len), Some(3));
        assert_eq!((config.oom_score_adj, config.healthz_bind_address.as_str()), (Some(-5), "10.0.0.2:10256"));
        assert_eq!((config.ipvs.scheduler.as_str(), config.feature_gates.len()), ("rr", 2));
        // Unlike in a file, the bind address does not move the other addresses.
        let config = parse("--bind-address=::").expect("good flags").proxy.configuration();
        assert_eq!(config.healthz_bind_address, "0.0.0.0:10256");
    }

    #[test]
    fn deprecated_ports_count_where_an_address_has_none() {
        let addresses = |arguments| {
            let config = parse(arguments).expect("good flags").proxy.configuration();
            (config.healthz_bind_address, config.metrics_bind_address)
        };
        assert_eq!(addresses("--healthz-port=1 --healthz-bind-address=::1 --metrics-port=2"), ("[::1]:1".into(), "127.0.0.1:10249".into()));
        assert_eq!(addresses("--healthz-port=0 --metrics-port=0"), (String::new(), String::new()));
        assert_eq!(addresses("--healthz-port=0 --write-config-to=f"), ("0.0.0.0:10256".into(), "127.0.0.1:10249".into()));
    }

    #[test]
    fn errors_are_worded_as_in_kube_proxy() {
        for (arguments, want) in [
            ("foo bar", "\"kube-proxy\" does not take any arguments, got [\"foo\" \"bar\"]"),
            ("--cleanup false", "\"kube-proxy\" does not take any arguments, got [\"false\"]"),
            ("--bogus", "unknown flag: --bogus"),
            ("--bind-address=x", "invalid argument \"x\" for \"--bind-address\" flag: \"x\" is not a valid IP address"),
            ("--iptables-masquerade-bit=x", "invalid argument \"x\" for \"--iptables-masquerade-bit\" flag: it is not a whole number"),
            ("--config", "flag needs an argument: --config"),
            ("--conntrack-min -x", "invalid argument \"-x\" for \"--conntrack-min\" flag: it is not a whole number"),
            ("--healthz-port=70000", "invalid argument \"70000\" for \"--healthz-port\" flag: 70000 is not a number from 0 to 65535"),
            ("--kube-api-qps=x", "invalid argument \"x\" for \"--kube-api-qps\" flag: it is not a number"),
            ("-x", "unknown shorthand flag: 'x' in -x"),
            ("--dry-run", "unknown flag: --dry-run"),
        ] {
            let ending = parse(arguments).expect_err(arguments);
            assert_eq!((ending.failed, ending.text), (true, format!("Error: {want}\nSee 'kube-proxy --help'.\n")), "{arguments}");
        }
        assert!(!parse("--help").expect_err("help").failed);
    }

    #[test]
    fn versions_are_printed() {
        assert_eq!(version("true", true).as_deref(), Some("Kubernetes v1.36.2\n"));
        assert!(version("raw", true).is_some_and(|text| text.starts_with("version.Info{")));
        assert_eq!(version("false", true), None);
        assert!(version("true", false).is_some_and(|text| text.starts_with("sepal ")));
    }
}
