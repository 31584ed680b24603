//! The door to the rest of the kernel: addresses, sysctls, nfacct counters.

pub mod host;
pub mod nfacct;
pub mod record;
pub mod sysctl;

pub use host::{Host, Kernel};
