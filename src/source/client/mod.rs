//! The client for the API server. It behaves as client-go does: where the server is and who we are ([`kubeconfig`]), how to get there
//! ([`proxy`], [`connector`]), whom to trust ([`tls`], [`verifier`]), and when to connect again ([`transport`]).

mod connections;
mod connector;
mod credentials;
mod error;
mod exec_plugin;
mod kubeconfig;
mod proxy;
mod resolve;
mod server_url;
mod tls;
mod transport;
mod user_agent;
mod verifier;

pub use connections::Connections;
pub use resolve::{Connection, ConnectionError};
pub use server_url::without_password;
pub use user_agent::ProgramName;
