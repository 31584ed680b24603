//! Many nodes lease subnets from one store, with events in any order: lost and late answers, crashes, clock skew, renewals and expiry.
//! No two nodes ever hold the same addresses. Every node gets a subnet while any is free.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnetwork::IpNetwork;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use sepal::cluster::ip::overlap;
use sepal::pod_network::allocation::{Claimant, LeaseTerms, Now, SubnetLease, SubnetSpace};
use sepal::pod_network::claim::{Claim, ClaimStep, LeaseAnswer, LeaseObservation, LeaseRequest, LeaseStatus, LostLease};

const TERMS: LeaseTerms = LeaseTerms { duration: Duration::from_secs(100), grace: Duration::from_secs(10), skew: Duration::from_secs(100) };
/// Clocks of two nodes differ by less than the skew that is allowed for.
const WORST_CLOCK: i64 = 45;

fn net(text: &str) -> IpNetwork {
    text.parse().expect("a CIDR")
}

/// Three subnets of the usual length, or six of half of it in the same place.
fn space(halves: bool) -> SubnetSpace {
    let (subnet_len, max) = if halves { (27, "10.0.0.224/27") } else { (26, "10.0.0.192/26") };
    let min = IpNetwork::new(net("10.0.0.64/26").network(), subnet_len).expect("a subnet");
    SubnetSpace { network: net("10.0.0.0/24"), subnet_len, min, max: net(max) }
}

/// The model of the API server.
#[derive(Default)]
struct Store {
    leases: BTreeMap<IpNetwork, SubnetLease>,
    version: u64,
    /// Everything that ever happened, for watches.
    events: Vec<LeaseObservation>,
}

impl Store {
    fn put(&mut self, lease: SubnetLease) -> SubnetLease {
        self.version += 1;
        let lease = SubnetLease { version: self.version.to_string().into(), ..lease };
        self.leases.insert(lease.subnet, lease.clone());
        self.events.push(LeaseObservation::Changed(lease.clone()));
        lease
    }

    fn remove(&mut self, subnet: IpNetwork) {
        self.leases.remove(&subnet);
        self.events.push(LeaseObservation::Deleted(subnet));
    }

    fn take(&mut self, sent: &Sent) -> LeaseAnswer {
        let held = |lease: &SubnetLease| SubnetLease {
            holder: sent.who.identity().into(),
            duration: Some(TERMS.duration),
            renewed: Some(sent.wall),
            ..lease.clone()
        };
        let (Some(request), Store { leases, .. }) = (&sent.request, &*self) else {
            return LeaseAnswer::Listed(self.leases.values().cloned().collect());
        };
        match request {
            LeaseRequest::Create(subnet) if leases.contains_key(subnet) => LeaseAnswer::Conflict,
            LeaseRequest::Create(subnet) => {
                let uid = format!("{subnet}-{}", self.version).into();
                let (version, holder) = (Box::default(), Box::default());
                let new = SubnetLease {
                    subnet: *subnet,
                    uid,
                    version,
                    holder,
                    duration: None,
                    renewed: None,
                    transitions: 0,
                    reserved_for: None,
                };
                LeaseAnswer::Written(self.put(held(&new)))
            }
            LeaseRequest::Take(lease) | LeaseRequest::Renew(lease) | LeaseRequest::Release(lease) => match leases.get(&lease.subnet) {
                None => LeaseAnswer::Missing,
                Some(now) if (&now.uid, &now.version) != (&lease.uid, &lease.version) => LeaseAnswer::Conflict,
                Some(now) if !matches!(request, LeaseRequest::Release(_)) => {
                    let lease = held(now);
                    LeaseAnswer::Written(self.put(lease))
                }
                Some(_) => {
                    self.remove(lease.subnet);
                    LeaseAnswer::Released
                }
            },
        }
    }
}

/// A request that was sent; `None` stands for a list.
#[derive(Clone)]
struct Sent {
    request: Option<LeaseRequest>,
    who: Claimant,
    wall: Timestamp,
}

struct Node {
    claim: Option<Claim>,
    who: Claimant,
    space: SubnetSpace,
    clock: i64,
    sent: Option<(Sent, Option<LeaseAnswer>)>,
    /// How many events its watch has brought.
    watched: usize,
    /// The subnet that subnet.env names. It outlives the process.
    file: Option<IpNetwork>,
    /// An administrator deleted the lease on this subnet. The node has not noticed yet, or an older answer is still on its way.
    robbed: Option<IpNetwork>,
}

