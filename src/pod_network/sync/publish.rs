//! What others are told of this node's part of the network: other nodes and kubelet by its Node, the CNI plugin by subnet.env, the owner
//! of the rules by an update.

use super::publisher::GRACE;
use crate::pod_network::masquerade::pod_rules;
use std::path::PathBuf;

use tokio::time::Instant;

use super::cni_install;
use super::node_writes::{Condition, WriteState};
use crate::cluster::Family;
use crate::netlink::NetworkKernel;
use crate::observe::readiness::{Part, PartState, all_ready};
use crate::pod_network::annotations::withdrawal;
use crate::pod_network::cni_config::choose;
use crate::pod_network::net_conf::NetConf;
use crate::pod_network::settings::NetworkSettings;
use crate::pod_network::subnet_env::SubnetEnv;

use super::error::Unsettled;
use super::state::{Known, NetworkLoop};
use super::subnet_file::{self, Written};
use super::subnets::Source;

impl<K: NetworkKernel> NetworkLoop<K> {
    /// Tells everybody how things stand after a round.
    pub(super) fn settle(&mut self, unsettled: Option<&Unsettled>) {
        self.report.trouble(unsettled.map(ToString::to_string));
        self.publisher.is_final = matches!(unsettled, Some(Unsettled::Lost(_)));
        self.publisher.trouble = unsettled.map(|unsettled| {
            let (part, reason) = unsettled.part();
            let message = unsettled.to_string();
            self.readiness.not_ready(part, &message);
            match unsettled {
                Unsettled::Subnets(condition) | Unsettled::Lost(condition) => condition.clone(),
                _ => Condition::down(reason, message),
            }
        });
        if let Some(known) = self.known.take() {
            self.publish(&known, unsettled.is_none());
            self.known = Some(known);
        }
        self.tell_condition();
    }

    pub(super) fn publish(&mut self, known: &Known, settled: bool) {
        let conf = self.asked.conf.borrow().clone();
        let settings = self.asked.settings.clone();
        // Others are told of links that are there as they are told.
        if settled
            && let Some(node) = &self.own_node
            && self.publisher.annotations(&settings, &conf, node, &known.own)
        {
            self.readiness.ready(Part::Registration);
        }
        if self.publisher.is_final {
            self.withdraw_annotations(known, &conf);
        }
        let rules = pod_rules(&settings, &conf, &known.own);
        self.publisher.pod_rules.send_if_modified(|sent| {
            let news = sent.as_ref() != Some(&rules);
            if news {
                for family in conf.networks.families() {
                    self.readiness.not_ready(Part::PodRules(family), "they are about to be written");
                }
                *sent = Some(rules);
            }
            news
        });
        let is_whole = known.own.subnets.families().count() == conf.networks.families().count();
        if !is_whole {
            self.publisher.file = None;
        } else if settled || self.publisher.file.is_some() {
            let env = SubnetEnv::new(&conf, &known.own, known.mtu.pods, settings.masquerade);
            self.publisher.file = Some(env.to_string());
        } else {
            // Pods come when they can be reached, and not before.
            return;
        }
        self.publish_file();
    }

    /// Where leases give subnets, the Node still shows the lost one as its podCIDR: it must not say that it takes part.
    fn withdraw_annotations(&mut self, known: &Known, conf: &NetConf) {
        let (Source::Leases { .. }, Some(node)) = (&self.asked.source, &self.own_node) else { return };
        let left = &known.own.subnets;
        let lost: Vec<Family> = conf.networks.families().filter(|family| left.get(*family).is_none()).collect();
        let patch = withdrawal(&self.asked.settings.prefix, &lost, left.is_empty(), &node.annotations);
        if let Some(patch) = patch.filter(|patch| self.publisher.wished.as_ref() != Some(patch)) {
            self.publisher.writes.annotations(&patch);
            self.publisher.wished = Some(patch);
        }
    }

