//! Watches the configuration file and applies its changes [kube-proxy 1.3]. A change that cannot be applied ends the program, as every
//! change does in kube-proxy. The file may be replaced through links, as in the volume of a ConfigMap.

use std::convert::Infallible;

use tokio::sync::watch;

use crate::config::effective::EffectiveConfig;
use crate::config::flags::RunFlags;
use crate::file_watch::FileWatch;
use crate::netlink::Kernel;
use crate::netlink::sysctl::{set_conntrack, set_oom_score_adj};
use crate::proxy::settings::ProxySettings;

use super::logs;

/// The channels that a changed configuration is sent to.
pub(crate) struct ConfigSenders {
    /// To the service proxy.
    pub settings: watch::Sender<Option<ProxySettings>>,
    /// To `/configz`.
    pub configz: watch::Sender<serde_json::Value>,
}

/// Follows the configuration file that the flags name. Without one, it never ends.
///
/// # Errors
/// A field has changed that only a restart can apply.
pub(crate) async fn follow(flags: &RunFlags, mut effective: EffectiveConfig, senders: ConfigSenders) -> anyhow::Result<Infallible> {
    let Some(path) = flags.proxy.config_file() else { return std::future::pending().await };
    let mut watch = FileWatch::new_or_warn(&path);
    loop {
        watch.changed().await;
        let new = match EffectiveConfig::new(flags) {
            Ok(new) => new,
            Err(error) => {
                tracing::error!("{error}; what it said before still holds");
                continue;
            }
        };
        if new == effective {
            continue;
        }
        let fixed = effective.fixed_differences(&new);
        // Manifests may hold a KubeProxyConfiguration of their own, which overrides the file.
        if !fixed.is_empty() || flags.manifests.is_some() {
            let what = if fixed.is_empty() { "with --manifests, nothing".to_owned() } else { format!("not {}", fixed.join(", ")) };
            anyhow::bail!("content of the proxy server's configuration file was updated; while the program runs it can change {what}");
        }
        new.notes.iter().for_each(|note| tracing::warn!("{note}"));
        tracing::info!("configuration file {} has changed and is now in force", path.display());
        apply(&effective, &new, &senders).await;
        effective = new;
    }
}

async fn apply(old: &EffectiveConfig, new: &EffectiveConfig, senders: &ConfigSenders) {
    logs::set_verbosity(new.daemon.verbosity);
    if old.daemon.conntrack != new.daemon.conntrack
        && let Err(error) = set_conntrack(&Kernel, &new.daemon.conntrack)
    {
        tracing::error!("{error}");
    }
    if old.daemon.oom_score_adj != new.daemon.oom_score_adj {
        set_oom_score_adj(&Kernel, new.daemon.oom_score_adj, new.daemon.oom_score_is_set).await;
    }
    if let Ok(value) = serde_json::to_value(&new.config) {
        senders.configz.send_replace(value);
    }
    senders.settings.send_replace(Some(new.proxy.clone()));
}
