//! Runs the health server and the metrics server.

use std::sync::Arc;

use tokio::sync::watch;

use super::debug_pages::pages;
use super::setup::Setup;
use crate::config::flags::{RunAs, RunFlags};
use crate::http_server::StartError;
use crate::observe::health::SharedHealth;
use crate::observe::metrics::Metrics;
use crate::observe::readiness::Readiness;
use crate::serve::status::server::StatusPage;
use crate::serve::{flanneld_health, healthz, metrics_server};

/// A server that cannot listen: the reason of the Event about it, and the error.
pub(super) type ServerFailure = (&'static str, StartError);

/// Runs the health server. Ends only if it cannot listen and `bindAddressHardFail` is set.
pub(super) async fn serve_health(
    setup: &Setup,
    (health, readiness): (SharedHealth, Readiness),
    metrics: Arc<Metrics>,
    flags: &RunFlags,
) -> ServerFailure {
    let daemon = &setup.effective.daemon;
    if flags.proxy.init_only {
        return std::future::pending().await;
    }
    if let RunAs::Flanneld { healthz } = &flags.run_as {
        let Some(place) = healthz else { return std::future::pending().await };
        let Err(failed) = flanneld_health::serve(place, readiness).await;
        return ("FailedToStartHealthz", failed);
    }
    let answered = Arc::new(move |probe, status: hyper::StatusCode| match probe {
        healthz::HealthPath::Healthz => metrics.healthz(status.as_u16()),
        healthz::HealthPath::Livez => metrics.livez(status.as_u16()),
    });
    let Some(address) = daemon.healthz else { return std::future::pending().await };
    let tables = healthz::HealthSources { health, readiness, readyz: flags.run_as == RunAs::Sepal };
    let Err(failed) = healthz::serve(address, daemon.hard_fail, tables, answered).await;
    ("FailedToStartProxierHealthcheck", failed)
}

/// Runs the metrics server. Ends only if it cannot listen and `bindAddressHardFail` is set.
pub(super) async fn serve_metrics(
    setup: &Setup,
    (metrics, configz, site): (Arc<Metrics>, watch::Receiver<serde_json::Value>, StatusPage),
    flags: &RunFlags,
) -> ServerFailure {
    if matches!(flags.run_as, RunAs::Flanneld { .. }) {
        return std::future::pending().await;
    }
    let daemon = &setup.effective.daemon;
    let pages = pages(&setup.effective, flags, metrics, configz, site);
    let Err(failed) = metrics_server::serve(daemon.metrics, daemon.hard_fail, pages).await;
    ("FailedToStartMetricServer", failed)
}
