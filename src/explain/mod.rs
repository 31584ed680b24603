//! `sepal explain`: computes the path of a packet through the iptables rules and names the rule that decides it. Pure: takes the rules as
//! text and a packet, and returns every ending with its probability.
//!
//! - [`question`]: parses the sender and the destination that the operator typed.
//! - [`packet`]: the packet, and the facts about this node that decide matches.
//! - [`rule`], [`ruleset`]: parsed rules, as matches and a target.
//! - [`walk`], [`chains`]: take the packet through the hooks, and through the chains of a hook, like the kernel does.
//! - [`ending`]: the result: every ending of the packet.
//! - [`output`]: prints the result as text and as JSON.

mod chains;
pub mod ending;
pub(crate) mod output;
pub mod packet;
pub(crate) mod question;
pub(crate) mod rule;
pub mod ruleset;
pub mod walk;
