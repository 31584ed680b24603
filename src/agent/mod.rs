//! The loops that join sources, rules and the kernel.

pub mod events;
pub mod facts;
pub mod family;
pub mod flanneld_health;
pub mod flow_loop;
pub mod health;
pub mod healthz;
pub mod http;
pub mod latency;
pub mod listen;
mod lookout;
pub mod metrics;
pub mod metrics_server;
pub mod node_name;
pub mod node_writes;
pub mod pod_network;
pub mod proxy_loop;
pub mod quarantine;
pub mod readiness;
pub mod report;
pub mod service_health;
pub mod service_manager;
pub mod service_traffic;
pub mod status;
pub mod subnet_lease;
pub mod supervise;
pub mod zpages;
