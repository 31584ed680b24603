//! What the parts report and [`crate::serve`] shows.
//!
//! - [`metrics`]: all metrics. [`sync_result`], [`service_traffic`], [`latency`]: values that the service proxy reports for them.
//! - [`readiness`]: the state of each part. [`liveness`]: parts that do not run. [`health`]: kube-proxy's health.
//! - [`query`]: queries from the status page to the loops. [`paging`]: one page of a long list.

pub mod health;
pub mod latency;
pub(crate) mod liveness;
pub mod metrics;
pub mod paging;
pub mod query;
pub mod readiness;
pub(crate) mod service_traffic;
pub mod sync_result;
