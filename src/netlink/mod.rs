//! The door to the rest of the kernel: addresses, sysctls, nfacct counters, the generation of `nf_tables`.

pub mod generation;
pub mod host;
pub mod nfacct;
pub mod record;
pub mod sysctl;

pub use host::{Host, Kernel};
