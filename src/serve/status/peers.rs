//! The pod network's peers on the status page.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::cluster::Family;
use crate::cluster::families::PerFamily;
use crate::observe::paging::PageQuery;
use crate::pod_network::peers::RemoteSubnet;
use crate::pod_network::sync::status::PeersView;

/// A page of the other nodes, each with its `state`: `programmed`, `refused` or `failed`, and why.
#[must_use]
pub(crate) fn list(view: &PeersView<'_>, page: &PageQuery) -> Value {
    let PeersView { peers, off_link, failed } = *view;
    let mut refused: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for refusal in peers.refused.iter().chain(off_link) {
        refused.entry(&refusal.node).or_default().push(refusal.to_string());
    }
    let names: BTreeSet<&str> = peers.accepted.keys().map(|name| &**name).chain(refused.keys().copied()).collect();
    let counts = json!({"accepted": peers.accepted.len(), "refused": refused.len(), "failed": failed.len()});
    let mut whole = page.select(names.into_iter().map(|name| ("", name, name)), |name| {
        let accepted = peers.accepted.get(name);
        let (state, why) = match (failed.get(name), refused.get(name)) {
            (Some(why), _) => ("failed", why.clone()),
            (None, Some(why)) => ("refused", why.join("; ")),
            (None, None) => ("programmed", String::new()),
        };
        let remotes = Family::ALL.iter().filter_map(|family| accepted.and_then(|accepted: &PerFamily<RemoteSubnet>| accepted.get(*family)));
        let remotes: Vec<Value> = remotes.map(remote).collect();
        json!({"name": name, "state": state, "why": why, "subnets": remotes})
    });
    whole["counts"] = counts;
    whole
}

fn remote(remote: &RemoteSubnet) -> Value {
    let mac = remote.mac.map(|mac| mac.to_string());
    json!({"subnet": remote.subnet.to_string(), "host": remote.public_ip.to_string(), "mac": mac})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod_network::peers::Peers;
    use crate::pod_network::refusal::{PeerRefusal, RefusalReason};

    #[test]
    fn peers_are_listed_with_their_state() {
        let remote = |subnet: &str| RemoteSubnet { subnet: subnet.parse().expect("a CIDR"), public_ip: [192, 168, 0, 2].into(), mac: None };
        let accepted = BTreeMap::from([
            ("a".into(), PerFamily { v4: Some(remote("10.244.1.0/24")), v6: None }),
            ("b".into(), PerFamily { v4: Some(remote("10.244.2.0/24")), v6: None }),
        ]);
        let refused = vec![PeerRefusal { node: "c".into(), family: None, reason: RefusalReason::NotManaged }];
        let peers = Peers { accepted, refused };
        let list = list(
            &PeersView { peers: &peers, off_link: &[], failed: &BTreeMap::from([("b", "no buffer space".to_owned())]) },
            &PageQuery::default(),
        );
        let states: Vec<&str> = list["rows"].as_array().expect("rows").iter().filter_map(|row| row["state"].as_str()).collect();
        assert_eq!(states, ["programmed", "failed", "refused"]);
        assert_eq!(list["rows"][0]["subnets"], json!([{"subnet": "10.244.1.0/24", "host": "192.168.0.2", "mac": null}]));
        assert_eq!(list["counts"], json!({"accepted": 2, "refused": 1, "failed": 1}));
        assert!(list["rows"][2]["why"].as_str().is_some_and(|why| why.contains("kube-subnet-manager")));
    }
}
