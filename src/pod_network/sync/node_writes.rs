//! What the pod network writes to its own Node: annotations, the condition `NetworkUnavailable`, and subnets where it has none.
//!
//! Each of the three has one latest wish, which is written as soon as the API server takes it. A new wish replaces one that was not
//! written. Nothing here gives up: a server that is away or says no is asked again at least every 15 s.

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

use super::node_name::{LONGEST_WAIT, pace};
use crate::error_text::error_text;
use crate::kubernetes::events::{Event, Events, Regarding};
use crate::kubernetes::permission::Permission;
use crate::pod_network::allocation::Shortage;

/// What the condition `NetworkUnavailable` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeCondition {
    /// Pods on this node have no network.
    pub unavailable: bool,
    /// Why, in one word in camel case.
    pub reason: &'static str,
    /// Why.
    pub message: String,
}

impl NodeCondition {
    /// The network works; in flannel's words (spec section 3).
    #[must_use]
    pub fn up() -> Self {
        Self { unavailable: false, reason: "FlannelIsUp", message: "Flannel is running on this node".into() }
    }

    /// The network does not work, for this reason.
    #[must_use]
    pub const fn down(reason: &'static str, message: String) -> Self {
        Self { unavailable: true, reason, message }
    }

    /// The Node was assigned no subnet.
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
    pub fn out_of_subnets(shortage: &Shortage) -> Self {
        Self::down("OutOfSubnets", format!("{shortage}. The next one that is released or expires is taken"))
    }

    /// The same as an Event of the Node.
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

/// What became of a wish.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum WriteState {
    /// There was none.
    #[default]
    Idle,
    /// It is about to be written.
    Writing,
    /// It is written.
    Written,
    /// It could not be written so far, and is tried again; why.
    Failing(Arc<str>),
    /// The server will never take it; why.
    Refused(Arc<str>),
}

/// One of the things that are written.
#[derive(Debug)]
struct Wish {
    body: watch::Sender<Option<Box<RawValue>>>,
    state: watch::Receiver<WriteState>,
}

impl Wish {
    fn new() -> (Self, Writer) {
        let (body, bodies) = watch::channel(None);
        let (tell, state) = watch::channel(WriteState::Idle);
        (Self { body, state }, Writer { bodies, tell })
    }

    fn wish(&self, body: &impl Serialize) {
        match to_raw_value(body) {
            Ok(body) => drop(self.body.send_replace(Some(body))),
            Err(error) => tracing::error!("a write to this node's Node is no JSON: {error}"),
        }
    }
}

/// The wishes' other ends.
struct Writer {
    bodies: watch::Receiver<Option<Box<RawValue>>>,
    tell: watch::Sender<WriteState>,
}

/// Where a wish is written to.
#[derive(Clone, Copy)]
struct Target {
    /// For people.
    what: &'static str,
    /// `nodes` or `nodes/status`.
    resource: &'static str,
    /// Answers that will not change.
    last_words: &'static [u16],
}

const ANNOTATIONS: Target = Target { what: "annotations", resource: "nodes/status", last_words: &[] };
const CONDITION: Target = Target { what: "condition NetworkUnavailable", resource: "nodes/status", last_words: &[] };
/// 409: it is another Node of the same name by now. 422: it has subnets by now.
const POD_CIDRS: Target = Target { what: "spec.podCIDRs", resource: "nodes", last_words: &[409, 422] };

/// Takes wishes.
#[derive(Debug)]
pub struct NodeWrites {
    annotations: Wish,
    condition: Wish,
    pod_cidrs: Wish,
}

