//! `sepal explain`: computes the path of a packet through the iptables rules and names the rule that decides it. Pure: takes the rules as
//! text and a packet, and returns every ending with its probability.
//!
//! - [`question`]: reads the sender and the destination that the operator typed.
//! - [`packet`]: the packet, and what the rules need to know about this node.
//! - [`rule`], [`ruleset`]: parsed rules, as matches and a target.
//! - [`walk`], [`chains`]: take the packet through the hooks, and through the chains of a hook, like the kernel does.
//! - [`ending`]: the result: every ending of the packet.
//! - [`output`]: prints the result as text and as JSON.

mod chains;
pub mod ending;
pub mod output;
pub mod packet;
pub mod question;
pub mod rule;
pub mod ruleset;
pub mod walk;
