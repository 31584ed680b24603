//! Writes to this node's own Node: annotations, the condition `NetworkUnavailable`, and podCIDRs if it has none.
//!
//! There is one pending write for each of the three. A newer one replaces it if it was not written yet. A write that fails is tried again at
//! least every 15 s.

use std::sync::Arc;

use futures::future::join3;
use ipnetwork::IpNetwork;
use jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::{Api, Client};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::watch;
use tokio::time::sleep;

use super::node_name::{LONGEST_PAUSE, retry_pauses};
use crate::error_text::error_text;
use crate::kubernetes::events::{Event, Events, Regarding};
use crate::kubernetes::permission::Permission;
use crate::pod_network::allocation::Shortage;

/// The Node's condition `NetworkUnavailable`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeCondition {
    /// `status`: true if pods on this node have no network.
    pub unavailable: bool,
    /// `reason`, in camel case.
    pub reason: &'static str,
    /// `message`.
    pub message: String,
}

impl NodeCondition {
    /// The network works. The text is flannel's [flannel 3].
    #[must_use]
    pub fn up() -> Self {
        Self { unavailable: false, reason: "FlannelIsUp", message: "Flannel is running on this node".into() }
    }

    /// The network does not work.
    #[must_use]
    pub const fn down(reason: &'static str, message: String) -> Self {
        Self { unavailable: true, reason, message }
    }

    /// The Node has no podCIDR.
    #[must_use]
    pub fn pod_cidr_missing(node: &str) -> Self {
        let message = format!(
            "node \"{node}\" pod cidr not assigned: spec.podCIDR is empty. kube-controller-manager assigns it, if it runs with \
             --allocate-node-cidrs=true and --cluster-cidr; if it does, that range may be used up. It is waited for; \
             --subnet-source=lease does without"
        );
        Self::down("PodCIDRMissing", message)
    }

    /// There is no subnet left for this node.
    #[must_use]
    pub(crate) fn out_of_subnets(shortage: &Shortage) -> Self {
        Self::down("OutOfSubnets", format!("{shortage}. The next one that is released or expires is taken"))
    }

    /// The Event that reports the condition.
    #[must_use]
    pub fn event(&self) -> Event {
        Event {
            regarding: Regarding::Node,
            reason: self.reason,
            action: "SetUpPodNetwork",
            warning: self.unavailable,
            note: self.message.clone(),
        }
    }
}

/// The state of the latest write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum WriteState {
    /// Nothing was written yet.
    #[default]
    Idle,
    /// The write is pending.
    Writing,
    /// The write succeeded.
    Written,
    /// The last attempt failed with this error. The write is tried again.
    Failing(Arc<str>),
    /// The server refused the write for good, with this error.
    Refused(Arc<str>),
}

/// The sending end of one kind of writes.
#[derive(Debug)]
struct PendingWrite {
    body: watch::Sender<Option<Box<RawValue>>>,
    state: watch::Receiver<WriteState>,
}

impl PendingWrite {
    fn new() -> (Self, Writer) {
        let (body, bodies) = watch::channel(None);
        let (sender, state) = watch::channel(WriteState::Idle);
        (Self { body, state }, Writer { bodies, state: sender })
    }

    /// Replaces the pending write.
    fn set(&self, body: &impl Serialize) {
        match to_raw_value(body) {
            Ok(body) => drop(self.body.send_replace(Some(body))),
            Err(error) => tracing::error!("a write to this node's Node cannot be encoded as JSON: {error}"),
        }
    }
}

/// The receiving end of one kind of writes.
struct Writer {
    bodies: watch::Receiver<Option<Box<RawValue>>>,
    state: watch::Sender<WriteState>,
}

/// What is written, and where.
#[derive(Clone, Copy)]
struct Target {
    /// Its name in messages.
    what: &'static str,
    /// `nodes` or `nodes/status`.
    resource: &'static str,
    /// Status codes after which the write is not tried again.
    final_codes: &'static [u16],
}

