//! The content of manifest files: the objects of the cluster, and the configuration objects among them.

use serde_json::Value;

use super::kubeproxy;
use super::network_facts::{self, NetworkFacts};
use super::settings::RequestedSettings;
use crate::bad_setting::BadSetting;
use crate::cluster::host_facts::{self, HostFacts, HostFactsOverrides};
use crate::kubernetes::ProblemLog;
use crate::kubernetes::manifests::{Document, ManifestError, Objects, documents};
use crate::proxy::rules::inputs::Inputs;
use crate::proxy::settings::ProxySettings;

/// The content of manifest files.
#[derive(Clone, Debug, Default)]
pub struct Manifests {
    objects: Objects,
    config: Option<ManifestConfig>,
    host_facts: Option<HostFactsOverrides>,
    network_facts: Option<NetworkFacts>,
}

impl Manifests {
    /// Adds the text of one file. Of two objects with one name, the later one counts.
    ///
    /// # Errors
    /// A document cannot be read, or a configuration object is invalid.
    pub fn add(&mut self, path: &str, text: &str) -> Result<(), ManifestError> {
        let documents = documents(text).map_err(|bad| ManifestError::Document { path: path.into(), bad })?;
        for document in documents {
            let (api_version, kind, value) = match document {
                Document::Object(id, converted) => {
                    self.objects.insert(id, *converted);
                    continue;
                }
                Document::OtherVersion(id, api_version) => {
                    self.objects.insert_unread(id, &api_version);
                    continue;
                }
                Document::Other { api_version, kind, value } => (api_version, kind, value),
            };
            let setting = |kind| move |bad| ManifestError::Setting { path: path.into(), kind, bad };
            match (api_version.as_str(), kind.as_str()) {
                (kubeproxy::API_VERSION, kubeproxy::KIND) => {
                    let config = kubeproxy::decode::value(&value).map_err(setting(kubeproxy::KIND))?;
                    let settings = config.resolve().map_err(setting(kubeproxy::KIND))?;
                    self.config = Some(ManifestConfig { settings, node_name: config.node_name(), document: value });
                }
                (_, kubeproxy::KIND) => {
                    let cause = format!("{api_version:?} cannot be read here, only {}", kubeproxy::API_VERSION);
                    return Err(setting(kubeproxy::KIND)(BadSetting { field: "apiVersion".into(), cause }));
                }
                (host_facts::API_VERSION, host_facts::KIND) => {
                    let facts = HostFactsOverrides::from_value(&value).map_err(setting(host_facts::KIND))?;
                    facts.over(HostFacts::default()).map_err(setting(host_facts::KIND))?;
                    self.host_facts = Some(facts);
                }
                (host_facts::API_VERSION, network_facts::KIND) => {
                    self.network_facts = Some(NetworkFacts::from_value(&value).map_err(setting(network_facts::KIND))?);
                }
                (_, "") => self.objects.skip("without a kind".into()),
                _ => self.objects.skip(format!("{api_version} {kind}").trim_start().to_owned()),
            }
        }
        Ok(())
    }

    /// Logs the objects that cannot be used, and counts those of kinds that are not needed.
    pub fn complain(&self, complaints: &mut ProblemLog) {
        self.objects.log_problems(complaints);
    }

    /// Adds other manifests. Of two objects with one name, theirs counts.
    pub fn absorb(&mut self, other: Self) {
        self.objects.absorb(other.objects);
        self.config = other.config.or(self.config.take());
        self.host_facts = other.host_facts.or(self.host_facts.take());
        self.network_facts = other.network_facts.or(self.network_facts.take());
    }

    /// The inputs of the rules. This node's name comes from flags or the configuration file, else from the configuration among the manifests,
    /// else from their only Node, else from the host.
    #[must_use]
    pub fn into_inputs(self, requested: &RequestedSettings) -> Inputs {
        let only_node = self.objects.only_node().map(str::to_owned);
        let (settings, configured) =
            self.config.map_or_else(|| (requested.settings.clone(), None), |config| (config.settings, config.node_name));
        let node_name = requested.node_name.clone().or(configured).or(only_node).unwrap_or_else(|| requested.host_name.clone());
        let snapshot = self.objects.into_snapshot(&node_name);
        let without_proxy = self.network_facts.as_ref().is_some_and(|facts| facts.without_proxy);
        let pod_rules = self.network_facts.map(|facts| facts.rules);
        Inputs { snapshot, node_name, settings, written_facts: self.host_facts, pod_rules, without_proxy }
    }

    /// The KubeProxyConfiguration among the manifests, as the file has it.
    #[must_use]
    pub fn configuration(&self) -> Option<&Value> {
        self.config.as_ref().map(|config| &config.document)
    }
}

/// A KubeProxyConfiguration among the manifests.
#[derive(Clone, Debug)]
struct ManifestConfig {
    settings: ProxySettings,
    node_name: Option<String>,
    /// The object, as the file has it.
    document: Value,
}