impl NodeWrites {
    /// Takes wishes for a Node, and what has to run for them to be written.
    pub fn new(client: &Client, node: &str, events: &Events) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let api = nodes(client);
        let written = |target, writer| write(api.clone(), node.to_owned(), target, writer, events.clone());
        let ((annotations, one), (condition, two), (pod_cidrs, three)) = (Wish::new(), Wish::new(), Wish::new());
        let all = join3(written(ANNOTATIONS, one), written(CONDITION, two), written(POD_CIDRS, three));
        (Self { annotations, condition, pod_cidrs }, async move {
            let _ = all.await;
        })
    }

    /// Annotations: the body of a strategic merge patch, with those that are to change and no others.
    pub fn annotations(&self, patch: &Value) {
        self.annotations.wish(patch);
    }

    /// The condition, as it is from now on. One that is up or down already for the same reason need not be said again.
    pub fn condition(&self, condition: &NodeCondition) {
        self.condition.wish(&condition_patch(condition, Timestamp::now()));
    }

    /// The subnets of a Node that has none, as long as it is the Node of this UID.
    pub fn pod_cidrs(&self, uid: &str, subnets: &[IpNetwork]) {
        let all: Vec<String> = subnets.iter().map(ToString::to_string).collect();
        let patch = serde_json::json!({"metadata": {"uid": uid}, "spec": {"podCIDR": all.first(), "podCIDRs": all}});
        self.pod_cidrs.wish(&patch);
    }

    /// What became of the latest annotations.
    #[must_use]
    pub fn annotations_state(&self) -> watch::Receiver<WriteState> {
        self.annotations.state.clone()
    }

    /// What became of the latest condition.
    #[must_use]
    pub fn condition_state(&self) -> watch::Receiver<WriteState> {
        self.condition.state.clone()
    }

    /// What became of the latest subnets.
    #[must_use]
    pub fn pod_cidrs_state(&self) -> watch::Receiver<WriteState> {
        self.pod_cidrs.state.clone()
    }
}

/// Writes one wish after the other.
async fn write(api: Api<DynamicObject>, node: String, target: Target, mut writer: Writer, events: Events) {
    let Target { what, resource, last_words } = target;
    // Ends with the one who wishes.
    while writer.bodies.changed().await.is_ok() {
        let mut waits = pace();
        let mut told = None;
        loop {
            let Some(body) = writer.bodies.borrow_and_update().clone() else { break };
            writer.tell.send_if_modified(|state| {
                let news = !matches!(state, WriteState::Failing(_));
                if news {
                    *state = WriteState::Writing;
                }
                news
            });
            let (parameters, patch) = (PatchParams::default(), Patch::Strategic(&body));
            let patched = match resource {
                "nodes" => api.patch(&node, &parameters, &patch).await,
                _ => api.patch_status(&node, &parameters, &patch).await,
            };
            let Err(error) = patched else {
                if told.is_some() {
                    tracing::info!("{what} of Node {node} could be written at last");
                }
                writer.tell.send_replace(WriteState::Written);
                break;
            };
            let code = if let kube::Error::Api(status) = &error { Some(status.code) } else { None };
            let why: Arc<str> = unwritten(what, resource, &node, &error).into();
            if code.is_some_and(|code| last_words.contains(&code)) {
                tracing::warn!("{why}");
                writer.tell.send_replace(WriteState::Refused(why));
                break;
            }
            if told.as_ref() != Some(&why) {
                tracing::warn!("{why}; tried again until it is");
                if code == Some(403) {
                    events.tell(permission_missing(&why));
                }
                told = Some(Arc::clone(&why));
            }
            writer.tell.send_replace(WriteState::Failing(why));
            sleep(waits.next().unwrap_or(LONGEST_WAIT)).await;
        }
    }
}

/// Why something could not be written.
fn unwritten(what: &str, resource: &'static str, node: &str, error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == 403 => {
            let permission = Permission { verb: "patch", group: "", resource };
            format!("cannot write {what} of Node {node}: {}; {permission}", status.message)
        }
        error => format!("cannot write {what} of Node {node}: {}", error_text(error)),
    }
}

/// Takes annotations away from a Node, once and for all. Says whether there is such a Node.
///
/// # Errors
/// They could not be, and why.
pub async fn remove_annotations(client: &Client, node: &str, names: &[String]) -> Result<bool, String> {
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

/// An Event about a permission that is missing.
pub(super) fn permission_missing(note: &str) -> Event {
    Event { regarding: Regarding::Node, reason: "PermissionMissing", action: "SetUpPodNetwork", warning: true, note: note.to_owned() }
}

/// The patch that flannel sends, field for field in its order (spec section 3).
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
