//! The versions of the programs that sepal replaces.

/// The version of kube-proxy.
pub(crate) const KUBE_PROXY: &str = "v1.36.2";
/// The version of flanneld.
pub(crate) const FLANNELD: &str = "v0.28.9";
