//! An API server in memory for tests, benches and demos.
//!
//! It behaves like kube-apiserver as far as a client can observe it: resource versions, optimistic concurrency, paging, selectors, watches
//! with bookmarks and initial events, 410 after compaction, patches and `Status` errors. It sets the defaults that clients depend on. It
//! does not validate objects and has no admission. A test can inject the faults of a real server.
//!
//! [`Options`] add TLS with HTTP/2, client certificates and bearer tokens. [`Authority`] issues the certificates. A [`Relay`] between
//! client and server makes connections silent or broken. A [`Proxy`] is an HTTP or SOCKS5 proxy.
//!
//! [`ApiServer`] runs a server on its own thread. Other processes use the hooks under `/_test/` instead of its methods.
//!
//! | Hook | Effect |
//! |---|---|
//! | `POST load` | stores a JSON list of objects without defaults or checks |
//! | `POST delete` | removes the objects of a JSON list; each item has apiVersion, kind, namespace and name |
//! | `GET dump` | returns all objects as a JSON list |
//! | `POST drop-watches` | breaks every open watch |
//! | `POST bookmarks` | sends a bookmark on every watch that asked for bookmarks |
//! | `POST compact` | compacts the history: requests for earlier resource versions get 410 |
//! | `POST new-history?by=N` | raises the resource version by N, compacts the history and breaks the watches |
//! | `POST pause?seconds=N` | sends no responses and no watch events for N seconds |
//! | `POST fail?n=N&seconds=S&code=C&path=TEXT` | makes the next N requests fail, or all requests for S seconds. `only` is `watches` or `streaming`; `form` is `text`, `event`, `too-large`, `silent`, `closed`, `ended` or `without-bookmark`; `message` and `retry-after` are part of the response; `also=1` keeps the earlier failures |
//! | `POST stop-failing` | ends all failures |
//! | `POST delay?ms=N` | delays every response and every batch of watch events by N milliseconds |
//! | `POST deny?verb=V&resource=R` | refuses a verb on a resource with 403; `*` stands for any verb or resource |
//! | `POST allow-all` | removes all denials |
//! | `GET requests`, `POST requests?reset=1` | returns the counters of requests, such as `list services`; `reset` sets them to zero |
//! | `GET log` | returns time, method, path and code of each request |
//! | `GET rv` | returns the current resource version |

mod authentication;
mod certificates;
mod connections;
mod defaults;
mod der;
mod failure;
mod faults;
mod generate;
mod http;
mod kubeconfig;
mod listener_thread;
mod object;
mod options;
mod patch;
mod proxy;
mod relay;
mod request_log;
mod resource;
mod selector;
mod server;
mod state;
mod status_error;
mod store;
mod tls;
mod write;

pub use certificates::{Authority, CertificateRequest, Identity, KeyType};
pub use connections::{Connection, ConnectionCounts};
pub use failure::InjectedFailure;
pub use kubeconfig::User;
pub use options::Options;
pub use proxy::{Proxy, ProxyRequest};
pub use relay::{End, Relay};
pub use request_log::{BytesSent, LogEntry};
pub use server::ApiServer;
pub use status_error::StatusError;
pub use tls::ClientCertificate;
