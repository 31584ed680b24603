//! Finds the name of this node's Node in the environment, as flannel does [flannel 3].

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use tokio::time::sleep;

use crate::error_text::{error_text, status_text};
use crate::kubernetes::permission::Permission;

/// The source of the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeNameSource {
    /// `NODE_NAME`: the name itself.
    Name(String),
    /// `POD_NAME` and `POD_NAMESPACE`: the name is read from this process's Pod.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

/// Why the name is unknown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeNameError {
    /// The variables are not set.
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
        /// The cure, after a semicolon; may be empty.
        cure: String,
    },
    /// The Pod is not scheduled to a node.
    #[error("node name not present in pod spec '{0}'")]
    Unscheduled(String),
}

impl NodeNameSource {
    /// Reads the environment variables. `NODE_NAME` takes precedence. An empty variable counts as unset.
    ///
    /// # Errors
    /// No source is set.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Self, NodeNameError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        match (variable("NODE_NAME"), variable("POD_NAMESPACE"), variable("POD_NAME")) {
            (Some(name), ..) => Ok(Self::Name(name)),
            (None, Some(namespace), Some(name)) => Ok(Self::Pod { namespace, name }),
            _ => Err(NodeNameError::Unset),
        }
    }

    /// Finds the name, in one attempt.
    ///
    /// # Errors
    /// The Pod cannot be read, or is not scheduled to a node.
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

    /// Finds the name, with attempts at least every 15 s. An error is logged once while it stays the same.
    pub async fn awaited_node_name(&self, client: &Client) -> String {
        let mut pauses = retry_pauses();
        let mut logged = None;
        loop {
            match self.node_name(client).await {
                Ok(name) => return name,
                Err(error) if logged.as_ref() == Some(&error) => {}
                Err(error) => {
                    tracing::error!("Failed to create SubnetManager: {error}");
                    logged = Some(error);
                }
            }
            sleep(pauses.next().unwrap_or(LONGEST_PAUSE)).await;
        }
    }
}

/// The longest pause between two attempts to read or write an API object.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Growing pauses after failures, with jitter. None is longer than [`LONGEST_PAUSE`].
pub(super) fn retry_pauses() -> impl Iterator<Item = Duration> + Send {
    // Jitter can double a pause.
    let builder = ExponentialBuilder::new().with_min_delay(Duration::from_millis(400)).with_max_delay(LONGEST_PAUSE / 2).with_factor(2.0);
    builder.with_jitter().without_max_times().build().map(|pause| pause.min(LONGEST_PAUSE))
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
    fn pauses_grow_to_fifteen_seconds_at_most() {
        let pauses: Vec<Duration> = retry_pauses().take(40).collect();
        assert!(pauses[0] < Duration::from_secs(1), "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= LONGEST_PAUSE) && pauses[39] >= LONGEST_PAUSE / 2, "{pauses:?}");
    }
}
