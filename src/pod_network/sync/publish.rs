//! Publishes this node's part of the network: in annotations and a condition of its Node, in subnet.env for the CNI plugin, and to the service
//! proxy, which writes the masquerade and forward rules.

use std::path::PathBuf;

use tokio::time::Instant;

use super::cni_install;
use super::node_writes::{NodeCondition, WriteState};
use super::publisher::GRACE;
use crate::cluster::Family;
use crate::netlink::NetworkKernel;
use crate::observe::readiness::{Part, PartState, all_ready};
use crate::pod_network::annotations::withdrawal_patch;
use crate::pod_network::cni_config::choose;
use crate::pod_network::masquerade::pod_rules;
use crate::pod_network::net_conf::NetConf;
use crate::pod_network::settings::NetworkSettings;
use crate::pod_network::subnet_env::SubnetEnv;

use super::error::PodNetworkError;
use super::state::{AcknowledgedNetwork, NetworkLoop};
use super::subnet_file::{self, FileChange};
use super::subnets::SubnetProvider;

impl<K: NetworkKernel> NetworkLoop<K> {
    /// Publishes the result of a full reconcile.
    pub(super) fn publish_outcome(&mut self, error: Option<&PodNetworkError>) {
        self.report.outcome(error.map(ToString::to_string));
        self.publisher.is_final = matches!(error, Some(PodNetworkError::Lost(_)));
        self.publisher.error = error.map(|error| {
            let (part, reason) = error.part();
            let message = error.to_string();
            self.readiness.not_ready(part, &message);
            match error {
                PodNetworkError::Subnets(condition) | PodNetworkError::Lost(condition) => condition.clone(),
                _ => NodeCondition::down(reason, message),
            }
        });
        if let Some(acknowledged) = self.acknowledged.take() {
            self.publish(&acknowledged, error.is_none());
            self.acknowledged = Some(acknowledged);
        }
        self.update_condition();
    }

    /// Publishes what follows from the acknowledged state. `is_complete` is true if the last reconcile had no error.
    pub(super) fn publish(&mut self, acknowledged: &AcknowledgedNetwork, is_complete: bool) {
        let conf = self.inputs.conf.borrow().clone();
        let settings = self.inputs.settings.clone();
        // Publish links only if they exist as published.
        if is_complete
            && let Some(node) = &self.own_node
            && self.publisher.annotations(&settings, &conf, node, &acknowledged.own)
        {
            self.readiness.ready(Part::Registration);
        }
        if self.publisher.is_final {
            self.withdraw_annotations(acknowledged, &conf);
        }
        let rules = pod_rules(&settings, &conf, &acknowledged.own);
        self.publisher.pod_rules.send_if_modified(|sent| {
            let is_changed = sent.as_ref() != Some(&rules);
            if is_changed {
                for family in conf.networks.families() {
                    self.readiness.not_ready(Part::PodRules(family), "they are about to be written");
                }
                *sent = Some(rules);
            }
            is_changed
        });
        let is_whole = acknowledged.own.subnets.families().count() == conf.networks.families().count();
        if !is_whole {
            self.publisher.file = None;
        } else if is_complete || self.publisher.file.is_some() {
            let env = SubnetEnv::new(&conf, &acknowledged.own, acknowledged.mtu.pods, settings.masquerade);
            self.publisher.file = Some(env.to_string());
        } else {
            // Pods are started after subnet.env exists, so it is written only when they can be reached.
            return;
        }
        self.publish_file();
    }

    /// Removes the annotations that make this node part of the network, after a leased subnet was lost. Its Node still has the lost subnet as
    /// podCIDR.
    fn withdraw_annotations(&mut self, acknowledged: &AcknowledgedNetwork, conf: &NetConf) {
        let (SubnetProvider::Leases { .. }, Some(node)) = (&self.inputs.source, &self.own_node) else { return };
        let left = &acknowledged.own.subnets;
        let lost: Vec<Family> = conf.networks.families().filter(|family| left.get(*family).is_none()).collect();
        let patch = withdrawal_patch(&self.inputs.settings.prefix, &lost, left.is_empty(), &node.annotations);
        if let Some(patch) = patch.filter(|patch| self.publisher.requested.as_ref() != Some(patch)) {
            self.publisher.writes.annotations(&patch);
            self.publisher.requested = Some(patch);
        }
    }