const ANNOTATIONS: Target = Target { what: "annotations", resource: "nodes/status", final_codes: &[] };
const CONDITION: Target = Target { what: "condition NetworkUnavailable", resource: "nodes/status", final_codes: &[] };
/// 409: the Node was registered anew. 422: it has podCIDRs already.
const POD_CIDRS: Target = Target { what: "spec.podCIDRs", resource: "nodes", final_codes: &[409, 422] };

/// Accepts writes for this node's Node.
#[derive(Debug)]
pub struct NodeWrites {
    annotations: PendingWrite,
    condition: PendingWrite,
    pod_cidrs: PendingWrite,
}

impl NodeWrites {
    /// Accepts writes for a Node. The future carries them out and has to be run.
    pub fn new(client: &Client, node: &str, events: &Events) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let api = nodes(client);
        let writing = |target, writer| write(api.clone(), node.to_owned(), target, writer, events.clone());
        let ((annotations, one), (condition, two), (pod_cidrs, three)) = (PendingWrite::new(), PendingWrite::new(), PendingWrite::new());
        let all = join3(writing(ANNOTATIONS, one), writing(CONDITION, two), writing(POD_CIDRS, three));
        (Self { annotations, condition, pod_cidrs }, async move {
            let _ = all.await;
        })
    }

    /// Writes annotations. `patch` is a strategic merge patch that contains only those that change.
    pub fn annotations(&self, patch: &Value) {
        self.annotations.set(patch);
    }

    /// Writes the condition. Callers need not repeat an unchanged one.
    pub fn condition(&self, condition: &NodeCondition) {
        self.condition.set(&condition_patch(condition, Timestamp::now()));
    }

    /// Writes podCIDRs to a Node that has none and has this UID.
    pub fn pod_cidrs(&self, uid: &str, subnets: &[IpNetwork]) {
        let all: Vec<String> = subnets.iter().map(ToString::to_string).collect();
        let patch = serde_json::json!({"metadata": {"uid": uid}, "spec": {"podCIDR": all.first(), "podCIDRs": all}});
        self.pod_cidrs.set(&patch);
    }

    /// The state of the latest write of annotations.
    #[must_use]
    pub fn annotations_state(&self) -> watch::Receiver<WriteState> {
        self.annotations.state.clone()
    }

    /// The state of the latest write of the condition.
    #[must_use]
    pub fn condition_state(&self) -> watch::Receiver<WriteState> {
        self.condition.state.clone()
    }

    /// The state of the latest write of podCIDRs.
    #[must_use]
    pub fn pod_cidrs_state(&self) -> watch::Receiver<WriteState> {
        self.pod_cidrs.state.clone()
    }
}

/// Carries out one kind of writes, until the sending end is dropped.
async fn write(api: Api<DynamicObject>, node: String, target: Target, mut writer: Writer, events: Events) {
    let Target { what, resource, final_codes } = target;
    while writer.bodies.changed().await.is_ok() {
        let mut pauses = retry_pauses();
        let mut logged = None;
        loop {
            let Some(body) = writer.bodies.borrow_and_update().clone() else { break };
            writer.state.send_if_modified(|state| {
                let is_changed = !matches!(state, WriteState::Failing(_));
                if is_changed {
                    *state = WriteState::Writing;
                }
                is_changed
            });
            let (parameters, patch) = (PatchParams::default(), Patch::Strategic(&body));
            let patched = match resource {
                "nodes" => api.patch(&node, &parameters, &patch).await,
                _ => api.patch_status(&node, &parameters, &patch).await,
            };
            let Err(error) = patched else {
                if logged.is_some() {
                    tracing::info!("{what} of Node {node} written after all");
                }
                writer.state.send_replace(WriteState::Written);
                break;
            };
            let code = if let kube::Error::Api(status) = &error { Some(status.code) } else { None };
            let why: Arc<str> = unwritten(what, resource, &node, &error).into();
            if code.is_some_and(|code| final_codes.contains(&code)) {
                tracing::warn!("{why}");
                writer.state.send_replace(WriteState::Refused(why));
                break;
            }
            if logged.as_ref() != Some(&why) {
                tracing::warn!("{why}; retrying");
                if code == Some(403) {
                    events.tell(permission_missing(&why));
                }
                logged = Some(Arc::clone(&why));
            }
            writer.state.send_replace(WriteState::Failing(why));
            sleep(pauses.next().unwrap_or(LONGEST_PAUSE)).await;
        }
    }
}

