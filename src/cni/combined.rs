//! The plugin `sepal`: what flannel's conflist does, in one (`{"type": "sepal"}`). It connects as the plugin `flannel` does with the
//! delegate of flannel's conflist, and maps the ports that the runtime asks for itself.

use serde_json::{Value, json};

use super::config::Config;
use super::delegate::FlannelConfig;
use super::failure::{Failure, Failures};
use super::protocol::{Call, Verb};
use super::result::Outcome;
use super::{flannel, portmap};

/// Carries out a verb.
///
/// # Errors
/// It was not carried out.
pub fn run(config: &Config, call: &Call) -> Result<Option<Outcome>, Failure> {
    // What the delegate in flannel's conflist says (spec section 10.2).
    let defaults: [(&str, Value); 2] = [("hairpinMode", json!(true)), ("isDefaultGateway", json!(true))];
    let connected = FlannelConfig::read(config, &defaults)?;
    match call.verb {
        Verb::Add => add(&connected, config, call).map(Some),
        Verb::Del => {
            let mut failures = Failures::default();
            failures.note(portmap::del(config, call));
            failures.note(flannel::del(&connected, config, call));
            failures.outcome().map(|()| None)
        }
        Verb::Check => {
            flannel::check(&connected, config, call)?;
            portmap::check(config, call, &config.previous()?.unwrap_or_default()).map(|()| None)
        }
        Verb::Gc => {
            let mut failures = Failures::default();
            failures.note(portmap::collect(config));
            failures.note(flannel::collect(&connected, config, call));
            failures.outcome().map(|()| None)
        }
        Verb::Status => flannel::status(&connected).map(|()| None),
        Verb::Version => Ok(None),
    }
}

fn add(connected: &FlannelConfig, config: &Config, call: &Call) -> Result<Outcome, Failure> {
    let added = flannel::add(connected, config, call)?;
    match portmap::add(config, call, &added.outcome) {
        Ok(()) => Ok(added.outcome),
        Err(failure) => Err(failure.and(added.undo(call))),
    }
}
