//! Writes a rule as a line of iptables-restore input: tokens separated by single spaces [kube-proxy 6.1].

use std::borrow::Cow;
use std::sync::LazyLock;

use crate::cluster::Protocol;

/// One `-A` line under construction; [`RuleLine::jump`] or [`RuleLine::end`] finishes it.
///
/// Nothing is escaped, because names and addresses are validated when their object is read.
pub struct RuleLine<'a>(&'a mut String);

impl<'a> RuleLine<'a> {
    /// Starts a rule at the end of `chain`.
    pub fn append(out: &'a mut String, chain: &str) -> Self {
        Self(out).words(&["-A ", chain])
    }

    fn words(self, words: &[&str]) -> Self {
        for word in words {
            self.0.push_str(word);
        }
        self
    }

    /// Adds a quoted comment of several words, joined from parts.
    #[must_use]
    pub fn comment(self, parts: &[&str]) -> Self {
        self.words(&[" -m comment --comment \""]).words(parts).words(&["\""])
    }

    /// Adds a comment of one word, unquoted as kube-proxy writes it.
    #[must_use]
    pub(crate) fn bare_comment(self, word: &str) -> Self {
        self.words(&[" -m comment --comment ", word])
    }

    /// Adds the protocol match: the module first, then the protocol.
    #[must_use]
    pub fn protocol(self, protocol: Protocol) -> Self {
        let name = protocol.as_str();
        self.words(&[" -m ", name, " -p ", name])
    }

    /// Adds the destination address or CIDR.
    #[must_use]
    pub fn destination(self, address: &str) -> Self {
        self.words(&[" -d ", address])
    }

    /// Adds the source address or CIDR.
    #[must_use]
    pub fn source(self, address: &str) -> Self {
        self.words(&[" -s ", address])
    }

    /// Adds the destination port.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        let mut digits = [0; 5];
        self.words(&[" --dport ", decimal(port, &mut digits)])
    }

    /// Adds any other match in iptables spelling, joined from parts.
    #[must_use]
    pub fn arguments(self, parts: &[&str]) -> Self {
        self.words(&[" "]).words(parts)
    }

    /// Adds protocol, destination address and destination port.
    #[must_use]
    pub(crate) fn frontend(self, protocol: Protocol, address: &str, port: u16) -> Self {
        self.protocol(protocol).destination(address).port(port)
    }

    /// Ends the rule with a target and its options, joined from parts.
    pub fn jump(self, target: &[&str]) {
        self.words(&[" -j "]).words(target).words(&["\n"]);
    }

    /// Ends a rule that has no target and only counts packets.
    pub fn end(self) {
        self.words(&["\n"]);
    }
}

fn decimal(mut number: u16, digits: &mut [u8; 5]) -> &str {
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    std::str::from_utf8(&digits[start..]).unwrap_or_default()
}

/// Returns the packet mark of a masquerade bit as iptables-restore input: eight hex digits [kube-proxy 12.1].
#[must_use]
pub fn mark(bit: u8) -> String {
    format!("{:#010x}", 1_u32.checked_shl(u32::from(bit)).unwrap_or_default())
}

/// Returns the probability that selects one of `n` endpoints, with ten decimals [kube-proxy 6.1].
#[must_use]
pub fn probability(n: usize) -> Cow<'static, str> {
    /// The texts for small numbers. Formatting a float takes longer than the rest of a rule, and most Services have few endpoints.
    static FEW: LazyLock<Vec<String>> = LazyLock::new(|| (0..128).map(exactly).collect());
    fn exactly(n: usize) -> String {
        format!("{:.10}", 1.0 / n as f64)
    }
    FEW.get(n).map_or_else(|| exactly(n).into(), |text| text.as_str().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_formatted_as_in_kube_proxy() {
        assert_eq!(mark(14), "0x00004000");
        assert_eq!(mark(0), "0x00000001");
        assert_eq!(mark(31), "0x80000000");
        for (n, text) in [(2, "0.5000000000"), (3, "0.3333333333"), (7, "0.1428571429"), (100_001, "0.0000099999")] {
            assert_eq!(probability(n), text);
        }
        for number in [1, 10, 80, 65535] {
            assert_eq!(decimal(number, &mut [0; 5]), number.to_string());
        }
    }

    #[test]
    fn tokens_are_separated_by_single_spaces() {
        let mut out = String::new();
        RuleLine::append(&mut out, "A")
            .comment(&["x", " y"])
            .frontend(Protocol::Udp, "10.0.0.1", 53)
            .arguments(&["! -s 10.0.0.0/8"])
            .jump(&["B"]);
        RuleLine::append(&mut out, "A").bare_comment("x/y").source("fd00::/64").end();
        assert_eq!(
            out,
            "-A A -m comment --comment \"x y\" -m udp -p udp -d 10.0.0.1 --dport 53 ! -s 10.0.0.0/8 -j B\n-A A -m comment --comment x/y -s fd00::/64\n"
        );
    }
}
