//! KubeProxyConfiguration `v1alpha1` [kube-proxy 1.4].
//!
//! [`document`] has the fields. [`decode`] reads a file, [`defaults`] fills in the defaults, [`validate`] finds invalid fields and reports them
//! with upstream's paths and messages, and [`resolve`] makes settings. [`gates`] has the feature gates.

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
pub(crate) const KIND: &str = "KubeProxyConfiguration";
