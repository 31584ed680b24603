//! sepal: services, endpoints and leases.
