//! net-conf.json while the program runs: what can be applied is applied, and the rest is told of.

use std::convert::Infallible;
use std::path::Path;

use tokio::sync::watch;

use crate::file_watch::Watch;
use crate::pod_network::net_conf::{Backend, BadNetConf, NetConf, VxlanConf};

/// The configuration cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum NoNetConf {
    /// There is no such file.
    #[error("failed to read net conf: open {path}: {cause}. Mount the ConfigMap that holds it, or say where it is (--net-config-path)")]
    File {
        /// Its path.
        path: String,
        /// Why.
        cause: std::io::Error,
    },
    /// It says nothing that could be done.
    #[error("error parsing subnet config {path}: {bad}")]
    Text {
        /// Its path.
        path: String,
        /// What is wrong.
        bad: BadNetConf,
    },
}

/// Reads a net-conf.json.
///
/// # Errors
/// It is not there, or makes no sense.
pub fn read(path: &Path) -> Result<NetConf, NoNetConf> {
    let shown = || path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|cause| NoNetConf::File { path: shown(), cause })?;
    let conf = NetConf::parse(&text).map_err(|bad| NoNetConf::Text { path: shown(), bad })?;
    conf.notes().iter().for_each(|note| tracing::warn!("{}: {note}", path.display()));
    Ok(conf)
}

/// Follows the file for good. A ConfigMap's swap of links is noticed, too.
pub async fn follow(path: &Path, conf: watch::Sender<NetConf>) -> Infallible {
    let mut watch = Watch::new_or_warn(path);
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

/// Applies what a running network can follow; says whether that is anything.
fn apply(current: &mut NetConf, new: &NetConf, path: &Path) -> bool {
    let fixed = current.fixed_differences(new);
    if !fixed.is_empty() {
        tracing::error!(
            "{} says something else about {} now, which only a new start can apply: restart this program on every node",
            path.display(),
            fixed.join(", ")
        );
    }
    if let (Backend::Vxlan(here), Backend::Vxlan(there)) = (&mut current.backend, &new.backend) {
        let now = VxlanConf { mtu: there.mtu, direct_routing: there.direct_routing, ..*here };
        if now != *here {
            *here = now;
            tracing::info!("{} has changed: MTU and DirectRouting hold from now on", path.display());
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
    fn what_can_be_followed_is() {
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
    fn a_file_that_is_no_use_says_what_to_do() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("net-conf.json");
        let error = read(&path).expect_err("there is none").to_string();
        assert!(error.starts_with("failed to read net conf: open ") && error.contains("--net-config-path"), "{error}");
        std::fs::write(&path, "{\"Network\":\"10.0.0.0/8\",\"Backend\":{\"Type\":\"ipip\"}}").expect("writable");
        let error = read(&path).expect_err("a backend that is not there").to_string();
        assert!(error.starts_with("error parsing subnet config ") && error.contains("vxlan or host-gw"), "{error}");
    }
}