struct World {
    store: Store,
    nodes: Vec<Node>,
    time: Duration,
    late: Vec<Sent>,
    /// Each moment at which a subnet.env named a subnet that its node had just seen held by another node.
    lies: Vec<String>,
    dice: fastrand::Rng,
}

impl World {
    fn new(nodes: &[(i64, bool)], seed: u64) -> Self {
        let node = |(index, (clock, halves)): (usize, &(i64, bool))| Node {
            claim: None,
            who: Claimant { node: format!("n{index}").into(), uid: "1".into(), addresses: Vec::new() },
            space: space(*halves),
            clock: *clock,
            sent: None,
            watched: 0,
            file: None,
            robbed: None,
        };
        let nodes = nodes.iter().enumerate().map(node).collect();
        Self {
            store: Store::default(),
            nodes,
            time: Duration::from_secs(1000),
            late: Vec::new(),
            lies: Vec::new(),
            dice: fastrand::Rng::with_seed(seed),
        }
    }

    fn now(&self, node: usize) -> Now {
        let clock = SignedDuration::from_secs(self.nodes[node].clock);
        Now { elapsed: self.time, wall: Timestamp::UNIX_EPOCH + SignedDuration::try_from(self.time).expect("short") + clock }
    }

    fn held(&self, node: usize) -> Option<IpNetwork> {
        match self.nodes[node].claim.as_ref()?.status(self.now(node)) {
            LeaseStatus::Held(subnet) => Some(subnet),
            _ => None,
        }
    }

    /// The node takes its next step, which sends a request or nothing.
    fn step(&mut self, node: usize) {
        let now = self.now(node);
        let Node { claim: Some(claim), sent: sent @ None, who, file, .. } = &mut self.nodes[node] else { return };
        let request = match claim.step(now, &mut |below| self.dice.usize(..below)) {
            ClaimStep::Wait(_) => return,
            ClaimStep::List => None,
            ClaimStep::Send(request) => Some(request),
        };
        if let Some(LeaseRequest::Release(lease)) = &request {
            // subnet.env goes before the lease.
            *file = file.filter(|named| !overlap(*named, lease.subnet));
        }
        *sent = Some((Sent { request, who: who.clone(), wall: now.wall }, None));
    }

    /// The server handles the node's request.
    fn arrive(&mut self, node: usize) {
        if let Some((sent, answer @ None)) = &mut self.nodes[node].sent {
            *answer = Some(self.store.take(sent));
        }
    }

    /// The node receives the server's answer.
    fn deliver(&mut self, node: usize) {
        let now = self.now(node);
        let Node { claim: Some(claim), sent, .. } = &mut self.nodes[node] else { return };
        if matches!(sent, Some((_, Some(_))))
            && let Some((_, Some(answer))) = sent.take()
        {
            claim.answer(answer, now, &mut |below| self.dice.usize(..below));
        }
    }

    /// The connection breaks. A request that has not arrived may still arrive later.
    fn lose(&mut self, node: usize) {
        let now = self.now(node);
        let Node { claim: Some(claim), sent, .. } = &mut self.nodes[node] else { return };
        if let Some((sent, answer)) = sent.take() {
            claim.answer(LeaseAnswer::Failed, now, &mut |below| self.dice.usize(..below));
            self.late.extend(answer.is_none().then_some(sent));
        }
    }

    fn crash(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        (node.claim, node.robbed) = (None, None);
        if let Some((sent, None)) = node.sent.take() {
            self.late.push(sent);
        }
    }

    fn start(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        if node.claim.is_none() {
            node.claim = Some(Claim::new(node.space, node.who.clone(), TERMS, node.file.into_iter().collect()).using(node.file));
        }
    }

    /// The node's watch delivers its next event, possibly late.
    fn observe(&mut self, node: usize) {
        let now = self.now(node);
        let Node { claim: Some(claim), sent: None, watched, .. } = &mut self.nodes[node] else { return };
        if let Some(event) = self.store.events.get(*watched) {
            *watched += 1;
            claim.observe(event.clone(), now);
        }
    }

