//! `sepal explain`: the path of a packet through the rules, and why it takes it. Pure: rules as text and a packet in, endings out.
//!
//! - [`question`]: the sender and the destination, as people name them.
//! - [`packet`]: the packet, and the node that it comes to.
//! - [`rule`], [`ruleset`]: rules as conditions and actions.
//! - [`walk`]: the path through the rules as the kernel takes it, in all its branches.
//! - [`story`]: the result, as text and as JSON.

pub mod output;
pub mod packet;
pub mod question;
pub mod rule;
pub mod ruleset;
pub mod walk;
