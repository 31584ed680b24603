//! An in-memory Kubernetes API server for tests, benches and demos.
//!
//! It shows what a client can observe of a real one: resource versions, optimistic concurrency, paging, selectors, watches with
//! bookmarks and initial events, 410 after compaction, patches and `Status` errors. Objects are not validated, only completed where
//! clients rely on it; there is no admission. What goes wrong with real servers goes wrong here on demand.
//!
//! [`Options`] add TLS with HTTP/2, client certificates and bearer tokens; [`Authority`] makes the certificates. Between a client and the
//! server there may be a [`Relay`], whose connections go silent or break, and a [`Proxy`].
//!
//! [`ApiServer`] runs a server on a thread of its own, for tests of any kind. The hooks under `/_test/` do the same for other
//! processes.
//!
//! | Hook | What it does |
//! |---|---|
//! | `POST load` | stores a JSON list of objects as they are |
//! | `POST delete` | removes objects, a JSON list of apiVersion, kind, namespace and name |
//! | `GET dump` | every object as a JSON list |
//! | `POST drop-watches` | breaks every open watch |
//! | `POST bookmarks` | sends a bookmark on every watch that takes them |
//! | `POST compact` | forgets the history |
//! | `POST new-history?by=N` | forgets it, breaks the watches and goes on N versions later |
//! | `POST pause?seconds=N` | answers nothing for a time |
//! | `POST fail?n=N&seconds=S&code=C&path=TEXT` | fails the next requests, or all for a time. `only` is `watches` or `streaming`; `form` is `text`, `event`, `too-large`, `silent`, `closed`, `ended` or `without-bookmark`; `message` and `retry-after` go into the answer; `also=1` keeps the failures before |
//! | `POST stop-failing` | ends all failures |
//! | `POST delay?ms=N` | lets every request wait |
//! | `POST deny?verb=V&resource=R` | refuses a verb; `*` stands for any. `POST allow-all` ends it |
//! | `GET requests`, `POST requests?reset=1` | counters such as `list services` |
//! | `GET log` | time, method, path and code of each request |
//! | `GET rv` | the current resource version |

mod access;
mod background;
mod certificates;
mod connections;
mod defaults;
mod failure;
mod faults;
mod http;
mod journal;
mod kubeconfig;
mod object;
mod options;
mod patch;
mod proxy;
mod refusal;
mod relay;
mod resource;
mod selector;
mod server;
mod stamp;
mod store;
mod tls;
mod write;

pub use certificates::{Authority, CertificateRequest, Identity, KeyType};
pub use connections::{Connection, ConnectionCounts};
pub use failure::Failure;
pub use journal::{LogEntry, Sent};
pub use kubeconfig::User;
pub use options::Options;
pub use proxy::{Proxy, ProxyRequest};
pub use refusal::Refusal;
pub use relay::{End, Relay};
pub use server::ApiServer;
pub use tls::ClientCertificate;