    fn act(&mut self, action: u8, node: usize, number: u64) {
        let node = node % self.nodes.len();
        match action {
            0..=3 => {
                for _ in 0..4 {
                    self.step(node);
                    self.arrive(node);
                    self.deliver_and_check(node);
                }
            }
            4..=7 => self.step(node),
            8..=11 => self.arrive(node),
            12..=15 => self.deliver_and_check(node),
            16 => self.observe(node),
            17 => (0..8).for_each(|_| self.observe(node)),
            18 => self.lose(node),
            19 => self.crash(node),
            20..=22 => self.start(node),
            23 => self.time += Duration::from_secs(number),
            24 => self.time += Duration::from_millis(number * 10),
            25 => {
                if let Some(sent) = (!self.late.is_empty()).then(|| self.late.swap_remove(self.dice.usize(..self.late.len()))) {
                    self.store.take(&sent);
                }
            }
            26 => {
                // The node is registered again.
                let node = &mut self.nodes[node];
                node.who.uid = number.to_string().into();
                if let Some(claim) = &mut node.claim {
                    claim.set_who(node.who.clone());
                }
            }
            _ => {
                let all: Vec<IpNetwork> = self.store.leases.keys().copied().collect();
                if let Some(subnet) = all.get(usize::try_from(number).expect("small")) {
                    self.store.remove(*subnet);
                    for index in 0..self.nodes.len() {
                        let answer = self.nodes[index].sent.as_ref().and_then(|(_, answer)| answer.as_ref());
                        let granted = matches!(answer, Some(LeaseAnswer::Written(lease)) if lease.subnet == *subnet);
                        if granted || self.held(index) == Some(*subnet) {
                            self.nodes[index].robbed = Some(*subnet);
                        }
                    }
                }
            }
        }
        for index in 0..self.nodes.len() {
            let held = self.held(index);
            let node = &mut self.nodes[index];
            node.robbed = node.robbed.filter(|robbed| held == Some(*robbed) || node.sent.is_some());
        }
        for index in 0..self.nodes.len() {
            self.write_file(index);
        }
    }

    /// Delivers the answer. If it is a list of leases, compares subnet.env with it.
    fn deliver_and_check(&mut self, node: usize) {
        let listed = match &self.nodes[node].sent {
            Some((_, Some(LeaseAnswer::Listed(leases)))) => leases.clone(),
            _ => Vec::new(),
        };
        self.deliver(node);
        self.write_file(node);
        self.lies.extend(self.lie(node, &listed));
    }

    /// Writes subnet.env as the pod network's loop does.
    fn write_file(&mut self, node: usize) {
        let now = self.now(node);
        let Node { claim: Some(claim), file, .. } = &mut self.nodes[node] else { return };
        match claim.status(now) {
            LeaseStatus::Held(subnet) => *file = Some(subnet),
            LeaseStatus::Seeking { loss: Some(LostLease { holder: Some(_), .. }), .. } | LeaseStatus::Seeking { shortage: Some(_), .. } => {
                *file = None;
            }
            LeaseStatus::Seeking { .. } | LeaseStatus::Lapsed(_) => {}
        }
    }

    /// Finds a node whose subnet.env names addresses that the node has just seen in another node's lease.
    fn lie(&self, node: usize, listed: &[SubnetLease]) -> Option<String> {
        let Node { who, file, robbed, .. } = &self.nodes[node];
        let named = (*file)?;
        let has_own = listed.iter().any(|lease| overlap(lease.subnet, named) && who.holds(lease));
        let other = listed.iter().find(|lease| overlap(lease.subnet, named) && !who.holds(lease))?;
        (!has_own && *robbed != Some(named)).then(|| format!("subnet.env of {node} names {named}, and {other:?} was listed"))
    }

    /// Finds two nodes that hold the same addresses.
    fn clash(&self) -> Option<String> {
        let held: Vec<_> =
            (0..self.nodes.len()).filter_map(|i| Some((i, self.held(i).filter(|held| self.nodes[i].robbed != Some(*held))?))).collect();
        let pairs = held.iter().flat_map(|one| held.iter().map(move |other| (one, other)));
        let mut clashes = pairs.filter(|((i, one), (j, other))| i < j && overlap(*one, *other));
        clashes.next().map(|pair| format!("{pair:?} at {:?} of {:?}", self.time, self.store.leases))
    }

