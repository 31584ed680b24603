//! The status page on the metrics port: this node's rules, Services, peers and latest events.
//!
//! - [`server`]: the page and its requests. The loops answer them ([`crate::observe::query`]); nothing is copied for the page.
//! - [`services`], [`explain`], [`peers`]: the answers.

pub mod explain;
pub mod peers;
pub mod server;
pub mod services;

use serde_json::{Value, json};

use crate::kubernetes::recent_events::Happenings;
use crate::observe::paging::Part;
use crate::observe::query::{Desk, Question};
use crate::proxy::sync::facts::described_facts;
use crate::proxy::sync::status::StatusView;
use services::ShownServices;

/// What loops and the page have in common; shared.
#[derive(Clone, Debug, Default)]
pub struct Board {
    /// What has happened.
    pub happenings: Happenings,
    /// Where the keeper of the rules is asked.
    pub rules: Desk<Question>,
    /// Where the pod network is asked for a page of its peers.
    pub peers: Desk<Part>,
}

/// Answers a question about the service proxy.
#[must_use]
pub fn answer(view: &StatusView<'_>, question: Question) -> Value {
    let services = ShownServices(*view);
    match question {
        Question::Services(part) => services.list(&part),
        Question::Service(key) => match described_facts(view.inputs, view.host, view.random_fully) {
            Ok(facts) => services.one(&key, &facts),
            Err(error) => json!({"error": error.to_string()}),
        },
        Question::Explain { from, to } => explain::explain(&from, &to, view.inputs, view.host, view.random_fully),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::manifests::Manifests;
    use crate::config::settings::RequestedSettings;
    use crate::proxy::rules::inputs::Inputs;

    /// Two Services, one with three endpoints of which two are ready.
    pub(super) const SHOP: &str = r#"
{"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "web"}, "spec": {"type": "NodePort", "clusterIP": "10.96.0.10", "ports": [{"name": "http", "port": 80, "nodePort": 30080}]}}
---
{"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "empty"}, "spec": {"clusterIP": "10.96.0.11", "ports": [{"port": 80}]}}
---
{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
 "metadata": {"namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
 "ports": [{"name": "http", "port": 8080}],
 "endpoints": [{"addresses": ["10.244.1.5"], "nodeName": "b", "conditions": {"ready": true}}, {"addresses": ["10.244.1.6"], "nodeName": "b", "conditions": {"ready": true}},
   {"addresses": ["10.244.1.7"], "nodeName": "b", "conditions": {"ready": false}}]}
"#;

    pub(super) fn inputs(text: &str) -> Inputs {
        let mut manifests = Manifests::default();
        manifests.add("manifest", text).expect("a manifest");
        manifests.into_inputs(&RequestedSettings { host_name: "host".into(), ..RequestedSettings::default() })
    }
}
