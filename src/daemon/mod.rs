//! `sepal run`: builds the parts, connects their channels, starts a failed part again, and reloads the configuration.
//!
//! - [`run`]: the start, in kube-proxy's order. [`setup`]: the configuration and the connection to the cluster.
//! - [`proxy`], [`pod_network`]: the parts and their inputs. [`own_node`]: waits for this node's Node.
//! - [`supervise`]: starts a part again that ended or panicked.
//! - [`config_watch`], [`manifest_watch`]: files that change. [`logs`]: the log. [`debug_pages`]: the pages of the metrics port.
//! - [`service_manager`]: tells systemd that the daemon is ready.

pub mod config_watch;
pub mod debug_pages;
pub mod logs;
pub mod manifest_watch;
pub mod network_setup;
pub mod own_node;
pub mod pod_network;
pub mod proxy;
pub mod run;
pub mod service_manager;
pub mod setup;
pub mod supervise;
