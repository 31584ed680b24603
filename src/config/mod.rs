//! What the operator asked for: as typed, as written in files, and resolved.

pub mod checks;
pub mod duration;
pub mod effective;
pub mod flag_values;
pub mod flags;
pub mod kubeproxy;
pub mod manifest_files;
pub mod manifests;
pub mod network_facts;
pub mod network_flags;
pub mod proxy_flags;
pub mod settings;
pub mod typed_flags;
pub mod yaml;
