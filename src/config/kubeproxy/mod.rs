//! KubeProxyConfiguration `v1alpha1` (spec section 1.4): the document, its defaults, what is wrong with it, and what it comes to.
//!
//! [`decode`] reads a file, [`defaults`] fills in what it leaves open, [`validate`] finds nonsense with upstream's paths and messages,
//! [`resolve`] makes settings of it.

pub mod decode;
pub mod defaults;
pub mod document;
pub mod gates;
pub mod resolve;
pub mod validate;

pub use document::KubeProxyConfiguration;

/// `apiVersion` of the configuration.
pub const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// `kind` of the configuration.
pub const KIND: &str = "KubeProxyConfiguration";
