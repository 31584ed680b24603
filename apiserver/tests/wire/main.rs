//! Tests of the API server through its HTTP API.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by a panic")]

mod client;
mod failing_streams;
mod faults;
mod handle;
mod invalid_requests;
mod patches;
mod proxies;
mod reads;
mod relays;
mod secure;
mod secure_client;
mod watches;
mod writes;
