//! What the operator asked for: as typed, as written in files, and resolved.

pub mod flags;
pub mod host_facts;
pub mod kernel;
pub mod kubeproxy;
pub mod settings;
