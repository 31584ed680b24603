//! The status page on the metrics port: this node's rules, Services, peers and latest Events.
//!
//! - [`server`]: the page and its requests. The loops answer them from their own state ([`crate::observe::query`]).
//! - [`services`], [`explain`], [`peers`]: the answers.

pub(crate) mod explain;
pub(crate) mod peers;
pub(crate) mod server;
pub(crate) mod services;

use serde_json::{Value, json};

use crate::kubernetes::recent_events::RecentEvents;
use crate::observe::paging::PageQuery;
use crate::observe::query::{ProxyQuery, QueryChannel};
use crate::proxy::sync::facts::described_facts;
use crate::proxy::sync::status::StatusView;
use services::ShownServices;

/// The sources of the status page. The loops share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct StatusSources {
    /// The latest Events.
    pub recent: RecentEvents,
    /// Queries to the service proxy.
    pub proxy: QueryChannel<ProxyQuery>,
    /// Queries to the pod network for a page of its peers.
    pub peers: QueryChannel<PageQuery>,
}

/// Answers a query to the service proxy.
#[must_use]
pub(crate) fn answer(view: &StatusView<'_>, query: ProxyQuery) -> Value {
    let services = ShownServices(*view);
    match query {
        ProxyQuery::Services(part) => services.list(&part),
        ProxyQuery::Service(key) => match described_facts(view.inputs, view.host, view.random_fully) {
            Ok(facts) => services.one(&key, &facts),
            Err(error) => json!({"error": error.to_string()}),
        },
        ProxyQuery::Explain { from, to } => explain::explain(&from, &to, view.inputs, view.host, view.random_fully),
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
