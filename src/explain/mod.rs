//! `sepal explain`: which way a packet goes through the rules, and why. Pure: rules as text and a packet in, endings out.
//!
//! - [`question`]: who sends what to whom, as people put it.
//! - [`packet`]: what is sent, from where, and where that is.
//! - [`rule`], [`ruleset`]: rules as conditions and actions.
//! - [`walk`]: the kernel's way through them, in all its branches.
//! - [`story`]: what came of it, in words and as JSON.

pub mod packet;
pub mod question;
pub mod rule;
pub mod ruleset;
pub mod story;
pub mod walk;
