//! Events about this node and its Services (`events.k8s.io/v1`), so that `kubectl describe` tells what happened. Few of them: an
//! event that is repeated says nothing new, and the API server has better things to do.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kube::api::{ApiResource, DynamicObject, GroupVersionKind, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::Instant;

use crate::cluster::ServiceKey;
use crate::error_text::error_text;

use super::recent_events::Happenings;

/// The same reason about the same object is told once in this time.
const REPEAT: Duration = Duration::from_secs(300);
/// Events in a minute, at most.
const PER_MINUTE: usize = 20;
/// Events that may wait to be sent; what comes on top is dropped.
const WAITING: usize = 64;
/// What the field `reportingController` says: whoever looks for the proxy's events finds these under its name.
const CONTROLLER: &str = "kube-proxy";

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Regarding {
    /// This node.
    Node,
    /// Another node, by its name.
    OtherNode(Box<str>),
    /// A Service.
    Service(ServiceKey),
}

/// Something worth telling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What it is about.
    pub regarding: Regarding,
    /// Why, in one word in camel case.
    pub reason: &'static str,
    /// What was being done, in one word in camel case.
    pub action: &'static str,
    /// It is a warning, not just news.
    pub warning: bool,
    /// What happened; cut at 1024 bytes, as the API wants it.
    pub note: String,
}

impl Event {
    /// The program is up (spec section 1.11).
    #[must_use]
    pub const fn starting() -> Self {
        Self { regarding: Regarding::Node, reason: "Starting", action: "StartKubeProxy", warning: false, note: String::new() }
    }

    /// A server of the program cannot listen, and the program ends for it (spec section 1.11).
    #[must_use]
    pub const fn cannot_listen(reason: &'static str, note: String) -> Self {
        Self { regarding: Regarding::Node, reason, action: "StartKubeProxy", warning: true, note }
    }
}

/// Takes events, and drops what is too much.
#[derive(Clone, Debug)]
pub struct Events {
    sender: Option<mpsc::Sender<Message>>,
    happenings: Happenings,
}

/// Where events come out, for [`send`]. Clones share one queue, so that a sender that failed can be started again.
#[derive(Clone, Debug)]
pub struct Told(Arc<Mutex<mpsc::Receiver<Message>>>);

#[derive(Debug)]
enum Message {
    Event(Event),
    /// Everything before this was sent.
    Sent(oneshot::Sender<()>),
}

impl Events {
    /// Events that go nowhere: there is no API server.
    #[must_use]
    pub fn none() -> Self {
        Self { sender: None, happenings: Happenings::default() }
    }

    /// Events, and where they come out.
    #[must_use]
    pub fn channel() -> (Self, Told) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self { sender: Some(sender), happenings: Happenings::default() }, Told(Arc::new(Mutex::new(receiver))))
    }

    /// What is told is noted there, too.
    #[must_use]
    pub fn noted(mut self, happenings: Happenings) -> Self {
        self.happenings = happenings;
        self
    }

    /// Something happened that is worth no event.
    pub fn note(&self, what: &'static str, text: &str) {
        self.happenings.note(what, false, text);
    }

    /// Tells something. Never waits; nothing depends on an event being told.
    pub fn tell(&self, event: Event) {
        let regarding = match &event.regarding {
            // What is said of another node names it.
            Regarding::Node | Regarding::OtherNode(_) => String::new(),
            Regarding::Service(key) => format!("{key}: "),
        };
        self.happenings.note(event.reason, event.warning, &(regarding + &event.note));
        if let Some(sender) = &self.sender {
            let _ = sender.try_send(Message::Event(event));
        }
    }

    /// Waits until everything that was told so far has been sent, or has failed to be.
    pub async fn sent(&self) {
        let Some(sender) = &self.sender else { return };
        let (done, sent) = oneshot::channel();
        if sender.send(Message::Sent(done)).await.is_ok() {
            let _ = sent.await;
        }
    }
}

/// Decides which events are told.
#[derive(Debug)]
pub struct Limit {
    told: HashMap<(Regarding, &'static str), Instant>,
    minute: Instant,
    in_minute: usize,
}

impl Limit {
    /// Nothing was told yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { told: HashMap::new(), minute: now, in_minute: 0 }
    }

