//! What the daemon serves over HTTP.
//!
//! - [`healthz`]: `/healthz`, `/livez` and `/readyz`. [`flanneld_health`]: flanneld's health server.
//! - [`metrics_server`]: the metrics port with [`zpages`] (`/flagz`, `/statusz`) and the status page ([`status`]).

pub mod flanneld_health;
pub mod healthz;
pub mod metrics_server;
pub mod status;
pub mod zpages;
