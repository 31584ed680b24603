//! The configuration file while the program runs (spec section 1.3): what can be applied is applied, and for the rest the program ends,
//! as kube-proxy does for everything. A ConfigMap's swap of links is noticed, too.

use std::convert::Infallible;

use tokio::sync::watch;

use crate::config::effective::Effective;
use crate::config::flags::RunFlags;
use crate::error_text::error_text;
use crate::file_watch::FileWatch;
use crate::netlink::Kernel;
use crate::netlink::sysctl::{set_conntrack, set_oom_score_adj};
use crate::proxy::settings::ProxySettings;

use super::logs;

/// Who is told of a new configuration.
pub(crate) struct Told {
    /// The service proxy.
    pub settings: watch::Sender<Option<ProxySettings>>,
    /// What `/configz` shows.
    pub configz: watch::Sender<serde_json::Value>,
}

/// Follows the configuration file that a command line names; without one there is nothing to follow.
///
/// # Errors
/// The file says something now that only a new start can apply.
pub(crate) async fn follow(flags: &RunFlags, mut effective: Effective, told: Told) -> anyhow::Result<Infallible> {
    let Some(path) = flags.proxy.config_file() else { return std::future::pending().await };
    let mut watch = match FileWatch::new(&path) {
        Ok(watch) => watch,
        Err(error) => {
            tracing::warn!("cannot watch {}, so changes of it are not noticed: {}", path.display(), error_text(&error));
            return std::future::pending().await;
        }
    };
    loop {
        watch.changed().await;
        let new = match Effective::new(flags) {
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
        // Manifests may hold a configuration of their own, which goes before the file's.
        if !fixed.is_empty() || flags.manifests.is_some() {
            let what = if fixed.is_empty() { "with --manifests, nothing".to_owned() } else { format!("not {}", fixed.join(", ")) };
            anyhow::bail!("content of the proxy server's configuration file was updated; while the program runs it can change {what}");
        }
        new.notes.iter().for_each(|note| tracing::warn!("{note}"));
        tracing::info!("configuration file {} has changed; it holds from now on", path.display());
        apply(&effective, &new, &told).await;
        effective = new;
    }
}

async fn apply(old: &Effective, new: &Effective, told: &Told) {
    logs::set_verbosity(new.daemon.verbosity);
    if old.daemon.conntrack != new.daemon.conntrack
        && let Err(error) = set_conntrack(&Kernel, &new.daemon.conntrack)
    {
        tracing::error!("{error}");
    }
    if old.daemon.oom_score_adj != new.daemon.oom_score_adj {
        set_oom_score_adj(&Kernel, new.daemon.oom_score_adj, new.daemon.oom_score_asked).await;
    }
    if let Ok(value) = serde_json::to_value(&new.config) {
        told.configz.send_replace(value);
    }
    told.settings.send_replace(Some(new.proxy.clone()));
}
