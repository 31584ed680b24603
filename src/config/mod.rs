//! What the operator asked for: as typed, as written in files, and resolved.

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
