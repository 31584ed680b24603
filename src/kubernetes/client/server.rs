//! The settings of connections to one API server.

use std::sync::Arc;

use http::{HeaderName, HeaderValue};

use super::credentials::Sources;
use super::exec_plugin::ExecPlugin;
use super::server_url::Url;
use super::user_agent::ProgramName;

/// A server with all settings that a connection to it needs.
pub(super) struct Server {
    pub url: Url,
    /// The source of the settings, for messages.
    pub origin: String,
    /// The name that the server's certificate must hold, if it is not the URL's host.
    pub tls_name: Option<String>,
    pub proxy: Option<Url>,
    pub sources: Sources,
    pub plugin: Option<Arc<ExecPlugin>>,
    /// `Impersonate-*` headers.
    pub impersonation: Vec<(HeaderName, HeaderValue)>,
    /// Answers may be compressed.
    pub compress: bool,
    pub name: ProgramName,
}
