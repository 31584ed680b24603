//! The loops that join sources, rules and the kernel.

pub mod proxy_loop;
pub mod sync;
