//! The client for the API server. It behaves as client-go does.
//!
//! [`kubeconfig`] and [`resolve`] find the server and the credentials, [`proxy`] and [`connector`] open connections, [`tls`] and [`verifier`]
//! check the server's certificate, and [`transport`] sends requests and replaces connections that can no longer be used.

mod connections;
mod connector;
mod credentials;
mod error;
mod exec_plugin;
mod kubeconfig;
mod proxy;
mod resolve;
mod server;
mod server_url;
mod tls;
mod transport;
mod user_agent;
mod verifier;

pub use connections::Connections;
pub use error::ConnectionError;
pub use resolve::ConnectionSettings;
pub(crate) use server_url::without_password;
pub use user_agent::ProgramName;
