//! What is in force: a configuration, completed and validated, and the settings it comes to.

use std::path::PathBuf;

use serde_json::Value;

use super::flags::RunFlags;
use super::kubeproxy::decode::{BadConfiguration, Decoded};
use super::kubeproxy::validate::{joined, problems};
use super::kubeproxy::{self, KubeProxyConfiguration, decode, gates};
use super::settings::DaemonSettings;
use crate::bad_setting::BadSetting;
use crate::proxy::settings::ProxySettings;

/// A configuration in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Effective {
    /// The configuration, with all defaults.
    pub config: KubeProxyConfiguration,
    /// What rules and their pace depend on.
    pub proxy: ProxySettings,
    /// Everything else.
    pub daemon: DaemonSettings,
    /// This node's name, where flags or the configuration say it.
    pub node_name: Option<String>,
    /// What was read past and is worth a line in the log.
    pub notes: Vec<String>,
}

/// What keeps a configuration from coming into force.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// The file cannot be read.
    #[error("failed complete: cannot read the configuration file {path}: {cause}")]
    File {
        /// The file.
        path: String,
        /// Why.
        cause: std::io::Error,
    },
    /// The file holds no configuration.
    #[error("failed complete: configuration file {path}: {bad}")]
    Text {
        /// The file.
        path: String,
        /// What is wrong with it.
        bad: BadConfiguration,
    },
    /// Feature gates that do not exist or cannot be changed.
    #[error("failed complete: {0}")]
    Gates(String),
    /// Everything upstream refuses too.
    #[error("failed validate: {0}")]
    Invalid(String),
    /// What only this program refuses.
    #[error(transparent)]
    Setting(#[from] BadSetting),
    /// The node's name is blank.
    #[error("failed complete: {0}")]
    NodeName(&'static str),
}

impl Effective {
    /// Resolves a command line and the configuration file it names, in upstream's order (spec sections 1.1 and 1.3).
    ///
    /// # Errors
    /// The file cannot be read or holds no configuration, or something in it or on the command line makes no sense.
    pub fn new(flags: &RunFlags) -> Result<Self, Unusable> {
        let flags = &flags.proxy;
        let mut notes = Vec::new();
        let mut config = match flags.config_file() {
            Some(path) => {
                let Decoded { mut config, leniences } = read(&path)?;
                notes.extend(leniences.into_iter().map(|what| format!("configuration file {}: {what}; read past it", path.display())));
                config.fill();
                config
            }
            None => flags.configuration(),
        };
        flags.logging.apply_to(&mut config);
        config.complete();
        let node_name = flags.node_name().map_err(Unusable::NodeName)?.or_else(|| config.node_name());
        if let Some(name) = &node_name {
            config.hostname_override.clone_from(name);
        }
        let wrong = gates::problems(&config.feature_gates);
        if !wrong.is_empty() {
            return Err(Unusable::Gates(joined(&wrong)));
        }
        notes.extend(gates::foreign(&config.feature_gates).map(|name| format!("feature gate {name} has no meaning for a service proxy")));
        let wrong = problems(&config);
        if !wrong.is_empty() {
            return Err(Unusable::Invalid(joined(&wrong)));
        }
        Ok(Self { proxy: config.proxy_settings()?, daemon: config.daemon_settings()?, config, node_name, notes })
    }

    /// The same with a KubeProxyConfiguration that stands among manifests over it: every field that the document sets counts, and the
    /// rules follow from the document alone.
    ///
    /// # Errors
    /// Something in it makes no sense.
    pub fn with_document(&self, document: &Value) -> Result<Self, Unusable> {
        let Decoded { config: alone, leniences } = decode::value_with_notes(document)?;
        let invalid = |cause: String| BadSetting { field: kubeproxy::KIND.into(), cause };
        let mut merged = serde_json::to_value(&self.config).map_err(|error| invalid(error.to_string()))?;
        overlay(&mut merged, document);
        let mut config = decode::value(&merged)?;
        config.fill();
        // The merged configuration has no unset fields.
        config.min_sync_period_is_set = self.config.min_sync_period_is_set || alone.iptables.min_sync_period.0 != 0;
        config.oom_score_is_set = self.config.oom_score_is_set || alone.oom_score_adj.is_some();
        config.complete();
        let wrong = gates::problems(&config.feature_gates);
        if !wrong.is_empty() {
            return Err(Unusable::Gates(joined(&wrong)));
        }
        let wrong = problems(&config);
        if !wrong.is_empty() {
            return Err(Unusable::Invalid(joined(&wrong)));
        }
        let mut notes: Vec<String> = leniences.into_iter().map(|what| format!("{what}; read past it")).collect();
        if config.logging.format != self.config.logging.format {
            notes.push("logging.format has no effect there: use --logging-format, or the file that --config names".into());
        }
        Ok(Self {
            proxy: alone.resolve()?,
            daemon: config.daemon_settings()?,
            node_name: self.node_name.clone().or_else(|| alone.node_name()),
            notes: notes.into_iter().map(|what| format!("{} among the manifests: {what}", kubeproxy::KIND)).collect(),
            config,
        })
    }

    /// The fields in which another configuration differs that cannot be changed while the program runs, as a configuration spells them.
    #[must_use]
    pub fn fixed_differences(&self, other: &Self) -> Vec<&'static str> {
        let (here, there) = (&self.config, &other.config);
        let fixed = [
            ("clientConnection", here.client_connection != there.client_connection),
            ("hostnameOverride", self.node_name != other.node_name),
            ("healthzBindAddress", self.daemon.healthz != other.daemon.healthz),
            ("metricsBindAddress", self.daemon.metrics != other.daemon.metrics),
            ("enableProfiling", self.daemon.profiling != other.daemon.profiling),
            ("featureGates", here.feature_gates != there.feature_gates),
            // Rules have asked the kernel once what this made of it.
            ("conntrack.tcpBeLiberal", here.conntrack.tcp_be_liberal != there.conntrack.tcp_be_liberal),
            ("bindAddressHardFail", self.daemon.hard_fail != other.daemon.hard_fail),
            ("logging.format", self.daemon.log_format != other.daemon.log_format),
            // Family detection has asked for these.
            ("bindAddress", self.proxy.bind_address != other.proxy.bind_address),
        ];
        fixed.into_iter().filter_map(|(field, differs)| differs.then_some(field)).collect()
    }
}

