//! Sends Events about this node and its Services (`events.k8s.io/v1`), for `kubectl describe`. Repeated Events are dropped, and their number
//! is limited, to spare the API server.

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

use super::recent_events::RecentEvents;

/// An Event with the same reason about the same object is sent once in this time.
const REPEAT: Duration = Duration::from_secs(300);
/// The most Events in a minute.
const PER_MINUTE: usize = 20;
/// The most Events that wait to be sent. More are dropped.
const QUEUE_LENGTH: usize = 64;
/// The field `reportingController`, which users search for kube-proxy's Events.
const CONTROLLER: &str = "kube-proxy";

/// The object that an Event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Regarding {
    /// This node.
    Node,
    /// Another node, by its name.
    OtherNode(Box<str>),
    /// A Service.
    Service(ServiceKey),
}

/// An Event before it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The object that it is about.
    pub regarding: Regarding,
    /// The reason, one word in camel case.
    pub reason: &'static str,
    /// The action that was taken, one word in camel case.
    pub action: &'static str,
    /// True for a warning.
    pub warning: bool,
    /// What happened. The API's limit of 1024 bytes is applied when it is sent.
    pub note: String,
}

impl Event {
    /// The program has started [kube-proxy 1.11].
    #[must_use]
    pub const fn starting() -> Self {
        Self { regarding: Regarding::Node, reason: "Starting", action: "StartKubeProxy", warning: false, note: String::new() }
    }

    /// A server of the program cannot listen, so the program exits [kube-proxy 1.11].
    #[must_use]
    pub(crate) const fn cannot_listen(reason: &'static str, note: String) -> Self {
        Self { regarding: Regarding::Node, reason, action: "StartKubeProxy", warning: true, note }
    }
}

/// Queues Events for [`send`], and keeps the latest ones for the status page.
#[derive(Clone, Debug)]
pub struct Events {
    sender: Option<mpsc::Sender<Message>>,
    recent: RecentEvents,
}

/// The queue from which [`send`] takes Events. Clones share it, so that a failed sender can be restarted.
#[derive(Clone, Debug)]
pub struct EventQueue(Arc<Mutex<mpsc::Receiver<Message>>>);

#[derive(Debug)]
enum Message {
    Event(Event),
    /// Is answered when all earlier messages are handled.
    Sent(oneshot::Sender<()>),
}

impl Events {
    /// Events that are not sent, because there is no API server.
    #[must_use]
    pub fn none() -> Self {
        Self { sender: None, recent: RecentEvents::default() }
    }

    /// Events, and the queue that [`send`] reads.
    #[must_use]
    pub fn channel() -> (Self, EventQueue) {
        let (sender, receiver) = mpsc::channel(QUEUE_LENGTH);
        (Self { sender: Some(sender), recent: RecentEvents::default() }, EventQueue(Arc::new(Mutex::new(receiver))))
    }

    /// Stores the latest Events there, too.
    #[must_use]
    pub fn noted(mut self, recent: RecentEvents) -> Self {
        self.recent = recent;
        self
    }

    /// Stores an occurrence for the status page, without sending an Event.
    pub fn note(&self, what: &'static str, text: &str) {
        self.recent.note(what, false, text);
    }

    /// Queues an Event. Never waits: if the queue is full, the Event is dropped.
    pub fn tell(&self, event: Event) {
        let regarding = match &event.regarding {
            // The note of another node's Event names that node.
            Regarding::Node | Regarding::OtherNode(_) => String::new(),
            Regarding::Service(key) => format!("{key}: "),
        };
        self.recent.note(event.reason, event.warning, &(regarding + &event.note));
        if let Some(sender) = &self.sender {
            let _ = sender.try_send(Message::Event(event));
        }
    }

    /// Waits until all queued Events are sent or have failed.
    pub async fn sent(&self) {
        let Some(sender) = &self.sender else { return };
        let (done, sent) = oneshot::channel();
        if sender.send(Message::Sent(done)).await.is_ok() {
            let _ = sent.await;
        }
    }
}

/// Decides which Events are sent.
#[derive(Debug)]
pub(crate) struct EventLimit {
    sent: HashMap<(Regarding, &'static str), Instant>,
    minute: Instant,
    in_minute: usize,
}

impl EventLimit {
    /// A limit before any Event.
    #[must_use]
    pub(crate) fn new(now: Instant) -> Self {
        Self { sent: HashMap::new(), minute: now, in_minute: 0 }
    }

    /// Decides whether this Event is sent now, and counts it if so.
    pub(crate) fn allows(&mut self, event: &Event, now: Instant) -> bool {
        if now.duration_since(self.minute) >= Duration::from_secs(60) {
            (self.minute, self.in_minute) = (now, 0);
            self.sent.retain(|_, sent| now.duration_since(*sent) < REPEAT);
        }
        let key = (event.regarding.clone(), event.reason);
        if self.in_minute >= PER_MINUTE || self.sent.get(&key).is_some_and(|sent| now.duration_since(*sent) < REPEAT) {
            return false;
        }
        self.in_minute += 1;
        self.sent.insert(key, now);
        true
    }
}

/// Sends the Events of the queue to the API server until all [`Events`] are dropped.
pub async fn send(client: Client, node_name: String, host_name: String, events: EventQueue) {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("events.k8s.io", "v1", "Event"));
    let mut limit = EventLimit::new(Instant::now());
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

/// The namespace and the API object of an Event.
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
    fn repeated_events_and_floods_are_dropped() {
        let start = Instant::now();
        let mut limit = EventLimit::new(start);
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
    fn an_event_becomes_an_api_object() {
        let (namespace, object) = object(&event("A"), "node", "host", 7);
        assert_eq!(namespace, "default");
        assert_eq!(object["note"].as_str().map(str::len), Some(1024));
        assert_eq!(object["regarding"], json!({"apiVersion": "v1", "kind": "Node", "name": "node"}));
        assert_eq!((&object["reportingController"], &object["reportingInstance"]), (&json!("kube-proxy"), &json!("kube-proxy-host")),);
        assert!(object["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("node.") && name.ends_with(".7")));
    }
}