    /// Writes subnet.env, or deletes it if it names a lost subnet. The first write waits until all other parts are ready, because pods are started
    /// after it.
    pub(super) fn publish_file(&mut self) {
        let path: PathBuf = self.inputs.settings.subnet_file.clone();
        let states = self.readiness.states();
        let waits = |(part, state): (&Part, &PartState)| !matches!(part, Part::SubnetFile | Part::CniConfig) && !state.is_ready();
        let is_first = self.publisher.withdrawn || matches!(states.get(&Part::SubnetFile), Some(PartState::Starting(_)));
        if is_first && self.publisher.file.is_some() {
            let missing: Vec<&str> = states.iter().filter(|state| waits(*state)).map(|(part, _)| part.as_str()).collect();
            if !missing.is_empty() {
                self.readiness.not_ready(Part::SubnetFile, format!("it is written when these are ready: {}", missing.join(", ")));
                return;
            }
        }
        let outcome = match (&self.publisher.file, &self.acknowledged) {
            (Some(text), _) => subnet_file::write(&path, text),
            // The CNI plugin must not use a subnet of another node.
            (None, Some(acknowledged)) => {
                let left = acknowledged.own.subnets;
                subnet_file::delete_if_stale(&path, |family, subnet| left.get(family) == Some(&subnet)).map(|_| FileChange::Unchanged)
            }
            (None, None) => return,
        };
        match outcome {
            Ok(written) => {
                let was_ready = states.get(&Part::SubnetFile) == Some(&PartState::Ready);
                if written == FileChange::Created && was_ready {
                    self.report.repaired(&[("subnet_file", 1)].into());
                }
                self.report.warn("subnet-file", None::<String>);
                if self.publisher.file.is_some() {
                    self.publisher.withdrawn = false;
                    self.readiness.ready(Part::SubnetFile);
                    self.publish_conflist();
                } else {
                    self.readiness.not_ready(Part::SubnetFile, "this node has no subnet in every family of net-conf.json");
                }
            }
            Err(error) => {
                self.readiness.not_ready(Part::SubnetFile, error.to_string());
                self.report.warn("subnet-file", Some(error));
            }
        }
    }

    /// Writes the CNI configuration if `--cni-conf-dir` is set, and checks which configuration container runtimes use. It is never deleted.
    fn publish_conflist(&mut self) {
        let NetworkSettings { cni_conf_dir, subnet_file, .. } = &self.inputs.settings;
        let Some(folder) = cni_conf_dir else { return };
        let own = cni_install::CONFLIST_NAME;
        let written = cni_install::write_conflist(folder, own, &cni_install::conflist(subnet_file));
        if written.as_ref().is_ok_and(|changed| *changed) {
            tracing::info!("pod network: {} is written", folder.join(own).display());
        }
        if let Err(error) = &written {
            self.readiness.not_ready(Part::CniConfig, error.to_string());
        }
        let failed = written.is_err();
        self.report.warn("conflist", written.err());
        if failed {
            return;
        }
        let files = match cni_install::conf_files(folder) {
            Ok(files) => files,
            Err(error) => {
                self.readiness.not_ready(Part::CniConfig, error.to_string());
                self.report.warn("conflist", Some(error));
                return;
            }
        };
        let (folder, subnet_file) = (folder.display().to_string(), subnet_file.display().to_string());
        let finding = choose(files, &subnet_file).finding(&folder, own, &subnet_file);
        match &finding {
            None => self.readiness.ready(Part::CniConfig),
            Some(finding) if finding.served => self.readiness.noted(Part::CniConfig, finding.to_string()),
            Some(finding) => self.readiness.not_ready(Part::CniConfig, finding.to_string()),
        }
        self.report.cni_config(finding.as_ref(), own);
    }

    /// Checks the folder of CNI configurations after a change. This program's file is not written before subnet.env.
    pub(super) fn conf_dir_changed(&mut self) {
        let is_written = self.readiness.states().get(&Part::SubnetFile).is_some_and(PartState::is_ready);
        if is_written && self.publisher.file.is_some() {
            self.publish_conflist();
        }
    }

    /// Sets the readiness of the registration by the state of the annotations.
    pub(super) fn set_registration(&self, state: &WriteState) {
        match state {
            WriteState::Written => self.readiness.ready(Part::Registration),
            WriteState::Failing(why) | WriteState::Refused(why) => self.readiness.not_ready(Part::Registration, why),
            WriteState::Idle | WriteState::Writing => {}
        }
    }

    /// Updates the Node's condition. A network that worked gets a grace period before it is reported as unavailable. A network that never worked is
    /// reported as unavailable only with a known cause.
    pub(super) fn update_condition(&mut self) {
        let mut states = self.readiness.states();
        // The service proxy has its own state. Another CNI configuration does not break this network.
        states.retain(|part, _| !matches!(part, Part::Proxy(_) | Part::CniConfig));
        let is_up = self.publisher.condition.as_ref().is_some_and(|condition| !condition.unavailable);
        let broken = || {
            let degraded = states.iter().find_map(|(part, state)| match state {
                PartState::Degraded(why) => Some(NodeCondition::down("NetworkDegraded", format!("{}: {why}", part.as_str()))),
                PartState::Starting(_) | PartState::Ready | PartState::Noted(_) => None,
            });
            self.publisher.error.clone().or(degraded)
        };
        let changed = if all_ready(&states) && self.publisher.error.is_none() {
            self.publisher.set_condition(NodeCondition::up())
        } else if let Some(broken) = broken() {
            let now = Instant::now();
            let due = if self.publisher.is_final { now } else { *self.publisher.due.get_or_insert(if is_up { now + GRACE } else { now }) };
            if due > now { None } else { self.publisher.set_condition(broken) }
        } else {
            None
        };
        if let Some(condition) = changed {
            if self.inputs.settings.set_network_unavailable {
                self.publisher.writes.condition(&condition);
            }
            self.report.event(condition.event());
        }
    }
}
