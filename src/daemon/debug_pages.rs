//! The pages of the metrics server that show this process [kube-proxy 9.3].

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::watch;

use crate::config::effective::EffectiveConfig;
use crate::config::flags::RunFlags;
use crate::config::kubeproxy::gates::enabled;
use crate::observe::metrics::{Format, Metrics};
use crate::serve::metrics_server::{Exposition, MetricsPages, SetVerbosity};
use crate::serve::status::server::StatusPage;
use crate::serve::zpages::BuildInfo;

use crate::versions;

use super::logs;

/// Builds the pages for this configuration and these flags.
pub(crate) fn pages(
    effective: &EffectiveConfig,
    flags: &RunFlags,
    metrics: Arc<Metrics>,
    configz: watch::Receiver<serde_json::Value>,
    site: StatusPage,
) -> MetricsPages {
    let gate = |name| enabled(&effective.config.feature_gates, name);
    let set_verbosity: SetVerbosity = Box::new(|text: &str| {
        let verbosity = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
        logs::set_verbosity(verbosity);
        Ok(())
    });
    let slowest = Arc::clone(&metrics);
    MetricsPages {
        site: Some(site),
        slowest: Box::new(move || slowest.slowest().text(Timestamp::now())),
        metrics: Box::new(move |accept| {
            let (content_type, text) = metrics.text(Format::of_accept(accept.unwrap_or_default()));
            Exposition { content_type: content_type.to_owned(), text }
        }),
        configz,
        flags: gate("ComponentFlagz").then(|| flags.values.clone()),
        build: gate("ComponentStatusz").then(|| BuildInfo {
            binary_version: format!("{}+sepal-{}", versions::KUBE_PROXY.trim_start_matches('v'), env!("CARGO_PKG_VERSION")),
            emulation_version: "1.36".into(),
            started: Timestamp::now(),
        }),
        set_verbosity: effective.daemon.profiling.then_some(set_verbosity),
    }
}
