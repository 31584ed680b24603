//! The hooks under `/_test/`, for tests in other processes. Faults do not apply to them, and they are neither counted nor logged.

use std::time::Duration;

use hyper::Response;
use serde_json::{Value, json};

use crate::failure::{FailureForm, InjectedFailure};
use crate::resource::Resource;
use crate::state::ServerState;
use crate::status_error::StatusError;

use super::body::Body;
use super::query::Query;
use super::response::{json_bytes, json_value};

/// By how much `new-history` raises the resource version if `by` is missing.
const DEFAULT_VERSION_JUMP: u64 = 1_000_000;

/// Runs a hook.
pub(super) fn run(state: &ServerState, hook: &str, query: &Query, body: &[u8]) -> Result<Response<Body>, StatusError> {
    let faults = &state.faults;
    match hook {
        "load" => drop(state.store().load(parse_items(body)?)?),
        "delete" => delete(state, &parse_items(body)?)?,
        "dump" => {
            let entries = state.store().all();
            let objects: Vec<_> = entries.iter().map(|(_, entry)| entry.full()).collect();
            return Ok(json_bytes(200, [b"[", &*objects.join(&b",\n"[..]), b"]"].concat()));
        }
        "drop-watches" => state.store().drop_watches(),
        "bookmarks" => state.store().request_bookmarks(),
        "compact" => state.store().compact(),
        "new-history" => {
            let by = if query.text("by").is_empty() { DEFAULT_VERSION_JUMP } else { query.number("by")? };
            state.store().new_history(by);
        }
        "pause" => faults.pause(query.seconds("seconds")?.unwrap_or_default()),
        "fail" if query.flag("also") => faults.fail_also(parse_failure(query)?),
        "fail" => faults.fail(parse_failure(query)?),
        "stop-failing" => faults.stop_failing(),
        "delay" => faults.delay(Duration::from_millis(query.number("ms")?)),
        "deny" => match (query.text("verb"), query.text("resource")) {
            ("", _) | (_, "") => return Err(StatusError::bad_request("deny needs verb and resource")),
            (verb, resource) => faults.deny(verb, resource),
        },
        "allow-all" => faults.allow_all(),
        "requests" => {
            if !query.text("reset").is_empty() {
                state.request_log.reset();
            }
            return Ok(json_value(200, &json!(state.request_log.counts())));
        }
        "log" => {
            let entries = state.request_log.entries();
            let log: Vec<_> = entries.iter().map(|entry| json!([entry.at.as_secs_f64(), entry.method, entry.path, entry.code])).collect();
            return Ok(json_value(200, &json!(log)));
        }
        "rv" => return Ok(json_value(200, &json!(state.store().version()))),
        _ => return Ok(json_value(404, &json!({}))),
    }
    Ok(json_value(200, &json!({})))
}

/// Parses a JSON list, or the items of a List object.
fn parse_items(body: &[u8]) -> Result<Vec<Value>, StatusError> {
    let parsed = serde_json::from_slice::<Value>(body).map_err(|error| StatusError::bad_request(error.to_string()))?;
    let list = match parsed {
        Value::Object(mut list) => list.remove("items").unwrap_or_default(),
        other => other,
    };
    match list {
        Value::Array(items) => Ok(items),
        _ => Err(StatusError::bad_request("neither a list nor an object with items")),
    }
}

/// Removes the objects that are named by apiVersion, kind, namespace and name. Skips objects that do not exist.
fn delete(state: &ServerState, names: &[Value]) -> Result<(), StatusError> {
    let mut store = state.store();
    for name in names {
        let text = |field: &str| name.get(field).and_then(Value::as_str).unwrap_or_default();
        let unknown = || StatusError::bad_request(format!("no kind {}/{}", text("apiVersion"), text("kind")));
        let resource = Resource::of(text("apiVersion"), text("kind")).ok_or_else(unknown)?;
        if let Some(entry) = store.get(resource, text("namespace"), text("name")) {
            store.remove(resource, &entry)?;
        }
    }
    Ok(())
}

/// Reads a failure from the parameters of the `fail` hook.
fn parse_failure(query: &Query) -> Result<InjectedFailure, StatusError> {
    let count = u32::try_from(query.number("n")?).unwrap_or(u32::MAX);
    let code = if query.text("code").is_empty() { 500 } else { query.number("code")? };
    if !(400..600).contains(&code) {
        return Err(StatusError::bad_request(format!("code must be from 400 to 599, not {code}")));
    }
    let mut failure = InjectedFailure::next(count, code as u16).at(query.text("path")).with_form(parse_form(query)?);
    failure = failure.for_time(query.seconds("seconds")?.unwrap_or_default());
    failure = match query.text("only") {
        "" => failure,
        "watches" => failure.watches(),
        "streaming" => failure.streaming(),
        other => return Err(StatusError::bad_request(format!("unknown value of only: {other}"))),
    };
    if let Some(message) = query.get("message") {
        failure = failure.message(message);
    }
    if query.get("retry-after").is_some() {
        failure = failure.retry_after(u32::try_from(query.number("retry-after")?).unwrap_or(u32::MAX));
    }
    Ok(failure)
}

fn parse_form(query: &Query) -> Result<FailureForm, StatusError> {
    Ok(match query.text("form") {
        "" => FailureForm::Status,
        "text" => FailureForm::Text(query.text("message").to_owned()),
        "event" => FailureForm::ErrorEvent,
        "too-large" => FailureForm::VersionTooLarge,
        "silent" => FailureForm::Silent,
        "closed" => FailureForm::Closed,
        "ended" => FailureForm::Ended,
        "without-bookmark" => FailureForm::WithoutBookmark,
        other => return Err(StatusError::bad_request(format!("unknown value of form: {other}"))),
    })
}
