//! Reads what the operator configured, and turns it into the settings of each part.
//!
//! - Flags: [`flags`] (sepal's own), [`proxy_flags`] (kube-proxy's), [`network_flags`] (the pod network's). `flag_blocks` is the macro that
//!   defines a flag in one block. [`flag_values`] parses values, [`flag_listing`] lists them.
//! - [`kubeproxy`]: KubeProxyConfiguration. [`effective`]: flags and file together, as they are in force. [`checks`]: doubtful settings.
//! - [`manifests`], [`manifest_files`], [`network_facts`]: manifests in place of an API server.
//! - [`settings`]: the results. [`duration`], [`yaml`]: formats.

pub mod checks;
pub mod duration;
pub mod effective;
mod flag_blocks;
pub mod flag_listing;
pub mod flag_values;
pub mod flags;
mod ignored_flags;
pub mod kubeproxy;
mod logging_flags;
pub mod manifest_files;
pub mod manifests;
pub mod network_facts;
pub mod network_flags;
pub mod proxy_flags;
pub mod settings;
pub mod yaml;
