//! `sepal explain` compared with real packets: random clusters whose rules are in the kernel, and connections from each kind of sender.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use sepal::cluster::{Family, Protocol};
use sepal::explain::ending::Fate;
use sepal::explain::packet::{LocalNode, Origin, Packet};
use sepal::explain::ruleset::Ruleset;
use sepal::proxy::rules::inputs::Inputs;
use sepal_lab::single_node::WHO_PORT;
use sepal_lab::traffic::tcp_within;
use sepal_lab::{NAMESPACE_FLAGS, Netns, SingleNode, wait_until};

use crate::endings::{Endings, by_ruleset, place};
use crate::logged::Logged;
use crate::random_cluster::{Dice, dice, objects, settings};
use crate::{SEPAL, common};

/// The wait for an answer where packets may be dropped. An answer that comes later counts as a dropped packet, which may be, too.
const SHORT_PATIENCE: Duration = Duration::from_millis(250);
/// The wait for an answer where each packet must get one. It is longer than any answer takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the rules do with a packet.
fn by_rules(inputs: &Inputs, packet: Packet, place: &LocalNode) -> Endings {
    let rules = Ruleset::desired(&common::rendered(inputs, Family::of(packet.to.ip())));
    by_ruleset(&rules, packet, place)
}

/// The real ending of a packet: the server and the source address that it saw, or refused, or dropped.
fn really(from: &Netns, to: SocketAddr, patience: Duration) -> Result<(IpAddr, IpAddr), Fate> {
    match tcp_within(from, to, patience) {
        Ok(said) => {
            let (who, seen) = said.split_once(' ').expect("two addresses");
            Ok((who.parse().expect("an address"), seen.parse().expect("an address")))
        }
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Err(Fate::Refused),
        Err(_) => Err(Fate::Dropped),
    }
}

/// Whether the real ending is among the computed ones.
fn is_foretold(endings: &Endings, source: IpAddr, really: &Result<(IpAddr, IpAddr), Fate>) -> bool {
    endings.keys().any(|(fate, to, masqueraded)| match really {
        Ok((who, seen)) => *fate == Fate::Passed && to.ip() == *who && (*seen != source) == *masqueraded,
        Err(Fate::Refused) => *fate == Fate::Refused,
        // Packets to endpoints without a pod get no answer either.
        Err(_) => *fate == Fate::Dropped || *fate == Fate::Passed && !to.ip().to_string().starts_with("10.61.3.1"),
    })
}

#[test]
fn real_packets_end_as_it_is_said() {
    let site = SingleNode::new();
    // Refusals are ICMP messages; by default the kernel limits them to one per second and host.
    site.node.run("sysctl -qw net.ipv4.icmp_ratelimit=0; ip route replace default dev beyond src 192.168.61.13");
    let mut runner = TestRunner::deterministic();
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().expect("writable");
    let clusters = (proptest::collection::vec(dice(), 8..9), settings());
    let (mut packets, mut answered, mut stopped) = (0, 0, 0);
    for _ in 0..6 {
        let (dice, settings) = clusters.new_tree(&mut runner).expect("a cluster").current();
        let objects = objects(&dice, &settings, WHO_PORT);
        let text: String = objects.iter().map(|object| format!("---\n{object}\n")).collect();
        fs::write(file.path(), &text).expect("writable");
        let inputs = common::inputs(&text).expect("a cluster");
        let place = LocalNode {
            addresses: ["192.168.61.13", "10.61.3.1", "10.61.4.1"].map(|ip| ip.parse().expect("an IP")).into(),
            pod_interface: "pods1".into(),
            ..place(&inputs)
        };
        let mut command = site.node.command(SEPAL);
        command
            .arg("run")
            .args(NAMESPACE_FLAGS)
            .args(["--iptables-variant=nft", "--hostname-override=alder-03", "--manifests"])
            .arg(file.path());
        let sepal = Logged::start(&mut command);
        wait_until("the rules are there", || {
            let log = sepal.log();
            ["ipv4: ", "ipv6: "].iter().all(|family| log.lines().any(|line| line.contains(family) && line.contains("service ports")))
        });
        assert_eq!(sepal.terminate().0, Some(0));
        let senders: [(&Netns, &str, Origin); 3] = [
            (&site.client, "10.61.4.20", Origin::Pod),
            (&site.node, "192.168.61.13", Origin::Node),
            (&site.outside, "192.168.61.50", Origin::Outside),
        ];
        for (number, Dice { kind, .. }) in dice.iter().enumerate() {
            let destinations = [
                format!("10.111.0.{}:80", 10 + number),
                format!("192.168.61.13:{}", 30_100 + number),
                format!("203.0.113.{}:80", 10 + number),
                format!("198.51.100.{}:80", 10 + number),
            ];
            let known = [true, *kind > 0, *kind > 1, *kind == 3];
            for (destination, _) in destinations.iter().zip(known).filter(|(_, known)| *known) {
                let to: SocketAddr = destination.parse().expect("an address");
                for (from, source, origin) in &senders {
                    let source: IpAddr = source.parse().expect("an IP");
                    let packet = Packet { source, to, protocol: Protocol::Tcp, origin: *origin };
                    assert_eq!(Family::of(source), Family::V4);
                    let said = by_rules(&inputs, packet, &place);
                    let may_be_dropped = is_foretold(&said, source, &Err(Fate::Dropped));
                    let really = really(from, to, if may_be_dropped { SHORT_PATIENCE } else { PATIENCE });
                    assert!(is_foretold(&said, source, &really), "{packet}: computed {said:?}, real {really:?}\n{text}");
                    packets += 1;
                    match really {
                        Ok(_) => answered += 1,
                        Err(_) => stopped += 1,
                    }
                }
            }
        }
    }
    assert!(packets >= 200 && answered > 60 && stopped > 30, "{packets} packets, {answered} answered, {stopped} stopped");
}
