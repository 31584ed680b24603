//! From flags to what was asked for: the configuration file, this node's name, how to reach the cluster.

use std::path::Path;

use anyhow::{Context, anyhow};

use crate::cluster::Family;
use crate::config::flags::RunFlags;
use crate::config::kubeproxy::KubeProxyConfiguration;
use crate::config::settings::Asked;
use crate::rules::inputs::Inputs;
use crate::source::api::{self, Connection};
use crate::source::follow::Files;

/// What the command line, and the configuration file it names, ask for.
#[derive(Debug)]
pub(super) struct Setup {
    /// Settings and names.
    pub asked: Asked,
    /// How to reach the API server.
    pub connection: Connection,
    /// Families to write or print.
    pub families: Vec<Family>,
}

impl Setup {
    /// Resolves the command line.
    ///
    /// # Errors
    /// A configuration file that cannot be read, a setting that makes no sense, a host without a name.
    pub(super) fn new(flags: &RunFlags) -> anyhow::Result<Self> {
        let file = flags.proxy.config.as_deref().map(read_config).transpose()?;
        let settings = match &file {
            Some(config) => config.resolve(),
            None => flags.proxy.resolve(),
        };
        let kubeconfig = match &file {
            Some(config) => Some(config.client_connection.kubeconfig.clone()),
            None => flags.proxy.kubeconfig.clone(),
        };
        let node_name = flags.proxy.node_name()?.or_else(|| file.as_ref().and_then(KubeProxyConfiguration::node_name));
        let host_name = nix::unistd::gethostname().context("cannot learn this host's name")?;
        let host_name = host_name.to_string_lossy().trim().to_lowercase();
        if host_name.is_empty() && node_name.is_none() {
            return Err(anyhow!("empty hostname is invalid: give --hostname-override"));
        }
        Ok(Self {
            asked: Asked { settings: settings.context("configuration")?, node_name, host_name },
            connection: Connection { kubeconfig: kubeconfig.filter(|path| !path.is_empty()), master: flags.proxy.master.clone() },
            families: flags.ip_family.families(),
        })
    }

    /// What rules are computed from before anything is known of a live cluster.
    #[must_use]
    pub(super) fn empty_inputs(&self) -> Inputs {
        let node_name = self.asked.node_name.clone().unwrap_or_else(|| self.asked.host_name.clone());
        Inputs { node_name, settings: self.asked.settings.clone(), ..Inputs::default() }
    }

    /// What rules are computed from at this moment: manifests if a path is given, else the API server.
    ///
    /// # Errors
    /// The source cannot be read.
    pub(super) async fn read_inputs(&self, manifests: Option<&Path>) -> anyhow::Result<Inputs> {
        if let Some(path) = manifests {
            return Ok(Files::new(path.to_owned(), self.asked.clone()).read()?);
        }
        let mut inputs = self.empty_inputs();
        let client = self.connection.client().await?;
        inputs.snapshot = api::snapshot(&client, &inputs.node_name).await?;
        Ok(inputs)
    }
}

fn read_config(path: &Path) -> anyhow::Result<KubeProxyConfiguration> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the configuration file {}", path.display()))?;
    KubeProxyConfiguration::from_text(&text).with_context(|| format!("configuration file {}", path.display()))
}
