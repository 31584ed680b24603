//! What the daemon serves over HTTP.
//!
//! - [`healthz`]: `/healthz`, `/livez` and `/readyz`. [`flanneld_health`]: flanneld's health server.
//! - [`metrics_server`]: the metrics port with [`zpages`] (`/flagz`, `/statusz`) and the status page ([`status`]).

pub(crate) mod flanneld_health;
pub(crate) mod healthz;
pub(crate) mod metrics_server;
pub(crate) mod status;
pub(crate) mod zpages;
