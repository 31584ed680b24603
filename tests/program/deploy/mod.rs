//! The containers of the manifests in `deploy/`, run with their arguments, capabilities and read-only file systems.

mod node;
mod permissions;
