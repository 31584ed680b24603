//! sepal: services, endpoints and leases. One daemon per Kubernetes node in place of kube-proxy (iptables mode) and flannel.
//!
//! Data flows one way. [`kubernetes`] and manifests give objects, which become [`cluster`] values. [`proxy`] and [`pod_network`] compute the
//! desired state from them, as values. [`iptables`] and [`netlink`] write the differences from the state that the kernel acknowledged.
//!
//! The layers, from the top. A module imports only modules of lower layers; `tests/pure/architecture.rs` checks that.
//!
//! 1. [`cli`]: one file per command.
//! 2. [`daemon`]: `sepal run`. Builds the parts, connects them, and starts a failed part again.
//! 3. [`serve`]: health, readiness, metrics, debug pages and the status page over HTTP.
//! 4. [`config`]: flags, KubeProxyConfiguration and manifests become the settings of the parts.
//! 5. The parts: [`proxy`], [`pod_network`], [`cni`] (the CNI plugin), [`explain`] (the path of a packet), [`preflight`] (what a node lacks).
//! 6. [`observe`]: metrics, events and readiness that the parts report. [`kubernetes`]: the client of the Kubernetes API.
//! 7. [`iptables`]: runs the programs. [`table`]: iptables tables as values. [`netlink`]: all other kernel state, like links and sysctls.
//! 8. [`http_server`]: the HTTP server of all ports. [`cluster`]: Services, endpoints and the Node as this node needs them.
//! 9. Single files without imports from the layers: `atomic_file`, `bad_setting`, `captured_log` (for tests), `duty_cycle`, `error_text`, `file_watch`, `json_keys`, `parallel`, `versions`.

mod atomic_file;
mod bad_setting;
#[cfg(test)]
mod captured_log;
pub mod cli;
pub mod cluster;
pub mod cni;
pub mod config;
pub mod daemon;
mod duty_cycle;
mod error_text;
pub mod explain;
pub mod file_watch;
mod http_server;
pub mod iptables;
pub mod json_keys;
pub mod kubernetes;
pub mod netlink;
pub mod observe;
pub mod parallel;
pub mod pod_network;
mod preflight;
pub mod proxy;
mod serve;
pub mod table;
mod versions;
