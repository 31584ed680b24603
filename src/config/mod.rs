//! What the operator asked for: as typed, as written in files, and resolved.

pub mod checks;
pub mod duration;
pub mod effective;
pub mod flag_values;
pub mod flags;
pub mod host_facts;
pub mod kernel;
pub mod kubeproxy;
pub mod netconf;
pub mod network_facts;
pub mod network_flags;
pub mod network_settings;
pub mod proxy_flags;
pub mod settings;
pub mod subnet_space;
pub mod yaml;
