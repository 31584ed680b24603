//! Holds a subnet for this node with a Lease (`--subnet-source=lease`): carries out the steps of a [`Claim`] and publishes its status.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::{BoxStream, FuturesUnordered};
use ipnetwork::IpNetwork;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::leases::{LeaseData, LeaseError, LeaseStore};
use super::node_writes::{NodeWrites, permission_missing};
use super::subnet_file;
use crate::cluster::Family;
use crate::cluster::ip::overlap;
use crate::kubernetes::events::{Event, Events, Regarding};
use crate::observe::metrics::NetworkMetrics;
use crate::pod_network::allocation::{Claimant, LeaseTerms, Now, SubnetSpace, lease_name};
use crate::pod_network::claim::{Claim, ClaimEvent, ClaimStep, LeaseAnswer, LeaseObservation, LeaseRequest, LeaseStatus, WatchScope};

/// The fields of this node's Node that a claim needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisteredNode {
    /// The Node's name.
    pub name: Arc<str>,
    /// The Node's UID.
    pub uid: Arc<str>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNetwork>,
    /// Addresses that a reservation may name: internal and public ones.
    pub addresses: Vec<IpAddr>,
}

impl RegisteredNode {
    fn claimant(&self) -> Claimant {
        Claimant { node: Arc::clone(&self.name), uid: Arc::clone(&self.uid), addresses: self.addresses.clone() }
    }
}

/// The task that holds a subnet of one family.
pub struct SubnetHolder {
    /// The Lease objects.
    pub store: LeaseStore,
    /// The subnets that nodes can lease.
    pub space: SubnetSpace,
    /// How long leases last.
    pub terms: LeaseTerms,
    /// The subnet that subnet.env names. The podCIDRs of the Node are preferred to it.
    pub previous: Option<IpNetwork>,
    /// Path of subnet.env. The file must not name a subnet whose lease is released.
    pub subnet_file: PathBuf,
    /// This node's Node; `None` until it exists.
    pub node: watch::Receiver<Option<RegisteredNode>>,
    /// Annotations of the Lease object. When they change, the lease is renewed at once.
    pub data: watch::Receiver<LeaseData>,
    /// Publishes the status of the claim.
    pub status: watch::Sender<LeaseStatus>,
    /// Sends Events.
    pub events: Events,
    /// Counts renewals and losses.
    pub metrics: NetworkMetrics,
}

