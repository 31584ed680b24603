//! The server as its clients see it, request by request.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot be set up has failed")]

mod client;
mod faults;
mod handle;
mod patches;
mod proxies;
mod reads;
mod refusals;
mod refused_streams;
mod relays;
mod secure;
mod secure_client;
mod watches;
mod writes;
