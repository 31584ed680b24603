//! `sepal run`: builds the parts, connects their channels, restarts a failed part, and reloads the configuration.
//!
//! - [`run`]: the start, in kube-proxy's order, and the end. [`setup`], [`network_setup`]: what flags and files say.
//! - [`prepare`]: reads and sets what the parts need. [`own_node`]: waits for this node's Node.
//! - [`proxy`], [`pod_network`]: the parts and their inputs. [`servers`]: the health server and the metrics server.
//! - [`supervise`]: restarts a part that ended or panicked.
//! - [`config_watch`], [`manifest_watch`]: files that change. [`logs`]: the log. [`debug_pages`]: the pages of the metrics server.
//! - [`service_manager`]: reports to systemd that the daemon is ready.

pub mod config_watch;
pub mod debug_pages;
pub mod logs;
pub mod manifest_watch;
pub mod network_setup;
pub mod own_node;
pub mod pod_network;
pub mod prepare;
pub mod proxy;
pub mod run;
pub mod servers;
pub mod service_manager;
pub mod setup;
pub mod supervise;