impl SubnetHolder {
    /// Holds a subnet: waits for the Node, takes a lease, renews it, and takes another one if it is lost. The future does not end. When it is
    /// dropped, the lease is not released.
    pub async fn run(mut self) {
        let registered = loop {
            let registered = self.node.borrow_and_update().clone();
            match registered {
                Some(registered) => break registered,
                None => changed(&mut self.node).await,
            }
        };
        let previous = registered.pod_cidrs.iter().copied().chain(self.previous).collect();
        let mut claim = Claim::new(self.space, registered.claimant(), self.terms, previous).using(self.previous);
        let (start, mut dice) = (Instant::now(), fastrand::Rng::new());
        let mut watching: Option<(WatchScope, BoxStream<'static, LeaseObservation>)> = None;
        let mut logged = None;
        loop {
            let now = || Now { elapsed: start.elapsed(), wall: Timestamp::now() };
            let mut random = |below: usize| dice.usize(..below.max(1));
            let step = claim.step(now(), &mut random);
            self.publish(&mut claim, now());
            let answered = match step {
                ClaimStep::List => self.store.list().await.map(LeaseAnswer::Listed),
                ClaimStep::Send(request) => self.send(&request, claim.who()).await,
                ClaimStep::Wait(until) => {
                    if let Some(scope) = claim.watch_scope().filter(|scope| watching.as_ref().is_none_or(|(watched, _)| watched != scope)) {
                        watching = Some((scope, self.store.watch(scope)));
                    }
                    tokio::select! {
                        () = sleep_until(start + until) => {}
                        observed = observed(&mut watching) => claim.observe(observed, now()),
                        () = changed(&mut self.data) => claim.renew_now(),
                        () = changed(&mut self.node) => {
                            let registered = self.node.borrow_and_update().clone();
                            if let Some(registered) = registered {
                                claim.set_who(registered.claimant());
                            }
                        }
                    }
                    continue;
                }
            };
            let answer = answered.unwrap_or_else(|error| self.answer_to_error(error, &mut logged));
            if answer != LeaseAnswer::Failed {
                logged = None;
            }
            claim.answer(answer, now(), &mut random);
            self.publish(&mut claim, now());
        }
    }

    /// Sends a request of the claim. Before a release, subnet.env is deleted if it names the subnet.
    async fn send(&mut self, request: &LeaseRequest, who: &Claimant) -> Result<LeaseAnswer, LeaseError> {
        let data = self.data.borrow_and_update().clone();
        if let LeaseRequest::Release(lease) = request {
            // Another node may take the subnet as soon as it is released.
            let removed = subnet_file::delete_if_stale(&self.subnet_file, |_, subnet| !overlap(subnet, lease.subnet));
            removed.map_err(|error| LeaseError::Failed {
                verb: "delete",
                name: format!(" {}", lease_name(lease.subnet)),
                why: error.to_string(),
            })?;
        }
        let written = self.store.send(request, who, &self.terms, &data, Timestamp::now()).await?;
        Ok(written.map_or(LeaseAnswer::Released, LeaseAnswer::Written))
    }

    /// Converts an error to an answer for the claim. An error is logged once while it stays the same.
    fn answer_to_error(&self, error: LeaseError, logged: &mut Option<LeaseError>) -> LeaseAnswer {
        match error {
            LeaseError::Conflict(_) => LeaseAnswer::Conflict,
            LeaseError::Missing(_) => LeaseAnswer::Missing,
            error => {
                if logged.as_ref() != Some(&error) {
                    tracing::warn!("{error}; retrying");
                    if matches!(error, LeaseError::Forbidden { .. }) {
                        self.events.tell(permission_missing(&error.to_string()));
                    }
                }
                *logged = Some(error);
                LeaseAnswer::Failed
            }
        }
    }

    /// Reports the events of the claim and publishes its status.
    fn publish(&self, claim: &mut Claim, now: Now) {
        for event in claim.take_events() {
            match event {
                ClaimEvent::Leased(subnet) => {
                    self.metrics.leased(Family::of_net(subnet));
                    let note = format!("subnet {subnet} is leased to this node");
                    tracing::info!("{note}");
                    self.event("SubnetLeased", false, note);
                }
                ClaimEvent::Renewed(subnet) => {
                    self.metrics.renewed(Family::of_net(subnet));
                    tracing::debug!("the lease of subnet {subnet} was renewed");
                }
                ClaimEvent::Lost(loss) => {
                    let subnet = loss.subnet;
                    self.metrics.lease_lost(Family::of_net(subnet));
                    let note = match loss.holder {
                        Some(holder) => format!(
                            "the lease of subnet {subnet} is lost: {holder} has it now; another subnet is being taken. Delete the pods with its addresses"
                        ),
                        None => format!(
                            "the lease of subnet {subnet} is lost: it was deleted; this node takes it again unless another node is faster"
                        ),
                    };
                    tracing::error!("{note}");
                    self.event("SubnetLost", true, note);
                }
                ClaimEvent::Overlapped(subnet, other) => {
                    self.metrics.lease_lost(Family::of_net(subnet));
                    tracing::warn!(
                        "subnet {subnet} is released at once: the lease of {other} overlaps it; is SubnetLen the same on all nodes?"
                    );
                }
                ClaimEvent::OutOfSubnets(shortage) => {
                    tracing::error!("{shortage}");
                    self.event("OutOfSubnets", true, shortage.to_string());
                }
            }
        }
        let status = claim.status(now);
        self.status.send_if_modified(|before| {
            let is_changed = *before != status;
            if let (true, LeaseStatus::Lapsed(subnet)) = (is_changed, &status) {
                tracing::error!(
                    "the lease of subnet {subnet} could not be renewed for {} s; others may take it",
                    self.terms.duration.as_secs()
                );
            }
            *before = status;
            is_changed
        });
    }

    fn event(&self, reason: &'static str, warning: bool, note: String) {
        self.events.tell(Event { regarding: Regarding::Node, reason, action: "LeaseSubnet", warning, note });
    }
}

/// Waits for the next value; forever if the sender was dropped.
async fn changed<T>(value: &mut watch::Receiver<T>) {
    if value.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Waits for the next event of the watch; forever if there is none.
async fn observed(watching: &mut Option<(WatchScope, BoxStream<'static, LeaseObservation>)>) -> LeaseObservation {
    match watching {
        Some((_, stream)) => match stream.next().await {
            Some(observed) => observed,
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

/// Writes the leased subnets as podCIDRs to a Node that has none, so that other nodes see them. If the Node has other podCIDRs, it logs an
/// error, because they cannot be changed. The future does not end.
pub async fn show_subnets(
    mut node: watch::Receiver<Option<RegisteredNode>>,
    mut statuses: Vec<watch::Receiver<LeaseStatus>>,
    writes: Arc<NodeWrites>,
    events: Events,
) {
    let mut last = None;
    loop {
        let registered = node.borrow_and_update().clone();
        let held: Option<Vec<IpNetwork>> = statuses
            .iter_mut()
            .map(|status| if let LeaseStatus::Held(subnet) = &*status.borrow_and_update() { Some(*subnet) } else { None })
            .collect();
        if let (Some(registered), Some(held)) = (registered, held)
            && !held.is_empty()
        {
            let now = (Arc::clone(&registered.uid), registered.pod_cidrs.clone(), held.clone());
            if last.as_ref() != Some(&now) {
                show(&registered, &held, &writes, &events);
                last = Some(now);
            }
        }
        let mut any: FuturesUnordered<_> = statuses.iter_mut().map(changed).collect();
        tokio::select! {
            () = changed(&mut node) => {}
            Some(()) = any.next() => {}
        }
    }
}

/// Writes or checks the podCIDRs once.
fn show(registered: &RegisteredNode, held: &[IpNetwork], writes: &NodeWrites, events: &Events) {
    let RegisteredNode { name, uid, pod_cidrs, .. } = registered;
    if pod_cidrs.is_empty() {
        writes.pod_cidrs(uid, held);
    } else if held.iter().any(|subnet| !pod_cidrs.contains(subnet)) {
        let list = |subnets: &[IpNetwork]| subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let note = format!(
            "spec.podCIDRs of Node {name} is {} and cannot be changed, but {} is leased to it; other nodes go by the former. Delete the Node \
             and let kubelet register it again",
            list(pod_cidrs),
            list(held)
        );
        tracing::error!("{note}");
        events.tell(Event { regarding: Regarding::Node, reason: "PodCIDRMismatch", action: "LeaseSubnet", warning: true, note });
    }
}