/// The message for a failed write.
fn unwritten(what: &str, resource: &'static str, node: &str, error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == 403 => {
            let permission = Permission { verb: "patch", group: "", resource };
            format!("cannot write {what} of Node {node}: {}; {permission}", status.message)
        }
        error => format!("cannot write {what} of Node {node}: {}", error_text(error)),
    }
}

/// Removes annotations from a Node. Returns false if the Node does not exist.
///
/// # Errors
/// The request failed. The text says why.
pub(crate) async fn remove_annotations(client: &Client, node: &str, names: &[String]) -> Result<bool, String> {
    let absent: serde_json::Map<String, Value> = names.iter().map(|name| (name.clone(), Value::Null)).collect();
    let patch = Patch::Merge(serde_json::json!({"metadata": {"annotations": absent}}));
    match nodes(client).patch_status(node, &PatchParams::default(), &patch).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(error) => Err(unwritten(ANNOTATIONS.what, ANNOTATIONS.resource, node, &error)),
    }
}

fn nodes(client: &Client) -> Api<DynamicObject> {
    Api::all_with(client.clone(), &ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Node")))
}

/// The Event about a missing permission.
pub(super) fn permission_missing(note: &str) -> Event {
    Event { regarding: Regarding::Node, reason: "PermissionMissing", action: "SetUpPodNetwork", warning: true, note: note.to_owned() }
}

/// The patch that flannel sends, with its fields in the same order [flannel 3].
fn condition_patch(condition: &NodeCondition, now: Timestamp) -> impl Serialize + use<> {
    #[derive(Serialize)]
    struct Body {
        status: Status,
    }
    #[derive(Serialize)]
    struct Status {
        conditions: [Written; 1],
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Written {
        #[serde(rename = "type")]
        kind: &'static str,
        status: &'static str,
        last_heartbeat_time: String,
        last_transition_time: String,
        reason: &'static str,
        message: String,
    }
    let time = format!("{now:.0}");
    let written = Written {
        kind: "NetworkUnavailable",
        status: if condition.unavailable { "True" } else { "False" },
        last_heartbeat_time: time.clone(),
        last_transition_time: time,
        reason: condition.reason,
        message: condition.message.clone(),
    };
    Body { status: Status { conditions: [written] } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_condition_is_flannels_to_the_byte() {
        let now: Timestamp = "2026-03-01T07:08:09.987654Z".parse().expect("a time");
        assert_eq!(
            serde_json::to_string(&condition_patch(&NodeCondition::up(), now)).expect("JSON"),
            "{\"status\":{\"conditions\":[{\"type\":\"NetworkUnavailable\",\"status\":\"False\",\
             \"lastHeartbeatTime\":\"2026-03-01T07:08:09Z\",\"lastTransitionTime\":\"2026-03-01T07:08:09Z\",\
             \"reason\":\"FlannelIsUp\",\"message\":\"Flannel is running on this node\"}]}}"
        );
    }

    #[test]
    fn a_missing_subnet_names_the_flag() {
        let condition = NodeCondition::pod_cidr_missing("a");
        assert!(condition.unavailable && condition.message.contains("--allocate-node-cidrs=true"), "{condition:?}");
        assert!(condition.message.starts_with("node \"a\" pod cidr not assigned"), "{condition:?}");
        let event = condition.event();
        assert!(event.warning && event.reason == "PodCIDRMissing" && event.note.len() <= 1024);
    }
}