    /// Makes subnet.env say what it should. It is written for the first time when everything else works: that is when pods may come.
    pub(super) fn publish_file(&mut self) {
        let path: PathBuf = self.asked.settings.subnet_file.clone();
        let states = self.readiness.states();
        let waits = |(part, state): (&Part, &PartState)| !matches!(part, Part::SubnetFile | Part::CniConfig) && !state.is_ready();
        let is_first = self.publisher.withdrawn || matches!(states.get(&Part::SubnetFile), Some(PartState::Starting(_)));
        if is_first && self.publisher.file.is_some() {
            let awaited: Vec<&str> = states.iter().filter(|state| waits(*state)).map(|(part, _)| part.as_str()).collect();
            if !awaited.is_empty() {
                self.readiness.not_ready(Part::SubnetFile, format!("it is written when these are ready: {}", awaited.join(", ")));
                return;
            }
        }
        let outcome = match (&self.publisher.file, &self.known) {
            (Some(text), _) => subnet_file::write(&path, text),
            // A subnet that is another node's must not be given to any more pods.
            (None, Some(known)) => {
                let left = known.own.subnets;
                subnet_file::disown(&path, |family, subnet| left.get(family) == Some(&subnet)).map(|_| Written::Unchanged)
            }
            (None, None) => return,
        };
        match outcome {
            Ok(written) => {
                let was_ready = states.get(&Part::SubnetFile) == Some(&PartState::Ready);
                if written == Written::Created && was_ready {
                    self.report.repaired(&[("subnet_file", 1)].into());
                }
                self.report.complain("subnet-file", None::<String>);
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
                self.report.complain("subnet-file", Some(error));
            }
        }
    }

    /// Writes the CNI configuration where that is asked for, and looks at which one container runtimes use. It is never removed.
    fn publish_conflist(&mut self) {
        let NetworkSettings { cni_conf_dir, subnet_file, .. } = &self.asked.settings;
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
        self.report.complain("conflist", written.err());
        if failed {
            return;
        }
        let files = match cni_install::conf_files(folder) {
            Ok(files) => files,
            Err(error) => {
                self.readiness.not_ready(Part::CniConfig, error.to_string());
                self.report.complain("conflist", Some(error));
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

    /// Looks again at the folder of CNI configurations, after it has changed. This program's file is not written there before subnet.env.
    pub(super) fn conf_dir_changed(&mut self) {
        let is_written = self.readiness.states().get(&Part::SubnetFile).is_some_and(PartState::is_ready);
        if is_written && self.publisher.file.is_some() {
            self.publish_conflist();
        }
    }

    /// Takes note of what became of the annotations.
    pub(super) fn registered(&self, state: &WriteState) {
        match state {
            WriteState::Written => self.readiness.ready(Part::Registration),
            WriteState::Failing(why) | WriteState::Refused(why) => self.readiness.not_ready(Part::Registration, why),
            WriteState::Idle | WriteState::Writing => {}
        }
    }

    /// Lets the Node's condition say whether the network works. One that works is given some time to work again before it is said to be
    /// broken; one that has not worked yet is only said to be broken where it is known why.
    pub(super) fn tell_condition(&mut self) {
        let mut states = self.readiness.states();
        // The proxy has a state of its own. The choice of another CNI configuration does not break this network.
        states.retain(|part, _| !matches!(part, Part::Proxy(_) | Part::CniConfig));
        let works = self.publisher.condition.as_ref().is_some_and(|condition| !condition.unavailable);
        let broken = || {
            let degraded = states.iter().find_map(|(part, state)| match state {
                PartState::Degraded(why) => Some(Condition::down("NetworkDegraded", format!("{}: {why}", part.as_str()))),
                PartState::Starting(_) | PartState::Ready | PartState::Noted(_) => None,
            });
            self.publisher.trouble.clone().or(degraded)
        };
        let news = if all_ready(&states) && self.publisher.trouble.is_none() {
            self.publisher.say(Condition::up())
        } else if let Some(broken) = broken() {
            let now = Instant::now();
            let due = if self.publisher.is_final { now } else { *self.publisher.due.get_or_insert(if works { now + GRACE } else { now }) };
            if due > now { None } else { self.publisher.say(broken) }
        } else {
            None
        };
        if let Some(condition) = news {
            if self.asked.settings.set_network_unavailable {
                self.publisher.writes.condition(&condition);
            }
            self.report.event(condition.event());
        }
    }
}