    /// Runs half an hour without faults.
    fn calm(&mut self) -> Result<(), TestCaseError> {
        self.late.clear();
        for _ in 0..90 {
            for node in 0..self.nodes.len() {
                self.start(node);
                for _ in 0..2 {
                    self.act(0, node, 0);
                    while self.nodes[node].sent.is_none() && self.nodes[node].watched < self.store.events.len() {
                        self.act(16, node, 0);
                    }
                    if let Some(clash) = self.clash() {
                        return Err(TestCaseError::fail(clash));
                    }
                }
            }
            self.time += Duration::from_secs(20);
        }
        Ok(())
    }
}

type Actions = Vec<(u8, usize, u64)>;

fn actions() -> impl Strategy<Value = Actions> {
    prop::collection::vec((0..28_u8, 0..7_usize, 0..70_u64), 0..500)
}

fn run(nodes: &[(i64, bool)], actions: &Actions, seed: u64) -> Result<World, TestCaseError> {
    let mut world = World::new(nodes, seed);
    for (action, node, number) in actions {
        world.act(*action, *node, *number);
        if let Some(clash) = world.clash() {
            return Err(TestCaseError::fail(clash));
        }
    }
    world.calm()?;
    prop_assert_eq!(&world.lies, &Vec::<String>::new());
    // Each subnet.env names the subnet that its node holds, or does not exist.
    for index in 0..world.nodes.len() {
        prop_assert_eq!(world.nodes[index].file, world.held(index), "node {} of {:?}", index, world.store.leases);
    }
    Ok(world)
}

/// An administrator deletes a Lease while the answer to its renewal is still on its way to the holder. Another node takes the subnet. Then
/// the old answer arrives, and for a time both nodes hold the subnet. Only such a deletion causes this.
#[test]
fn a_lease_deleted_during_a_renewal_may_be_held_twice() {
    let start = [(20, 4, 0), (0, 4, 0), (20, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0)];
    let renewal = [(23, 0, 54), (4, 0, 0), (8, 5, 0), (27, 0, 1), (23, 0, 46), (20, 1, 0), (12, 0, 0)];
    let other = [(20, 3, 0), (0, 3, 0), (0, 6, 0)];
    run(&[(0, false); 5], &[&start[..], &renewal, &other].concat(), 4_149_958_683_614_515_393).expect("no two hold one");
}

/// A node starts again and renews the lease of the subnet that it uses. The answer arrives after the lease expired and another node took it:
/// the next list shows that the subnet is lost.
#[test]
fn a_subnet_in_use_is_lost_if_the_answer_to_its_renewal_is_too_late() {
    let start = [(20, 4, 0), (20, 1, 0), (0, 1, 0), (19, 1, 0), (20, 6, 0), (20, 0, 0), (0, 0, 0), (4, 1, 0), (20, 3, 0), (23, 0, 35)];
    let renewal = [(8, 6, 0), (0, 0, 0), (12, 6, 0), (0, 4, 0), (23, 0, 37), (0, 4, 0), (4, 6, 0), (8, 1, 0), (26, 4, 2), (0, 4, 0)];
    let other = [(0, 2, 0), (0, 0, 0), (0, 3, 0), (23, 0, 57), (23, 0, 53), (0, 3, 0), (0, 0, 0), (0, 0, 0)];
    run(&[(0, false); 5], &[&start[..], &renewal, &other].concat(), 52_761_548_212_870_595)
        .expect("subnet.env names no other node's subnet");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// All nodes use the same subnet length. No two hold the same subnet, and in the end as many nodes hold one as there are subnets.
    #[test]
    fn no_subnet_is_held_twice_and_all_are_used(
        clocks in prop::collection::vec(-WORST_CLOCK..WORST_CLOCK, 2..7), actions in actions(), seed: u64,
    ) {
        let nodes: Vec<(i64, bool)> = clocks.into_iter().map(|clock| (clock, false)).collect();
        let world = run(&nodes, &actions, seed)?;
        let held: Vec<_> = (0..nodes.len()).filter_map(|node| world.held(node)).collect();
        prop_assert_eq!(held.len(), nodes.len().min(3), "{:?} of {:?}", held, world.store.leases);
    }

    /// Nodes use different lengths, as while SubnetLen is being changed. No two hold the same addresses.
    #[test]
    fn overlapping_subnets_are_not_held_at_once(
        nodes in prop::collection::vec((-WORST_CLOCK..WORST_CLOCK, any::<bool>()), 2..7), actions in actions(), seed: u64,
    ) {
        run(&nodes, &actions, seed)?;
    }
}
