//! The configuration in force: flags and file together, completed and validated, and the settings that follow.

use std::path::PathBuf;

use serde_json::Value;

use super::flags::RunFlags;
use super::kubeproxy::decode::{BadConfiguration, Decoded};
use super::kubeproxy::validate::{joined, problems};
use super::kubeproxy::{self, KubeProxyConfiguration, decode, gates};
use super::settings::DaemonSettings;
use crate::bad_setting::BadSetting;
use crate::proxy::settings::ProxySettings;

/// The configuration in force.
#[derive(Clone, Debug, PartialEq)]
pub struct EffectiveConfig {
    /// The configuration with all defaults.
    pub config: KubeProxyConfiguration,
    /// Settings of the service proxy.
    pub proxy: ProxySettings,
    /// Settings of the daemon.
    pub daemon: DaemonSettings,
    /// This node's name, if flags or the configuration give one.
    pub node_name: Option<String>,
    /// Ignored fields and gates, for the log.
    pub notes: Vec<String>,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("failed complete: cannot read the configuration file {path}: {cause}")]
    File {
        /// Its path.
        path: String,
        /// The cause.
        cause: std::io::Error,
    },
    /// The file holds no configuration.
    #[error("failed complete: configuration file {path}: {bad}")]
    Text {
        /// Its path.
        path: String,
        /// The cause.
        bad: BadConfiguration,
    },
    /// A feature gate does not exist or cannot be changed.
    #[error("failed complete: {0}")]
    Gates(String),
    /// Fields are invalid, for kube-proxy too.
    #[error("failed validate: {0}")]
    Invalid(String),
    /// A field is valid for kube-proxy, but not for this program.
    #[error(transparent)]
    Setting(#[from] BadSetting),
    /// The node's name is blank.
    #[error("failed complete: {0}")]
    NodeName(&'static str),
}

impl EffectiveConfig {
    /// Resolves a command line and the configuration file that it names, in upstream's order [kube-proxy 1.1] [kube-proxy 1.3].
    ///
    /// # Errors
    /// The file cannot be read or holds no configuration, or a field or flag is invalid.
    pub fn new(flags: &RunFlags) -> Result<Self, ConfigError> {
        let sync_share = flags.sync_cpu_percent;
        let flags = &flags.proxy;
        let mut notes = Vec::new();
        let mut config = match flags.config_file() {
            Some(path) => {
                let Decoded { mut config, warnings } = read(&path)?;
                notes.extend(warnings.into_iter().map(|what| format!("configuration file {}: {what}; read past it", path.display())));
                config.fill();
                config
            }
            None => flags.configuration(),
        };
        flags.logging.apply_to(&mut config);
        config.complete();
        let node_name = flags.node_name().map_err(ConfigError::NodeName)?.or_else(|| config.node_name());
        if let Some(name) = &node_name {
            config.hostname_override.clone_from(name);
        }
        let invalid = gates::problems(&config.feature_gates);
        if !invalid.is_empty() {
            return Err(ConfigError::Gates(joined(&invalid)));
        }
        notes.extend(gates::unknown(&config.feature_gates).map(|name| format!("feature gate {name} has no meaning for a service proxy")));
        let invalid = problems(&config);
        if !invalid.is_empty() {
            return Err(ConfigError::Invalid(joined(&invalid)));
        }
        let proxy = ProxySettings { sync_share, ..config.proxy_settings()? };
        Ok(Self { proxy, daemon: config.daemon_settings()?, config, node_name, notes })
    }

    /// This configuration, overridden by a KubeProxyConfiguration among manifests. Every field that the document sets counts. The settings
    /// of the service proxy follow from the document alone.
    ///
    /// # Errors
    /// A field is invalid.
    pub(crate) fn with_document(&self, document: &Value) -> Result<Self, ConfigError> {
        let Decoded { config: alone, warnings } = decode::value_with_warnings(document)?;
        let bad = |cause: String| BadSetting { field: kubeproxy::KIND.into(), cause };
        let mut merged = serde_json::to_value(&self.config).map_err(|error| bad(error.to_string()))?;
        overlay(&mut merged, document);
        let mut config = decode::value(&merged)?;
        config.fill();
        // The merged configuration has no unset fields.
        config.min_sync_period_is_set = self.config.min_sync_period_is_set || alone.iptables.min_sync_period.0 != 0;
        config.oom_score_is_set = self.config.oom_score_is_set || alone.oom_score_adj.is_some();
        config.complete();
        let invalid = gates::problems(&config.feature_gates);
        if !invalid.is_empty() {
            return Err(ConfigError::Gates(joined(&invalid)));
        }
        let invalid = problems(&config);
        if !invalid.is_empty() {
            return Err(ConfigError::Invalid(joined(&invalid)));
        }
        let mut notes: Vec<String> = warnings.into_iter().map(|what| format!("{what}; read past it")).collect();
        if config.logging.format != self.config.logging.format {
            notes.push("logging.format has no effect there: use --logging-format, or the file that --config names".into());
        }
        Ok(Self {
            proxy: ProxySettings { sync_share: self.proxy.sync_share, ..alone.resolve()? },
            daemon: config.daemon_settings()?,
            node_name: self.node_name.clone().or_else(|| alone.node_name()),
            notes: notes.into_iter().map(|what| format!("{} among the manifests: {what}", kubeproxy::KIND)).collect(),
            config,
        })
    }

    /// The fields that differ from another configuration and that only a restart can change, as a configuration spells them.
    #[must_use]
    pub(crate) fn fixed_differences(&self, other: &Self) -> Vec<&'static str> {
        let (here, there) = (&self.config, &other.config);
        let fixed = [
            ("clientConnection", here.client_connection != there.client_connection),
            ("hostnameOverride", self.node_name != other.node_name),
            ("healthzBindAddress", self.daemon.healthz != other.daemon.healthz),
            ("metricsBindAddress", self.daemon.metrics != other.daemon.metrics),
            ("enableProfiling", self.daemon.profiling != other.daemon.profiling),
            ("featureGates", here.feature_gates != there.feature_gates),
            // The kernel was asked once how this setting came out, and the rules depend on it.
            ("conntrack.tcpBeLiberal", here.conntrack.tcp_be_liberal != there.conntrack.tcp_be_liberal),
            ("bindAddressHardFail", self.daemon.hard_fail != other.daemon.hard_fail),
            ("logging.format", self.daemon.log_format != other.daemon.log_format),
            // The families were chosen by this.
            ("bindAddress", self.proxy.bind_address != other.proxy.bind_address),
        ];
        fixed.into_iter().filter_map(|(field, differs)| differs.then_some(field)).collect()
    }
}

