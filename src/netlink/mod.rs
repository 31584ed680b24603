//! Talks to the kernel over netlink and through sysctls: links, addresses, routes, neighbours and FDB entries; conntrack, nfacct counters
//! and the generation of `nf_tables`.
//!
//! `socket`, `message` and `attributes` are the netlink codec. All netlink protocols use it.

pub(crate) mod attributes;
mod decode;
pub mod device;
mod encode;
pub mod entry;
pub mod error;
#[cfg(any(test, feature = "test-kernel"))]
pub mod fake_network;
pub mod generation;
pub mod host;
pub mod kernel;
pub mod kernel_settings;
pub mod link;
pub mod mac;
pub(crate) mod message;
pub mod monitor;
pub mod nfacct;
pub mod nft_tables;
mod offload;
#[cfg(any(test, feature = "test-kernel"))]
pub mod record;
pub mod scratch;
pub mod socket;
pub mod sysctl;
pub mod veth;

pub use error::{Cause, NetlinkError};
pub use host::{Host, Kernel};
pub use kernel::NetworkKernel;
