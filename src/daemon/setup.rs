//! Resolves the command line: the configuration in force, this node's name, and the connection to the API server.

use std::path::Path;

use anyhow::{Context, anyhow};
use serde_json::Value;

use crate::cluster::Family;
use crate::config::effective::EffectiveConfig;
use crate::config::flags::{RunAs, RunFlags};
use crate::config::manifest_files::ManifestFiles;
use crate::config::settings::RequestedSettings;
use crate::kubernetes::api;
use crate::kubernetes::client::{ConnectionSettings, ProgramName};
use crate::proxy::rules::inputs::Inputs;

use super::network_setup::NetworkSetup;

/// The resolved command line, with the configuration file that it names.
#[derive(Debug)]
pub(crate) struct Setup {
    /// Settings and names that manifests may override.
    pub requested: RequestedSettings,
    /// The configuration in force.
    pub effective: EffectiveConfig,
    /// The configuration in force without the KubeProxyConfiguration among the manifests.
    pub without_manifests: EffectiveConfig,
    /// The connection to the API server.
    pub connection: ConnectionSettings,
    /// Families to write or print.
    pub families: Vec<Family>,
}

impl Setup {
    /// Resolves the command line.
    ///
    /// # Errors
    /// The configuration file cannot be read, a setting is invalid, or the host has no name.
    pub(crate) fn new(flags: &RunFlags) -> anyhow::Result<Self> {
        let effective = EffectiveConfig::new(flags)?;
        let host_name = host_name()?;
        if host_name.is_empty() && effective.node_name.is_none() {
            return Err(anyhow!("empty hostname is invalid: give --hostname-override"));
        }
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Ok(Self {
            requested: RequestedSettings { settings: effective.proxy.clone(), node_name: effective.node_name.clone(), host_name },
            without_manifests: effective.clone(),
            connection: ConnectionSettings {
                kubeconfig: some(&effective.config.client_connection.kubeconfig),
                master: some(&flags.proxy.master),
                name: program_name(&flags.run_as),
            },
            effective,
            families: flags.ip_family.families(),
        })
    }

    /// The inputs of the rules before the cluster is read.
    #[must_use]
    pub(crate) fn empty_inputs(&self) -> Inputs {
        let node_name = self.requested.node_name.clone().unwrap_or_else(|| self.requested.host_name.clone());
        Inputs { node_name, settings: self.requested.settings.clone(), ..Inputs::default() }
    }

    /// Reads the inputs of the rules once: from manifests if the flags name them, else from the API server.
    ///
    /// # Errors
    /// The source cannot be read.
    pub(crate) async fn read_inputs(&self, flags: &RunFlags) -> anyhow::Result<Inputs> {
        let network = NetworkSetup::new(flags)?;
        let mut inputs = if let Some(path) = &flags.manifests {
            self.read_manifests(path, flags.network.proxy)?
        } else {
            let client = self.connection.client()?;
            let inputs = self.empty_inputs();
            Inputs { snapshot: api::snapshot(&client, &inputs.node_name).await?, ..inputs }
        };
        // NetworkFacts among the manifests override the flags.
        if let Some(network) = network.filter(|_| inputs.pod_rules.is_none()) {
            network.describe(&mut inputs);
            inputs.without_proxy = !flags.network.proxy;
        }
        Ok(inputs)
    }

    fn read_manifests(&self, path: &Path, proxy: bool) -> anyhow::Result<Inputs> {
        let mut files = ManifestFiles::new(path.to_owned(), self.requested.clone());
        let mut inputs = files.read()?;
        let effective = files.configuration().map(|document| self.with_document(document)).transpose()?;
        if proxy && effective.as_ref().unwrap_or(&self.effective).daemon.conntrack.tcp_be_liberal {
            // `sepal run` sets it in the kernel before it computes rules.
            inputs.written_facts.get_or_insert_default().tcp_be_liberal = Some(true);
        }
        Ok(inputs)
    }

    /// The configuration in force, overridden by a KubeProxyConfiguration among the manifests.
    ///
    /// # Errors
    /// A field is invalid.
    pub(crate) fn with_document(&self, document: &Value) -> anyhow::Result<EffectiveConfig> {
        let effective = self.effective.with_document(document).context("KubeProxyConfiguration among the manifests")?;
        effective.notes.iter().for_each(|note| tracing::warn!("{note}"));
        Ok(effective)
    }

    /// Writes the configuration in force to a file, as a KubeProxyConfiguration.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write_config(&self, path: &Path) -> anyhow::Result<()> {
        let value = serde_json::to_value(&self.effective.config)?;
        let text = serde_saphyr::to_string(&value)?;
        std::fs::write(path, text).with_context(|| format!("cannot write the configuration to {}", path.display()))?;
        tracing::info!("wrote the configuration to {}", path.display());
        Ok(())
    }
}

/// The name in the user agent of requests: the name under which sepal was started.
const fn program_name(run_as: &RunAs) -> ProgramName {
    match run_as {
        RunAs::Sepal => ProgramName::Sepal,
        RunAs::KubeProxy => ProgramName::KubeProxy,
        RunAs::Flanneld { .. } => ProgramName::Flanneld,
    }
}

/// The host's name, trimmed and in lower case, as the kubelet names the Node.
///
/// # Errors
/// The kernel gives no name.
pub(crate) fn host_name() -> anyhow::Result<String> {
    let name = nix::unistd::gethostname().context("cannot learn this host's name")?;
    Ok(name.to_string_lossy().trim().to_lowercase())
}
