//! The run that `sepal preflight` checks.

use crate::config::flags::RunFlags;
use crate::daemon::network_setup::NetworkSetup;
use crate::daemon::setup::Setup;
use crate::preflight::node::Roles;

/// What `sepal run` would start with the same flags.
pub(super) struct RunSetup<'a> {
    pub flags: &'a RunFlags,
    pub setup: Setup,
    /// The pod network, if it is switched on.
    pub network: Option<NetworkSetup>,
    /// Why net-conf.json cannot be used. `network` holds the configuration that flannel ships then.
    pub conf_error: Option<anyhow::Error>,
}

impl RunSetup<'_> {
    /// The parts that would run.
    pub(super) const fn roles(&self) -> Roles {
        Roles { proxy: self.flags.network.proxy, pod_network: self.network.is_some() }
    }
}
