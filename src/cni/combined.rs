//! The plugin `sepal` (`{"type": "sepal"}`): does what flannel's conflist does, in one plugin. It connects as the plugin `flannel` does
//! with the delegate of flannel's conflist, and maps host ports itself.

use serde_json::{Value, json};

use super::delegate::FlannelConfig;
use super::error::{CniError, CniErrors};
use super::network_config::NetworkConfig;
use super::request::{CniRequest, Verb};
use super::result::CniResult;
use super::{flannel, portmap};

/// Runs a verb.
///
/// # Errors
/// The verb fails.
pub fn run(config: &NetworkConfig, request: &CniRequest) -> Result<Option<CniResult>, CniError> {
    // The delegate of flannel's conflist [flannel 10.2].
    let defaults: [(&str, Value); 2] = [("hairpinMode", json!(true)), ("isDefaultGateway", json!(true))];
    let connected = FlannelConfig::read(config, &defaults)?;
    match request.verb {
        Verb::Add => add(&connected, config, request).map(Some),
        Verb::Del => {
            let mut errors = CniErrors::default();
            errors.note(portmap::del(config, request));
            errors.note(flannel::del(&connected, config, request));
            errors.into_result().map(|()| None)
        }
        Verb::Check => {
            flannel::check(&connected, config, request)?;
            portmap::check(config, request, &config.previous()?.unwrap_or_default()).map(|()| None)
        }
        Verb::Gc => {
            let mut errors = CniErrors::default();
            errors.note(portmap::collect(config));
            errors.note(flannel::collect(&connected, config, request));
            errors.into_result().map(|()| None)
        }
        Verb::Status => flannel::status(&connected).map(|()| None),
        Verb::Version => Ok(None),
    }
}

fn add(connected: &FlannelConfig, config: &NetworkConfig, request: &CniRequest) -> Result<CniResult, CniError> {
    let added = flannel::add(connected, config, request)?;
    match portmap::add(config, request, &added.result) {
        Ok(()) => Ok(added.result),
        Err(error) => Err(error.and(added.undo(request))),
    }
}
