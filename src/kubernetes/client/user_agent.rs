//! The `User-Agent` of requests. Audit logs and API priority and fairness tell clients apart by it.

use crate::versions;

/// The name under which the process was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProgramName {
    /// sepal's own.
    #[default]
    Sepal,
    /// `kube-proxy`.
    KubeProxy,
    /// `flanneld`.
    Flanneld,
}

/// The value of `User-Agent`, like `kube-proxy/v1.36.2 (linux/amd64) sepal/0.1.0`.
#[must_use]
pub(super) fn user_agent(name: ProgramName) -> String {
    // Go's names of architectures.
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    };
    let version = env!("CARGO_PKG_VERSION");
    let system = format!("({}/{architecture})", std::env::consts::OS);
    match name {
        ProgramName::Sepal => format!("sepal/{version} {system}"),
        ProgramName::KubeProxy => format!("kube-proxy/{} {system} sepal/{version}", versions::KUBE_PROXY),
        ProgramName::Flanneld => format!("flanneld/{} {system} sepal/{version}", versions::FLANNELD),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_its_version() {
        let version = env!("CARGO_PKG_VERSION");
        assert!(user_agent(ProgramName::KubeProxy).starts_with("kube-proxy/v1.36.2 (linux/"), "{}", user_agent(ProgramName::KubeProxy));
        assert!(user_agent(ProgramName::Flanneld).starts_with("flanneld/v0.28.9 (linux/"), "{}", user_agent(ProgramName::Flanneld));
        for name in [ProgramName::Sepal, ProgramName::KubeProxy, ProgramName::Flanneld] {
            assert!(user_agent(name).contains(&format!("sepal/{version}")), "{}", user_agent(name));
        }
    }
}
