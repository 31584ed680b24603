//! From flags to what was asked for: the configuration in force, this node's name, how to reach the cluster.

use std::path::Path;

use anyhow::{Context, anyhow};
use serde_json::Value;

use crate::cluster::Family;
use crate::config::effective::Effective;
use crate::config::flags::{Face, RunFlags};
use crate::config::manifest_files::Files;
use crate::config::settings::Asked;
use crate::kubernetes::api;
use crate::kubernetes::client::{ConnectionSettings, ProgramName};
use crate::proxy::rules::inputs::Inputs;

use super::pod_network::PodNetwork;

/// What the command line, and the configuration file it names, ask for.
#[derive(Debug)]
pub(crate) struct Setup {
    /// Settings and names.
    pub asked: Asked,
    /// The configuration.
    pub effective: Effective,
    /// The configuration without the one among the manifests.
    pub typed: Effective,
    /// How to reach the API server.
    pub connection: ConnectionSettings,
    /// Families to write or print.
    pub families: Vec<Family>,
}

impl Setup {
    /// Resolves the command line.
    ///
    /// # Errors
    /// A configuration file that cannot be read, a setting that makes no sense, a host without a name.
    pub(crate) fn new(flags: &RunFlags) -> anyhow::Result<Self> {
        let effective = Effective::new(flags)?;
        let host_name = host_name()?;
        if host_name.is_empty() && effective.node_name.is_none() {
            return Err(anyhow!("empty hostname is invalid: give --hostname-override"));
        }
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Ok(Self {
            asked: Asked { settings: effective.proxy.clone(), node_name: effective.node_name.clone(), host_name },
            typed: effective.clone(),
            connection: ConnectionSettings {
                kubeconfig: some(&effective.config.client_connection.kubeconfig),
                master: some(&flags.proxy.master),
                name: program_name(&flags.face),
            },
            effective,
            families: flags.ip_family.families(),
        })
    }

    /// What rules are computed from before anything is known of a live cluster.
    #[must_use]
    pub(crate) fn empty_inputs(&self) -> Inputs {
        let node_name = self.asked.node_name.clone().unwrap_or_else(|| self.asked.host_name.clone());
        Inputs { node_name, settings: self.asked.settings.clone(), ..Inputs::default() }
    }

    /// What rules are computed from at this moment: manifests if a path is given, else the API server.
    ///
    /// # Errors
    /// The source cannot be read.
    pub(crate) async fn read_inputs(&self, flags: &RunFlags) -> anyhow::Result<Inputs> {
        let network = PodNetwork::asked(flags)?;
        let mut inputs = if let Some(path) = &flags.manifests {
            self.read_manifests(path, flags.network.proxy)?
        } else {
            let client = self.connection.client()?;
            let inputs = self.empty_inputs();
            Inputs { snapshot: api::snapshot(&client, &inputs.node_name).await?, ..inputs }
        };
        // What is written down about the network goes before what follows from flags.
        if let Some(network) = network.filter(|_| inputs.pod_rules.is_none()) {
            network.describe(&mut inputs);
            inputs.without_proxy = !flags.network.proxy;
        }
        Ok(inputs)
    }

    fn read_manifests(&self, path: &Path, proxy: bool) -> anyhow::Result<Inputs> {
        let mut files = Files::new(path.to_owned(), self.asked.clone());
        let mut inputs = files.read()?;
        let effective = files.configuration().map(|document| self.with_document(document)).transpose()?;
        if proxy && effective.as_ref().unwrap_or(&self.effective).daemon.conntrack.tcp_be_liberal {
            // `sepal run` switches it on before rules are computed.
            inputs.written_facts.get_or_insert_default().tcp_be_liberal = Some(true);
        }
        Ok(inputs)
    }

    /// The configuration with the one among the manifests over it.
    ///
    /// # Errors
    /// Something in it makes no sense.
    pub(crate) fn with_document(&self, document: &Value) -> anyhow::Result<Effective> {
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

/// The name under which requests are sent: the one under which sepal was started.
const fn program_name(face: &Face) -> ProgramName {
    match face {
        Face::Sepal => ProgramName::Sepal,
        Face::KubeProxy => ProgramName::KubeProxy,
        Face::Flanneld { .. } => ProgramName::Flanneld,
    }
}

/// The name that the host gives itself, as kubelet makes a Node's name of it.
///
/// # Errors
/// The host does not say.
pub(crate) fn host_name() -> anyhow::Result<String> {
    let name = nix::unistd::gethostname().context("cannot learn this host's name")?;
    Ok(name.to_string_lossy().trim().to_lowercase())
}
