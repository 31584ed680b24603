//! The HTTP side of the server: accepts connections, reads requests and writes responses.
//!
//! `connection` accepts connections and passes each request to `handle`. `handle` calls `hooks`, `injected` or `route`. `route` calls `list`,
//! `watch`, `review` or `discovery`, or the write functions of the crate. All of them use `request`, `query`, `response` and `body`.

mod body;
mod connection;
mod discovery;
mod gzip;
mod handle;
mod hooks;
mod injected;
mod list;
mod query;
mod request;
mod response;
mod review;
mod route;
mod watch;

pub(crate) use connection::accept;
