//! The service proxy: what kube-proxy does in iptables mode.
//!
//! - [`settings`]: its settings.
//! - [`rules`]: the desired rules. PURE.
//! - [`sync`]: the loop that writes them.
//! - [`conntrack`]: deletes stale UDP flows.
//! - [`traffic`]: counts connections per Service address and per endpoint.

pub mod conntrack;
pub mod rules;
pub mod settings;
pub mod sync;
pub mod traffic;