/// Sets every field that `over` has. `null` and an empty text mean that a field is not set.
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

fn read(path: &PathBuf) -> Result<Decoded, Unusable> {
    let name = || path.display().to_string();
    let bytes = std::fs::read(path).map_err(|cause| Unusable::File { path: name(), cause })?;
    decode::file(&bytes).map_err(|bad| Unusable::Text { path: name(), bad })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::flags::tests::defaults;

    #[test]
    fn a_document_among_manifests_counts_in_full() {
        let mut flags = defaults();
        flags.proxy.conntrack_max_per_core = 0;
        flags.proxy.metrics_bind_address = "127.0.0.1:9999".into();
        let typed = Effective::new(&flags).expect("good flags");
        let document = json!({
            "clusterCIDR": "10.244.0.0/16", "hostnameOverride": "N1", "healthzBindAddress": "127.0.0.1:7777", "metricsBindAddress": "",
            "clientConnection": {"kubeconfig": "/k"}, "logging": {"format": "json", "verbosity": 3},
            "conntrack": {"min": 7, "tcpBeLiberal": true, "udpTimeout": "31s", "maxPerCore": null}, "oomScoreAdj": 0, "typo": 1,
        });
        let merged = typed.with_document(&document).expect("good");
        assert_eq!(merged.daemon.healthz, "127.0.0.1:7777".parse().ok());
        assert_eq!(merged.daemon.metrics, "127.0.0.1:9999".parse().expect("an address"), "empty means not set");
        assert_eq!((merged.daemon.conntrack.max_per_core, merged.daemon.conntrack.min), (0, 7));
        assert!(merged.daemon.conntrack.tcp_be_liberal && merged.daemon.conntrack.udp_timeout.as_secs() == 31);
        assert_eq!((merged.daemon.oom_score_adj, merged.node_name.as_deref()), (0, Some("n1")));
        assert_eq!(merged.config.cluster_cidr, "10.244.0.0/16");
        assert_eq!((merged.daemon.verbosity, merged.daemon.oom_score_is_set, typed.daemon.oom_score_is_set), (3, true, false));
        assert_eq!(merged.notes.len(), 2, "{:?}", merged.notes);
        assert_eq!(merged.notes[0], "KubeProxyConfiguration among the manifests: unknown field \"typo\"; read past it");
        assert!(merged.notes[1].starts_with("KubeProxyConfiguration among the manifests: logging.format has no effect there"));
        for (document, want) in [
            (json!({"healthzBindAddress": "x"}), "failed validate: KubeProxyConfiguration.HealthzBindAddress"),
            (json!({"featureGates": {"no such gate": true}}), "failed complete: unrecognized feature gate"),
            (json!({"conntrack": {"udpTimeout": "soon"}}), "conntrack.udpTimeout: "),
        ] {
            let error = typed.with_document(&document).expect_err("it makes no sense").to_string();
            assert!(error.starts_with(want), "{error}");
        }
    }

    #[test]
    fn a_score_counts_as_asked_for_only_where_the_operator_wrote_it() {
        let asked = |flag: Option<i32>| {
            let mut flags = defaults();
            flags.proxy.oom_score_adj = flag;
            let daemon = Effective::new(&flags).expect("good flags").daemon;
            (daemon.oom_score_adj, daemon.oom_score_is_set)
        };
        assert_eq!((asked(None), asked(Some(-999)), asked(Some(5))), ((-999, false), (-999, true), (5, true)));
        for (score, want) in [("null", (-999, false)), ("-999", (-999, true)), ("0", (0, true))] {
            let folder = tempfile::tempdir().expect("a folder");
            let file = folder.path().join("config");
            let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
            std::fs::write(&file, format!("{head}oomScoreAdj: {score}\n")).expect("writable");
            let mut flags = defaults();
            flags.proxy.config = file.display().to_string();
            let daemon = Effective::new(&flags).expect("a good file").daemon;
            assert_eq!((daemon.oom_score_adj, daemon.oom_score_is_set), want, "{score}");
        }
    }
}