/// Copies every field that `over` sets. `null` and an empty text mean that a field is not set.
fn overlay(under: &mut Value, over: &Value) {
    match (under, over) {
        (_, Value::Null) => {}
        (_, Value::String(text)) if text.is_empty() => {}
        (Value::Object(under), Value::Object(over)) => {
            for (field, value) in over {
                overlay(under.entry(field).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over.clone(),
    }
}

fn read(path: &PathBuf) -> Result<Decoded, ConfigError> {
    let name = || path.display().to_string();
    let bytes = std::fs::read(path).map_err(|cause| ConfigError::File { path: name(), cause })?;
    decode::file(&bytes).map_err(|bad| ConfigError::Text { path: name(), bad })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::flags::tests::defaults;

    #[test]
    fn every_field_of_a_document_among_manifests_counts() {
        let mut flags = defaults();
        flags.proxy.conntrack_max_per_core = 0;
        flags.proxy.metrics_bind_address = "127.0.0.1:9999".into();
        let from_flags = EffectiveConfig::new(&flags).expect("good flags");
        let document = json!({
            "clusterCIDR": "10.244.0.0/16", "hostnameOverride": "N1", "healthzBindAddress": "127.0.0.1:7777", "metricsBindAddress": "",
            "clientConnection": {"kubeconfig": "/k"}, "logging": {"format": "json", "verbosity": 3},
            "conntrack": {"min": 7, "tcpBeLiberal": true, "udpTimeout": "31s", "maxPerCore": null}, "oomScoreAdj": 0, "typo": 1,
        });
        let merged = from_flags.with_document(&document).expect("good");
        assert_eq!(merged.daemon.healthz, "127.0.0.1:7777".parse().ok());
        assert_eq!(merged.daemon.metrics, "127.0.0.1:9999".parse().expect("an address"), "empty means not set");
        assert_eq!((merged.daemon.conntrack.max_per_core, merged.daemon.conntrack.min), (0, 7));
        assert!(merged.daemon.conntrack.tcp_be_liberal && merged.daemon.conntrack.udp_timeout.as_secs() == 31);
        assert_eq!((merged.daemon.oom_score_adj, merged.node_name.as_deref()), (0, Some("n1")));
        assert_eq!(merged.config.cluster_cidr, "10.244.0.0/16");
        assert_eq!((merged.daemon.verbosity, merged.daemon.oom_score_is_set, from_flags.daemon.oom_score_is_set), (3, true, false));
        assert_eq!(merged.notes.len(), 2, "{:?}", merged.notes);
        assert_eq!(merged.notes[0], "KubeProxyConfiguration among the manifests: unknown field \"typo\"; read past it");
        assert!(merged.notes[1].starts_with("KubeProxyConfiguration among the manifests: logging.format has no effect there"));
        for (document, want) in [
            (json!({"healthzBindAddress": "x"}), "failed validate: KubeProxyConfiguration.HealthzBindAddress"),
            (json!({"featureGates": {"no such gate": true}}), "failed complete: unrecognized feature gate"),
            (json!({"conntrack": {"udpTimeout": "soon"}}), "conntrack.udpTimeout: "),
        ] {
            let error = from_flags.with_document(&document).expect_err("invalid").to_string();
            assert!(error.starts_with(want), "{error}");
        }
    }

    #[test]
    fn a_score_counts_as_set_only_if_the_operator_wrote_it() {
        let with_flag = |flag: Option<i32>| {
            let mut flags = defaults();
            flags.proxy.oom_score_adj = flag;
            let daemon = EffectiveConfig::new(&flags).expect("good flags").daemon;
            (daemon.oom_score_adj, daemon.oom_score_is_set)
        };
        assert_eq!((with_flag(None), with_flag(Some(-999)), with_flag(Some(5))), ((-999, false), (-999, true), (5, true)));
        for (score, want) in [("null", (-999, false)), ("-999", (-999, true)), ("0", (0, true))] {
            let folder = tempfile::tempdir().expect("a folder");
            let file = folder.path().join("config");
            let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
            std::fs::write(&file, format!("{head}oomScoreAdj: {score}\n")).expect("writable");
            let mut flags = defaults();
            flags.proxy.config = file.display().to_string();
            let daemon = EffectiveConfig::new(&flags).expect("a good file").daemon;
            assert_eq!((daemon.oom_score_adj, daemon.oom_score_is_set), want, "{score}");
        }
    }
}