    /// Whether this event may be told now; takes note if so.
    pub fn allows(&mut self, event: &Event, now: Instant) -> bool {
        if now.duration_since(self.minute) >= Duration::from_secs(60) {
            (self.minute, self.in_minute) = (now, 0);
            self.told.retain(|_, told| now.duration_since(*told) < REPEAT);
        }
        let key = (event.regarding.clone(), event.reason);
        if self.in_minute >= PER_MINUTE || self.told.get(&key).is_some_and(|told| now.duration_since(*told) < REPEAT) {
            return false;
        }
        self.in_minute += 1;
        self.told.insert(key, now);
        true
    }
}

/// Sends events to the API server, for as long as there are any to come.
pub async fn send(client: Client, node_name: String, host_name: String, events: Told) {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("events.k8s.io", "v1", "Event"));
    let mut limit = Limit::new(Instant::now());
    let mut counter = 0_u32;
    let mut events = events.0.lock().await;
    while let Some(message) = events.recv().await {
        let event = match message {
            Message::Event(event) => event,
            Message::Sent(done) => {
                let _ = done.send(());
                continue;
            }
        };
        if !limit.allows(&event, Instant::now()) {
            continue;
        }
        counter = counter.wrapping_add(1);
        let (namespace, object) = object(&event, &node_name, &host_name, counter);
        let created = match serde_json::from_value::<DynamicObject>(object) {
            Ok(object) => {
                let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &namespace, &resource);
                api.create(&PostParams::default(), &object).await.map(drop).map_err(|error| error_text(&error))
            }
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = created {
            tracing::debug!("cannot send Event {}: {error}", event.reason);
        }
    }
}

/// The API object of an event, and its namespace.
fn object(event: &Event, node_name: &str, host_name: &str, counter: u32) -> (String, serde_json::Value) {
    let (namespace, regarding) = match &event.regarding {
        Regarding::Node => ("default".to_owned(), json!({"apiVersion": "v1", "kind": "Node", "name": node_name})),
        Regarding::OtherNode(name) => ("default".to_owned(), json!({"apiVersion": "v1", "kind": "Node", "name": name})),
        Regarding::Service(key) => {
            (key.namespace.to_string(), json!({"apiVersion": "v1", "kind": "Service", "namespace": &*key.namespace, "name": &*key.name}))
        }
    };
    let note: String = event.note.char_indices().take_while(|(at, c)| at + c.len_utf8() <= 1024).map(|(_, c)| c).collect();
    let time = jiff::Timestamp::now();
    let object = json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event",
        "metadata": {"name": format!("{node_name}.{:x}.{counter:x}", time.as_nanosecond()), "namespace": namespace},
        "eventTime": format!("{time:.6}"),
        "reportingController": CONTROLLER, "reportingInstance": format!("{CONTROLLER}-{host_name}"),
        "action": event.action, "reason": event.reason, "type": if event.warning { "Warning" } else { "Normal" },
        "regarding": regarding, "note": note,
    });
    (namespace, object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(reason: &'static str) -> Event {
        Event { regarding: Regarding::Node, reason, action: "Sync", warning: true, note: "x".repeat(2000) }
    }

    #[test]
    fn repetition_is_not_told_and_a_flood_is_cut() {
        let start = Instant::now();
        let mut limit = Limit::new(start);
        assert!(limit.allows(&event("A"), start));
        assert!(!limit.allows(&event("A"), start + Duration::from_secs(299)));
        assert!(limit.allows(&event("B"), start + Duration::from_secs(299)));
        assert!(limit.allows(&event("A"), start + Duration::from_secs(300)));
        let later = start + Duration::from_secs(1000);
        let about = |i: u32| Event {
            regarding: Regarding::Service(ServiceKey { namespace: "ns".into(), name: i.to_string().into() }),
            ..event("C")
        };
        assert_eq!((0..100).filter(|i| limit.allows(&about(*i), later)).count(), PER_MINUTE);
    }

    #[test]
    fn an_event_is_what_the_api_takes() {
        let (namespace, object) = object(&event("A"), "node", "host", 7);
        assert_eq!(namespace, "default");
        assert_eq!(object["note"].as_str().map(str::len), Some(1024));
        assert_eq!(object["regarding"], json!({"apiVersion": "v1", "kind": "Node", "name": "node"}));
        assert_eq!((&object["reportingController"], &object["reportingInstance"]), (&json!("kube-proxy"), &json!("kube-proxy-host")),);
        assert!(object["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("node.") && name.ends_with(".7")));
    }
}
