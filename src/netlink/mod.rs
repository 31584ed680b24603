//! The door to the rest of the kernel: addresses, sysctls, nfacct counters, the generation of `nf_tables`; links, routes, neighbours and
//! forwarding entries.

pub mod device;
pub mod entry;
pub mod error;
pub mod fake_network;
pub mod generation;
pub mod host;
pub mod kernel;
pub mod kernel_settings;
pub mod link;
pub mod mac;
pub mod monitor;
pub mod nfacct;
pub mod nft_tables;
mod offload;
mod readings;
pub mod record;
mod requests;
pub mod scratch;
pub mod socket;
pub mod sysctl;
pub mod veth;

pub use error::{Cause, NetlinkError};
pub use host::{Host, Kernel};
pub use kernel::NetworkKernel;
