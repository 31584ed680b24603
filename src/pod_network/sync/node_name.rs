//! The name of this node's Node, for the pod network: from the environment, as flannel has it (spec section 3).

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use tokio::time::sleep;

use crate::error_text::{error_text, status_text};
use crate::kubernetes::permission::Permission;

/// Where the name comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeNameSource {
    /// `NODE_NAME`: the name itself.
    Name(String),
    /// `POD_NAME` and `POD_NAMESPACE`: the Pod that this process runs in says where it is.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

/// Why the name is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeNameError {
    /// The environment says nothing.
    #[error(
        "env variables POD_NAME and POD_NAMESPACE must be set; or better NODE_NAME, from spec.nodeName by the downward API, for which \
         no Pod has to be read"
    )]
    Unset,
    /// The Pod cannot be read.
    #[error("error retrieving pod spec for '{pod}': {why}{cure}")]
    Pod {
        /// Namespace and name.
        pod: String,
        /// The cause.
        why: String,
        /// What to do, after a semicolon; empty where nothing can be said.
        cure: String,
    },
    /// The Pod is on no node.
    #[error("node name not present in pod spec '{0}'")]
    Unscheduled(String),
}

impl NodeNameSource {
    /// The source that these variables of the environment name. `NODE_NAME` wins; what is empty is not set.
    ///
    /// # Errors
    /// They name none.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Self, NodeNameError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        match (variable("NODE_NAME"), variable("POD_NAMESPACE"), variable("POD_NAME")) {
            (Some(name), ..) => Ok(Self::Name(name)),
            (None, Some(namespace), Some(name)) => Ok(Self::Pod { namespace, name }),
            _ => Err(NodeNameError::Unset),
        }
    }

    /// The name, as it is known now.
    ///
    /// # Errors
    /// The Pod cannot be read, or is on no node.
    pub async fn node_name(&self, client: &Client) -> Result<String, NodeNameError> {
        let (namespace, name) = match self {
            Self::Name(name) => return Ok(name.clone()),
            Self::Pod { namespace, name } => (namespace, name),
        };
        let pod = format!("{namespace}/{name}");
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Pod"));
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
        match api.get(name).await {
            Ok(object) => {
                let node = object.data.pointer("/spec/nodeName").and_then(serde_json::Value::as_str).filter(|node| !node.is_empty());
                node.map(str::to_owned).ok_or(NodeNameError::Unscheduled(pod))
            }
            Err(kube::Error::Api(status)) => {
                let permission = Permission { verb: "get", group: "", resource: "pods" };
                let (why, cure) = match status.code {
                    403 => (status.message, format!("; {permission}, or set NODE_NAME by the downward API")),
                    _ => (status_text(&status), String::new()),
                };
                Err(NodeNameError::Pod { pod, why, cure })
            }
            Err(error) => Err(NodeNameError::Pod { pod, why: error_text(&error), cure: String::new() }),
        }
    }

    /// The name as soon as it can be known. What is in the way is said once for as long as it stays the same, and tried again at least
    /// every 15 s.
    pub async fn awaited_node_name(&self, client: &Client) -> String {
        let mut waits = pace();
        let mut told = None;
        loop {
            match self.node_name(client).await {
                Ok(name) => return name,
                Err(error) if told.as_ref() == Some(&error) => {}
                Err(error) => {
                    tracing::error!("Failed to create SubnetManager: {error}");
                    told = Some(error);
                }
            }
            sleep(waits.next().unwrap_or(LONGEST_WAIT)).await;
        }
    }
}

/// The longest wait between two tries of anything that the pod network has to write or read.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// Waits after failures: longer every time, and never longer than [`LONGEST_WAIT`].
pub(super) fn pace() -> impl Iterator<Item = Duration> + Send {
    // Jitter adds up to as much again.
    let builder = ExponentialBuilder::new().with_min_delay(Duration::from_millis(400)).with_max_delay(LONGEST_WAIT / 2).with_factor(2.0);
    builder.with_jitter().without_max_times().build().map(|wait| wait.min(LONGEST_WAIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(variables: &[(&str, &str)]) -> Result<NodeNameSource, NodeNameError> {
        NodeNameSource::from_environment(|name| variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_environment_is_read_as_flannel_reads_it() {
        let pod = NodeNameSource::Pod { namespace: "kube-flannel".into(), name: "p".into() };
        let (pod_name, namespace) = (("POD_NAME", "p"), ("POD_NAMESPACE", "kube-flannel"));
        assert_eq!(source(&[("NODE_NAME", "n"), pod_name, namespace]), Ok(NodeNameSource::Name("n".into())));
        assert_eq!(source(&[("NODE_NAME", ""), pod_name, namespace]), Ok(pod));
        for unset in [&[][..], &[pod_name], &[namespace], &[("POD_NAME", ""), namespace]] {
            let error = source(unset).expect_err("something is missing");
            assert!(error.to_string().starts_with("env variables POD_NAME and POD_NAMESPACE must be set"), "{error}");
        }
    }

    #[test]
    fn waits_grow_to_fifteen_seconds_at_most() {
        let waits: Vec<Duration> = pace().take(40).collect();
        assert!(waits[0] < Duration::from_secs(1), "{waits:?}");
        assert!(waits.iter().all(|wait| *wait <= LONGEST_WAIT) && waits[39] >= LONGEST_WAIT / 2, "{waits:?}");
    }
}
