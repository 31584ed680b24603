//! sepal: services, endpoints and leases.

pub mod cluster;
pub mod config;
pub mod rules;
pub mod table;
