//! The status page on the metrics server: what this node's rules, Services and peers are, and what happened to them lately.
//!
//! - [`site`]: the page and the answers it is made of.
//! - [`desk`]: asking the loops that own what is shown. Nothing is copied for the page, and nothing computed while nobody looks.
//! - [`services`], [`way`], [`peers`]: their answers.
//! - [`listing`]: one page of a long list.
//! - [`happenings`]: the latest changes, repairs and failures.

pub mod desk;
pub mod happenings;
pub mod listing;
pub mod peers;
pub mod services;
pub mod site;
pub mod way;

use crate::cluster::ServiceKey;

use desk::Desk;
use happenings::Happenings;
use listing::Part;

/// What is asked of the keeper of the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// A page of the Services.
    Services(Part),
    /// One of them.
    Service(ServiceKey),
    /// Which way a packet goes.
    Explain {
        /// Who sends.
        from: String,
        /// Whom to.
        to: String,
    },
}

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

#[cfg(test)]
mod tests {
    use crate::config::settings::Asked;
    use crate::rules::inputs::Inputs;
    use crate::source::manifests::Manifests;

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
        manifests.into_inputs(&Asked { host_name: "host".into(), ..Asked::default() })
    }
}
