//! Watches net-conf.json: applies the changes that need no restart, and logs the others.

use std::convert::Infallible;
use std::path::Path;

use tokio::sync::watch;

use crate::error_text::error_text;
use crate::file_watch::FileWatch;
use crate::pod_network::net_conf::{Backend, BadNetConf, NetConf};

/// Why net-conf.json cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetConfError {
    /// The file cannot be read.
    #[error("failed to read net conf: open {path}: {cause}. Mount the ConfigMap that holds it, or say where it is (--net-config-path)")]
    File {
        /// Its path.
        path: String,
        /// The cause.
        cause: std::io::Error,
    },
    /// The content is invalid.
    #[error("error parsing subnet config {path}: {bad}")]
    Text {
        /// Its path.
        path: String,
        /// What is wrong.
        bad: BadNetConf,
    },
}

/// Reads net-conf.json and logs its warnings.
///
/// # Errors
/// The file cannot be read or is invalid.
pub fn read(path: &Path) -> Result<NetConf, NetConfError> {
    let shown = || path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|cause| NetConfError::File { path: shown(), cause })?;
    let conf = NetConf::parse(&text).map_err(|bad| NetConfError::Text { path: shown(), bad })?;
    conf.warnings().iter().for_each(|warning| tracing::warn!("{}: {warning}", path.display()));
    Ok(conf)
}

/// Watches the file until the program ends. It also detects that a ConfigMap was replaced by a symbolic link.
pub async fn follow(path: &Path, conf: watch::Sender<NetConf>) -> Infallible {
    let mut watch = match FileWatch::new(path) {
        Ok(watch) => watch,
        Err(error) => {
            tracing::warn!("cannot watch {}, so changes to it are not detected: {}", path.display(), error_text(&error));
            return std::future::pending().await;
        }
    };
    loop {
        watch.changed().await;
        match read(path) {
            Ok(new) => {
                conf.send_if_modified(|current| apply(current, &new, path));
            }
            Err(error) => tracing::error!("{error}; what it said before still holds"),
        }
    }
}

/// Applies the changes that need no restart. Returns true if there are any.
fn apply(current: &mut NetConf, new: &NetConf, path: &Path) -> bool {
    let fixed = current.fixed_differences(new);
    if !fixed.is_empty() {
        tracing::error!(
            "{} has changed in {}, which needs a restart: restart this program on every node",
            path.display(),
            fixed.join(", ")
        );
    }
    if let (Backend::Vxlan(here), Backend::Vxlan(there)) = (&mut current.backend, &new.backend) {
        let now = here.with_live_changes(there);
        if now != *here {
            *here = now;
            tracing::info!("{} has changed: the new MTU and DirectRouting are applied", path.display());
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(backend: &str) -> NetConf {
        NetConf::parse(&format!(r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"vxlan"{backend}}}}}"#)).expect("a good one")
    }

    #[test]
    fn mtu_and_direct_routing_are_applied() {
        let path = Path::new("net-conf.json");
        let mut current = conf("");
        assert!(!apply(&mut current, &conf(""), path));
        assert!(apply(&mut current, &conf(r#","MTU":1400,"DirectRouting":true"#), path));
        assert_eq!(current, conf(r#","MTU":1400,"DirectRouting":true"#));
        assert!(!apply(&mut current, &conf(r#","MTU":1400,"DirectRouting":true,"VNI":7"#), path), "only a new start can");
        assert!(apply(&mut current, &conf(r#","VNI":7"#), path), "the rest of it counts");
        assert_eq!(current, conf(""));
    }

    #[test]
    fn an_invalid_file_is_reported_with_a_cure() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("net-conf.json");
        let error = read(&path).expect_err("there is none").to_string();
        assert!(error.starts_with("failed to read net conf: open ") && error.contains("--net-config-path"), "{error}");
        std::fs::write(&path, "{\"Network\":\"10.0.0.0/8\",\"Backend\":{\"Type\":\"ipip\"}}").expect("writable");
        let error = read(&path).expect_err("a backend that is not there").to_string();
        assert!(error.starts_with("error parsing subnet config ") && error.contains("vxlan or host-gw"), "{error}");
    }
}
