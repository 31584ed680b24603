//! The loop of the service proxy: receives updates, computes the desired rules, writes the differences, and repairs changes that other
//! programs make.
//!
//! - [`proxy_loop`]: receives updates and decides when to sync. [`update`]: the updates. [`facts`]: facts of the host that rules depend on.
//! - [`family_loop`]: when the rules of one family are synced, audited and tried again. [`family`]: one sync. [`quarantine`]: service ports
//!   whose rules iptables refuses. [`audit_schedule`]: when the live tables are checked.
//! - [`flow_loop`]: deletes stale UDP flows. [`service_health`]: health-check node ports.
//! - [`report`], [`sync_log`], [`decisions`], [`status`]: metrics, Events, log lines, and the state for the status page.

pub mod audit_schedule;
pub mod decisions;
pub mod facts;
pub mod family;
pub mod family_loop;
pub mod flow_loop;
pub mod proxy_loop;
pub mod quarantine;
pub mod report;
pub mod service_health;
pub mod status;
mod sync_budget;
pub mod sync_log;
pub mod update;
